"""Evaluations and savings of a timed run: how many are to come, and what one takes before the first is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import DefaultFlowCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, has_length


SAVING_SPEED = 5e8
"""Bytes per second that are assumed for a checkpoint before the first one is measured."""

FORWARD_SHARE = 1 / 3
"""Forward pass as a share of a full step, for an evaluation before the first one is measured."""


@dataclass(frozen=True)
class OutsideSteps:
    """Evaluations and savings of a run.

    Attributes:
        args: The training arguments.
        steps_per_epoch: Number of optimizer steps in an epoch.
        rows_per_step: Number of training rows in an optimizer step of all processes.
        eval_rows: Number of rows of an evaluation; 0 if unknown.
        model: The model.
    """

    args: TrainingArguments
    steps_per_epoch: int
    rows_per_step: int
    eval_rows: int
    model: nn.Module

    def number(self, purpose: str, step: int, steps: int) -> int:
        """Number of evaluations or savings after ``step``, up to the end of a run of ``steps`` steps.

        Args:
            purpose: ``"evaluation"`` or ``"saving"``.
            step: Number of steps so far.
            steps: Number of steps of the run.
        """
        evaluation = purpose == "evaluation"
        strategy = SaveStrategy(self.args.eval_strategy if evaluation else self.args.save_strategy).value
        if strategy == "best":  # at most one for each evaluation
            return self.number("evaluation", step, steps)
        delay = float(self.args.eval_delay) if evaluation else 0.0  # in epochs or in steps, as the strategy is
        if strategy == "epoch":
            return self._epochs(step, steps, delay)
        if strategy != "steps":
            return 0
        end = TrainerState(global_step=steps, max_steps=steps)
        end.compute_steps(self.args, steps)  # type: ignore[no-untyped-call]
        every = int(end.eval_steps if evaluation else end.save_steps)
        control = TrainerControl()
        DefaultFlowCallback().on_step_end(self.args, end, control)  # versions of transformers differ at the last step
        last = control.should_evaluate if evaluation else control.should_save
        begin = max(step, math.ceil(delay) - 1)
        return max(0, (steps - 1) // every - begin // every) + int(last)

    def _epochs(self, step: int, steps: int, delay: float) -> int:
        """Number of epochs that end after ``step``, the last one perhaps early, and not before the epoch ``delay``."""
        whole, rest = divmod(steps, self.steps_per_epoch)
        ends = max(0, whole - max(step // self.steps_per_epoch, math.ceil(delay) - 1))
        return ends + int(rest > 0 and delay <= steps / self.steps_per_epoch)

    def guess(self, purpose: str, full_step: float) -> float:
        """Seconds of an evaluation or a saving before the first one.

        Args:
            purpose: ``"evaluation"`` or ``"saving"``.
            full_step: Seconds of a full step.
        """
        if purpose == "evaluation":
            return FORWARD_SHARE * full_step * self.eval_rows / self.rows_per_step
        parameters = list(self.model.parameters())
        weights = sum(p.numel() * p.element_size() for p in parameters)
        optimizer_state = sum(2 * p.numel() * p.element_size() for p in parameters if p.requires_grad)
        return float(weights + optimizer_state) / SAVING_SPEED


def rows_of(data: Any) -> int:
    """Number of rows of an evaluation set, or of a dictionary of such sets; 0 if unknown."""
    sets = list(data.values()) if isinstance(data, Mapping) else [data]
    return sum(len(part) for part in sets if part is not None and has_length(part))
