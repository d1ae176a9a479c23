"""The GPU benchmark on a CPU, with networks of a few thousand weights: what is measured, kept, skipped and shown."""

from __future__ import annotations

import ast
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.budgets.kinds import KindsFile
from benchmarks.gpu import command, equal_time, idle, kinds, memory, page, page_parts, runs, steps, syncs
from benchmarks.gpu import correctness as checks
from benchmarks.gpu.cells import Bench, BrokenDeviceError, Cell, lacks_time, run_cell, run_cells
from benchmarks.gpu.checks import both, difference, same_bits
from benchmarks.gpu.kernels import compare
from benchmarks.gpu.models import NETWORKS
from benchmarks.gpu.place import Cpu, SkippedError
from benchmarks.gpu.results import FAILED, MEASURED, SKIPPED, GpuResults, OtherMachineError
from benchmarks.gpu.training import trainer_for
from benchmarks.jsonl import read_lines
from benchmarks.machine import ROOT
from benchmarks.memory import forget_peak
from benchmarks.speed.harness import Timer


# Other libraries warn in training, and where they compile.
pytestmark = pytest.mark.filterwarnings("ignore")

CHOSEN = (
    "BERT-base, bf16, eager", "Llama 0.5 B, tf32, eager", "ViT-B/16, bf16, eager", "BERT-base, bf16, compile",
    "BERT-base, 32 x 128", "batch 8", "host synchronisation", "Llama 0.5 B, LoRA, checkpointing", "BERT-large, plain",
)  # fmt: skip
"""Cells of the first three parts that are run here; of the others all are."""

ON_GPU_ONLY = {
    "host synchronisation", "equal to the CPU", "fp16 with a gradient scaler", "period 1 equals Trainer, fp16",
    "flash_attention_2",
}  # fmt: skip
ABOUT = {
    "commit": "a" * 40,
    "dirty": False,
    "device": "a GPU",
    "processor": "x",
    "cores": 1,
    "versions": {"torch": "1"},
}


def resets_peaks() -> bool:
    """Whether the kernel resets the peak of a process."""
    try:
        forget_peak()
    except OSError:
        return False
    return True


CLEAR_REFS = resets_peaks()


def bench(seconds: float = 100.0, *, tiny: bool = True) -> Bench:
    return Bench(Cpu(), tiny, time.monotonic() + seconds)


def cell(measure: Callable[[Bench], dict[str, Any]], name: str = "a", seconds: float = 1.0) -> Cell:
    return Cell("kinds", name, seconds, measure)


def words(out: Path, *more: str) -> list[str]:
    return ["--device", "cpu", "--tiny", "--in-process", "--out", str(out), *more]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all parts."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command.main(words(out, "--parts", "kinds", "runs", "memory", "--cells", *CHOSEN))
        command.main(words(out, "--parts", "correctness", "equal_time", "--page", str(out.with_suffix(".md"))))
    return out


def test_every_cell_is_measured_or_says_why_not(results: Path) -> None:
    file = GpuResults(results)
    assert {part for part, _ in file.cells} == set(command.PARTS)
    for (part, name), line in file.cells.items():
        no_kernel = name.endswith(" attention") and "kernel" in (line["reason"] or "")
        no_peak = part == "memory" and not CLEAR_REFS
        skipped = name in ON_GPU_ONLY or part == "equal_time" or no_kernel or no_peak
        assert line["status"] == (SKIPPED if skipped else MEASURED), (name, line["reason"])
    reasons = {file.cells[part, name]["reason"] for part, name in file.cells if name in ON_GPU_ONLY}
    assert reasons == {"needs CUDA"}
    assert {file.cells["equal_time", task]["reason"] for task in equal_time.TASKS} == {"not with --tiny"}
    (machine,) = file.machines.values()
    assert {"device", "processor", "versions", "commit", "dirty"} <= machine.keys()


def test_all_checks_pass_on_the_cpu(results: Path) -> None:
    found = GpuResults(results).values("correctness")
    assert {name for name, values in found.items() if not values["passed"]} == set()
    assert {"period 1 equals Trainer, fp32", "resume in mid-cycle, drift", "activation cache"} <= found.keys()


def test_steps_are_timed_by_kind(results: Path) -> None:
    for name, values in GpuResults(results).values("kinds").items():
        kinds = {kind for setting in values["settings"].values() for kind in setting["cycle"]}
        assert kinds <= values["seconds"].keys()
        assert all(min(seconds) > 0 for seconds in values["seconds"].values())
        assert all(sum(setting["cycle"].values()) == 4 for setting in values["settings"].values())
        predicted = [setting["from_flops"] for setting in values["settings"].values()]
        assert all(value is None for value in predicted) == ("compile" in name)
        assert not any("plan_error" in setting for setting in values["settings"].values())
        assert ("drift_bytes" in values) != ("compile" in name)


@pytest.mark.parametrize(
    ("setting", "cycles", "untimed"), [("last:1", 1, 2), ("ladder 1,2,4", 1, 3), ("ladder 1,2,4", 3, 5)]
)
def test_the_first_step_of_each_kind_is_not_timed(
    setting: str, cycles: int, untimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []
    monkeypatch.setattr(steps.Trainee, "step", lambda _, spans=None, kind="": timed.append(spans is not None))
    given = bench()
    trained, timer = steps.trainee(given, given.network("BERT-base"), "fp32"), Timer()
    steps.time_cycle(trained, setting, kinds.SETTINGS[setting], timer, cycles)
    assert timed == [False] * untimed + [True] * 4 * max(1, cycles - 1)


def test_memory_of_an_earlier_controller_does_not_count() -> None:
    calls = []

    class Recording(Cpu):
        def free(self) -> None:
            calls.append("free")

        def allocated(self) -> int:
            calls.append("allocated")
            return 0

        def forget_peak(self) -> None:
            """Nothing, also where the kernel cannot."""

        def peak(self) -> int:
            calls.append("peak")
            return 0

    given = Bench(Recording(), True, time.monotonic() + 100.0)
    trained = steps.trainee(given, given.network("BERT-base"), "fp32")
    kinds.bytes_after(trained, kinds.SETTINGS["last:1"])
    assert calls == ["free", "allocated"]
    calls.clear()
    memory.measure("BERT-large", "plain", given)
    assert calls == ["peak", "allocated", *(["free"] + ["peak"] * 5) * len(memory.MEASURED)]


def test_a_run_leaves_no_variable_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_KEPT", "before")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    given = bench()
    with trainer_for(given, given.network("BERT-base"), None, max_steps=1):
        os.environ |= {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_KEPT": "after"}
    assert os.environ["ACCELERATE_KEPT"] == "before"
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ


def test_the_page_shows_all_parts(results: Path) -> None:
    text = results.with_suffix(".md").read_text()
    assert text == page.page(results)
    titles = [
        "# On a GPU",
        "## Machine",
        "## Steps",
        "## Runs",
        "## Memory",
        "## Correctness",
        "## Skipped and failed",
    ]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "| runs | host synchronisation | skipped | needs CUDA |" in text
    assert "| period 1 equals Trainer, fp32 | passed | 12 steps: all " in text
    file = GpuResults(results)
    values = file.values("kinds")["BERT-base, bf16, eager"]
    speedup = page_parts.cycle_speedup(values, "ladder 1,2,4")
    assert f" | {speedup:.2f} |\n" in text


def test_a_second_call_measures_nothing(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results.read_bytes()
    monkeypatch.setattr("benchmarks.gpu.cells.run_cell", lambda *_: pytest.fail("a cell was measured again"))
    command.main(words(results, "--parts", "correctness", "equal_time"))
    command.main(words(results, "--parts", "kinds", "runs", "memory", "--cells", *CHOSEN))
    assert results.read_bytes() == before


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    text = page.page(tmp_path / "none.jsonl")
    assert page.NOT_MEASURED in text
    assert "python -m benchmarks gpu " in text


def raises(error: Exception) -> Callable[[Bench], dict[str, Any]]:
    def measure(_: Bench) -> dict[str, Any]:
        raise error

    return measure


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), SKIPPED, "out of memory"),
        (SkippedError("no bf16"), SKIPPED, "no bf16"),
        (RuntimeError("shapes\ndiffer"), FAILED, "RuntimeError: shapes"),
    ],
)
def test_an_error_is_a_result_of_its_cell(error: Exception, status: str, reason: str) -> None:
    line = run_cell(cell(raises(error)), bench())
    assert (line["status"], line["reason"], line["again"], line["broken"]) == (status, reason, False, False)


def test_cells_after_an_error_are_measured_unless_the_device_is_broken(tmp_path: Path) -> None:
    file = GpuResults(tmp_path / "gpu.jsonl")
    broken = cell(raises(RuntimeError("CUDA error: an illegal memory access")), "broken")
    cells = [cell(raises(ValueError("no")), "wrong"), cell(lambda _: {"x": 1}, "good"), broken, cell(dict, "never")]
    with pytest.raises(BrokenDeviceError, match="illegal memory access"):
        run_cells(cells, bench(), file, ABOUT, repeat=False)
    again = GpuResults(file.path)
    assert [line["cell"] for line in again.of("kinds")] == ["wrong", "good", "broken"]
    assert again.values("kinds") == {"good": {"x": 1}}


def test_what_lacks_time_is_skipped_and_measured_by_the_next_call(tmp_path: Path) -> None:
    file = GpuResults(tmp_path / "gpu.jsonl")
    slow = [cell(lambda _: {"x": 1}, seconds=50.0)]
    run_cells(slow, bench(10.0, tiny=False), file, ABOUT, repeat=False)
    assert file.cells["kinds", "a"]["reason"].startswith("not enough time: takes about 50 s, ")
    run_cells(slow, bench(100.0, tiny=False), file, ABOUT, repeat=False)
    assert GpuResults(file.path).values("kinds") == {"a": {"x": 1}}


def test_a_failed_cell_is_repeated_on_demand_only(tmp_path: Path) -> None:
    file = GpuResults(tmp_path / "gpu.jsonl")
    run_cells([cell(raises(ValueError("no")))], bench(), file, ABOUT, repeat=False)
    run_cells([cell(lambda _: {})], bench(), file, ABOUT, repeat=False)
    assert file.cells["kinds", "a"]["status"] == FAILED
    run_cells([cell(lambda _: {})], bench(), file, ABOUT, repeat=True)
    assert file.cells["kinds", "a"]["status"] == MEASURED


def test_a_killed_process_loses_one_line(tmp_path: Path) -> None:
    file = GpuResults(tmp_path / "gpu.jsonl")
    run_cells([cell(lambda _: {}, "a"), cell(lambda _: {}, "b")], bench(), file, ABOUT, repeat=False)
    file.path.write_bytes(file.path.read_bytes()[:-20])
    again = GpuResults(file.path)
    assert [line["cell"] for line in again.of("kinds")] == ["a"]
    run_cells([cell(lambda _: {}, "b")], bench(), again, ABOUT, repeat=False)
    assert [line["kind"] for line in read_lines(file.path)] == ["machine", "cell", "cell"]


def test_results_of_another_device_are_refused(tmp_path: Path) -> None:
    file = GpuResults(tmp_path / "gpu.jsonl")
    run_cells([cell(lambda _: {})], bench(), file, ABOUT, repeat=False)
    file.require_device("a GPU")
    with pytest.raises(OtherMachineError, match="has results of 'a GPU', this is 'another'"):
        file.require_device("another")


def test_the_process_of_a_part_is_started_again_and_what_it_leaves_gets_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = command.parsed(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.jsonl")])
    started = []

    def process(part: str, given: Any, until: float) -> int:
        """Measures one cell and breaks."""
        started.append(until)
        cells = command.waiting(part, given, repeat=False)
        run_cells([cell(lambda _: {}, cells[0].name)], bench(), GpuResults(given.out), ABOUT, repeat=False)
        return 1

    monkeypatch.setattr(command, "_process", process)
    command.start_part("kinds", options, 100.0)
    assert len(started) == command.ATTEMPTS
    assert len(set(started)) == 1
    lines = GpuResults(options.out).of("kinds")
    assert [line["status"] for line in lines] == [MEASURED] * 3 + [SKIPPED] * (len(lines) - 3)
    assert len(lines) == len(command.PARTS["kinds"].cells())
    assert lines[-1]["reason"] == "not enough time: the process of the part ended before"
    assert len(command.waiting("kinds", options, repeat=False)) == len(lines) - 3


def test_a_cell_that_ends_its_process_has_failed_and_the_next_one_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = command.parsed(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.jsonl")])
    names = [one.name for one in command.PARTS["kinds"].cells()]
    GpuResults(options.out).append_without_device(lacks_time(cell(dict, names[0]), "an earlier call"))
    started = []

    def process(part: str, given: Any, until: float) -> int:
        """Lacks time for the first cell, measures the second one, and ends in the third one, at first."""
        started.append(until)
        if len(started) > 1:
            return command.STOPPED
        GpuResults(given.out).append_without_device(lacks_time(cell(dict, names[0]), "this call"))
        run_cells([cell(lambda _: {}, names[1])], bench(), GpuResults(given.out), ABOUT, repeat=False)
        return -11

    monkeypatch.setattr(command, "_process", process)
    command.start_part("kinds", options, 100.0)
    lines = GpuResults(options.out).cells
    assert [lines["kinds", name]["status"] for name in names[:4]] == [SKIPPED, MEASURED, FAILED, SKIPPED]
    assert lines["kinds", names[2]]["reason"] == "ended the process by signal 11"
    assert names[2] not in [one.name for one in command.waiting("kinds", options, repeat=False)]


def test_a_wrong_input_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_process", lambda *_: command.WRONG_INPUT)
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.jsonl")])
    assert ended.value.code == command.WRONG_INPUT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path / "gpu.jsonl")])
    assert "sees no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu"])
    assert "give a file for their results with --out" in capsys.readouterr().err


def test_processes_get_one_gpu_and_what_comparisons_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    found = {part: command.environment(part) for part in command.PARTS}
    assert {variables["CUDA_VISIBLE_DEVICES"] for variables in found.values()} == {"3"}
    assert [part for part, variables in found.items() if "CUBLAS_WORKSPACE_CONFIG" in variables] == ["correctness"]
    assert found["correctness"] | checks.ENVIRONMENT == found["correctness"]


def test_time_is_shared_by_the_parts_that_are_left() -> None:
    parts = list(command.PARTS)
    assert command.shares_of(parts[-1:], 100.0) == 100.0
    first = command.shares_of(parts, 100.0)
    assert 30.0 < first < 40.0
    assert command.shares_of(["memory", "correctness"], 36.0) == 11.0


def test_time_in_kernels_is_counted_once() -> None:
    assert idle.covered([(0.0, 2.0), (1.0, 3.0), (1.5, 2.0), (5.0, 6.0)]) == 4.0
    assert idle.covered([]) == 0.0


def test_waiting_for_the_device_is_counted_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch that warns twice stands for two calls that wait in each run."""

    def switch(mode: str) -> None:
        for _ in range(2 if mode == "warn" else 0):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", switch)
    monkeypatch.setattr(runs, "require_cuda", lambda _: None)
    monkeypatch.setattr(runs, "SYNC_FIRST", 2)
    monkeypatch.setattr(runs, "SYNC_LAST", 4)
    found = runs.synchronisation(bench())
    assert {one["number"] for one in found["contenders"].values()} == {2}
    assert set(found["more_than_trainer"].values()) == {0}
    assert "default" in found["contenders"]
    (place,) = found["contenders"]["Trainer"]["places"]
    assert "test_gpu.py:" in place


def test_other_warnings_do_not_count() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("something else", stacklevel=1)
    assert syncs.places_of(caught) == {}


def test_speed_up_of_a_cycle_is_that_by_hand() -> None:
    cycle = {"s: a + b": 1, "s: a": 3}
    seconds = {"baseline": [2.0, 2.0, 9.0], "s: a + b": [2.0], "s: a": [0.5, 1.0, 0.5]}
    values = {"settings": {"s": {"cycle": cycle}}, "seconds": seconds}
    assert page_parts.fast_kind(cycle) == "s: a"
    assert page_parts.cycle_speedup(values, "s") == 4 * 2.0 / (2.0 + 3 * 0.5)


def test_networks_have_the_weights_that_their_names_say() -> None:
    for name, millions in {"Llama 0.5 B": 478, "Llama 1.5 B": 1570, "BERT-base": 109, "ViT-B/16": 86}.items():
        with torch.device("meta"):
            model = NETWORKS[name].make(torch.device("meta"))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_every_cell_has_a_name_of_its_own_and_an_existing_network() -> None:
    for part, module in command.PARTS.items():
        names = [one.name for one in module.cells()]
        assert len(names) == len(set(names)) > 1
        assert all(one.part == part and one.seconds > 0 for one in module.cells())
    listed = [one.name.split(", ")[0] for one in command.PARTS["kinds"].cells()]
    assert set(listed) == set(NETWORKS)


@pytest.mark.usefixtures("_tiny_budgets")
def test_equal_time_is_compared_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_time, "BUDGETS", ("1",))
    monkeypatch.setattr(equal_time, "CONTENDERS", ("baseline", "ladder 1,2,4"))
    found = equal_time.compare("tiny", tmp_path, "cpu", None, seeds=1, passes=1)
    assert list(found["budgets"]["1"]) == ["baseline", "ladder 1,2,4"]
    assert found["budgets"]["1"]["baseline"]["expert"]
    assert len(found["budgets"]["1"]["ladder 1,2,4"]["ahead"]) == 1  # one seed has no interval
    assert equal_time.compare("tiny", tmp_path, "cpu", None, seeds=1, passes=1) == found
    file = GpuResults(tmp_path / "gpu.jsonl")
    run_cells([Cell("equal_time", "tiny", 1.0, lambda _: found)], bench(), file, ABOUT, repeat=False)
    text = page.page(file.path)
    assert "### tiny, one epoch, 1 seeds" in text
    assert "| 1 | baseline | 6 | " in text


def test_a_skipped_cell_with_a_line_through_it_is_one_row() -> None:
    line = lacks_time(cell(dict), "a | b\nc")
    assert page_parts.in_cell(line["reason"]) == "not enough time: a \\| b c"


def test_a_check_finds_a_difference() -> None:
    one, other = {"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.tensor([0.0, 0.5])}
    assert same_bits(one, dict(one), "run") == {"passed": True, "text": "run: all 2 tensors are equal"}
    found = same_bits(one, other, "run")
    assert found == {"passed": False, "text": "run: 1 of 2 tensors differ, by at most 5.00e-01"}
    assert not same_bits(one, {"a": torch.zeros(2)}, "run")["passed"]
    assert not both(same_bits(one, one, "x"), found)["passed"]
    assert difference(one, {**one, "b": torch.tensor([0.0, float("nan")])}) == float("inf")


def test_gradients_of_a_fast_step_must_be_fewer_and_equal() -> None:
    full = {"a": torch.ones(2), "b": torch.ones(2)}
    assert compare(full, {"b": torch.ones(2)})["passed"]
    assert not compare(full, {"b": torch.full((2,), 1.5)})["passed"]
    assert not compare(full, full)["passed"]


def test_a_check_that_has_failed_is_marked_on_the_page(tmp_path: Path) -> None:
    file = GpuResults(tmp_path / "gpu.jsonl")
    wrong = Cell("correctness", "law", 1.0, lambda _: {"passed": False, "text": "a | b"})
    run_cells([wrong], bench(), file, ABOUT, repeat=False)
    assert "| law | **failed** | a \\| b |" in page.page(file.path)


def test_without_a_profiler_the_seconds_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_profiler(*_: Any) -> None:
        raise RuntimeError("no CUPTI")

    monkeypatch.setattr(runs, "busy", no_profiler)
    values = runs.launches("BERT-base", 2, bench())
    fast = values["kinds"]["fast"]
    assert (fast["idle"], fast["profiler"]) == (None, "RuntimeError: no CUPTI")
    assert min(fast["seconds"]) > 0


def test_what_cannot_be_kept_is_an_error_of_its_cell() -> None:
    line = run_cell(cell(lambda _: {"loss": float("nan")}), bench())
    assert line["status"] == FAILED


@pytest.mark.parametrize(("device", "charged"), [({}, 1.0), ({"device": "a GPU"}, 3.0)])
def test_a_gpu_is_charged_seconds_of_the_wall_clock(tmp_path: Path, device: dict[str, str], charged: float) -> None:
    kinds = KindsFile(tmp_path, "tiny")
    times = {"all": {"process_seconds": [1.0], "wall_seconds": [3.0]}}
    line = {"setting": "baseline", "groups": [["all", 1]], "rows": 4, "times": times}
    kinds.append(line, 1, {"processor": "x", "commit": "a" * 40, **device})
    assert KindsFile(tmp_path, "tiny").charge("baseline", "all").seconds == charged


def imported_at_the_top(path: Path) -> set[str]:
    """Modules that a file imports when it is imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_command_needs_no_package_of_the_other_benchmarks() -> None:
    waiting, seen, outside = ["benchmarks.gpu.command"], set(), set()
    while waiting:
        name = waiting.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name in seen or not path.exists():
            continue
        seen.add(name)
        for module in imported_at_the_top(path):
            waiting.append(module)
            outside.add(module.partition(".")[0])
    assert "benchmarks.gpu.equal_time" in seen
    assert not outside & {"pandas", "datasets", "tqdm", "matplotlib", "scipy", "sklearn", "examples"}
    assert {"torch", "transformers", "peft"} <= outside
