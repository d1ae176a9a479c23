"""Models, optimizers and trainers are copied and pickled in training as in standard training: a copy is free of us."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

from hf_multirate import AveragedCopies, CopiesConfig, Multirate, MultirateConfig, MultirateTrainer
from hf_multirate.backward.gradient_checkpointing import reentrant_modules
from tests.support.runs import CONFIG, PERIOD, assert_same, example, trainer_for, weights, without_dropout
from tests.support.small import batch, network


# The argument has a new name in transformers 5 and its old one works on both lines.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "torch.save": saved,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "average": lambda model: AveragedModel(model).module,
}
CONFIGS = {
    "drift": CONFIG,
    "zero": MultirateConfig.random_subsets(PERIOD),
    "auto": MultirateConfig.auto(1.5),
    "dtype": MultirateConfig.two_rate("last:1", PERIOD, inactive_dtype="bfloat16", idle="drift"),
}


def hooks(model: nn.Module) -> list[Any]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_pre_hooks")
    return [hook for part in model.modules() for name in names for hook in vars(part)[name].values()]


class Copies(TrainerCallback):
    """Copies the model before and behind each step."""

    def __init__(self, way: str) -> None:
        self.way, self.copies = WAYS[way], []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.copies.append(self.way(model))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.copies.append(self.way(model))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["drift", "zero", "dtype"])
def test_between_steps_a_copy_is_the_model_without_a_hook(tmp_path: Path, kind: str, way: str) -> None:
    callback = Copies(way)
    trainer = trainer_for(tmp_path, CONFIGS[kind], callbacks=[callback])
    trainer.train()
    assert len(callback.copies) == 12
    for model in callback.copies:
        assert not hooks(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert_same(callback.copies[-1].state_dict(), weights(trainer))


class Within(MultirateTrainer):
    """Copies the model within each step, and works with the copy."""

    way: Callable[[Any], Any]

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.way(model)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.made = [before, self.way(model)]
        flags = [parameter.requires_grad for parameter in model.parameters()]
        for made in self.made:
            made.train()
            made(**inputs).loss.backward()
            made.state_dict()
            assert all(p.requires_grad for p in made.parameters())
            assert all(p.grad is not None for n, p in made.named_parameters() if "pooler" not in n)
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        return loss


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_within_a_step_a_copy_is_whole_and_free(tmp_path: Path, kind: str, way: str) -> None:
    ends = []
    for trainer_kind in (MultirateTrainer, Within):
        trainer = trainer_for(tmp_path, CONFIGS[kind], kind=trainer_kind)
        without_dropout(trainer.model)  # a copy would draw some of its own
        Within.way = staticmethod(WAYS[way])
        trainer.train()
        ends.append(weights(trainer))
    assert_same(*ends)


@pytest.mark.parametrize("way", ["deepcopy"])
def test_a_copy_keeps_its_activation_checkpointing(tmp_path: Path, way: str) -> None:
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = trainer_for(tmp_path, CONFIG, kind=Within, **settings)
    Within.way = staticmethod(WAYS[way])
    trainer.train()
    for made in trainer.made:
        assert len(reentrant_modules(made.modules())) == len(reentrant_modules(trainer.model.modules())) > 0


def test_a_copy_is_read_without_this_package(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig.two_rate("5", 2, inactive_forward="eval", idle="drift")).attach(
        model, optimizer
    ) as multirate:
        multirate.set_step(1)
        with multirate.micro_batch():
            torch.save(model, tmp_path / "model.pt")
    script = (
        "import sys, torch; sys.modules['hf_multirate'] = None; "
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
        "model(torch.zeros(2, 6)).sum().backward(); print(model[0].weight.grad.shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "torch.Size([10, 6])" in done.stdout, done.stderr


def controller(kind: str) -> Any:
    if kind == "copies":
        return AveragedCopies(CopiesConfig((1, 2)))
    return Multirate(
        MultirateConfig.random_subsets(3) if kind == "zero" else MultirateConfig.two_rate("5", 3, idle="drift")
    )


@pytest.mark.parametrize("way", ["torch.save", "deepcopy"])
@pytest.mark.parametrize("kind", ["drift", "zero", "copies"])
def test_in_a_loop_of_ones_own(kind: str, way: str) -> None:
    """Between backward and the step, where parameters are idle, at zero, or those of another copy."""
    ends: list[dict[str, Tensor]] = []
    for copies in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with controller(kind).attach(model, optimizer) as control:
            for step in range(7):
                before = {name: value.clone() for name, value in model.named_parameters()}
                control.begin_step(step)
                inputs, labels = batch(step)
                nn.functional.cross_entropy(model(inputs), labels).backward()
                if copies:
                    made = WAYS[way](model)
                    assert_same(dict(made.named_parameters()), before)
                    assert all(parameter.requires_grad for parameter in made.parameters())
                    optimizer_made, control_made = WAYS["deepcopy"]((optimizer, control))
                    assert not optimizer_made._optimizer_step_pre_hooks
                    assert not control_made.attached
                optimizer.step()
                optimizer.zero_grad()
                assert not hooks(model)
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    assert_same(*ends)


def test_a_copy_keeps_nothing_alive() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig.two_rate("5", 2, inactive_forward="eval", idle="drift")).attach(
        model, optimizer
    ) as multirate:
        multirate.set_step(1)
        with multirate.micro_batch():
            made, shallow = copy.deepcopy(model), copy.copy(model)
            assert shallow(batch(0)[0]).requires_grad
    seen = weakref.ref(model)
    del model, optimizer, multirate, shallow
    gc.collect()
    assert seen() is None
    made(batch(0)[0]).sum().backward()


def test_a_copy_of_a_trainer_has_let_go(tmp_path: Path) -> None:
    made = []

    class Copied(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            made.append(copy.deepcopy(trainer))

    trainer = trainer_for(tmp_path, CONFIG, max_steps=3, callbacks=[Copied()])
    trainer.train()
    for other in made:
        assert not other.multirate.attached
        assert other.model is not trainer.model
        assert not hooks(other.model)
    made[1].train()
    assert made[1].state.global_step == 3


class Holds:
    """A collator that holds the model, and goes to a worker with it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def test_what_a_spawned_worker_gets_in_the_second_epoch(tmp_path: Path) -> None:
    """It is pickled when an epoch begins, between two steps."""
    model, rows = example("bert")
    sent = []

    class Sends(MultirateTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            sent.append(pickle.loads(pickle.dumps(self.data_collator)).model)
            return super().get_batch_samples(*args, **kwargs)

    settings = trainer_for(tmp_path, CONFIG, max_steps=8).args
    trainer = Sends(model=model, args=settings, train_dataset=rows[:6], multirate=CONFIG, data_collator=Holds(model))
    trainer.train()
    assert len(sent) >= 8
    assert not any(hooks(made) for made in sent)
