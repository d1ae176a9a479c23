"""Multirate configurations by names that results and tables use: the one file that knows their settings.

Recorded results name ``freeze``, ``drift`` and ``drift 1``, not the arguments of the package, so they stay valid when
those change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hf_multirate import MultirateConfig, RateGroup


IDLE: dict[str, dict[str, Any]] = {
    "freeze": {"idle": "freeze"},
    "drift": {"idle": "drift"},
    "drift 1": {"idle": "drift", "drift_steps": 1},
    "hold": {"idle": "long_step"},
}
"""Idle rules of slow groups: no update between two gradients, drift at all steps, drift at the first one, or one step
at the gradient that is as long as the period."""

DTYPES = ("bfloat16", "float16")
"""Precisions in which inactive modules can run."""


def two_rate(
    fast: str, period: int, idle: str = "drift", inactive_dtype: str | None = None, turns: str = "fixed",
    **settings: Any,
) -> MultirateConfig:  # fmt: skip
    """``fast`` gets a gradient at every step, all else at one of ``period`` steps; with other ``settings``."""
    groups = [_group("fast", fast, 1, idle), _group("slow", ".*", period, idle)]
    return MultirateConfig(groups, inactive_dtype=inactive_dtype, turns=turns, **settings)


def ladder(
    periods: Sequence[int], idle: str = "drift", inactive_dtype: str | None = None, turns: str = "fixed"
) -> MultirateConfig:
    """Equal parts by depth with these periods, from the top down."""
    parts = [_group(f"part {i}", f"part:{i}/{len(periods)}", k, idle) for i, k in enumerate(periods, 1)]
    return MultirateConfig(parts, inactive_dtype=inactive_dtype, turns=turns)


def automatic(speedup: float, turns: str = "fixed") -> MultirateConfig:
    """Periods chosen for a speed-up."""
    return MultirateConfig.auto(speedup, turns=turns)


def off() -> MultirateConfig:
    """Standard training."""
    return MultirateConfig.off()


def never(
    fast: str, cache: str | None = None, folder: Path | None = None, forward: str | None = None
) -> MultirateConfig:
    """``fast`` gets a gradient at every step, all else never.

    Args:
        fast: What is trained.
        cache: Where outputs of frozen blocks are kept, if they are.
        folder: Folder of a cache on disk.
        forward: Mode of frozen modules; ``train`` is that of freezing by hand, with dropout.
    """
    place = str(folder) if cache == "disk" else None
    cached = {"activation_cache": cache, "activation_cache_dir": place}
    return MultirateConfig.two_rate(fast, "never", inactive_forward=forward, **cached)


def published(
    fast: str = "head", period: int = 5, idle: str = "drift", slow_scale: float = 1.0, buffers: str = "update"
) -> MultirateConfig:
    """The setting of the paper for transfer learning.

    Args:
        fast: What gets a gradient at every step.
        period: Steps between two gradients of all else.
        idle: A key of `IDLE`.
        slow_scale: Factor on the learning rate of the slow group.
        buffers: Whether running statistics of the slow group are those of all steps (``update``), or of the steps at
            which it has a gradient (``freeze``).
    """
    config = MultirateConfig.paper(fast, period, inactive_buffers=buffers, **IDLE[idle])
    first, slow = config.groups
    return replace(config, groups=(first, replace(slow, lr_scale=slow_scale)))


def lora_plus(ratio: float) -> MultirateConfig:
    """Standard training of adapters, with a learning rate of their matrices B that is ``ratio`` times as high."""
    return MultirateConfig([RateGroup("B", "lora_B", lr_scale=ratio), RateGroup("rest", ".*")])


def given(config: MultirateConfig) -> dict[str, Any]:
    """The fields of ``config`` that differ from their defaults, as plain values; groups are always among them.

    Results keep these, so that they stay comparable when the package gets a new field.
    """
    return _differing(config.to_dict(), MultirateConfig().to_dict() | {"groups": None})


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in values.items() if value != defaults[name]}
    group = asdict(RateGroup("any", ".*")) | {"name": None, "patterns": None}
    if "groups" in found:
        found["groups"] = [_differing(one, group) for one in values["groups"]]
    if "stage_list" in found:
        found["stage_list"] = [
            {**stage, "config": _differing(stage["config"], defaults)} for stage in values["stage_list"]
        ]
    return found


def _group(name: str, patterns: str, period: int, idle: str) -> RateGroup:
    return RateGroup(name, patterns, period, **({} if period == 1 else IDLE[idle]))
