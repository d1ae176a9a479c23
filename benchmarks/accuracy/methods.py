"""The methods that are compared: multirate training, and other ways to fine-tune for less."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import configs
from hf_multirate import MultirateConfig


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: Name in results and tables.
        kind: How it is built: a kind of multirate training (see `config`), or a key of `trainers.BUILDERS`.
        fraction: Share of the steps that it takes; its learning-rate schedule is that much shorter.
        rate_scale: Factor on the grid of learning rates, for methods that are used with larger ones.
        options: Arguments of what builds it.
    """

    name: str
    kind: str
    fraction: float = 1.0
    rate_scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> MultirateConfig | None:
        """Rate groups of multirate training; None for other methods."""
        builders = {"two_rate": configs.two_rate, "ladder": configs.ladder, "auto": configs.automatic}
        return builders[self.kind](**self.options) if self.kind in builders else None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a result but the learning rate; kept with the results."""
        return {"kind": self.kind, "fraction": self.fraction, "options": self.options}


SPEEDUPS = (1.3, 1.6, 2.0, 3.0)
"""Targets of automatic periods."""

FRACTIONS = (0.8, 0.6, 0.5, 0.4, 0.3)
"""Lengths of shortened baseline runs."""


def is_baseline(name: str) -> bool:
    """Whether a method is standard training, of all steps or fewer."""
    return name.split(maxsplit=1)[0] == "baseline"


def is_multirate(name: str) -> bool:
    """Whether a method is multirate training, with fixed or automatic periods."""
    return name.startswith(("multirate", "auto"))


def _two_rate(fast: str, period: int, idle: str) -> Method:
    return Method(
        f"multirate {fast} k{period} {idle}", "two_rate", options={"fast": fast, "period": period, "idle": idle}
    )


def _ladder(periods: tuple[int, ...], idle: str) -> Method:
    name = f"multirate ladder {','.join(map(str, periods))} {idle}"
    return Method(name, "ladder", options={"periods": list(periods), "idle": idle})


def _in_bfloat16(method: Method) -> Method:
    return replace(method, name=f"{method.name} bfloat16", options={**method.options, "inactive_dtype": "bfloat16"})


def _drawn(method: Method) -> Method:
    return replace(method, name=f"{method.name} drawn", options={**method.options, "turns": "drawn"})


def _all() -> list[Method]:
    idle = ("drift", "drift 1", "freeze")
    return [
        Method("baseline", "baseline"),
        *(Method(f"baseline {fraction}", "baseline", fraction=fraction) for fraction in FRACTIONS),
        Method("frozen below last:2", "frozen", options={"trained": "last:2"}),
        Method("frozen below last:1", "frozen", options={"trained": "last:1"}),
        Method("head only", "frozen", rate_scale=10.0, options={"trained": "head"}),
        Method("LoRA", "lora", rate_scale=10.0, options={"rank": 16}),
        Method("LoRA+", "lora", rate_scale=4.0, options={"rank": 16, "ratio": 16}),
        Method("LISA", "lisa", options={"active": 2, "interval": 10}),
        Method("BAdam", "badam", options={"interval": 10}),
        *(_two_rate(f, k, i) for i in idle for k in (2, 5, 10) for f in ("head", "last:1", "last:2")),
        *(_ladder(periods, i) for i in idle for periods in ((1, 2, 4), (1, 4, 16), (1, 2, 4, 8))),
        _drawn(_two_rate("last:2", 5, "drift")),
        _drawn(_ladder((1, 2, 4), "freeze")),
        *(_in_bfloat16(_two_rate(fast, 5, "freeze")) for fast in ("head", "last:1")),
        *(Method(f"auto {speedup:g}", "auto", options={"speedup": speedup}) for speedup in SPEEDUPS),
    ]


METHODS = {method.name: method for method in _all()}

RECORDED = tuple(f"auto {speedup:g} measured" for speedup in SPEEDUPS)
"""Methods with results that cannot be run any more: automatic periods that were planned again while training."""

DEFAULT_METHODS = (
    *("baseline", "baseline 0.6", "baseline 0.5", "baseline 0.4", "baseline 0.3"),
    *("frozen below last:2", "frozen below last:1", "head only", "LoRA", "LoRA+", "LISA", "BAdam"),
    *("multirate head k5 drift", "multirate last:1 k5 drift", "multirate last:1 k5 freeze"),
    *("multirate last:2 k5 drift 1", "multirate ladder 1,2,4 freeze"),
    *("multirate ladder 1,2,4,8 drift", "multirate ladder 1,2,4,8 freeze"),
)
"""The default of a suite. The other methods combine properties that these show one by one."""
