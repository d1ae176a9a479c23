"""Training arguments with flat fields for the command line, from which a configuration is built."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_multirate.config.config import NEW_HEAD, WITHOUT_GROUPS, MultirateConfig
from hf_multirate.config.rate_group import parse_ladder
from hf_multirate.trainer.argument_fields import SWITCH, MultirateFields
from hf_multirate.trainer.progress_schedule import PROVISIONAL_STEPS
from hf_multirate.trainer.train_time import TrainTime, train_time


logger = logging.getLogger(__name__)


SWITCH_VARIABLE = "HF_MULTIRATE"
"""Environment variable; ``off`` switches multirate training off, for a baseline run."""


OTHER_FIELDS = (
    "multirate_record", "multirate_log", "multirate_train_time", "multirate_train_time_counts",
    "multirate_train_time_plan",
)  # fmt: skip
"""Fields that are not part of the configuration."""


@dataclass
class MultirateTrainingArguments(MultirateFields, TrainingArguments):
    """`transformers.TrainingArguments` with the settings of `MultirateTrainer`.

    The fields cover ladders and two rates. For all other configurations, ``multirate_config`` names a JSON file.

    To combine them with the arguments of another library, write
    ``@dataclass class Mine(TheirArguments, MultirateTrainingArguments)``. In this order their defaults are kept.

    Raises:
        ValueError: a value is out of range, or fields contradict each other or the file.
        TypeError: a value has the wrong type.
    """

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
        configured = self.to_multirate_config().train_time
        if (configured, self.multirate_train_time, self.multirate_train_time_plan) != (None, None, None):
            self.to_train_time(configured)  # otherwise the configuration of the trainer may have a time

    def to_train_time(self, configured: str | None = None) -> TrainTime | None:
        """The time to train for, from the fields; None without such a time.

        Args:
            configured: ``train_time`` of the configuration.

        Raises:
            ValueError: the time or the plan cannot be read, the fields contradict each other, or both they and the
                configuration have a time.
        """
        time, name = self.multirate_train_time, "multirate_train_time"
        if configured is not None:
            if time is not None:
                raise ValueError(
                    f"multirate_train_time is {time!r}, and train_time of the configuration is {configured!r}. Remove "
                    "one of the two."
                )
            time, name = configured, "train_time of the configuration"
        return train_time(
            time,
            self.multirate_train_time_counts,
            self.multirate_train_time_plan,
            # A trainer that gets the provisional number may copy the arguments.
            max_steps=-1 if self.max_steps == PROVISIONAL_STEPS else self.max_steps,
            name=name,
        )

    def to_multirate_config(self) -> MultirateConfig:
        """Build the configuration from the fields.

        Raises:
            ValueError: a value is out of range, or fields contradict each other.
            TypeError: a value has the wrong type.
        """
        fields = self._configuration_fields()
        mode, speedup, path = (fields.pop(f"multirate{name}") for name in ("", "_speedup", "_config"))
        if speedup is not None and mode not in ("auto", "off"):
            raise ValueError(
                f"multirate_speedup is {speedup}, but multirate is {mode!r}. Set multirate='auto', or remove "
                "multirate_speedup."
            )
        given = {name.removeprefix("multirate_"): value for name, value in fields.items() if value is not None}
        if path is not None and mode in SWITCH:
            config = _from_file(path, given)
            return config.without_groups() if mode == "off" else config
        _check_head_start(NEW_HEAD | given if mode == "new_head" else given)
        if mode == "off":
            return MultirateConfig.off(**{name: given[name] for name in WITHOUT_GROUPS if name in given})
        if mode == "auto":
            return _auto(speedup, path, given)
        return _new_head(path, given) if mode == "new_head" else _from_fields(given)

    def _configuration_fields(self) -> dict[str, Any]:
        return {name: value for name, value in self._checked_fields().items() if name not in OTHER_FIELDS}

    def require_no_configuration(self) -> None:
        """Check that no field belongs to a configuration, because the trainer got one.

        Raises:
            ValueError: there is such a field, which would be ignored.
        """
        if given := self._given():
            raise ValueError(
                f"the trainer got multirate=, and its arguments have {', '.join(given)}, which would be ignored. Give "
                "one of the two. For a baseline run of this script, set the environment variable "
                f"{SWITCH_VARIABLE}=off."
            )

    def require_no_groups(self, what: str) -> None:
        """Check that no field belongs to a configuration, because the trainer has none.

        Args:
            what: What the trainer trains.

        Raises:
            ValueError: there is such a field, which would be ignored.
        """
        times = ("multirate_train_time", "multirate_train_time_plan")
        given = [*self._given(), *(f"{name}={vars(self)[name]!r}" for name in times if vars(self)[name] is not None)]
        if given:
            raise ValueError(f"the trainer is for {what}: it would ignore {', '.join(given)}. Remove these arguments.")

    def _given(self) -> list[str]:
        unset = {"multirate": "on"}
        fields = self._configuration_fields().items()
        return [f"{name}={value!r}" for name, value in fields if value != unset.get(name)]


@dataclass
class MultirateSeq2SeqTrainingArguments(Seq2SeqTrainingArguments, MultirateTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` with the fields of `MultirateTrainingArguments`."""


def _from_file(path: str, given: dict[str, Any]) -> MultirateConfig:
    if given:
        raise ValueError(
            f"multirate_config is {path!r}, and multirate_{', multirate_'.join(given)} {_is(given)} given too. Put "
            "the values into the file, or remove multirate_config."
        )
    return MultirateConfig.from_json_file(path)


def _check_head_start(given: dict[str, Any]) -> None:
    settings: list[str] = [name for name in ("head_start_steps", "head_start_lr") if name in given]
    if settings and not given.get("head_start"):
        raise ValueError(
            f"multirate_{settings[0]} is {given[settings[0]]}, but there is no head start. Set multirate_head_start "
            f"to a number of batches, such as 16, or remove multirate_{settings[0]}."
        )


def _auto(speedup: float | None, path: str | None, given: dict[str, Any]) -> MultirateConfig:
    _check_mode("'auto', which chooses the periods", ("fast", "period", "idle", "drift_steps"), path, given)
    return MultirateConfig.auto(speedup, **given)


def _new_head(path: str | None, given: dict[str, Any]) -> MultirateConfig:
    _check_mode("'new_head', which freezes the lower blocks", ("period", "idle", "drift_steps"), path, given)
    if parse_ladder(given.get("fast", "")) is not None:
        raise ValueError(
            f"multirate is 'new_head', which trains one part, and multirate_fast is {given['fast']!r}. Give one part, "
            "such as last:2, or remove multirate='new_head'."
        )
    return MultirateConfig.new_head(**given)


def _check_mode(mode: str, fields: Sequence[str], path: str | None, given: dict[str, Any]) -> None:
    """Raise an error if one of ``fields`` or a file is given, which the mode leaves no place for."""
    conflicts = [name for name in fields if name in given] + (["config"] if path is not None else [])
    if conflicts:
        raise ValueError(
            f"multirate is {mode}, and multirate_{', multirate_'.join(conflicts)} {_is(conflicts)} given too. Remove "
            "one of the two."
        )


def _is(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"


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
