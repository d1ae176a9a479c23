"""Run a script twice, with standard and with multirate training, and report on both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_multirate.reporting import report
from hf_multirate.reporting.run_record import FILE, RECORD_VARIABLE
from hf_multirate.trainer.arguments import SWITCH_VARIABLE


OUTPUT = "--output_dir"
SIDES = {"baseline": "off", "multirate": "on"}
"""Name of the run -> value of the switch; the baseline goes first."""


def compare(script: str, arguments: Sequence[str], out: str | Path, *, allow_differences: bool = False) -> Path:
    """Run ``script`` with ``arguments`` twice, one run after the other, and write a report.

    Both get the same arguments, and so the same seeds; only ``--output_dir``, if it is among them, gains a folder for
    each run, so that neither finds checkpoints of the other.

    Args:
        script: A Python script that trains with `hf_multirate.MultirateTrainer`.
        arguments: Its command line.
        out: Where records and the report go.
        allow_differences: See `hf_multirate.reporting.report`.

    Returns:
        The page.

    Raises:
        ValueError: the script is not there, ends with an error, or trains with another Trainer; ``out`` cannot be
            written; or the runs differ.
    """
    if not Path(script).is_file():
        raise ValueError(f"there is no script {script!r}: give a Python file that trains with MultirateTrainer.")
    folders = {side: Path(out, side).resolve() for side in SIDES}
    for side, folder in folders.items():
        _prepare(folder)
        _run([script, *_apart(arguments, side)], side, folder)
    return report(folders["multirate"], folders["baseline"], Path(out, "report"), allow_differences=allow_differences)


def _prepare(folder: Path) -> None:
    """Make ``folder``, without the record of an earlier comparison."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"no record can be written into {str(folder)!r} ({error.strerror or error}): give --out."
        ) from None


def _run(command: Sequence[str], side: str, folder: Path) -> None:
    environment = os.environ | {SWITCH_VARIABLE: SIDES[side], RECORD_VARIABLE: str(folder)}
    sys.stdout.write(f"{side}: {' '.join(command)}\n")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, *command], env=environment, check=False)
    if done.returncode:
        raise ValueError(f"the {side} run of {command[0]!r} ended with exit code {done.returncode}; see above.")
    if not (folder / FILE).is_file():
        raise ValueError(
            f"the {side} run of {command[0]!r} has left no record: does it train with MultirateTrainer, and does it "
            "come to train()?"
        )


def _apart(arguments: Sequence[str], side: str) -> list[str]:
    """The arguments with an output folder of its own for each run.

    >>> _apart(["--output_dir", "out", "--seed=1"], "baseline")
    ['--output_dir', 'out/baseline', '--seed=1']
    """
    found = list(arguments)
    for i, argument in enumerate(found):
        if argument == OUTPUT and i + 1 < len(found):
            found[i + 1] = str(Path(found[i + 1], side))
        elif argument.startswith(f"{OUTPUT}="):
            found[i] = f"{OUTPUT}={Path(argument.partition('=')[2], side)}"
    return found
