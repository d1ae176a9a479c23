"""Checks of values that users give: each returns the value as a plain one, or says what is wrong with it."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np


LARGEST = 2**63 - 1
"""The largest integer of a setting: what tensors of integers hold."""

LONGEST = 120
"""Characters of a value in an error."""


def shown(value: Any) -> str:
    """The value as an error shows it: cut where it is long, its type where it cannot be printed."""
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits, a list of lists without end, a class of the user's
        return f"a value of type {type(value).__name__} that cannot be printed"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def reason(error: BaseException) -> str:
    """The kind of an error and its text, on one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a class of the user's
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def wrong_type(name: str, wanted: str, value: Any) -> NoReturn:
    """Raise `TypeError`: the setting ``name`` must be ``wanted``."""
    raise TypeError(f"{name} must be {wanted}, got {shown(value)} ({type(value).__name__}).")


def require_int(name: str, value: Any, *, least: int | None = None, unit: str = "") -> int:
    """An integer, also one of numpy.

    Args:
        name: How the setting is called in errors.
        value: What was given.
        least: The smallest value that is allowed.
        unit: What is counted, for errors.

    Raises:
        ValueError: it is too small, or does not fit into 64 bits.
        TypeError: it is no integer; a bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        wrong_type(name, f"an integer number of {unit}" if unit else "an integer", value)
    plain = operator.index(value)
    if least is not None and plain < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(plain)}.")
    if abs(plain) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {shown(plain)}.")
    return plain


def require_number(name: str, value: Any, wanted: str = "a number") -> float:
    """A finite number as a float, also one of numpy.

    Raises:
        ValueError: it is not finite, or too large for a float.
        TypeError: it is no number; a bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        wrong_type(name, wanted, value)
    try:
        plain = float(value)
    except OverflowError:
        plain = math.inf
    if not math.isfinite(plain):
        raise ValueError(f"{name} must be finite, got {shown(value)}: give {wanted}.")
    return plain


def require_bool(name: str, value: Any) -> bool:
    """True or False, also of numpy.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, (bool, np.bool_)):
        wrong_type(name, "True or False", value)
    return bool(value)


def require_text(name: str, value: Any) -> str:
    """A string.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, str):
        wrong_type(name, "a string", value)
    return str.__str__(value)  # a string of numpy or of an enumeration is no plain one


def require_choice(name: str, value: Any, choices: Sequence[str], *, or_none: bool = False) -> str | None:
    """One of a few strings, or None where ``or_none``.

    Raises:
        ValueError: it is another string.
        TypeError: it is no string.
    """
    if value is None and or_none:
        return None
    wanted = f"one of {tuple(choices)}{', or None' if or_none else ''}"
    if not isinstance(value, str):
        wrong_type(name, wanted, value)
    if value not in choices:
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}.")
    return choices[choices.index(value)]


def require_items(name: str, value: Any, wanted: str) -> tuple[Any, ...]:
    """The items of a list, a tuple or another iterable with an order.

    Raises:
        TypeError: it is a string, a mapping or a set, or cannot be iterated over.
    """
    if isinstance(value, (str, bytes, bytearray, Mapping, Set)):
        wrong_type(name, wanted, value)
    try:
        items = iter(value)
    except TypeError:
        wrong_type(name, wanted, value)
    return tuple(items)


def require_path(name: str, value: Any) -> str:
    """A path as a string.

    Raises:
        TypeError: it is neither a string nor a path.
        ValueError: it is empty.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        wrong_type(name, "a path", value)
    if not path:
        raise ValueError(f"{name} must be a path, got an empty string.")
    return str.__str__(path)


def require_step(value: Any) -> int:
    """The index of an optimizer step.

    Raises:
        ValueError: it is negative.
        TypeError: it is no integer.
    """
    return require_int("a step index, which counts from 0,", value, least=0)
