"""Metrics of a training run: values for the logs, and the content of its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from hf_multirate.config.rate_group import NEVER
from hf_multirate.controller.multirate import Multirate
from hf_multirate.controller.step_timer import has_enough_steps
from hf_multirate.model.blocks import blocks_of
from hf_multirate.model.cost_model import backward_costs, layers_of, step_cost
from hf_multirate.model.describe import shorten_names
from hf_multirate.model.unwrap import canonical_parameters, unwrap_model
from hf_multirate.reporting.record_check import ARGUMENTS, FROZEN
from hf_multirate.reporting.run_record import CHECKED_STEPS, RunRecord, checksum, environment_of
from hf_multirate.trainer.log_values import PREFIX, BlockEntries, default_values, with_valid_keys
from hf_multirate.trainer.resumed_seconds import OUTSIDE, seconds_until


CACHE = f"{PREFIX}activation_cache/"
"""Prefix of the log keys of an activation cache."""


class RunMetrics:
    """Collects metrics between two log entries and over a whole run.

    Args:
        multirate: The controller of the run.
        args: The training arguments.
    """

    def __init__(self, multirate: Multirate, args: TrainingArguments) -> None:
        self._multirate = multirate
        self._args = args
        self._norms = {True: Mean(), False: Mean()}
        self._logs: list[dict[str, float]] = []
        self._block_entries = BlockEntries()
        self._checksums: list[int] = []
        self._start_step = 0
        self._seconds_before = 0.0
        self._outside_before: dict[str, float] = {}
        self._steps_before: dict[str, list[float]] = {"seconds": [], "full": []}
        self._elapsed: float | None = None
        self._blocks: dict[str, str] = {}
        self._kind = ""
        self._parts: dict[str, dict[str, Any]] = {}
        self._rates: dict[str, tuple[float, float]] = {}
        self._units: dict[str, float] = {}
        self._all_units = 0.0
        self.begun = False
        self.head_start: dict[str, float] | None = None
        """Values of the head start of the run; None without one."""

    def begin(self, model: nn.Module, step: int, before: RunRecord | None) -> None:
        """Begin a run.

        Args:
            model: The model at the start of the run.
            step: Index of the first step.
            before: The record up to ``step`` of a resumed run.
        """
        model, self.begun = unwrap_model(model), True
        self.read_blocks(model)
        # Read now, because the parameters may change later, e.g. if an adapter is merged.
        self._kind, self._parts = type(model).__name__, self._partition(model)
        self._start_step = step
        steps_before = 0 if before is None else step - before.start_step
        if before is None or not 0 < steps_before <= len(before.steps["seconds"]):
            return  # the record belongs to another run, or ends before this step
        self._start_step = before.start_step
        self._checksums = (before.data["checksums"][:steps_before] + self._checksums)[:CHECKED_STEPS]
        self._steps_before = {key: values[:steps_before] for key, values in before.steps.items()}
        self._logs = [entry for entry in before.logs if entry["step"] <= step and "train_runtime" not in entry]
        self.head_start = before.summary.get("head_start")
        self._seconds_before, self._outside_before = seconds_until(before, steps_before, self._logs)

    def read_blocks(self, model: nn.Module) -> None:
        """Read the blocks of ``model``, whose parameters may be others than before."""
        model = unwrap_model(model)
        layers, self._blocks = layers_of(model), blocks_of(model)
        self._units = backward_costs(layers, self._blocks)
        self._all_units = step_cost(layers, set(canonical_parameters(model)))

    def add_head_start(self, values: Mapping[str, float]) -> None:
        """Add the values of a head start. Its seconds count for the run, although they precede the first step."""
        self.head_start = dict(values)
        self._seconds_before += values["seconds"]
        self._outside_before["head_start"] = values["seconds"]

    def add_batches(self, batches: Sequence[Any]) -> None:
        """Add the checksum of the batches of a step."""
        if len(self._checksums) < CHECKED_STEPS:
            self._checksums.append(checksum(batches))

    def add_norm(self, norm: Any) -> None:
        """Add the gradient norm of a step before clipping."""
        if self._multirate.changes_training and isinstance(norm, Tensor):
            self._norms[self._multirate.is_full_step].add(norm)

    def log_values(self) -> dict[str, float]:
        """Log key -> value: metrics of the run so far, and of gradients since the last call."""
        timing = self._multirate.timing
        numbers = {full: timing.counted(full=full) for full in (True, False)}
        values: dict[str, float | None] = {
            "seconds_full_step": timing.mean(full=True),
            "seconds_fast_step": timing.mean(full=False),
            "speedup": timing.speedup_of_run(timing.elapsed),
            "speedup_predicted": timing.predicted_so_far,
            "full_share": numbers[True] / max(1, sum(numbers.values())),
        }
        for kind, full in (("full", True), ("fast", False)):
            values[f"grad_norm_{kind}"] = self._norms[full].take()
        return {
            f"{PREFIX}{key}": value for key, value in (values | self._loss_decrease()).items() if value is not None
        }

    def add_rates(self) -> None:
        """Read the learning rates of a step before the schedule changes them, as Trainer does."""
        if self._multirate.settled.scales_learning_rates:
            self._rates = self._multirate.learning_rates()

    def learning_rates(self) -> dict[str, float]:
        """Log key -> learning rate of each rate group, if the configuration gives them different ones."""
        values: dict[str, float] = {}
        for group, (lowest, highest) in self._rates.items():
            values[f"{PREFIX}learning_rate/{group}"] = highest
            if lowest < highest:
                values[f"{PREFIX}lowest_learning_rate/{group}"] = lowest
        return with_valid_keys(values)

    def stage(self) -> dict[str, float]:
        """Log key -> number of the present stage, if the configuration has stages."""
        return {f"{PREFIX}stage": self._multirate.stage} if self._multirate.config.stage_list else {}

    def _stages(self) -> list[dict[str, Any]]:
        """The stages of the run: share of training at the end, periods, and predicted speed-up."""
        pairs = zip(self._multirate.stages, self._multirate.stage_speedups, strict=True)
        return [
            {
                "until": stage.until,
                "periods": {group.name: group.period for group in stage.config.groups}
                | dict.fromkeys(stage.partition.never, NEVER),
                "speedup_predicted": speedup,
            }
            for stage, speedup in pairs
        ]

    def activation_cache(self) -> dict[str, float]:
        """Log key -> count of the activation cache of this process; empty without one."""
        cache = self._multirate.activation_cache
        return {} if cache is None else {f"{CACHE}{key}": value for key, value in cache.summary().items()}

    def selected(self, values: Mapping[str, float], log: str) -> dict[str, float]:
        """The part of `log_values` for the logs of Trainer.

        Args:
            values: The result of `log_values`.
            log: ``"brief"`` or ``"all"``.
        """
        if log == "all":
            return with_valid_keys(values)
        return default_values(values, with_speedup=has_enough_steps(self._multirate.timing))

    def _loss_decrease(self) -> dict[str, float]:
        unit = self._seconds_per_unit()
        values: dict[str, float] = {}
        for block, average in self._multirate.loss_decrease.take(self._blocks).items():
            values[f"loss_decrease/{block}"] = average.decrease
            values[f"loss_decrease_age/{block}"] = average.age
            if unit and self._units.get(block):
                values[f"loss_decrease_per_second/{block}"] = average.decrease / (unit * self._units[block])
        return values

    def _seconds_per_unit(self) -> float | None:
        """Seconds of backward per unit of work of the cost model, from the difference of full and fast steps."""
        timing = self._multirate.timing
        full, fast = timing.mean(full=True), timing.mean(full=False)
        left_out = (timing.predicted_cost(full=True) - timing.predicted_cost(full=False)) * self._all_units
        return (full - fast) / left_out if full and fast and full > fast and left_out else None

    def add_log_entry(self, logs: Mapping[str, float], step: int) -> None:
        """Add an entry of the logs of Trainer to the record."""
        numbers = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
        # The clock starts at the first step; a resumed run continues the clock of the run before.
        seconds = self._seconds_before + self.elapsed if self.begun else 0.0
        outside = (
            {f"{OUTSIDE}{purpose}": spent for purpose, spent in self._outside_seconds().items()} if self.begun else {}
        )
        self._logs.append({**numbers, "step": step, "seconds": round(seconds, 4), **outside})
        self._block_entries.add(self._logs[-1])

    def _outside_seconds(self) -> dict[str, float]:
        """Purpose -> seconds outside of steps in the whole run."""
        now, before = self._multirate.timing.outside_seconds, self._outside_before
        return {key: round(before.get(key, 0.0) + now.get(key, 0.0), 4) for key in before | now}

    @property
    def elapsed(self) -> float:
        """Seconds from the first step until now, or until the end of training."""
        return self._multirate.timing.elapsed

    def finish(self) -> None:
        """End the run: stop the clock."""
        self._multirate.timing.finish()

    def record(self, rows: Any, train_time: float | None = None) -> RunRecord:
        """The record of the run.

        Args:
            rows: The training data set.
            train_time: Seconds for which the run was to train, if it has such a time.
        """
        timing, elapsed = self._multirate.timing, self.elapsed
        before = self._steps_before
        steps = {
            "seconds": before["seconds"] + [round(seconds, 6) for seconds in timing.seconds],
            "full": before["full"] + list(timing.full),
        }
        summary = timing.summary() | {
            "seconds": round(self._seconds_before + elapsed, 4),
            "seconds_aside": self._outside_seconds(),
            "train_time": train_time,
            "head_start": self.head_start,
            "activation_cache": self._cache_counts(),
            "speedup": timing.speedup_of_run(elapsed),
            "speedup_predicted_of_run": timing.predicted_so_far,
            "steps": len(steps["full"]),
            "full_steps": int(sum(steps["full"])),
            "fast_steps": int(len(steps["full"]) - sum(steps["full"])),
        }
        arguments: dict[str, Any] = self._args.to_dict()  # type: ignore[no-untyped-call]
        return RunRecord(
            config=self._multirate.config.to_dict(),
            groups=self._groups(),
            arguments={key: arguments.get(key) for key in ARGUMENTS},
            data={"rows": len(rows) if has_length(rows) else None, "checksums": self._checksums},
            model=self._kind,
            blocks=self._parts,
            standard=not self._multirate.changes_training,
            start_step=self._start_step,
            steps=steps,
            logs=self._logs,
            environment=environment_of(self._args.device),
            summary=summary | ({"stages": self._stages()} if self._multirate.config.stage_list else {}),
        )

    def _cache_counts(self) -> dict[str, float] | None:
        values = self.activation_cache()
        return {key.removeprefix(CACHE): value for key, value in values.items()} if values else None

    def _groups(self) -> list[dict[str, Any]]:
        """The rate groups of the first stage. With automatic periods, the names of parameters replace the patterns."""
        first = self._multirate.stages[0]
        never = [group for group in first.given.groups if group.name in first.partition.never.keys() - first.partition]
        groups = [asdict(group) for group in [*first.config.groups, *never]]
        if self._multirate.config.auto_periods is None:
            return groups
        names = self._multirate.partition
        return [{**group, "patterns": shorten_names(names[group["name"]])} for group in groups]

    def _partition(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        partition = self._multirate.stages[0].partition
        groups = {name: group for group, names in [*partition.items(), *partition.never.items()] for name in names}
        blocks: dict[str, dict[str, Any]] = {}
        for name, parameter in canonical_parameters(model).items():
            block = blocks.setdefault(self._blocks[name], {"parameters": 0, "groups": {}})
            block["parameters"] += parameter.numel()
            group = groups.get(name, FROZEN)
            block["groups"][group] = block["groups"].get(group, 0) + parameter.numel()
        return blocks


class Mean:
    """Mean of tensors with one sum on their device: constant memory, and the host does not wait before `take`."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._number = 0

    def add(self, value: Tensor) -> None:
        """Add a value, a scalar tensor."""
        value = value.detach().float()
        self._sum = value if self._sum is None else self._sum + value
        self._number += 1

    def take(self) -> float | None:
        """Mean of the values since the last call; None without a value."""
        mean = None if self._sum is None else (self._sum / self._number).item()
        self._sum, self._number = None, 0
        return mean
