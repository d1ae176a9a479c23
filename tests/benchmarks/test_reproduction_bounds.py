"""The convergence bounds: their problems and constants, the scheme against the package, and what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.accuracy.results import ResultsFile
from benchmarks.reproduction import bounds, bounds_page
from benchmarks.reproduction.bounds import Series, measured, violates
from benchmarks.reproduction.bounds_formulas import Constants, corrected, printed, sharper
from benchmarks.reproduction.bounds_problems import PROBLEMS, Logistic, Problem
from benchmarks.reproduction.bounds_scheme import Setting, averages, slow_part
from hf_multirate import Multirate, MultirateConfig


EVERY = pytest.mark.parametrize("problem", [kind() for kind in PROBLEMS.values()], ids=list(PROBLEMS))


def every_minibatch(problem: Problem) -> Tensor:
    """All minibatches, or for signs one of them and its opposite, which have the same mean."""
    if isinstance(problem, Logistic):
        return torch.arange(64)
    signs = problem.minibatch(1, torch.Generator().manual_seed(5))
    return torch.cat([signs, -signs])


def sampled_at(problem: Problem, theta: Tensor) -> Tensor:
    minibatches = every_minibatch(problem)
    many = theta.expand(len(minibatches), problem.size)
    return problem.sampled(many, problem.gradient(many), minibatches)


@EVERY
def test_gradients_are_those_of_the_loss_and_minibatches_are_unbiased(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 10.0):
        theta = scale * torch.randn(problem.size, generator=generator, dtype=torch.float64)
        leaf = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss(leaf), leaf)
        assert torch.allclose(problem.gradient(theta), slope)
        assert torch.allclose(sampled_at(problem, theta).mean(0), slope)
    assert problem.gradient(problem.minimum).norm() < 1e-9


@EVERY
def test_the_constants_hold_and_are_no_larger_than_needed(problem: Problem) -> None:
    curvature = torch.autograd.functional.hessian(problem.loss, torch.zeros(problem.size, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(curvature)[-1]) == pytest.approx(problem.smoothness)
    generator = torch.Generator().manual_seed(2)
    every = torch.ones(problem.size, dtype=torch.bool)
    slow = slow_part(problem.size, 2)
    limits = [(part, problem.moment(part), problem.variance(part)) for part in (every, slow)]
    largest = 0.0
    for scale in [0.1, 1.0, 10.0, 100.0] * 50:
        one, other = scale * torch.randn(2, problem.size, generator=generator, dtype=torch.float64)
        change = problem.gradient(one) - problem.gradient(other)
        assert change.norm() <= problem.smoothness * (one - other).norm() * (1 + 1e-9)
        for part, moment, variance in limits:
            drawn = sampled_at(problem, one)[:, part]
            assert drawn.square().sum(1).mean() <= moment * (1 + 1e-9)
            assert (drawn - drawn.mean(0)).square().sum(1).mean() <= variance * (1 + 1e-9)
        largest = max(largest, float(sampled_at(problem, one).square().sum(1).mean()))
    assert largest > 0.7 * problem.moment(every)


class Parts(nn.Module):
    """The parameters of a problem in two tensors."""

    def __init__(self, problem: Problem, slow: Tensor) -> None:
        super().__init__()
        self.problem, self.mask = problem, slow
        self.fast = nn.Parameter(problem.minimum[~slow].clone())
        self.slow = nn.Parameter(problem.minimum[slow].clone())

    def forward(self, minibatch: Tensor) -> Tensor:
        theta = torch.zeros_like(self.problem.minimum)
        theta[~self.mask], theta[self.mask] = self.fast, self.slow
        noise = self.problem.sampled(theta.detach(), self.problem.gradient(theta.detach()), minibatch)[0]
        noise = noise - self.problem.gradient(theta.detach())
        return self.problem.loss(theta) + (noise * theta).sum()


@pytest.mark.parametrize("name", ["quadratic", "logistic"])
@pytest.mark.parametrize("k", [1, 5])
def test_the_scheme_is_that_of_the_package(name: str, k: int) -> None:
    problem = PROBLEMS[name]()
    slow, h, steps = slow_part(problem.size, 2), 0.03, 40
    (wanted,) = averages(problem, problem.minimum, Setting(slow, h, [k], steps, draws=2))
    model = Parts(problem, slow)
    optimizer = torch.optim.SGD(model.parameters(), lr=h)
    generator = torch.Generator().manual_seed(0)
    with Multirate(MultirateConfig.paper("^fast", k)).attach(model, optimizer) as multirate:
        for step in range(steps):
            multirate.begin_step(step)
            model(problem.minibatch(2, generator)[:1]).backward()
            optimizer.step()
            optimizer.zero_grad()
    got = torch.zeros_like(problem.minimum)
    got[~slow], got[slow] = model.fast.detach(), model.slow.detach()
    assert torch.allclose(got, wanted.last[0], rtol=0, atol=1e-12)
    assert (got - problem.minimum).norm() > 0.01


def test_the_bounds_are_their_formulas() -> None:
    known = Constants(gap=0.5, smoothness=1.0, moment=1.35**2, groups=2, parts=1.35**2, variance=1.0)
    steps = 1_000_000
    assert printed(known, 1e-3, 10, steps) == pytest.approx(1e-3 + 1e-3 * 1.8225 * 2 * (1 + 1e-3 * 100 / 3))
    assert corrected(known, 1e-3, 10, steps) == pytest.approx(1e-3 + 1e-3 * 1.8225 * 2 * (10 + 2e-3 * 100 / 3))
    terms = 1.8225 + 9 * 1.35 + 1e-3 * 1.8225 * 9 * 19 / 6
    assert sharper(known, 1e-3, 10, steps) == pytest.approx(1e-3 + 1e-3 * terms)


@pytest.fixture(scope="module")
def huber() -> dict[int, dict[str, float]]:
    return {point["k"]: point for point in measured(Series("huber", 1e-3, span=8.0), draws=100)}


def test_the_printed_bound_is_violated_and_the_others_hold(huber: dict[int, dict[str, float]]) -> None:
    assert violates(huber[10], "printed")
    assert not violates(huber[1], "printed")
    for point in huber.values():
        assert not violates(point, "corrected")
        assert not violates(point, "sharper")
        assert point["sharper"] < point["corrected"]


def test_the_floor_grows_as_the_period(huber: dict[int, dict[str, float]]) -> None:
    """A slow group alone is SGD with step size h k, whose squared gradient settles near h k / 2 here."""
    for k in (10, 50, 100):
        assert abs(huber[k]["floor"] / (1e-3 * k / 2) - 1) < 0.15
    assert huber[10]["floor_error"] < 0.1 * huber[10]["floor"]


def test_whole_cycles_are_required() -> None:
    with pytest.raises(ValueError, match=r"multiple of twice each of the periods \[3\], got 10"):
        Setting(torch.ones(1, dtype=torch.bool), 0.1, [3], 10, 1)


SMALL = (Series("huber", 0.01, span=4.0), Series("logistic", 0.01, 3, 4.0, at_minimum=False))


def test_the_command_computes_what_is_missing_and_the_page_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--draws", "20", "--out", str(tmp_path), "--allow-dirty"]
    monkeypatch.setattr(bounds, "SERIES", SMALL)
    bounds.main(command)
    printed_first = capsys.readouterr().out
    assert "| huber | 2 groups | 0.01 | 10 |" in printed_first
    points = bounds_page.read_points(tmp_path, allow_dirty=True)
    assert [len(runs) for runs in points.values()] == [7, 6]

    file = tmp_path / "huber_bounds.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    bounds.main(command)
    assert file.read_text() == "".join(lines)
    monkeypatch.setattr(bounds, "measured", None)
    bounds.main(command)
    assert file.read_text() == "".join(lines)

    texts = {name: write() for name, write in bounds_page.tables(points).items()}
    assert "| Huber loss | 2 groups | 1 | 1.123 | 1.123 | 1 | 0 |" in texts["bounds problems"]
    assert "| logistic regression | 3 groups |" in texts["bounds problems"]
    assert texts["bounds floors"].count("\n") == 3
    bounds_page.draw(points, tmp_path)
    assert (tmp_path / bounds_page.FIGURE).stat().st_size > 10_000


def test_the_tables_of_the_page(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, "huber", "bounds")
    known = {"smoothness": 1.0, "moment": 1.0, "parts": 1.0, "variance": 1.0, "gap": 0.0}
    shared = {"settings": {"task": {}, "method": {}}, "machine": {"commit": "a" * 40, "dirty": False}}
    limits = {"printed": 0.02, "corrected": 0.2, "sharper": 0.1}
    for h, k, mean in ((0.01, 1, 0.01), (0.01, 10, 0.05), (0.001, 1, 0.001), (0.001, 10, 0.02)):
        run = {"method": "2 groups", "h": h, "k": k, "mean": mean, "error": 0.001, "floor": mean, "floor_error": 0.001}
        file.append({"task": "huber", "length": "bounds", **run, **limits, "constants": known, **shared})
    texts = {name: write() for name, write in bounds_page.tables(bounds_page.read_points(tmp_path)).items()}
    held = "| Huber loss | 4 | 1 | 2.50 | 0 | 0.25 | 0 | 0.50 |"
    assert texts["bounds held"].splitlines()[-1] == held
    rows = texts["bounds violated"].splitlines()[2:]
    assert rows == ["| Huber loss | 2 groups | 0.01 | 10 | 0.050 ± 0.0010 | 0.020 | 0.20 | 0.10 |"]
    assert texts["bounds equal"].splitlines()[2:] == ["| 0.01 | 0.0100 ± 0.0010 (k = 1) | 0.0200 ± 0.0010 (k = 10) |"]
    assert bounds_page.tables({})["bounds held"]() == bounds_page.NOT_YET


def test_results_of_uncommitted_files_are_refused(tmp_path: Path) -> None:
    run = {"task": "huber", "length": "bounds", "method": "2 groups", "h": 0.1, "k": 1}
    shared = {"settings": {"task": {}, "method": {}}, "machine": {"commit": "a" * 40, "dirty": True}}
    ResultsFile(tmp_path, "huber", "bounds").append({**run, **shared})
    with pytest.raises(ValueError, match="not committed"):
        bounds_page.read_points(tmp_path)
