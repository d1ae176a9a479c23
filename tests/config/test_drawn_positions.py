"""Positions of full steps: drawn for each cycle, so that every group meets all of the data."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import BertConfig, BertForSequenceClassification

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer, RandomSubset
from hf_multirate.config.drawn_positions import DrawnPositions
from hf_multirate.config.schedule import COUNTED_STEPS, Schedule
from tests.support.runs import arguments


PERIODS = [(1, 2), (1, 5), (1, 10), (1, 2, 4), (1, 2, 4, 8), (1, 3, 6), (1, 2, 16), (1, 100), (1, 4, 400)]


def gradient_steps(schedule: Schedule, group: int, steps: int) -> list[int]:
    return [step for step in range(steps) if group in schedule.live(step)]


@pytest.mark.parametrize("periods", PERIODS)
@pytest.mark.parametrize("seed", [0, 7])
def test_each_group_has_one_gradient_in_each_of_its_periods(periods: tuple[int, ...], seed: int) -> None:
    schedule = Schedule(periods, turns="drawn", seed=seed)
    for group, period in enumerate(periods):
        found = gradient_steps(schedule, group, 6 * period)
        assert [step // period for step in found] == list(range(6))
        assert found[0] == 0


@pytest.mark.parametrize("periods", PERIODS)
def test_a_deeper_group_is_live_only_together_with_all_above_it(periods: tuple[int, ...]) -> None:
    schedule = Schedule(periods, turns="drawn")
    for step in range(900):
        live = schedule.live(step)
        assert live == tuple(range(len(live)))


def test_periods_outside_of_a_chain_are_nested_in_what_divides_them() -> None:
    schedule = Schedule((1, 2, 4, 6), turns="drawn")
    for group, period in ((2, 4), (3, 6)):
        found = gradient_steps(schedule, group, 50 * period)
        assert [step // period for step in found] == list(range(50))
        assert set(found) <= set(gradient_steps(schedule, 1, 50 * period))


@pytest.mark.parametrize("rhythm", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("periods", [(1, 2), (1, 4), (1, 5), (1, 8), (1, 10), (1, 2, 4), (1, 2, 4, 8)])
def test_every_group_sees_all_of_a_rhythm_in_proportion(periods: tuple[int, ...], rhythm: int) -> None:
    schedule = Schedule(periods, turns="drawn")
    for group, period in enumerate(periods):
        found = gradient_steps(schedule, group, 40 * period)
        seen = Counter(step % rhythm for step in found)
        assert all(abs(seen[place] - len(found) / rhythm) <= 3 for place in range(rhythm)), (group, seen)
        # In a short run too: a dozen gradients reach each of up to five data sets.
        if rhythm <= 5:
            assert len({step % rhythm for step in found[:12]}) == rhythm


@pytest.mark.parametrize("sources", range(9, 17))
@pytest.mark.parametrize("periods", [(1, 2), (1, 3), (1, 4), (1, 5), (1, 2, 4, 8, 16)])
def test_many_data_sets_in_turn_are_seen_in_proportion(periods: tuple[int, ...], sources: int) -> None:
    schedule = Schedule(periods, turns="drawn")
    for group, period in enumerate(periods):
        found = gradient_steps(schedule, group, 64 * period)
        seen = Counter(step % sources for step in found)
        assert len(seen) == sources
        found = gradient_steps(schedule, group, 200 * period)
        seen = Counter(step % sources for step in found)
        assert max(seen.values()) <= 2.2 * min(seen.values())


def test_fixed_turns_share_a_rhythm_with_the_data() -> None:
    fixed = gradient_steps(Schedule((1, 5)), 1, 200)
    assert {step % 5 for step in fixed} == {0}


def test_batches_sorted_by_length_are_all_seen() -> None:
    # Ten lengths that rise within each ten steps, as in a curriculum or in batches of like length.
    schedule = Schedule((1, 10), turns="drawn")
    lengths = [1 + step % 10 for step in gradient_steps(schedule, 1, 1000)]
    assert sum(lengths) / len(lengths) == pytest.approx(5.5, abs=0.3)
    assert set(lengths) == set(range(1, 11))


def test_the_same_positions_in_any_order_and_in_any_process() -> None:
    one, other = (DrawnPositions((2, 4, 12), seed=3) for _ in range(2))
    forward = [one.position(4, window) for window in range(200)]
    assert [other.position(4, window) for window in reversed(range(200))] == forward[::-1]
    assert DrawnPositions((2, 4, 12), seed=4).position(4, 1) == DrawnPositions((12, 4, 2), seed=4).position(4, 1)
    assert [DrawnPositions((2, 4, 12), seed=5).position(4, window) for window in range(200)] != forward


@pytest.mark.parametrize("periods", [*PERIODS, (1, 2, 3, 6), (1, 4, 6)])
@pytest.mark.parametrize("seed", [0, 3])
def test_distances_to_the_gradients_before_and_after(periods: tuple[int, ...], seed: int) -> None:
    schedule = Schedule(periods, "drawn", seed)
    for group in range(len(periods)):
        found = gradient_steps(schedule, group, 2 * max(periods) + 80)
        for step in range(60):
            last = max(live for live in found if live <= step)
            assert schedule.steps_since_refresh(group, step) == step - last
            assert schedule.last_refresh(group, step) == sum(live <= step for live in found) - 1
            if last == step:
                assert schedule.steps_to_next_refresh(group, step) == min(live for live in found if live > step) - step


@pytest.mark.parametrize("turns", ["fixed", "drawn"])
@pytest.mark.parametrize("periods", [(1, 5), (1, 2, 4, 8), (1, 3, 6), (1, 4, 6), (1, 2, 3)])
def test_kinds_of_steps_come_as_often_as_they_are_counted(periods: tuple[int, ...], turns: str) -> None:
    schedule = Schedule(periods, turns)
    kinds = schedule.kinds
    steps = 2400
    taken = Counter(schedule.live(step) for step in range(steps))
    for kind, number in kinds.items():
        assert taken[kind] / steps == pytest.approx(number / sum(kinds.values()), abs=0.01)
        assert schedule.live(schedule.example(kind)) == kind
    assert set(taken) == set(kinds)
    assert next(iter(kinds)) == tuple(range(len(periods)))


@pytest.mark.parametrize("periods", [(1, 1_000_000), (1, 97, 101, 103), (1, 1000, 1_000_000), tuple(range(1, 30))])
def test_kinds_of_long_and_coprime_periods_are_few(periods: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    position = DrawnPositions.position
    monkeypatch.setattr(DrawnPositions, "position", lambda *args: asked.append(args) or position(*args))
    schedule = Schedule(periods, turns="drawn")
    kinds = schedule.kinds
    assert len(kinds) <= COUNTED_STEPS
    if len(periods) < 4:
        assert not asked
        assert kinds[0,] == periods[-1] - periods[-1] // periods[1]
    assert len(asked) <= 4 * COUNTED_STEPS * len(periods)


class Turns(MultirateTrainer):
    """Batches in the order of the rows."""

    def _get_train_sampler(self, *args: object) -> SequentialSampler:
        del args
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


SOURCES, ROWS, WORDS = 5, 4, 12


def rows(sources: int, steps: int) -> list[dict[str, Tensor]]:
    """A batch of each source in turn, each with a vocabulary of its own."""
    generator = torch.Generator().manual_seed(0)
    data = []
    for row in range(steps * ROWS):
        source = row // ROWS % sources
        ids = torch.randint(0, WORDS, (6,), generator=generator) + WORDS * source
        data.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.sum() % 2})
    return data


def bert(sources: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS * sources, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=1,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def moved_by_source(folder: Path, config: MultirateConfig, sources: int, steps: int) -> list[float]:
    """How far the embeddings of each source have moved."""
    model = bert(sources)
    table = model.bert.embeddings.word_embeddings.weight
    before = table.detach().clone()
    args = arguments(folder, max_steps=steps, weight_decay=0.0, per_device_train_batch_size=ROWS, save_strategy="no")
    Turns(model, args, train_dataset=rows(sources, steps), multirate=config).train()  # type: ignore[arg-type]
    distance = (table.detach() - before).norm(dim=1).view(sources, WORDS)
    return distance.mean(dim=1).tolist()


CONFIGS: dict[str, tuple[Callable[[], MultirateConfig], int]] = {
    "two rates": (lambda: MultirateConfig.two_rate("last:1", 5, idle="drift"), 5),
    "two rates, long step": (lambda: MultirateConfig.two_rate("last:1", 5, "long_step"), 5),
    "two rates, no drift": (lambda: MultirateConfig.two_rate("last:1", 4, idle="freeze"), 4),
    "ladder of two": (lambda: MultirateConfig.ladder([1, 2, 4], idle="drift"), 2),
    "ladder of four": (lambda: MultirateConfig.ladder([1, 2, 4], idle="freeze"), 4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_data_sets_in_turn_reach_the_slowest_group(tmp_path: Path, name: str) -> None:
    make, sources = CONFIGS[name]
    drawn = moved_by_source(tmp_path, make(), sources, 48)
    assert min(drawn) > 0.2 * max(drawn) > 0.0
    fixed = moved_by_source(tmp_path, replace(make(), turns="fixed"), sources, 48)
    assert min(fixed) == 0.0 < max(fixed)


def test_a_loss_term_at_every_fifth_step_reaches_the_slow_group() -> None:
    """Of two slow weights, one has a gradient from a term that is there at every fifth step."""

    def trained(turns: str) -> Tensor:
        torch.manual_seed(0)
        model = nn.ModuleDict({"slow": nn.Linear(2, 1, bias=False), "fast": nn.Linear(1, 1)})
        before = model["slow"].weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        config = MultirateConfig.two_rate("fast", 5, idle="freeze", turns=turns)
        with Multirate(config).attach(model, optimizer) as multirate:
            for step in range(60):
                multirate.begin_step(step)
                inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0 if step % 5 == 3 else 0.0]])
                model["fast"](model["slow"](inputs)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        moved: Tensor = (model["slow"].weight.detach() - before).abs()[0]
        return moved

    assert trained("drawn").min() > 0.0
    assert trained("fixed")[1] == 0.0 < trained("fixed")[0]


def test_random_subsets_are_held_between_drawn_refreshes() -> None:
    config = MultirateConfig.random_subsets(4, RandomSubset(0.5, seed=1))
    schedule = config.cycles
    held = [
        RandomSubset().held(schedule.last_refresh(0, step), schedule.steps_since_refresh(0, step))
        for step in range(200)
    ]
    refreshed = [step for step, number in enumerate(held) if number is None]
    assert [step // 4 for step in refreshed] == list(range(50))
    assert len({step % 4 for step in refreshed}) == 4
    # Between two refreshes the same draw is held, and each one has its own.
    numbers = [number for number in held if number is not None]
    assert numbers == sorted(numbers)
    returned = [
        RandomSubset().returning(schedule.last_refresh(0, step), schedule.steps_since_refresh(0, step))
        for step in refreshed[1:]
    ]
    assert returned == list(range(49))


def test_automatic_periods_are_drawn_too() -> None:
    group = MultirateConfig.auto(1.6)
    assert group.turns == "drawn"
    assert MultirateConfig.paper().turns == "fixed"


def test_the_published_setting_is_fixed_and_drifts_in_full() -> None:
    config = MultirateConfig.paper("last:1", 3)
    assert (config.turns, config.drift_factor, config.inactive_forward) == ("fixed", 1.0, "train")
    assert [group.period for group in config.groups] == [1, 3]
    assert config.groups[1].idle == "drift"
