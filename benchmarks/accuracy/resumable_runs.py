"""Runs of one file of results: those that it has, and the others, which are run and added to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.accuracy.results import Result, ResultsFile
from benchmarks.accuracy.tasks import InputError
from benchmarks.accuracy.worker_pool import results_of


def check_settings(file: ResultsFile, settings: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Check runs that are to be added to a file: the name of their method, and their settings.

    Raises:
        InputError: the file was measured with another configuration.
    """
    for method, of_run in settings:
        try:
            file.require_same(method, of_run)
        except ValueError as error:
            raise InputError(f"{error} Give another --out, or move the file away.") from error


class ResumableRuns(ABC):
    """The runs of one file. A subclass says how a run is planned, made and completed.

    A run is described by a frozen dataclass with the fields ``method`` and ``task`` and a method ``settings``. The
    file has it if one of its results has all fields.

    Args:
        file: The file.
        measured: What all runs of this process have in common, for their machine.
    """

    def __init__(self, file: ResultsFile, measured: dict[str, Any]) -> None:
        self._file = file
        self._measured = measured

    @abstractmethod
    def planned(self, spec: Any) -> Any:
        """The plan of a run, which is made before it begins."""

    @abstractmethod
    def work(self, spec: Any, plan: Any) -> tuple[Any, ...]:
        """A function that makes the run in any process, and its arguments."""

    @abstractmethod
    def completed(self, spec: Any, plan: Any, result: Result) -> Result:
        """The result as it is kept."""

    def missing(self, specs: Sequence[Any]) -> list[Any]:
        """Those that the file has not."""
        return [spec for spec in specs if self.known(spec) is None]

    def known(self, spec: Any) -> Result | None:
        """The result of a run in the file, if there is one."""
        for result in self._file.runs:
            if all(result[name] == value for name, value in vars(spec).items()):
                return result
        return None

    def run_all(self, specs: Sequence[Any], pool: Any, bar: Any) -> None:
        """Run those of ``specs`` that the file has not, in this order, and add their results.

        Raises:
            InputError: the file was measured with another configuration.
        """
        check_settings(self._file, ((spec.method, spec.settings()) for spec in specs))
        waiting = self.missing(specs)
        bar.update(len(specs) - len(waiting))
        plans = {spec: self.planned(spec) for spec in waiting}
        calls = {spec: self.work(spec, plan) for spec, plan in plans.items()}
        for spec, result in results_of(calls, pool):
            self._keep(spec, plans[spec], result, bar)

    def _keep(self, spec: Any, plan: Any, result: Result, bar: Any) -> None:
        """Add a result. Only this process writes: workers return their results."""
        result["machine"] |= self._measured
        self._file.append(self.completed(spec, plan, result))
        bar.set_postfix_str(f"{spec.task} {spec.method}: {result['validation_metric']:.3f}")
        bar.update()
