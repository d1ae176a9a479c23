"""How often the host waits for the device within training, as torch's warnings tell.

With ``torch.cuda.set_sync_debug_mode("warn")`` torch warns at each call that waits, such as ``.item()``. It knows most
of them, but not ``torch.cuda.synchronize()``.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu.cells import Bench
from benchmarks.gpu.models import Network
from benchmarks.gpu.training import trainer_for
from hf_multirate import MultirateConfig


MESSAGE = "called a synchronizing"


class SyncWarnings(TrainerCallback):
    """Switches the warnings on from the end of step ``first`` to the end of step ``last``."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch at the two steps."""
        if state.global_step == self._first:
            torch.cuda.set_sync_debug_mode("warn")
        if state.global_step == self._last:
            torch.cuda.set_sync_debug_mode("default")


def places_of(caught: Iterable[warnings.WarningMessage]) -> dict[str, int]:
    """File and line -> number of warnings about waiting for the device."""
    found = Counter(
        f"{os.sep.join(Path(one.filename).parts[-3:])}:{one.lineno}" for one in caught if MESSAGE in str(one.message)
    )
    return dict(sorted(found.items()))


def syncs_of_run(
    bench: Bench, network: Network, config: MultirateConfig | None, first: int, last: int, **settings: Any
) -> dict[str, Any]:
    """Number of times that the host waits in the steps after ``first`` up to ``last``, and where."""
    with trainer_for(bench, network, config, record=None, max_steps=last + 1, **settings) as trainer:
        trainer.add_callback(SyncWarnings(first, last))
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = places_of(caught)
    return {"steps": last - first, "number": sum(places.values()), "places": places}
