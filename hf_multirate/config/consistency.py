"""Validation of a config: single settings, and rate groups compared with each other."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.durations import require_duration
from hf_multirate.config.rate_group import PRESETS, RateGroup
from hf_multirate.config.schedule import TURNS
from hf_multirate.config.validation import (
    require_choice,
    require_int,
    require_number,
    require_path,
    require_positive,
    shown,
    wrong_type,
)


INTEGERS = (
    ("check_ranks_every", "cycles", 0),
    ("turns_seed", "", 0),
    ("head_start", "batches", 0),
    ("head_start_steps", "steps", 1),
)
"""Integer settings: name, unit, smallest value."""

CHOICES = {"on_missing_gradient": ("error", "warn"), "inactive_buffers": ("update", "freeze"), "turns": TURNS}
CHOICES_OR_NONE = {
    "inactive_forward": ("train", "eval"),
    "inactive_dtype": ("bfloat16", "float16"),
    "activation_cache": ("memory", "disk"),
}
"""Settings with a fixed set of values; those of `CHOICES_OR_NONE` may also be None."""


def check_groups(groups: Sequence[RateGroup], group_fn: object) -> None:
    """Check the rate groups of a config.

    Raises:
        TypeError: an item is not a rate group, or ``group_fn`` is not a function of two arguments.
        ValueError: two groups share a name, a group has no pattern, or none has period 1.
    """
    for group in groups:
        if not isinstance(group, RateGroup):
            wrong_type("each of the groups", "a RateGroup", group)
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"rate groups need different names, got {shown(names)}.")
    for group in groups:
        if not group.patterns and group_fn is None:
            raise ValueError(
                f"rate group {group.name!r} has no pattern: give a regular expression or a preset ({PRESETS})."
            )
    if not any(group.gradient_period == 1 for group in groups):
        raise ValueError(
            f"no rate group has period 1, got periods {[group.period for group in groups]}: at some steps no "
            "parameter would get a gradient. Give the fastest group period 1."
        )
    if group_fn is not None and not _accepts_two_arguments(group_fn):
        wrong_type("group_fn", "a function of a name and a parameter", group_fn)


def _accepts_two_arguments(function: object) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind("name", None)
    except TypeError:
        return False
    except ValueError:  # functions in C may have no signature
        return True
    return True


def check_auto_periods(groups: Sequence[RateGroup], auto_periods: AutoPeriods | None) -> None:
    """Check that automatic periods and rate groups fit together.

    Raises:
        TypeError: ``auto_periods`` is not an `AutoPeriods`.
        ValueError: a group has a period, an idle rule or a random subset.
    """
    if auto_periods is None:
        return
    if not isinstance(auto_periods, AutoPeriods):
        wrong_type("auto_periods", "an AutoPeriods, as in MultirateConfig.auto(speedup=2.0)", auto_periods)
    unsupported = [
        group.name
        for group in groups
        if group.period != 1 or group.idle != "freeze" or group.random_subset is not None
    ]
    if unsupported:
        raise ValueError(
            f"rate groups {unsupported} have a period, an idle rule or a random subset, which automatic periods do "
            "not support: remove these settings, or remove auto_periods."
        )


def check_activation_cache(values: Mapping[str, Any]) -> None:
    """Check that the settings of the activation cache fit together.

    Raises:
        ValueError: the frozen blocks would run in training mode or in another precision, or there is a folder without
            a cache on disk.
    """
    cache, folder = values["activation_cache"], values["activation_cache_dir"]
    if cache is not None and values["inactive_forward"] == "train":
        raise ValueError(
            f"activation_cache={cache!r} keeps outputs without dropout, but inactive_forward is 'train'. Remove "
            "inactive_forward, or remove activation_cache."
        )
    if cache is not None and values["inactive_dtype"] is not None:
        raise ValueError(
            f"activation_cache={cache!r} keeps outputs in the precision of the run, but inactive_dtype is "
            f"{values['inactive_dtype']!r}. Remove inactive_dtype, or use bf16=True of the training arguments."
        )
    if folder is not None and cache != "disk":
        raise ValueError(
            f"activation_cache_dir is {shown(folder)}, but activation_cache is {cache!r}. Set activation_cache="
            "'disk', or remove activation_cache_dir."
        )


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a config that are single values, and return them as plain values.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of range.
    """
    settings: dict[str, Any] = {}
    for name, unit, least in INTEGERS:
        settings[name] = require_int(name, values[name], least=least, unit=unit)
    for name, choices in CHOICES.items():
        settings[name] = require_choice(name, values[name], choices)
    for name, choices in CHOICES_OR_NONE.items():
        settings[name] = require_choice(name, values[name], choices, or_none=True)
    settings["head_lr_scale"] = require_positive("head_lr_scale", values["head_lr_scale"])
    settings["lr_decay"] = require_decay("lr_decay", values["lr_decay"])
    rate = values["head_start_lr"]
    settings["head_start_lr"] = None if rate is None else require_positive("head_start_lr", rate)
    settings["activation_cache_gb"] = require_positive("activation_cache_gb", values["activation_cache_gb"])
    folder = values["activation_cache_dir"]
    settings["activation_cache_dir"] = None if folder is None else require_path("activation_cache_dir", folder)
    time = values["train_time"]
    settings["train_time"] = None if time is None else require_duration("train_time", time)
    settings["drift_factor"] = "auto" if values["drift_factor"] == "auto" else _drift_factor(values["drift_factor"])
    return settings


def require_decay(name: str, value: Any) -> float:
    """Check a learning-rate decay, a number above 0 and up to 1.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is out of range.
    """
    decay = require_positive(name, value)
    if decay > 1:
        raise ValueError(f"{name} must be a number above 0 and up to 1, got {decay}.")
    return decay


def _drift_factor(value: Any) -> float:
    wanted = "a number between 0 and 1, or 'auto'"
    factor = require_number("drift_factor", value, wanted)
    if not 0 <= factor <= 1:
        raise ValueError(f"drift_factor must be {wanted}, got {factor}.")
    return factor
