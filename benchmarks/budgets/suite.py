"""Compare contenders at equal time, and keep one line of results for each run.

    python -m benchmarks accuracy --data-dir DIR --budgets 0.25 0.4 --lengths short
    python -m benchmarks accuracy --tasks trec --contenders baseline "ladder 1,2,4" --plan
    python -m benchmarks accuracy --tasks trec --budgets 0.4 --again --data-dir DIR
    python -m benchmarks report                                    # docs/results/equal_time.md from the results

For each task, the kinds of steps are timed first, with nothing beside them. Then each contender has three trials for
each length at a budget of 0.4, with a separate seed, and one more beyond the edge if the best rate is there. It takes
the rate with the best accuracy on validation rows to all seeds and budgets of that length. Short runs come before long
ones, and all contenders of a budget before the next, seed by seed, baselines first. So a suite that was killed leaves
whole comparisons; it continues where it was, since a run whose result is there is not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.accuracy.chosen_runs import best_rate
from benchmarks.accuracy.results import RESULTS, Result, ResultsFile
from benchmarks.accuracy.resumable_runs import ResumableRuns
from benchmarks.accuracy.suite_command import add_suite_options, start
from benchmarks.accuracy.tasks import InputError, Task, missing
from benchmarks.accuracy.worker_pool import workers
from benchmarks.budgets.contenders import CONTENDERS, DEFAULT, Contender, named
from benchmarks.budgets.kinds import KINDS, PASSES, KindsFile, to_time
from benchmarks.budgets.plan import BUDGETS, Plan, Planner, budget_seconds, mix_of
from benchmarks.budgets.repeat import repeated
from benchmarks.budgets.run_one import Spec, run, timed
from benchmarks.budgets.settings import FAMILIES, LANGUAGE_ONLY, NO_DROPOUT
from benchmarks.budgets.tasks import HELD_OUT, LANGUAGE_MODELS, TASKS
from benchmarks.budgets.trials import TRIAL_BUDGET, TRIAL_SEED, grid, one_more, scores_of
from benchmarks.commands import parser_of
from benchmarks.tables import table
from hf_multirate.model.setup_warnings import emulates_low_precision


FOLDER = RESULTS / "budgets"


class Runs(ResumableRuns):
    """The runs of one task and length: those of its file, and the others, which are run and added to it."""

    def __init__(self, task: Task, length: str, contenders: Sequence[Contender], options: argparse.Namespace) -> None:
        super().__init__(ResultsFile(options.out, task.name, length), options.measured)
        self.task, self.length, self.contenders = task, length, contenders
        self._options = options
        self._kinds = KindsFile(options.out / KINDS, task.name)

    def choose_rates(self, pool: Any, bar: Any) -> None:
        """Run the trials that are missing: the grid of each contender, and what one of them needs beyond its edge."""
        grids = {c.name: grid(self.task, c) for c in self.contenders}
        turns = zip(*([self._trial(name, rate) for rate in rates] for name, rates in grids.items()), strict=True)
        self.run_all([spec for turn in turns for spec in turn], pool, bar)
        beyond = {name: one_more(rates, self._scores(name)) for name, rates in grids.items()}
        more = [self._trial(name, rate) for name, rate in beyond.items() if rate is not None]
        bar.total += len(more)
        self.run_all(more, pool, bar)

    def finals(self, budget: float, pool: Any, bar: Any) -> None:
        """All contenders at one budget, seed by seed."""
        rates = {c.name: best_rate(self._scores(c.name)) for c in self.contenders}
        specs = [
            Spec(self.task.name, self.length, name, budget, rate, seed, "final")
            for seed in range(self._options.seeds)
            for name, rate in rates.items()
        ]
        self.run_all(specs, pool, bar)

    def plan(self, method: str, share: float) -> Plan:
        """The steps of a contender at a budget."""
        budget = budget_seconds(self._kinds, self.task, self._kinds.rows, self.length, share)
        return Planner(CONTENDERS[method], self._kinds, self._mix(method)).plan(budget)

    def planned(self, spec: Spec) -> Plan:
        """See `ResumableRuns`."""
        return self.plan(spec.method, spec.budget)

    def work(self, spec: Spec, plan: Plan) -> tuple[Any, ...]:
        """See `ResumableRuns`."""
        return run, spec, plan, self._options.data_dir, *on(self._options)

    def completed(self, spec: Spec, plan: Plan, result: Result) -> Result:
        """A result with its charge."""
        planner = Planner(CONTENDERS[spec.method], self._kinds)
        return {**result, "reference_seconds": planner.charge(result["kinds"]), "budget_seconds": plan.budget}

    def _trial(self, method: str, rate: float) -> Spec:
        return Spec(self.task.name, self.length, method, TRIAL_BUDGET, rate, TRIAL_SEED, "trial")

    def _scores(self, method: str) -> dict[float, float]:
        return scores_of(self._file.runs, method)

    def _mix(self, method: str) -> dict[str, float] | None:
        """Kinds of the trial at the best rate, for a contender whose kinds depend on the run."""
        scores = self._scores(method)
        if CONTENDERS[method].setting.kind != "vcas" or not scores:
            return None
        best = best_rate(scores)
        found = (r for r in self._file.runs if r["method"] == method and r["role"] == "trial" and r["rate"] == best)
        return mix_of(next(found)["kinds"])


def on(options: argparse.Namespace) -> tuple[str, ...]:
    """The device as a last argument of what runs, unless it is the CPU."""
    return () if options.device == "cpu" else (options.device,)


def time_kinds(
    task: Task, contenders: Sequence[Contender], options: argparse.Namespace, pool: Any, measure: Any = None
) -> None:
    """Time what is missing of the kinds of steps of ``contenders``, one after the other, with ``measure``.

    By default it is `benchmarks.budgets.run_one.timed` on the device of ``options``.
    """
    more = on(options) if measure is None else ()
    measure = measure or timed
    file = KindsFile(options.out / KINDS, task.name)
    waiting = list(to_time(contenders, file, options.passes))
    for number, function, name in tqdm(waiting, desc=f"{task.name}: seconds", disable=options.quiet or not waiting):
        words = (function, name, task.name, options.data_dir, *more)
        found = measure(*words) if pool is None else pool.submit(measure, *words).result()
        file.append(found["line"], number, found["machine"] | options.measured)


def suited(contenders: Sequence[Contender], task: Task) -> list[Contender]:
    """The contenders that can train the network of ``task``: some need a new head, others a network with dropout."""
    if task.name in LANGUAGE_MODELS:
        fitting = [c for c in contenders if not (c.head_rate or c.head_start or _names_head(c))]
        return [c for c in fitting if c.setting.build != NO_DROPOUT]
    return [
        c for c in contenders if c.name not in LANGUAGE_ONLY and not (c.setting.texts_only and task.optim == "sgd")
    ]


def _names_head(contender: Contender) -> bool:
    """Whether a rate group is the head, which is tied to the embedding in most language models."""
    return any("head" in group.patterns for group in contender.config.groups)


def chosen_tasks(options: argparse.Namespace) -> list[Task]:
    """The tasks that are asked for, and whose data are there.

    Raises:
        InputError: a task is kept apart and ``--held-out`` is not set, or the data of a named task are not there.
    """
    every = [name for name in TASKS if options.held_out or name not in HELD_OUT]
    names = [name for name in TASKS if name in options.tasks or ("all" in options.tasks and name in every)]
    apart = [name for name in names if name not in every]
    if apart:
        raise InputError(f"{apart[0]!r} is kept apart until the default is fixed; --held-out runs it all the same.")
    found = []
    for name in names:
        absent = missing(TASKS[name], options.data_dir)
        if absent and name in options.tasks:
            raise InputError(f"{name} cannot run: {absent}.")
        if absent:
            print(f"{name} is skipped: {absent}.")
        else:
            found.append(TASKS[name])
    slow = [task.name for task in found if task.bf16 and options.device == "cpu" and emulates_low_precision()]
    if slow:
        print(f"This processor has no instructions for bfloat16, so {', '.join(slow)} may take 30 times as long.")
    return found


def run_suites(options: argparse.Namespace) -> None:
    """All runs that are asked for: short before long, budget by budget, and all tasks at each."""
    chosen = options.contenders or (["all"] if options.again else DEFAULT)
    tasks, contenders = chosen_tasks(options), named(chosen)
    of_task = {task.name: suited(contenders, task) for task in tasks}
    each = 3 + options.seeds * len(options.budgets)
    total = sum(map(len, of_task.values())) * each * len(options.lengths)
    with workers(options.jobs) as pool:
        if options.again:
            print(repeated([(task, of_task[task.name]) for task in tasks], options, pool))
            return
        for task in tasks:
            time_kinds(task, of_task[task.name], options, pool)
        every = {(t.name, n): Runs(t, n, of_task[t.name], options) for n in options.lengths for t in tasks}
        if options.plan:
            print(plan_table(list(every.values()), options))
            return
        with tqdm(total=total, disable=options.quiet) as bar:
            for length in options.lengths:
                for i, budget in enumerate(options.budgets):
                    for task in tasks:
                        runs = every[task.name, length]
                        if i == 0:
                            runs.choose_rates(pool, bar)
                        runs.finals(budget, pool, bar)


def plan_table(every: Sequence[Runs], options: argparse.Namespace) -> str:
    """Steps of each contender at each budget, and reference hours of all trials and finals."""
    rows, hours = [], 0.0
    for runs in every:
        for contender in runs.contenders:
            plans = [runs.plan(contender.name, budget) for budget in options.budgets]
            trial = runs.plan(contender.name, TRIAL_BUDGET)
            whole = 3 * trial.seconds + options.seeds * sum(plan.seconds for plan in plans)
            hours += whole / 3600
            rows.append([runs.task.name, runs.length, contender.name, *(str(p.steps) for p in plans), f"{whole:.0f}"])
    header = ["task", "length", "contender", *(f"steps at {budget:g}" for budget in options.budgets), "seconds"]
    return f"{table(header, rows)}\n\n{hours:.2f} hours of one core in all"


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of("python -m benchmarks accuracy", __doc__)
    add, families = parser.add_argument, [f"family:{name}" for name in FAMILIES]
    names = [*TASKS, "all"]
    add("--tasks", "--task", nargs="+", choices=names, default=["all"], help="tasks, or all but those kept apart")
    add("--held-out", action="store_true", help="also run the tasks that are kept apart until the default is fixed")
    add_suite_options(parser, FOLDER)
    add("--budgets", "--budget", nargs="+", type=float, default=list(BUDGETS), help="shares of the baseline's seconds")
    add("--lengths", nargs="+", choices=["short", "long"], default=["short", "long"], help="one epoch, or three")
    add(
        "--contenders", nargs="+", choices=[*CONTENDERS, *families, "all"], metavar="NAME",
        help=f"names in quotes, as in the tables; {', '.join(families)}; or all (default: one for each property, or, "
        "with --again, all that are kept)",
    )  # fmt: skip
    add("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    add("--passes", type=int, default=PASSES, help=f"times that each kind of step is timed (default: {PASSES})")
    add("--again", action="store_true", help="repeat kept runs, and show both accuracies; nothing is added to --out")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where runs train; give --jobs 0 with a GPU")
    add("--plan", action="store_true", help="only time the kinds of steps, and show steps and hours")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the suites."""
    start(parsed(argv), run_suites)
