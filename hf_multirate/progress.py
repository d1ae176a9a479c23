"""The phase and the realised speed-up on the progress bar of Trainer."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_multirate.controller import Multirate
from hf_multirate.shortfall import enough


class PhaseOnBar(TrainerCallback):
    """Writes behind the bar that `transformers.ProgressCallback` draws.

    Args:
        multirate: The controller of the run.
        callbacks: The callbacks of Trainer, among which the bar is looked for.
    """

    def __init__(self, multirate: Multirate, callbacks: list[TrainerCallback]) -> None:
        self._multirate = multirate
        self._callbacks = callbacks

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After every step; the bar draws it when it draws itself."""
        del args, state, control, kwargs
        text = phase_text(self._multirate)
        for callback in self._callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.set_postfix_str(text, refresh=False)


def phase_text(multirate: Multirate) -> str:
    """The kind of the last step, with fixed turns its place in the cycle, and the speed-up.

    The speed-up is there once enough steps of each kind were taken.
    """
    kind = "full" if multirate.full else "fast"
    # Drawn positions have no place to count from.
    place = f" {multirate.phase + 1}/{multirate.cycle}" if multirate.config.turns == "fixed" else ""
    telemetry = multirate.telemetry
    realised = telemetry.speedup_of_run(telemetry.elapsed) if enough(telemetry) else None
    known = "" if realised is None else f", {realised:.2f}x"
    return f"{kind}{place}{known}"
