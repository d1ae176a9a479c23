"""Flat fields for the command line; what they mean is validated by the configuration they build."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_multirate.config.auto_periods import require_speedup
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.consistency import CHOICES, CHOICES_OR_NONE
from hf_multirate.config.rate_group import IDLE_RULES, parse_ladder
from hf_multirate.config.validation import require_bool, require_choice, require_int, require_path, require_text


logger = logging.getLogger(__name__)


SWITCH_VARIABLE = "HF_MULTIRATE"
"""Environment variable that turns multirate training off if it is ``off``, for a run to compare with."""


SWITCH = ("on", "off")
MODES = (*SWITCH, "auto")
LOGS = ("brief", "all")


def require_log(value: Any) -> str:
    """What the logs have: one of `LOGS`.

    Raises:
        ValueError: it is another text.
        TypeError: it is no text.
    """
    return str(require_choice("multirate_log", value, LOGS))


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "multirate_speedup": require_speedup,
    "multirate_fast": require_text,
    "multirate_period": partial(require_int, least=1, unit="steps"),
    "multirate_idle": partial(require_choice, choices=IDLE_RULES),
    "multirate_drift_steps": partial(require_int, least=1, unit="steps"),
    "multirate_turns": partial(require_choice, choices=CHOICES["turns"]),
    "multirate_inactive_forward": partial(require_choice, choices=CHOICES_OR_NONE["inactive_forward"]),
    "multirate_inactive_dtype": partial(require_choice, choices=CHOICES_OR_NONE["inactive_dtype"]),
    "multirate_check_ranks_every": partial(require_int, least=0, unit="cycles"),
    "multirate_config": require_path,
    "multirate_record": require_bool,
}
"""What each field has to be, unless it is None."""


@dataclass
class MultirateTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the rate groups of `MultirateTrainer`.

    The fields cover two rates; ``multirate_config`` names a JSON file for everything else.

    For arguments of another library write ``@dataclass class Mine(TheirArguments, MultirateTrainingArguments)``, in
    this order: then their defaults stay.

    Raises:
        ValueError: a value is out of range, or a file and single fields contradict each other.
        TypeError: a value has another type.
    """

    multirate: str = field(
        default="on",
        metadata={
            "help": "'off' is standard training: every parameter gets a gradient at every step. 'auto' chooses the "
            "periods for multirate_speedup."
        },
    )
    multirate_speedup: float | None = field(
        default=None,
        metadata={"help": "With multirate='auto': work of a full step over the mean work of a step (default: 1.6)."},
    )
    multirate_fast: str | None = field(
        default=None,
        metadata={
            "help": "'ladder:1,2,4' is three equal parts by depth, the top one first, with these periods (the "
            "default). For two rates, the fast part: 'head', 'last:N', 'depth:F' or a regular expression."
        },
    )
    multirate_period: int | None = field(
        default=None,
        metadata={
            "help": "Steps between two gradients of the slow part, for two rates (default: 5). Without "
            "multirate_fast the fast part is depth:0.33."
        },
    )
    multirate_idle: str | None = field(
        default=None,
        metadata={"help": "Slow parts in between: 'freeze', 'drift' or 'long_step' (default: freeze)."},
    )
    multirate_drift_steps: int | None = field(
        default=None,
        metadata={
            "help": "With multirate_idle='drift': steps after a gradient at which slow parts drift (default: all)."
        },
    )
    multirate_turns: str | None = field(
        default=None,
        metadata={
            "help": "Step of each period at which slow parts get their gradient: 'drawn', or 'fixed' at the first, as "
            "in the paper (default: drawn)."
        },
    )
    multirate_inactive_forward: str | None = field(
        default=None,
        metadata={
            "help": "Mode of inactive modules: 'train', or 'eval' without dropout (default: train for SGD, else eval)."
        },
    )
    multirate_inactive_dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of inactive modules: 'bfloat16' or 'float16' (default: that of the run)."},
    )
    multirate_check_ranks_every: int | None = field(
        default=None,
        metadata={
            "help": "For debugging runs of several processes: at every N-th refresh of all groups, stop if their "
            "weights differ (default: 0, never)."
        },
    )
    multirate_log: str = field(
        default="brief",
        metadata={
            "help": "Figures beside each logged loss: 'brief' for a few, 'all' for those of each block too. The "
            "record of a run has all of them."
        },
    )
    multirate_config: str | None = field(
        default=None, metadata={"help": "JSON file with a whole MultirateConfig, instead of the fields above."}
    )
    multirate_record: bool | None = field(
        default=None,
        metadata={
            "help": "Whether a run leaves a record for 'hf-multirate report' (default: yes for all but standard "
            "training)."
        },
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases of which this class comes first: a dataclass would take its defaults, not theirs."""
        super().__init_subclass__(**kwargs)
        behind = cls.__mro__[cls.__mro__.index(MultirateTrainingArguments) + 1 :]
        theirs = next(base for base in behind if issubclass(base, TrainingArguments))
        if theirs is not TrainingArguments:
            raise TypeError(
                f"class {cls.__name__} names MultirateTrainingArguments before {theirs.__name__}, whose defaults "
                f"would be lost. Write class {cls.__name__}({theirs.__name__}, MultirateTrainingArguments)."
            )

    def __post_init__(self) -> None:
        """Build the configuration once, so that a mistake is found before a model is loaded."""
        if isinstance(self.multirate, bool):  # what YAML makes of on and off
            self.multirate = "on" if self.multirate else "off"
        super().__post_init__()  # type: ignore[no-untyped-call]  # transformers annotates no __post_init__
        vars(self).update(self._plain())
        self.to_multirate_config()

    def to_multirate_config(self) -> MultirateConfig:
        """The configuration that the fields describe.

        Raises:
            ValueError: a value is out of range, or fields contradict each other.
            TypeError: a value has another type.
        """
        fields = self._plain()
        mode, speedup, path = (fields.pop(f"multirate{name}") for name in ("", "_speedup", "_config"))
        del fields["multirate_record"], fields["multirate_log"]  # no parts of a configuration
        if speedup is not None and mode != "auto":
            raise ValueError(
                f"multirate_speedup is {speedup}, but multirate is {mode!r}: only 'auto' has a speed-up to keep to."
            )
        given = {name.removeprefix("multirate_"): value for name, value in fields.items() if value is not None}
        if mode == "off":
            return MultirateConfig.off()
        if mode == "auto":
            return _auto(speedup, path, given)
        if path is None:
            return _from_fields(given)
        if given:
            raise ValueError(
                f"multirate_config is {path!r} and multirate_{', multirate_'.join(given)} is given "
                "too: put the values into the file, or leave the file out."
            )
        return MultirateConfig.from_json_file(path)

    def _plain(self) -> dict[str, Any]:
        """The fields of this class by name, checked one by one, as plain values."""
        values = vars(self)
        found: dict[str, Any] = {"multirate": require_choice("multirate", values["multirate"], MODES)}
        found["multirate_log"] = require_log(values["multirate_log"])
        for name, check in CHECKS.items():
            found[name] = None if values[name] is None else check(name, values[name])
        return found


@dataclass
class MultirateSeq2SeqTrainingArguments(Seq2SeqTrainingArguments, MultirateTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` with the fields of `MultirateTrainingArguments`."""


def _auto(speedup: float | None, path: str | None, given: dict[str, Any]) -> MultirateConfig:
    found: list[str] = [name for name in ("fast", "period", "idle", "drift_steps") if name in given]
    found += ["config"] if path is not None else []
    if found:
        raise ValueError(
            f"multirate is 'auto', which chooses the periods, and multirate_{', multirate_'.join(found)} is "
            "given too: leave one of the two out."
        )
    return MultirateConfig.auto(speedup, **given)


def _from_fields(given: dict[str, Any]) -> MultirateConfig:
    """A ladder, or two rates if a fast part or a period is given."""
    fast = given.get("fast")
    periods = None if fast is None else parse_ladder(fast)
    if periods is None:
        two_rates = fast is not None or "period" in given
        return MultirateConfig.two_rate(**given) if two_rates else MultirateConfig.ladder(**given)
    if "period" in given:
        raise ValueError(f"multirate_fast is {fast!r}, which has a period for each part: leave out multirate_period.")
    return MultirateConfig.ladder(periods, **{name: value for name, value in given.items() if name != "fast"})


def switched_off() -> bool:
    """Whether the environment switches multirate training off.

    Raises:
        ValueError: the variable has another value than ``on`` or ``off``.
    """
    value = os.environ.get(SWITCH_VARIABLE, "on")
    if value not in SWITCH:
        raise ValueError(f"the environment variable {SWITCH_VARIABLE} must be one of {SWITCH}, got {value!r}.")
    if value == "off":
        logger.warning("%s=off: standard training, whatever rate groups were given.", SWITCH_VARIABLE)
    return value == "off"
