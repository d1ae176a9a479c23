"""Which blocks are fast in very many families of models, and that a fast step of theirs saves what was promised."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_multirate import Multirate, MultirateConfig
from tests.support.families import ALL
from tests.support.runs import FIVE
from tests.support.stacks import stack_of


pytestmark = [
    pytest.mark.skipif(not FIVE, reason="the names of modules are those of transformers 5"),
    # Reference code of state-space models that have kernels elsewhere.
    pytest.mark.filterwarnings("ignore"),
]
CONFIGS = {
    "depth": MultirateConfig.two_rate(on_missing_gradient="warn", idle="drift"),
    "last": MultirateConfig.two_rate("last:1", on_missing_gradient="warn", idle="drift"),
    "ladder": MultirateConfig.ladder([1, 2, 4], on_missing_gradient="warn", idle="drift"),
}
EXPECTED: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""Family -> its stack, and the lowest parameter that is fast with the default and with ``last:1``."""

LESS = 0.75
"""Activations of a fast step, at most, as a share of those of a full one."""

TOLD = {("lxmert", "depth"), ("lxmert", "last"), ("lxmert", "ladder"), ("zamba", "ladder")}
"""Where the first fast step shows that backward goes through idle modules.

LXMERT registers layers for images behind those that read them, and layers of Zamba share a transformer.
"""

QUICK = ("xlm", "mbart", "jamba", "t5_deep_encoder", "segformer", "git", "llava")


def step(model: nn.Module, controller: Multirate, batch: Mapping[str, Any], number: int) -> tuple[set[str], int]:
    """Take a step; names of the parameters that had a gradient, and bytes that autograd kept."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = 0 if storage.data_ptr() in own else storage.nbytes()
        return tensor

    controller.begin_step(number)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch)["loss"]
    loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}, sum(kept.values())


def lowest(controller: Multirate) -> str:
    """The parameter below which backward is skipped at most steps."""
    (name,) = set(re.findall(r"with (?:fast|part 1) live: backward is skipped below (\S+),", controller.describe()))
    return str(name)


def check(family: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, batch = ALL[family].build(), ALL[family].batch()
    config = CONFIGS[kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with caplog.at_level(logging.WARNING, "hf_multirate"), Multirate(config).attach(model, optimizer) as controller:
        stack, depth, last = EXPECTED[family]
        assert stack_of(model)[0] == stack
        if kind != "ladder":
            assert lowest(controller) == (depth if kind == "depth" else last)
        kept = []
        for number in range(4):
            found, size = step(model, controller, batch, number)
            live = [config.groups[i].name for i in controller.schedule.live(number)]
            assert found
            assert found <= {name for group in live for name in controller.partition[group]}
            optimizer.step()
            optimizer.zero_grad()
            kept.append(size)
    assert kept[1] < LESS * kept[0]
    told = "corrected" in caplog.text or "backward runs through" in caplog.text
    assert told == ((family, kind) in TOLD)


@pytest.mark.parametrize("family", QUICK)
def test_fast_blocks_of_very_different_families(family: str, caplog: pytest.LogCaptureFixture) -> None:
    check(family, "depth", caplog)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("family", ALL)
def test_fast_blocks(family: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    check(family, kind, caplog)


def test_every_family_is_expected() -> None:
    assert ALL.keys() == EXPECTED.keys()
