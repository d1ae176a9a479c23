"""Tables over all tasks: how far settings are ahead of plain training of the same seconds."""

from __future__ import annotations

from collections.abc import Mapping

from curves import Runs, ahead, seconds


NOT_RUN = "Not run yet."

SETTINGS = (
    *("multirate ladder 1,2,4 none", "multirate ladder 1,2,4,8 none", "multirate last:1 k5 none"),
    *("multirate last:2 k5 one", "multirate last:2 k5 all", "multirate head k5 all"),
    *("auto 1.3", "auto 1.6", "auto 2", "auto 3"),
    *("frozen below last:2", "LISA"),
)


TASKS = {
    "cifar10": "CIFAR-10, SGD",
    "embedded": "sentences",
    "embedded_bf16": "sentences, bf16",
    "fashion": "Fashion-MNIST, SGD",
    "imdb": "IMDB",
    "sst2": "SST-2",
    "trec": "TREC, 50 labels",
}
HEADLINE = {"multirate ladder 1,2,4 none": "ladder", "frozen below last:2": "frozen"}
LENGTHS = {"short": "one epoch", "long": "three epochs"}


def headline(found: Mapping[tuple[str, str], Runs]) -> str:
    """A row per task, and a column for each of `HEADLINE` and `LENGTHS`; tasks with neither are left out."""
    columns = [(name, length) for name in HEADLINE for length in LENGTHS]
    titles = [f"{HEADLINE[name]}, {LENGTHS[length]}" for name, length in columns]
    rows = [f"| task | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for task, label in TASKS.items():
        cells = [_cell(found.get((task, length), {}), name) for name, length in columns]
        if any(cells):
            rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows) if len(rows) > 2 else NOT_RUN


def answer(found: Mapping[tuple[str, str], Runs], length: str) -> str:
    """A row per setting and a column per task, and the speed-ups from the least to the highest."""
    tasks = {task: runs for (task, kind), runs in found.items() if kind == length and "plain" in runs}
    if not tasks:
        return NOT_RUN
    rows = [f"| setting | {' | '.join(tasks)} | speed-up |", "|---" * (len(tasks) + 2) + "|"]
    for name in SETTINGS:
        times = [
            seconds(runs["plain"].values()) / seconds(runs[name].values()) for runs in tasks.values() if name in runs
        ]
        if times:
            cells = [_cell(runs, name) for runs in tasks.values()]
            ends = dict.fromkeys(f"{time:.1f}" for time in (min(times), max(times)))
            rows.append(f"| {name} | {' | '.join(cells)} | {' to '.join(ends)} |")
    return "\n".join(rows)


def _cell(runs: Runs, name: str) -> str:
    """Points and their standard error; empty where it was not run, or is faster than any plain run."""
    gap = ahead(runs, name) if name in runs else None
    return "" if gap is None else f"{100 * gap[0]:+.1f} ± {100 * gap[1]:.1f}"
