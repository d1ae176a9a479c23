"""The contenders: settings of several families, each with some of the extras that any fine-tuning can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import configs
from benchmarks.budgets.settings import LANGUAGE_ONLY, SETTINGS, STUDY, Setting
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
        optimizer = {"muon": True} if self.setting.muon else {}
        return {**chosen, **optimizer, "family": self.family, "config": configs.given(self.config)}


EXTRAS = (
    {},
    {"head_rate": True},
    {"head_rate": True, "decay": True},
    {"head_rate": True, "head_start": True},
    {"head_rate": True, "decay": True, "head_start": True},
)
"""Those of the baselines. Settings of multirate training are offered with the same."""


def _all() -> list[Contender]:
    families = ("baseline", "multirate", "dropout")
    both = [Contender(s, **e) for s in SETTINGS.values() for e in EXTRAS if s.family in families]
    others = [s for s in SETTINGS.values() if s.family not in families]
    extras = [Contender(s, head_rate=True, head_start=start) for s in others for start in (False, True)]
    return both + extras + [Contender(SETTINGS[name]) for name in LANGUAGE_ONLY]


CONTENDERS = {contender.name: contender for contender in _all()}

DEFAULT = tuple(
    name
    for name, contender in CONTENDERS.items()
    if contender.family == "baseline"
    or contender.setting.name == "ladder 1,2,4"
    or (contender.head_start and not contender.decay and contender.setting.name not in ("paper", *STUDY))
    or name in ("paper", *LANGUAGE_ONLY)
)
"""The default of a suite: the others combine properties that these show one by one."""


def named(names: Sequence[str]) -> list[Contender]:
    """Contenders by name, by ``family:NAME``, or ``all``; baselines first, each once."""
    wanted = {n for name in names for n, c in CONTENDERS.items() if name in ("all", n, f"family:{c.family}")}
    order = sorted(wanted, key=lambda name: (CONTENDERS[name].family != "baseline", list(CONTENDERS).index(name)))
    return [CONTENDERS[name] for name in order]
