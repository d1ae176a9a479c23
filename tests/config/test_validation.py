"""Every public setting with values that it does not take, and with numbers of numpy that it does."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_multirate import (
    AveragedCopies,
    AveragedCopiesTrainer,
    CopiesConfig,
    Multirate,
    MultirateConfig,
    MultirateTrainer,
    MultirateTrainingArguments,
    RandomSubset,
    RateGroup,
)
from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.validation import LARGEST_INT
from tests.support.runs import arguments, example
from tests.support.small import batch, network


class Unprintable:
    """Neither a number nor a text, nor to be printed."""

    def __repr__(self) -> str:
        raise RuntimeError


def deep(levels: int = 100_000) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


NAN, INF, HUGE = float("nan"), float("inf"), 10**5000
NO_INTEGERS = [
    2.5,
    2.0,
    "5",
    True,
    np.True_,
    [1],
    (2,),
    b"5",
    NAN,
    torch.tensor(2),
    np.array([2, 3]),
    1j,
    Unprintable(),
]
NO_NUMBERS = ["1", "", True, np.False_, [1.0], {"a": 1.0}, b"1", NAN, INF, -INF, HUGE, np.float64("nan"), 1j,
              torch.tensor(1.0), Unprintable()]  # fmt: skip
NO_TEXTS = [5, 1.5, True, b"head", ["head"], {"a"}, np.array(["head", "last:1"]), Unprintable()]
NO_CHOICES = [*NO_TEXTS, "", "nothing", "x" * 100_000, torch.bfloat16]
NO_SWITCHES = [0, 1, "yes", "True", [True], 1.0, np.array([True, False]), Unprintable()]
NO_ITEMS = [5, True, 1.5, "1,2,4", b"12", {"a": 1}, {1, 2}, object(), Unprintable()]
NO_PATTERNS = [
    None, 5, True, b"head", "", [""], ["a", ""], [["a"]], ["a", None], [5], {"a": "b"}, {"a"}, np.array(3), "(",
    "a{99999999999}", "(" * 5000 + ")" * 5000, "last:" + "9" * 5000, "last:0", "depth:1.5", "part:3/2",
    "part:1/" + "9" * 5000, "lats:1", "last:1\n", ["head", "x"], "ladder:1,2", Unprintable(), deep(),
]  # fmt: skip


def group(**values: Any) -> RateGroup:
    return RateGroup(**{"name": "a", "patterns": ".*", "period": 1, **values})


def drifting(**values: Any) -> RateGroup:
    return group(**{"idle": "drift", **values})


def two_rate_drift(**values: Any) -> MultirateConfig:
    return MultirateConfig.two_rate(**{"idle": "drift", **values})


def config(**values: Any) -> MultirateConfig:
    return MultirateConfig(**{"groups": [group()], **values})


def on_disk(**values: Any) -> MultirateConfig:
    return config(**{"activation_cache": "disk", **values})


def zero(**values: Any) -> Any:
    return MultirateConfig.random_subsets(**values)


Maker = Callable[..., Any]
SETTINGS: list[tuple[Maker, str, list[Any]]] = [
    (group, "name", [*NO_TEXTS, None, ""]),
    (group, "patterns", NO_PATTERNS),
    (group, "period", [*NO_INTEGERS, None, 0, -1, HUGE]),
    (group, "idle", [*NO_CHOICES, None]),
    (group, "lr_scale", [*NO_NUMBERS, None, 0, 0.0, -1.0, 1e7, 1e300]),
    (drifting, "drift_steps", [*NO_INTEGERS, 0, -1, HUGE]),
    (group, "random_subset", [5, True, "element", {"fraction": 0.5}, RandomSubset]),
    (RandomSubset, "fraction", [*NO_NUMBERS, None, 0, 1, 0.0, 1.0, -0.5]),
    (RandomSubset, "unit", [*NO_CHOICES, None]),
    (RandomSubset, "biases", [*NO_SWITCHES, None]),
    (RandomSubset, "rescale", [*NO_SWITCHES, None]),
    (RandomSubset, "redraw", [*NO_CHOICES, None]),
    (RandomSubset, "seed", [*NO_INTEGERS, None, HUGE, -HUGE]),
    (config, "groups", [*NO_ITEMS, None, [5], ["fast"], [None], [{"name": "a"}], group(), [RateGroup], [], ()]),
    (config, "drift_factor", [*NO_NUMBERS, None, -0.1, 1.1, 2]),
    (config, "on_missing_gradient", [*NO_CHOICES, None]),
    (config, "inactive_forward", NO_CHOICES),
    (config, "inactive_buffers", [*NO_CHOICES, None]),
    (config, "inactive_dtype", NO_CHOICES),
    (config, "group_fn", [5, True, "norm", ["fast"], {"a": "fast"}, lambda: "a", lambda a: "a", lambda a, b, c: "a"]),
    (config, "check_ranks_every", [*NO_INTEGERS, None, -1, HUGE]),
    (config, "turns", [*NO_CHOICES, None]),
    (config, "turns_seed", [*NO_INTEGERS, None, -1, HUGE]),
    (config, "head_lr_scale", [*NO_NUMBERS, None, 0, -1.0]),
    (config, "lr_decay", [*NO_NUMBERS, None, 0, -0.5, 1.01]),
    (config, "auto_periods", [5, True, 1.5, "auto", {"speedup": 2.0}, AutoPeriods]),
    (config, "head_start", [*NO_INTEGERS, None, -1, HUGE]),
    (config, "head_start_steps", [*NO_INTEGERS, None, 0, -1, HUGE]),
    (config, "train_time", [True, b"1h", ["1h"], "", "soon", 0, -1.0, NAN, INF, HUGE, Unprintable()]),
    (config, "head_start_lr", [*NO_NUMBERS, 0, 0.0, -1.0]),
    (config, "stage_list", [*NO_ITEMS, None, [5], [(0.5,)], [(2.0, MultirateConfig())], [(1.0, "off")]]),
    (config, "activation_cache", NO_CHOICES),
    (config, "activation_cache_gb", [*NO_NUMBERS, None, 0, -1.0]),
    (on_disk, "activation_cache_dir", [5, True, b"folder", ["folder"], ""]),
    (AutoPeriods, "speedup", [*NO_NUMBERS, 0, 0.5, -1]),
    (AutoPeriods, "max_period", [*NO_INTEGERS, None, 0, 1, -2, 12, HUGE]),
    (CopiesConfig, "periods", [*NO_ITEMS, None, [], [1], [2, 4], (1, 3, 4), (1, 1), [1, 2.0], [1, "2"], [True, 2],
                               (1, HUGE)]),
    (CopiesConfig, "momenta", [*NO_CHOICES, None]),
    (CopiesConfig, "buffers", [*NO_CHOICES, None]),
    (CopiesConfig, "turns", [*NO_CHOICES, None]),
    (CopiesConfig, "turns_seed", [*NO_INTEGERS, None, -1, HUGE]),
    (MultirateConfig.paper, "period", [*NO_INTEGERS, None, 0]),
    (MultirateConfig.two_rate, "fast", NO_PATTERNS),
    (MultirateConfig.two_rate, "period", [*NO_INTEGERS, None, 0, -1]),
    (MultirateConfig.two_rate, "idle", [*NO_CHOICES, None]),
    (two_rate_drift, "drift_steps", [*NO_INTEGERS, 0, -1]),
    (MultirateConfig.two_rate, "drift_factor", NO_NUMBERS),
    (MultirateConfig.ladder, "periods", [*NO_ITEMS, None, [], (), [1.0, 2], [True, 2], ["1", 2], [1, None], [2, 4],
                                         [[1, 2]], [0]]),
    (MultirateConfig.random_subsets, "period", [*NO_INTEGERS, None, 0]),
    (MultirateConfig.random_subsets, "subset", [5, 0.5, "element", {"fraction": 0.5}]),
    (MultirateConfig.random_subsets, "patterns", NO_PATTERNS),
    (MultirateConfig.auto, "speedup", [*NO_NUMBERS, 0, 0.5, -1]),
    (MultirateConfig.auto, "blocks", [*NO_ITEMS, None, [5], [None], [""], ["("], ["a", "a"]]),
    (MultirateConfig.auto, "max_period", [*NO_INTEGERS, None, 1, 12]),
    (MultirateConfig.from_json_file, "path", [None, 5, True, b"a.json", "", "none.json", "a\0b", ["a.json"],
                                              Unprintable()]),
]  # fmt: skip
NAMED_OTHERWISE = {"fast": "rate group 'fast'", "blocks": "", "groups": "", "name": "", "path": "config",
                   "patterns": "", "periods": "period", "stage_list": "stage"}  # fmt: skip
"""Settings whose errors name a part of them, as a group or a pattern."""


def refusal(action: Callable[[], Any]) -> str:
    """What the error says; one of another kind is not caught."""
    with pytest.raises((TypeError, ValueError)) as error:
        action()
    assert error.type in (TypeError, ValueError), error.type
    text = str(error.value)
    assert len(text) < 700, text
    return text


@pytest.mark.parametrize(
    ("make", "name", "values"), SETTINGS, ids=[f"{make.__qualname__}.{name}" for make, name, _ in SETTINGS]
)
def test_values_that_a_setting_does_not_take_are_refused_by_name(make: Maker, name: str, values: list[Any]) -> None:
    for value in values:
        text = refusal(lambda value=value: make(**{name: value}))
        assert NAMED_OTHERWISE.get(name, name) in text, text


PLAIN = {
    "multirate": ["maybe", "", None, 1, ["on"]],
    "multirate_speedup": [*NO_NUMBERS, 0, 0.5],
    "multirate_fast": [5, True, b"head", ["head"], "", "last:0", "(", "ladder:", "ladder:1,x", "ladder:2,4"],
    "multirate_period": [*NO_INTEGERS, 0, -1, HUGE],
    "multirate_idle": NO_CHOICES,
    "multirate_drift_steps": [*NO_INTEGERS, 0, -1],
    "multirate_turns": NO_CHOICES,
    "multirate_inactive_forward": NO_CHOICES,
    "multirate_inactive_buffers": NO_CHOICES,
    "multirate_inactive_dtype": NO_CHOICES,
    "multirate_head_lr_scale": [*NO_NUMBERS, 0, -1.0],
    "multirate_lr_decay": [*NO_NUMBERS, 0, 1.5],
    "multirate_check_ranks_every": [*NO_INTEGERS, -1],
    "multirate_head_start": [*NO_INTEGERS, -1, HUGE],
    "multirate_head_start_steps": [*NO_INTEGERS, 0, -1, HUGE],
    "multirate_head_start_lr": [*NO_NUMBERS, 0, -1.0],
    "multirate_activation_cache": NO_CHOICES,
    "multirate_activation_cache_gb": [*NO_NUMBERS, 0, -1.0],
    "multirate_activation_cache_dir": [5, True, b"folder", ["folder"], ""],
    "multirate_record": NO_SWITCHES,
    "multirate_log": [*NO_CHOICES, None],
    "multirate_config": [5, True, b"a.json", ["a.json"], "", "none.json"],
    "multirate_train_time": [
        True,
        [60],
        {},
        Unprintable(),
        "",
        "soon",
        "1:30",
        0,
        -5,
        "0s",
        float("inf"),
        float("nan"),
    ],
    "multirate_train_time_counts": NO_CHOICES,
    "multirate_train_time_plan": [5, True, b"a.json", ["a.json"], ""],
}


@pytest.mark.parametrize("name", PLAIN)
def test_arguments_from_python_are_refused_by_name(tmp_path: Path, name: str) -> None:
    args = MultirateTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    for value in PLAIN[name]:
        vars(args).update({"multirate": "auto" if name == "multirate_speedup" else "on", name: value})
        text = refusal(args.to_multirate_config)
        assert name in text or name in ("multirate_fast", "multirate_config"), text
        vars(args).update({name: None})
    given = {"multirate": "off", name: PLAIN[name][0]}
    with pytest.raises((TypeError, ValueError)):  # also when they are made, and when they are not used
        MultirateTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **given)


def test_every_field_has_a_row_in_the_tables() -> None:
    rows = {(make, name) for make, name, _ in SETTINGS}
    for make, kind in (
        (group, RateGroup),
        (config, MultirateConfig),
        (RandomSubset, RandomSubset),
        (AutoPeriods, AutoPeriods),
        (CopiesConfig,) * 2,
    ):
        makers = {group: (group, drifting), config: (config, on_disk)}.get(make, (make,))
        assert {name for maker, name in rows if maker in makers} == set(kind.__dataclass_fields__), kind
    theirs = {name for name in MultirateTrainingArguments.__dataclass_fields__ if name.startswith("multirate")}
    assert theirs == set(PLAIN)


class Word(str, enum.Enum):
    """A text that is not a plain one."""

    DRIFT = "drift"


def test_numbers_of_numpy_become_plain_ones(tmp_path: Path) -> None:
    given = RateGroup(np.str_("a"), [np.str_(".*")], np.int64(1), Word.DRIFT, np.int32(2), np.float64(0.5))
    wanted = RateGroup("a", [".*"], 1, "drift", 2, 0.5)
    assert repr(given) == repr(wanted)
    config = MultirateConfig(
        (g for g in [given]), drift_factor=np.float32(0.5), turns_seed=np.int8(3), check_ranks_every=np.uint8(2)
    )
    plain = MultirateConfig([wanted], drift_factor=0.5, turns_seed=3, check_ranks_every=2)
    assert repr(config) == repr(plain)
    assert config.to_json() == plain.to_json()
    assert repr(RandomSubset(np.float32(0.5), seed=np.int64(-7), biases=np.False_)) == repr(RandomSubset(0.5, seed=-7))
    assert repr(CopiesConfig(np.array([1, 25]))) == repr(CopiesConfig((1, 25)))
    assert repr(AutoPeriods(np.float64(2), np.int64(8))) == repr(AutoPeriods(2.0, 8))
    assert MultirateConfig.ladder(np.array([1, 2, 4])).to_json() == MultirateConfig.ladder([1, 2, 4]).to_json()
    assert MultirateConfig.ladder(period for period in (1, 2)) == MultirateConfig.ladder([1, 2])
    path = tmp_path / "c.json"
    path.write_text(plain.to_json())
    args = MultirateTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], multirate_config=path)
    assert args.to_multirate_config() == plain
    args = MultirateTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], multirate_period=np.int64(3))
    assert json.loads(args.to_json_string())["multirate_period"] == 3


def everywhere(value: Any, bad: Any) -> Iterator[Any]:
    """``value`` with ``bad`` in the place of each part of it in turn."""
    yield bad
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in everywhere(inner, bad))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from ([*value[:i], other, *value[i + 1 :]] for other in everywhere(inner, bad))


WHOLE = [
    MultirateConfig.two_rate(
        "head", 3, drift_steps=2, drift_factor=0.5, inactive_forward="eval", inactive_dtype="bfloat16", idle="drift"
    ),
    MultirateConfig.random_subsets(3, RandomSubset(0.5, "neuron"), "weight"),
    MultirateConfig.auto(1.5, ["a", "b"]),
]


@pytest.mark.parametrize("config", WHOLE, ids=["two_rate", "subset", "auto"])
def test_dictionaries_with_a_wrong_type_anywhere(config: MultirateConfig) -> None:
    values = config.to_dict()
    assert MultirateConfig.from_dict(values) == config
    for bad in ([5, {}], {"a": [None]}, b"bytes", Unprintable(), deep(), {None: 1, 3: 2}, -2.5):
        for wrong in everywhere(values, bad):
            refusal(lambda wrong=wrong: MultirateConfig.from_dict(wrong))
    for bad in (None, True, "", 7, [], NAN):  # some of these are right in some places
        for other in everywhere(values, bad):
            with suppress(TypeError, ValueError):
                MultirateConfig.from_dict(other).to_json()


GOOD = MultirateConfig.two_rate("head", 3, idle="drift").to_json()
FILES = {
    "empty": (b"", "cannot be read as JSON"),
    "cut off": (GOOD[:40].encode(), "cannot be read as JSON"),
    "zeros": (b"\0" * 64, "cannot be read as JSON"),
    "binary": (bytes(range(256)), "cannot be read as JSON"),
    "null": (b"null", "list 'groups'"),
    "number": (b"3", "list 'groups'"),
    "text": (b'"x"', "list 'groups'"),
    "list": (b"[]", "list 'groups'"),
    "nested": (b"[" * 100_000, "cannot be read as JSON"),
    "nested, closed": (b"[" * 100_000 + b"]" * 100_000, "cannot be read as JSON"),
    "digits": (GOOD.replace('"period": 3', '"period": ' + "9" * 5000).encode(), "cannot be read as JSON"),
    "NaN": (GOOD.replace('"lr_scale": 1.0', '"lr_scale": NaN').encode(), "rate group 'fast' must be finite"),
    "infinity": (GOOD.replace('_factor": "auto"', '_factor": 1e999').encode(), "drift_factor must be finite"),
    "true": (GOOD.replace('"period": 3', '"period": true').encode(), "period of rate group 'slow' must be an integer"),
    "twice": (GOOD.replace('"period": 3', '"period": 3, "period": 5').encode(), "the key 'period' occurs twice"),
    "unknown": (GOOD.replace('"period": 3', '"peroid": 3').encode(), "'peroid'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, words = FILES[case]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    text = refusal(lambda: MultirateConfig.from_json_file(path))
    assert "config.json" in text
    assert words in text


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(lambda: MultirateConfig.from_json_file(tmp_path))


@pytest.mark.parametrize("bad", [None, 5, True, "two_rate", {"fast": "head"}, {"head"}, MultirateConfig, [GOOD]])
def test_a_controller_takes_a_config(bad: Any, tmp_path: Path) -> None:
    assert "MultirateConfig" in refusal(lambda: Multirate(bad))
    assert "CopiesConfig" in refusal(lambda: AveragedCopies(bad))
    model, rows = example("bert", count=4)
    common = {"model": model, "args": arguments(tmp_path), "train_dataset": rows}
    if bad is not None:  # which is the default
        assert "multirate must be a MultirateConfig" in refusal(lambda: MultirateTrainer(**common, multirate=bad))
    assert "copies must be a CopiesConfig" in refusal(lambda: AveragedCopiesTrainer(**common, copies=bad))


@pytest.mark.parametrize("period", [10**6 + 1, 10**18, LARGEST_INT])
def test_a_step_for_a_period_that_float32_does_not_hold_is_refused(period: int) -> None:
    text = refusal(lambda: MultirateConfig.two_rate("head", period, idle="long_step"))
    assert f"idle='long_step' multiplies it by the period {period})" in text
    assert "rate group 'slow'" in text
    MultirateConfig.two_rate("head", period, idle="drift")
    MultirateConfig.two_rate("head", 10**6, idle="long_step")


CONTROLLERS = {
    "multirate": lambda: Multirate(MultirateConfig.two_rate(r"^5\.", 3, idle="drift")),
    "copies": lambda: AveragedCopies(CopiesConfig((1, 3))),
}


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_attach_takes_a_model_and_its_optimizer(kind: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller: Any = CONTROLLERS[kind]()
    for wrong in (None, 5, "model", [model], model.parameters(), network, optimizer):
        assert "model" in refusal(lambda wrong=wrong: controller.attach(wrong, optimizer))
    for wrong in (None, 5, "adamw", [optimizer], torch.optim.SGD, model):
        assert "optimizer" in refusal(lambda wrong=wrong: controller.attach(model, wrong))
    refusal(lambda: controller.attach(optimizer, model))
    assert not controller.attached
    if kind == "multirate":
        assert "model" in refusal(lambda: controller.assign("model"))
    with controller.attach(model, optimizer):
        pass


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_step_is_an_integer(kind: str) -> None:
    ends = []
    for integer in (int, np.int64):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with CONTROLLERS[kind]().attach(model, optimizer) as controller:
            for step in range(4):
                for wrong in ("1", True, 1.0, 1.5, None, -1, [1], torch.tensor(1), np.float64(1), HUGE):
                    assert "step index" in refusal(lambda wrong=wrong: controller.begin_step(wrong))
                controller.begin_step(integer(step))
                assert type(controller.step) is int
                inputs, labels = batch(step)
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)
