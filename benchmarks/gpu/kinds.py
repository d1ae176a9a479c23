"""Part ``kinds``: seconds of full and fast steps, and the speed-up that is predicted and that follows.

All settings take turns on one model: a cycle of each, between steps of standard training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks import configs
from benchmarks.gpu.cells import Bench, Cell, in_short
from benchmarks.gpu.steps import Trainee, kind_of, time_baseline, time_cycle, trainee
from benchmarks.speed.harness import Timer, interleave
from hf_multirate import Multirate, MultirateConfig, plan


PART = "kinds"
PERIOD = 4
SETTINGS: dict[str, MultirateConfig] = {
    "head": configs.two_rate("head", PERIOD, "freeze"),
    "last:1": configs.two_rate("last:1", PERIOD, "freeze"),
    "last:2": configs.two_rate("last:2", PERIOD, "freeze"),
    "last third": configs.two_rate("part:1/3", PERIOD, "freeze"),
    "ladder 1,2,4": configs.ladder([1, 2, 4], "freeze"),
    "last:1, drift": configs.two_rate("last:1", PERIOD, "drift"),
}
"""Settings of eager cells: fast part and idle rule, all at period 4."""

COMPILED_SETTINGS = ("last:1",)
"""Settings of compiled cells. Each kind of step is compiled once, so there are few."""

BASELINE_STEPS = 2
MOST_ROUNDS = 12


def cells() -> list[Cell]:
    """The cells, the most important first."""
    order = [
        ("BERT-base", "bf16", "eager", 15), ("Llama 0.5 B", "bf16", "eager", 20), ("BERT-base", "bf16", "compile", 70),
        ("Llama 1.5 B", "bf16", "eager", 30), ("ViT-B/16", "bf16", "eager", 15), ("BERT-large", "bf16", "eager", 20),
        ("Llama 0.5 B", "tf32", "eager", 25), ("BERT-base", "tf32", "eager", 15), ("BERT-large", "tf32", "eager", 20),
        ("ViT-B/16", "tf32", "eager", 15), ("Llama 1.5 B", "tf32", "eager", 40),
        ("Llama 0.5 B", "bf16", "compile", 90), ("ViT-B/16", "bf16", "compile", 70),
        ("BERT-base", "tf32", "compile", 70), ("BERT-base", "fp32", "eager", 20),
        ("BERT-large", "bf16", "compile", 120), ("Llama 1.5 B", "bf16", "compile", 120),
    ]  # fmt: skip
    return [
        Cell(PART, f"{name}, {precision}, {mode}", seconds, partial(measure, name, precision, mode))
        for name, precision, mode, seconds in order
    ]


def measure(name: str, precision: str, mode: str, bench: Bench) -> dict[str, Any]:
    """Seconds of all kinds of step, and what was predicted."""
    network, compiled = bench.network(name), mode == "compile"
    trained = trainee(bench, network, precision, compiled=compiled)
    settings = {name: config for name, config in SETTINGS.items() if not compiled or name in COMPILED_SETTINGS}
    found: dict[str, Any] = {"network": name, "shape": network.shape, "precision": precision, "mode": mode}
    found["settings"] = predictions(trained, settings, counted=not compiled)
    found["seconds"] = (compiled_rounds if compiled else rounds_of)(trained, settings, bench)
    if not compiled:
        freeze, drift = (bytes_after(trained, SETTINGS[name]) for name in ("last:1", "last:1, drift"))
        found["drift_bytes"] = drift - freeze
    return found


def predictions(trained: Trainee, settings: Mapping[str, MultirateConfig], *, counted: bool) -> dict[str, Any]:
    """Kinds of steps of a cycle, and the predicted speed-up from weights and, if ``counted``, from FLOPs."""
    found = {}
    for name, config in settings.items():
        with Multirate(config).attach(trained.called, trained.optimizer) as controller:
            schedule = controller.schedule
            number = {
                f"{name}: {kind_of(controller, schedule.example(live))}": n for live, n in schedule.kinds.items()
            }
            weights = controller.timing.speedup_predicted
        found[name] = {"cycle": number, "from_weights": weights, "from_flops": None}
    if counted:
        try:
            with trained.place.autocast(trained.precision):
                plans = plan(trained.model, trained.batch, dict(settings))
        except Exception as error:  # a prediction is no reason to lose the measurement
            return {name: {**one, "plan_error": in_short(error)} for name, one in found.items()}
        for one in plans:
            found[one.label]["from_flops"] = one.speedup
    return found


def rounds_of(trained: Trainee, settings: Mapping[str, MultirateConfig], bench: Bench) -> dict[str, list[float]]:
    """Seconds of each kind of step, in as many rounds as fit: the first round is not counted."""
    timer = Timer()
    blocks: dict[str, Callable[[int], None]] = {
        "baseline": lambda _: time_baseline(trained, timer, BASELINE_STEPS),
        **dict(_cycles(trained, settings, timer)),
    }
    interleave(blocks, 0, timer, warm_up=1)
    begun = time.monotonic()
    interleave(blocks, 1, timer, warm_up=0)
    one = time.monotonic() - begun
    most = bench.number(MOST_ROUNDS, 2)
    fitting = int(min(10.0, 0.5 * max(bench.left, 0.0)) / max(one, 1e-3))
    interleave(blocks, max(2, min(most, fitting)) - 1, timer, warm_up=0)
    return {kind: [round(value, 7) for value in values] for kind, values in timer.seconds.items()}


def compiled_rounds(trained: Trainee, settings: Mapping[str, MultirateConfig], bench: Bench) -> dict[str, list[float]]:
    """The same for a compiled model: each setting is attached once, since another attachment may compile again."""
    timer, number = Timer(), bench.number(MOST_ROUNDS, 2)
    time_baseline(trained, Timer(), 1)
    for name, config in settings.items():
        time_baseline(trained, timer, number)
        time_cycle(trained, name, config, timer, cycles=number + 1)
        time_baseline(trained, timer, number)
    return {kind: [round(value, 7) for value in values] for kind, values in timer.seconds.items()}


def _cycles(
    trained: Trainee, settings: Mapping[str, MultirateConfig], timer: Timer
) -> Iterator[tuple[str, Callable[[int], None]]]:
    for name, config in settings.items():
        yield name, lambda _, name=name, config=config: time_cycle(trained, name, config, timer)


def bytes_after(trained: Trainee, config: MultirateConfig) -> int:
    """Bytes that are allocated after a full and a fast step, while the controller is attached."""
    with Multirate(config).attach(trained.called, trained.optimizer) as controller:
        for step in range(2):
            controller.begin_step(step)
            trained.step()
        trained.place.free()  # what an earlier controller held is no memory of this one
        return trained.place.allocated()
