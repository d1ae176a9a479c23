"""An optimizer that is replaced in training is taken over, and the count of steps goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch.optim import SGD, AdamW, RMSprop
from transformers import TrainerCallback

from hf_multirate import AveragedCopiesTrainer, CopiesConfig, MultirateConfig
from tests.support.runs import CONFIG, assert_same, example, phases, trainer_for, weights


STEP = 6


class Replaces(TrainerCallback):
    """Gives its trainer another optimizer in the middle of a cycle."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != STEP:
            return
        trainer, held = self.trainer, self.trainer.model.parameters()
        if self.way == "inside":  # of the wrapper of Accelerate
            trainer.optimizer.optimizer = AdamW(trainer.optimizer.param_groups, lr=1e-3)
            return
        if self.way == "created":
            trainer.optimizer = None
            trainer.create_optimizer()
        else:
            trainer.optimizer = {"AdamW": AdamW, "SGD": SGD, "RMSprop": RMSprop}[self.way](held, lr=1e-3)
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)


def replaced(folder: Path, config: MultirateConfig | None, way: str, **settings: Any) -> Any:
    callback = Replaces(way)
    trainer = trainer_for(folder, config, max_steps=12, callbacks=[callback], **settings)
    callback.trainer = trainer
    trainer.train()
    return trainer


@pytest.mark.parametrize("way", ["AdamW", "SGD", "RMSprop", "created", "inside"])
def test_the_count_of_steps_goes_on(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    trainer = replaced(tmp_path, CONFIG, way)
    assert phases(trainer) == [0, 1, 2, 3] * 3
    assert trainer.multirate.timing.counted(full=True) == 3
    assert trainer.multirate.timing.counted(full=False) == 9
    assert caplog.text.count("the optimizer was replaced before step 6") == 1


def test_with_a_budget_its_plan_goes_on(tmp_path: Path) -> None:
    trainer = replaced(tmp_path, MultirateConfig.auto(1.5), "AdamW")
    assert len(trainer.multirate.timing.seconds) == 12


def test_period_one_is_standard_training(tmp_path: Path) -> None:
    config = MultirateConfig.two_rate(period=1, idle="drift")
    assert_same(weights(replaced(tmp_path, config, "AdamW")), weights(replaced(tmp_path, None, "AdamW")))


def test_copies_cannot_go_on(tmp_path: Path) -> None:
    callback = Replaces("AdamW")
    whole = trainer_for(tmp_path, None)
    trainer = AveragedCopiesTrainer(
        model=whole.model,
        args=whole.args,
        train_dataset=whole.train_dataset,
        callbacks=[callback],
        copies=CopiesConfig((1, 2)),
    )
    trainer.args.max_steps = 12
    callback.trainer = trainer
    with pytest.raises(RuntimeError, match="the optimizer was replaced in training, before step 6"):
        trainer.train()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_new_adapters_and_their_optimizer_in_training(tmp_path: Path) -> None:
    settings = {"target_modules": ["query"], "r": 2}
    model = get_peft_model(example("bert")[0], LoraConfig(task_type="SEQ_CLS", **settings))

    class Grows(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == STEP:
                model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", **settings))
                model.set_adapter("second")
                trainer.optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    config = MultirateConfig.ladder([1, 2])
    trainer: Any = trainer_for(tmp_path, config, max_steps=12, callbacks=[Grows()], model_init=lambda: model)
    trainer.train()
    assert trainer.state.global_step == 12
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert any(key.startswith("multirate/") for key in last)
