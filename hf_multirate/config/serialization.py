"""Configurations as dictionaries of plain values, and back."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.random_subset import RandomSubset
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.validation import require_path, shown


_Value = TypeVar("_Value")


def to_plain(config: Any, group_fn: Callable[..., Any] | None) -> dict[str, Any]:
    """The fields of a `hf_multirate.MultirateConfig` as strings, numbers, lists and dictionaries.

    Of the function ``group_fn`` there is only the name.
    """
    values = {field.name: vars(config)[field.name] for field in dataclasses.fields(config)}
    groups = [dataclasses.asdict(group) for group in config.groups]
    values["groups"] = [{**group, "patterns": list(group["patterns"])} for group in groups]
    automatic = config.auto_periods
    values["auto_periods"] = None if automatic is None else dataclasses.asdict(automatic)
    values["group_fn"] = None if group_fn is None else _name(group_fn)
    return values


def _name(function: Callable[..., Any]) -> str:
    named = function if inspect.isfunction(function) or inspect.ismethod(function) else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def read_json(path: Any) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: there is no such file, it holds no JSON, or a key twice in one place.
        TypeError: ``path`` is no path.
    """
    name = require_path("the path of a multirate config", path)
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"multirate config {shown(name)} cannot be read as JSON: {error}. Give a file with the text of to_json()."
        ) from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return values


def with_groups(values: Any) -> dict[str, Any]:
    """The fields of a config with its groups built.

    Raises:
        ValueError: there is no list of groups, a key is unknown or missing, or a function is named.
    """
    groups = values.get("groups") if isinstance(values, Mapping) else None
    if not isinstance(groups, Sequence) or isinstance(groups, (str, bytes)):
        raise ValueError(f"a multirate config needs a list 'groups' of rate groups, got {shown(values)}.")
    if values.get("group_fn") is not None:
        raise ValueError(
            f"group_fn is {shown(values['group_fn'])}, but a function cannot be read from a text: build the config "
            "in Python."
        )
    automatic = values.get("auto_periods")
    built = None if automatic is None else build(AutoPeriods, automatic)
    return {**values, "groups": tuple(_rate_group(group) for group in groups), "auto_periods": built}


def _rate_group(values: Any) -> RateGroup:
    subset = values.get("random_subset") if isinstance(values, Mapping) else None
    return build(RateGroup, values if subset is None else {**values, "random_subset": build(RandomSubset, subset)})


def build(kind: type[_Value], values: Any) -> _Value:
    """A dataclass from a mapping of its fields.

    Raises:
        ValueError: it is no mapping, or keys are unknown or missing.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__} needs a mapping of its fields {sorted(fields)}, got {shown(values)}.")
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    unknown = [key for key in values if key not in fields]
    missing = sorted(required - set(values))
    if unknown or missing:
        raise ValueError(
            f"{kind.__name__}: unknown keys {shown(unknown)}, missing keys {missing}; fields are {sorted(fields)}."
        )
    return kind(**values)
