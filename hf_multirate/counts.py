"""Settings that count something."""

from __future__ import annotations

from typing import Any


def require_count(name: str, unit: str, value: Any, least: int) -> None:
    """Raise if ``value`` of the setting ``name`` is no number of ``unit`` from ``least`` on.

    Raises:
        ValueError: it is less.
        TypeError: it is no integer.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer number of {unit}, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
