"""Whole runs of examples/run_glue.py in pairs: standard and multirate training, in an order that alternates.

    python -m benchmarks speed glue --pairs 3 -- --multirate_fast head
    python -m benchmarks speed glue --pairs 5 -- --multirate_period 1

Everything after ``--`` goes to the multirate run. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.commands import parser_of
from benchmarks.machine import ROOT
from benchmarks.speed.harness import Measurement, Timer, add_record, interleave, ratios, report


SCRIPT = ROOT / "examples" / "run_glue.py"


def run(options: list[str]) -> dict[str, Any]:
    """The summary of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPT), "--output_dir", folder, "--disable_tqdm", "true", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(Path(folder, "multirate_summary.json").read_text(encoding="utf-8"))


def speedup_of_steps(summary: Mapping[str, Any]) -> float:
    """Full steps only over the steps that were done, both measured within the run."""
    full, fast = summary["full_steps"], summary["fast_steps"]
    seconds = summary["seconds_full_step"]
    return (full + fast) * seconds / (full * seconds + fast * (summary["seconds_fast_step"] or 0.0))


def main(argv: list[str] | None = None) -> Measurement:
    """Measure pairs of runs."""
    parser = parser_of("python -m benchmarks speed glue", __doc__)
    parser.add_argument("--pairs", type=int, default=3, help="default: 3")
    parser.add_argument("--common", default="", help="options of both runs, in one string")
    parser.add_argument("options", nargs="*", help="options of the multirate run")
    add_record(parser)
    options = parser.parse_args(argv)
    common = options.common.split()
    sides = {"baseline": [*common, "--multirate", "off"], "multirate": [*common, *options.options]}
    summaries: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    timer = Timer()

    def block(side: str, pair: int) -> None:
        summary = run(sides[side])
        summaries[side].append(summary)
        timer.add(side, summary["train_runtime"])
        steps = ", ".join(f"{summary[f'seconds_{kind}_step'] or float('nan'):.3f} s" for kind in ("full", "fast"))
        print(
            f"pair {pair}, {side}: {summary['train_runtime']:.1f} s; full and fast step {steps}; accuracy "
            f"{summary['eval_accuracy']:.3f}",
            flush=True,
        )

    interleave({side: partial(block, side) for side in sides}, options.pairs, timer, warm_up=0)
    quotients = {
        "speed-up of whole runs": ratios(timer.seconds["baseline"], timer.seconds["multirate"]),
        "speed-up from step times": [speedup_of_steps(summary) for summary in summaries["multirate"]],
    }
    accuracies = {side: fmean(summary["eval_accuracy"] for summary in summaries[side]) for side in sides}
    return report(Measurement(timer.seconds, quotients, {"accuracy": accuracies}), options)
