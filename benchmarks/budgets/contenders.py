"""The contenders: settings of several families, each with some of the extras that any fine-tuning can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import configs
from hf_multirate import MultirateConfig


HEAD_RATE = 10.0
"""Learning rate of the head as a multiple of the rate that the task's grid gives, for all that have a head rate."""

DECAY = 0.8
"""Factor on the learning rate from each block to the one below it."""

HEAD_START = 16
"""Batches of a head start."""

CONFIGS = {
    "ladder": configs.ladder,
    "two_rate": configs.two_rate,
    "auto": configs.automatic,
    "paper": configs.published,
    "lora_plus": configs.lora_plus,
    "never": configs.never,
}
"""Kinds of settings with rate groups. All others have one group with a gradient at every step."""

FAMILIES = ("baseline", "frozen", "lora", "approximate", "multirate")


@dataclass(frozen=True)
class Part:
    """A stage of a setting.

    Attributes:
        until: Share of the steps at which it ends.
        kind: A key of `CONFIGS`.
        options: Arguments of what builds its configuration.
        cost: Name of the setting whose steps with the same live groups have the same seconds.
    """

    until: float
    kind: str
    options: dict[str, Any]
    cost: str


@dataclass(frozen=True)
class Setting:
    """What is trained, and at which steps.

    Attributes:
        name: Name in results and tables.
        family: One of `FAMILIES`.
        kind: A key of `CONFIGS` or of `benchmarks.budgets.build.BUILDERS`.
        options: Arguments of what builds its configuration.
        build: Arguments of what changes the model before training.
        rate_scale: Factor on the learning rates of the task, for settings that are used with larger ones.
        texts_only: Whether it works on encoders of texts only.
        parts: Its stages; none for one configuration in the whole run.
    """

    name: str
    family: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    rate_scale: float = 1.0
    texts_only: bool = False
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Contender:
    """A setting with extras.

    Attributes:
        setting: The setting.
        head_rate: Whether the head has a learning rate of its own, `HEAD_RATE` times that of the task. It is the same
            for all contenders, whatever their ``rate_scale``.
        decay: Whether the learning rate decays with depth by `DECAY`.
        head_start: Whether the head is trained first, on `HEAD_START` batches.
    """

    setting: Setting
    head_rate: bool = False
    decay: bool = False
    head_start: bool = False

    @property
    def name(self) -> str:
        """Name in results and tables."""
        extras = [name.replace("_", " ") for name in ("head_rate", "decay", "head_start") if vars(self)[name]]
        return " + ".join([self.setting.name, *extras])

    @property
    def family(self) -> str:
        """Family of the setting."""
        return self.setting.family

    @property
    def cached(self) -> bool:
        """Whether the outputs of its frozen prefix are kept, so that steps of the first epoch cost more."""
        return bool(self.setting.options.get("cache"))

    @property
    def cost(self) -> str:
        """Name for seconds: contenders of one name take the same steps. Each stage has a cost of its own.

        The optimizer has more parameter groups if rates decay with depth, so such contenders are timed too.
        """
        return self._cost_of(self.setting.name)

    @property
    def part_costs(self) -> tuple[str, ...]:
        """Names for seconds of the stages."""
        return tuple(self._cost_of(part.cost) for part in self.setting.parts)

    def _cost_of(self, name: str) -> str:
        return name + (" + decay" if self.decay else "")

    @property
    def config(self) -> MultirateConfig:
        """Rate groups, learning rates and head start."""
        parts = self.setting.parts
        if parts:
            return MultirateConfig.stages([(p.until, self._with_extras(p.kind, p.options)) for p in parts])
        return self._with_extras(self.setting.kind, self.setting.options)

    def _with_extras(self, kind: str, options: dict[str, Any]) -> MultirateConfig:
        builder = CONFIGS.get(kind, configs.off)
        return replace(
            builder(**options),
            head_lr_scale=HEAD_RATE / self.setting.rate_scale if self.head_rate else 1.0,
            lr_decay=DECAY if self.decay else 1.0,
            head_start=HEAD_START if self.head_start else 0,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a result but rate, seed and budget; kept with the results."""
        chosen = {name: vars(self.setting)[name] for name in ("kind", "options", "build", "rate_scale")}
        return {**chosen, "family": self.family, "config": configs.given(self.config)}


FREEZE = {"idle": "freeze", "turns": "drawn"}
LADDER = {"periods": [1, 2, 4], **FREEZE}

STANDARD = Setting("baseline", "baseline", "standard")


def _staged(name: str, first: Part, second: Part) -> Setting:
    return Setting(name, "multirate", "stages", parts=(first, second))


def _top(until: float) -> Part:
    """The last two blocks alone. The slow group is idle, as at fast steps of two rates."""
    return Part(until, "never", {"fast": "last:2"}, "last:2 k4")


def _ladder(until: float) -> Part:
    return Part(until, "ladder", LADDER, "ladder 1,2,4")


SETTINGS = {
    setting.name: setting
    for setting in (
        STANDARD,
        *(Setting(f"frozen below {top}", "frozen", "never", {"fast": top}) for top in ("last:1", "last:2")),
        Setting("frozen below last:2, cached", "frozen", "never", {"fast": "last:2", "cache": "memory"}),
        Setting("frozen below part:1/2", "frozen", "never", {"fast": "part:1/2"}),
        Setting("head only", "frozen", "never", {"fast": "head"}, rate_scale=10.0),
        Setting("LoRA", "lora", "lora", build={"rank": 16}, rate_scale=10.0),
        Setting("LoRA, ladder 1,2,4", "lora", "ladder", LADDER, {"rank": 16}, rate_scale=10.0),
        Setting("LoRA+", "lora", "lora_plus", {"ratio": 16.0}, {"rank": 16}, rate_scale=4.0),
        Setting("VCAS", "approximate", "vcas", build={"frequency": 50}, texts_only=True),
        Setting("DropBP", "approximate", "dropbp", build={"rate": 0.5}),
        *(
            Setting(f"ladder {','.join(map(str, periods))}", "multirate", "ladder", {"periods": periods, **FREEZE})
            for periods in ([1, 2, 4], [1, 2, 4, 8])
        ),
        *(
            Setting(f"{fast} k4", "multirate", "two_rate", {"fast": fast, "period": 4, **FREEZE})
            for fast in ("last:1", "last:2")
        ),
        _staged("top, then ladder", _top(0.35), _ladder(1.0)),
        _staged("ladder, then top", _ladder(0.65), _top(1.0)),
        Setting("auto 1.6", "multirate", "auto", {"speedup": 1.6, "turns": "drawn"}),
        Setting("paper", "multirate", "paper"),
    )
}

EXTRAS = (
    {},
    {"head_rate": True},
    {"head_rate": True, "decay": True},
    {"head_rate": True, "head_start": True},
    {"head_rate": True, "decay": True, "head_start": True},
)
"""Those of the baselines. Settings of multirate training are offered with the same."""


LANGUAGE_ONLY = ("frozen below part:1/2", "LoRA", "LoRA, ladder 1,2,4")
"""Settings without extras for a language model, which has no new head."""


def _all() -> list[Contender]:
    both = [Contender(s, **e) for s in SETTINGS.values() for e in EXTRAS if s.family in ("baseline", "multirate")]
    others = [s for s in SETTINGS.values() if s.family not in ("baseline", "multirate")]
    extras = [Contender(s, head_rate=True, head_start=start) for s in others for start in (False, True)]
    return both + extras + [Contender(SETTINGS[name]) for name in LANGUAGE_ONLY]


CONTENDERS = {contender.name: contender for contender in _all()}

DEFAULT = tuple(
    name
    for name, contender in CONTENDERS.items()
    if contender.setting.name in ("baseline", "ladder 1,2,4")
    or (contender.head_start and not contender.decay and contender.setting.name != "paper")
    or name in ("paper", *LANGUAGE_ONLY)
)
"""The default of a suite: the others combine properties that these show one by one."""


def named(names: Sequence[str]) -> list[Contender]:
    """Contenders by name, by ``family:NAME``, or ``all``; baselines first, each once."""
    wanted = {n for name in names for n, c in CONTENDERS.items() if name in ("all", n, f"family:{c.family}")}
    order = sorted(wanted, key=lambda name: (CONTENDERS[name].family != "baseline", list(CONTENDERS).index(name)))
    return [CONTENDERS[name] for name in order]
