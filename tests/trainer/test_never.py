"""Groups with period ``"never"`` in Trainer: training with these parameters frozen by hand, bit for bit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import HfArgumentParser, Trainer, TrainerCallback

from hf_multirate import MultirateConfig, MultirateTrainer, MultirateTrainingArguments, RateGroup
from hf_multirate.controller.guards import unwrap_optimizer
from hf_multirate.reporting import report
from hf_multirate.reporting.run_record import read_record
from tests.support.runs import FIVE, Watched, arguments, assert_same, differ, example, history, trainer_for, weights


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    # Torch warns of checkpoints in frozen blocks if they are reentrant, as those of transformers 4.57 are by default.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning"),
]
NEVER = MultirateConfig.two_rate("last:2", "never")
FROZEN = {
    "bert": ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"],
    "gpt2-lm": ["transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1"],
    "resnet": ["resnet.embedder", "resnet.encoder.stages.0"],
}
FAST = {"bert": "last:2", "gpt2-lm": "last:2", "resnet": ["stages.[12]", "classifier"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 4, "max_steps": 4},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "sgd": {"optim": "sgd"},
    "two epochs": {"max_steps": -1, "num_train_epochs": 2},
}
if not FIVE:  # Trainer 4.57 with frozen lower blocks and reentrant checkpoints trains nothing but the head
    del VARIANTS["reentrant"]
CASES = [
    *((family, name) for family in FROZEN for name in ("plain", "accumulation")),
    *(("bert", name) for name in VARIANTS if name not in ("plain", "accumulation")),
]
# Evaluation mode by hand would also stop the running statistics of batch norm.
RUNS = [(*case, mode) for case in CASES for mode in ("train", "eval") if (case[0], mode) != ("resnet", "eval")]


class ByHand(Trainer):
    """Trainer with frozen modules, which are in evaluation mode during training if ``evaluates``."""

    frozen: tuple[nn.Module, ...] = ()
    evaluates = False

    def freeze(self, names: list[str], *, evaluates: bool) -> None:
        self.frozen, self.evaluates = tuple(self.model.get_submodule(name) for name in names), evaluates
        for module in self.frozen:
            module.requires_grad_(False)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for module in self.frozen if self.evaluates else ():
            module.eval()
        return super().compute_loss(model, *args, **kwargs)


def results(trainer: Trainer) -> dict[str, Any]:
    entries = [{k: v for k, v in entry.items() if "multirate/" not in k} for entry in history(trainer)]
    return {"weights": weights(trainer), "history": entries, "optimizer": trainer.optimizer.state_dict()}


@pytest.mark.parametrize(("family", "variant", "mode"), RUNS)
def test_never_is_freezing_by_hand(tmp_path: Path, family: str, variant: str, mode: str) -> None:
    settings = VARIANTS[variant]
    wanted: Any = trainer_for(tmp_path / "hand", None, family, kind=ByHand, **settings)
    wanted.freeze(FROZEN[family], evaluates=mode == "eval")
    wanted.train()
    config = MultirateConfig.two_rate(FAST[family], "never", inactive_forward=mode)
    trainer = trainer_for(tmp_path / "never", config, family, **settings)
    trainer.train()
    assert_same(results(trainer), results(wanted))
    saved = trainer.optimizer.state_dict()
    trained = sum(p.numel() for group in unwrap_optimizer(trainer.optimizer).param_groups for p in group["params"])
    assert trained < sum(p.numel() for p in trainer.model.parameters())
    assert len(saved["state"]) in (0, len({i for group in saved["param_groups"] for i in group["params"]}))


@pytest.mark.parametrize(("optim", "mode"), [("sgd", True), ("adamw_torch", False)])
def test_default_mode_depends_on_the_optimizer(tmp_path: Path, optim: str, mode: bool) -> None:
    modes: list[bool] = []
    trainer = trainer_for(tmp_path, NEVER, optim=optim, max_steps=2)
    trainer.model.bert.encoder.layer[0].output.dropout.register_forward_hook(
        lambda module, *_: modes.append(module.training)
    )
    trainer.train()
    assert modes == [mode, mode]


def test_frozen_buffers_keep_their_values(tmp_path: Path) -> None:
    config = MultirateConfig.two_rate(FAST["resnet"], "never", inactive_buffers="freeze")
    trainer = trainer_for(tmp_path, config, "resnet")
    before = weights(trainer)
    trainer.train()
    changed = differ(before, weights(trainer))
    assert changed
    assert not any(name.startswith(tuple(FROZEN["resnet"])) for name in changed)


LADDER = (RateGroup("top", "last:1", 1), RateGroup("middle", r"layer\.2\.", 2), RateGroup("rest", ".*", "never"))


@pytest.mark.parametrize("variant", ["plain", "accumulation", *(["reentrant"] if FIVE else ["checkpointing"])])
def test_with_other_periods_it_is_these_groups_with_the_rest_frozen(tmp_path: Path, variant: str) -> None:
    settings = VARIANTS[variant]
    common: dict[str, Any] = {"inactive_forward": "train", "turns": "fixed"}
    model, rows = example("bert")
    for name in FROZEN["bert"]:
        model.get_submodule(name).requires_grad_(False)
    args = arguments(tmp_path / "hand", **settings)
    wanted = MultirateTrainer(model, args, train_dataset=rows, multirate=MultirateConfig(LADDER[:2], **common))
    wanted.train()
    trainer = trainer_for(tmp_path / "never", MultirateConfig(LADDER, **common), **settings)
    trainer.train()
    assert_same(results(trainer), results(wanted))


def test_frozen_modules_are_inactive_at_full_and_fast_steps(tmp_path: Path) -> None:
    modes: dict[str, list[bool]] = {"layer.0": [], "layer.2": [], "layer.3": []}
    trainer = trainer_for(tmp_path, MultirateConfig(LADDER, turns="fixed"), max_steps=4)
    for name, seen in modes.items():
        dropout = trainer.model.get_submodule(f"bert.encoder.{name}.output.dropout")
        dropout.register_forward_hook(lambda module, *_, seen=seen: seen.append(module.training))
    trainer.train()
    assert modes == {"layer.0": [False] * 4, "layer.2": [True, False] * 2, "layer.3": [True] * 4}


class Failing(TrainerCallback):
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        raise KeyError("stop")


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("fails", [False, True])
def test_requires_grad_is_off_during_the_run_and_restored_after_it(tmp_path: Path, fails: bool) -> None:
    trainer: Any = trainer_for(tmp_path, NEVER, kind=Watched, callbacks=[Failing()] if fails else [], max_steps=2)
    trainer.model.bert.embeddings.position_embeddings.requires_grad_(False)
    trainer.model.bert.encoder.layer[3].output.requires_grad_(False)
    before, values = flags(trainer.model), weights(trainer)
    if fails:
        with pytest.raises(KeyError, match="stop"):
            trainer.train()
    else:
        trainer.train()
    assert flags(trainer.model) == before
    assert not trainer.multirate.attached
    live = {name for name, flag in before.items() if flag and not name.startswith(tuple(FROZEN["bert"]))}
    assert trainer.seen
    assert all(names == live for _, names in trainer.seen)
    assert differ(values, weights(trainer)) == live


def test_a_second_run_has_the_same_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = trainer_for(tmp_path, NEVER, kind=Watched, max_steps=2)
    trainer.train()
    described = trainer.multirate.describe()
    trainer.train()
    assert trainer.multirate.describe() == described
    assert len({names for _, names in trainer.seen}) == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_model_init_makes_a_model_that_is_frozen_too(tmp_path: Path) -> None:
    trainer: Any = trainer_for(tmp_path, NEVER, kind=Watched, model_init=lambda: example("bert")[0], max_steps=2)
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert all(not name.startswith(tuple(FROZEN["bert"])) for _, names in trainer.seen for name in names)
    assert all(flags(trainer.model).values())
    assert all(flags(first).values())


class SmallMemory(Watched):
    """Runs out of memory with a batch of more than two rows."""

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if len(inputs["labels"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return loss


def test_each_attempt_to_find_a_batch_size_is_frozen(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"auto_find_batch_size": True, "per_device_train_batch_size": 3, "max_steps": 2}
    trainer: Any = trainer_for(tmp_path, NEVER, kind=SmallMemory, **settings)
    trainer.train()
    assert trainer.state.train_batch_size <= 2
    assert len({names for _, names in trainer.seen}) == 1
    assert all(flags(trainer.model).values())


def test_an_optimizer_that_the_user_makes_first_leaves_them_out(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, NEVER, max_steps=2)
    optimizer = trainer.create_optimizer()
    assert all(flags(trainer.model).values())
    held = {p for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, parameter in trainer.model.named_parameters() if parameter in held}
    assert names
    assert not any(name.startswith(tuple(FROZEN["bert"])) for name in names)
    trainer.train()


def test_a_brought_optimizer_does_not_move_them(tmp_path: Path) -> None:
    def brought(model: nn.Module) -> tuple[Any, None]:
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5), None

    trainer = trainer_for(tmp_path, NEVER, optimizers=brought)
    before = weights(trainer)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)  # left by a backward pass before training
    trainer.train()
    assert not any(name.startswith(tuple(FROZEN["bert"])) for name in differ(before, weights(trainer)))


@pytest.mark.parametrize("config", [NEVER, MultirateConfig(LADDER)], ids=["never", "with periods"])
@pytest.mark.parametrize("saved", [2, 3])
def test_resume_is_exact(tmp_path: Path, config: MultirateConfig, saved: int) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    whole = trainer_for(tmp_path / "whole", config, **settings)
    whole.train()
    resumed = trainer_for(tmp_path / "resumed", config, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{saved}"))
    assert_same(weights(resumed), weights(whole))
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert all(flags(resumed.model).values())
    state = torch.load(tmp_path / "whole" / f"checkpoint-{saved}" / "optimizer.pt")["state"]
    frozen = sum(len(list(whole.model.get_submodule(name).parameters())) for name in FROZEN["bert"])
    assert len(state) == len(list(whole.model.parameters())) - frozen


class Reference(Watched):
    """Runs the model without its adapter too, as trainers of TRL do, which trains all adapters again."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), model.disable_adapter():
            model(**inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def lora(folder: Path, kind: type[Trainer], config: MultirateConfig | None) -> Any:
    model, rows = example("bert")
    torch.manual_seed(2)
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.1)
    kwargs = {} if config is None else {"multirate": config}
    args = arguments(folder, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    return kind(model=peft.get_peft_model(model, settings), args=args, train_dataset=rows, **kwargs)


class Gradients(TrainerCallback):
    """Notes the names of the parameters with a gradient at each step."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self.names.append({name for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("reentrant", [False, True])
def test_backward_stops_above_frozen_modules_with_checkpointing(tmp_path: Path, reentrant: bool) -> None:
    inputs: list[bool] = []
    kwargs = {"use_reentrant": reentrant}
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs, "max_steps": 2}
    trainer = trainer_for(tmp_path, NEVER, **settings)
    trainer.model.bert.encoder.layer[2].register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].requires_grad) if torch.is_grad_enabled() else None
    )
    trainer.train()
    assert inputs
    assert not inputs[0], "the mark of checkpointing would let backward run down to the embeddings"


@pytest.mark.parametrize("kind", [Watched, Reference])
def test_adapters_of_lower_layers(tmp_path: Path, kind: type[Watched]) -> None:
    wanted = lora(tmp_path / "hand", Trainer, None)
    for name, parameter in wanted.model.named_parameters():
        if "layer.0." in name or "layer.1." in name:
            parameter.requires_grad_(False)
    wanted.train()
    trainer = lora(tmp_path / "never", kind, MultirateConfig.two_rate("last:2", "never", inactive_forward="train"))
    before, gradients = flags(trainer.model), Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    assert {name for names in gradients.names for name in names if "layer.0." in name or "layer.1." in name} == set()
    if kind is Watched:  # the reference draws random numbers
        assert_same(weights(trainer), weights(wanted))
    assert flags(trainer.model) == before
    assert isinstance(trainer.model.merge_and_unload(), nn.Module)


def test_command_line(tmp_path: Path) -> None:
    parser: Any = HfArgumentParser(MultirateTrainingArguments)  # type: ignore[arg-type]
    common = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    (args,) = parser.parse_args_into_dataclasses(
        [*common, "--multirate_fast", "last:2", "--multirate_period", "never"]
    )
    assert args.to_multirate_config() == NEVER
    (args,) = parser.parse_args_into_dataclasses([*common, "--multirate_fast", "last:2", "--multirate_period", "3"])
    assert args.to_multirate_config() == MultirateConfig.two_rate("last:2", 3)
    (args,) = parser.parse_args_into_dataclasses([*common, "--multirate_fast", "ladder:1,2,never"])
    assert args.to_multirate_config() == MultirateConfig.ladder([1, 2, "never"])
    with pytest.raises(TypeError, match="multirate_period must be an integer number of steps, or 'never', got 'ever'"):
        parser.parse_args_into_dataclasses([*common, "--multirate_period", "ever"])


def test_no_warning_and_a_record_with_the_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = trainer_for(tmp_path, NEVER, multirate_record=True)
    trainer.train()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    record = read_record(tmp_path)
    assert [(group["name"], group["period"]) for group in record.groups] == [("fast", 1), ("slow", "never")]
    assert not record.standard
    assert "slow" in {name for block in record.blocks.values() for name in block["groups"]}
    predicted = trainer.multirate.timing.speedup_predicted
    assert predicted > 1.3
    assert record.summary["speedup_predicted_of_run"] == pytest.approx(predicted)
    assert record.summary["speedup"] is None, "no step was one of standard training"
    logged = [entry for entry in history(trainer) if "loss" in entry]
    assert all("multirate/speedup" not in entry for entry in logged)
    assert trainer.state.log_history[0]["multirate/speedup_predicted"] == pytest.approx(predicted)
    page = report(tmp_path)
    assert f"predicted speed-up: {predicted:.4g}" in page.read_text()
    assert json.loads((page.parent / "report.json").read_text())["speedup_predicted"] == pytest.approx(predicted)


def test_standard_training_stays_that_of_trainer(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path / "ours", MultirateConfig.off())
    trainer.train()
    wanted = trainer_for(tmp_path / "plain", None)
    wanted.train()
    assert_same(results(trainer), results(wanted))


def test_all_fast_parameters_frozen_by_the_user(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.two_rate(["layer.3.", "pooler", "classifier"], "never"))
    for name in ("bert.encoder.layer.3", "bert.pooler", "classifier"):
        trainer.model.get_submodule(name).requires_grad_(False)
    with pytest.raises(ValueError, match=r"rate groups \['fast'\] are frozen"):
        trainer.train()
    assert isinstance(trainer, MultirateTrainer)
