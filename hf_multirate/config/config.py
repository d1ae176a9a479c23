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

from hf_multirate.config.budget import Budget
from hf_multirate.config.consistency import check_budget, check_groups, plain_settings
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Schedule
from hf_multirate.config.serialization import build, read_json, to_plain, with_groups
from hf_multirate.config.subset import RandomSubset
from hf_multirate.config.validation import require_items, require_text, shown


@dataclass(frozen=True)
class MultirateConfig:
    """The rate groups of a run. A parameter belongs to the first group that matches it.

    Attributes:
        groups: The rate groups; at least one has period 1.
        initial_full_steps: Steps at the start of training at which every group gets a gradient.
        drift_scale: Factor on the drift of idle groups, on top of their learning rate; 1 is Algorithm 1. None, the
            default, is 1 for SGD; for other optimizers each parameter finds its own: see
            `hf_multirate.optim.update_group`.
        missing_gradients: What to do when a parameter gets no gradient at its turn: ``warn`` skips it, as Trainer
            does, and warns; ``error`` ends training if it had one before. See
            `hf_multirate.backward.missing_gradients`.
        idle_mode: Mode in which modules without a live parameter run forward at fast-only steps: ``train``, as in
            Trainer, or ``eval``, without dropout (batch norm stays as in Trainer). None, the default, is ``train``
            for SGD, which then is Algorithm 1 to the letter, and ``eval`` for other optimizers.
        idle_buffers: What happens to buffers of modules without a live parameter, such as the running statistics of
            batch norm: ``update``, as in Trainer, or ``freeze``, which puts them back after a fast-only step.
        idle_dtype: Precision in which modules without a live parameter run forward at fast-only steps of a run in
            float32, ``bfloat16`` or ``float16``; None, the default, is that of the run. One whose input requires
            a gradient stays as it is, so gradients are as precise as ever, of a loss whose features are rounded.
        idle_compile: Whether such modules run through ``torch.compile`` at fast-only steps. Each new shape of a batch
            may compile once more: pad to a few lengths (``pad_to_multiple_of`` of the collator).
        group_of: Function of a parameter's name and the parameter that returns the name of its rate group, or None to
            leave it to the patterns. It is not part of `to_json`, only its name is.
        check_ranks: For debugging runs of several processes: at every ``check_ranks``-th refresh of all groups, stop
            if their weights, steps or levels of drift differ. 0 never looks.
        turns: Position of the gradient step of a slow group within each of its periods. ``drawn``, the default, draws
            it for each period, nested where periods divide each other, so that every group meets all of the data
            whatever its order. ``fixed`` is always the first step, as in the paper.
        turns_seed: Seed of the drawn positions; equal in all processes of a run, and when it is resumed.
        budget: What is asked for where periods are found while training; None for those of ``groups``. With it the
            groups go from the top of the model down, with period 1; without any there is one for each block.

    Raises:
        ValueError: a value is out of range, two groups share a name, a group has no pattern, or none has period 1.
    """

    groups: Sequence[RateGroup]
    initial_full_steps: int = 0
    drift_scale: float | None = None
    missing_gradients: str = "warn"
    idle_mode: str | None = None
    idle_buffers: str = "update"
    idle_dtype: str | None = None
    idle_compile: bool = False
    group_of: Callable[[str, Any], str | None] | None = None
    check_ranks: int = 0
    turns: str = "drawn"
    turns_seed: int = 0
    budget: Budget | None = None

    def __post_init__(self) -> None:
        """Validate, and make values plain ones and ``groups`` a tuple."""
        groups = require_items("groups", self.groups, "a list of RateGroup objects")
        for name, value in {**plain_settings(vars(self)), "groups": groups}.items():
            object.__setattr__(self, name, value)
        if groups or self.budget is None:
            check_groups(groups, self.group_of)
        check_budget(groups, self.budget)

    @classmethod
    def two_rate(
        cls,
        fast: str | Sequence[str] = "depth:0.33",
        period: int = 5,
        idle: str = "drift",
        drift_steps: int | None = None,
        **settings: Any,
    ) -> MultirateConfig:
        """The common case: a group ``fast`` with a gradient at every step, and ``slow`` for all the rest.

        ``drift_steps`` is that of ``slow``, and ``settings`` are further fields of `MultirateConfig`.
        """
        groups = (RateGroup("fast", fast, 1), RateGroup("slow", ".*", period, idle, drift_steps=drift_steps))
        return cls(groups, **settings)

    @classmethod
    def paper(cls, fast: str | Sequence[str] = "head", period: int = 5, **settings: Any) -> MultirateConfig:
        """The setting that the paper published for transfer learning, to the letter.

        Slow parameters get a gradient at the first step of each period and drift in full in between, with dropout as
        at any other step. ``settings`` are further fields of `MultirateConfig`.
        """
        published = {"drift_scale": 1.0, "idle_mode": "train", "turns": "fixed"}
        return cls.two_rate(fast, period, **{**published, **settings})

    @classmethod
    def ladder(
        cls, periods: Sequence[int], idle: str = "drift", drift_steps: int | None = None, **settings: Any
    ) -> MultirateConfig:
        """The stack of blocks in equal parts from the top, one for each of ``periods``.

        The first part has the head and whatever follows the blocks, the last one the embeddings. With periods
        1, 2, 4, 8 backward goes to the bottom at every eighth step, and as deep as in the ruler sequence in between.

        Args:
            periods: Steps between two gradients of each part, from the top; the first is 1.
            idle: What the parts do in between.
            drift_steps: Idle steps after a gradient at which they drift, before they hold; None is all of them.
            **settings: Further fields of `MultirateConfig`.
        """
        periods = require_items("periods of a ladder", periods, "a list of integers, as in [1, 2, 4]")
        if not periods:
            raise ValueError("periods of a ladder must be at least one integer, as in [1, 2, 4], got none.")
        parts = [
            RateGroup(f"part {i}", f"part:{i}/{len(periods)}", period, idle, drift_steps=drift_steps)
            for i, period in enumerate(periods, 1)
        ]
        return cls(parts, **settings)

    @classmethod
    def random_subgroups(
        cls, period: int = 5, subset: RandomSubset | None = None, patterns: str | Sequence[str] = ".*", **settings: Any
    ) -> MultirateConfig:
        """Regularisation: random subsets of the weights that take turns at being zero for a cycle.

        Args:
            period: Steps of a cycle: a subset is zero at all but the first.
            subset: What is drawn; None is ``RandomSubset()``.
            patterns: Where it is drawn; all other parameters get a gradient at every step as ever.
            **settings: Further fields of `MultirateConfig`.
        """
        drawn = RateGroup("subset", patterns, period, "zero", subset=subset)
        return cls((drawn,) if drawn.patterns == (".*",) else (drawn, RateGroup("rest", ".*", 1)), **settings)

    @classmethod
    def auto(
        cls,
        speedup: float | None = None,
        blocks: Sequence[str] = (),
        longest: int = 16,
        *,
        drift: bool = False,
        **settings: Any,
    ) -> MultirateConfig:
        """Periods that are found while training, from what gradients of each block are worth and cost.

        Args:
            speedup: Work of a full step over the mean work of a step; None is 1.6.
            blocks: Regular expressions for the names of parameters, one for each block in the order of the forward
                pass; without any, blocks are those of the model.
            longest: The longest period, a power of two.
            drift: Whether idle blocks drift for as long as that is found to lower the loss.
            **settings: Further fields of `MultirateConfig`.

        Raises:
            TypeError: ``blocks`` is no sequence, or one string.
        """
        blocks = require_items("blocks", blocks, "a list of regular expressions, one for each block")
        patterns = [require_text("each of the blocks", block) for block in blocks]
        groups = tuple(RateGroup(pattern, pattern, 1) for pattern in reversed(patterns))
        return cls(groups, budget=Budget(speedup, longest, drift=drift), **settings)

    @classmethod
    def off(cls) -> MultirateConfig:
        """One group that gets a gradient at every step: plain training."""
        return cls((RateGroup("all", ".*", 1),))

    @cached_property
    def schedule(self) -> Schedule:
        """Which groups are live, and get a gradient, at which step."""
        return self._schedule(group.gradient_period for group in self.groups)

    def _schedule(self, periods: Iterable[int]) -> Schedule:
        return Schedule(tuple(periods), self.initial_full_steps, self.turns, self.turns_seed)

    @cached_property
    def cycles(self) -> Schedule:
        """Which groups are refreshed at which step: as `schedule`, save for groups with ``idle="zero"``."""
        return self._schedule(group.period for group in self.groups)

    @property
    def is_standard_training(self) -> bool:
        """Whether every step is that of plain training."""
        redrawn = any(group.subset is not None and group.subset.redraw == "step" for group in self.groups)
        scaled = any(group.lr_scale != 1.0 for group in self.groups)
        return self.budget is None and self.cycles.cycle == 1 and not redrawn and not scaled

    @property
    def prunes(self) -> bool:
        """Whether any step may leave some parameters without a gradient."""
        return self.budget is not None or self.schedule.cycle > 1

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values that `from_dict` turns back into an equal config."""
        return to_plain(self, self.group_of)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultirateConfig:
        """The inverse of `to_dict`; unknown or missing keys, and a ``group_of``, raise `ValueError`.

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
