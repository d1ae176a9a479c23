"""The checksum of a batch depends on its values alone, whatever kind of tensor holds them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_multirate.reporting.run_record import checksum


def _complex() -> Tensor:
    return torch.complex(torch.arange(6.0), torch.arange(6.0) + 1)


KINDS: dict[str, Callable[[float], Tensor]] = {
    "float": lambda x: torch.tensor([x, 2.0]),
    "bool": lambda x: torch.tensor([x > 1, True]),
    "bfloat16": lambda x: torch.tensor([x, 2.0], dtype=torch.bfloat16),
    "float8": lambda x: torch.tensor([x, 2.0]).to(torch.float8_e4m3fn),
    "complex": lambda x: torch.tensor([x + 2j]),
    "complex half": lambda x: torch.tensor([x + 2j], dtype=torch.complex32),
    "conjugate": lambda x: torch.tensor([x + 2j]).conj(),
    "negative": lambda x: torch.tensor([2 + x * 1j]).conj().imag,
    "scalar": torch.tensor,
    "expanded": lambda x: torch.tensor([x]).expand(3, 2),
    "transposed": lambda x: torch.tensor([[x, 2.0, 3.0], [4.0, 5.0, 6.0]]).T,
    "with a gradient": lambda x: torch.tensor([x], requires_grad=True) * 2,
    "sparse": lambda x: torch.tensor([[0.0, x], [0.0, 0.0]]).to_sparse(),
    "sparse rows": lambda x: torch.tensor([[0.0, x], [0.0, 0.0]]).to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([torch.tensor([x]), torch.ones(2)]),
    "jagged": lambda x: torch.nested.nested_tensor([torch.tensor([x]), torch.ones(2)], layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(torch.tensor([x, 2.0]), 0.5, 0, torch.qint8),
    "quantized by channel": lambda x: torch.quantize_per_channel(
        torch.tensor([[x], [2.0]]), torch.tensor([0.5, 0.25]), torch.zeros(2), 0, torch.qint8
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about kinds of tensors that may change or go
@pytest.mark.parametrize("kind", KINDS)
def test_values_decide(kind: str) -> None:
    make = KINDS[kind]
    assert checksum([{"x": make(1.5)}]) == checksum([{"x": make(1.5)}])
    assert checksum([{"x": make(1.5)}]) != checksum([{"x": make(0.5)}])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantized_tensor_with_another_scale_is_another_one() -> None:
    one, other = (torch.quantize_per_tensor(torch.ones(2) * s, s, 0, torch.qint8) for s in (0.5, 0.25))
    assert torch.equal(one.int_repr(), other.int_repr())
    assert checksum([one]) != checksum([other])


def test_a_view_is_what_it_shows() -> None:
    values = _complex()
    assert checksum([values.conj()]) == checksum([values.conj().resolve_conj()])
    assert checksum([values.conj().imag]) == checksum([values.conj().imag.resolve_neg()])
    assert checksum([values[::2]]) == checksum([values[::2].clone()])


def test_names_order_and_shapes_count_and_the_order_of_names_does_not() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    assert checksum([{"x": x, "y": y}]) == checksum([{"y": y, "x": x}])
    others = [{"x": y, "y": x}, {"x": x, "z": y}, {"x": x, "y": y.view(1, 2)}, [x, y], {"x": x, "y": y.int()}]
    assert len({checksum([{"x": x, "y": y}]), *(checksum([batch]) for batch in others)}) == len(others) + 1


def test_a_meta_tensor_and_an_object_do_not_stop_training() -> None:
    assert checksum([torch.ones(2, device="meta")]) == checksum([torch.zeros(3, device="meta")])
    assert checksum([object()]) == checksum([object()])
