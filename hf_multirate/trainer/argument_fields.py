"""Fields that `MultirateTrainingArguments` adds to the command line, and the check of each value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hf_multirate.config.auto_periods import require_speedup
from hf_multirate.config.consistency import CHOICES, CHOICES_OR_NONE, require_decay
from hf_multirate.config.durations import require_duration
from hf_multirate.config.rate_group import IDLE_RULES, require_period
from hf_multirate.config.validation import (
    require_bool,
    require_choice,
    require_int,
    require_path,
    require_positive,
    require_text,
)
from hf_multirate.trainer.train_time import COUNTS


SWITCH = ("on", "off")
MODES = (*SWITCH, "auto", "new_head")
LOGS = ("brief", "all")


def require_log(value: Any) -> str:
    """Check the setting ``multirate_log``, one of `LOGS`.

    Raises:
        ValueError: ``value`` is another string.
        TypeError: ``value`` is not a string.
    """
    return str(require_choice("multirate_log", value, LOGS))


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "multirate_speedup": require_speedup,
    "multirate_fast": require_text,
    "multirate_period": require_period,
    "multirate_idle": partial(require_choice, choices=IDLE_RULES),
    "multirate_drift_steps": partial(require_int, least=1, unit="steps"),
    "multirate_turns": partial(require_choice, choices=CHOICES["turns"]),
    "multirate_inactive_forward": partial(require_choice, choices=CHOICES_OR_NONE["inactive_forward"]),
    "multirate_inactive_buffers": partial(require_choice, choices=CHOICES["inactive_buffers"]),
    "multirate_inactive_dtype": partial(require_choice, choices=CHOICES_OR_NONE["inactive_dtype"]),
    "multirate_head_lr_scale": require_positive,
    "multirate_lr_decay": require_decay,
    "multirate_check_ranks_every": partial(require_int, least=0, unit="cycles"),
    "multirate_head_start": partial(require_int, least=0, unit="batches"),
    "multirate_head_start_steps": partial(require_int, least=1, unit="steps"),
    "multirate_head_start_lr": require_positive,
    "multirate_activation_cache": partial(require_choice, choices=CHOICES_OR_NONE["activation_cache"]),
    "multirate_activation_cache_gb": require_positive,
    "multirate_activation_cache_dir": require_path,
    "multirate_config": require_path,
    "multirate_record": require_bool,
    "multirate_train_time": require_duration,
    "multirate_train_time_counts": partial(require_choice, choices=COUNTS),
    "multirate_train_time_plan": require_path,
}
"""Field -> function that checks its value, unless the value is None."""


@dataclass
class MultirateFields:
    """The fields, without those of `transformers.TrainingArguments`."""

    multirate: str = field(
        default="on",
        metadata={
            "help": "'off' is standard training: every parameter gets a gradient at every step. 'auto' chooses "
            "periods that reach multirate_speedup. 'new_head' is for a new head and little time: the lower blocks are "
            "frozen, and the head has a head start and ten times the learning rate."
        },
    )
    multirate_speedup: float | None = field(
        default=None,
        metadata={"help": "Target speed-up for multirate='auto': work of a full step / mean work (default: 1.6)."},
    )
    multirate_fast: str | None = field(
        default=None,
        metadata={
            "help": "'ladder:1,2,4' (the default) splits the model by depth into three equal parts with these "
            "periods, from top to bottom. For two rates, the fast part: 'head', 'last:N', 'depth:F' or a regular "
            "expression."
        },
    )
    multirate_period: int | str | None = field(
        default=None,
        metadata={
            "help": "For two rates: number of steps from one gradient of the slow part to the next, or 'never' to "
            "freeze it (default: 5). Without multirate_fast, the fast part is depth:0.33."
        },
    )
    multirate_idle: str | None = field(
        default=None,
        metadata={"help": "Slow parts in between: 'freeze', 'drift' or 'long_step' (default: freeze)."},
    )
    multirate_drift_steps: int | None = field(
        default=None,
        metadata={
            "help": "For multirate_idle='drift': number of steps after a gradient at which slow parts drift (default: "
            "all)."
        },
    )
    multirate_turns: str | None = field(
        default=None,
        metadata={
            "help": "Step of each period at which slow parts get a gradient: 'drawn' at random, or 'fixed' at the "
            "first step as in the paper (default: drawn)."
        },
    )
    multirate_inactive_forward: str | None = field(
        default=None,
        metadata={
            "help": "Mode of inactive modules: 'train', or 'eval' without dropout (default: train for SGD, else eval)."
        },
    )
    multirate_inactive_buffers: str | None = field(
        default=None,
        metadata={
            "help": "Running statistics of inactive modules, as of batch norm: 'update' at every step, or 'freeze' "
            "at fast steps (default: update)."
        },
    )
    multirate_inactive_dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of inactive modules: 'bfloat16' or 'float16' (default: that of the run)."},
    )
    multirate_head_lr_scale: float | None = field(
        default=None,
        metadata={
            "help": "Factor on the learning rate of the head, also with multirate='off'; 10 suits a new head "
            "(default: 1)."
        },
    )
    multirate_lr_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise learning-rate decay, also with multirate='off': factor from each block to the block "
            "below it (default: 1)."
        },
    )
    multirate_check_ranks_every: int | None = field(
        default=None,
        metadata={
            "help": "To debug runs with several processes: every N cycles, raise an error if weights differ between "
            "processes (default: 0, never)."
        },
    )
    multirate_head_start: int | None = field(
        default=None,
        metadata={
            "help": "Number of batches for a head start: the base model runs forward on the first batches, and a new "
            "head is trained on its outputs before the first step. Works with multirate='off' too (default: 0, none)."
        },
    )
    multirate_head_start_steps: int | None = field(
        default=None, metadata={"help": "Number of steps of the head in its head start (default: 150)."}
    )
    multirate_head_start_lr: float | None = field(
        default=None,
        metadata={"help": "Learning rate of these steps (default: chosen on batches that are held out)."},
    )
    multirate_activation_cache: str | None = field(
        default=None,
        metadata={
            "help": "Keep the outputs of frozen lower blocks, so that they run once for each row: 'memory' or 'disk' "
            "(default: they run at every step)."
        },
    )
    multirate_activation_cache_gb: float | None = field(
        default=None,
        metadata={"help": "Largest size in GB, in memory for each process, and in all on disk (default: 4)."},
    )
    multirate_activation_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of a cache on disk (default: the folder _activation_cache in output_dir)."},
    )
    multirate_log: str = field(
        default="brief",
        metadata={
            "help": "Values logged with each loss: 'brief' for a few, 'all' for those of each block too. The record "
            "of a run always has all values."
        },
    )
    multirate_config: str | None = field(
        default=None, metadata={"help": "JSON file with a complete MultirateConfig, instead of the fields above."}
    )
    multirate_record: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to write a record of the run for 'hf-multirate report' (default: yes, except for "
            "standard training)."
        },
    )
    multirate_train_time: str | None = field(
        default=None,
        metadata={
            "help": "Time to train for: '20min', '1h30m', '90s' or a number of seconds. The learning-rate schedule "
            "ends with it (default: no limit)."
        },
    )
    multirate_train_time_counts: str | None = field(
        default=None,
        metadata={
            "help": "What multirate_train_time covers: 'everything', or 'training' without evaluation and saving "
            "(default: everything)."
        },
    )
    multirate_train_time_plan: str | None = field(
        default=None,
        metadata={"help": "The multirate_train_time.json of a run with multirate_train_time, to repeat it exactly."},
    )

    def _checked_fields(self) -> dict[str, Any]:
        """The fields of this class by name, validated and converted to plain Python values.

        Raises:
            ValueError: a value is out of range.
            TypeError: a value has the wrong type.
        """
        values = vars(self)
        checked: dict[str, Any] = {"multirate": require_choice("multirate", values["multirate"], MODES)}
        checked["multirate_log"] = require_log(values["multirate_log"])
        for name, check in CHECKS.items():
            checked[name] = None if values[name] is None else check(name, values[name])
        return checked
