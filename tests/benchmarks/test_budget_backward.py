"""VCAS and DropBP: what their papers promise, on networks of a few weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from benchmarks.budgets.dropbp import DropBP, residual_branches
from benchmarks.budgets.vcas import Measured, SampledBackward, Work, keep_probabilities
from benchmarks.budgets.vcas_control import VCAS, Pace, row_ratios
from tests.support.runs import FIVE


pytestmark = pytest.mark.skipif(not FIVE, reason="the benchmark is of transformers 5: blocks return one tensor")


def network(layers: int = 2, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    noise = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes, **noise)).train()


def batch(seed: int, rows: int = 8) -> dict[str, Tensor]:
    ids = torch.randint(3, 40, (rows, 5), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids[:, 0] % 3}


def gradients(model: nn.Module, words: dict[str, Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(model(**words).loss, list(model.parameters()), allow_unused=True))


def flat(model: nn.Module, words: dict[str, Tensor]) -> Tensor:
    """Gradients of the blocks, which are sampled."""
    loss = model(**words).loss
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.bert.encoder.parameters()))])


def whole(model: nn.Module, words: dict[str, Tensor]) -> Tensor:
    """Gradients of all parameters, of which the control takes the variance."""
    return torch.cat([g.flatten() for g in gradients(model, words) if g is not None])


def equal(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_probabilities_are_in_proportion_to_norms_and_sum_to_the_wanted_number() -> None:
    assert keep_probabilities(torch.tensor([4.0, 2.0, 1.0, 1.0]), 0.25).tolist() == [0.5, 0.25, 0.125, 0.125]
    capped = keep_probabilities(torch.tensor([90.0, 30.0, 2.0, 1.0, 1.0, 0.0]), 0.5)
    assert capped.tolist() == [1.0, 1.0, 0.5, 0.25, 0.25, 0.0]
    assert keep_probabilities(torch.tensor([3.0, 0.0, 1.0, 0.0]), 0.5).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert keep_probabilities(torch.zeros(3), 0.5).tolist() == [0.0, 0.0, 0.0]


def test_vcas_that_keeps_everything_is_exact_and_evaluation_is_untouched() -> None:
    exact, model = network(), network()
    SampledBackward(model, 0)
    assert equal(gradients(model, batch(0)), gradients(exact, batch(0)))
    sampled = SampledBackward(model, 0)
    sampled.rows, sampled.tokens = [0.3] * 2, [0.3] * len(sampled.tokens)
    assert equal(gradients(model.eval(), batch(0)), gradients(exact.eval(), batch(0)))
    assert torch.equal(model(**batch(0)).logits, exact(**batch(0)).logits)


def test_the_gradient_of_vcas_is_unbiased() -> None:
    model = network()
    exact = flat(model, batch(0))
    sampled = SampledBackward(model, 0)
    sampled.rows, sampled.tokens = [0.4, 0.6], [0.5] * len(sampled.tokens)
    sampled.work = Work()
    draws = torch.stack([flat(model, batch(0)) for _ in range(200)])
    error, variance = (draws.mean(0) - exact).square().sum(), draws.var(0).sum()
    assert variance > 0.2 * exact.square().sum()
    # The squared error of a mean of unbiased draws is their variance over their number, on average.
    assert error < 3 * variance / len(draws)
    assert 0.25 < sampled.work.share < 0.5  # rows and tokens are left out of the products


def test_the_variance_that_tokens_add_is_the_one_of_the_formula() -> None:
    model = network()
    sampled = SampledBackward(model, 0)
    layer = len(sampled.tokens) // 2 - 1  # the last one of the lower block: its gradient is exact
    weight = sampled.linears[layer].weight
    sampled.tokens[layer] = 0.4

    def gradient() -> Tensor:
        return torch.autograd.grad(model(**batch(0)).loss, weight)[0]

    measured = torch.stack([gradient() for _ in range(200)]).var(0).sum()
    sampled.measured = Measured()
    gradient()
    assert sampled.measured.variances == {layer: pytest.approx(float(measured), rel=0.25)}


@pytest.mark.parametrize("tolerance", [0.0, 0.2])
def test_the_control_keeps_the_added_variance_below_its_bound(tolerance: float) -> None:
    model = network()
    control = VCAS(model, 1, 0, Pace(tolerance, row_step=0.04, token_factor=0.8))
    for seed in range(24):
        model(**batch(seed, 16))
        if seed:
            control.probe()
    sampled = control.sampled
    rows, tokens = sampled.rows, sampled.tokens
    assert (max(rows) < 0.8) == (tolerance > 0)
    batches = [batch(seed, 16) for seed in range(100, 112)]
    sampled.rows, sampled.tokens = [1.0] * len(rows), [1.0] * len(tokens)
    exact = [whole(model, words) for words in batches]
    sampled.rows = rows
    pairs = [(whole(model, words), of_batch) for words, of_batch in zip(batches, exact, strict=True) for _ in range(3)]
    added = torch.stack([(a - b).square().sum() for a, b in pairs]).mean()
    # A probe has two batches, so it knows the variance over batches only roughly.
    assert added <= 1.5 * tolerance * torch.stack(exact).var(0).sum() + 1e-12


def test_rows_of_a_block_suffice_for_the_blocks_below() -> None:
    norms = [{0: torch.tensor([4.0, 3.0, 2.0, 1.0]), 1: torch.tensor([8.0, 1.0, 0.5, 0.5])}]
    assert row_ratios(norms, 0.8) == [0.75, 0.75]  # 4 + 3 are 70 % of the lower block; 8 are 80 % of the upper one
    assert row_ratios(norms[::-1], 1.0) == [1.0, 1.0]


def test_a_probe_leaves_the_random_state_and_the_gradients_alone() -> None:
    model = network(dropout=0.1)
    control = VCAS(model, 1, 0)
    for seed in (0, 1):
        model(**batch(seed)).loss.backward()
    before = torch.get_rng_state(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    control.on_step_begin(None, Step(2), None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert equal([p.grad for p in model.parameters()], before[1])
    assert [kind for kind, _, _ in control.aside] == ["probe"]
    assert control.sampled.tokens[0] == 0.8
    assert len(control._batches) == 2  # those of the probe are not kept


class Step:
    """State of Trainer at a step."""

    def __init__(self, number: int) -> None:
        self.global_step = number


def step(callback: DropBP, number: int = 0) -> set[int]:
    callback.on_step_begin(None, Step(number), None)
    return callback.dropped


def test_dropbp_with_rate_zero_is_exact_and_takes_no_random_numbers() -> None:
    exact, model = network(dropout=0.1), network(dropout=0.1)
    callback = DropBP(model, 0.0, 0)
    state = torch.get_rng_state()
    assert step(callback) == set()
    assert torch.equal(torch.get_rng_state(), state)
    found = gradients(model, batch(0))
    torch.set_rng_state(state)
    assert equal(found, gradients(exact, batch(0)))


def test_dropbp_skips_the_drawn_branches_and_passes_the_residual() -> None:
    exact, model = network(), network()
    callback = DropBP(model, 0.5, 0)
    assert callback.kind == "2 of 4 skipped"
    dropped = step(callback)
    assert len(dropped) == 2
    prefixes = [list(callback.branches)[i] for i in sorted(dropped)]
    names = [name for name, _ in model.named_parameters()]
    skipped = {n for n in names for p in prefixes if n.startswith(f"{p}.") and "LayerNorm" not in n}
    skipped |= {n for n in names for p in prefixes if p.endswith(".output")  # the first layer of the branch
                if n.startswith(p.removesuffix("output") + "intermediate")}  # fmt: skip
    assert torch.equal(model(**batch(0)).logits, exact(**batch(0)).logits)
    found = dict(zip(names, gradients(model, batch(0)), strict=True))
    assert {name for name, gradient in found.items() if gradient is None} == skipped
    assert found["bert.embeddings.word_embeddings.weight"].abs().sum() > 0
    callback.on_step_end(None, Step(1), None)
    assert equal(gradients(model, batch(0)), gradients(exact, batch(0)))


def test_dropbp_draws_every_branch_as_often() -> None:
    callback = DropBP(network(), 0.5, 0)
    draws = [step(callback, number) for number in range(400)]
    assert {len(dropped) for dropped in draws} == {2}
    for branch in range(4):
        assert 160 < sum(branch in dropped for dropped in draws) < 240


def test_branches_of_a_resnet_and_of_a_network_that_is_not_known() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3)).train()
    callback = DropBP(model, 1.0, 0)
    assert len(callback.branches) == 3
    assert step(callback) == {0, 1, 2}
    found = gradients(model, {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])})
    names = [name for name, _ in model.named_parameters()]
    missing = {name for name, gradient in zip(names, found, strict=True) if gradient is None}
    assert missing == {name for name in names if ".layers." in name and ".layer." in name.partition(".layers.")[2]}
    with pytest.raises(NotImplementedError, match="knows BERT and ResNet, got Linear"):
        residual_branches(nn.Linear(2, 2))
