"""What Trainer does besides training: searches, early stopping, the best model, the hub, callbacks, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_multirate import Multirate, MultirateConfig, MultirateMixin, MultirateTrainer, MultirateTrainingArguments
from tests.support.runs import (
    CONFIG,
    DEFAULTS,
    FIVE,
    PERIOD,
    arguments,
    assert_same,
    compiled_is_exact,
    example,
    history,
    phases,
    trainer_for,
    weights,
)


PHASES = [0, 1, 2, 3, 0, 1]


def trained(folder: Path, config: MultirateConfig = CONFIG, **settings: Any) -> Any:
    trainer = trainer_for(folder, config, **settings)
    trainer.train()
    return trainer


def test_hyperparameter_search_over_period_and_fast_part(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid = {"multirate_period": [1, 2, 3], "multirate_fast": ["head", "last:1"]}
    seen: dict[tuple[int, str], list[Any]] = {}

    class Searched(MultirateTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            key = (self.args.multirate_period, self.args.multirate_fast)
            steps = self.multirate.timing.summary()
            seen[key] = [steps["fast_steps"], len(self.multirate.partition["fast"]), weights(self)]
            return super().evaluate(*args, **kwargs)

    args = MultirateTrainingArguments(str(tmp_path), **DEFAULTS)
    rows = example("bert")[1]
    trainer = Searched(model_init=lambda: example("bert")[0], args=args, train_dataset=rows, eval_dataset=rows)
    best = trainer.hyperparameter_search(
        lambda trial: {name: trial.suggest_categorical(name, values) for name, values in grid.items()},
        n_trials=6, backend="optuna", sampler=optuna.samplers.GridSampler(grid),
    )  # fmt: skip
    assert set(best.hyperparameters) == set(grid)
    assert {key: fast for key, (fast, *_) in seen.items()} == {
        (period, fast): {1: 0, 2: 3, 3: 4}[period] for period in (1, 2, 3) for fast in grid["multirate_fast"]
    }
    sizes = {fast: {seen[period, fast][1] for period in (2, 3)} for fast in grid["multirate_fast"]}
    assert sizes == {"head": {2}, "last:1": {20}}
    alone = trainer_for(tmp_path, MultirateConfig.two_rate("last:1", 3), model_init=lambda: example("bert")[0])
    alone.train()
    assert_same(seen[3, "last:1"][2], weights(alone))


def test_early_stopping_and_the_best_model(tmp_path: Path) -> None:
    rows = example("bert")[1]
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.1, "max_steps": 40}
    trainer = trainer_for(
        tmp_path, CONFIG, callbacks=[EarlyStoppingCallback(2)], eval_dataset=rows, **settings, **best
    )
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.global_step < 40
    assert trainer.state.best_global_step == min(losses, key=losses.__getitem__)
    assert trainer.evaluate()["eval_loss"] == min(losses.values())


def test_what_would_be_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[set[str]] = []
    place = "huggingface_hub.HfApi.upload_folder" if FIVE else "transformers.trainer.upload_folder"

    def upload(*args: Any, folder_path: str, **kwargs: Any) -> None:
        pushed.append({file.name for file in Path(folder_path).iterdir()})

    monkeypatch.setattr(place, upload)
    trainers = [trainer_for(tmp_path / name, config) for name, config in (("ours", CONFIG), ("theirs", None))]
    for trainer in trainers:
        monkeypatch.setattr(type(trainer), "init_hf_repo", lambda self, *args, **kwargs: None)
        trainer.hub_model_id = "somebody/something"
        trainer.train()
        trainer.push_to_hub()
    assert (
        pushed[0] - {"multirate_record.json"}
        == pushed[1]
        >= {"config.json", "model.safetensors", "README.md", "training_args.bin"}
    )


class Nosy(TrainerCallback):
    """Looks at flags and optimizer whenever it is called."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def _look(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        flags = {name: p.requires_grad for name, p in kwargs["model"].named_parameters()}
        groups = [{**group, "params": len(group["params"])} for group in kwargs["optimizer"].param_groups]
        self.seen.append((state.global_step, kwargs["model"].training, flags, groups))

    on_step_begin = on_substep_end = on_pre_optimizer_step = on_optimizer_step = on_step_end = on_log = _look
    on_save = on_epoch_begin = on_epoch_end = on_evaluate = on_train_begin = on_train_end = _look


def test_callbacks_see_what_they_see_in_plain_training(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, "eval_strategy": "steps"}
    ours, theirs = Nosy(), Nosy()
    for callback, config in ((ours, CONFIG), (theirs, None)):
        trainer_for(
            tmp_path, config, callbacks=[callback], eval_dataset=example("bert")[1][:2], eval_steps=3, **settings
        ).train()
    assert ours.seen == theirs.seen
    assert all(all(flags.values()) for _, _, flags, _ in ours.seen)


def test_operations_are_those_of_the_steps_taken(tmp_path: Path) -> None:
    ours, theirs, off = (trainer_for(tmp_path, config) for config in (CONFIG, None, MultirateConfig.off()))
    for trainer in (ours, theirs, off):
        trainer.train()
    speedup = ours.multirate.timing.summary()["speedup_predicted"]
    fast = (PERIOD / speedup - 1) / (PERIOD - 1)
    wanted = theirs.state.total_flos * (2 + 4 * fast) / 6
    assert ours.state.total_flos == pytest.approx(wanted, rel=1e-3)
    assert off.state.total_flos == theirs.state.total_flos
    # Every step has all gradients, though masks and periods of its groups go by cycles of three.
    masked = trainer_for(tmp_path, MultirateConfig.random_subsets(3))
    masked.train()
    assert masked.state.total_flos == theirs.state.total_flos
    batch = {"input_ids": torch.ones(2, 6, dtype=torch.long)}
    assert ours.floating_point_ops(batch) == theirs.floating_point_ops(batch)  # outside of training


def test_emptied_caches_change_nothing(tmp_path: Path) -> None:
    one, other = (trained(tmp_path, torch_empty_cache_steps=steps) for steps in (None, 1))
    assert_same(weights(one), weights(other))


def test_trainer_before_the_mixin_is_refused() -> None:
    class Theirs(Trainer):
        """Somebody's."""

    with pytest.raises(TypeError, match=r"Write class Mine\(MultirateMixin, Theirs\)"):

        class Mine(Theirs, MultirateMixin):
            """The wrong way round."""

    class Right(MultirateMixin, Theirs):
        """The right way round."""


@pytest.mark.parametrize("steps", [1, 6])
def test_training_step_that_leaves_ours_out_is_an_error(tmp_path: Path, steps: int) -> None:
    class Mine(MultirateTrainer):
        def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    trainer = trainer_for(tmp_path, CONFIG, kind=Mine, max_steps=steps)
    with pytest.raises(RuntimeError, match=r"Mine.training_step takes the place.*super\(\).training_step"):
        trainer.train()
    assert trainer.state.global_step == 0
    trainer_for(tmp_path, MultirateConfig.off(), kind=Mine).train()


def test_training_step_around_ours(tmp_path: Path) -> None:
    class Mine(MultirateTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().training_step(*args, **kwargs) * 1

    assert_same(weights(trained(tmp_path, kind=Mine)), weights(trained(tmp_path)))


def test_two_controllers_on_one_model_are_refused() -> None:
    model, _ = example("bert")
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    with (
        Multirate(CONFIG).attach(model, optimizers[0]),
        pytest.raises(RuntimeError, match="the model is attached already"),
    ):
        Multirate(CONFIG).attach(model, optimizers[1])
    Multirate(CONFIG).attach(model, optimizers[1]).detach()


def test_two_trainers_of_one_model_in_turn(tmp_path: Path) -> None:
    first = trainer_for(tmp_path, CONFIG)
    first.train()
    second = MultirateTrainer(
        model=first.model,
        args=first.args,
        train_dataset=first.train_dataset,
        multirate=MultirateConfig.two_rate("head", idle="drift"),
    )
    second.train()
    assert len(phases(second)) == 6


def test_parameters_that_were_frozen_stay_so_and_are_listed(tmp_path: Path) -> None:
    def optimizers(model: nn.Module) -> Any:
        model.bert.embeddings.requires_grad_(False)
        return torch.optim.AdamW(model.parameters(), lr=1e-2), None

    trainer = trainer_for(tmp_path, CONFIG, optimizers=optimizers)
    start = weights(trainer)
    trainer.train()
    end = weights(trainer)
    assert_same(*({name: values[name] for name in values if "embeddings" in name} for values in (start, end)))
    assert "frozen by requires_grad=False, in no group: " in trainer.multirate.describe()
    assert "bert.embeddings.word_embeddings.weight" in trainer.multirate.describe()
    assert not any(p.requires_grad for p in trainer.model.bert.embeddings.parameters())
    assert phases(trainer) == PHASES


def test_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    other = example("bert")[0]
    trainer = trainer_for(tmp_path, CONFIG, optimizers=(torch.optim.AdamW(other.parameters(), lr=1e-2), None))
    with pytest.raises(ValueError, match="trainable parameters are not in the optimizer"):
        trainer.train()


@pytest.mark.filterwarnings("ignore")  # while it traces, dynamo reads what warns
def test_compiled_before_it_is_given(tmp_path: Path) -> None:
    ends = []
    for compiles in (False, True):
        model, rows = example("llama-lm")
        given = torch.compile(model, backend="eager") if compiles else model
        # Trainer looks for the columns of the data in the arguments of forward.
        args = arguments(tmp_path, remove_unused_columns=False)
        trainer = MultirateTrainer(model=given, args=args, train_dataset=rows, multirate=CONFIG)
        trainer.train()
        ends.append(({name: p.detach() for name, p in model.named_parameters()}, history(trainer)))
    assert_same(*ends, exact=compiled_is_exact())


def test_wrapped_before_it_is_given(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, rows = example("bert")
        # Trainer looks for the columns of the data in the arguments of forward.
        args = arguments(tmp_path, remove_unused_columns=False)
        MultirateTrainer(model=DistributedDataParallel(model), args=args, train_dataset=rows, multirate=CONFIG).train()
        usual = trained(tmp_path)
        assert_same(dict(model.named_parameters()), dict(usual.model.named_parameters()))
    finally:
        torch.distributed.destroy_process_group()
