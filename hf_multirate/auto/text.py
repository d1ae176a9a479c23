"""The plan of automatic training as a table."""

from __future__ import annotations

from torch import nn

from hf_multirate.auto.planner import Planner
from hf_multirate.auto.settings import Budget
from hf_multirate.describe import columns, fold
from hf_multirate.names import named
from hf_multirate.partition import Partition
from hf_multirate.text import shortened


def describe_plan(partition: Partition, model: nn.Module, budget: Budget, planner: Planner | None) -> str:
    """Blocks from the top with worth, work, period and drift, as far as they are known."""
    sizes = {name: parameter.numel() for name, parameter in named(model).items()}
    rows = [("block", "parameters", "worth", "+-", "work", "period", "drift", "names")]
    for index, (block, names) in enumerate(partition.items()):
        figures = ("-", "-", "-", "-", "-") if planner is None else _figures(planner, index)
        rows.append(
            (shortened(block), f"{sum(sizes[name] for name in names):,}", *figures, ", ".join(fold(names)[:2]))
        )
    lines = columns(rows)
    if partition.frozen:
        count = sum(sizes[name] for name in partition.frozen)
        lines.append(f"frozen by requires_grad=False, in no block: {count:,} parameters")
    known = planner is not None and planner.account.depths is not None
    state = "" if known else "; nothing is measured yet"
    asked = f"work of {budget.share:.2f} of full steps is asked for, a speed-up of {1 / budget.share:.2f}{state}"
    return "\n".join([*lines, asked])


def _figures(planner: Planner, index: int) -> tuple[str, str, str, str, str]:
    estimate = planner.signals.worth(index)
    worth = f"{estimate.mean:.3g}" if estimate.weight else "-"
    error = "-" if estimate.error is None else f"{estimate.error:.2g}"
    depths = planner.account.depths
    work = "-" if depths is None else f"{depths[index + 1] - depths[index]:.3f}"
    if not planner.plans:
        return worth, error, work, "-", "-"
    plan = planner.plans[-1]
    return worth, error, work, str(plan.periods[index]), str(plan.drift[index])
