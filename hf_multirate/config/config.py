"""Configuration of a run: the rate groups and the settings that they share.

All values are plain and frozen, and depend neither on torch nor on a model. Patterns are matched with parameters in
`hf_multirate.model.partition`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.consistency import (
    check_activation_cache,
    check_auto_periods,
    check_groups,
    plain_settings,
)
from hf_multirate.config.durations import require_duration
from hf_multirate.config.random_subset import RandomSubset
from hf_multirate.config.rate_group import NEVER, RateGroup, depth_ladder
from hf_multirate.config.schedule import Schedule
from hf_multirate.config.serialization import build, read_json, to_plain, with_groups
from hf_multirate.config.stages import Stage, check_stages, require_stages
from hf_multirate.config.validation import require_bool, require_items, require_text, shown


DEFAULT_PERIODS = (1, 2, 4)
"""Periods of the default ladder: three parts of equal depth, the top part first."""

NEW_HEAD_FAST = "depth:0.4"
"""Trained part with a new head and little time: two of six blocks, or two of four stages of a ResNet."""

NEW_HEAD = {"head_lr_scale": 10.0, "head_start": 16}
"""Settings of a new head and little time, besides its rate groups."""

WITHOUT_GROUPS = ("head_lr_scale", "lr_decay", "head_start", "head_start_steps", "head_start_lr", "train_time")
"""Settings that standard training has too."""


@dataclass(frozen=True)
class MultirateConfig:
    """Configuration of multirate training: the rate groups and the settings that they share.

    A parameter belongs to the first group that matches it. ``MultirateConfig()`` is
    ``MultirateConfig.ladder((1, 2, 4))``.

    Attributes:
        groups: Rate groups; at least one has period 1.
        drift_factor: Factor on the drift of idle groups, multiplied by their learning rate; 1 is Algorithm 1 of the
            paper. ``auto`` is 1 for SGD. For other optimizers it adapts the factor to each parameter, see
            `hf_multirate.optim.update_group`.
        on_missing_gradient: Reaction to a parameter of a live group that gets no gradient. ``warn`` logs a warning
            and skips the parameter, as Trainer does. ``error`` raises if the parameter had a gradient before. See
            `hf_multirate.backward.missing_gradients`.
        inactive_forward: Mode of inactive modules (without a live parameter) at fast steps. ``train`` is the mode of
            Trainer. ``eval`` disables dropout; batch norm stays in training mode. None is ``train`` for SGD, as in
            Algorithm 1, and ``eval`` for other optimizers.
        inactive_buffers: Treatment of the buffers of inactive modules, such as running statistics of batch norm.
            ``update`` updates them, as Trainer does. ``freeze`` restores them after a fast step.
        inactive_dtype: Precision of inactive modules at fast steps of a float32 run: ``bfloat16``, ``float16``, or
            None for the precision of the run. Modules whose input requires a gradient keep float32, so gradients are
            not rounded; the outputs of the other modules are.
        group_fn: Function ``(name, parameter) -> group name``; if it returns None, the patterns decide. `to_json`
            stores only the name of the function.
        check_ranks_every: Number of cycles between two comparisons of weights, steps and drift levels across
            processes, for debugging. A difference raises an error. 0 disables the comparison.
        turns: Position of the gradient step of a slow group within each of its periods. ``drawn`` draws a position for
            each period, nested where periods divide each other. Every group then sees all of the data, in any order
            of the data. ``fixed`` uses the first step, as in the paper.
        turns_seed: Seed of the drawn positions. It must be equal in all processes and after a resume.
        auto_periods: Speed-up for which periods are chosen once the model is known; None keeps the periods of
            ``groups``. If set, ``groups`` must be ordered from the top of the model down and have period 1. Empty
            ``groups`` stand for one group per block.
        head_lr_scale: Factor on the learning rate of the head, see `hf_multirate.model.learning_rates`.
        lr_decay: Factor on the learning rate from each block to the block below it, between 0 and 1.
        head_start: Number of batches for a head start of the head before the first step, see
            `hf_multirate.head_start`; 0 for none. They are the first batches of training.
        head_start_steps: Number of steps of the head on these batches.
        head_start_lr: Learning rate of these steps; None chooses it on batches that are held out.
        stage_list: Stages of the run, as `stages` makes them. Their configurations have the rate groups and all other
            settings, and ``groups`` is empty.
        activation_cache: Where outputs of the frozen lower blocks are kept, so that they run once for each row:
            ``memory``, ``disk``, or None to run them at every step. See `hf_multirate.backward.activation_cache`.
        activation_cache_gb: Largest size of the kept outputs in GB, for each process in memory, and in all on disk.
        activation_cache_dir: Folder of a cache on disk; None is a folder in ``output_dir`` of Trainer.
        train_time: Time after which `MultirateTrainer` ends training and its learning-rate schedule, such as
            ``"20min"``; None for the steps or epochs of the training arguments.

    Raises:
        ValueError: a value is out of range, two groups share a name, a group has no pattern, or none has period 1.
        TypeError: a value has the wrong type.
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
    head_lr_scale: float = 1.0
    lr_decay: float = 1.0
    head_start: int = 0
    head_start_steps: int = 150
    head_start_lr: float | None = None
    stage_list: Sequence[Stage] = ()
    activation_cache: str | None = None
    activation_cache_gb: float = 4.0
    activation_cache_dir: str | None = None
    train_time: str | None = None

    def __post_init__(self) -> None:
        """Validate the values, and convert them to plain ones and ``groups`` to a tuple."""
        groups = require_items("groups", self.groups, "a list of RateGroup objects")
        stages = require_stages(self.stage_list)
        for name, value in {**plain_settings(vars(self)), "groups": groups, "stage_list": stages}.items():
            object.__setattr__(self, name, value)
        if stages:
            self._check_stages()
            return
        if groups or self.auto_periods is None:
            check_groups(groups, self.group_fn)
        check_auto_periods(groups, self.auto_periods)
        check_activation_cache(vars(self))

    def _check_stages(self) -> None:
        common = {name: vars(self)[name] for name in WITHOUT_GROUPS}
        defaults = {field.name: field.default for field in fields(self)} | {"groups": ()}
        own = [name for name in defaults if name not in (*WITHOUT_GROUPS, "stage_list")]
        others = [name for name in own if vars(self)[name] != defaults[name]]
        check_stages(self.stage_list, MultirateConfig, common, others)

    @classmethod
    def two_rate(
        cls,
        fast: str | Sequence[str] = "depth:0.33",
        period: int | str = 5,
        idle: str = "freeze",
        drift_steps: int | None = None,
        **settings: Any,
    ) -> MultirateConfig:
        """Two rate groups: ``fast`` with a gradient at every step, and ``slow`` for all other parameters.

        Args:
            fast: Patterns or a preset for the fast parameters, see `RateGroup`.
            period: Steps from one gradient of the slow group to the next; ``"never"`` freezes it.
            idle: Idle rule of the slow group: ``freeze``, ``drift`` or ``long_step``.
            drift_steps: Steps after a refresh at which the slow group drifts, with ``idle="drift"``; None for all.
            **settings: Further fields of `MultirateConfig`.
        """
        groups = (RateGroup("fast", fast, 1), RateGroup("slow", ".*", period, idle, drift_steps))
        return cls(groups, **settings)

    @classmethod
    def paper(cls, fast: str | Sequence[str] = "head", period: int = 5, **settings: Any) -> MultirateConfig:
        """Published setting of the paper for transfer learning.

        Slow parameters get a gradient at the first step of each period and drift by full updates in between. Dropout
        is active at every step.

        Args:
            fast: Patterns or a preset for the fast parameters, see `RateGroup`.
            period: Steps from one gradient of the slow group to the next.
            **settings: Further fields of `MultirateConfig`, which override those of the paper.
        """
        published = {"idle": "drift", "drift_factor": 1.0, "inactive_forward": "train", "turns": "fixed"}
        return cls.two_rate(fast, period, **{**published, **settings})

    @classmethod
    def ladder(
        cls,
        periods: Sequence[int | str] = DEFAULT_PERIODS,
        idle: str = "freeze",
        drift_steps: int | None = None,
        **settings: Any,
    ) -> MultirateConfig:
        """Rate groups by depth: equal parts of the stack of blocks from the top, one for each of ``periods``.

        The first part also contains the head and everything else above the blocks. The last part also contains the
        embeddings. With periods 1, 2, 4, 8 every eighth step is a full step.

        Args:
            periods: Steps from one gradient of each part to the next, from the top; the first is 1. ``"never"``
                freezes a part.
            idle: Idle rule of the parts: ``freeze``, ``drift`` or ``long_step``.
            drift_steps: Steps after a refresh at which a part drifts, with ``idle="drift"``; None for all.
            **settings: Further fields of `MultirateConfig`.

        Raises:
            ValueError: ``periods`` is empty, or none of them is 1.
            TypeError: ``periods`` is not a list of integers.
        """
        periods = require_items("periods of a ladder", periods, "a list of integers, as in [1, 2, 4]")
        if not periods:
            raise ValueError("periods of a ladder must be a list of at least one integer, as in [1, 2, 4], got none.")
        return cls(depth_ladder(periods, idle, drift_steps), **settings)

    @classmethod
    def random_subsets(
        cls, period: int = 5, subset: RandomSubset | None = None, patterns: str | Sequence[str] = ".*", **settings: Any
    ) -> MultirateConfig:
        """Random subsets for regularization: in each cycle, a newly drawn subset of the weights is set to zero.

        Args:
            period: Steps of a cycle. The subset is zero at all steps of the cycle but the first.
            subset: Settings of the subset; None for ``RandomSubset()``.
            patterns: Patterns or a preset for the parameters with subsets. All other parameters are trained as usual.
            **settings: Further fields of `MultirateConfig`.
        """
        group = RateGroup("subset", patterns, period, random_subset=subset or RandomSubset())
        return cls((group,) if group.patterns == (".*",) else (group, RateGroup("rest", ".*", 1)), **settings)

    @classmethod
    def auto(
        cls,
        speedup: float | None = None,
        blocks: Sequence[str] = (),
        max_period: int = 16,
        **settings: Any,
    ) -> MultirateConfig:
        """Automatic periods: chosen for a requested speed-up once the model is known, longer for deeper blocks.

        Args:
            speedup: Work of a full step divided by the mean work of a step; None for 1.6.
            blocks: Regular expressions for parameter names, one for each block in the order of the forward pass.
                If empty, the blocks of the model are used.
            max_period: Longest period, a power of two.
            **settings: Further fields of `MultirateConfig`.

        Raises:
            ValueError: ``speedup`` or ``max_period`` is out of range, or an expression is invalid.
            TypeError: a value has the wrong type, e.g. ``blocks`` is a string.
        """
        blocks = require_items("blocks", blocks, "a list of regular expressions, one for each block")
        patterns = [require_text("each of the blocks", block) for block in blocks]
        groups = tuple(RateGroup(pattern, pattern, 1) for pattern in reversed(patterns))
        return cls(groups, auto_periods=AutoPeriods(speedup, max_period), **settings)

    @classmethod
    def stages(cls, stages: Sequence[tuple[float, MultirateConfig]]) -> MultirateConfig:
        """Configurations that apply one after the other, such as gradual unfreezing.

        In each stage the schedule begins with a gradient for each of its groups. A group with period ``"never"`` is
        idle for the whole stage. It is frozen for the run if it is ``"never"`` in all stages.

        Args:
            stages: Pairs of a share of the steps of training, at which the stage ends, and its configuration. The
                shares ascend, and the last is 1. The learning rates of the head and of depth and the head start belong
                to the whole run, and are equal in all stages.

        Raises:
            ValueError: the shares do not ascend to 1, or the configurations do not go together.
            TypeError: a value has the wrong type.
        """
        given = require_stages(stages)
        if not given:
            raise ValueError("stages must be a list of at least one, as in [(1.0, MultirateConfig())], got none.")
        first = given[0].config
        common = {name: vars(first)[name] for name in WITHOUT_GROUPS} if isinstance(first, MultirateConfig) else {}
        return cls((), stage_list=given, **common)

    @classmethod
    def new_head(cls, fast: str | Sequence[str] = NEW_HEAD_FAST, **settings: Any) -> MultirateConfig:
        """A new head and little time: the top blocks are trained, and all blocks below them are frozen.

        The head has a head start of 16 batches and ten times the learning rate of the blocks.

        Args:
            fast: Patterns or a preset for the trained parameters, see `RateGroup`.
            **settings: Further fields of `MultirateConfig`, which override those of this setting.
        """
        groups = (RateGroup("fast", fast, 1), RateGroup("slow", ".*", NEVER))
        return cls(groups, **{**NEW_HEAD, **settings})

    @classmethod
    def for_time(cls, time: str | float, new_head: bool = True, **settings: Any) -> MultirateConfig:
        """A setting for a given time: training and its schedule end when the time is over.

        Args:
            time: Such as ``"20min"``, ``"1h30m"``, ``"90s"`` or a number of seconds.
            new_head: Whether the head is new. If so, the setting is `new_head`, else the default ladder.
            **settings: Further fields of `MultirateConfig`.

        Raises:
            ValueError: the time cannot be read.
            TypeError: a value has the wrong type.
        """
        make = cls.new_head if require_bool("new_head", new_head) else cls.ladder
        return make(train_time=require_duration("time", time), **settings)

    @classmethod
    def off(cls, **settings: Any) -> MultirateConfig:
        """Standard training: one group that gets a gradient at every step.

        Args:
            **settings: Further fields of `MultirateConfig`, such as ``head_lr_scale`` and ``head_start``.
        """
        return cls((RateGroup("all", ".*", 1),), **settings)

    def without_groups(self) -> MultirateConfig:
        """Standard training with the settings that do not belong to rate groups, such as a head start."""
        return MultirateConfig.off(**{name: vars(self)[name] for name in WITHOUT_GROUPS})

    @cached_property
    def schedule(self) -> Schedule:
        """Schedule of gradients: the live groups of each step."""
        return self._schedule(group.gradient_period for group in self.groups)

    def _schedule(self, periods: Iterable[int]) -> Schedule:
        return Schedule(tuple(periods), self.turns, self.turns_seed)

    @cached_property
    def cycles(self) -> Schedule:
        """Schedule of cycles: as `schedule`, but a group with a random subset is live only when a subset is drawn."""
        return self._schedule(group.steps for group in self.groups)

    @cached_property
    def is_standard_training(self) -> bool:
        """Whether every step is a step of standard training, with or without `scales_learning_rates`."""
        if self.stage_list:
            return all(stage.config.is_standard_training for stage in self.stage_list)
        redrawn = any(
            group.random_subset is not None and group.random_subset.redraw == "step" for group in self.groups
        )
        return self.auto_periods is None and self.cycles.cycle == 1 and not redrawn and not self.has_never

    @cached_property
    def has_never(self) -> bool:
        """Whether some group never gets a gradient."""
        return any(group.is_never for group in self.groups) or any(s.config.has_never for s in self.stage_list)

    @cached_property
    def has_activation_cache(self) -> bool:
        """Whether outputs of frozen blocks are kept, in the whole run or in a stage."""
        return self.activation_cache is not None or any(s.config.has_activation_cache for s in self.stage_list)

    @cached_property
    def scales_learning_rates(self) -> bool:
        """Whether some parameters have another learning rate than the one of the script."""
        scales = (self.head_lr_scale, self.lr_decay, *(group.lr_scale for group in self.groups))
        return any(scale != 1.0 for scale in scales) or any(s.config.scales_learning_rates for s in self.stage_list)

    @cached_property
    def takes_long_steps(self) -> bool:
        """Whether some group has ``idle="long_step"`` and a period."""
        long_steps = any(group.idle == "long_step" and group.steps > 1 for group in self.groups)
        return long_steps or any(stage.config.takes_long_steps for stage in self.stage_list)

    @cached_property
    def skips_backward(self) -> bool:
        """Whether any step may be a fast step."""
        fast_steps = self.auto_periods is not None or self.schedule.cycle > 1 or self.has_never
        return fast_steps or any(stage.config.skips_backward for stage in self.stage_list)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of plain values, the inverse of `from_dict`."""
        return to_plain(self, self.group_fn)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultirateConfig:
        """Build a config from a dictionary, the inverse of `to_dict`.

        Raises:
            ValueError: a key is unknown or missing, a value is out of range, or ``group_fn`` is set.
            TypeError: a value has the wrong type.
        """
        converted = with_groups(values)
        stages = converted.get("stage_list") or ()
        if isinstance(stages, (list, tuple)) and all(isinstance(stage, Mapping) for stage in stages):
            stages = [
                build(Stage, {**stage, "config": cls.from_dict(stage["config"])} if "config" in stage else stage)
                for stage in stages
            ]
        return build(cls, {**converted, "stage_list": stages})

    def to_json(self) -> str:
        """Convert to a JSON string."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json_file(cls, path: str | Path) -> MultirateConfig:
        """Read a config from a JSON file with the output of `to_json`.

        Raises:
            ValueError: the file does not exist, or does not contain valid JSON or a valid config.
            TypeError: a value has the wrong type, or ``path`` is not a path.
        """
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"multirate config {shown(str(path))}: {error}") from error
