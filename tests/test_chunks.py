"""A batch in parts at the steps that refresh slow groups: the same gradients, by the rules of accumulation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import nn

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer
from hf_multirate.chunks import predicts_next, split
from runs import PERIOD, arguments, trainer_for, weights, without_dropout
from small import batch, network
from tiny import ENCODER, FAMILIES, VOCAB


@pytest.mark.parametrize(
    ("rows", "count", "sizes"), [(12, 3, [4, 4, 4]), (7, 3, [3, 3, 1]), (2, 5, [1, 1]), (6, 1, [6])]
)
def test_rows_are_split_and_shares_add_up(rows: int, count: int, sizes: list[int]) -> None:
    inputs = {"input_ids": torch.arange(rows * 2).view(rows, 2), "scale": torch.tensor(3.0), "grid": torch.zeros(99)}
    parts = split({**inputs, "more": [torch.arange(rows)], "flag": True}, count)
    assert [len(part["input_ids"]) for part, _ in parts] == sizes
    assert [share for _, share in parts] == [size / rows for size in sizes]
    assert torch.equal(torch.cat([part["input_ids"] for part, _ in parts]), inputs["input_ids"])
    assert torch.equal(torch.cat([part["more"][0] for part, _ in parts]), torch.arange(rows))
    for part, _ in parts:
        assert part["scale"] == 3
        assert len(part["grid"]) == 99
        assert part["flag"] is True


@pytest.mark.parametrize("nothing", [{}, {"labels": torch.tensor(1)}, {"text": ["a", "b"]}])
def test_a_batch_without_rows_is_refused(nothing: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="split into 2 parts"):
        split(nothing, 2)


def test_shares_are_those_of_the_labels_that_count() -> None:
    labels = torch.tensor([[1, 2, 3], [-100, 4, -100], [5, -100, 6], [7, 8, 9]])
    assert [share for _, share in split({"labels": labels}, 2)] == [4 / 9, 5 / 9]
    assert [share for _, share in split({"labels": labels.float()}, 2)] == [1 / 2, 1 / 2]


def _rows(trainer: Any) -> list[int]:
    seen: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    return seen


@pytest.mark.parametrize("family", ["bert", "gpt2-lm"])  # a mean over rows, a sum over items
@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_splits_the_batches_of_refreshes_and_trains_alike(
    tmp_path: Path, family: str, accumulation: int
) -> None:
    settings = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": accumulation, "max_steps": 5}
    runs, rows, losses = [], [], []
    for chunks in (1, 4):
        config = MultirateConfig.two_rate("last:1", PERIOD, refresh_chunks=chunks, drift_scale=1.0)
        trainer = trainer_for(tmp_path, config, family, learning_rate=1e-3, optim="adamw_torch", **settings)
        without_dropout(trainer.model)
        rows.append([count for count in _rows(trainer) if count > 1])  # a single row is looked at once
        runs.append(weights(trainer))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert "backward" not in vars(trainer.accelerator)
    fast = [6] * accumulation * (PERIOD - 1)
    assert rows == [[6] * 5 * accumulation, [2, 2, 2] * accumulation + fast + [2, 2, 2] * accumulation]
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, atol=2e-5, rtol=0)
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_a_loop_of_ones_own_splits_by_itself_or_is_told_to() -> None:
    model = nn.Sequential(*list(network())[:2], network()[3], nn.Tanh(), network()[5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = batch(0)
    nn.functional.cross_entropy(model(inputs), labels).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    config = MultirateConfig.two_rate(r"^4\.", 2, refresh_chunks=5)
    with Multirate(config).attach(model, optimizer) as multirate:
        multirate.begin_step(0)
        parts = multirate.split({"inputs": inputs, "labels": labels})
        assert len(parts) == 4
        for part, share in parts:
            (nn.functional.cross_entropy(model(part["inputs"]), part["labels"]) * share).backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        optimizer.step()
        optimizer.zero_grad()
        multirate.begin_step(1)
        assert len(multirate.split({"inputs": inputs})) == 1
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        multirate.begin_step(2)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        with pytest.raises(RuntimeError, match="no batch was split"):
            optimizer.step()


class Cubed(MultirateTrainer):
    """A loss that is no mean over anything."""

    def compute_loss(
        self, model: nn.Module, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs) / num_items_in_batch**3


def test_a_loss_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    config = MultirateConfig.two_rate("last:1", PERIOD, refresh_chunks=2)
    trainer = trainer_for(tmp_path, config, "gpt2-lm", kind=Cubed)
    with pytest.raises(ValueError, match="refresh_chunks needs a loss that is a mean"):
        trainer.train()


def _sparse_labels(family: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model and four rows, of which one has labels for all tokens, one for a few, and two for none."""
    torch.manual_seed(0)
    model, inputs = (
        (tf.BertForMaskedLM(tf.BertConfig(**ENCODER)), FAMILIES["gpt2-lm"]()[1])
        if family == "bert-mlm"
        else FAMILIES[family]()
    )
    rows = {key: value[:1].repeat(4, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
    rows["input_ids"] = torch.randint(3, VOCAB, rows["input_ids"].shape)
    labels = rows["input_ids"].clone()
    labels[0], labels[1, 3:], labels[2, 1:] = -100, -100, -100
    return model.eval(), rows | {"labels": labels}


def _gradients(model: nn.Module, config: MultirateConfig, rows: Any) -> tuple[float, list[torch.Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = 0.0
    with Multirate(config).attach(model, optimizer) as multirate:
        multirate.begin_step(0)
        for part, share in multirate.split(rows):
            loss = model(**part).loss * share
            loss.backward()
            total += loss.item()
        found = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.zero_grad()
    return total, found


@pytest.mark.parametrize("family", ["gpt2-lm", "llama-lm", "t5"])
def test_rows_with_few_labels_or_none_have_the_gradients_of_the_whole(family: str) -> None:
    model, rows = _sparse_labels(family)
    fast = {"t5": "decoder.block.2"}.get(family, "last:1")
    one, whole = _gradients(model, MultirateConfig.two_rate(fast, PERIOD), rows)
    many, parts = _gradients(model, MultirateConfig.two_rate(fast, PERIOD, refresh_chunks=4), rows)
    assert many == pytest.approx(one, rel=1e-5)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


class OwnMean(MultirateTrainer):
    """A mean over labels that is 0 / 0 where a row has none."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs["labels"]
        logits = model(input_ids=inputs["input_ids"]).logits
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")
        counts = (labels != -100).float()
        return (losses * counts).sum() / counts.sum()


@pytest.mark.parametrize(("kind", "family"), [(MultirateTrainer, "gpt2-lm"), (OwnMean, "bert-mlm")])
def test_trainer_with_rows_without_labels(tmp_path: Path, kind: type[MultirateTrainer], family: str) -> None:
    start, rows = _sparse_labels(family)
    ends, losses = [], []
    for chunks in (1, 4):
        model = copy.deepcopy(start)
        without_dropout(model)
        config = MultirateConfig.two_rate("last:1", PERIOD, refresh_chunks=chunks, drift_scale=1.0)
        args = arguments(tmp_path, per_device_train_batch_size=4, max_steps=2, learning_rate=1e-3)
        data = [{key: value[i] for key, value in rows.items()} for i in range(4)] * 2
        trainer = kind(model=model, args=args, train_dataset=data, multirate=config)
        trainer.train()
        ends.append(weights(trainer))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert min(losses[1]) > 1
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=2e-5, rtol=0)


def _causal(kind: str) -> nn.Module:
    causal = FAMILIES["gpt2-lm"]()[0]
    if kind == "encoder-decoder":
        sides = [tf.BertConfig(**ENCODER), tf.BertConfig(**ENCODER, is_decoder=True, add_cross_attention=True)]
        return tf.EncoderDecoderModel(tf.EncoderDecoderConfig.from_encoder_decoder_configs(*sides))
    if kind == "bart decoder":
        return tf.BartForCausalLM(FAMILIES["bart"]()[0].config)
    if kind == "subclass":
        causal.__class__ = type("Mine", (type(causal),), {})
    if kind == "peft":
        return peft.get_peft_model(causal, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"],
                                                           fan_in_fan_out=True))  # fmt: skip
    return causal


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces a better way:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "first"), [("encoder-decoder", True), ("bart decoder", True), ("subclass", False), ("peft", False)]
)
def test_whether_the_first_label_counts_is_a_matter_of_the_loss(kind: str, first: bool) -> None:
    """Against the loss itself: the first label of a row changes it or not."""
    model = _causal(kind).eval()
    tokens = torch.randint(3, VOCAB, (1, 6))
    more = {"decoder_input_ids": tokens} if kind == "encoder-decoder" else {}
    with torch.no_grad():
        one, other = (
            model(input_ids=tokens, labels=labels, **more).loss
            for labels in (tokens, torch.cat([torch.full((1, 1), -100), tokens[:, 1:]], 1))
        )
    assert (not torch.equal(one, other)) is first
    assert predicts_next(model) is not first


def test_labels_of_rows_all_count() -> None:
    shares = [share for _, share in split({"labels": torch.tensor([1, 0, 1, 1])}, 4, shifted=True)]
    assert shares == [0.25] * 4
