"""Train for a given time: connects a `TimedRun` to the loop of `transformers.Trainer`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from transformers import SchedulerType, TrainingArguments

from hf_multirate.config.durations import shown_seconds
from hf_multirate.trainer.arguments import MultirateTrainingArguments
from hf_multirate.trainer.frozen_length import FrozenLengthMixin
from hf_multirate.trainer.outside_steps import OutsideSteps, rows_of
from hf_multirate.trainer.progress_schedule import (
    PROVISIONAL_STEPS,
    WITHOUT_FACTOR,
    check_schedule,
    follow_progress,
    schedule_kwargs,
)
from hf_multirate.trainer.spent_time import NOTHING, Reading, SpentTime
from hf_multirate.trainer.timed_callbacks import TimedTrainingCallback, TrainTimeState, show_steps, show_time_left
from hf_multirate.trainer.timed_plan import plan_for, saved_run, setup_of, used_by_purpose, write_plan
from hf_multirate.trainer.timed_run import TimedRun
from hf_multirate.trainer.train_time import TrainTime, TrainTimePlan, train_time


logger = logging.getLogger(__name__)


def given_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The training arguments among the arguments of the constructor of a Trainer; None if there are none."""
    return kwargs.get("args", args[1] if len(args) > 1 else None)


class TimedTrainingMixin(FrozenLengthMixin):
    """Ends training after the time in `MultirateTrainingArguments`, together with the learning-rate schedule."""

    train_time_clock: Callable[[], float] = staticmethod(perf_counter)
    """Returns seconds."""

    _train_time: TrainTime | None = None
    _plan: TrainTimePlan | None = None
    _timed: TimedRun | None = None
    _followed: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Trainer asks for max_steps in its constructor if the data set has no length.
        with self._without_end(given_arguments(args, kwargs)):
            super().__init__(*args, **kwargs)
        if self._time_of(self.args) is not None and self.args.max_steps == PROVISIONAL_STEPS:
            self.args.max_steps = -1  # another trainer has copied the arguments

    def _time_of(self, args: Any) -> TrainTime | None:
        """The time to train for, from the arguments or from the configuration."""
        configured = self.multirate.config.train_time
        if isinstance(args, MultirateTrainingArguments):
            return args.to_train_time(configured)
        max_steps = -1 if args is None or args.max_steps == PROVISIONAL_STEPS else args.max_steps
        return train_time(configured, None, None, max_steps=max_steps, name="train_time of the configuration")

    @contextmanager
    def _without_end(self, args: Any) -> Iterator[None]:
        """A context in which the arguments of a timed run have the provisional number of steps."""
        if args is None or self._time_of(args) is None:
            yield
            return
        before, args.max_steps = args.max_steps, PROVISIONAL_STEPS
        try:
            yield
        finally:
            args.max_steps = before

    @property
    def train_time_plan(self) -> TrainTimePlan | None:
        """The plan of the last timed run; None before the first one."""
        return self._plan

    def _seconds_to_train(self) -> float | None:
        return None if self._plan is None else self._plan.seconds

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. With a time in the arguments, training ends when the time does.

        Raises:
            ValueError: the settings contradict each other, or the time is too short.
        """
        self._plan = self._timed = self._train_time = None
        searched = self.hp_search_backend is not None  # a trial sets its values after this
        if self._time_of(self.args) is None and not searched:
            return super().train(*args, **kwargs)
        added = [TrainTimeState(), TimedTrainingCallback(self)]
        for callback in added:
            self.add_callback(callback)
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in added:  # Trainer may have replaced them by others of their classes
                self.remove_callback(type(callback))
            if self.args.max_steps == PROVISIONAL_STEPS:
                self.args.max_steps = -1
            self._train_time = self._timed = None

    def set_initial_training_values(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. A timed run gets a provisional number of steps."""
        self._timed, self._train_time = None, self._time_of(args)
        if self._train_time is None:
            return super().set_initial_training_values(args, *rest, **kwargs)
        self._check_train_time(args)
        with self._without_end(args):
            values = super().set_initial_training_values(args, *rest, **kwargs)
        if self._steps_per_epoch == PROVISIONAL_STEPS:
            args.max_steps = PROVISIONAL_STEPS  # the loop of transformers 4.57 reads it for data without a length
        self._plan = plan_for(self._train_time, self._setup())
        return values

    def _check_train_time(self, args: TrainingArguments) -> None:
        """Raise an error if this trainer cannot train for a given time."""
        if self.is_deepspeed_enabled:
            raise NotImplementedError(
                "multirate_train_time does not work with DeepSpeed, which may create the schedule itself. Use "
                "DistributedDataParallel or FSDP2, or set max_steps."
            )
        if self.lr_scheduler is not None and not self._created_lr_scheduler:
            raise ValueError(
                f"a {type(self.lr_scheduler).__name__} was passed in optimizers, and its length cannot follow "
                "multirate_train_time. Pass optimizers=(optimizer, None), and choose a schedule by lr_scheduler_type."
            )
        if self.multirate.config.stage_list:
            raise NotImplementedError(
                "multirate_train_time does not work with stages, which end at shares of a number of steps that is "
                "unknown until the first steps are timed. Set max_steps, or use one configuration."
            )
        message = check_schedule(args)
        if message is not None:
            logger.warning("%s", message)

    def _setup(self) -> dict[str, Any]:
        config = self.multirate.config
        return setup_of(self.args, config, batch_size=self._train_batch_size, data=self.train_dataset)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. In a timed run, the schedule follows progress instead of steps."""
        if self._train_time is None:
            return super().create_scheduler(num_training_steps, *args, **kwargs)
        given = self.args.lr_scheduler_kwargs
        self.args.lr_scheduler_kwargs = schedule_kwargs(self.args)
        try:
            scheduler = super().create_scheduler(PROVISIONAL_STEPS, *args, **kwargs)
        finally:
            self.args.lr_scheduler_kwargs = given
        if SchedulerType(self.args.lr_scheduler_type).value not in WITHOUT_FACTOR:
            follow_progress(scheduler, self._next_progress)
        self._followed = scheduler
        return scheduler

    def _next_progress(self) -> float:
        """Progress of the next step; the present one is not counted yet."""
        assert self._plan is not None
        return self._plan.progress(self.state.global_step + 1)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `transformers.Trainer`. In a timed run, the time counts as evaluation."""
        with self._spent_on("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._spent_on("saving"):
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TrainTimeState) and self._timed is not None:
                    callback.saved = self._timed.state()
            super()._save_checkpoint(*args, **kwargs)

    def _spent_on(self, purpose: str) -> Any:
        return nullcontext() if self._timed is None else self._timed.spent.spent_on(purpose)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. In a timed run, an epoch ends with the data of a data set without a length."""
        if self._timed is not None and not self.state.global_step:
            self._timed.begin_steps()
        samples = super().get_batch_samples(*args, **kwargs)
        if self._timed is not None and not samples[0]:
            self.control.should_epoch_stop = True
        return samples

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See `transformers.Trainer`. Corrects the speed in the summary of a timed run, and adds its time."""
        if self._timed is not None and "train_runtime" in logs:
            logs["multirate/seconds_used"] = round(self._timed.used, 4)
            self._write_plan()
            if "train_samples_per_second" in logs:  # Trainer computed it with the provisional number of steps
                share = self.state.max_steps / PROVISIONAL_STEPS
                logs["train_samples_per_second"] = round(logs["train_samples_per_second"] * share, 3)
        super().log(logs, *args, **kwargs)

    def _begin_timed(self) -> None:
        """Start the clock, or continue that of the run that is resumed."""
        time, plan, step = self._train_time, self._plan, self.state.global_step
        if time is None or plan is None:
            return  # a trial of a search without a time
        if self._followed is not self.lr_scheduler:
            raise RuntimeError(
                f"create_scheduler of {type(self).__name__} does not call super().create_scheduler(), so the learning "
                "rate cannot follow multirate_train_time. Call it, and choose the schedule by lr_scheduler_type."
            )
        before = saved_run(self._saved_callbacks(), plan) if step else None
        if before is not None and time.plan is None:
            plan = self._plan = TrainTimePlan.from_dict(before["plan"])
        used_before = Reading(**before["spent"]) if before else NOTHING
        self._timed = TimedRun(
            plan,
            SpentTime(self.train_time_clock, used_before, self._slowest),
            self.multirate.schedule.kinds,
            self._outside_steps(),
            repeats=time.plan is not None,
            before=before,
        )
        self._saved_callbacks().setdefault(TrainTimeState.__name__, TrainTimeState().state())
        steps = plan.total(step)
        if steps is not None:
            self._set_steps(steps)
        show_steps(self.callback_handler.callbacks, steps)

    def _saved_callbacks(self) -> dict[str, Any]:
        """Callback states that Trainer has loaded, or will save: class -> state."""
        return cast(dict[str, Any], self.state.stateful_callbacks)

    def _outside_steps(self) -> OutsideSteps:
        rows = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        model = cast(torch.nn.Module, self.model)
        return OutsideSteps(self.args, self._steps_per_epoch, rows, rows_of(self.eval_dataset), model)

    def _measure(self) -> None:
        """After the optimizer has taken a step, which is not counted yet: read the clock."""
        if self._timed is None:
            return
        step = self.multirate.step
        self._timed.measure(self.state.global_step + 1, (0,) if step is None else self.multirate.schedule.live(step))

    def _settle(self) -> None:
        """After a step: set the number of steps if it was settled or corrected, and show the time left."""
        if self._timed is None:
            return
        steps = self._timed.settle(self.state.global_step)
        if steps is not None:
            self._set_steps(steps)
            self.state.compute_steps(self.args, steps)  # type: ignore[no-untyped-call]  # of settings that are shares
            show_steps(self.callback_handler.callbacks, steps)
            self._announce(steps)
            self._write_plan()
        if not self._timed.repeats:
            show_time_left(self.callback_handler.callbacks, self._timed.plan.seconds - self._timed.used)

    def _set_steps(self, steps: int) -> None:
        self.state.max_steps = steps
        if self._steps_per_epoch < PROVISIONAL_STEPS:
            self.state.num_train_epochs = math.ceil(steps / self._steps_per_epoch)

    def _announce(self, steps: int) -> None:
        assert self._plan is not None
        assert self._timed is not None
        epochs = steps / self._steps_per_epoch
        sized = self._steps_per_epoch < PROVISIONAL_STEPS
        logger.info(
            "multirate_train_time is %s: training ends after %d steps%s.",
            shown_seconds(self._plan.seconds), steps, f", {epochs:.2f} epochs" if sized else "",
        )  # fmt: skip
        if sized and len(self._plan.totals) == 1 and epochs > self.args.num_train_epochs:
            logger.warning(
                "multirate_train_time is %s, enough for %.1f epochs. Training continues until the time is over: "
                "num_train_epochs=%g has no effect.",
                shown_seconds(self._plan.seconds), epochs, self.args.num_train_epochs,
            )  # fmt: skip
        if len(self._plan.totals) == 1:
            self._advise_on_length(steps)
        values: dict[str, float] = {"multirate/planned_steps": steps}
        if not self._timed.repeats:
            values["multirate/seconds_per_step"] = self._timed.seconds_per_step
        due = self.control.should_log
        self.log(values)
        self.control.should_log = due  # logging of this entry must not take the place of the next one

    def _write_plan(self) -> None:
        assert self._plan is not None
        if self._timed is not None:
            self._plan.used = used_by_purpose(self._timed.spent.read())
        if self.is_world_process_zero():
            write_plan(self._plan, Path(cast(str, self.args.output_dir)))

    def _slowest(self, reading: Reading) -> Reading:
        """The reading with the largest values of all processes; all processes have to call it."""
        if self.args.world_size == 1:
            return reading
        values = torch.tensor([list(vars(reading).values())], dtype=torch.float64, device=self.args.device)
        return Reading(*self.accelerator.gather(values).amax(dim=0).tolist())
