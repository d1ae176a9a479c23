"""What the commands of the suites share: options of a run of many trainings, and its start."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import machine
from benchmarks.accuracy.tasks import InputError


def add_suite_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add the options of data, processes and results; ``out`` is the default folder of results."""
    parser.add_argument("--data-dir", type=Path, help="folder with the data of all tasks but 'embedded' and 'imdb'")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; 0 runs in this process (default: 2)")
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted files, for trying out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def start(options: argparse.Namespace, run: Callable[[argparse.Namespace], None], *, needs_hub: bool = False) -> None:
    """Run suites on one thread a process, with the commit in ``options.measured``. Exits if an input is missing."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not needs_hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        options.measured = machine.commit(options.out, allow_dirty=options.allow_dirty)
        run(options)
    except (InputError, machine.UncommittedFilesError) as error:
        sys.exit(f"error: {error}")
