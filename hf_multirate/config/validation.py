"""Validation of user-given values: each function returns the value as a plain one, or raises an error."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np


LARGEST_INT = 2**63 - 1
"""Largest integer setting: the largest value of a 64-bit integer tensor."""

MAX_SHOWN_LENGTH = 120
"""Maximum number of characters of a value in an error message."""


def shown(value: Any) -> str:
    """Text of a value for error messages: long values are cut, values that cannot be printed become their type."""
    try:
        text = repr(value)
    except Exception:  # e.g. an integer of thousands of digits, a recursive list, an error in a user class
        return f"a value of type {type(value).__name__} that cannot be printed"
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."


def reason(error: BaseException) -> str:
    """Class and message of an error, on one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # e.g. an error in a user class
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def wrong_type(name: str, wanted: str, value: Any) -> NoReturn:
    """Raise a `TypeError` for the setting ``name``, which must be ``wanted``."""
    raise TypeError(f"{name} must be {wanted}, got {shown(value)} ({type(value).__name__}).")


def require_int(name: str, value: Any, *, least: int | None = None, unit: str = "") -> int:
    """Check an integer, including numpy integers.

    Args:
        name: Name of the setting in error messages.
        value: The value.
        least: Smallest allowed value.
        unit: Unit of the value in error messages.

    Raises:
        ValueError: the value is too small, or does not fit into 64 bits.
        TypeError: the value is not an integer; a bool is rejected.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        wrong_type(name, f"an integer number of {unit}" if unit else "an integer", value)
    plain = operator.index(value)
    if least is not None and plain < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(plain)}.")
    if abs(plain) > LARGEST_INT:
        raise ValueError(f"{name} must be at most {LARGEST_INT}, got {shown(plain)}.")
    return plain


def require_number(name: str, value: Any, wanted: str = "a number") -> float:
    """Check a finite number, including numpy numbers, and return it as a float.

    Raises:
        ValueError: the value is not finite, or too large for a float.
        TypeError: the value is not a number; a bool is rejected.
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


def require_positive(name: str, value: Any) -> float:
    """Check a finite number above 0, and return it as a float.

    Raises:
        ValueError: the value is not finite, or not above 0.
        TypeError: the value is not a number.
    """
    plain = require_number(name, value, "a number above 0")
    if plain <= 0:
        raise ValueError(f"{name} must be a number above 0, got {plain}.")
    return plain


def require_bool(name: str, value: Any) -> bool:
    """Check a bool, including numpy bools.

    Raises:
        TypeError: the value is not a bool.
    """
    if not isinstance(value, (bool, np.bool_)):
        wrong_type(name, "True or False", value)
    return bool(value)


def require_text(name: str, value: Any) -> str:
    """Check a string.

    Raises:
        TypeError: the value is not a string.
    """
    if not isinstance(value, str):
        wrong_type(name, "a string", value)
    return str.__str__(value)  # converts numpy strings and members of a string enumeration


def require_choice(name: str, value: Any, choices: Sequence[str], *, or_none: bool = False) -> str | None:
    """Check for one of the strings ``choices``, or None if ``or_none`` is set.

    Raises:
        ValueError: the value is another string.
        TypeError: the value is not a string.
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
    """Check an ordered iterable, such as a list or a tuple, and return its items.

    Raises:
        TypeError: the value is a string, a mapping or a set, or is not iterable.
    """
    if isinstance(value, (str, bytes, bytearray, Mapping, Set)):
        wrong_type(name, wanted, value)
    try:
        items = iter(value)
    except TypeError:
        wrong_type(name, wanted, value)
    return tuple(items)


def require_path(name: str, value: Any) -> str:
    """Check a path, and return it as a string.

    Raises:
        TypeError: the value is neither a string nor a path.
        ValueError: the value is empty.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        wrong_type(name, "a path", value)
    if not path:
        raise ValueError(f"{name} must be a path, got an empty string.")
    return str.__str__(path)


def require_step(value: Any, taken: int | None = None) -> int:
    """Check the index of an optimizer step.

    Args:
        value: The index.
        taken: Index of the last step that was taken; None if there is none.

    Raises:
        ValueError: the value is negative, or not above ``taken``.
        TypeError: the value is not an integer.
    """
    step = require_int("a step index, which counts from 0,", value, least=0)
    if taken is not None and step <= taken:
        raise ValueError(
            f"step {step} was begun after step {taken} was taken, so slow groups would be live at the wrong steps. "
            "Count optimizer steps over all epochs, and call load_state_dict() before you go back to a checkpoint."
        )
    return step
