"""Why a run is less fast than the cost model promised."""

from __future__ import annotations

from hf_multirate.telemetry import Telemetry


ENOUGH = 0.9
"""Share of the predicted speed-up below which there is something to say."""

LEAST_STEPS, LEAST_SECONDS = 20, 5.0
"""Of a run, before anything is said of it."""

NOTICED = 0.05
"""Share of the time from which on something else counts as a cause."""

REMEDIES = {
    "data": "data loading (more dataloader_num_workers, or data prepared beforehand)",
    "evaluation": "evaluation (fewer of them, or fewer rows)",
    "other": "what is done between steps: saving, logging, callbacks",
}


def shortfall(telemetry: Telemetry) -> str | None:
    """What to tell a user whose run realises less than nine tenths of what was predicted; None if there is nothing.

    It takes at least 20 steps and 5 seconds, some of both kinds.
    """
    kinds = [telemetry.counted(full=full) for full in (True, False)]
    elapsed = telemetry.elapsed
    if sum(kinds) < LEAST_STEPS or not all(kinds) or elapsed < LEAST_SECONDS:
        return None
    predicted, realised = telemetry.predicted_so_far, telemetry.speedup_of_run(elapsed)
    if realised is None or realised >= ENOUGH * predicted:
        return None
    causes = _of_steps(telemetry) + _of_the_rest(telemetry, elapsed)
    return (
        f"the run is {realised:.2f} times as fast as full steps alone would be, where {predicted:.2f} were predicted. "
        f"Found: {'; '.join(causes) or 'no single cause'}."
    )


def _of_steps(telemetry: Telemetry) -> list[str]:
    full, fast = telemetry.mean(full=True), telemetry.mean(full=False)
    assert full  # there are steps of both kinds
    assert fast
    share, predicted = fast / full, telemetry.predicted_cost(full=False)
    told = f"a fast-only step takes {share:.2f} of a full one, predicted {predicted:.2f}"
    if share > ENOUGH and predicted < ENOUGH * share:
        return [
            f"boundary not reached: {told}, so backward seems to go on below the fast groups (an input that requires "
            "a gradient, a fast parameter near the bottom; see describe() of the controller)"
        ]
    if share * ENOUGH > predicted:
        return [
            f"small batch: {told}; what does not shrink with backward (optimizer, drift, Python) weighs more the "
            "smaller the batch is (a larger batch, or fewer drift_steps)"
        ]
    return []


def _of_the_rest(telemetry: Telemetry, elapsed: float) -> list[str]:
    seconds = dict(telemetry.aside)
    seconds["other"] = elapsed - sum(seconds.values()) - telemetry.in_steps
    shares = sorted(((value / elapsed, what) for what, value in seconds.items()), reverse=True)
    return [f"{share:.0%} of the time goes into {REMEDIES[what]}" for share, what in shares if share >= NOTICED]
