"""Multirate training with activation checkpointing: the saving is kept, and it is never silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_multirate import MultirateConfig
from hf_multirate.pruning import marks_cut
from runs import CONFIG, PERIOD, assert_same, history, trainer_for, weights


CHECKPOINTING = {"gradient_checkpointing": True}
REENTRANT = {**CHECKPOINTING, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
# The argument has a new name in transformers 5 and its old one works on both lines.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def recording(module: nn.Module, seen: list[bool]) -> None:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        seen.append((output[0] if isinstance(output, tuple) else output).requires_grad)

    module.register_forward_hook(note)


# Where the embeddings are marked as requiring a gradient: by themselves nothing below the cut would be idle.
@pytest.mark.parametrize(
    ("family", "below"), [("bert", "bert.encoder.layer.2"), ("gpt2-lm", "transformer.h.2"), ("vit", "vit.layers.2")]
)
def test_checkpointing_keeps_the_saving(tmp_path: Path, warnings_of: Any, family: str, below: str) -> None:
    plain = trainer_for(tmp_path, CONFIG, family)
    plain.train()
    trainer = trainer_for(tmp_path, CONFIG, family, **CHECKPOINTING)
    seen: list[bool] = []
    recording(trainer.model.get_submodule(below), seen)
    assert warnings_of(trainer) == ""
    assert seen == [step % PERIOD == 0 for step in range(6)]
    assert_same(weights(trainer), weights(plain))
    assert history(trainer) == history(plain)


def test_checkpointing_with_noise_on_the_embeddings_keeps_the_saving(tmp_path: Path, warnings_of: Any) -> None:
    plain = trainer_for(tmp_path, CONFIG, "gpt2-lm", neftune_noise_alpha=5.0)
    plain.train()
    trainer = trainer_for(tmp_path, CONFIG, "gpt2-lm", neftune_noise_alpha=5.0, **CHECKPOINTING)
    seen: list[bool] = []
    recording(trainer.model.get_submodule("transformer.h.2"), seen)
    assert warnings_of(trainer) == ""
    assert seen == [step % PERIOD == 0 for step in range(6)]
    assert_same(weights(trainer), weights(plain))


def test_a_live_parameter_added_to_the_embeddings_is_not_cut_off() -> None:
    table, prompt = nn.Embedding(5, 3), nn.Parameter(torch.ones(3))
    table.weight.requires_grad_(False)
    table.register_forward_hook(lambda module, args, output: output.requires_grad_() * 2 + prompt)
    with marks_cut([table]):
        table(torch.tensor([1])).sum().backward()
    assert prompt.grad is not None


@pytest.mark.parametrize("family", ["bert", "gpt2-lm"])
def test_reentrant_checkpointing_warns_and_is_right(tmp_path: Path, warnings_of: Any, family: str) -> None:
    plain = trainer_for(tmp_path, CONFIG, family)
    plain.train()
    trainer = trainer_for(tmp_path, CONFIG, family, **REENTRANT)
    said = warnings_of(trainer)
    assert "use_reentrant=False" in said
    assert "at fast-only steps" in said
    assert_same(weights(trainer), weights(plain))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("missing", ["error", "warn"])
def test_reentrant_checkpointing_of_images_is_refused(tmp_path: Path, missing: str) -> None:
    # Nothing marks the patches, so that the live top block gets no gradient although the head does.
    config = MultirateConfig.two_rate("last:1", PERIOD, missing_gradients=missing)
    trainer = trainer_for(tmp_path, config, "vit", **REENTRANT)
    if missing == "error":
        with pytest.raises(RuntimeError, match=r"got no gradient at step 1.*use_reentrant=False"):
            trainer.train()
    else:
        trainer.train()  # What "warn" is for: the user has been told what it does.
