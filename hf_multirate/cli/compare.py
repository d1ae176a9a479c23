"""Command ``compare``: run a training script as baseline and with multirate training, and report on both runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_multirate.reporting import report
from hf_multirate.reporting.run_record import FILE, RECORD_VARIABLE
from hf_multirate.trainer.arguments import SWITCH_VARIABLE


OUTPUT_SWITCHES = ("--output_dir", "--output-dir")
"""Spellings of `HfArgumentParser`."""

RUNS = {"baseline": "off", "multirate": "on"}
"""Name of the run -> value of the multirate switch. The baseline runs first."""


def compare(script: str, arguments: Sequence[str], out: str | Path, *, allow_differences: bool = False) -> Path:
    """Run ``script`` twice, as baseline and with multirate training, and write a report.

    Both runs get the same arguments and therefore the same seeds. Only ``--output_dir``, if given, is extended by a
    folder for each run, so that no run finds checkpoints of the other.

    Args:
        script: Python script that trains with `hf_multirate.MultirateTrainer`.
        arguments: Command-line arguments of the script.
        out: Output folder for records and the report.
        allow_differences: See `hf_multirate.reporting.report`.

    Returns:
        Path of the HTML page.

    Raises:
        ValueError: the script does not exist, fails, or does not train with `hf_multirate.MultirateTrainer`; ``out``
            cannot be written; or the runs are not comparable.
    """
    if not Path(script).is_file():
        raise ValueError(f"there is no script {script!r}: give a Python file that trains with MultirateTrainer.")
    folders = {name: Path(out, name).resolve() for name in RUNS}
    for name, folder in folders.items():
        _prepare(folder)
        _run([script, *_with_output_folder(arguments, name)], name, folder)
    return report(folders["multirate"], folders["baseline"], Path(out, "report"), allow_differences=allow_differences)


def _prepare(folder: Path) -> None:
    """Create ``folder``, and remove the record of an earlier comparison from it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"no record can be written into {str(folder)!r} ({error.strerror or error}): choose another folder with "
            "--out."
        ) from None


def _run(command: Sequence[str], name: str, folder: Path) -> None:
    environment = os.environ | {SWITCH_VARIABLE: RUNS[name], RECORD_VARIABLE: str(folder)}
    sys.stdout.write(f"{name}: {' '.join(command)}\n")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, *command], env=environment, check=False)
    if done.returncode:
        raise ValueError(
            f"the {name} run of {command[0]!r} ended with exit code {done.returncode}: see its output above."
        )
    if not (folder / FILE).is_file():
        raise ValueError(
            f"the {name} run of {command[0]!r} wrote no record: check that the script trains with MultirateTrainer "
            "and calls train()."
        )


def _with_output_folder(arguments: Sequence[str], name: str) -> list[str]:
    """Arguments with the folder of the run appended to the output folder.

    >>> _with_output_folder(["--output_dir", "out", "--seed=1"], "baseline")
    ['--output_dir', 'out/baseline', '--seed=1']
    """
    extended = list(arguments)
    for i, argument in enumerate(extended):
        switch, equals, folder = argument.partition("=")
        if switch not in OUTPUT_SWITCHES:
            continue
        if equals:
            extended[i] = f"{switch}={Path(folder, name)}"
        elif i + 1 < len(extended):
            extended[i + 1] = str(Path(extended[i + 1], name))
    return extended
