"""Everything that a user could pick to fine-tune for less, under one name each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hf_multirate import MultirateConfig, RateGroup


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        kind: What builds it: see `contenders.build`.
        fraction: Share of the steps that it takes; its learning-rate schedule is that much shorter.
        rate_scale: Factor on the grid of learning rates, for methods that are used with larger ones.
        options: What the kind needs to know.
    """

    name: str
    kind: str
    fraction: float = 1.0
    rate_scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> MultirateConfig | None:
        """Rate groups, for multirate training."""
        if self.kind not in ("multirate", "importance"):
            return None
        turns = self.options.get("turns", "fixed")  # what the results were measured with
        if "speedup" in self.options:
            return MultirateConfig.auto(self.options["speedup"], turns=turns)
        groups = [RateGroup(**group) for group in self.options["groups"]]
        return MultirateConfig(groups, idle_dtype=self.options.get("idle_dtype"), turns=turns)


DRIFTS = {"all": None, "one": 1, "none": 0}
"""Idle steps that drift: all, one, or none."""

SPEEDUPS = (1.3, 1.6, 2.0, 3.0)
"""Budgets of automatic training."""

FRACTIONS = (0.8, 0.6, 0.5, 0.4, 0.3)


def _group(name: str, patterns: str, period: int, drift: str) -> dict[str, Any]:
    idle = {} if period == 1 else {"drift_steps": DRIFTS[drift]}
    return {"name": name, "patterns": patterns, "period": period, **idle}


def _two_rates(fast: str, period: int, drift: str) -> Contender:
    groups = [_group("fast", fast, 1, drift), _group("slow", ".*", period, drift)]
    return Contender(f"multirate {fast} k{period} {drift}", "multirate", options={"groups": groups})


def _ladder(periods: tuple[int, ...], drift: str) -> Contender:
    parts = [_group(f"part {i}", f"part:{i}/{len(periods)}", k, drift) for i, k in enumerate(periods, 1)]
    name = f"multirate ladder {','.join(map(str, periods))} {drift}"
    return Contender(name, "multirate", options={"groups": parts})


def _in_bfloat16(contender: Contender) -> Contender:
    options = {**contender.options, "idle_dtype": "bfloat16"}
    return replace(contender, name=f"{contender.name} bfloat16", options=options)


def _drawn(contender: Contender) -> Contender:
    return replace(contender, name=f"{contender.name} drawn", options={**contender.options, "turns": "drawn"})


def _all() -> list[Contender]:
    return [
        Contender("plain", "plain"),
        *(Contender(f"plain {fraction}", "plain", fraction=fraction) for fraction in FRACTIONS),
        Contender("frozen below last:2", "frozen", options={"trained": "last:2"}),
        Contender("frozen below last:1", "frozen", options={"trained": "last:1"}),
        Contender("head only", "frozen", rate_scale=10.0, options={"trained": "head"}),
        Contender("LoRA", "lora", rate_scale=10.0, options={"rank": 16}),
        Contender("LoRA+", "lora", rate_scale=4.0, options={"rank": 16, "ratio": 16}),
        Contender("LISA", "lisa", options={"active": 2, "interval": 10}),
        Contender("BAdam", "badam", options={"interval": 10}),
        *(_two_rates(f, k, d) for d in DRIFTS for k in (2, 5, 10) for f in ("head", "last:1", "last:2")),
        *(_ladder(periods, d) for d in DRIFTS for periods in ((1, 2, 4), (1, 4, 16), (1, 2, 4, 8))),
        Contender("multirate last:1 k5 importance", "importance", options=_two_rates("last:1", 5, "none").options),
        _drawn(_two_rates("last:2", 5, "all")),
        _drawn(_ladder((1, 2, 4), "none")),
        *(_in_bfloat16(_two_rates(fast, 5, "none")) for fast in ("head", "last:1")),
        *(Contender(f"auto {speedup:g}", "multirate", options={"speedup": speedup}) for speedup in SPEEDUPS),
    ]


CONTENDERS = {contender.name: contender for contender in _all()}

CHOSEN = (
    *("plain", "plain 0.6", "plain 0.5", "plain 0.4", "plain 0.3"),
    *("frozen below last:2", "frozen below last:1", "head only", "LoRA", "LoRA+", "LISA", "BAdam"),
    *("multirate head k5 all", "multirate last:1 k5 all", "multirate last:1 k5 none", "multirate last:2 k5 one"),
    *("multirate ladder 1,2,4 none", "multirate ladder 1,2,4,8 all", "multirate ladder 1,2,4,8 none"),
)
"""What a suite runs unless it is told otherwise: the others combine what these show one by one."""
