"""Time plain training and multirate training of examples/run_glue.py in pairs, one after the other.

    python benchmarks/speed.py --pairs 3 -- --multirate_fast head
    python benchmarks/speed.py --pairs 5 -- --multirate_period 1

Everything behind ``--`` goes to the multirate run. The order within a pair alternates, so that a machine
that grows slower favours neither. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any


SCRIPT = Path(__file__).parent.parent / "examples" / "run_glue.py"


def run(options: list[str]) -> dict[str, Any]:
    """The summary of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPT), "--output_dir", folder, "--disable_tqdm", "true", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(Path(folder, "multirate_summary.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--common", default="", help="options of both runs, in one string")
    parser.add_argument("options", nargs="*", help="options of the multirate run")
    arguments = parser.parse_args()
    common = arguments.common.split()
    ratios = []
    for pair in range(arguments.pairs):
        sides = {"plain": [*common, "--multirate", "off"], "multirate": [*common, *arguments.options]}
        order = sorted(sides, reverse=pair % 2 == 0)
        results = {side: run(sides[side]) for side in order}
        plain, ours = results["plain"], results["multirate"]
        ratios.append(plain["train_runtime"] / ours["train_runtime"])
        full, fast = ours["seconds_full_step"], ours["seconds_fast_step"]
        print(
            f"pair {pair}: plain {plain['train_runtime']:.1f} s, multirate {ours['train_runtime']:.1f} s, "
            f"ratio {ratios[-1]:.3f}; plain step {plain['seconds_full_step']:.3f} s, full step {full:.3f} s, "
            f"fast step {fast or float('nan'):.3f} s, speed-up from step times {ours['speedup_realised']:.3f}; "
            f"accuracy {plain['eval_accuracy']:.3f} and {ours['eval_accuracy']:.3f}",
            flush=True,
        )
    print(f"ratio of whole runs: median {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
