"""Buckets of gradients: sent in turn while backward goes on, and what is missing, late or sparse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hf_multirate.distributed import all_reduce as buckets
from hf_multirate.distributed.all_reduce import GradientAllReduce, _BucketInFlight
from hf_multirate.distributed.synced_step import check_ranks_agree, check_weights
from tests.support.waits import Waits


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.ProcessGroup]:
    """Of this process alone, and buckets of two matrices or one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 2 * 16 * 4)
    world = dist.group.WORLD
    assert world is not None
    yield world
    dist.destroy_process_group()


def layers(count: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(count)])


def started(average: GradientAllReduce) -> int:
    return len(average._sent)


def test_buckets_leave_while_backward_goes_on(group: dist.ProcessGroup) -> None:
    model = layers(4)
    parameters = list(model.parameters())
    average = GradientAllReduce(parameters, group)
    seen: list[int] = []
    inputs = torch.randn(2, 4, requires_grad=True)
    middle = model[1](model[0](inputs))
    middle.register_hook(lambda _: seen.append(started(average)))
    with average.watching(sends=True):
        model[3](model[2](middle)).sum().backward()
    assert seen == [1]
    assert started(average) == 2
    wanted = [parameter.grad.clone() for parameter in parameters]
    average.finish()
    assert all(torch.equal(p.grad, value) for p, value in zip(parameters, wanted, strict=True))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters)


def test_watching_alone_sends_nothing(group: dist.ProcessGroup) -> None:
    model = layers(2)
    average = GradientAllReduce(list(model.parameters()), group)
    with average.watching(sends=False):
        model(torch.randn(2, 4)).sum().backward()
        model(torch.randn(2, 4)).sum().backward()
    assert started(average) == 0
    assert set(average.counts.values()) == {2}
    average.finish()


def test_no_gradient_anywhere_stays_none(group: dist.ProcessGroup) -> None:
    model = layers(3)
    model[2](torch.randn(2, 4)).sum().backward()
    GradientAllReduce(list(model.parameters()), group).finish()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


@pytest.mark.parametrize("wire", [None, torch.bfloat16])
def test_dtypes_do_not_mix(group: dist.ProcessGroup, wire: torch.dtype | None) -> None:
    model = layers(4)
    model[1:3].double()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1 + 2**-10)
    GradientAllReduce(list(model.parameters()), group, wire).finish()
    for parameter in model.parameters():
        assert parameter.grad.dtype == parameter.dtype
        assert (parameter.grad == (1 if wire else 1 + 2**-10)).all()


def test_sparse_gradients_are_refused(group: dist.ProcessGroup) -> None:
    table = nn.Embedding(4, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        GradientAllReduce(list(table.parameters()), group).finish()


def test_one_process_agrees_with_itself(group: dist.ProcessGroup) -> None:
    check_ranks_agree({"the step": "3"}, group)
    mixed = {"a": torch.randn(3), "b": torch.randn(2, 2).bfloat16(), "c": torch.randn(5).double(), "d": torch.empty(0)}
    check_weights(mixed, group, 3)


@pytest.mark.parametrize("missing", [(), (1,), (0, 2)])
def test_which_gradients_there_are_is_sent_without_a_copy_from_the_host(
    group: dist.ProcessGroup, missing: tuple[int, ...]
) -> None:
    """A copy of a list to a GPU would wait for all of backward so far."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for i, parameter in enumerate(parameters):
        parameter.grad = None if i in missing else torch.full((2,), float(i + 1))
    with Waits() as waits:
        bucket = _BucketInFlight(parameters, group, None)
    assert not waits.number
    assert bucket._flat[-3:].tolist() == [float(i not in missing) for i in range(3)]


def test_parameters_that_were_frozen_since_are_passed_over(group: dist.ProcessGroup) -> None:
    model = layers(2)
    model[0].requires_grad_(False)
    average = GradientAllReduce(list(model.parameters()), group)
    with average.watching(sends=True):
        model(torch.randn(2, 4)).sum().backward()
    wanted = model[1].weight.grad.clone()
    average.finish()
    assert torch.equal(model[1].weight.grad, wanted)
    assert model[0].weight.grad is None


def test_complex_weights_are_compared(group: dist.ProcessGroup) -> None:
    for dtype in (torch.complex64, torch.complex128):
        check_weights({"weight": nn.Parameter(torch.ones(3, dtype=dtype))}, group, 3)
