"""Why a run is less fast than the cost model promised."""

from __future__ import annotations

from hf_multirate.telemetry import Telemetry


ENOUGH = 0.9
"""Share of the predicted speed-up below which there is something to say."""

LEAST_OF_EACH = 5
"""Full steps, and fast steps, from which on a speed-up means something: the first of each kind is no measure."""

LEAST_SECONDS = 30.0
"""Of a run, before a shortfall is worth a message."""

NOTICED = 0.05
"""Share of the time from which on something else counts as a cause."""

REMEDIES = {
    "data": "data loading (more dataloader_num_workers, or data prepared beforehand)",
    "evaluation": "evaluation (fewer of them, or fewer rows)",
    "other": "what is done between steps: saving, logging, callbacks",
}


def enough(telemetry: Telemetry) -> bool:
    """Whether there are enough steps of both kinds for a speed-up to mean something."""
    return all(telemetry.counted(full=full) >= LEAST_OF_EACH for full in (True, False))


def shortfall(telemetry: Telemetry) -> str | None:
    """A message if the run realises less than nine tenths of the predicted speed-up and the cause is known, else None.

    It takes at least 5 steps of each kind and 30 seconds.
    """
    elapsed = telemetry.elapsed
    if not enough(telemetry) or elapsed < LEAST_SECONDS:
        return None
    predicted, realised = telemetry.predicted_so_far, telemetry.speedup_of_run(elapsed)
    if realised is None or realised >= ENOUGH * predicted:
        return None
    causes = _of_steps(telemetry) + _of_the_rest(telemetry, elapsed)
    if not causes:
        return None  # nothing that a user could change
    return f"the speed-up so far is {realised:.2f}, predicted {predicted:.2f}. Found: {'; '.join(causes)}."


def _of_steps(telemetry: Telemetry) -> list[str]:
    full, fast = telemetry.mean(full=True), telemetry.mean(full=False)
    assert full  # there are steps of both kinds
    assert fast
    share, predicted = fast / full, telemetry.predicted_cost(full=False)
    told = f"a fast-only step takes {share:.2f} of a full one, predicted {predicted:.2f}"
    if share > ENOUGH and predicted < ENOUGH * share:
        return [
            f"boundary not reached: {told}, so backward seems to run below the fast groups (see "
            "trainer.multirate.describe())"
        ]
    if share * ENOUGH > predicted:
        return [
            f"small batch: {told}, since the optimizer, drift and Python take as long as at a full step (try a larger "
            "batch, or fewer drift_steps)"
        ]
    return []


def _of_the_rest(telemetry: Telemetry, elapsed: float) -> list[str]:
    seconds = dict(telemetry.aside)
    seconds["other"] = elapsed - sum(seconds.values()) - telemetry.in_steps
    shares = sorted(((value / elapsed, what) for what, value in seconds.items()), reverse=True)
    return [f"{share:.0%} of the time goes into {REMEDIES[what]}" for share, what in shares if share >= NOTICED]
