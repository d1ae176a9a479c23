"""Markdown tables: every table of the benchmarks is written here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isinf
from statistics import fmean, median, quantiles, stdev


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a final line break.

    Raises:
        ValueError: a row has another number of cells than the header.
    """
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """A share in percent with one digit; empty for None."""
    return "" if share is None else f"{100 * share:.1f}"


def mean_percent(shares: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    return percent(fmean(shares)) + (f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else "")


def points(gap: tuple[float, float] | None) -> str:
    """A difference of shares and its standard error, in percentage points; empty for None."""
    return "" if gap is None else f"{signed(gap[0])} ± {100 * gap[1]:.1f}"


def signed(share: float) -> str:
    """A difference of shares in percentage points; a rounded zero is positive."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def with_interval(middle: float, low: float = -inf, high: float = inf) -> str:
    """A difference of shares and its interval, in percentage points; without brackets if the interval is infinite.

    A difference whose interval does not contain 0 is bold.
    """
    if isinf(low):
        return signed(middle)
    text = f"{signed(middle)} ({signed(low)} to {signed(high)})"
    return f"**{text}**" if low > 0 or high < 0 else text


def with_quartiles(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the lower and upper quartile in brackets; a single value has no brackets."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
