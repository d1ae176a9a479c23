"""A head start trains the head of a model, and nothing else of the model changes."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import BertForMaskedLM, BertForSequenceClassification

from hf_multirate import HeadStartResult, Multirate, MultirateConfig, head_start
from hf_multirate.controller.head_start import RATES, WEIGHT_DECAY
from hf_multirate.model.presets import head_parameters
from tests.support.runs import FIVE, assert_same, differ, example
from tests.support.tiny import BATCH, FAMILIES, LABELS, VOCAB


SIZE = 4
NEW_HEADS = (
    "bert", "distilbert", "roberta", "electra", "deberta-v3", "modernbert", "gpt2", "llama", "bart-cls", "vit",
    "dinov2", "resnet", "convnext", "wav2vec2",
)  # fmt: skip


def learnable(family: str, number: int = 8) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model, and batches whose label can be read off every row: the same batches repeat."""
    torch.manual_seed(1)
    model, batch = FAMILIES[family]()
    model.train()
    batches = []
    for _ in range(number // 2):
        rows = {key: value.repeat_interleave(SIZE // BATCH, 0).clone() for key, value in batch.items()}
        if "input_ids" in rows:
            last = rows["input_ids"][:, -1].clone()
            rows["input_ids"].random_(3, VOCAB)
            if family == "bart-cls":
                rows["input_ids"][:, -1] = last
        else:
            next(value for key, value in rows.items() if key != "labels").normal_()
        rows["labels"] = rows["input_ids"] if rows["labels"].dim() > 1 else torch.arange(SIZE) % LABELS
        batches.append(rows)
    return model, batches * 2


def marks_of(model: nn.Module) -> Any:
    """What a head start must leave alone, besides the weights of the head."""
    return [
        (sorted(vars(module)), module.training, [p.requires_grad for p in module.parameters(recurse=False)],
         [p.grad for p in module.parameters(recurse=False)], len(module._forward_hooks))
        for module in model.modules()
    ]  # fmt: skip


def draws() -> list[Any]:
    return [torch.rand(3).tolist(), random.random(), np.random.rand()]


@pytest.mark.parametrize("family", NEW_HEADS)
def test_only_the_head_changes_and_the_loss_falls(family: str) -> None:
    model, batches = learnable(family)
    model.eval()
    with torch.no_grad():
        model(**batches[0])  # transformers notes on the first forward pass which outputs it may collect
    model.train()
    before, marks = {name: value.clone() for name, value in model.state_dict().items()}, marks_of(model)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = draws()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    result = head_start(model, batches, steps=40)
    assert draws() == expected
    assert differ(model.state_dict(), before) == set(head_parameters(model))
    assert marks_of(model) == marks
    assert result.loss_after < result.loss_before
    assert result.learning_rate in RATES
    assert (result.batches, result.steps) == (len(batches), 40)
    model.eval()
    with torch.no_grad():
        losses = [float(model(**batch).loss) for batch in batches]
    assert result.loss_after == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_it_is_adamw_on_the_outputs_of_the_base_model() -> None:
    model, batches = learnable("bert")
    other, _ = learnable("bert")
    other.eval()
    head: Any = other.classifier
    with torch.no_grad():
        features = [other.bert(**{k: v for k, v in batch.items() if k != "labels"})[1] for batch in batches]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=WEIGHT_DECAY)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 20)
        batch = step % len(batches)
        nn.functional.cross_entropy(head(features[batch]), batches[batch]["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    head_start(model, batches, steps=20, learning_rate=1e-2)
    assert_same(model.state_dict(), other.state_dict())


def test_the_rate_is_chosen_on_batches_that_are_held_out() -> None:
    found = {}
    for rate in RATES:
        model, batches = learnable("bert")
        head_start(model, batches[:-2], steps=30, learning_rate=rate)
        model.eval()
        with torch.no_grad():
            found[rate] = sum(float(model(**batch).loss) for batch in batches[-2:])
    model, batches = learnable("bert")
    chosen = head_start(model, batches, steps=30).learning_rate
    assert chosen == min(found, key=lambda rate: found[rate])
    other, _ = learnable("bert")
    head_start(other, batches, steps=30, learning_rate=chosen)
    assert_same(model.state_dict(), other.state_dict())
    assert max(found.values()) > 1.02 * min(found.values())


def test_without_a_rate_that_lowers_the_loss_the_head_is_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    model, batches = learnable("bert")
    first = {name: value.clone() for name, value in model.state_dict().items()}
    result = head_start(model, batches, steps=3, learning_rate=1e6)
    assert "did not lower the loss" in caplog.text
    assert_same(model.state_dict(), first)
    assert (result.learning_rate, result.loss_after) == (0.0, result.loss_before)


def test_an_error_within_leaves_the_model_as_it_was() -> None:
    model, batches = learnable("bert")
    before, marks = {name: value.clone() for name, value in model.state_dict().items()}, marks_of(model)
    calls = 0

    def fails(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyError("x")
        loss: Tensor = model(**batch).loss
        return loss

    with pytest.raises(KeyError):
        head_start(model, batches, loss=fails)
    assert_same(model.state_dict(), before)
    assert marks_of(model) == marks


def test_a_loss_of_ones_own_may_call_the_model_twice_and_draw_random_numbers() -> None:
    model, batches = learnable("bert")

    def pairs(model: nn.Module, batch: Any) -> Tensor:
        first = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        second = model(input_ids=batch["input_ids"].flip(1), attention_mask=batch["attention_mask"]).logits
        draws()
        return nn.functional.cross_entropy(first - second, batch["labels"])

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    result = head_start(model, batches, loss=pairs)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert result.loss_after < result.loss_before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_head_that_peft_saves_is_trained_and_its_original_is_not() -> None:
    model, batches = learnable("bert")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    assert head_start(wrapped, batches).learning_rate
    changed = differ(wrapped.state_dict(), before)
    assert {name.rpartition("classifier.")[2] for name in changed} == {
        "modules_to_save.default.weight",
        "modules_to_save.default.bias",
    }


@pytest.mark.parametrize("way", ["wrapper", "in place", "of the base"])
def test_compiled(way: str) -> None:
    model, batches = learnable("bert")
    plain, _ = learnable("bert")
    head_start(plain, batches, learning_rate=1e-2)
    compiled: Any = model
    if way == "wrapper":
        compiled = torch.compile(model, backend="eager")
    else:
        part: Any = model if way == "in place" else model.bert
        part.compile(backend="eager")
    counters.clear()
    head_start(compiled, batches, learning_rate=1e-2)
    assert not counters["stats"]
    assert_same(model.state_dict(), plain.state_dict())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_and_autocast() -> None:
    plain, batches = learnable("bert")
    head_start(plain, batches, learning_rate=1e-2)
    model, _ = learnable("bert")
    model.gradient_checkpointing_enable()
    head_start(model, batches, learning_rate=1e-2)
    assert_same(model.state_dict(), plain.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        result = head_start(learnable("bert")[0], batches, learning_rate=1e-2)
    assert result.loss_after < result.loss_before


@pytest.mark.parametrize("family", ["gpt2-lm", "t5", "clip", "bart", "qwen"])
def test_a_model_without_a_head_of_its_own_is_refused(family: str) -> None:
    model, _ = FAMILIES[family]()
    with pytest.raises(ValueError, match=r"a head start needs a head, but .*Set head_start=0"):
        head_start(model, [{}])


def test_what_else_is_refused() -> None:
    model, batches = learnable("bert")
    with pytest.raises(ValueError, match="at least one batch, got none"):
        head_start(model, [])
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        head_start(model, batches, steps=0)
    with pytest.raises(ValueError, match="above 0, got -1"):
        head_start(model, batches, learning_rate=-1)
    with pytest.raises(TypeError, match="a list of batches"):
        head_start(model, {"input_ids": 3})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Module"):
        head_start("model", batches)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="returns no loss"):
        head_start(model, [{"input_ids": batches[0]["input_ids"]}])
    with pytest.raises(ValueError, match="does not depend on the head"):
        head_start(model, batches, loss=lambda model, batch: model(**batch).loss.detach())
    with pytest.raises(NotImplementedError, match="DataParallel"):
        head_start(nn.DataParallel(model), batches)
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen, e\.g\. 'classifier\.weight'"):
        head_start(model, batches)


def test_the_head_of_a_language_model_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model, rows = example("llama-lm")
    batches = [{key: row[key][None] for key in row} for row in rows]
    with caplog.at_level(logging.WARNING):
        head_start(model, batches, steps=5)
    assert "the head of LlamaForCausalLM is that of a language model" in caplog.text
    caplog.clear()
    bert, _ = FAMILIES["bert"]()
    masked = BertForMaskedLM(bert.config)
    assert "cls.predictions.decoder.weight" not in head_parameters(masked)
    head_start(masked, batches, steps=5)
    assert "the head of BertForMaskedLM is that of a language model" in caplog.text


@pytest.mark.skipif(not FIVE, reason="4.57 does not mark what it has loaded")
def test_a_head_that_was_loaded_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, batches = learnable("bert")
    text = "the head of BertForSequenceClassification was loaded from a checkpoint"
    for part, warned in ((model.bert, False), (model, True)):
        folder = tmp_path / type(part).__name__
        part.save_pretrained(folder)
        loaded = BertForSequenceClassification.from_pretrained(folder, num_labels=model.num_labels)
        caplog.clear()
        head_start(loaded, batches[:2], steps=2, learning_rate=1e-3)
        assert (text in caplog.text) == warned


def test_the_result_has_seconds() -> None:
    model, batches = learnable("bert")
    result = head_start(model, batches[:2], steps=2, learning_rate=1e-3)
    assert isinstance(result, HeadStartResult)
    assert 0 < result.seconds < 600


@pytest.mark.parametrize("settings", [{}, {"head_start": 4}, {"train_time": "1h"}], ids=str)
def test_in_a_custom_loop_fields_of_the_trainer_do_nothing_and_say_so_once(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, batches = learnable("bert")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig(**settings)).attach(model, optimizer) as multirate:
        for step in range(3):
            multirate.begin_step(step)
            model(**batches[step]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for name in ("head_start", "train_time"):
        text = f"{name} of the configuration applies to MultirateTrainer only"
        assert caplog.text.count(text) == (name in settings)
