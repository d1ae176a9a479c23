"""Outputs of a module are kept, and returned in its place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from hf_multirate.backward.kept_activations import KeptOutputs


class Base(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"hidden": self.dense(rows)}


@torch.no_grad()
def test_outputs_are_returned_in_the_order_of_the_calls() -> None:
    base, rows = Base(), torch.randn(2, 4, 3)
    kept = KeptOutputs(base)
    with kept.keeping():
        outputs = [base(part)["hidden"] for part in rows]
    with kept.returned(0):
        again = [base(None)["hidden"] for _ in rows]
    assert all(map(torch.equal, again, outputs))
    assert base.calls == len(rows)
    assert len(kept) == 1


@torch.no_grad()
def test_a_change_in_place_leaves_the_kept_output_alone() -> None:
    base, rows = Base(), torch.randn(4, 3)
    kept = KeptOutputs(base)
    with kept.keeping():
        first = base(rows)["hidden"].clone()
        base(rows)["hidden"].zero_()
    for _ in range(2):
        with kept.returned(0):
            for _ in range(2):
                output = base(rows)["hidden"]
                assert torch.equal(output, first)
                output.zero_()


def test_the_cache_of_a_decoder_is_not_kept() -> None:
    class Decoder(nn.Module):
        def forward(self, hidden: Tensor) -> BaseModelOutputWithPast:
            return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=DynamicCache())

    base = Decoder()
    kept = KeptOutputs(base)
    with kept.keeping():
        base(torch.ones(1))
    with kept.returned(0):
        output = base(None)
    assert isinstance(output, BaseModelOutputWithPast)
    assert output.past_key_values is None
    assert output.last_hidden_state.tolist() == [1.0]


def test_forward_is_put_back_after_an_error_too() -> None:
    base = Base()
    kept = KeptOutputs(base)
    with pytest.raises(RuntimeError, match="shapes"), kept.keeping():
        base(torch.randn(1, 7))
    assert "forward" not in vars(base)
    replaced = base.forward
    base.forward = replaced  # type: ignore[method-assign]  # as Accelerate replaces it
    with kept.keeping():
        base(torch.randn(1, 3))
    assert vars(base)["forward"] is replaced


def test_other_numbers_of_calls_are_refused() -> None:
    base = Base()
    kept = KeptOutputs(base)
    with pytest.raises(ValueError, match="does not call Base"), kept.keeping():
        pass
    with kept.keeping():
        base(torch.randn(1, 3))
    with kept.returned(0):
        base(None)
        with pytest.raises(ValueError, match="a varying number of times"):
            base(None)
