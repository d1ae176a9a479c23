"""Results with figures that can be checked by hand."""

from __future__ import annotations

from typing import Any


def result(
    method: str, seed: int, curve: list[tuple[float, float]], rate: float = 1e-3, commit: str = "a", cpu: str = "x"
) -> dict[str, Any]:
    points = [{"process_seconds": when, "metric": value} for when, value in curve]
    return {
        "task": "t", "length": "short", "method": method, "seed": seed, "rate": rate, "role": "final",
        "curve": points, "process_seconds": curve[-1][0], "test_metric": curve[-1][1],
        "steps": round(10 * curve[-1][0]),
        "settings": {"task": {"epochs": 1}, "method": {"kind": "k"}},
        "machine": {"commit": commit, "dirty": False, "processor": cpu},
    }  # fmt: skip


RUNS = {
    "baseline": {s: result("baseline", s, [(5, 0.5), (10, 0.8 + 0.02 * s)]) for s in (0, 1)},
    "baseline 0.5": {s: result("baseline 0.5", s, [(2, 0.4), (5, 0.6)]) for s in (0, 1)},
    "multirate head k5 drift": {
        0: result("multirate head k5 drift", 0, [(3, 0.5), (7.5, 0.73)]),
        1: result("multirate head k5 drift", 1, [(4, 0.7), (7.5, 0.75)]),
    },
    "head only": {s: result("head only", s, [(1, 0.3), (2.5, 0.81)]) for s in (0, 1)},
}
