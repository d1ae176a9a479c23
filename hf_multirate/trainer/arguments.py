"""Training arguments with flat fields for the command line, from which a configuration is built."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_multirate.config.auto_periods import require_speedup
from hf_multirate.config.config import WITHOUT_GROUPS, MultirateConfig
from hf_multirate.config.consistency import CHOICES, CHOICES_OR_NONE, require_decay
from hf_multirate.config.rate_group import IDLE_RULES, parse_ladder, require_period
from hf_multirate.config.validation import (
    require_bool,
    require_choice,
    require_int,
    require_path,
    require_positive,
    require_text,
)
from hf_multirate.trainer.progress_schedule import PROVISIONAL_STEPS
from hf_multirate.trainer.train_time import COUNTS, TrainTime, require_train_time, train_time


logger = logging.getLogger(__name__)


SWITCH_VARIABLE = "HF_MULTIRATE"
"""Environment variable; ``off`` switches multirate training off, for a baseline run."""


SWITCH = ("on", "off")
MODES = (*SWITCH, "auto")
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
    "multirate_train_time": require_train_time,
    "multirate_train_time_counts": partial(require_choice, choices=COUNTS),
    "multirate_train_time_plan": require_path,
}
"""Field -> function that checks its value, unless the value is None."""


OTHER_FIELDS = (
    "multirate_record", "multirate_log", "multirate_train_time", "multirate_train_time_counts",
    "multirate_train_time_plan",
)  # fmt: skip
"""Fields that are not part of the configuration."""


@dataclass
class MultirateTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the settings of `MultirateTrainer`.

    The fields cover ladders and two rates. For all other configurations, ``multirate_config`` names a JSON file.

    To combine them with the arguments of another library, write
    ``@dataclass class Mine(TheirArguments, MultirateTrainingArguments)``. In this order their defaults are kept.

    Raises:
        ValueError: a value is out of range, or fields contradict each other or the file.
        TypeError: a value has the wrong type.
    """

    multirate: str = field(
        default="on",
        metadata={
            "help": "'off' is standard training: every parameter gets a gradient at every step. 'auto' chooses "
            "periods that reach multirate_speedup."
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
        metadata={"help": "Folder of a cache on disk (default: the folder activation_cache in output_dir)."},
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the order of bases: with this class first, the defaults of other arguments would be lost."""
        super().__init_subclass__(**kwargs)
        later_bases = cls.__mro__[cls.__mro__.index(MultirateTrainingArguments) + 1 :]
        other = next(base for base in later_bases if issubclass(base, TrainingArguments))
        if other is not TrainingArguments:
            raise TypeError(
                f"class {cls.__name__} names MultirateTrainingArguments before {other.__name__}, whose defaults "
                f"would be lost. Write class {cls.__name__}({other.__name__}, MultirateTrainingArguments)."
            )

    def __post_init__(self) -> None:
        """Build the configuration once, so that errors are raised before a model is loaded."""
        if isinstance(self.multirate, bool):  # YAML parses on and off as booleans
            self.multirate = "on" if self.multirate else "off"
        period = self.multirate_period
        if isinstance(period, str) and period.isascii() and period.isdigit():  # from the command line
            self.multirate_period = int(period)
        super().__post_init__()  # type: ignore[no-untyped-call]  # transformers annotates no __post_init__
        vars(self).update(self._checked_fields())
        self.to_multirate_config()
        self.to_train_time()

    def to_train_time(self) -> TrainTime | None:
        """The time to train for, from the fields; None without such a time.

        Raises:
            ValueError: the time or the plan cannot be read, or the fields contradict each other.
        """
        return train_time(
            self.multirate_train_time,
            self.multirate_train_time_counts,
            self.multirate_train_time_plan,
            # A trainer that gets the provisional number may copy the arguments.
            max_steps=-1 if self.max_steps == PROVISIONAL_STEPS else self.max_steps,
        )

    def to_multirate_config(self) -> MultirateConfig:
        """Build the configuration from the fields.

        Raises:
            ValueError: a value is out of range, or fields contradict each other.
            TypeError: a value has the wrong type.
        """
        fields = self._checked_fields()
        mode, speedup, path = (fields.pop(f"multirate{name}") for name in ("", "_speedup", "_config"))
        for name in OTHER_FIELDS:
            del fields[name]
        if speedup is not None and mode != "auto":
            raise ValueError(
                f"multirate_speedup is {speedup}, but multirate is {mode!r}. Set multirate='auto', or remove "
                "multirate_speedup."
            )
        given = {name.removeprefix("multirate_"): value for name, value in fields.items() if value is not None}
        _check_head_start(given)
        if mode == "off":
            return MultirateConfig.off(**{name: given[name] for name in WITHOUT_GROUPS if name in given})
        if mode == "auto":
            return _auto(speedup, path, given)
        if path is None:
            return _from_fields(given)
        if given:
            raise ValueError(
                f"multirate_config is {path!r} and multirate_{', multirate_'.join(given)} is given too. Put the "
                "values into the file, or remove multirate_config."
            )
        return MultirateConfig.from_json_file(path)

    def _checked_fields(self) -> dict[str, Any]:
        """The fields of this class by name, validated and converted to plain Python values."""
        values = vars(self)
        checked: dict[str, Any] = {"multirate": require_choice("multirate", values["multirate"], MODES)}
        checked["multirate_log"] = require_log(values["multirate_log"])
        for name, check in CHECKS.items():
            checked[name] = None if values[name] is None else check(name, values[name])
        return checked


@dataclass
class MultirateSeq2SeqTrainingArguments(Seq2SeqTrainingArguments, MultirateTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` with the fields of `MultirateTrainingArguments`."""


def _check_head_start(given: dict[str, Any]) -> None:
    settings: list[str] = [name for name in ("head_start_steps", "head_start_lr") if name in given]
    if settings and not given.get("head_start"):
        raise ValueError(
            f"multirate_{settings[0]} is {given[settings[0]]}, but there is no head start. Set multirate_head_start "
            f"to a number of batches, such as 16, or remove multirate_{settings[0]}."
        )


def _auto(speedup: float | None, path: str | None, given: dict[str, Any]) -> MultirateConfig:
    conflicts: list[str] = [name for name in ("fast", "period", "idle", "drift_steps") if name in given]
    conflicts += ["config"] if path is not None else []
    if conflicts:
        raise ValueError(
            f"multirate is 'auto', which chooses the periods, and multirate_{', multirate_'.join(conflicts)} is given "
            "too. Remove one of the two."
        )
    return MultirateConfig.auto(speedup, **given)


def _from_fields(given: dict[str, Any]) -> MultirateConfig:
    """A two-rate configuration if a fast part or a period is given, else a ladder."""
    fast = given.get("fast")
    periods = None if fast is None else parse_ladder(fast)
    if periods is None:
        two_rates = fast is not None or "period" in given
        return MultirateConfig.two_rate(**given) if two_rates else MultirateConfig.ladder(**given)
    if "period" in given:
        raise ValueError(f"multirate_fast is {fast!r}, which has a period for each part. Remove multirate_period.")
    return MultirateConfig.ladder(periods, **{name: value for name, value in given.items() if name != "fast"})


def switched_off() -> bool:
    """Whether the environment switches multirate training off.

    Raises:
        ValueError: the value of the variable is neither ``on`` nor ``off``.
    """
    value = os.environ.get(SWITCH_VARIABLE, "on")
    if value not in SWITCH:
        raise ValueError(f"the environment variable {SWITCH_VARIABLE} must be one of {SWITCH}, got {value!r}.")
    if value == "off":
        logger.warning("%s=off: standard training, the configured rate groups are ignored.", SWITCH_VARIABLE)
    return value == "off"
