"""Run examples/run_glue.py over learning rates, seeds and settings, and keep every summary.

    python benchmarks/sweep.py stability --jobs 2     # plain against the default over five learning rates
    python benchmarks/sweep.py accuracy --jobs 2      # three epochs: what is fast, and what the rest does meanwhile
    python benchmarks/tables.py                       # the tables of docs/results.md

One JSON file per run; a run whose file exists is not repeated. Accuracies may be compared, times may
not: runs go side by side, one thread each. For times there is speed.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
RATES = ("2e-5", "5e-5", "1e-4", "2e-4", "5e-4")
COMMON = {"train_sampling_strategy": "group_by_length", "max_seq_length": "64", "disable_tqdm": "true"}
SETTINGS: dict[str, dict[str, str]] = {
    "plain": {"multirate": "off"},
    "default": {},
    "depth:0.33 train": {"multirate_fast": "depth:0.33", "multirate_idle_mode": "train"},
    "last:1": {"multirate_fast": "last:1"},
    "last:1 train": {"multirate_fast": "last:1", "multirate_idle_mode": "train"},
    "last:1 hold train": {"multirate_fast": "last:1", "multirate_idle": "hold", "multirate_idle_mode": "train"},
    "head train": {"multirate_fast": "head", "multirate_idle_mode": "train"},
    "head hold train": {"multirate_fast": "head", "multirate_idle": "hold", "multirate_idle_mode": "train"},
}
Run = tuple[str, dict[str, str]]


def stability() -> list[Run]:
    """One epoch of 3,520 sentences (110 steps) at every learning rate, three seeds each."""
    short = {"num_train_epochs": "1", "max_train_samples": "3520"}
    return [
        (f"stability {rate} {name} {seed}", {**SETTINGS[name], **short, "learning_rate": rate})
        for seed in SEEDS
        for name in ("plain", "default")
        for rate in RATES
    ]


def accuracy() -> list[Run]:
    """Three epochs of all sentences at the learning rate of the example, three seeds each."""
    first, rest = ("plain", "default"), [name for name in SETTINGS if name not in ("plain", "default")]
    return [(f"accuracy {name} {seed}", SETTINGS[name]) for names in (first, rest) for seed in SEEDS for name in names]


SUITES = {"stability": stability, "accuracy": accuracy}


def measure(run: Run) -> None:
    """One run in a process of its own, unless its result is there."""
    name, options = run
    path = RESULTS / f"{name.replace(' ', '_').replace(':', '')}.json"
    if path.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments = {**COMMON, **options, "seed": name.split()[-1], "output_dir": folder}
        flat = [word for key, value in arguments.items() for word in (f"--{key}", value)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(ROOT / "examples" / "run_glue.py"), *flat]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        summary = json.loads(Path(folder, "multirate_summary.json").read_text(encoding="utf-8"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    path.write_text(json.dumps({"run": name, "commit": commit.stdout.strip(), **summary}, indent=2) + "\n")
    print(f"{name}: accuracy {summary['eval_accuracy']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(measure, [run for run in SUITES[arguments.suite]() if arguments.only in run[0]]))


if __name__ == "__main__":
    main()
