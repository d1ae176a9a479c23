"""The life of a trainer: made, evaluated, trained by a loop of its own, frozen and trained again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_module
from transformers import Trainer, TrainerCallback, set_seed

from hf_multirate import (
    AveragedCopiesTrainer,
    CopiesConfig,
    Multirate,
    MultirateConfig,
    MultirateMixin,
    MultirateTrainer,
    MultirateTrainingArguments,
)
from hf_multirate.averaged_copies.trainer import AveragedCopiesMixin
from tests.support.runs import (
    CONFIG,
    DEFAULTS,
    PERIOD,
    arguments,
    assert_same,
    example,
    history,
    phases,
    trainer_for,
    weights,
)


class Loop(Trainer):
    """A loop of its own in the place of the one inside of ``train``."""

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.create_optimizer()
        for batch in self.get_train_dataloader():
            self.compute_loss(self.model, batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.global_step += 1


class OwnOptimizer(Trainer):
    """Trains by an optimizer that nobody else knows."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        for batch in self.get_train_dataloader():
            self.compute_loss(self.model, batch).backward()
            optimizer.step()
            self.state.global_step += 1


class EarlyOptimizer(Trainer):
    """Makes the optimizer in the constructor, and a loop that asks for batches as Trainer does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.create_optimizer()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        model, optimizer = self.accelerator.prepare(self.model, self.optimizer)
        batches, _ = self.get_batch_samples(iter(self.get_train_dataloader()), 2, self.args.device)
        for batch in batches:
            self.accelerator.backward(self.compute_loss(model, batch))
            optimizer.step()
            self.state.global_step += 1


class ZerothOrder(Trainer):
    """Moves weights without gradients and without an optimizer."""

    logs = False

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        for _ in self.get_train_dataloader():
            for parameter in self.model.parameters():
                parameter.data = parameter.data + 1e-3
            self.state.global_step += 1
            if self.logs:
                self.log({"loss": 1.0})


class LoggingZerothOrder(ZerothOrder):
    logs = True


LOOPS = [Loop, OwnOptimizer, EarlyOptimizer, ZerothOrder, LoggingZerothOrder]


@pytest.mark.parametrize("theirs", LOOPS)
@pytest.mark.parametrize("ours", [MultirateMixin, AveragedCopiesMixin])
def test_a_loop_of_its_own_is_an_error(tmp_path: Path, theirs: type[Trainer], ours: type) -> None:
    kind = type("Both", (ours, theirs), {})
    given = {"multirate": CONFIG} if ours is MultirateMixin else {"copies": CopiesConfig((1, 3))}
    model, rows = example("bert")
    trainer = kind(model=model, args=arguments(tmp_path), train_dataset=rows, **given)
    before = weights(trainer)
    owner = "ZerothOrder" if issubclass(theirs, ZerothOrder) else theirs.__name__
    with pytest.raises(RuntimeError, match=rf"{owner}\.\w+ is a custom training loop"):
        trainer.train()
    if not issubclass(theirs, ZerothOrder):
        assert_same(weights(trainer), before)  # before the first step
    assert trainer.state.global_step == {ZerothOrder: 6, LoggingZerothOrder: 1}.get(theirs, 0)  # type: ignore[call-overload]
    assert not optimizer_module._global_optimizer_pre_hooks
    if ours is MultirateMixin:  # with period 1 there is nothing to miss
        kind(model=model, args=arguments(tmp_path), train_dataset=rows, multirate=MultirateConfig.off()).train()


class Calls(Trainer):
    """A loop of its own that calls the training step."""

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.create_optimizer()
        for batch in self.get_train_dataloader():
            self.training_step(self.model, batch)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.global_step += 1

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        loss = self.compute_loss(model, inputs)
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_loop_of_its_own_that_calls_the_training_step_has_rate_groups(tmp_path: Path) -> None:
    class Both(MultirateMixin, Calls):
        """As users write it."""

    trainer = trainer_for(tmp_path, CONFIG, kind=Both)
    trainer.train()
    assert trainer.multirate.timing.summary()["fast_steps"] == 4


@pytest.mark.parametrize("wraps", [False, True])
def test_training_step_of_an_instance(tmp_path: Path, wraps: bool) -> None:
    trainer = trainer_for(tmp_path, CONFIG)

    def step(model: nn.Module, inputs: Any, items: Any = None) -> Tensor:
        if wraps:
            return type(trainer).training_step(trainer, model, inputs, items)
        loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
        trainer.accelerator.backward(loss)
        return loss.detach()

    trainer.training_step = step
    if wraps:
        trainer.train()
        assert phases(trainer) == [0, 1, 2, 3, 0, 1]
        return
    with pytest.raises(RuntimeError, match="training_step that was assigned to this MultirateTrainer takes the place"):
        trainer.train()


def test_a_training_step_that_leaves_ours_out_later_is_blamed(tmp_path: Path) -> None:
    class Sometimes(MultirateTrainer):
        def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            if self.state.global_step < 2:
                return super().training_step(model, inputs, *args, **kwargs)
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    trainer = trainer_for(tmp_path, CONFIG, kind=Sometimes)
    with pytest.raises(RuntimeError, match=r"Sometimes\.training_step takes the place"):
        trainer.train()
    assert trainer.state.global_step == 2


class Eager(Trainer):
    """Does much in its constructor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rows = self.train_dataset
        self.create_optimizer()
        self.floating_point_ops({"input_ids": torch.ones(1, 4)})
        self.log({"loss": 1.0})
        self.evaluate(rows)
        self.predict(rows)
        self.save_model()
        self.create_model_card()
        self.get_batch_samples(iter([{"labels": torch.ones(1)}]), 1, self.args.device)
        self.current_gradient_accumulation_steps = 1
        self.training_step(self.model, next(iter(self.get_train_dataloader())))
        self.model.zero_grad()
        self.state.log_history.clear()


@pytest.mark.parametrize("given", ["config", "arguments", "copies"])
def test_a_constructor_that_uses_the_trainer(tmp_path: Path, given: str) -> None:
    ours, plain = (
        (AveragedCopiesMixin, AveragedCopiesTrainer) if given == "copies" else (MultirateMixin, MultirateTrainer)
    )
    ends = []
    for kind in (type("Both", (ours, Eager), {}), plain):
        model, rows = example("bert")
        args: Any = arguments(tmp_path)
        settings: dict[str, Any] = {"copies": CopiesConfig((1, 3))} if given == "copies" else {}
        if given == "config":
            settings["multirate"] = CONFIG
        if given == "arguments":
            args = MultirateTrainingArguments(str(tmp_path), multirate_period=3, **DEFAULTS)
        trainer = kind(model=model, args=args, train_dataset=rows, **settings)
        trainer.lr_scheduler = trainer.optimizer = None
        set_seed(1)  # what the constructor did has used random numbers
        trainer.train()
        ends.append(weights(trainer))
        if given != "copies":
            assert trainer.multirate.cycle == (3 if given == "arguments" else PERIOD)
    assert_same(*ends)


class SetsOptimizer(Trainer):
    """Sets the attribute and returns nothing, which is all that Trainer asks for."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)


def test_create_optimizer_that_returns_nothing(tmp_path: Path) -> None:
    class Behind(MultirateMixin, SetsOptimizer):
        """In a base class."""

    class Before(MultirateTrainer):
        create_optimizer = SetsOptimizer.create_optimizer

    class Copies(AveragedCopiesMixin, SetsOptimizer):
        """With copies."""

    expected = trainer_for(
        tmp_path, CONFIG, optimizers=lambda model: (torch.optim.AdamW(model.parameters(), lr=1e-2), None)
    )
    expected.train()
    for kind in (Behind, Before):
        trainer = trainer_for(tmp_path, CONFIG, kind=kind)
        trainer.train()
        assert_same(weights(trainer), weights(expected))
    model, rows = example("bert")
    Copies(model=model, args=arguments(tmp_path), train_dataset=rows, copies=CopiesConfig((1, 3))).train()


@pytest.mark.parametrize("config", [CONFIG, MultirateConfig.ladder([1, 2], idle="drift"), MultirateConfig.auto(1.5)])
def test_a_frozen_model_is_evaluated_and_not_trained(tmp_path: Path, config: MultirateConfig) -> None:
    model, rows = example("bert")
    model.requires_grad_(False)
    trainer = MultirateTrainer(model=model, args=arguments(tmp_path), train_dataset=rows, multirate=config)
    plain = Trainer(model=model, args=arguments(tmp_path))
    assert trainer.evaluate(rows)["eval_loss"] == plain.evaluate(rows)["eval_loss"]
    assert (trainer.predict(rows).predictions == plain.predict(rows).predictions).all()
    with pytest.raises(ValueError, match=r"no trainable parameter: all \d+ have requires_grad=False"):
        trainer.train()
    model.requires_grad_(True)
    trainer.optimizer = None
    trainer.train()
    assert trainer.multirate.timing.summary()["fast_steps"] > 0


def test_a_frozen_model_without_a_stack_is_evaluated(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Embedding(64, 3)

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.only(input_ids).mean(1)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = example("bert")[1]
    assert (
        MultirateTrainer(model=Small().requires_grad_(False), args=arguments(tmp_path)).evaluate(rows)["eval_loss"] > 0
    )
    with pytest.raises(ValueError, match="stack"):
        MultirateTrainer(model=Small(), args=arguments(tmp_path))


# peft still asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_that_was_loaded_for_inference_is_evaluated(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(example("bert")[0], config).save_pretrained(tmp_path / "adapter")
    model, rows = example("bert")
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    loaded.base_model.model.bert.pooler.requires_grad_(True)
    trainer = MultirateTrainer(model=loaded, args=arguments(tmp_path, label_names=["labels"]))
    assert trainer.evaluate(rows)["eval_loss"] > 0


def frozen_base(model: Any) -> None:
    model.bert.requires_grad_(False)


def frozen_below(model: Any) -> None:
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[:3].requires_grad_(False)


PROBES = {
    "two rates": MultirateConfig.two_rate(idle="drift"),
    "head": MultirateConfig.two_rate("head", 4, "long_step"),
    "ladder": MultirateConfig.ladder([1, 2, 4], idle="drift"),
    "auto": MultirateConfig.auto(1.5),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", PROBES)
def test_linear_probing_trains_as_trainer_does(tmp_path: Path, name: str, late: bool, warnings_of: Any) -> None:
    trainers: list[Any] = []
    for config in (PROBES[name], None):
        made: list[Any] = []

        def prepared(model: Any, made: list[Any] = made) -> tuple[None, None]:
            made.append(model)
            if not late:
                frozen_base(model)
            return None, None

        def make_and_train(config: Any = config, made: list[Any] = made, prepared: Any = prepared) -> None:
            trainers.append(trainer_for(tmp_path, config, optimizers=prepared))
            frozen_base(made[0])
            trainers[-1].train()

        said = warnings_of(SimpleNamespace(train=make_and_train))
        assert "\n" not in said
        if config is not None:
            assert "nothing to save" in said or "every step is a full step" in said
            assert trainers[-1].multirate.describe()
    assert_same(*(weights(trainer) for trainer in trainers))
    figures = [
        [{key: value for key, value in entry.items() if "multirate" not in key} for entry in history(trainer)]
        for trainer in trainers
    ]
    assert figures[0] == figures[1]


def test_groups_that_are_frozen_as_a_whole_are_left_out(tmp_path: Path, warnings_of: Any) -> None:
    def prepared(model: Any) -> tuple[None, None]:
        frozen_below(model)
        return None, None

    config = MultirateConfig.ladder([1, 2, 4, 8], idle="drift")
    trainer = trainer_for(tmp_path, config, optimizers=prepared, max_steps=8)
    assert list(trainer.multirate.partition) == ["part 1"]
    said = warnings_of(trainer)
    assert said.count("so these groups are left out") == 1
    assert trainer.multirate.config is config


def test_what_cannot_fit_is_an_error_at_once_and_what_is_frozen_when_training_begins(tmp_path: Path) -> None:
    def prepared(model: Any) -> tuple[None, None]:
        model.classifier.requires_grad_(False)
        return None, None

    with pytest.raises(ValueError, match="'fast' matches no trainable parameter"):
        trainer_for(tmp_path, MultirateConfig.two_rate("no_such_layer", idle="drift"), optimizers=prepared)
    trainer = trainer_for(tmp_path, MultirateConfig.two_rate("classifier", idle="drift"), optimizers=prepared)
    with pytest.raises(ValueError, match=r"parameters of rate groups \['fast'\] are frozen"):
        trainer.train()
    trainer.model.classifier.requires_grad_(True)
    trainer.optimizer = None
    trainer.train()
    assert len(history(trainer)) == 6


def test_train_again_with_parameters_frozen_and_thawed_in_between(tmp_path: Path) -> None:
    ends = []
    for config in (MultirateConfig.two_rate("head", 1, idle="drift"), None):
        trainer = trainer_for(tmp_path, config)
        trainer.train()
        frozen_base(trainer.model)
        trainer.train()
        ends.append(weights(trainer))
    assert_same(*ends)

    trainer = trainer_for(tmp_path, CONFIG, optimizers=lambda model: (frozen_base(model), None))
    trainer.train()
    assert not trainer.multirate.changes_training
    trainer.model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"not in the optimizer.*trainer\.optimizer = None"):
        trainer.train()
    trainer.optimizer = None
    trainer.train()
    assert trainer.multirate.changes_training
    assert phases(trainer)[-6:] == [0, 1, 2, 3, 0, 1]


def test_parameters_frozen_in_a_search(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen: list[bool] = []

    def init(trial: Any = None) -> nn.Module:
        model = example("bert")[0]
        if trial is not None and trial.number == 0:
            frozen_base(model)
        return model

    class Searched(MultirateTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.multirate.changes_training)
            return super().evaluate(*args, **kwargs)

    rows = example("bert")[1]
    trainer = Searched(
        model_init=init, args=arguments(tmp_path), train_dataset=rows, eval_dataset=rows, multirate=CONFIG
    )
    trainer.hyperparameter_search(
        lambda trial: {"seed": trial.suggest_int("seed", 1, 3)}, n_trials=2, backend="optuna"
    )
    assert seen == [False, True]


class Ends(TrainerCallback):
    """Interrupts, stops or fails at the beginning of step 3."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        self.act = act

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.act(control)


class Interrupt(BaseException):
    """As KeyboardInterrupt, which would end pytest if it came through."""


def interrupts(control: Any) -> None:
    raise Interrupt


def fails(control: Any) -> None:
    raise ZeroDivisionError


def stops(control: Any) -> None:
    control.should_training_stop = True


@pytest.mark.parametrize(("act", "error"), [(interrupts, Interrupt), (fails, ZeroDivisionError), (stops, None)])
def test_training_that_ends_early_leaves_nothing_behind(
    tmp_path: Path, act: Callable[[Any], None], error: type[BaseException] | None
) -> None:
    ends = Ends(act)
    trainer = trainer_for(tmp_path, CONFIG, callbacks=[ends])
    if error is None:
        trainer.train()
    else:
        with pytest.raises(error):
            trainer.train()
    assert not trainer.multirate.attached
    assert not optimizer_module._global_optimizer_pre_hooks
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    trainer.remove_callback(ends)
    trainer.train()
    assert trainer.multirate.applied_steps == 6


@pytest.mark.parametrize("settings", [{"max_steps": -1, "num_train_epochs": 0}])
def test_no_steps_at_all(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = trainer_for(tmp_path, CONFIG, **settings)
    before = weights(trainer)
    trainer.train()
    assert_same(weights(trainer), before)


def test_resume_behind_the_last_step(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG, save_strategy="steps", save_steps=6)
    trainer.train()
    again = trainer_for(tmp_path, CONFIG)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_same(weights(again), weights(trainer))


def test_an_optimizer_of_other_parameters_may_step_whenever_it_likes(tmp_path: Path) -> None:
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)

    class Centers(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            other(torch.ones(2)).sum().backward()
            optimizer.step()

    trainer = trainer_for(tmp_path, CONFIG, callbacks=[Centers()])
    trainer.train()
    assert trainer.multirate.applied_steps == 6


class InFront(MultirateTrainer):
    """A ``train`` in front of ours, with a loop of its own."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        return Loop._inner_training_loop(self)


class Foreign:
    """The same in a class that knows nothing of trainers."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        return Loop._inner_training_loop(self)  # type: ignore[arg-type]


class ForeignInFront(Foreign, MultirateTrainer):
    """As users mix classes."""


@pytest.mark.parametrize("kind", [InFront, ForeignInFront])
def test_a_train_in_front_with_a_loop_of_its_own_is_an_error(tmp_path: Path, kind: type[MultirateTrainer]) -> None:
    trainer = trainer_for(tmp_path, CONFIG, kind=kind)
    before = weights(trainer)
    with pytest.raises(RuntimeError, match=r"\.train takes a step without super\(\)\.train\(\)"):
        trainer.train()
    assert_same(weights(trainer), before)
    assert not optimizer_module._global_optimizer_pre_hooks
    trainer_for(tmp_path, MultirateConfig.off(), kind=kind).train()


def test_a_train_in_front_that_calls_ours(tmp_path: Path) -> None:
    class Twice(MultirateTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            super().train()
            self.evaluate(self.train_dataset)
            return super().train()

    trainer = trainer_for(tmp_path, CONFIG, kind=Twice)
    trainer.train()
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]  # of the second run
    assert trainer.multirate.applied_steps == 6


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_loop_of_its_own_with_a_controller(tmp_path: Path, front: bool, own: bool) -> None:
    class Steps(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            optimizer = self.create_optimizer()
            controller = self.multirate if own else Multirate(CONFIG)
            with controller.attach(self.model, optimizer) as multirate:
                for step, batch in enumerate(self.get_train_dataloader()):
                    multirate.begin_step(step)
                    self.compute_loss(self.model, batch).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    self.state.global_step += 1
            self.fast_steps = multirate.timing.summary()["fast_steps"]

    bases = {"train": Steps.train} if front else {}
    kind = type("Both", (MultirateMixin, Trainer if front else Steps), bases)
    trainer = trainer_for(tmp_path, CONFIG, kind=kind)
    trainer.train()
    assert trainer.fast_steps == 4


@pytest.mark.parametrize("given", [False, True])
def test_a_loop_of_its_own_steps_the_optimizer_of_the_trainer(tmp_path: Path, given: bool) -> None:
    class Steps(Trainer):
        current_gradient_accumulation_steps = 1

        def train(self, *args: Any, **kwargs: Any) -> Any:
            if given:
                self.create_optimizer()
            optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            for batch in self.get_train_dataloader():
                self.training_step(self.model, batch)
                optimizer.step()
                self.state.global_step += 1

    for ours, settings in (
        (MultirateMixin, {"multirate": CONFIG}),
        (AveragedCopiesMixin, {"copies": CopiesConfig((1, 3))}),
    ):
        model, rows = example("bert")
        kind = type("Both", (ours, Steps), {})
        trainer = kind(model=model, args=arguments(tmp_path), train_dataset=rows, **settings)
        before = weights(trainer)
        with pytest.raises(RuntimeError, match=r"Assign the optimizer of the loop to trainer\.optimizer"):
            trainer.train()
        assert_same(weights(trainer), before)


def test_a_loop_that_was_assigned_to_an_instance_is_named(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG)
    trainer._inner_training_loop = lambda *args, **kwargs: Loop._inner_training_loop(trainer)
    with pytest.raises(RuntimeError, match="_inner_training_loop that was assigned to this MultirateTrainer"):
        trainer.train()


class StepsItself(Trainer):
    """Takes the step of the optimizer in the training step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def test_a_training_step_that_takes_the_step_of_the_optimizer(tmp_path: Path, warnings_of: Any) -> None:
    ends = []
    for theirs in (Trainer, StepsItself):
        kind = type("Both", (MultirateMixin, theirs), {})
        trainer = trainer_for(tmp_path, CONFIG, kind=kind, max_grad_norm=0.0)
        assert not warnings_of(trainer)
        assert trainer.multirate.applied_steps == 6
        ends.append(weights(trainer))
    assert_same(*ends)  # idle parameters drift alike
