"""Validators for values read from a file."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


Shape = Callable[[Any, str], None]
"""Validator of a value. Raises `ValueError`, with the second argument as the name of the value."""

LARGEST_EXACT_INT = 2**53
"""Largest integer that every JSON reader represents exactly."""

LARGEST_FLOAT = 1e300


def _require(fits: bool, where: str, wanted: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{where} must be {wanted}, got {reprlib.repr(value)}")


def anything(value: Any, where: str) -> None:
    """Accept every value."""
    del value, where


def text(value: Any, where: str) -> None:
    """Require a string."""
    _require(isinstance(value, str), where, "a string", value)


def flag(value: Any, where: str) -> None:
    """Require True or False."""
    _require(isinstance(value, bool), where, "true or false", value)


def count(least: int = 0, largest: int = LARGEST_EXACT_INT) -> Shape:
    """Require an integer from ``least`` to ``largest``."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest
        limits = f"from {least} to {largest}" if largest < LARGEST_EXACT_INT else f"of at least {least}"
        _require(fits, where, f"an integer {limits}", value)

    return check


def number(least: float = -LARGEST_FLOAT, *, finite: bool = True) -> Shape:
    """Require a number of at least ``least``; with ``finite=False`` also NaN and infinity are accepted."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = fits and (least <= value <= LARGEST_FLOAT or (not finite and isinstance(value, float)))
        _require(fits, where, "a number" if least == -LARGEST_FLOAT else f"a number of at least {least:g}", value)

    return check


def choice(choices: Sequence[str]) -> Shape:
    """Require one of the strings ``choices``."""

    def check(value: Any, where: str) -> None:
        _require(isinstance(value, str) and value in choices, where, f"one of {tuple(choices)}", value)

    return check


def optional(shape: Shape) -> Shape:
    """Accept None, and otherwise require ``shape``."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            shape(value, where)

    return check


def items(shape: Shape, length: int | None = None) -> Shape:
    """Require a list or tuple with items of ``shape``, and with ``length`` of them if given."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, (list, tuple)) and length in (None, len(value))
        _require(fits, where, "a list" if length is None else f"a list of {length}", value)
        for i, entry in enumerate(value):
            shape(entry, f"{where}[{i}]")

    return check


def table(shape: Shape) -> Shape:
    """Require a dictionary with string keys and values of ``shape``."""

    def check(value: Any, where: str) -> None:
        _require(isinstance(value, dict) and all(isinstance(key, str) for key in value), where, "a dictionary", value)
        for key, entry in value.items():
            shape(entry, f"{where}[{reprlib.repr(key)}]")

    return check


def fields(shapes: Mapping[str, Shape], *, others: bool = False) -> Shape:
    """Require a dictionary with the keys of ``shapes``; additional keys are accepted only with ``others=True``."""

    def check(value: Any, where: str) -> None:
        table(anything)(value, where)
        missing = sorted(shapes.keys() - value.keys())
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        unknown = sorted(value.keys() - shapes.keys())
        if unknown and not others:
            raise ValueError(f"{where} has unknown entries: {reprlib.repr(unknown)}")
        for key, shape in shapes.items():
            shape(value[key], f"{where}.{key}")

    return check
