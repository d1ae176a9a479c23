"""Tables of plans for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_multirate.config.text import one_line
from hf_multirate.planning.results import Plan


UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


SPEEDUPS = {
    "predicted": "speedup",
    "bound": "bound",
    "measured": "speedup_measured",
    "bound measured": "bound_measured",
    "rows kept": "speedup_kept",
    "rows kept, measured": "speedup_kept_measured",
}
"""Columns of speed-ups and their fields in a `Plan`. A column without a value is left out."""


def with_unit(number: float) -> str:
    """Format a number with a unit prefix, as in ``1.5 G``."""
    for size, unit in UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "


def print_plans(plans: Sequence[Plan], console: Console, *, details: bool) -> None:
    """Print a table with one row per plan, and the reasons for low speed-ups.

    Args:
        plans: The plans.
        console: The console to print to.
        details: Whether to add tables of the steps and groups of each plan.
    """
    console.print(_speedups(plans))
    for plan in plans:
        if plan.stages:
            console.print(_stages(plan))
        for part in plan.parts if details else ():
            console.print(_steps(part.plan))
            console.print(_groups(part.plan))
        for blocker in plan.blockers:
            console.print(Text.assemble((f"{one_line(plan.label)}:", "yellow"), " ", one_line(blocker)))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(one_line(title)), title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _speedups(plans: Sequence[Plan]) -> Table:
    columns = {name: field for name, field in SPEEDUPS.items() if any(vars(plan)[field] for plan in plans)}
    table = _table("Speed-up", "setting", *columns, "memory full", "fast", "sent per step")
    for plan in plans:
        values = [vars(plan)[field] for field in columns.values()]
        speedups = [f"{value:.2f}x" if value else "-" for value in values]
        sizes = [f"{with_unit(size)}B" for size in (*plan.memory, plan.communicated)]
        table.add_row(Text(one_line(plan.label)), *speedups, *sizes)
    return table


def _steps(plan: Plan) -> Table:
    table = _table(
        f"{plan.label}: steps of a cycle", "gradients for", "steps", "FLOPs", "seconds", "backward stops at"
    )
    for step in plan.steps:
        seconds = "" if step.seconds is None else f"{step.seconds:.4f}"
        edge = Text(one_line(step.boundary or "the bottom"))
        table.add_row(Text(one_line(", ".join(step.live))), str(step.per_cycle), with_unit(step.flops), seconds, edge)
    return table


def _stages(plan: Plan) -> Table:
    table = _table(f"{plan.label}: stages", "periods", "share", "predicted")
    for stage in plan.stages:
        periods = ", ".join(f"{group.name}: {group.period}" for group in stage.plan.groups)
        table.add_row(Text(one_line(periods)), f"{stage.share:.0%}", f"{stage.plan.speedup:.2f}x")
    return table


def _groups(plan: Plan) -> Table:
    names = ("group", "period", "parameters", "forward", "activation gradients", "weight gradients")
    table = _table(f"{plan.label}: FLOPs of a full step", *names)
    for group in plan.groups:
        work = [with_unit(flops) for flops in (group.forward, group.activation_gradients, group.weight_gradients)]
        table.add_row(Text(one_line(group.name)), str(group.period), f"{group.parameters:,}", *work)
    return table
