"""Contenders, reference seconds and plans of the benchmark at equal time, with figures to check by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from benchmarks import configs
from benchmarks.budgets import timing, trials
from benchmarks.budgets.build import build, set_dropout
from benchmarks.budgets.contenders import CONTENDERS, DEFAULT, Contender, named
from benchmarks.budgets.kinds import KindsFile, head_start_name, to_time
from benchmarks.budgets.plan import Planner, budget_seconds, mix_of
from benchmarks.budgets.settings import SETTINGS
from benchmarks.budgets.tasks import TASKS, base_rate
from hf_multirate import MultirateConfig, RateGroup
from tests.benchmarks.tiny_task import TINY, load, network


MACHINE = {"commit": "a" * 40, "dirty": False, "processor": "x"}
BASELINE = CONTENDERS["baseline"]
LADDER = CONTENDERS["ladder 1,2,4"]
PARTS = [["part 1", 1], ["part 2", 2], ["part 3", 4]]


def line(setting: str, groups: list[Any], **seconds: float | list[float]) -> dict[str, Any]:
    """Seconds of each kind, two batches of equal seconds if one number is given."""
    lists = {kind: value if isinstance(value, list) else [value, value] for kind, value in seconds.items()}
    times = {kind: {"process_seconds": values, "wall_seconds": values} for kind, values in lists.items()}
    return {"setting": setting, "groups": groups, "rows": 12, "times": times}


def ladder_line(factor: float = 1.0) -> dict[str, Any]:
    whole, two, one = "part 1 + part 2 + part 3", "part 1 + part 2", "part 1"
    return line("ladder 1,2,4", PARTS, **{whole: 1.0 * factor, two: 0.7 * factor, one: 0.4 * factor})


@pytest.fixture
def file(tmp_path: Path) -> KindsFile:
    """A baseline of one second a step, and a head start of 2.5 seconds; the machine was half as fast in pass 2."""
    found = KindsFile(tmp_path, "tiny")
    for number, factor in ((1, 1.0), (2, 2.0), (3, 1.0)):
        found.append(line("baseline", [["all", 1]], all=factor), number, MACHINE)
        found.append(ladder_line(factor), number, MACHINE)
        found.append(line("head start, baseline", [], **{"head start": [2.5 * factor]}), number, MACHINE)
        shares = {"share 1": 1.0, "share 0.5": 0.6, "probe": 3.0}
        found.append(line("VCAS", [["all", 1]], **{k: v * factor for k, v in shares.items()}), number, MACHINE)
    return found


def test_seconds_are_those_of_the_baseline_times_the_ratio_in_the_same_pass(file: KindsFile) -> None:
    assert file.charge("ladder 1,2,4", "part 1").seconds == pytest.approx(0.4)
    assert file.charge("ladder 1,2,4", "part 1").quartiles == pytest.approx((0.4, 0.4))
    assert file.charge("baseline", "all").quartiles == pytest.approx((1.0, 1.5))
    assert file.charge("head start, baseline", "head start").seconds == pytest.approx(2.5)
    again = KindsFile(file.path.parent, "tiny")
    assert again.lines == file.lines
    assert again.charge("ladder 1,2,4", "part 1") == file.charge("ladder 1,2,4", "part 1")


def test_batches_are_averaged_after_the_median_over_passes(tmp_path: Path) -> None:
    found = KindsFile(tmp_path, "tiny")
    for number, noise in ((1, 0.0), (2, 5.0), (3, 0.0)):
        found.append(line("baseline", [["all", 1]], all=[1.0, 3.0]), number, MACHINE)
        found.append(line("head only", [["all", 1]], all=[0.5, 0.6 + noise]), number, MACHINE)
    assert found.charge("head only", "all").seconds == pytest.approx((0.5 + 0.6) / 2)


def test_seconds_of_another_processor_are_refused(file: KindsFile) -> None:
    with pytest.raises(ValueError, match="has seconds of 'x', and this is 'y'"):
        file.append(ladder_line(), 4, {**MACHINE, "processor": "y"})
    file.append(ladder_line(), 4, {**MACHINE, "instructions": "AVX512"})
    with pytest.raises(ValueError, match="has seconds of 'AVX512', and this is 'AVX2'"):
        file.append(ladder_line(), 4, {**MACHINE, "instructions": "AVX2"})
    with pytest.raises(KeyError, match="no seconds of 'LoRA'"):
        file.charge("LoRA", "all")


@pytest.mark.parametrize(("factor", "ratio"), [(30.0, "30.0"), (0.2, "0.2")])
def test_a_baseline_of_far_other_seconds_is_refused(factor: float, ratio: str, file: KindsFile) -> None:
    with pytest.raises(ValueError, match=f"takes {ratio} times the seconds .* or it is another one"):
        file.append(line("baseline", [["all", 1]], all=factor), 4, MACHINE)
    file.append(ladder_line(factor), 4, MACHINE)  # settings may take any time


def test_a_budget_gets_the_steps_whose_charge_is_closest(file: KindsFile) -> None:
    budget = budget_seconds(file, TINY, 12, "short", 1.0)
    assert budget == pytest.approx(6)  # 12 rows, 2 in a batch, a second each
    assert Planner(BASELINE, file).plan(budget).steps == 6
    assert Planner(BASELINE, file).plan(budget_seconds(file, TINY, 12, "long", 0.25)).steps == 3
    assert Planner(BASELINE, file).plan(0.1).steps == 1
    found = Planner(LADDER, file).plan(60)
    assert sum(found.kinds.values()) == found.steps
    assert abs(found.seconds - 60) <= 0.5
    assert found.seconds == pytest.approx(
        found.kinds["part 1"] * 0.4 + found.kinds["part 1 + part 2"] * 0.7 + found.kinds["part 1 + part 2 + part 3"]
    )
    assert found.kinds["part 1"] == pytest.approx(found.steps / 2, abs=1)  # one of two steps


def test_kinds_are_those_of_the_drawn_turns(file: KindsFile) -> None:
    schedule = LADDER.config.schedule
    assert schedule.turns == "drawn"
    for steps in (1, 2, 3, 7, 21):
        full = sum(schedule.full(step) for step in range(steps))
        assert Planner(LADDER, file).kinds(steps).get("part 1 + part 2 + part 3", 0) == full


def test_a_head_start_is_charged(file: KindsFile) -> None:
    started = dataclasses.replace(BASELINE, head_start=True)
    found = Planner(started, file).plan(6)
    assert found.kinds == {"head start": 1, "all": 3}
    assert found.seconds == pytest.approx(5.5)
    lora = CONTENDERS["LoRA + head rate + head start"]
    assert head_start_name(lora) != head_start_name(started)


def test_vcas_is_planned_by_the_kinds_of_an_earlier_run(file: KindsFile) -> None:
    contender = dataclasses.replace(CONTENDERS["VCAS + head rate + head start"], head_start=False)
    assert Planner(contender, file).plan(100).kinds == {"share 1": 97, "probe": 1}  # a probe after 50 steps
    mix = mix_of({"head start": 1, "share 1": 10, "share 0.5": 30, "probe": 2})
    assert mix == {"share 1": 0.25, "share 0.5": 0.75}
    found = Planner(contender, file, mix).plan(100)
    assert sum(found.kinds.values()) - found.kinds["probe"] == found.steps
    assert found.kinds["share 1"] == round(found.steps / 4)
    assert abs(found.seconds - 100) <= 1.5


def test_each_stage_is_planned_and_charged_by_its_own_kinds(file: KindsFile) -> None:
    file.append(line("last:2 k4", [["fast", 1], ["slow", 4]], **{"fast": 0.5, "fast + slow": 1.0}), 1, MACHINE)
    contender = CONTENDERS["top, then ladder"]
    found = Planner(contender, file).kinds(20)
    ladder = Planner(LADDER, file).kinds(13)  # the schedule begins again after 35 % of 20 steps
    assert found == {"last:2 k4: fast": 7, **{f"ladder 1,2,4: {kind}": number for kind, number in ladder.items()}}
    assert Planner(contender, file).charge(found) == pytest.approx(7 * 0.5 + Planner(LADDER, file).charge(ladder))
    reverse = Planner(CONTENDERS["ladder, then top"], file).kinds(20)
    assert reverse == found
    started = CONTENDERS["ladder, then top + head rate + head start"]
    assert [name for _, _, name in to_time([started], KindsFile(file.path.parent, "other"), 1)] == [
        "baseline", "ladder 1,2,4", "last:2 k4", started.name,
    ]  # fmt: skip


def test_what_is_timed_next_begins_with_the_baseline(file: KindsFile) -> None:
    started = dataclasses.replace(LADDER, head_start=True)
    assert not list(to_time([BASELINE, started], file, 3))
    head = CONTENDERS["head only + head rate + head start"]
    assert list(to_time([BASELINE, started, head], file, 2)) == [
        (4, "steps", "baseline"), (4, "steps", head.name), (5, "steps", "baseline"), (5, "steps", head.name),
    ]  # fmt: skip
    file.append(line("head only", [["all", 1]], all=0.3), 4, MACHINE)  # killed before the baseline of its pass
    assert file.passes("head only") == {}
    fresh = list(to_time([started], KindsFile(file.path.parent, "other"), 1))
    assert [name for _, _, name in fresh] == ["baseline", started.name, started.name]
    assert [function for _, function, _ in fresh] == ["steps", "steps", "head start"]


def test_batches_to_time_have_all_lengths() -> None:
    rows = {"input_ids": [[0] * n for n in (9, 1, 8, 2, 7, 3, 6, 4)]}

    class Train(dict[str, Any]):
        def __len__(self) -> int:
            return 8

    data: Any = type("Data", (), {"train": Train(rows), "by_length": True})
    chosen = timing.typical_batches(data, 2, 4)
    lengths = [[len(rows["input_ids"][i]) for i in batch] for batch in chosen]
    assert lengths == [[1, 2], [3, 4], [6, 7], [8, 9]]


def test_every_step_of_a_cycle_counts_for_its_kind_and_batch() -> None:
    steps = [
        (kind, n + second, 2.0) for n in range(4) for kind, second in (("slow", 4.0), ("fast", 1.0), ("fast", 3.0))
    ]
    assert timing.BATCHES == 4
    found = timing.by_kind(steps, 3)
    assert found["fast"] == {"process_seconds": [2.0, 3.0, 4.0, 5.0], "wall_seconds": [2.0] * 4}
    assert found["slow"]["process_seconds"] == [4.0, 5.0, 6.0, 7.0]


@pytest.mark.usefixtures("_tiny_budgets")
def test_every_kind_of_a_setting_is_timed_on_every_batch() -> None:
    expected = {
        "VCAS + head rate + head start": {"share 0.25", "share 0.5", "share 0.75", "share 1", "probe"},
        "DropBP + head rate + head start": {"4 of 8 skipped"},
        "last:1 k4": {"fast", "fast + slow"},
        "auto 1.6": None,
    }
    for name, kinds in expected.items():
        found = timing.time_setting(name, TINY, load())
        assert kinds is None or set(found["times"]) == kinds
        assert all(len(values["process_seconds"]) == timing.BATCHES for values in found["times"].values())
        assert all(second > 0 for values in found["times"].values() for second in values["process_seconds"])
    periods = [period for _, period in found["groups"]]
    assert len(periods) > 1 < max(periods)  # those that were chosen for the model
    found = timing.time_head_start("baseline + head rate + head start", TINY, load())
    seconds = {kind: values["process_seconds"] for kind, values in found["times"].items()}
    assert seconds["head start"][0] > seconds["reading"][0] > 0


def test_heads_have_one_rate_in_all_contenders_with_a_head_rate() -> None:
    for contender in CONTENDERS.values():
        factor = contender.config.head_lr_scale * contender.setting.rate_scale
        assert factor == (10.0 if contender.head_rate else contender.setting.rate_scale)
        assert (contender.config.head_start > 0) == contender.head_start


def test_baselines_come_first_and_families_are_known() -> None:
    every = named(["all"])
    baselines = [name for name, c in CONTENDERS.items() if c.family == "baseline"]
    assert [c.name for c in every[: len(baselines)]] == baselines
    assert {CONTENDERS[name].setting.name for name in baselines} == {"baseline", "baseline, no dropout"}
    assert [c.name for c in named(["paper", "baseline"])] == ["baseline", "paper"]
    assert {c.family for c in named(["family:lora", "family:frozen"])} == {"lora", "frozen"}
    assert len(every) == len(CONTENDERS) == len({c.name for c in every})
    ours = {c.setting.name for c in every if c.family == "multirate"}
    assert ours == {s.name for s in SETTINGS.values() if s.family == "multirate"}
    assert all(len([c for c in every if c.setting.name == name]) == 5 for name in ours)
    assert set(DEFAULT) <= set(CONTENDERS)
    decayed = Contender(SETTINGS["ladder 1,2,4"], decay=True)
    assert decayed.cost != LADDER.cost == Contender(SETTINGS["ladder 1,2,4"], head_rate=True).cost


def test_dropout_is_the_only_difference_of_contenders_about_dropout() -> None:
    without, frozen = CONTENDERS["frozen below last:2 + head rate"], "frozen below last:2, with dropout + head rate"
    assert CONTENDERS[frozen].config == dataclasses.replace(without.config, inactive_forward="train") != without.config
    bert, words = network(0).train(), {"input_ids": torch.arange(20).view(2, 10)}
    set_dropout(bert)
    assert not torch.equal(bert(**words).logits, bert(**words).logits)
    set_dropout(bert, **CONTENDERS["baseline, no dropout"].setting.build)
    assert torch.equal(bert(**words).logits, bert(**words).logits)


@pytest.mark.parametrize("name", ["baseline, no dropout + head rate", "frozen below last:2, no dropout + head rate"])
def test_contenders_without_dropout_are_built_without(name: str, tmp_path: Path) -> None:
    bert = network(0)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    build(CONTENDERS[name], bert, args, train_dataset=[])
    assert [m.p for m in bert.modules() if isinstance(m, nn.Dropout) and m.p] == []
    assert bert.config._attn_implementation == "eager"
    usual = CONTENDERS[name.replace(", no dropout", "")]
    assert (CONTENDERS[name].config, CONTENDERS[name].family) == (usual.config, usual.family)


def test_a_rate_at_an_edge_gets_one_more_beyond_it() -> None:
    rates = trials.grid(TINY, CONTENDERS["LoRA + head rate + head start"])
    assert rates == pytest.approx([5e-2, 1e-1, 2e-1])
    assert trials.one_more(rates, {rates[0]: 0.1, rates[1]: 0.3, rates[2]: 0.2}) is None
    assert trials.one_more(rates, {rates[0]: 0.3, rates[1]: 0.3, rates[2]: 0.2}) == pytest.approx(2.5e-2)
    scores = {rates[0]: 0.1, rates[1]: 0.2, rates[2]: 0.3}
    assert trials.one_more(rates, scores) == pytest.approx(4e-1)
    # A second call finds the same one, not one beyond it.
    assert trials.one_more(rates, {**scores, trials.one_more(rates, scores): 0.9}) == pytest.approx(4e-1)
    assert {base_rate(task) for task in TASKS.values()} >= {4e-4, 6e-5, 0.03}


def test_texts_are_trained_in_mixed_precision_and_images_are_not() -> None:
    assert {name for name, task in TASKS.items() if not task.bf16} == {"cifar10", "fashion"}


def test_results_keep_only_what_differs_from_the_defaults() -> None:
    found = configs.given(MultirateConfig.ladder([1, 4], head_start=3))
    parts = [{"name": "part 1", "patterns": ["part:1/2"]}, {"name": "part 2", "patterns": ["part:2/2"], "period": 4}]
    assert found == {"groups": parts, "head_start": 3}
    fast = RateGroup("fast", "x", lr_scale=2.0)
    stages = configs.given(MultirateConfig.stages([(0.5, MultirateConfig.off()), (1.0, MultirateConfig([fast]))]))
    everything = {"groups": [{"name": "all", "patterns": [".*"]}]}
    scaled = {"groups": [{"name": "fast", "patterns": ["x"], "lr_scale": 2.0}]}
    assert stages["stage_list"] == [{"until": 0.5, "config": everything}, {"until": 1.0, "config": scaled}]
