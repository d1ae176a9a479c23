"""Conversion of configs to dictionaries of plain values, and back."""

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
    """Convert the fields of a `hf_multirate.MultirateConfig` to strings, numbers, lists and dictionaries.

    The function ``group_fn`` is replaced by its name.
    """
    values = {field.name: vars(config)[field.name] for field in dataclasses.fields(config)}
    groups = [dataclasses.asdict(group) for group in config.groups]
    values["groups"] = [{**group, "patterns": list(group["patterns"])} for group in groups]
    values["stage_list"] = [{"until": stage.until, "config": stage.config.to_dict()} for stage in config.stage_list]
    auto_periods = config.auto_periods
    values["auto_periods"] = None if auto_periods is None else dataclasses.asdict(auto_periods)
    values["group_fn"] = None if group_fn is None else _qualified_name(group_fn)
    return values


def _qualified_name(function: Callable[..., Any]) -> str:
    named = function if inspect.isfunction(function) or inspect.ismethod(function) else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def read_json(path: Any) -> Any:
    """Read a config file in JSON.

    Raises:
        ValueError: the file does not exist, is not valid JSON, or contains a key twice in one object.
        TypeError: ``path`` is not a path.
    """
    name = require_path("the path of a multirate config", path)
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"multirate config {shown(name)} cannot be read as JSON: {error}. Give a file with the output of "
            "to_json()."
        ) from error


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(duplicate)} occurs twice")
    return values


def with_groups(values: Any) -> dict[str, Any]:
    """Convert the groups and automatic periods in the fields of a config to objects.

    Raises:
        ValueError: ``groups`` is not a list, a key is unknown or missing, or ``group_fn`` is set.
    """
    groups = values.get("groups") if isinstance(values, Mapping) else None
    if not isinstance(groups, Sequence) or isinstance(groups, (str, bytes)):
        raise ValueError(f"a multirate config needs a list 'groups' of rate groups, got {shown(values)}.")
    if values.get("group_fn") is not None:
        raise ValueError(
            f"group_fn is {shown(values['group_fn'])}, but a function cannot be restored from its name: build the "
            "config in Python."
        )
    fields = values.get("auto_periods")
    auto_periods = None if fields is None else build(AutoPeriods, fields)
    return {**values, "groups": tuple(_rate_group(group) for group in groups), "auto_periods": auto_periods}


def _rate_group(values: Any) -> RateGroup:
    subset = values.get("random_subset") if isinstance(values, Mapping) else None
    return build(RateGroup, values if subset is None else {**values, "random_subset": build(RandomSubset, subset)})


def build(kind: type[_Value], values: Any) -> _Value:
    """Build the dataclass ``kind`` from a mapping of its fields.

    Raises:
        ValueError: ``values`` is not a mapping, or keys are unknown or missing.
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
