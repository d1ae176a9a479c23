"""Shapes of values that were read from a file: each checks a value, and says in words what is wrong with it."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


Shape = Callable[[Any, str], None]
"""Checks a value that is called by the second argument, and raises `ValueError`."""

MOST = 2**53
"""Whole numbers up to this are exact in every reader of JSON."""

LARGEST = 1e300


def _require(fits: bool, where: str, wanted: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{where} must be {wanted}, got {reprlib.repr(value)}")


def anything(value: Any, where: str) -> None:
    """Fits every value."""
    del value, where


def text(value: Any, where: str) -> None:
    """A text."""
    _require(isinstance(value, str), where, "a text", value)


def flag(value: Any, where: str) -> None:
    """True or False."""
    _require(isinstance(value, bool), where, "true or false", value)


def count(least: int = 0, most: int = MOST) -> Shape:
    """A whole number between both."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        limits = f"from {least} to {most}" if most < MOST else f"of at least {least}"
        _require(fits, where, f"a whole number {limits}", value)

    return check


def number(least: float = -LARGEST, *, finite: bool = True) -> Shape:
    """A number of at least ``least``; with ``finite=False`` also NaN and the infinities."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = fits and (least <= value <= LARGEST or (not finite and isinstance(value, float)))
        _require(fits, where, "a number" if least == -LARGEST else f"a number of at least {least:g}", value)

    return check


def choice(choices: Sequence[str]) -> Shape:
    """One of a few texts."""

    def check(value: Any, where: str) -> None:
        _require(isinstance(value, str) and value in choices, where, f"one of {tuple(choices)}", value)

    return check


def optional(shape: Shape) -> Shape:
    """``shape``, or None."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            shape(value, where)

    return check


def items(shape: Shape, length: int | None = None) -> Shape:
    """A list, or a tuple, of ``length`` values of ``shape``."""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, (list, tuple)) and length in (None, len(value))
        _require(fits, where, "a list" if length is None else f"a list of {length}", value)
        for i, entry in enumerate(value):
            shape(entry, f"{where}[{i}]")

    return check


def table(shape: Shape) -> Shape:
    """A dictionary from texts to values of ``shape``."""

    def check(value: Any, where: str) -> None:
        _require(isinstance(value, dict) and all(isinstance(key, str) for key in value), where, "a dictionary", value)
        for key, entry in value.items():
            shape(entry, f"{where}[{reprlib.repr(key)}]")

    return check


def fields(shapes: Mapping[str, Shape], *, others: bool = False) -> Shape:
    """A dictionary with an entry for each of ``shapes``, and with ``others`` or without."""

    def check(value: Any, where: str) -> None:
        table(anything)(value, where)
        missing = sorted(shapes.keys() - value.keys())
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        unknown = sorted(value.keys() - shapes.keys())
        if unknown and not others:
            raise ValueError(f"{where} has entries that are not known: {reprlib.repr(unknown)}")
        for key, shape in shapes.items():
            shape(value[key], f"{where}.{key}")

    return check
