"""DistributedDataParallel: two processes end with the weights of one, and what plain DDP does, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.launch import ALONE, again, assert_trained_alike, core_first, largest, launch, result, wanted
from tests.support.processes import PERIOD, SAVED, SHORT, is_fast
from tests.support.runs import FIVE, assert_same


pytestmark = pytest.mark.distributed
GRID = [f"long-{kind}{gas}{lora}" for kind in ("sgd", "adamw") for gas in ("", "-gas3") for lora in ("", "-lora")]
EQUAL = [
    "sgd-element", "sgd-neuron", "sgd-step", "sgd-copies",
    "adamw-unused", "adamw-views", "adamw-static", "adamw-checkpointing", "adamw-reentrant",
    "adamw-unused-checkpointing", "adamw-gas3-ragged", "adamw-gas3-ragged-views", "adamw-ladder", "adamw-longstep",
    "sgd-longstep", "rmsprop-gas3", "adamw-middle", "adamw-evaluate-unused", "adamw-check",
    "adamw-ladder-rates", "adamw-unused-routed", "sgd-unused-routed-longstep", "adamw-unused-routed-gas3",
    "adamw-auto", "sgd-auto", "adamw-auto-gas3", "adamw-auto-check",
    "sgd-headstart", "adamw-headstart-lora-gas3", "sgd-headstart-chosen-check", "adamw-unused-headstart-routed",
    "sgd-never", "adamw-never-refreshed-gas3-check", "adamw-never-refreshed-lora-unused", "adamw-stages-gas3-check",
    "sgd-stages-static", "sgd-stages-lora",
    "adamw-never-memory-gas3", "sgd-never-disk",
]  # fmt: skip
# Without a slow test only these run: each feature once, and not in every combination.
CORE = [
    "long-sgd", "long-adamw-gas3-lora", "sgd-element", "sgd-neuron", "sgd-step", "sgd-copies", "sgd-longstep",
    "adamw-unused", "adamw-static", "adamw-checkpointing", "adamw-gas3-ragged-views", "adamw-ladder", "adamw-middle",
    "adamw-check", "adamw-ladder-rates", "adamw-unused-routed-gas3", "adamw-auto", "sgd-headstart",
    "adamw-headstart-lora-gas3", "sgd-never", "adamw-never-refreshed-gas3-check",
    "adamw-stages-gas3-check", "sgd-never-disk",
]  # fmt: skip
CORE_SAVES = ["adamw-save", "rmsprop-save-lora", "sgd-save-gas3"]
CORE_PLAIN = ["", "-fp16hook", "-unused", "-resnet"]
# Against plain DDP with the gradients of idle parameters thrown away. Clipping would look at those first.
AS_PLAIN = ["", "-fp16hook", "-views", "-unused", "-static", "-resnet", "-resnet-gas3"]
WINDOWS = ["loop-window", "loop-window-before", "loop-window-unused", "loop-window-before-unused"]
LOOPS = ["loop", "loop-last", "loop-tied", "loop-compiled", *WINDOWS]
REFUSED = {
    "loop-several": "2 modules wrapped in DistributedDataParallel",
    "loop-thawed": "others were frozen when the model was wrapped",
    "loop-join": "Join (join_uneven_inputs)",
    "loop-forgets": "gradients of step 1 were not averaged over the processes",
    "loop-early": "before the last micro-batch of a step",
    "loop-inside": "the attached model has no distributed wrapper",
    "loop-last-late": "a parameter received two gradients in one backward pass",
    "sgd-powersgd": "powerSGD_hook",
    "sgd-disagree": "processes disagree about the configuration: process 0 has ...",
}
resumes = pytest.mark.skipif(
    not FIVE,
    reason="Trainer of 4.57 resumes neither in several processes of a CPU nor with another number of them",
)
SAVES = [
    "adamw-save",
    "adamw-save-auto",
    "rmsprop-save-auto-lora",
    "sgd-save-gas3",
    "sgd-save-longstep-rates",
    "rmsprop-save-lora",
    "adamw-save-static",
    "adamw-save-checkpointing",
    "adamw-save-stages",
]


@pytest.fixture(scope="module")
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("one"), ALONE, 1, [*wanted(request, CORE, [*GRID, *EQUAL]), *LOOPS])


@pytest.fixture(scope="module")
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = wanted(request, CORE_PLAIN, AS_PLAIN)
    plain = [f"{kind}{word}" for word in words for kind in ("sgd-noclip-still", "sgd-noclip-plain-drop")]
    others = [
        "sgd-bytes",
        "sgd-bytes-plain",
        "sgd-nudged-check",
        "sgd-nudged",
        "loop-last-twice",
        *LOOPS,
        *REFUSED,
    ]
    equal, saves = wanted(request, CORE, [*GRID, *EQUAL]), wanted(request, CORE_SAVES, SAVES)
    folder = launch(tmp_path_factory.mktemp("two"), "ddp", 2, [*equal, *plain, *saves, *others])
    partial = again(folder, "adamw-save").replace("again", "partial", 1)
    return launch(folder, "ddp", 2, [*(again(folder, case) for case in saves), partial])


@pytest.mark.parametrize("case", core_first(CORE, [*GRID, *EQUAL]))
def test_two_processes_are_one(one: Path, two: Path, case: str) -> None:
    assert_trained_alike(one, two, case, "DistributedDataParallel")
    first, second = result(two, case), result(two, case, 1)
    assert_same(first["weights"], second["weights"])
    moved = {name: float((first["weights"][name] - value).abs().max()) for name, value in first["before"].items()}
    for part in (True, False):
        assert max(length for name, length in moved.items() if is_fast(name) is part) > 1e-4


def test_cases_differ(two: Path) -> None:
    ends = [result(two, case) for case in ("sgd-element", "sgd-neuron", "sgd-step", "sgd-copies", "sgd-longstep")]
    for i, end in enumerate(ends):
        for other in ends[:i]:
            assert largest(end, other) > 1e-4


@pytest.mark.parametrize("word", core_first(CORE_PLAIN, AS_PLAIN))
@pytest.mark.parametrize("rank", [0, 1])
def test_idle_parameters_apart_it_is_plain_ddp(two: Path, word: str, rank: int) -> None:
    ours, plain = (result(two, f"{kind}{word}", rank) for kind in ("sgd-noclip-still", "sgd-noclip-plain-drop"))
    assert_same(ours["weights"], plain["weights"])


def test_buffers_of_processes_differ_as_in_plain_ddp(two: Path) -> None:
    first, second = (result(two, "sgd-noclip-still-resnet", rank)["weights"] for rank in (0, 1))
    differing = {name for name in first if not first[name].equal(second[name])}
    assert differing
    assert all("running" in name for name in differing)


@resumes
@pytest.mark.parametrize("case", core_first(CORE_SAVES, SAVES))
def test_resumed_in_the_middle_of_a_cycle(two: Path, case: str) -> None:
    assert SAVED % PERIOD
    for rank in (0, 1):
        assert_same(result(two, f"{case}-again", rank)["weights"], result(two, case, rank)["weights"])


@resumes
@pytest.mark.parametrize("case", core_first(["rmsprop-save-lora"], ["adamw-save", "rmsprop-save-lora"]))
def test_resumed_with_another_number_of_processes(tmp_path: Path, two: Path, case: str) -> None:
    launch(tmp_path, ALONE, 1, [again(two, case)])
    assert 0 < largest(result(tmp_path, f"{case}-again"), result(two, case)) < 1e-6


@resumes
@pytest.mark.slow
def test_restarted_by_torchrun_after_a_death(tmp_path: Path, two: Path) -> None:
    launch(tmp_path, "ddp", 2, ["adamw-save-dies"], "--max-restarts=1")
    restarted = result(tmp_path, "adamw-save-dies")
    assert_same(restarted["weights"], result(two, "adamw-save")["weights"])
    assert [entry["step"] for entry in restarted["history"]] == list(range(1, SHORT + 1))


def test_fast_steps_reduce_the_fast_part_only(two: Path) -> None:
    ours, plain = result(two, "sgd-bytes"), result(two, "sgd-bytes-plain")
    sizes = {name: value.numel() for name, value in plain["before"].items()}
    fast, whole = sum(size for name, size in sizes.items() if is_fast(name)), sum(sizes.values())
    reduced = [step["all_reduce"] for step in ours["traffic"]]
    # Behind the gradients comes for each parameter whether there is one.
    count = sum(is_fast(name) for name in sizes)
    wanted = [fast + count if step % PERIOD else whole for step in range(SHORT)]
    wanted[1] += 1  # whether all processes may send while backward goes on
    assert reduced == wanted
    assert [step["all_reduce"] for step in plain["traffic"]] == [whole] * SHORT
    assert sum(reduced) < (1 / PERIOD + fast / whole) * whole * SHORT


def test_processes_that_differ_are_found(two: Path) -> None:
    found = result(two, "sgd-nudged-check")["error"]
    assert "before step 8 the weights differ between processes: 'classifier.weight'" in found
    assert "error" not in result(two, "sgd-nudged")


@resumes
def test_a_checkpoint_that_is_not_complete_everywhere(two: Path) -> None:
    assert "processes disagree about the levels of drift" in result(two, "adamw-save-partial")["error"]


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("rank", [0, 1])
def test_refused(two: Path, case: str, rank: int) -> None:
    assert REFUSED[case] in result(two, case, rank)["error"]


@pytest.mark.parametrize("case", LOOPS)
def test_loop_of_ones_own(one: Path, two: Path, case: str) -> None:
    assert_same(result(two, case)["weights"], result(two, case, 1)["weights"])
    assert largest(result(one, case), result(two, case)) < 1e-7
    assert not any(result(two, case).get("rests", []))


def test_compiled_once_for_full_and_once_for_fast_only_steps(two: Path) -> None:
    graphs = result(two, "loop-compiled")["graphs"]
    # (The second batch has BERT compiled again, as it does alone: the first has written down what its labels are.)
    assert graphs == [1, 2, 2, 2, *[3] * (len(graphs) - 4)]
    assert graphs[-1] > result(two, "loop")["graphs"][-1] == 0


def test_backward_that_comes_twice_is_waited_for(one: Path, two: Path) -> None:
    assert_same(result(two, "loop-last-twice")["weights"], result(two, "loop-last-twice", 1)["weights"])
    assert largest(result(one, "loop-last"), result(two, "loop-last-twice")) < 1e-7


@pytest.mark.slow
def test_four_processes_are_one(tmp_path: Path, one: Path) -> None:
    four = launch(tmp_path, "ddp", 4, GRID)
    for case in GRID:
        assert_trained_alike(one, four, case, "DistributedDataParallel")
