"""Advice on the length of a run with a new head and frozen lower blocks.

Frozen blocks were ahead of standard training in short runs only, longer with many labels, and not with a label for
each token: see *Which setting?* in the documentation.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from hf_multirate.config.config import MultirateConfig
from hf_multirate.model.levels import unwrap_peft
from hf_multirate.model.unwrap import unwrap_model
from hf_multirate.trainer.outside_steps import rows_of
from hf_multirate.trainer.run_logging import RunLoggingMixin


logger = logging.getLogger(__name__)


MANY_LABELS = 10
"""Smallest measured number of labels with which frozen blocks were ahead for a whole epoch."""

LONGEST_WITH_MANY, LONGEST_WITH_FEW = 1.0, 0.5

BASELINES = {
    False: "MultirateConfig.off(head_lr_scale=10), or --multirate off --multirate_head_lr_scale 10",
    True: (
        "MultirateConfig.off(head_lr_scale=10, head_start=16), or --multirate off --multirate_head_lr_scale 10 "
        "--multirate_head_start 16"
    ),
}
"""Whether a head start is needed -> settings of standard training to compare with."""

MEASURED_STEPS = 250
"""Largest number of steps of standard training that was measured."""


def longest_advised(labels: int, per_token: bool = False) -> float:
    """Longest run for which frozen blocks are advised, in epochs of standard training that take as many seconds.

    Args:
        labels: Number of labels.
        per_token: Whether each token has a label of its own. Frozen blocks were behind in runs of any length then.

    >>> longest_advised(2), longest_advised(50), longest_advised(75, per_token=True)
    (0.5, 1.0, 0.0)
    """
    if per_token:
        return 0.0
    return LONGEST_WITH_MANY if labels >= MANY_LABELS else LONGEST_WITH_FEW


def needs_head_start(labels: int, per_token: bool = False) -> bool:
    """Whether standard training was better with a head start than with a head rate alone.

    Args:
        labels: Number of labels.
        per_token: Whether each token has a label of its own.
    """
    return per_token or labels >= MANY_LABELS


def advice_on_length(config: MultirateConfig, model: nn.Module, epochs: float, speedup: float) -> str | None:
    """What to say of a run with a head start and frozen blocks that is longer than they are advised for.

    Args:
        config: The configuration.
        model: The model, without wrapper of several processes.
        epochs: Length of the run.
        speedup: Seconds of a full step divided by the mean seconds of a step.

    Returns:
        A message; None if the run is short enough, or of another setting.
    """
    inner = unwrap_peft(model)
    if not (config.has_never and config.head_start) or config.stage_list or not isinstance(inner, PreTrainedModel):
        return None
    labels, standard = inner.config.num_labels or 0, epochs / speedup
    per_token = type(inner).__name__ in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()
    longest = longest_advised(labels, per_token)
    if standard <= longest:
        return None
    advised = (
        f"With {labels} labels, frozen blocks are advised for up to {longest:g} epochs of standard training "
        f"(measured: up to {MEASURED_STEPS} steps of it)"
    )
    if per_token:
        reason = "Each token has a label: standard training with a head rate and a head start was better at any length"
    elif labels >= MANY_LABELS:
        reason = f"{advised}, and longer runs were not compared with standard training with a head rate"
    else:
        reason = f"{advised}. In longer runs standard training with a head rate was as good or better"
    return (
        f"the lower blocks are frozen for {epochs:.2f} epochs, which take as long as {standard:.2f} epochs of "
        f"standard training. {reason}. Compare with {BASELINES[needs_head_start(labels, per_token)]}."
    )


class FrozenLengthMixin(RunLoggingMixin):
    """Warns if a run with frozen blocks is longer than that is advised for."""

    _steps_per_epoch = 1

    def set_initial_training_values(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`."""
        values = super().set_initial_training_values(args, *rest, **kwargs)
        self._steps_per_epoch = values[1]
        return values

    def _advise_on_length(self, steps: int) -> None:
        """Warn if frozen blocks are not advised for a run of ``steps`` steps."""
        if not rows_of(self.train_dataset) or not self.is_world_process_zero():  # 0 rows: an unknown length
            return
        model, speedup = unwrap_model(cast(nn.Module, self.model)), self.multirate.timing.speedup_predicted
        message = advice_on_length(self.multirate.config, model, steps / self._steps_per_epoch, speedup)
        if message is not None:
            logger.warning("%s", message)
