"""Durations: reading and showing a time such as ``"20min"``."""

from __future__ import annotations

import re
from typing import Any

from hf_multirate.config.validation import require_number, shown, wrong_type


MINUTE = 60

WANTED = "a time such as '20min', '1h30m', '90s' or a number of seconds"

NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
UNITS = {"d(?:ays?)?": 86400.0, "h(?:(?:ou)?rs?)?": 3600.0, "m(?:in(?:ute)?s?)?": 60.0, "s(?:ec(?:ond)?s?)?": 1.0}
TIME = re.compile(r"\s*".join(f"(?:{NUMBER}\\s*{unit})?" for unit in UNITS), re.IGNORECASE)


def parse_seconds(name: str, value: Any) -> float:
    """Seconds of a time such as ``"20min"``, ``"1h30m"``, ``"90s"``, ``"90"`` or ``90``.

    Args:
        name: Name of the setting in error messages.
        value: The time.

    Raises:
        ValueError: the value cannot be read as a time, or is not above 0 seconds.
        TypeError: the value is neither a string nor a number.

    >>> parse_seconds("multirate_train_time", "1h30m")
    5400.0
    """
    if isinstance(value, str):
        seconds = _seconds(value)
        if seconds is None:
            raise ValueError(f"{name} is {shown(value)}, which cannot be read as a time. Give {WANTED}.")
    elif isinstance(value, bool):
        wrong_type(name, WANTED, value)
    else:
        seconds = require_number(name, value, WANTED)
    if not 0.0 < seconds < float("inf"):
        raise ValueError(f"{name} must be above 0 seconds and finite, got {shown(value)}. Give {WANTED}.")
    return seconds


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        match = TIME.fullmatch(text.strip())
    parts = [] if match is None else [(part, unit) for part, unit in zip(match.groups(), UNITS, strict=True) if part]
    return sum(float(part) * UNITS[unit] for part, unit in parts) if parts else None


def require_duration(name: str, value: Any) -> str:
    """Check a time, and return it as a string. See `parse_seconds`."""
    parse_seconds(name, value)
    return str.__str__(value) if isinstance(value, str) else str(value)


def shown_seconds(seconds: float) -> str:
    """Text of a duration.

    >>> shown_seconds(5400), shown_seconds(75), shown_seconds(2.5)
    ('1 h 30 min', '1 min 15 s', '2.5 s')
    """
    if seconds < MINUTE:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), MINUTE)
    hours, minutes = divmod(minutes, MINUTE)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s" if rest else ""]
    return " ".join(part for part in parts if part)
