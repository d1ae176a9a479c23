"""What is trained, and at which steps: settings of several families, without the extras of `contenders`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


FAMILIES = ("baseline", "frozen", "lora", "approximate", "multirate", "drift", "dropout")


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
        kind: A key of `CONFIGS` or of those that `benchmarks.budgets.build.build` knows.
        options: Arguments of what builds its configuration.
        build: Arguments of what changes the model before training.
        rate_scale: Factor on the learning rates of the task, for settings that are used with larger ones.
        texts_only: Whether it works on encoders of texts only.
        parts: Its stages; none for one configuration in the whole run.
        muon: Whether Muon updates the matrices of the blocks, in place of AdamW.
    """

    name: str
    family: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    rate_scale: float = 1.0
    texts_only: bool = False
    parts: tuple[Part, ...] = ()
    muon: bool = False


FREEZE = {"idle": "freeze", "turns": "drawn"}
DRIFT = {"idle": "drift", "drift_factor": 1.0, "turns": "drawn"}
LADDER = {"periods": [1, 2, 4], **FREEZE}

NO_DROPOUT = {"dropout": 0.0, "attention": "eager"}
"""Eager attention, because without dropout the fused attention of torch takes a third more time on a processor."""

STANDARD = Setting("baseline", "baseline", "standard")


def _two_rate(name: str, idle: dict[str, Any], *, muon: bool = False) -> Setting:
    """The last two blocks at every step and the others at every fourth one, to compare optimizers."""
    options = {"fast": "last:2", "period": 4, **idle}
    return Setting(name, "drift", "two_rate", options, texts_only=True, muon=muon)


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
        Setting("baseline, no dropout", "baseline", "standard", build=NO_DROPOUT, texts_only=True),
        *(Setting(f"frozen below {top}", "frozen", "never", {"fast": top}) for top in ("last:1", "last:2")),
        Setting("frozen below last:2, no dropout", "frozen", "never", {"fast": "last:2"}, NO_DROPOUT, texts_only=True),
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
        _staged("top, then all", _top(0.5), Part(1.0, STANDARD.kind, {}, STANDARD.name)),
        _staged("ladder, then top", _ladder(0.65), _top(1.0)),
        _two_rate("last:2 k4, drift in full", DRIFT),
        Setting("Muon", "drift", "standard", texts_only=True, muon=True),
        _two_rate("last:2 k4, Muon", FREEZE, muon=True),
        _two_rate("last:2 k4, drift in full, Muon", DRIFT, muon=True),
        Setting("frozen below last:2, with dropout", "dropout", "never", {"fast": "last:2", "forward": "train"}),
        Setting("auto 1.6", "multirate", "auto", {"speedup": 1.6, "turns": "drawn"}),
        Setting("paper", "multirate", "paper"),
    )
}

LANGUAGE_ONLY = ("frozen below part:1/2", "LoRA", "LoRA, ladder 1,2,4")
"""Settings without extras for a language model, which has no new head."""

STUDY = tuple(name for name, setting in SETTINGS.items() if setting.family in ("drift", "dropout"))
"""Settings that answer one question: whether drift loses less under Muon, or how much dropout costs that is off in
frozen blocks. They run if they are asked for."""
