"""The mixin over trainers of Sentence Transformers, whose losses may own weights and call backward several times."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from torch import nn

from hf_multirate import MultirateConfig
from hf_multirate.trainer.trainer import MultirateMixin
from tests.support.counted import Counted, saving
from tests.support.runs import DEFAULTS, PERIOD, assert_same, history, phases, weights
from tests.support.tiny import ENCODER, WORDS, tokenizer


pytest.importorskip("sentence_transformers")
with warnings.catch_warnings():  # names that are the same in both lines are old ones in the newer
    warnings.simplefilter("ignore", DeprecationWarning)
    from sentence_transformers import (
        CrossEncoder,
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
    from sentence_transformers.models import Pooling, Transformer


pytestmark = [
    # On names that transformers has renamed.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Cached losses run forward without gradients first, through checkpoints that are reentrant in 4.57.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning"),
]
CONFIG = MultirateConfig.two_rate(
    "last:1", PERIOD, on_missing_gradient="warn", turns="fixed", idle="drift"
)  # nobody reads BERT's pooler


class MultirateSentences(MultirateMixin, SentenceTransformerTrainer):
    """As users write it."""


class MultirateCross(MultirateMixin, CrossEncoderTrainer):
    """As users write it."""


def saved(folder: Path, kind: type[tf.PreTrainedModel]) -> str:
    tf.set_seed(1)
    kind(tf.BertConfig(**ENCODER)).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    return str(folder / "model")


def pairs() -> Dataset:
    texts = [f"{WORDS[i % 9]} {WORDS[i * 3 % 9]}" for i in range(25)]
    return Dataset.from_list([{"one": texts[i], "other": texts[i + 1]} for i in range(24)])


def labelled() -> Dataset:
    return pairs().add_column("label", [i % 3 for i in range(24)])


def sentences(folder: Path, kind: type, loss: str = "pairs", **rest: Any) -> Any:
    name = saved(folder, tf.BertModel)
    model = SentenceTransformer(modules=[Transformer(name), Pooling(16)], device="cpu")
    tf.set_seed(2)
    made: dict[str, Callable[[], nn.Module]] = {
        "pairs": lambda: losses.MultipleNegativesRankingLoss(model),
        "cached": lambda: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=1),
        "softmax": lambda: losses.SoftmaxLoss(model, 16, 3),
        "layers": lambda: losses.AdaptiveLayerLoss(model, losses.MultipleNegativesRankingLoss(model)),
        "guided": lambda: losses.CachedGISTEmbedLoss(model, guide=copy.deepcopy(model), mini_batch_size=1),
        "denoising": lambda: losses.DenoisingAutoEncoderLoss(model, name, tie_encoder_decoder=True),
    }
    settings = {key: rest.pop(key) for key in rest.keys() - {"multirate"}}
    args = SentenceTransformerTrainingArguments(output_dir=str(folder), **(DEFAULTS | settings))
    rows = labelled() if loss == "softmax" else pairs()
    return kind(model=model, args=args, train_dataset=rows, loss=made[loss](), **rest)


def cross(folder: Path, kind: type, loss: str = "", **rest: Any) -> Any:
    del loss
    model = CrossEncoder(saved(folder, tf.BertForSequenceClassification), num_labels=3, device="cpu")
    settings = {key: rest.pop(key) for key in rest.keys() - {"multirate"}}
    args = CrossEncoderTrainingArguments(output_dir=str(folder), **(DEFAULTS | settings))
    return kind(model=model, args=args, train_dataset=labelled(), loss=CrossEntropyLoss(model), **rest)


CASES = [
    pytest.param(sentences, MultirateSentences, SentenceTransformerTrainer, loss, id=loss)
    for loss in ("pairs", "cached", "softmax")
] + [pytest.param(cross, MultirateCross, CrossEncoderTrainer, "", id="cross")]


@pytest.mark.parametrize(("make", "ours", "plain", "loss"), CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fast_steps_cost_less(
    tmp_path: Path, make: Any, ours: type, plain: type, loss: str, checkpointing: bool
) -> None:
    del plain
    counted = type("Counted", (Counted, ours), {})
    trainer = make(tmp_path, counted, loss, multirate=CONFIG, gradient_checkpointing=checkpointing)
    before = weights(trainer)
    trainer.train()
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]
    assert saving(trainer, PERIOD) < (0.8 if loss == "cached" else 0.6)  # that one runs forward twice
    after = weights(trainer)
    parameters = {name for name, _ in trainer.model.named_parameters()}
    still = {name for name in parameters if torch.equal(before[name], after[name])}
    assert all("pooler" in name for name in still)


class Grads(tf.TrainerCallback):
    """Names of the parameters with a gradient before each step of the optimizer."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.seen.append({name for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.filterwarnings("ignore:.*tie_encoder_decoder")
@pytest.mark.parametrize("loss", ["layers", "guided", "denoising"])
def test_losses_with_a_model_of_their_own(tmp_path: Path, loss: str) -> None:
    """Of some layers, a guide that is frozen, and a decoder that is tied to the encoder."""
    ends = {}
    for config in (CONFIG, MultirateConfig.off(), None):
        kind, given = (
            (SentenceTransformerTrainer, {}) if config is None else (MultirateSentences, {"multirate": config})
        )
        trainer = sentences(tmp_path, kind, loss, **given)
        grads = Grads()
        trainer.add_callback(grads)
        trainer.train()
        ends[config] = weights(trainer)
        if config is CONFIG:
            assert phases(trainer) == [0, 1, 2, 3, 0, 1]
            slow = {name for name in trainer.multirate.partition["slow"] if "pooler" not in name}
            assert len(slow) > 16  # three layers
            assert [slow <= names for names in grads.seen] == [True, False, False, False, True, False]
            assert [slow.isdisjoint(names) for names in grads.seen] == [False, True, True, True, False, True]
    assert_same(ends[MultirateConfig.off()], ends[None])


@pytest.mark.parametrize(("make", "ours", "plain", "loss"), CASES)
def test_period_one_is_theirs(tmp_path: Path, make: Any, ours: type, plain: type, loss: str) -> None:
    off = make(tmp_path, ours, loss, multirate=MultirateConfig.off())
    off.train()
    theirs = make(tmp_path, plain, loss)
    theirs.train()
    assert history(off) == history(theirs)
    assert_same(weights(off), weights(theirs))


# (What a loss owns is in no checkpoint of theirs.)
@pytest.mark.parametrize("loss", ["pairs", "cached"])
def test_resumed_is_uninterrupted(tmp_path: Path, loss: str) -> None:
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 6, "multirate": CONFIG}
    whole = sentences(tmp_path, MultirateSentences, loss, **settings)
    whole.train()
    again = sentences(tmp_path, MultirateSentences, loss, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_same(weights(again), weights(whole))


def test_weights_of_a_loss_learn_at_every_step(tmp_path: Path) -> None:
    trainer = sentences(tmp_path, MultirateSentences, "softmax", multirate=CONFIG)
    classifier = trainer.loss.classifier.weight
    seen: list[torch.Tensor] = []

    class Look(tf.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(classifier.detach().clone())

    trainer.add_callback(Look())
    trainer.train()
    assert len(seen) == 6
    assert all(not torch.equal(one, other) for one, other in pairwise(seen))


def test_rates_of_single_parameters_are_kept(tmp_path: Path) -> None:
    rates = {r"layer\.0\.": 1e-3}
    trainer = sentences(tmp_path, MultirateSentences, multirate=CONFIG, learning_rate_mapping=rates)
    trainer.train()
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2, 1e-3}
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]
