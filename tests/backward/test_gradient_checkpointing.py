"""Multirate training with activation checkpointing: the saving is kept, and it is never silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer, RateGroup
from hf_multirate.backward.gradient_checkpointing import detach_marked_input, marked_inputs_detached, reentrant_modules
from hf_multirate.model.hooks import last_hooks
from tests.support.counted import Counted, saving
from tests.support.runs import CONFIG, PERIOD, assert_same, example, history, trainer_for, weights


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
    assert bool(reentrant_modules(trainer.model.modules())) is (settings is REENTRANT)  # as it was found


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
        assert reentrant_modules(trainer.model.modules())
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
    groups = (RateGroup("fast", "block|top", 1), RateGroup("slow", "below", 2, idle="drift"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig(groups, turns="fixed")).attach(model, optimizer) as multirate:
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
    with last_hooks(table, [(table, detach_marked_input)]):
        table(torch.tensor([1])).sum().backward()
    assert prompt.grad is not None


class Perturbation:
    """A tensor of the user that requires a gradient, and the forward hooks that bring it in."""

    def __init__(self) -> None:
        self.leaf: torch.Tensor | None = None

    def added(self, module: nn.Module, args: Any, output: Any) -> Any:
        """As latent adversarial training does."""
        self.leaf = torch.zeros(1, 1, 16, requires_grad=True) if self.leaf is None else self.leaf
        return (output[0] + self.leaf, *output[1:]) if isinstance(output, tuple) else output + self.leaf

    def instead(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        """As attacks on the embeddings of a batch do."""
        self.leaf = output.detach().requires_grad_()
        return self.leaf

    def marked(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        """As saliency maps do."""
        self.leaf = output
        output.requires_grad_()
        output.retain_grad()


PLACES = {
    "tokens": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "embeddings": "bert.embeddings",
    "block": "bert.encoder.layer.1",
    "tokens of GPT-2": "transformer.wte",
    "patches": "vit.embeddings.patch_embeddings",
}


@pytest.mark.parametrize("settings", [{}, CHECKPOINTING, REENTRANT], ids=["", "checkpointing", "reentrant"])
@pytest.mark.parametrize(
    ("place", "how"),
    [*((place, "added") for place in PLACES), ("tokens", "instead"), ("tokens", "marked"), ("patches", "instead")],
)
def test_a_tensor_of_the_user_has_its_gradient_at_every_step(
    tmp_path: Path, place: str, how: str, settings: dict[str, Any]
) -> None:
    family = {"transformer": "gpt2-lm", "vit": "vit"}.get(PLACES[place].partition(".")[0], "bert")
    if family == "vit" and settings is REENTRANT:
        pytest.skip("in a reentrant checkpoint of images standard training too would lose gradients")
    tensor, seen = Perturbation(), []

    class Learns(MultirateTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            grad = tensor.leaf.grad
            seen.append(grad is not None and bool(grad.abs().sum() > 0))
            tensor.leaf.grad = None
            return loss

    noise = {"neftune_noise_alpha": 5.0} if family == "gpt2-lm" else {}
    config = MultirateConfig.two_rate("last:1", PERIOD, on_missing_gradient="warn", turns="fixed", idle="drift")
    trainer = trainer_for(tmp_path, config, family, kind=Learns, **noise, **settings)
    trainer.model.get_submodule(PLACES[place]).register_forward_hook(getattr(tensor, how))
    trainer.train()
    assert seen == [True] * 6


@pytest.mark.parametrize("settings", [{}, CHECKPOINTING], ids=["", "checkpointing"])
def test_inputs_of_the_user_have_their_gradient_at_every_step(tmp_path: Path, settings: dict[str, Any]) -> None:
    seen = []

    class Saliency(MultirateTrainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            pixels = inputs["pixel_values"].requires_grad_()
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            (gradient,) = torch.autograd.grad(loss, pixels, retain_graph=True)
            seen.append(bool(gradient.abs().sum() > 0))
            return loss

    trainer_for(tmp_path, CONFIG, "vit", kind=Saliency, **settings).train()
    assert seen == [True] * 6


def test_a_mark_of_a_script_with_the_name_of_the_usual_one_is_cut() -> None:
    def make_inputs_require_grad(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        output.requires_grad_(True)

    table = nn.Embedding(5, 3)
    table.weight.requires_grad_(False)
    table.register_forward_hook(make_inputs_require_grad)
    with marked_inputs_detached(table, [table]):
        assert not table(torch.tensor([1])).requires_grad
    assert table(torch.tensor([1])).requires_grad
    assert len(table._forward_hooks) == 1
