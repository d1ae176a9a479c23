"""Contenders of the benchmark at equal time that are trained by Muon and AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.accuracy.train_one import arguments
from benchmarks.budgets.build import build
from benchmarks.budgets.contenders import CONTENDERS
from benchmarks.budgets.muon import MuonAndAdamW, matrices_of_blocks
from tests.benchmarks.tiny_task import TINY, load, network
from tests.support.runs import FIVE


pytestmark = pytest.mark.skipif(
    not FIVE, reason="the benchmark is of transformers 5, whose names of arguments it uses"
)


def trained(name: str, folder: Path, steps: int) -> tuple[nn.Module, MuonAndAdamW]:
    """A tiny network after some steps, and its optimizer."""
    data, model = load(), network(0)
    args = arguments(TINY, 1e-2, 0, by_length=True, steps=steps, folder=str(folder))
    trainer = build(CONTENDERS[name], model, args, train_dataset=data.train, data_collator=data.collator).trainer
    trainer.train()
    optimizer: Any = trainer.optimizer
    return model, optimizer.optimizer


@pytest.mark.parametrize("setting", ["Muon", "last:2 k4, Muon", "last:2 k4, drift in full, Muon"])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(setting: str, tmp_path: Path) -> None:
    model, optimizer = trained(f"{setting} + head rate", tmp_path, 5)
    matrices = {id(p): p for p in matrices_of_blocks(model)}
    assert len(matrices) == 4 * 6
    assert {id(p) for group in optimizer.muon.param_groups for p in group["params"]} == set(matrices)
    rest = {id(p) for group in optimizer.adamw.param_groups for p in group["params"]}
    assert rest == {id(p) for p in model.parameters()} - set(matrices)
    rates = sorted({group["initial_lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-2, 1e-1])
    assert all(optimizer.muon.state[p] for p in matrices.values())


def test_a_step_is_that_of_muon_and_adamw() -> None:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
    alone = nn.Parameter(matrix.detach().clone()), nn.Parameter(vector.detach().clone())
    both = MuonAndAdamW([{"params": [matrix, vector], "lr": 0.1, "weight_decay": 0.2}], [matrix], lr=0.3)
    muon = torch.optim.Muon([alone[0]], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([alone[1]], lr=0.1, weight_decay=0.2)
    for p, q in zip((matrix, vector), alone, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    for optimizer in (both, muon, adamw):
        optimizer.step()
    assert torch.equal(matrix, alone[0])
    assert torch.equal(vector, alone[1])


def test_drift_moves_matrices_between_gradients(tmp_path: Path) -> None:
    """The lower blocks have a gradient at the first of two steps, and repeat its update at the second."""
    held, _ = trained("last:2 k4, Muon + head rate", tmp_path, 2)
    drifted, optimizer = trained("last:2 k4, drift in full, Muon + head rate", tmp_path, 2)
    name = "bert.encoder.layer.0.output.dense.weight"
    before, after = (model.get_parameter(name) - network(0).get_parameter(name) for model in (held, drifted))
    # The second step has half the learning rate of the first.
    assert torch.allclose(after, 1.5 * before, rtol=1e-2, atol=1e-7)
    assert before.norm() > 0
    assert {group["lr"] for group in optimizer.muon.param_groups} == {0.0}  # after the last step of the schedule
