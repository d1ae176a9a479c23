"""The command ``hf-multirate``: plan before training, and prove afterwards."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from hf_multirate.cli.compare import compare
from hf_multirate.cli.load_model import TASKS, Size, load
from hf_multirate.config.auto_periods import require_speedup
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import parse_ladder
from hf_multirate.config.validation import reason, require_int
from hf_multirate.planning import plan, plans_reaching
from hf_multirate.reporting import report


FAST = ("head", "last:1", "last:2")
PERIODS = (2, 5, 10)
TRIED_PERIODS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Periods among which ``--speedup`` looks for the smallest that is enough."""


def configs_of(fast: Sequence[str], periods: Sequence[int]) -> dict[str, MultirateConfig]:
    """Every fast part with every period; a ladder has periods of its own.

    Raises:
        ValueError: a ladder is no list of integers, or a value is out of range.
    """
    found = {}
    for part in fast:
        ladder = parse_ladder(part)
        if ladder is not None:
            found[part] = MultirateConfig.ladder(ladder)
        else:
            found |= {f"{part}, period {period}": MultirateConfig.two_rate(part, period) for period in periods}
    return found


def _plan(options: argparse.Namespace) -> None:
    from rich.console import Console

    from hf_multirate.cli.plan_tables import print_plans

    _check_plan(options)
    periods = options.period or (TRIED_PERIODS if options.speedup else PERIODS)
    configs = configs_of(options.fast, periods)
    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no part of the plan
        model, batch = load(options.model, options.task, Size(options.batch, options.seq))
        plans = plan(model, batch, configs, measure=options.measure)
    if options.speedup is not None:
        bound = max(p.bound_measured or p.bound for p in plans)
        plans = plans_reaching(options.speedup, plans)
        if not plans:
            raise ValueError(
                f"no setting reaches a speed-up of {options.speedup}: the bound of {', '.join(options.fast)} is "
                f"{bound:.2f}. Give a smaller --speedup, a smaller fast part, or longer --period."
            )
    if options.json:
        sys.stdout.write(json.dumps([p.to_dict() for p in plans], indent=2) + "\n")
    else:
        print_plans(plans, Console(), details=options.details or len(plans) == 1)


def _check_plan(options: argparse.Namespace) -> None:
    require_int("--batch", options.batch, least=1)
    require_int("--seq", options.seq, least=1)
    for period in options.period or ():
        require_int("--period", period, least=1)
    if options.speedup is not None:
        require_speedup("--speedup", options.speedup)


def _report(options: argparse.Namespace) -> None:
    page = report(options.run_dir, options.baseline_dir, options.out, allow_differences=options.allow_differences)
    sys.stdout.write(f"{page}\n")


def _compare(options: argparse.Namespace) -> None:
    page = compare(options.script, options.arguments, options.out, allow_differences=options.allow_differences)
    sys.stdout.write(f"{page}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-multirate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_plan(commands.add_parser("plan", help="what settings would save, from the model alone"))
    command = commands.add_parser("report", help="a page on a run, or on a run and its baseline")
    command.add_argument("run_dir", help="output_dir of a run of MultirateTrainer")
    command.add_argument("baseline_dir", nargs="?", help="output_dir of standard training with the same data and seed")
    command.add_argument("--out", help="folder of the report (default: report in RUN_DIR)")
    _add_allow_differences(command)
    command.set_defaults(run=_report)
    command = commands.add_parser(
        "compare", help="run a script twice, with and without multirate training, and report on both"
    )
    command.add_argument("--out", default="comparison", help="folder of records and report (default: comparison)")
    _add_allow_differences(command)
    command.add_argument("script", help="Python script that trains with MultirateTrainer")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    command.set_defaults(run=_compare)
    return parser


def _add_allow_differences(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-differences", action="store_true", help="also if the runs differ; the page is marked"
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="hub name, local folder, or module:function")
    command.add_argument("--task", choices=TASKS, help="what the model is for, if its configuration does not say")
    command.add_argument("--batch", type=int, default=32, help="rows of a batch")
    command.add_argument("--seq", type=int, default=128, help="tokens of a text")
    command.add_argument("--fast", nargs="+", default=list(FAST), help="fast parts: presets, patterns, ladder:1,2,4")
    command.add_argument("--period", nargs="+", type=int, help=f"periods (default: {' '.join(map(str, PERIODS))})")
    command.add_argument("--speedup", type=float, help="list the settings that reach this, the smallest period first")
    command.add_argument("--measure", action="store_true", help="time the steps on this machine")
    command.add_argument("--details", action="store_true", help="also show steps and groups of every setting")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_plan)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; what the user can put right ends it with one line."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (ValueError, TypeError, NotImplementedError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except (RuntimeError, MemoryError) as error:  # too large a batch, or whatever else torch refuses
        sys.exit(f"error: {reason(error)}")
    except OSError as error:
        sys.exit(f"error: {error}. Check that the path is right and can be read and written.")
    except KeyboardInterrupt:
        sys.exit("error: interrupted.")
    except SystemExit as error:  # of the user's model
        sys.exit(f"error: the model or function ended the command with SystemExit({error.code!r}).")


if __name__ == "__main__":
    main()
