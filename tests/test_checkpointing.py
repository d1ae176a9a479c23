"""Multirate training with activation checkpointing: the saving is kept, and it is never silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from counted import Counted, saving
from hf_multirate import Multirate, MultirateConfig, MultirateTrainer, RateGroup
from hf_multirate.checkpointing import cut_mark, reentrant
from hf_multirate.hooks import last_hooks
from runs import CONFIG, PERIOD, assert_same, example, history, trainer_for, weights


# The default of transformers 5 is the first, that of 4.57 the second.
CHECKPOINTING, REENTRANT = (
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    for reentrant in (False, True)
)
# The argument has a new name in transformers 5 and its old one works on both lines.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


class Watched(Counted, MultirateTrainer):
    """Counts operations."""


# transformers marks the output of embeddings as requiring a gradient: backward would run through all that is idle.
@pytest.mark.parametrize("settings", [CHECKPOINTING, REENTRANT], ids=["", "reentrant"])
@pytest.mark.parametrize(
    ("family", "noise"), [("bert", None), ("gpt2-lm", None), ("llama-lm", None), ("vit", None), ("gpt2-lm", 5.0)]
)
def test_checkpointing_keeps_the_saving(
    tmp_path: Path, warnings_of: Any, family: str, noise: float | None, settings: dict[str, Any]
) -> None:
    plain = trainer_for(tmp_path, CONFIG, family, kind=Watched, neftune_noise_alpha=noise)
    plain.train()
    trainer = trainer_for(tmp_path, CONFIG, family, kind=Watched, neftune_noise_alpha=noise, **settings)
    assert "backward runs" not in warnings_of(trainer)
    # Both recompute what is live, so that the share is smaller than without.
    assert saving(trainer, PERIOD) < saving(plain, PERIOD) < 0.6
    assert_same(weights(trainer), weights(plain))
    assert history(trainer) == history(plain)
    assert bool(reentrant(trainer.model.modules())) is (settings is REENTRANT)  # as it was found


class PutsOnAgain(Watched):
    """Takes checkpointing off and puts it on again within a step, as those do who sample texts in between."""

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        model.gradient_checkpointing_disable()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        return super().compute_loss(model, *args, **kwargs)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_checkpointing_put_on_again_within_a_step(tmp_path: Path, family: str) -> None:
    ends = []
    for kind in (Watched, PutsOnAgain):
        trainer = trainer_for(tmp_path, CONFIG, family, kind=kind, **REENTRANT)
        trainer.train()
        ends.append((weights(trainer), trainer.flops))
        assert reentrant(trainer.model.modules())
    assert_same(*ends)


# peft still asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize(
    ("family", "settings"),
    # (In a reentrant checkpoint of images plain training too would lose gradients.)
    [("bert", {}), ("bert", CHECKPOINTING), ("bert", REENTRANT), ("vit", {}), ("vit", CHECKPOINTING)],
)
def test_adapters_with_marked_inputs_keep_the_saving(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    def adapted() -> nn.Module:
        config = LoraConfig(r=2, target_modules=r".*\.(query|q_proj)", modules_to_save=["classifier"])
        model = get_peft_model(example(family)[0], config)
        model.base_model.enable_input_require_grads()
        return model

    counted = [
        trainer_for(tmp_path, CONFIG, family, kind=Watched, model_init=init, label_names=["labels"], **each)
        for init, each in ((adapted, settings), (lambda: unmarked(adapted()), {}))
    ]
    for trainer in counted:
        trainer.train()
    assert saving(counted[0], PERIOD) <= saving(counted[1], PERIOD) < 0.7
    assert_same(weights(counted[0]), weights(counted[1]))


def unmarked(model: nn.Module) -> nn.Module:
    """``model`` without hooks that mark its inputs."""
    for module in model.modules():
        module._forward_hooks.clear()
    return model


class Recomputes(nn.Module):
    """A model of somebody's own with a reentrant checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.block, self.top = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.top(checkpoint(self.block, self.below(inputs), use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_reentrant_checkpoint_of_ones_own_is_refused() -> None:
    model = Recomputes()
    groups = (RateGroup("fast", "block|top", 1), RateGroup("slow", "below", 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig(groups)).attach(model, optimizer) as multirate:
        for step in range(2):
            multirate.begin_step(step)
            model(torch.ones(1, 3)).sum().backward()
            if step:
                with pytest.raises(RuntimeError, match=r"got no gradient at step 1.*use_reentrant=False"):
                    optimizer.step()
            else:
                optimizer.step()
                optimizer.zero_grad()


def test_a_live_parameter_added_to_the_embeddings_is_not_cut_off() -> None:
    table, prompt = nn.Embedding(5, 3), nn.Parameter(torch.ones(3))
    table.weight.requires_grad_(False)
    table.register_forward_hook(lambda module, args, output: output.requires_grad_() * 2 + prompt)
    with last_hooks(table, [(table, cut_mark)]):
        table(torch.tensor([1])).sum().backward()
    assert prompt.grad is not None
