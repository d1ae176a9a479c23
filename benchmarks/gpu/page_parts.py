"""The tables of the page, part by part, from the values in the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean, median
from typing import Any

from benchmarks.gpu.results import GpuResults
from benchmarks.tables import percent, table, with_interval, with_quartiles


Values = Mapping[str, Any]

TRAINER = "Trainer"


def in_cell(text: str) -> str:
    """A text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _milliseconds(seconds: list[float]) -> str:
    return with_quartiles([1000 * value for value in seconds])


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _where(values: Values) -> list[str]:
    return [values["network"], values["shape"], values["precision"], values["mode"]]


def fast_kind(cycle: Mapping[str, int]) -> str:
    """The kind of step with the fewest live groups: kinds are in the order of their groups, the full step first."""
    return list(cycle)[-1]


def cycle_speedup(values: Values, setting: str) -> float:
    """Speed-up of a cycle over as many steps of standard training, from medians."""
    cycle, seconds = values["settings"][setting]["cycle"], values["seconds"]
    spent = sum(number * median(seconds[kind]) for kind, number in cycle.items())
    return sum(cycle.values()) * median(seconds["baseline"]) / spent


def kinds(file: GpuResults) -> Iterator[str]:
    """Steps, speed-ups and drift."""
    cells = list(file.values("kinds").values())
    if not cells:
        return
    settings = list(dict.fromkeys(name for values in cells for name in values["settings"]))
    yield (
        "Milliseconds of a step of standard training: median and quartiles of marks on the device, settings in turn. "
        "*Forward* is the share of the forward pass. The other columns are the fast step of a setting as a share of "
        "that step; for the ladder, the mean step of its cycle."
    )
    yield table(["network", "rows x tokens", "precision", "mode", "step, ms", "forward", *settings],
                [_step_row(values, settings) for values in cells])  # fmt: skip
    yield (
        "Speed-up of a cycle of four steps: predicted from the weights, as `Multirate` does; predicted from FLOPs, as "
        "`hf-multirate plan` does; and measured."
    )
    rows = [row for values in cells for row in _speedup_rows(values)]
    yield table(["network", "precision", "mode", "setting", "from weights", "from FLOPs", "measured"], rows)
    drifts = [row for values in cells if (row := _drift_row(values))]
    if drifts:
        yield "Drift: milliseconds of a fast step of `last:1` with `freeze` and `drift`, and memory that drift adds."
        yield table(["network", "precision", "freeze, ms", "drift, ms", "memory, GB"], drifts)


def _step_row(values: Values, settings: list[str]) -> list[str]:
    seconds = values["seconds"]
    baseline = median(seconds["baseline"])
    shares = []
    for name in settings:
        if name not in values["settings"]:
            shares.append("")
        elif name.startswith("ladder"):
            shares.append(f"{1 / cycle_speedup(values, name):.2f}")
        else:
            shares.append(f"{median(seconds[fast_kind(values['settings'][name]['cycle'])]) / baseline:.2f}")
    forward = median(seconds["baseline, forward"]) / baseline
    return [*_where(values), _milliseconds(seconds["baseline"]), f"{forward:.2f}", *shares]


def _speedup_rows(values: Values) -> Iterator[list[str]]:
    network, _, precision, mode = _where(values)
    for name, setting in values["settings"].items():
        flops = "" if setting["from_flops"] is None else f"{setting['from_flops']:.2f}"
        measured = f"{cycle_speedup(values, name):.2f}"
        yield [network, precision, mode, name, f"{setting['from_weights']:.2f}", flops, measured]


def _drift_row(values: Values) -> list[str] | None:
    if "drift_bytes" not in values:
        return None
    cycles = [values["settings"][name]["cycle"] for name in ("last:1", "last:1, drift")]
    steps = [_milliseconds(values["seconds"][fast_kind(cycle)]) for cycle in cycles]
    return [values["network"], values["precision"], *steps, _gigabytes(values["drift_bytes"])]


def runs(file: GpuResults) -> Iterator[str]:
    """Whole runs, idle time, and host synchronisation."""
    found = file.values("runs")
    whole = {name: values for name, values in found.items() if "steps" in values}
    if whole:
        yield (
            "Whole runs in bf16, Trainer and settings in turn. *Promised* is the speed-up of a cycle from the steps "
            "above; *share* is the measured speed-up as a share of it."
        )
        rows = [row for values in whole.values() for row in _run_rows(values, file.values("kinds"))]
        yield table(["network", "rows x tokens", "run", "seconds of a step", "speed-up", "promised", "share"], rows)
    busy = [values for values in found.values() if "kinds" in values]
    if busy:
        yield (
            "Idle time of the GPU by batch size, `last:1`: where the GPU waits for the host, a fast step saves less. "
            "*Idle* is the share of a step in which no kernel runs, *host* the time until the host has given out the "
            "work."
        )
        rows = [row for values in sorted(busy, key=lambda v: (v["network"], v["batch"])) for row in _busy_rows(values)]
        header = ["network", "rows x tokens", "step", "ms", "share of a full step", "idle", "kernels", "host, ms"]
        yield table(header, rows)
    if "host synchronisation" in found:
        yield from _synchronisation(found["host synchronisation"])


def _run_rows(values: Values, steps: Mapping[str, Values]) -> Iterator[list[str]]:
    base = values["seconds"][TRAINER]
    kinds_of = steps.get(f"{values['network']}, bf16, eager")
    for name, seconds in values["seconds"].items():
        each = " and ".join(f"{value / values['steps']:.4f}" for value in seconds)
        speedup = fmean(base) / fmean(seconds)
        promised = None
        if kinds_of and kinds_of["shape"] == values["shape"] and name in kinds_of["settings"]:
            promised = cycle_speedup(kinds_of, name)
        of_promised = ["", ""] if promised is None else [f"{promised:.2f}", f"{speedup / promised:.2f}"]
        yield [values["network"], values["shape"], name, each, f"{speedup:.2f}", *of_promised]


def _busy_rows(values: Values) -> Iterator[list[str]]:
    full = median(values["kinds"]["full"]["seconds"])
    for kind, one in values["kinds"].items():
        share = f"{median(one['seconds']) / full:.2f}"
        seen = [one["profiler"], ""] if one["idle"] is None else [f"{one['idle']:.2f}", f"{one['kernels']:.0f}"]
        cells = [_milliseconds(one["seconds"]), share, *map(in_cell, seen)]
        yield [values["network"], values["shape"], kind, *cells, _milliseconds(one["launch_seconds"])]


def _synchronisation(values: Values) -> Iterator[str]:
    yield "Times that the host waits for the GPU in a number of steps, as `torch.cuda.set_sync_debug_mode` tells:"
    rows = []
    for name, one in values["contenders"].items():
        places = ", ".join(f"`{place}` {number}" for place, number in one["places"].items())
        rows.append([name, str(one["steps"]), str(one["number"]), f"{values['more_than_trainer'][name]:+d}", places])
    yield table(["run", "steps", "times", "more than Trainer", "places"], rows)


def memory(file: GpuResults) -> Iterator[str]:
    """Peaks by network and variant."""
    cells = list(file.values("memory").values())
    if not cells:
        return
    columns = list(dict.fromkeys(kind for values in cells for kind in values["peaks"]))
    yield (
        "Gigabytes that torch has allocated, in bf16: between steps, at the peak of a step of standard training, and "
        "at the peaks of multirate training by live groups."
    )
    rows = []
    for values in cells:
        sizes = [values["between_steps"], *(values["peaks"].get(kind) for kind in columns)]
        rows.append(
            [
                values["network"],
                values["shape"],
                values["variant"],
                *("" if s is None else _gigabytes(s) for s in sizes),
            ]
        )
    yield table(["network", "rows x tokens", "variant", "between steps", *columns], rows)


def correctness(file: GpuResults) -> Iterator[str]:
    """All checks."""
    lines = file.of("correctness")
    if not lines:
        return
    rows = []
    for line in lines:
        values = line["values"]
        result = ("passed" if values["passed"] else "**failed**") if values else line["status"]
        rows.append([line["cell"], result, in_cell(values["text"] if values else line["reason"])])
    yield table(["check", "result", "number or reason"], rows)


def equal_time(file: GpuResults) -> Iterator[str]:
    """Accuracy by task, budget and contender."""
    for values in file.values("equal_time").values():
        yield f"### {values['task']}, one epoch, {values['seeds']} seeds"
        yield "Points ahead of the expert baseline, with 95 % intervals. Seconds are those of this GPU."
        rows = []
        for budget, contenders in values["budgets"].items():
            for name, one in contenders.items():
                gap = "expert baseline" if one["expert"] else _points(one["ahead"])
                rows.append([budget, name, f"{one['steps']:.0f}", percent(one["accuracy"]), gap])
        yield table(["budget", "contender", "steps", "accuracy, %", "ahead"], rows)


def _points(gap: list[float] | None) -> str:
    """A difference with its interval, which a single seed lacks."""
    return "" if gap is None else with_interval(*gap)
