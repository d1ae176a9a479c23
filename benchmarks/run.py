"""Compare multirate training with everything a user would pick instead: one file of results per run.

    python benchmarks/run.py --suite trec --data-dir DIR
    python benchmarks/run.py --suite all --data-dir DIR --jobs 2
    python benchmarks/report.py                                    # tables and pictures from the files

A run whose file exists is not repeated, so a suite that was killed goes on where it was. Each contender has three
trials for each length, with a seed of their own, and takes the rate with the best accuracy on validation rows to all
seeds of that length. Runs go in processes that are pinned to one core each, contenders in turn. Where a suite goes on
with another commit or on another processor, plain training is run beside it once more, to tell what a second is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from contenders import CHOSEN, CONTENDERS
from curves import RESULTS, ROOT, best_rate, grids
from pool import workers
from sessions import clock_folder, session
from tasks import TASKS, InputError, Task, missing, write_summary
from training import Spec, hardware, run


TRIAL_SEED = 100


def trials(task: Task, length: str, contenders: Sequence[str]) -> list[Spec]:
    """Three learning rates for each contender."""
    return [
        Spec(task.name, length, name, rate * CONTENDERS[name].rate_scale, TRIAL_SEED, "trial")
        for rate in task.rates
        for name in contenders
    ]


def finals(task: Task, length: str, rates: dict[str, float], seeds: int) -> list[Spec]:
    """All seeds for each contender, at its chosen rate."""
    return [
        Spec(task.name, length, name, rate, seed, "final") for seed in range(seeds) for name, rate in rates.items()
    ]


def beside(task: Task, length: str, seeds: int, options: argparse.Namespace) -> list[Spec]:
    """Plain training once more for each seed, where what there is of it is of another commit or processor."""
    rates = grids(options.out).get((task.name, length, "plain"))
    if rates is None:
        return []
    plain = finals(task, length, {"plain": best_rate(rates)}, seeds)
    known = [result for spec in plain if (result := _known(spec, options)) is not None]
    if not known or any(session(result) == options.session for result in known):
        return []
    return [replace(spec, role="clock") for spec in plain]


def chosen_rates(results: dict[Spec, dict[str, Any]]) -> dict[str, float]:
    """The best rate of each contender, of its trials."""
    grids: dict[str, dict[float, float]] = defaultdict(dict)
    for spec, result in results.items():
        grids[spec.contender][spec.rate] = result["validation_metric"]
    return {name: best_rate(grid) for name, grid in grids.items()}


def commit(out: Path, *, dirty: bool) -> dict[str, Any]:
    """The commit that is measured.

    Raises:
        InputError: files differ from it, which ``dirty`` allows.
    """
    ours = [f":!{out.resolve().relative_to(ROOT)}"] if out.resolve().is_relative_to(ROOT) else []
    changed = _git("status", "--porcelain", "--", ".", *ours)
    if changed and not dirty:
        raise InputError(
            f"files differ from the commit that results would name, e.g. {changed.splitlines()[0].strip()!r}. Commit "
            "them, or run in a fresh clone; --allow-dirty marks the results as not to be shown."
        )
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _path(spec: Spec, options: argparse.Namespace) -> Path:
    folder = clock_folder(options.out, options.session) if spec.role == "clock" else options.out
    return folder / spec.file_name


def _known(spec: Spec, options: argparse.Namespace) -> dict[str, Any] | None:
    path = _path(spec, options)
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["spec"] != json.loads(json.dumps(spec.configuration())):
        raise InputError(f"{path} is of another configuration: give another --out, or move it away.")
    return result


def _wanting(specs: Sequence[Spec], options: argparse.Namespace) -> bool:
    return any(_known(spec, options) is None for spec in specs)


def run_all(specs: Sequence[Spec], pool: Any, options: argparse.Namespace, bar: Any) -> dict[Spec, dict[str, Any]]:
    """Results of ``specs``: those that there are, and the others run now, in this order."""
    results = {spec: known for spec in specs if (known := _known(spec, options)) is not None}
    bar.update(len(results))
    waiting = [spec for spec in specs if spec not in results]

    def keep(spec: Spec, result: dict[str, Any]) -> None:
        results[spec] = result | options.measured
        path = _path(spec, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_summary(results[spec], path)
        bar.set_postfix_str(f"{spec.contender}, {spec.length}: {result['validation_metric']:.3f}")
        bar.update()

    if pool is None:
        for spec in waiting:
            keep(spec, run(spec, options.data_dir))
        return results
    futures = {pool.submit(run, spec, options.data_dir): spec for spec in waiting}
    for future in as_completed(futures):
        keep(futures[future], future.result())
    return results


def run_task(task: Task, options: argparse.Namespace, pool: Any) -> None:
    """Trials, the choice of rates, and runs at the chosen rates, for each length."""
    seeds = options.seeds or task.seeds
    lengths = dict(task.epochs) if options.length == "both" else [options.length]
    number = len(options.contenders) * (len(task.rates) + seeds) * len(lengths)
    with tqdm(total=number, desc=task.name, disable=options.quiet) as bar:
        for length in lengths:
            rates = chosen_rates(run_all(trials(task, length, options.contenders), pool, options, bar))
            specs = finals(task, length, rates, seeds)
            clocks = beside(task, length, seeds, options) if _wanting(specs, options) else []
            bar.total += len(clocks)
            run_all(sorted(clocks + specs, key=lambda spec: spec.seed), pool, options, bar)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[*TASKS, "all"], required=True)
    parser.add_argument("--data-dir", type=Path, help="folder with the data of all tasks but 'embedded'")
    parser.add_argument("--length", choices=["short", "long", "both"], default="both")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CHOSEN), metavar="NAME")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3, or 5 for the smallest task)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; 0 runs in this process (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--allow-dirty", action="store_true", help="measure what is not committed; for trying out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the suites."""
    options = parsed(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    options.measured = commit(options.out, dirty=options.allow_dirty)
    options.session = (options.measured["commit"], hardware()["processor"])
    options.out.mkdir(parents=True, exist_ok=True)
    with workers(options.jobs) as pool:
        for name in TASKS if options.suite == "all" else [options.suite]:
            absent = missing(TASKS[name], options.data_dir)
            if absent and options.suite != "all":
                raise InputError(f"--suite {name} cannot run: {absent}.")
            if absent:
                print(f"{name} is skipped: {absent}.")
                continue
            run_task(TASKS[name], options, pool)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
