"""What the user asks for: rate groups and how often each of them gets a gradient.

Everything here is a plain, frozen value that knows neither torch nor a model. Whether a pattern
matches anything is found out in ``partition.py``, where there are parameters to match.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.consistency import check_auto_periods, check_groups, plain_settings
from hf_multirate.config.random_subset import RandomSubset
from hf_multirate.config.rate_group import RateGroup, depth_ladder
from hf_multirate.config.schedule import Schedule
from hf_multirate.config.serialization import build, read_json, to_plain, with_groups
from hf_multirate.config.validation import require_items, require_text, shown


DEFAULT_PERIODS = (1, 2, 4)
"""Periods of the default: three parts of equal depth, the top one first."""


@dataclass(frozen=True)
class MultirateConfig:
    """The rate groups of a run. A parameter belongs to the first group that matches it.

    ``MultirateConfig()`` is ``MultirateConfig.ladder((1, 2, 4))``.

    Attributes:
        groups: The rate groups; at least one has period 1.
        drift_factor: Factor on the drift of idle groups, on top of their learning rate; 1 is Algorithm 1. ``auto``,
            the default, is 1 for SGD; for other optimizers the factor adapts to each parameter: see
            `hf_multirate.optim.update_group`.
        on_missing_gradient: What to do when a parameter gets no gradient at its turn: ``warn`` skips it, as Trainer
            does, and warns; ``error`` ends training if it had one before. See
            `hf_multirate.backward.missing_gradients`.
        inactive_forward: Mode in which modules without a live parameter run forward at fast steps: ``train``, as in
            Trainer, or ``eval``, without dropout (batch norm stays as in Trainer). None, the default, is ``train``
            for SGD, which then is Algorithm 1 to the letter, and ``eval`` for other optimizers.
        inactive_buffers: What happens to buffers of modules without a live parameter, such as the running statistics
            of batch norm: ``update``, as in Trainer, or ``freeze``, which puts them back after a fast-only step.
        inactive_dtype: Precision in which modules without a live parameter run forward at fast-only steps of a run in
            float32, ``bfloat16`` or ``float16``; None, the default, is that of the run. One whose input requires
            a gradient stays as it is, so gradients are as precise as ever, of a loss whose features are rounded.
        group_fn: Function of a parameter's name and the parameter that returns the name of its rate group, or None to
            leave it to the patterns. It is not part of `to_json`, only its name is.
        check_ranks_every: For debugging runs of several processes: every so many refreshes of all groups, stop if
            their weights, steps or levels of drift differ. 0 never looks.
        turns: Position of the gradient step of a slow group within each of its periods. ``drawn``, the default, draws
            it for each period, nested where periods divide each other, so that every group meets all of the data
            whatever its order. ``fixed`` is always the first step, as in the paper.
        turns_seed: Seed of the drawn positions; equal in all processes of a run, and when it is resumed.
        auto_periods: Speed-up for which periods are chosen when the model is known; None for the periods of
            ``groups``. With it, ``groups`` go from the top of the model down and have period 1, or are empty for one
            group a block.

    Raises:
        ValueError: a value is out of range, two groups share a name, a group has no pattern, or none has period 1.
    """

    groups: Sequence[RateGroup] = tuple(depth_ladder(DEFAULT_PERIODS))
    inactive_forward: str | None = None
    inactive_buffers: str = "update"
    inactive_dtype: str | None = None
    drift_factor: float | str = "auto"
    on_missing_gradient: str = "warn"
    group_fn: Callable[[str, Any], str | None] | None = None
    check_ranks_every: int = 0
    turns: str = "drawn"
    turns_seed: int = 0
    auto_periods: AutoPeriods | None = None

    def __post_init__(self) -> None:
        """Validate, and make values plain ones and ``groups`` a tuple."""
        groups = require_items("groups", self.groups, "a list of RateGroup objects")
        for name, value in {**plain_settings(vars(self)), "groups": groups}.items():
            object.__setattr__(self, name, value)
        if groups or self.auto_periods is None:
            check_groups(groups, self.group_fn)
        check_auto_periods(groups, self.auto_periods)

    @classmethod
    def two_rate(
        cls,
        fast: str | Sequence[str] = "depth:0.33",
        period: int = 5,
        idle: str = "freeze",
        drift_steps: int | None = None,
        **settings: Any,
    ) -> MultirateConfig:
        """The common case: a group ``fast`` with a gradient at every step, and ``slow`` for all the rest.

        ``drift_steps`` is that of ``slow``, and ``settings`` are further fields of `MultirateConfig`.
        """
        groups = (RateGroup("fast", fast, 1), RateGroup("slow", ".*", period, idle, drift_steps))
        return cls(groups, **settings)

    @classmethod
    def paper(cls, fast: str | Sequence[str] = "head", period: int = 5, **settings: Any) -> MultirateConfig:
        """The setting that the paper published for transfer learning, to the letter.

        Slow parameters get a gradient at the first step of each period and drift in full in between, with dropout as
        at any other step. ``settings`` are further fields of `MultirateConfig`.
        """
        published = {"idle": "drift", "drift_factor": 1.0, "inactive_forward": "train", "turns": "fixed"}
        return cls.two_rate(fast, period, **{**published, **settings})

    @classmethod
    def ladder(
        cls,
        periods: Sequence[int] = DEFAULT_PERIODS,
        idle: str = "freeze",
        drift_steps: int | None = None,
        **settings: Any,
    ) -> MultirateConfig:
        """The stack of blocks in equal parts from the top, one for each of ``periods``.

        The first part has the head and whatever follows the blocks, the last one the embeddings. With periods
        1, 2, 4, 8 backward goes to the bottom at every eighth step, and as deep as in the ruler sequence in between.

        Args:
            periods: Steps between two gradients of each part, from the top; the first is 1.
            idle: What the parts do in between.
            drift_steps: Steps after a gradient at which they drift, with ``idle="drift"``; None is all of them.
            **settings: Further fields of `MultirateConfig`.
        """
        periods = require_items("periods of a ladder", periods, "a list of integers, as in [1, 2, 4]")
        if not periods:
            raise ValueError("periods of a ladder must be at least one integer, as in [1, 2, 4], got none.")
        return cls(depth_ladder(periods, idle, drift_steps), **settings)

    @classmethod
    def random_subsets(
        cls, period: int = 5, subset: RandomSubset | None = None, patterns: str | Sequence[str] = ".*", **settings: Any
    ) -> MultirateConfig:
        """Regularisation: random subsets of the weights that take turns at being zero for a cycle.

        Args:
            period: Steps of a cycle: a subset is zero at all but the first.
            subset: What is drawn; None is ``RandomSubset()``.
            patterns: Where it is drawn; all other parameters get a gradient at every step as ever.
            **settings: Further fields of `MultirateConfig`.
        """
        drawn = RateGroup("subset", patterns, period, random_subset=subset or RandomSubset())
        return cls((drawn,) if drawn.patterns == (".*",) else (drawn, RateGroup("rest", ".*", 1)), **settings)

    @classmethod
    def auto(
        cls,
        speedup: float | None = None,
        blocks: Sequence[str] = (),
        max_period: int = 16,
        **settings: Any,
    ) -> MultirateConfig:
        """Periods that are chosen for a speed-up when the model is known, longer ones for deeper blocks.

        Args:
            speedup: Work of a full step over the mean work of a step; None is 1.6.
            blocks: Regular expressions for the names of parameters, one for each block in the order of the forward
                pass; without any, blocks are those of the model.
            max_period: The longest period, a power of two.
            **settings: Further fields of `MultirateConfig`.

        Raises:
            TypeError: ``blocks`` is no sequence, or one string.
        """
        blocks = require_items("blocks", blocks, "a list of regular expressions, one for each block")
        patterns = [require_text("each of the blocks", block) for block in blocks]
        groups = tuple(RateGroup(pattern, pattern, 1) for pattern in reversed(patterns))
        return cls(groups, auto_periods=AutoPeriods(speedup, max_period), **settings)

    @classmethod
    def off(cls) -> MultirateConfig:
        """One group that gets a gradient at every step: standard training."""
        return cls((RateGroup("all", ".*", 1),))

    @cached_property
    def schedule(self) -> Schedule:
        """Which groups are live, and get a gradient, at which step."""
        return self._schedule(group.gradient_period for group in self.groups)

    def _schedule(self, periods: Iterable[int]) -> Schedule:
        return Schedule(tuple(periods), self.turns, self.turns_seed)

    @cached_property
    def cycles(self) -> Schedule:
        """Which groups are refreshed at which step: as `schedule`, but at a draw for a group with a random subset."""
        return self._schedule(group.period for group in self.groups)

    @cached_property
    def is_standard_training(self) -> bool:
        """Whether every step is that of standard training."""
        redrawn = any(
            group.random_subset is not None and group.random_subset.redraw == "step" for group in self.groups
        )
        scaled = any(group.lr_scale != 1.0 for group in self.groups)
        return self.auto_periods is None and self.cycles.cycle == 1 and not redrawn and not scaled

    @cached_property
    def skips_backward(self) -> bool:
        """Whether any step may leave some parameters without a gradient."""
        return self.auto_periods is not None or self.schedule.cycle > 1

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values that `from_dict` turns back into an equal config."""
        return to_plain(self, self.group_fn)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultirateConfig:
        """The inverse of `to_dict`; unknown or missing keys, and a ``group_fn``, raise `ValueError`.

        A value of another type raises `TypeError`.
        """
        return build(cls, with_groups(values))

    def to_json(self) -> str:
        """The config as a JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json_file(cls, path: str | Path) -> MultirateConfig:
        """Read a config from a file that holds the text of `to_json`.

        Raises:
            ValueError: there is no such file, it holds no JSON, or no valid config.
            TypeError: a value has another type, or ``path`` is no path.
        """
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"multirate config {shown(str(path))}: {error}") from error
