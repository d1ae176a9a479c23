"""Process and wall-clock seconds of training without evaluation, of the whole run and by kind of step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class Stopwatch:
    """Process and wall seconds between `start` and `stop`, added up."""

    def __init__(self) -> None:
        self.process = self.wall = 0.0
        self._began = (0.0, 0.0)

    def start(self) -> None:
        """Start or continue."""
        self._began = (time.process_time(), time.perf_counter())

    def stop(self) -> None:
        """Pause."""
        self.process += time.process_time() - self._began[0]
        self.wall += time.perf_counter() - self._began[1]


class TrainingClock(TrainerCallback):
    """Times a run, and evaluates at given steps while the clock is stopped.

    Args:
        evaluate: Returns the metric of the curve.
        steps: Steps after which it is called.
        kind: Returns the kind of the present step.
    """

    def __init__(self, evaluate: Callable[[], float], steps: set[int], kind: Callable[[], str]) -> None:
        self.total = Stopwatch()
        self.curve: list[dict[str, float]] = []
        self.steps: dict[str, list[float]] = defaultdict(list)
        self._evaluate = evaluate
        self._at = steps
        self._kind = kind
        self._begun = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.total.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the start of the step."""
        self._begun = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the seconds of the step, and evaluate after the given steps."""
        self.steps[self._kind()].append(time.process_time() - self._begun)
        if state.global_step not in self._at:
            return
        self.total.stop()
        point = {"step": state.global_step, "process_seconds": self.total.process, "wall_seconds": self.total.wall}
        self.curve.append({**point, "metric": self._evaluate()})
        self.total.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.total.stop()

    def phases(self) -> dict[str, dict[str, float]]:
        """Number and mean process seconds of each kind of step."""
        return {kind: {"steps": len(s), "process_seconds": sum(s) / len(s)} for kind, s in self.steps.items()}
