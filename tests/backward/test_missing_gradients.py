"""Parameters without a gradient: what Trainer skips is skipped, and what the saving itself loses is an error."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer, RateGroup
from hf_multirate.backward.missing_gradients import MissingGradientCheck
from hf_multirate.config.schedule import Step
from tests.support.runs import CONFIG, FIVE, PERIOD, assert_same, example, phases, trainer_for, weights
from tests.support.tiny import ENCODER, FAMILIES


STEPS = 3 * PERIOD


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


class GivesUp(MultirateTrainer):
    """Gives up some micro-batches, counted from 0, without a call of ours."""

    at: tuple[int, ...] = ()
    calls = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return torch.tensor(0.0) if self.calls - 1 in self.at else super().training_step(*args, **kwargs)


class Takes(tf.TrainerCallback):
    """Takes gradients away before a step of the optimizer, as a filter of those that are no number."""

    def __init__(self, steps: tuple[int, ...], part: str = "") -> None:
        self.steps, self.part = steps, part
        self.values: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            if state.global_step in self.steps and self.part in name:
                parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.values.append(tensors(model))


@pytest.mark.parametrize(
    ("at", "expected"),
    [((0,), [0, 0, 1, 2, 3, 0]), ((0, 1), [0, 0, 0, 1, 2, 3]), ((3,), [0, 1, 2, 2, 3, 0]), ((4,), [0, 1, 2, 3, 3, 0])],
)
def test_a_batch_that_is_given_up_is_no_turn(
    tmp_path: Path, at: tuple[int, ...], expected: list[int], warnings_of: Any
) -> None:
    values = Takes(())
    trainer = trainer_for(tmp_path, CONFIG, kind=GivesUp, callbacks=[values])
    trainer.at = at
    start = weights(trainer)
    assert f"{len(at)} steps updated no parameter" in warnings_of(trainer)
    assert phases(trainer) == expected
    assert trainer.multirate.applied_steps == 6 - len(at)
    moved = [start, *values.values]
    for step in at:
        assert_same(moved[step + 1], {name: moved[step][name] for name in moved[step + 1]})


@pytest.mark.parametrize("at", [(0,), (1,), (2,), (3, 5), (6, 7, 8)])
def test_micro_batches_that_are_given_up(tmp_path: Path, at: tuple[int, ...]) -> None:
    trainer = trainer_for(tmp_path, CONFIG, kind=GivesUp, gradient_accumulation_steps=3)
    trainer.at = at
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.multirate.applied_steps == 6 - (len(at) == 3)


@pytest.mark.parametrize("at", [1, 4])
def test_a_run_with_a_batch_given_up_resumes(tmp_path: Path, at: int) -> None:
    ends = []
    for resumed in (False, True):
        trainer = trainer_for(tmp_path, CONFIG, kind=GivesUp, max_steps=STEPS, save_strategy="steps", save_steps=6)
        trainer.at = () if resumed else (at,)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6") if resumed else None)
        ends.append(weights(trainer))
    assert_same(*ends)


@pytest.mark.parametrize("step", [0, 1, PERIOD])
def test_a_step_without_any_gradient_moves_nothing(tmp_path: Path, step: int, warnings_of: Any) -> None:
    callback = Takes((step,))
    trainer = trainer_for(tmp_path, CONFIG, max_steps=STEPS, callbacks=[callback])
    start = weights(trainer)
    assert f"no parameter has a gradient at step {step}" in warnings_of(trainer)
    values = [{name: start[name] for name in callback.values[0]}, *callback.values]
    assert_same(values[step + 1], values[step])
    assert trainer.state.global_step == STEPS
    # A full step is taken again: no group has lost its turn.
    full = step % PERIOD == 0
    assert trainer.multirate.applied_steps == STEPS - full


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "rmsprop"])
def test_a_parameter_that_lost_its_turn_stays_until_the_next(tmp_path: Path, optim: str, warnings_of: Any) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    callback = Takes((PERIOD,), name)
    config = MultirateConfig.two_rate("last:1", PERIOD, drift_factor=1.0, turns="fixed", idle="drift")
    trainer = trainer_for(tmp_path, config, max_steps=STEPS, callbacks=[callback], optim=optim)
    said = warnings_of(trainer)
    assert said.count("got no gradient") == 1
    assert name in said
    values = [value[name] for value in callback.values]
    moved = [not torch.equal(a, b) for a, b in pairwise(values)]
    still = set(range(PERIOD, 2 * PERIOD))
    assert moved == [step not in still for step in range(1, STEPS)]


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop"])
def test_a_run_in_which_a_parameter_lost_its_turn_resumes(tmp_path: Path, optim: str) -> None:
    ends = []
    for resumed in (False, True):
        callback = Takes((PERIOD,), "layer.0")
        settings = {"max_steps": STEPS, "optim": optim, "save_strategy": "steps", "save_steps": PERIOD + 2}
        trainer = trainer_for(tmp_path, CONFIG, callbacks=[callback], **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{PERIOD + 2}") if resumed else None)
        ends.append(weights(trainer))
    assert_same(*ends)


class Parts(nn.Module):
    """A stack and several heads in turn, or a tower below it that not every batch uses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0
        self.table = nn.Embedding(40, 8)
        self.vision = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(3))

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        call, self.calls = self.calls, self.calls + 1
        hidden = self.table(input_ids).mean(1)
        if self.kind != "text" or call % 3 == 1:
            hidden = hidden + self.vision(torch.ones(8))
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        hidden = hidden.detach() if self.kind == "detached" else hidden
        hidden = hidden + self.experts[call % 3 if self.kind == "experts" else 0](hidden)
        logits = self.heads[call % 3 if self.kind == "heads" else 0](hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("kind", ["heads", "text", "experts"])
@pytest.mark.parametrize(
    "config",
    [
        MultirateConfig.two_rate("heads", PERIOD, turns="fixed", idle="drift"),
        MultirateConfig.two_rate("heads|experts", PERIOD, "long_step", turns="fixed"),
        MultirateConfig.two_rate("vision", PERIOD, turns="fixed", idle="drift"),
        MultirateConfig.two_rate(r"heads\.2", 3, turns="fixed", idle="drift"),
        MultirateConfig.ladder([1, 2, 4], turns="fixed", idle="drift"),
        MultirateConfig.auto(1.5, turns="fixed"),
    ],
    ids=["heads", "long_step", "vision", "one head", "ladder", "auto"],
)
def test_parts_that_a_batch_does_not_use(tmp_path: Path, kind: str, config: MultirateConfig) -> None:
    torch.manual_seed(0)
    model = Parts(kind)
    start = tensors(model)
    trainer = trainer_for(tmp_path, config, model_init=lambda: model, max_steps=STEPS)
    if kind != "heads" and config == MultirateConfig.two_rate(r"heads\.2", 3, turns="fixed", idle="drift"):
        with pytest.raises(RuntimeError, match=r"the fast rate groups \['fast'\] never got a gradient"):
            trainer.train()
        return
    trainer.train()
    assert trainer.state.global_step == STEPS
    unused = {"heads": "experts.[12]", "text": "(experts|heads).[12]", "experts": "heads.[12]"}[kind]
    for name, value in model.named_parameters():
        if re.match(unused, name):
            assert torch.equal(value, start[name]), name
    assert not torch.equal(model.layers[0].weight, start["layers.0.weight"])


@pytest.mark.parametrize("family", ["wav2vec2", "bart"])
def test_layer_drop_is_named_and_trains(tmp_path: Path, family: str, warnings_of: Any) -> None:
    def dropping() -> Any:
        torch.manual_seed(0)
        built = FAMILIES[family]()[0].config
        rates = {"layerdrop": 0.9} if family == "wav2vec2" else {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9}
        built.update(rates)
        kind = tf.Wav2Vec2ForSequenceClassification if family == "wav2vec2" else tf.BartForConditionalGeneration
        return kind(built)

    torch.manual_seed(0)
    batch = FAMILIES[family]()[1]
    trainer = trainer_for(tmp_path, CONFIG, model_init=dropping, max_steps=STEPS)
    trainer.train_dataset = [{key: value[0] for key, value in batch.items()}] * 8
    said = warnings_of(trainer).splitlines()
    assert trainer.state.global_step == STEPS
    assert "layerdrop=0.9" in said[0]
    assert any("got no gradient" in line for line in said[1:])


def test_a_slow_part_that_never_has_a_gradient_ends_training(tmp_path: Path) -> None:
    config = MultirateConfig.two_rate("heads|experts", 2, turns="fixed", idle="drift")
    trainer = trainer_for(tmp_path, config, model_init=lambda: Parts("detached"), max_steps=STEPS)
    with pytest.raises(RuntimeError, match=r"the slow rate groups \['slow'\] never got a gradient in 3 full steps"):
        trainer.train()
    assert trainer.state.global_step == 4


class Recomputes(nn.Module):
    """A reentrant checkpoint of its own, around all but the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.block, self.top = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.reentrant = True

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.below(inputs)
        return self.top(checkpoint(self.block, hidden, use_reentrant=True) if self.reentrant else self.block(hidden))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("later", [False, True])
def test_what_a_checkpoint_loses_at_a_fast_step_is_an_error(later: bool) -> None:
    model = Recomputes()
    model.reentrant = not later
    groups = (RateGroup("fast", "block|top", 1), RateGroup("slow", "below", 3, idle="drift"))
    optimizer = SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig(groups, turns="fixed")).attach(model, optimizer) as multirate:
        for step in range(6):
            multirate.begin_step(step)
            model.reentrant = model.reentrant or step > 3
            model(torch.ones(1, 3)).sum().backward()
            if step == (5 if later else 1):
                with pytest.raises(RuntimeError, match=rf"at step {step}.*'block.weight'.*use_reentrant=False"):
                    optimizer.step()
                return
            optimizer.step()
            optimizer.zero_grad()


def test_nothing_stays_on_the_model_of_what_watches_it() -> None:
    model = Recomputes()
    model.reentrant = False
    optimizer = SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig.two_rate("top", 3, turns="fixed", idle="drift")).attach(
        model, optimizer
    ) as multirate:
        for step in range(3):
            multirate.begin_step(step)
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert not any(part._forward_pre_hooks for part in model.children())


class Pooled(nn.Module):
    """Sentences by their mean, so that nobody reads the pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tf.BertModel(tf.BertConfig(**ENCODER))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        means = self.bert(input_ids, attention_mask).last_hidden_state.mean(1)
        return {"loss": ((means @ means.T).flatten() - labels.sum()).pow(2).mean()}


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_automatic_periods_with_a_part_that_nothing_reads(tmp_path: Path, optim: str) -> None:
    ends, chosen, steps = [], [], 24
    for resumed in (False, True):
        settings = {
            "save_strategy": "steps",
            "save_steps": 2 * steps // 3,
            "learning_rate": 1e-4,
            "logging_steps": steps,
        }
        trainer = trainer_for(
            tmp_path,
            MultirateConfig.auto(1.5, turns="fixed"),
            model_init=Pooled,
            max_steps=steps,
            optim=optim,
            **settings,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{2 * steps // 3}") if resumed else None)
        ends.append(weights(trainer))
        periods = {group.name: group.period for group in trainer.multirate.groups}
        chosen.append(periods)
        assert periods["head+block_3"] == 1
        assert max(periods.values()) > 1
        assert trainer.multirate.timing.speedup_predicted >= 1.5
    assert chosen[0] == chosen[1]
    if FIVE:  # Trainer 4.57 itself resumes this run, with model_init, only to rounding
        assert_same(*ends)
    else:
        assert_same(*ends, exact=False)


def adalora() -> Any:
    config = peft.AdaLoraConfig(
        task_type="SEQ_CLS", target_modules=["query"], init_r=4, target_r=2, total_step=12, tinit=2, tfinal=2
    )
    return peft.get_peft_model(example("bert")[0], config)


class Allocates(tf.TrainerCallback):
    """As the documentation of PEFT has it."""

    calls = 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)
        self.calls += 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        MultirateConfig.auto(1.5, turns="fixed"),
        MultirateConfig.two_rate("lora_|classifier", 1, turns="fixed", idle="drift"),
    ],
)
def test_adalora_ranks_its_adapters_where_some_have_no_gradient(tmp_path: Path, config: MultirateConfig) -> None:
    callback = Allocates()
    trainer = trainer_for(
        tmp_path, config, model_init=adalora, callbacks=[callback], max_steps=STEPS, label_names=["labels"]
    )
    trainer.train()
    assert callback.calls == STEPS


class Adversarial(MultirateTrainer):
    """Perturbs the embeddings along their gradient and learns from that too, at full steps."""

    guarded = True
    attacks = 0

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.guarded and not self.multirate.is_full_step:
            return loss
        table = model.bert.embeddings.word_embeddings.weight
        before = table.detach().clone()
        with torch.no_grad():
            table.add_(table.grad / table.grad.norm() if self.guarded else 0.0)
        self.accelerator.backward(self.compute_loss(model, self._prepare_inputs(inputs)))
        with torch.no_grad():
            table.copy_(before)
        self.attacks += 1
        return loss


def test_an_attack_on_the_embeddings_acts_at_full_steps(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG, kind=Adversarial, max_steps=STEPS)
    trainer.train()
    assert trainer.attacks == STEPS // PERIOD
    trainer = trainer_for(tmp_path, CONFIG, kind=Adversarial, max_steps=STEPS)
    trainer.guarded = False
    with pytest.raises(RuntimeError, match=r"is idle at step 1.*outside of super\(\)\.training_step.*is_full_step"):
        trainer.train()


def test_a_parameter_of_a_resumed_run_has_had_a_gradient() -> None:
    part = nn.Linear(2, 2)
    groups = {"slow": dict(part.named_parameters())}
    assert MissingGradientCheck(groups).groups_without_gradient == {"slow"}
    assert not MissingGradientCheck(groups, had=part.parameters()).groups_without_gradient
    part.weight.grad = torch.ones(2, 2)
    resumed = MissingGradientCheck(groups, strict=True, had=part.parameters())
    with pytest.raises(
        RuntimeError, match=r"1 of 2 parameters of rate group 'slow' got no gradient at step 7.*'bias'"
    ):
        resumed.before_step(Step(7, (0,), full=True, complete=True))


def _check(strict: bool = False) -> tuple[MissingGradientCheck, dict[str, nn.Parameter]]:
    members = {name: nn.Parameter(torch.ones(1)) for name in "abc"}
    groups = {"fast": {"a": members["a"]}, "slow": {"b": members["b"], "c": members["c"]}}
    return MissingGradientCheck(groups, strict=strict), members


def _give(members: dict[str, nn.Parameter], names: str) -> None:
    for name, parameter in members.items():
        parameter.grad = torch.ones(1) if name in names else None


def full(index: int) -> Step:
    return Step(index, live=(0, 1), full=True, complete=True)


def fast(index: int) -> Step:
    return Step(index, live=(0,), full=False, complete=False)


def test_idle_gradient_and_with_strict_a_silent_group_are_errors() -> None:
    check, members = _check(strict=True)
    _give(members, "ab")
    with pytest.raises(RuntimeError, match=r"idle at step 3.*'b'"):
        check.before_step(fast(3))
    _give(members, "a")
    with pytest.raises(RuntimeError, match="'slow' got no gradient at step 5"):
        check.before_step(full(5))


@pytest.mark.parametrize("silent", ["fast", "slow"])
def test_a_part_that_never_has_a_gradient_is_an_error_at_its_third_full_step(silent: str) -> None:
    check, members = _check()
    check.before_step(full(0))  # of a batch that was given up: no turn of any group
    for step in (1, 2, 3, 4, 5):
        is_full = step in (1, 3, 5)
        _give(members, ("bc" if is_full else "") if silent == "fast" else "a")
        if step == 5:
            with pytest.raises(
                RuntimeError, match=rf"the {silent} rate groups \['{silent}'\] never got a gradient in 3"
            ):
                check.before_step(full(step))
        else:
            check.before_step(full(step) if is_full else fast(step))


def test_a_gradient_that_was_there_before_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    for strict in (False, True):
        check, members = _check(strict)
        _give(members, "abc")
        check.before_step(full(0))
        _give(members, "ab")
        if strict:
            with pytest.raises(RuntimeError, match=r"1 of 2 parameters.*'c'"):
                check.before_step(full(5))
            continue
        assert check.before_step(full(5))
        assert list(check.missed) == ["c"]
        assert check.before_step(full(10))
        _give(members, "abc")
        assert check.before_step(full(15))
        assert not check.missed
        check.close()
        found = [record.getMessage() for record in caplog.records]
        assert (
            "1 of 2 parameters of rate group 'slow' got no gradient at step 5 (live step 2 of the group)" in found[0]
        )
        assert found[1:] == ["gradients of 1 parameters were missing at some of their live steps: c at 2 of 4."]


def test_a_parameter_that_never_had_a_gradient_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    check, members = _check()
    _give(members, "ab")
    for step in (0, 5):
        check.before_step(full(step))
    check.close()
    assert [": c. Further cases" in record.getMessage() for record in caplog.records] == [True]
