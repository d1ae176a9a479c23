"""Flat fields for the command line; what they mean is validated by the configuration they build."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_multirate.config import MultirateConfig
from hf_multirate.groups import parse_ladder


SWITCH = ("on", "off")
MODES = (*SWITCH, "auto")
LOGS = ("brief", "all")


def require_log(value: Any) -> None:
    """Raise `ValueError` if ``value`` is no setting of the logs."""
    if value not in LOGS:
        raise ValueError(f"multirate_log must be one of {LOGS}, got {value!r}.")


@dataclass
class MultirateTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the rate groups of `MultirateTrainer`.

    The fields cover two rates; ``multirate_config`` names a JSON file for everything else.

    For arguments of another library write ``@dataclass class Mine(TheirArguments, MultirateTrainingArguments)``, in
    this order: then their defaults stay.

    Raises:
        ValueError: a value is out of range, or a file and single fields contradict each other.
    """

    multirate: str = field(
        default="on",
        metadata={
            "help": "'off' is plain training: every parameter gets a gradient at every step. 'auto' finds periods "
            "while training, within multirate_speedup."
        },
    )
    multirate_speedup: float | None = field(
        default=None,
        metadata={"help": "With multirate='auto': work of a full step over the mean work of a step (default: 1.6)."},
    )
    multirate_fast: str | None = field(
        default=None,
        metadata={
            "help": "Fast part: 'head', 'last:N', 'depth:F' or a regular expression (default: depth:0.33). "
            "'ladder:1,2,4' is three equal parts by depth, the top one first, with these periods."
        },
    )
    multirate_period: int | None = field(
        default=None, metadata={"help": "Steps between two gradients of the slow part (default: 5)."}
    )
    multirate_idle: str | None = field(
        default=None,
        metadata={"help": "Slow part in between: 'drift', 'hold' or 'zero' (default: drift)."},
    )
    multirate_drift_steps: int | None = field(
        default=None,
        metadata={
            "help": "Idle steps after a gradient at which slow parts drift, before they stand still; 0 for none "
            "(default: all)."
        },
    )
    multirate_idle_mode: str | None = field(
        default=None,
        metadata={
            "help": "Mode of idle modules: 'train', or 'eval' without dropout (default: train for SGD, else eval)."
        },
    )
    multirate_idle_dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of idle modules: 'bfloat16' or 'float16' (default: that of the run)."},
    )
    multirate_idle_compile: bool | None = field(
        default=None, metadata={"help": "Run idle modules through torch.compile (default: no)."}
    )
    multirate_refresh_chunks: int | None = field(
        default=None,
        metadata={
            "help": "Parts of a batch that go one after the other where slow groups get a gradient (default: 1)."
        },
    )
    multirate_check_ranks: int | None = field(
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
        require_log(self.multirate_log)
        self.to_multirate_config()

    def to_multirate_config(self) -> MultirateConfig:
        """The configuration that the fields describe."""
        if self.multirate not in MODES:
            raise ValueError(f"multirate must be one of {MODES}, got {self.multirate!r}.")
        if self.multirate_speedup is not None and self.multirate != "auto":
            raise ValueError(
                f"multirate_speedup is {self.multirate_speedup}, but multirate is {self.multirate!r}: only 'auto' "
                "has a speed-up to keep to."
            )
        given = self._given()
        if self.multirate == "off":
            return MultirateConfig.off()
        if self.multirate == "auto":
            return self._auto(given)
        if self.multirate_config is None:
            periods = parse_ladder(self.multirate_fast or "")
            return MultirateConfig.two_rate(**given) if periods is None else _ladder(periods, **given)
        if given:
            raise ValueError(
                f"multirate_config is {self.multirate_config!r} and multirate_{', multirate_'.join(given)} is given "
                "too: put the values into the file, or leave the file out."
            )
        return MultirateConfig.from_json_file(self.multirate_config)

    def _given(self) -> dict[str, Any]:
        """The fields that are not left open, but for those that say which kind of configuration it is."""
        fields: dict[str, Any] = {
            "fast": self.multirate_fast,
            "period": self.multirate_period,
            "idle": self.multirate_idle,
            "drift_steps": self.multirate_drift_steps,
            "idle_mode": self.multirate_idle_mode,
            "idle_dtype": self.multirate_idle_dtype,
            "idle_compile": self.multirate_idle_compile,
            "refresh_chunks": self.multirate_refresh_chunks,
            "check_ranks": self.multirate_check_ranks,
        }
        return {key: value for key, value in fields.items() if value is not None}

    def _auto(self, given: dict[str, Any]) -> MultirateConfig:
        found: list[str] = [name for name in ("fast", "period", "idle", "drift_steps") if name in given]
        found += ["config"] if self.multirate_config is not None else []
        if found:
            raise ValueError(
                f"multirate is 'auto', which finds periods by itself, and multirate_{', multirate_'.join(found)} is "
                "given too: leave one of the two out."
            )
        return MultirateConfig.auto(self.multirate_speedup, **given)


@dataclass
class MultirateSeq2SeqTrainingArguments(Seq2SeqTrainingArguments, MultirateTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` with the fields of `MultirateTrainingArguments`."""


def _ladder(periods: list[int], fast: str, period: int | None = None, **settings: Any) -> MultirateConfig:
    if period is not None:
        raise ValueError(f"multirate_fast is {fast!r}, which has a period for each part: leave out multirate_period.")
    return MultirateConfig.ladder(periods, **settings)
