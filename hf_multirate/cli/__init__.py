"""Command-line program ``hf-multirate``: plan a run, report on a run, compare a run with a baseline."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from torch import nn

from hf_multirate.cli.compare import compare
from hf_multirate.cli.load_model import TASKS, BatchSize, load
from hf_multirate.config.auto_periods import require_speedup
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import NEVER, parse_ladder, require_period
from hf_multirate.config.validation import reason, require_int
from hf_multirate.model.presets import head_parameters
from hf_multirate.planning import Plan, plan, plans_reaching
from hf_multirate.reporting import report


DEFAULT_FAST = ("head", "last:1", "last:2")
DEFAULT_PERIODS = (2, 5, 10)
SPEEDUP_PERIODS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Default periods with ``--speedup``, which lists the smallest sufficient cycle first."""


def configs_of(fast: Sequence[str], periods: Sequence[int | str]) -> dict[str, MultirateConfig]:
    """Configurations by label: each fast part combined with each period, and ladders with their own periods.

    Raises:
        ValueError: a ladder is not a list of integers, or a value is out of range.
    """
    configs = {}
    for part in fast:
        ladder = parse_ladder(part)
        if ladder is not None:
            configs[part] = MultirateConfig.ladder(ladder)
        else:
            configs |= {f"{part}, period {period}": MultirateConfig.two_rate(part, period) for period in periods}
    return configs


def _configs(options: argparse.Namespace) -> dict[str, MultirateConfig]:
    """Configurations of ``--config``, and of ``--fast`` and ``--period`` if given or if there is no ``--config``."""
    found = {path: MultirateConfig.from_json_file(path) for path in options.config or ()}
    if found and not (options.fast or options.period):
        return found
    periods = options.period or (SPEEDUP_PERIODS if options.speedup else DEFAULT_PERIODS)
    return found | configs_of(options.fast or DEFAULT_FAST, periods)


def _without_tied_head(configs: dict[str, MultirateConfig], model: nn.Module) -> dict[str, MultirateConfig]:
    """The default configurations, without those of a head that is tied to the embedding or cannot be found."""
    try:
        head_parameters(model)
    except ValueError:
        return {label: config for label, config in configs.items() if not label.startswith("head, ")}
    return configs


def _plan(options: argparse.Namespace) -> None:
    from rich.console import Console

    from hf_multirate.cli.plan_tables import print_plans

    _check_plan(options)
    configs = _configs(options)
    with contextlib.redirect_stdout(sys.stderr):  # the user's code may print, which must not mix with --json
        model, batch = load(options.model, options.task, BatchSize(options.batch, options.seq))
        configs = configs if options.fast else _without_tied_head(configs, model)
        plans = plan(model, batch, configs, measure=options.measure)
    if options.speedup is not None:
        largest = max(plans, key=_bound)
        plans = plans_reaching(options.speedup, plans)
        if not plans:
            raise ValueError(
                f"no configuration reaches a speed-up of {options.speedup}: the largest bound is "
                f"{_bound(largest):.2f}, of {largest.label}. Use a smaller --speedup, a "
                "smaller part for --fast, or a longer --period."
            )
    if options.json:
        sys.stdout.write(json.dumps([p.to_dict() for p in plans], indent=2) + "\n")
    else:
        print_plans(plans, Console(), details=options.details or len(plans) == 1)


def _bound(plan: Plan) -> float:
    return plan.bound_measured or plan.bound


def _check_plan(options: argparse.Namespace) -> None:
    require_int("--batch", options.batch, least=1)
    require_int("--seq", options.seq, least=1)
    for period in options.period or ():
        require_period("--period", period)
    if options.speedup is not None:
        require_speedup("--speedup", options.speedup)


def _period(text: str) -> int | str:
    return text if text == NEVER else int(text)


_period.__name__ = "period"  # argparse names it in errors


def _report(options: argparse.Namespace) -> None:
    page = report(options.run_dir, options.baseline_dir, options.out, allow_differences=options.allow_differences)
    sys.stdout.write(f"{page}\n")


def _compare(options: argparse.Namespace) -> None:
    page = compare(options.script, options.arguments, options.out, allow_differences=options.allow_differences)
    sys.stdout.write(f"{page}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-multirate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_plan(commands.add_parser("plan", help="predict the speed-up of configurations before training"))
    command = commands.add_parser("report", help="write a report on a run, or on a run and its baseline")
    command.add_argument("run_dir", help="output_dir of a run of MultirateTrainer")
    command.add_argument("baseline_dir", nargs="?", help="output_dir of standard training with the same data and seed")
    command.add_argument("--out", help="folder for the report (default: report in RUN_DIR)")
    _add_allow_differences(command)
    command.set_defaults(run=_report)
    command = commands.add_parser(
        "compare", help="run a script twice, with and without multirate training, and report on both"
    )
    command.add_argument("--out", default="comparison", help="folder for records and report (default: comparison)")
    _add_allow_differences(command)
    command.add_argument("script", help="Python script that trains with MultirateTrainer")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    command.set_defaults(run=_compare)
    return parser


def _add_allow_differences(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-differences",
        action="store_true",
        help="compare runs that differ in data, seed or machine, and add a warning to the page",
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="hub name, local folder, or module:function")
    command.add_argument("--task", choices=TASKS, help="task of the model, if its configuration names no class")
    command.add_argument("--batch", type=int, default=32, help="rows of the batch (default: 32)")
    command.add_argument("--seq", type=int, default=128, help="tokens of each text (default: 128)")
    command.add_argument(
        "--fast",
        nargs="+",
        help=f"fast parts: presets, patterns or ladder:1,2,4 (default: {' '.join(DEFAULT_FAST)}; none with --config)",
    )
    command.add_argument("--config", nargs="+", help="JSON files with a MultirateConfig each, such as one with stages")
    command.add_argument(
        "--period",
        nargs="+",
        type=_period,
        help=f"periods, or never (default: {' '.join(map(str, DEFAULT_PERIODS))}; more with --speedup)",
    )
    command.add_argument(
        "--speedup", type=float, help="list configurations with at least this speed-up, the smallest cycle first"
    )
    command.add_argument("--measure", action="store_true", help="time the steps on this machine")
    command.add_argument("--details", action="store_true", help="also show steps and groups of each configuration")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.set_defaults(run=_plan)


def main(argv: list[str] | None = None) -> None:
    """Run the command-line program. Errors that the user can fix end it with a one-line message.

    Args:
        argv: Arguments; None for ``sys.argv[1:]``.
    """
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (ValueError, TypeError, NotImplementedError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except (RuntimeError, MemoryError) as error:  # e.g. torch runs out of memory
        sys.exit(f"error: {reason(error)}")
    except OSError as error:
        sys.exit(f"error: {error}. Check that the path exists and can be read and written.")
    except KeyboardInterrupt:
        sys.exit("error: interrupted.")
    except SystemExit as error:  # raised by the user's model
        sys.exit(f"error: the model or function ended the command with SystemExit({error.code!r}).")


if __name__ == "__main__":
    main()
