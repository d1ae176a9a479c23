"""Which group a parameter is in, what `describe` says of it, and which optimizers are refused."""

import re

import pytest
import torch
from torch import nn

from hf_multirate import Multirate, MultirateConfig, RateGroup
from hf_multirate.model.partition import assign
from hf_multirate.optim.optimizer_check import check_optimizer
from tests.support.tiny import FAMILIES


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))


def groups(*patterns: str) -> MultirateConfig:
    return MultirateConfig(
        groups=[RateGroup(f"g{i}", pattern, period=1 + i, idle="drift") for i, pattern in enumerate(patterns)]
    )


def test_first_match_wins_and_frozen_parameters_are_in_no_group() -> None:
    net = Net()
    net[1].bias.requires_grad_(False)
    partition = assign(groups(r"^2\.", "bias", ".*"), net)
    assert dict(partition) == {"g0": ("2.weight", "2.bias"), "g1": ("0.bias",), "g2": ("0.weight", "1.weight")}
    assert partition.frozen == ("1.bias",)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("clasifier", ".*"), r"'g0' matches no trainable parameter"),
        ((".*", "bias"), r"'g1' is empty.*belong to earlier groups, \['g0'\]"),
        (("bias", r"0\."), r"2 trainable parameters are in no rate group.*'1.weight'"),
    ],
)
def test_a_partition_with_a_hole_is_refused(patterns: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=re.compile(words, re.DOTALL)):
        assign(groups(*patterns), Net())


def test_describe_names_groups_boundary_and_cost() -> None:
    model, _ = FAMILIES["bert"]()
    text = Multirate(MultirateConfig.two_rate("last:1", idle="drift")).assign(model).describe()
    total = sum(parameter.numel() for parameter in model.parameters())
    found = {
        row[0]: int(row[1].replace(",", "")) for row in re.findall(r"^(fast|slow) +\d +\S+ +([\d,]+) ", text, re.M)
    }
    assert found.keys() == {"fast", "slow"}
    assert sum(found.values()) == total
    assert "backward is skipped below bert.encoder.layer" in text
    assert re.search(r"predicted speed-up: 1\.\d+x over a cycle of 5 steps", text)


class DecaysAnyway(torch.optim.SGD):
    """Decays what has no gradient."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])


class StepsInBackward(torch.optim.SGD):
    """Has nothing left to do in its step."""

    def step(self, closure: None = None) -> None:
        pass


class Swaps(torch.optim.SGD):
    """Has two sets of weights."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


class Fails(torch.optim.SGD):
    """Wants what a small parameter has not."""

    def step(self, closure: None = None) -> None:
        raise KeyError("rank")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (DecaysAnyway, "DecaysAnyway moves parameters whose gradient is None"),
        (StepsInBackward, "StepsInBackward does not move parameters in step"),
        (Swaps, "Swaps swaps the weights"),
        (Fails, "Fails failed on copies of its parameters.*KeyError"),
    ],
)
def test_an_optimizer_that_does_not_leave_idle_parameters_alone_is_refused(kind: type, words: str) -> None:
    net = Net()
    with pytest.raises(ValueError, match=words):
        Multirate(groups("2", ".*")).attach(net, kind(net.parameters(), lr=0.0))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_probing_leaves_an_optimizer_as_it_is(kind: type) -> None:
    net = Net()
    optimizer = kind(net.parameters(), lr=0.3)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    state = {p: {k: torch.as_tensor(v).clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    check_optimizer(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.state.keys() == state.keys()
    assert all(torch.equal(torch.as_tensor(optimizer.state[p][k]), v) for p, s in state.items() for k, v in s.items())
