"""What a user's script does to the model while it trains, or right after: freezes, unfreezes, merges, prunes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import SGD
from torch.utils.data import ChainDataset, IterableDataset
from transformers import Adafactor, TrainerCallback

from hf_multirate import Multirate, MultirateConfig, RandomSubset
from hf_multirate.reporting.run_record import FILE
from tests.support.runs import CONFIG, PERIOD, Watched, assert_same, example, trainer_for, weights
from tests.support.small import batch, network


STEPS = 3 * PERIOD


class At(TrainerCallback):
    """Does something to the model behind one step."""

    def __init__(self, step: int, act: Callable[[nn.Module], Any]) -> None:
        self.step, self.act = step, act
        self.seen: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        del args, control, kwargs
        if state.global_step == self.step:
            self.act(model)
            self.seen = {name: value.detach().clone() for name, value in model.named_parameters()}


def embeddings_frozen(model: Any) -> None:
    model.bert.embeddings.requires_grad_(False)


def base_frozen(model: Any) -> None:
    model.bert.requires_grad_(False)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "rmsprop"])
@pytest.mark.parametrize("act", [embeddings_frozen, base_frozen])
@pytest.mark.parametrize("step", [PERIOD + 1, PERIOD + 2, 2 * PERIOD])
def test_what_is_frozen_in_training_stays_where_it_is(
    tmp_path: Path, optim: str, act: Callable[[nn.Module], Any], step: int, warnings_of: Any
) -> None:
    callback = At(step, act)
    config = MultirateConfig.two_rate("head", PERIOD, drift_factor=1.0, turns="fixed", idle="drift")
    trainer = trainer_for(tmp_path, config, max_steps=STEPS, optim=optim, callbacks=[callback])
    said = warnings_of(trainer)
    still = {name for name, value in trainer.model.named_parameters() if torch.equal(value, callback.seen[name])}
    frozen = {name for name, value in trainer.model.named_parameters() if not value.requires_grad}
    below = "bert.embeddings." if act is embeddings_frozen else "bert."
    assert frozen == {name for name in callback.seen if name.startswith(below)}  # nobody gave a flag back
    assert still == frozen
    assert said.count("were frozen during training") == 1


def test_unfrozen_parameters_are_named_once(tmp_path: Path, warnings_of: Any) -> None:
    callback = At(PERIOD + 1, lambda model: model.bert.embeddings.requires_grad_(True))

    def with_all(model: Any) -> Any:
        model.bert.embeddings.requires_grad_(False)
        return SGD(model.parameters(), lr=0.1), None

    trainer = trainer_for(tmp_path, CONFIG, max_steps=STEPS, callbacks=[callback], optimizers=with_all)
    said = warnings_of(trainer)
    assert said.count("5 parameters were unfrozen during training") == 1
    assert "in no rate group" in said


def test_a_subset_leaves_alone_what_is_frozen_in_training(tmp_path: Path) -> None:
    callback = At(1, embeddings_frozen)
    trainer = trainer_for(
        tmp_path, MultirateConfig.random_subsets(PERIOD, turns="fixed"), max_steps=STEPS, callbacks=[callback]
    )
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, callback.seen[name]) is not value.requires_grad, name


def test_an_error_while_a_subset_is_set_to_zero_gives_all_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    register = Tensor.register_hook
    calls = []

    def failing(tensor: Tensor, hook: Any) -> Any:
        calls.append(tensor)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory for this hook")
        return register(tensor, hook)

    monkeypatch.setattr(Tensor, "register_hook", failing)
    config = MultirateConfig.random_subsets(PERIOD, RandomSubset(), turns="fixed")
    with Multirate(config).attach(model, SGD(model.parameters(), lr=0.1)) as multirate:
        for step in range(PERIOD):
            multirate.set_step(step)
            try:
                with multirate.micro_batch():
                    pass
            except torch.OutOfMemoryError:
                break
        assert len(calls) == 3
        assert_same(dict(model.state_dict()), before)


def merged(trainer: Any) -> None:
    trainer.model = trainer.model.merge_and_unload()


def pruned(trainer: Any) -> None:
    prune.l1_unstructured(trainer.model.base_model.model.bert.pooler.dense, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("act", [merged, pruned])
def test_a_model_with_other_parameters_than_it_was_trained_with(tmp_path: Path, act: Callable[[Any], None]) -> None:
    adapter = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])

    def wrapped() -> nn.Module:
        return peft.get_peft_model(example("bert")[0], adapter)

    _, rows = example("bert")
    trainer = trainer_for(tmp_path, CONFIG, model_init=wrapped, max_steps=STEPS, eval_dataset=rows)
    trainer.train()
    before = json.loads((tmp_path / FILE).read_text())
    act(trainer)
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.create_model_card()
    after = json.loads((tmp_path / FILE).read_text())
    assert [after[key] for key in ("blocks", "model")] == [before[key] for key in ("blocks", "model")]


class Unsized(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        _, rows = example("bert")
        yield from rows


@pytest.mark.parametrize("config", [CONFIG, MultirateConfig.off()])
def test_a_record_of_unusual_data_and_arguments(tmp_path: Path, config: MultirateConfig) -> None:
    trainer = trainer_for(tmp_path, config, weight_decay=np.float32(0.5), multirate_record=True)
    trainer.train_dataset = ChainDataset([Unsized(), Unsized()])
    trainer.train()
    record = json.loads((tmp_path / FILE).read_text())
    assert record["arguments"]["weight_decay"] == 0.5
    assert record["data"]["rows"] is None


def test_a_copy_of_the_model_does_not_end_a_step_of_the_original() -> None:
    ends = []
    for copies in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        with Multirate(MultirateConfig.two_rate("5", PERIOD, turns="fixed", idle="drift")).attach(
            model, optimizer
        ) as multirate:
            teacher = copy.deepcopy(model)
            for step in range(PERIOD):
                multirate.begin_step(step)
                inputs, labels = batch(step)
                if copies:
                    with torch.no_grad():
                        teacher(inputs)
                    teacher.state_dict()
                assert model[0].weight.requires_grad is (step == 0)
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
        ends.append(dict(model.state_dict()))
    assert_same(*ends)


def test_an_optimizer_that_finds_its_own_step_sizes_is_refused(tmp_path: Path) -> None:
    model, rows = example("bert")
    optimizer = Adafactor(model.parameters(), lr=None, relative_step=True, scale_parameter=True)
    with pytest.raises(ValueError, match=r"finds its own step sizes \(relative_step\), so how far idle groups drift"):
        Multirate(CONFIG).attach(model, optimizer)
    with Multirate(MultirateConfig.two_rate("head", 1, turns="fixed", idle="drift")).attach(
        model, optimizer
    ) as multirate:
        for step in range(2):
            multirate.begin_step(step)
            model(**{key: value[None] for key, value in rows[0].items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert multirate.applied_steps == 2


def test_flags_come_back_when_a_parameter_is_frozen_for_a_while(tmp_path: Path) -> None:
    """Frozen in one cycle, trained in the next: what drifts and what is live follows."""

    def turn(flag: bool) -> Callable[[Any], None]:
        return lambda model: model.bert.embeddings.requires_grad_(flag)

    callbacks = [At(PERIOD + 1, turn(False)), At(2 * PERIOD, turn(True))]
    trainer = trainer_for(tmp_path, CONFIG, kind=Watched, max_steps=STEPS, callbacks=callbacks)
    trainer.train()
    name = "bert.embeddings.word_embeddings.weight"
    assert_same(callbacks[0].seen[name], callbacks[1].seen[name])
    assert not torch.equal(weights(trainer)[name], callbacks[1].seen[name])
    live = [step for step, names in trainer.seen if name in names]
    assert live == [0, PERIOD, 2 * PERIOD]


def test_to_freeze_all_that_is_live_is_an_error(tmp_path: Path) -> None:
    callback = At(PERIOD + 1, lambda model: model.classifier.requires_grad_(False))
    config = MultirateConfig.two_rate("head", PERIOD, turns="fixed", idle="drift")
    trainer = trainer_for(tmp_path, config, max_steps=STEPS, callbacks=[callback])
    with pytest.raises(RuntimeError, match=r"no parameter of the live rate groups \['fast'\] requires a gradient"):
        trainer.train()


class Freezes(TrainerCallback):
    """Freezes the embeddings from a step on, also in a run that is resumed behind it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        del args, control, kwargs
        if state.global_step >= PERIOD + 1:
            embeddings_frozen(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.on_step_begin(args, state, control, model)


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop"])
def test_a_run_with_frozen_parameters_resumes(tmp_path: Path, optim: str) -> None:
    ends = []
    for resumed in (False, True):
        settings = {"max_steps": STEPS, "optim": optim, "save_strategy": "steps", "save_steps": PERIOD + 2}
        trainer = trainer_for(tmp_path, CONFIG, callbacks=[Freezes()], **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{PERIOD + 2}") if resumed else None)
        ends.append(weights(trainer))
    assert_same(*ends)
