"""What is seen of one training run: figures for the logs, and all that goes into its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from hf_multirate.controller.multirate import Multirate
from hf_multirate.controller.step_timer import has_enough_steps
from hf_multirate.model.blocks import blocks_of
from hf_multirate.model.cost_model import backward_costs, layers_of, step_cost
from hf_multirate.model.describe import shorten_names
from hf_multirate.model.unwrap import canonical_parameters, unwrap_model
from hf_multirate.reporting.record_check import ARGUMENTS, FROZEN
from hf_multirate.reporting.run_record import CHECKED_STEPS, RunRecord, checksum
from hf_multirate.trainer.log_values import PREFIX, Detailed, brief, with_valid_keys


ASIDE = "seconds_of_"
"""Prefix, in entries of the logs, of what took time and was no part of a step."""


class RunMetrics:
    """Collects, between two logs and over a whole run.

    Args:
        multirate: The controller of the run.
        args: Arguments of its Trainer.
    """

    def __init__(self, multirate: Multirate, args: TrainingArguments) -> None:
        self._multirate = multirate
        self._args = args
        self._norms = {True: Mean(), False: Mean()}
        self._logs: list[dict[str, float]] = []
        self._detailed = Detailed()
        self._checksums: list[int] = []
        self._start_step = 0
        self._seconds_before = 0.0
        self._aside_before: dict[str, float] = {}
        self._steps_before: dict[str, list[float]] = {"seconds": [], "full": []}
        self._elapsed: float | None = None
        self._blocks: dict[str, str] = {}
        self._kind = ""
        self._parts: dict[str, dict[str, Any]] = {}
        self._units: dict[str, float] = {}
        self._all_units = 0.0
        self.begun = False

    def begin(self, model: nn.Module, step: int, before: RunRecord | None) -> None:
        """The first step of ``model`` begins: ``step``, and the record ``before`` it, if the run was resumed."""
        model = unwrap_model(model)
        self._blocks, self.begun = blocks_of(model), True
        # Later the model may have other parameters: an adapter that was merged, or a weight that was pruned.
        self._kind, self._parts = type(model).__name__, self._partition(model)
        layers = layers_of(model)
        self._units = backward_costs(layers, self._blocks)
        self._all_units = step_cost(layers, set(canonical_parameters(model)))
        self._start_step = step
        kept = 0 if before is None else step - before.start_step
        if before is None or not 0 < kept <= len(before.steps["seconds"]):
            return  # it is of another run, or not as far
        self._start_step = before.start_step
        self._checksums = (before.data["checksums"][:kept] + self._checksums)[:CHECKED_STEPS]
        self._steps_before = {key: values[:kept] for key, values in before.steps.items()}
        self._logs = [entry for entry in before.logs if entry["step"] <= step and "train_runtime" not in entry]
        last: Mapping[str, float] = max(self._logs, key=lambda entry: entry["seconds"], default={})
        self._seconds_before = last.get("seconds", 0.0)
        self._aside_before = {key.removeprefix(ASIDE): last[key] for key in last if key.startswith(ASIDE)}

    def add_batches(self, batches: Sequence[Any]) -> None:
        """The batches of a step."""
        if len(self._checksums) < CHECKED_STEPS:
            self._checksums.append(checksum(batches))

    def add_norm(self, norm: Any) -> None:
        """The norm of all gradients of a step, before they were clipped."""
        if self._multirate.changes_training and isinstance(norm, Tensor):
            self._norms[self._multirate.is_full_step].add(norm)

    def log_values(self) -> dict[str, float]:
        """All figures of the run so far, and of gradients since the last call."""
        timing = self._multirate.timing
        numbers = {full: timing.counted(full=full) for full in (True, False)}
        found: dict[str, float | None] = {
            "seconds_full_step": timing.mean(full=True),
            "seconds_fast_step": timing.mean(full=False),
            "speedup": timing.speedup_of_run(timing.elapsed),
            "speedup_predicted": timing.predicted_so_far,
            "full_share": numbers[True] / max(1, sum(numbers.values())),
        }
        for kind, full in (("full", True), ("fast", False)):
            found[f"grad_norm_{kind}"] = self._norms[full].take()
        return {f"{PREFIX}{key}": value for key, value in (found | self._loss_decrease()).items() if value is not None}

    def shown(self, figures: Mapping[str, float], log: str) -> dict[str, float]:
        """The part of ``log_values`` for Trainer's logs: ``log`` is ``"brief"`` or ``"all"``."""
        if log == "all":
            return with_valid_keys(figures)
        return brief(figures, with_speedup=has_enough_steps(self._multirate.timing))

    def _loss_decrease(self) -> dict[str, float]:
        unit = self._seconds_per_unit()
        found: dict[str, float] = {}
        for block, average in self._multirate.loss_decrease.take(self._blocks).items():
            found[f"loss_decrease/{block}"] = average.decrease
            found[f"loss_decrease_age/{block}"] = average.age
            if unit and self._units.get(block):
                found[f"loss_decrease_per_second/{block}"] = average.decrease / (unit * self._units[block])
        return found

    def _seconds_per_unit(self) -> float | None:
        """Seconds of backward for a unit of work of the cost model, from the difference of both kinds of step."""
        timing = self._multirate.timing
        full, fast = timing.mean(full=True), timing.mean(full=False)
        left_out = (1.0 - timing.predicted_cost(full=False)) * self._all_units
        return (full - fast) / left_out if full and fast and full > fast and left_out else None

    def add_log_entry(self, logs: Mapping[str, float], step: int) -> None:
        """An entry of Trainer's logs."""
        numbers = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
        # Before the first step the clock is that of the run before, if there was one.
        seconds = self._seconds_before + self.elapsed if self.begun else 0.0
        aside = {f"{ASIDE}{purpose}": spent for purpose, spent in self._aside().items()} if self.begun else {}
        self._logs.append({**numbers, "step": step, "seconds": round(seconds, 4), **aside})
        self._detailed.note(self._logs[-1])

    def _aside(self) -> dict[str, float]:
        """Seconds of the whole run that were no part of a step."""
        now, before = self._multirate.timing.outside_seconds, self._aside_before
        return {key: round(before.get(key, 0.0) + now.get(key, 0.0), 4) for key in before | now}

    @property
    def elapsed(self) -> float:
        """Seconds since the first step, until training was over."""
        return self._multirate.timing.elapsed

    def finish(self) -> None:
        """Training is over."""
        self._multirate.timing.finish()

    def record(self, rows: Any) -> RunRecord:
        """All of it; ``rows`` are the training data."""
        timing, elapsed = self._multirate.timing, self.elapsed
        before = self._steps_before
        steps = {
            "seconds": before["seconds"] + [round(seconds, 6) for seconds in timing.seconds],
            "full": before["full"] + list(timing.full),
        }
        summary = timing.summary() | {
            "seconds": round(self._seconds_before + elapsed, 4),
            "seconds_aside": self._aside(),
            "speedup": timing.speedup_of_run(elapsed),
            "speedup_predicted_of_run": timing.predicted_so_far,
            "steps": len(steps["full"]),
            "full_steps": int(sum(steps["full"])),
            "fast_steps": int(len(steps["full"]) - sum(steps["full"])),
        }
        given: dict[str, Any] = self._args.to_dict()  # type: ignore[no-untyped-call]
        return RunRecord(
            config=self._multirate.config.to_dict(),
            groups=self._groups(),
            arguments={key: given.get(key) for key in ARGUMENTS},
            data={"rows": len(rows) if has_length(rows) else None, "checksums": self._checksums},
            model=self._kind,
            blocks=self._parts,
            plain=not self._multirate.changes_training,
            start_step=self._start_step,
            steps=steps,
            logs=self._logs,
            summary=summary,
        )

    def _groups(self) -> list[dict[str, Any]]:
        """The rate groups; with automatic periods their patterns are the names of their parameters."""
        groups = [asdict(group) for group in self._multirate.groups]
        if self._multirate.config.auto_periods is None:
            return groups
        names = self._multirate.partition
        return [{**group, "patterns": shorten_names(names[group["name"]])} for group in groups]

    def _partition(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        groups = {name: group for group, names in self._multirate.partition.items() for name in names}
        found: dict[str, dict[str, Any]] = {}
        for name, parameter in canonical_parameters(model).items():
            block = found.setdefault(self._blocks[name], {"parameters": 0, "groups": {}})
            block["parameters"] += parameter.numel()
            group = groups.get(name, FROZEN)
            block["groups"][group] = block["groups"].get(group, 0) + parameter.numel()
        return found


class Mean:
    """Running mean of tensors: one sum on their device, so nothing grows and the host never waits for the device."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._number = 0

    def add(self, value: Tensor) -> None:
        """One more value."""
        value = value.detach().float()
        self._sum = value if self._sum is None else self._sum + value
        self._number += 1

    def take(self) -> float | None:
        """The mean of the values since the last call, or None if there are none."""
        mean = None if self._sum is None else (self._sum / self._number).item()
        self._sum, self._number = None, 0
        return mean
