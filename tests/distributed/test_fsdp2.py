"""FSDP2 in two processes: the weights of one process, and no communication for what is idle.

Accelerate wraps in DDP on a CPU; `processes.shard_on_cpu` has it shard, and every test asks what was wrapped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.test_ddp import GRID
from tests.support.launch import ALONE, again, assert_trained_alike, core_first, largest, launch, result, wanted
from tests.support.processes import PERIOD, SHORT, is_fast
from tests.support.runs import FIVE, assert_same


pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        not FIVE, reason="the Accelerate of that time shards on accelerators only, and cannot be led astray"
    ),
]
EQUAL = [
    "adamw-checkpointing", "adamw-reentrant", "adamw-gas3-ragged", "adamw-ladder", "adamw-longstep", "sgd-longstep",
    "rmsprop-gas3", "adamw-middle", "adamw-evaluate", "adamw-evaluate-whole", "adamw-gas3-whole", "adamw-check",
    "adamw-ladder-rates", "adamw-auto", "adamw-auto-gas3", "adamw-never-refreshed-gas3", "adamw-stages-check",
]  # fmt: skip
SAVES = [
    "adamw-save", "rmsprop-save", "sgd-save-gas3", "adamw-save-sharded", "rmsprop-save-sharded",
    "sgd-save-sharded-gas3", "rmsprop-save-lora", "adamw-save-bf16", "adamw-save-sharded-evaluate-whole",
    "adamw-save-auto", "adamw-save-longstep-rates",
]  # fmt: skip
# Without a slow test only these run: each feature once, and not in every combination.
CORE = [
    "long-sgd", "long-adamw-gas3-lora", "adamw-checkpointing", "adamw-ladder", "sgd-longstep", "adamw-middle",
    "adamw-evaluate-whole", "adamw-ladder-rates", "adamw-auto-gas3",
]  # fmt: skip
CORE_SAVES = [
    "adamw-save",
    "adamw-save-longstep-rates",
    "rmsprop-save-sharded",
    "sgd-save-sharded-gas3",
    "rmsprop-save-lora",
]
MOVED = ["adamw-save", "rmsprop-save", "adamw-save-sharded", "rmsprop-save-sharded"]


@pytest.fixture(scope="module")
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("one"), ALONE, 1, wanted(request, CORE, [*GRID, *EQUAL]))


@pytest.fixture(scope="module")
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    equal, saves = wanted(request, CORE, [*GRID, *EQUAL]), wanted(request, CORE_SAVES, SAVES)
    others = ["sgd-noclip-bytes", "sgd-noclip-bytes-plain", "sgd-element", "sgd-copies"]
    folder = launch(tmp_path_factory.mktemp("two"), "fsdp2", 2, [*equal, *saves, *others])
    return launch(folder, "fsdp2", 2, [again(folder, case) for case in saves])


@pytest.mark.parametrize("case", core_first(CORE, [*GRID, *EQUAL]))
def test_two_processes_are_one(one: Path, two: Path, case: str) -> None:
    assert_trained_alike(one, two, case, "FSDPModule")
    first, second = result(two, case), result(two, case, 1)
    assert_same(first["weights"], second["weights"])


@pytest.mark.parametrize("case", core_first(CORE_SAVES, SAVES))
def test_resumed_in_the_middle_of_a_cycle(two: Path, case: str) -> None:
    assert result(two, case)["wrapper"] == ["FSDPModule"]
    assert_same(result(two, f"{case}-again")["weights"], result(two, case)["weights"])


def test_resumed_with_another_number_of_processes(request: pytest.FixtureRequest, tmp_path: Path, two: Path) -> None:
    moved = wanted(request, CORE_SAVES, MOVED)
    launch(tmp_path, "fsdp2", 1, [again(two, case) for case in moved])
    for case in moved:
        assert result(tmp_path, f"{case}-again")["wrapper"] == ["FSDPModule"]
        assert 0 < largest(result(tmp_path, f"{case}-again"), result(two, case)) < 1e-6


def test_fast_steps_reduce_and_gather_the_fast_part_only(two: Path) -> None:
    ours, plain = result(two, "sgd-noclip-bytes"), result(two, "sgd-noclip-bytes-plain")
    sizes = {name: value.numel() for name, value in plain["weights"].items()}
    block = sum(size for name, size in sizes.items() if "layer.0." in name)
    whole = sum(sizes.values())
    fast = sum(size for name, size in sizes.items() if is_fast(name))
    full, *rest = ours["traffic"]
    for step in plain["traffic"]:
        assert step == full
    # One class of three does not divide by two processes: a row of padding.
    assert whole <= full["reduce_scatter"] <= whole + 17
    for number, step in enumerate(rest, start=1):
        if number % PERIOD == 0:
            assert step == full
            continue
        assert fast <= step["reduce_scatter"] <= fast + 17
        # Forward gathers everything once, and backward what is live. Blocks 0 to 2 are not among that.
        assert step["all_gather"] <= full["all_gather"] - 3 * block
    reduced = sum(step["reduce_scatter"] for step in ours["traffic"])
    assert reduced <= (1 / PERIOD + fast / whole) * full["reduce_scatter"] * SHORT


def test_what_needs_whole_parameters_is_refused(two: Path) -> None:
    assert "FSDP and random_subset" in result(two, "sgd-element")["error"]
    assert "averaged copies need unsharded parameters" in result(two, "sgd-copies")["error"]


@pytest.mark.slow
def test_four_processes_are_one(tmp_path: Path, one: Path) -> None:
    four = launch(tmp_path, "fsdp2", 4, GRID)
    for case in GRID:
        assert_trained_alike(one, four, case, "FSDPModule")


@pytest.mark.slow
def test_resumed_with_four_processes(tmp_path: Path, two: Path) -> None:
    launch(tmp_path, "fsdp2", 4, [again(two, case) for case in MOVED])
    for case in MOVED:
        assert 0 < largest(result(tmp_path, f"{case}-again"), result(two, case)) < 1e-6
