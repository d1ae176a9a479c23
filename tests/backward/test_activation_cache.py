"""The activation cache: training with it is training without it, and no frozen block runs twice for a row."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_multirate import Multirate, MultirateConfig, multirate_parameter_groups
from hf_multirate.backward.activation_cache import put_together
from hf_multirate.backward.cached_prefix import find_prefix
from hf_multirate.model.levels import levels_of
from hf_multirate.model.stacks import find_whole_stack
from tests.support.tiny import ENCODER, FAMILIES, LABELS, VOCAB


MEMORY = MultirateConfig.off(activation_cache="memory")
WIDTH = 8


def _deberta() -> nn.Module:
    return tf.DebertaForSequenceClassification(
        tf.DebertaConfig(**ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"])
    )


def _t5_encoder() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2, "dropout_rate": 0.1}
    return tf.T5ForTokenClassification(tf.T5Config(vocab_size=VOCAB, num_labels=LABELS, pad_token_id=1, **sizes))


def _deep_deberta() -> nn.Module:
    """Without the convolution of the first block, and with a norm of the table of relative positions."""
    return FAMILIES["deberta-v3"]()[0]


def _convbert() -> nn.Module:
    """Its convolutions over tokens read padded positions."""
    sizes = {"embedding_size": 16, "classifier_dropout": 0.0, "initializer_range": 0.2}
    return tf.ConvBertForSequenceClassification(tf.ConvBertConfig(**{**ENCODER, **sizes}))


def _nystromformer() -> nn.Module:
    """Its attention averages over segments, whose lengths depend on the width of the batch."""
    sizes = {"segment_means_seq_len": WIDTH, "num_landmarks": WIDTH, "conv_kernel_size": 3, "initializer_range": 0.2}
    return tf.NystromformerForSequenceClassification(tf.NystromformerConfig(**{**ENCODER, **sizes}))


OTHERS = {
    "deberta": _deberta,
    "t5-encoder": _t5_encoder,
    "deberta-v3": _deep_deberta,
    "convbert": _convbert,
    "nystromformer": _nystromformer,
}
TEXTS = [
    "bert",
    "roberta",
    "deberta",
    "deberta-v3",
    "modernbert",
    "gpt2",
    "llama",
    "llama-lm",
    "t5-encoder",
    "electra",
]
IMAGES = ["vit", "dinov2", "convnext", "resnet"]


def model_of(family: str, levels: int = 1) -> nn.Module:
    """A model with frozen parameters below the top ``levels`` blocks."""
    tf.set_seed(1)
    model = OTHERS[family]() if family in OTHERS else FAMILIES[family]()[0]
    model.config.use_cache = False
    freeze(model, levels)
    return model.train()


def freeze(model: nn.Module, levels: int) -> None:
    depth = levels_of(model, find_whole_stack(model))
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(depth[module] <= levels)


def rows_of(family: str, number: int = 12) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    if family in IMAGES:
        pixels = torch.randn(number, 3, 32, 32, generator=generator)
        return [{"pixel_values": pixel, "labels": torch.tensor(i % LABELS)} for i, pixel in enumerate(pixels)]
    rows = []
    for i in range(number):
        length = 3 + i % (WIDTH - 2)
        ids = torch.randint(3, VOCAB, (length,), generator=generator)
        by_token = family in ("llama-lm", "t5-encoder")
        rows.append({"input_ids": ids, "labels": ids % LABELS if by_token else torch.tensor(i % LABELS)})
    return rows


def batch_of(rows: list[dict[str, Tensor]], width: int | None = None) -> dict[str, Tensor]:
    if "pixel_values" in rows[0]:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    width = width or max(len(row["input_ids"]) for row in rows)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    padded = {
        key: torch.stack([nn.functional.pad(row[key], (0, width - len(row[key])), value=value) for row in rows])
        for key, value in (("input_ids", 1), ("labels", -100))
        if rows[0][key].dim()
    }
    labels = padded.get("labels", torch.stack([row["labels"] for row in rows]) if "labels" not in padded else None)
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    return {"input_ids": padded["input_ids"], "attention_mask": mask, "labels": labels}


@contextmanager
def as_in_inference(model: nn.Module) -> Iterator[None]:
    """The prefix in evaluation mode until its last block has run, as with a cache."""
    prefix = find_prefix(model, [p for p in model.parameters() if p.requires_grad])

    def switch(mode: bool) -> Any:
        def hook(*_: Any) -> None:
            for module in prefix.quiet_modules:
                module.training = mode

        return hook

    handles = [
        prefix.owner.register_forward_pre_hook(switch(False)),
        prefix.boundary.register_forward_hook(switch(True)),
    ]
    yield
    for handle in handles:
        handle.remove()


def train(
    model: nn.Module, batches: list[dict[str, Tensor]], config: MultirateConfig = MEMORY, rate: float = 1e-2
) -> tuple[list[float], Multirate]:
    """Losses, and the controller after training."""
    multirate = Multirate(config).freeze_never(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    tf.set_seed(3)
    losses = []
    with multirate.attach(model, optimizer):
        for step, batch in enumerate(batches):
            multirate.begin_step(step)
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    multirate.thaw_never()
    return losses, multirate


def counts(multirate: Multirate) -> tuple[float, float]:
    assert multirate.activation_cache is not None
    summary = multirate.activation_cache.summary()
    return summary["hits"], summary["misses"]


def shuffled(rows: list[Any], epochs: int, size: int) -> list[list[Any]]:
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(len(rows), generator=generator).tolist() for _ in range(epochs)]
    return [[rows[i] for i in order[a : a + size]] for order in orders for a in range(0, len(rows), size)]


@pytest.mark.parametrize("family", TEXTS + IMAGES)
@pytest.mark.parametrize("levels", [1, 0], ids=["last block", "head"])
def test_the_same_training_bit_for_bit_where_padding_is_the_same(family: str, levels: int) -> None:
    model = model_of(family, levels)
    if levels == 0 and not any(parameter.requires_grad for parameter in model.parameters()):
        pytest.skip("its head is tied to the embeddings")
    rows = rows_of(family)
    batches = [batch_of(part, WIDTH) for part in shuffled(rows, 3, 4)]
    plain, cached = copy.deepcopy(model), copy.deepcopy(model)
    with as_in_inference(plain):
        expected, _ = train(plain, batches, MultirateConfig.off())
    found, multirate = train(cached, batches)
    assert counts(multirate) == (24, 12)
    assert found == expected
    for name, value in plain.state_dict().items():
        assert torch.equal(value, cached.state_dict()[name]), name


@pytest.mark.parametrize("family", TEXTS)
def test_other_padding_changes_rounding_only(family: str) -> None:
    model, rows = model_of(family), rows_of(family)
    batches = [batch_of(part) for part in shuffled(rows, 3, 3)]
    plain, cached = copy.deepcopy(model), copy.deepcopy(model)
    with as_in_inference(plain):
        expected, _ = train(plain, batches, MultirateConfig.off())
    found, multirate = train(cached, batches)
    assert counts(multirate) == (24, 12)
    assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("family", ["convbert", "nystromformer"])
@pytest.mark.parametrize("levels", [1, 0], ids=["last block", "head"])
@pytest.mark.parametrize("first", [[0, 6], [0, 5]], ids=["first batch without padding", "first batch with padding"])
def test_rows_are_kept_whole_if_padding_matters(family: str, levels: int, first: list[int]) -> None:
    model, rows = model_of(family, levels), rows_of(family)
    batches = [batch_of([rows[i] for i in part]) for part in (first, [1, 4], [0, 4], [1, 5], first)]
    plain, cached = copy.deepcopy(model), copy.deepcopy(model)
    with as_in_inference(plain):
        expected, _ = train(plain, batches, MultirateConfig.off())
    found, multirate = train(cached, batches)
    assert found == pytest.approx(expected, abs=2e-6)
    assert counts(multirate)[0] >= 2  # the last batch is the first one


class UnmaskedMean(tf.BertPreTrainedModel):
    """Its head averages over padded positions too."""

    def __init__(self, config: tf.BertConfig) -> None:
        super().__init__(config)
        self.bert, self.classifier = (
            tf.BertModel(config, add_pooling_layer=False),
            nn.Linear(config.hidden_size, LABELS),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        logits = self.classifier(self.bert(input_ids, attention_mask=attention_mask).last_hidden_state.mean(1))
        return SequenceClassifierOutput(nn.functional.cross_entropy(logits, labels), logits)


def _answers(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    positions = torch.arange(len(batch.pop("labels"))) % 2
    return {**batch, "start_positions": positions, "end_positions": positions + 1}


def _token_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "labels": batch["input_ids"] % LABELS}


def _padded_on_the_left(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.flip(1) if value.dim() > 1 else value for name, value in batch.items()}


READ_PADDING = {
    "answers": (tf.BertForQuestionAnswering, _answers),
    "labels of padding": (tf.BertForTokenClassification, _token_labels),
    "unmasked mean": (UnmaskedMean, dict),
    "first position, padded on the left": (tf.BertForSequenceClassification, _padded_on_the_left),
}


@pytest.mark.parametrize("top", ["head", "last:1"])
@pytest.mark.parametrize("case", READ_PADDING)
def test_rows_are_kept_whole_if_the_loss_reads_padding(case: str, top: str, caplog: pytest.LogCaptureFixture) -> None:
    kind, change = READ_PADDING[case]
    rows = rows_of("bert", 8)
    batches = [change(batch_of(part, WIDTH)) for part in (rows[:4], rows[4:]) * 4]
    ends = []
    for cache in (None, "memory"):
        tf.set_seed(1)
        model = kind(tf.BertConfig(**{**ENCODER, "num_labels": 2 if case == "answers" else LABELS}))
        losses, multirate = train(model, batches, MultirateConfig.two_rate(top, "never", activation_cache=cache))
        ends.append((losses, model.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(value, ends[1][1][name]) for name, value in ends[0][1].items())
    assert counts(multirate)[0] >= 8  # padding is the same in each epoch
    assert caplog.text.count("reads padded positions") == 1


@pytest.mark.parametrize("begin", [1, 5], ids=["in the first epoch", "later"])
def test_a_loss_that_reads_padding_later_is_noticed(begin: int, caplog: pytest.LogCaptureFixture) -> None:
    """The new term begins with a batch that runs, or between kept ones, of which one in eight is watched."""
    rows = rows_of("bert", 8)
    batches = [_token_labels(batch_of(part, WIDTH)) for part in (rows[:4], rows[4:]) * 12]
    ends = []
    for cache in (None, "memory"):
        tf.set_seed(1)
        model = tf.BertForTokenClassification(tf.BertConfig(**ENCODER))
        multirate = Multirate(MultirateConfig.two_rate("last:1", "never", activation_cache=cache))
        optimizer = torch.optim.AdamW(multirate_parameter_groups(model, multirate.config, lr=1e-3))
        tf.set_seed(3)
        losses = []
        with multirate.attach(model, optimizer):
            for step, batch in enumerate(batches):
                multirate.begin_step(step)
                mask = batch["attention_mask"] == 1
                labels = batch["labels"] if step >= begin else batch["labels"].where(mask, -100)
                loss = model(**{**batch, "labels": labels}).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        ends.append(losses)
    same = [one == other for one, other in zip(*ends, strict=True)]
    assert sum(same) == len(batches) if begin == 1 else same[:5] == [True] * 5 and sum(same) < len(batches)
    assert caplog.text.count("reads padded positions") == 1
    assert ("before this one had zeros there" in caplog.text) == (begin == 5)
    assert multirate.activation_cache is not None
    assert multirate.activation_cache._padding.read


@pytest.mark.parametrize("family", TEXTS + IMAGES)
def test_no_module_below_runs_if_all_rows_are_kept(family: str) -> None:
    model = model_of(family)
    prefix = find_prefix(model, [p for p in model.parameters() if p.requires_grad])
    ran: list[str] = []
    names = {module: name for name, module in model.named_modules()}
    # The modules within the blocks and the embeddings, as hooks of these run although their forward is replaced.
    inner = {part for outer in (*prefix.blocks, *prefix.frozen) for part in outer.modules() if part is not outer}
    for part in inner:
        part.register_forward_hook(lambda module, args, output: ran.append(names[module]))
    batch = batch_of(rows_of(family, 3), WIDTH)
    train(model, [batch])
    assert ran
    ran.clear()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with Multirate(MEMORY).attach(model, optimizer) as multirate:
        model(**batch).loss.backward()
        ran.clear()
        model(**batch).loss.backward()
    assert counts(multirate) == (3, 3)
    bias = ["transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias"]  # the upper blocks read it
    assert ran == (bias if family == "t5-encoder" else [])


def test_a_partly_known_batch_runs_as_a_whole() -> None:
    rows, model = rows_of("bert"), model_of("bert")
    _, multirate = train(model, [batch_of(rows[:4], WIDTH), batch_of(rows[2:6], WIDTH), batch_of(rows[:6], WIDTH)])
    assert counts(multirate) == (6, 8)
    assert multirate.activation_cache is not None
    assert multirate.activation_cache.summary()["rows"] == 6


def test_a_changed_weight_below_begins_again(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with Multirate(MEMORY).attach(model, optimizer) as multirate:
        model.eval()(**batch).loss.backward()
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.add_(1.0)
            changed = model(**batch).logits
            assert counts(multirate) == (0, 8)
            assert torch.equal(model(**batch).logits, changed)
        assert counts(multirate) == (4, 8)
        other.bert.embeddings.word_embeddings.weight.add_(1.0)
    assert "weights below 'bert.encoder.layer.2' have changed" in caplog.text
    with torch.no_grad():
        assert torch.equal(other.eval()(**batch).logits, changed)


def test_an_unfrozen_weight_below_is_an_error() -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Multirate(MEMORY).attach(model, optimizer):
        model(**batch)
        model.bert.encoder.layer[0].output.dense.bias.requires_grad_(True)
        with pytest.raises(RuntimeError, match=r"'encoder\.layer\.0\.output\.dense\.bias' requires a gradient"):
            model(**batch)
    assert_untouched(model)


def assert_untouched(model: nn.Module) -> None:
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert model.training == all(module.training for module in model.modules())


def test_the_model_is_as_before_after_training_and_after_an_error() -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    train(model, [batch, batch])
    assert_untouched(model)
    handle = model.bert.encoder.layer[3].register_forward_hook(fails)
    with pytest.raises(ArithmeticError):
        train(model, [batch])
    handle.remove()
    assert_untouched(model)


def fails(*_: Any) -> None:
    raise ArithmeticError


def test_copies_in_mid_run_are_plain_models() -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with Multirate(MEMORY).attach(model, optimizer) as multirate:
        model(**batch)
        twin = copy.deepcopy(model)
        assert not any("forward" in vars(module) for module in twin.modules())
        before = counts(multirate)
        twin.eval()(**batch)
        assert counts(multirate) == before
        names = set(model.state_dict())
    assert names == set(twin.state_dict())


def test_evaluation_uses_the_rows_of_training() -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    plain = copy.deepcopy(model).eval()(**batch).logits
    with Multirate(MEMORY).attach(model, optimizer) as multirate:
        model(**batch).loss.backward()
        model.eval()
        with torch.inference_mode():
            model(**batch)
            found = model(**batch).logits
        assert counts(multirate) == (8, 4)
        model.train()
        model(**batch).loss.backward()  # of tensors that were kept in training
    assert torch.equal(found, plain)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # both lines have this name
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, rows = model_of("bert"), rows_of("bert")
    batches = [batch_of(part, WIDTH) for part in shuffled(rows, 2, 4)]
    plain, cached = copy.deepcopy(model), copy.deepcopy(model)
    for part in (plain, cached):
        part.gradient_checkpointing_enable({"use_reentrant": reentrant})
        part.enable_input_require_grads()
    with as_in_inference(plain):
        expected, _ = train(plain, batches, MultirateConfig.off())
    found, multirate = train(cached, batches)
    assert counts(multirate) == (12, 12)
    assert found == expected
    assert all(p.grad is None for p in cached.bert.embeddings.parameters())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_lora_in_the_upper_blocks_only() -> None:
    peft = pytest.importorskip("peft")
    tf.set_seed(1)
    base = FAMILIES["bert"]()[0]
    config = peft.LoraConfig(target_modules=["query", "value"], layers_to_transform=[2, 3], lora_dropout=0.1)
    model = peft.get_peft_model(base, config)
    batches = [batch_of(part, WIDTH) for part in shuffled(rows_of("bert"), 2, 4)]
    plain, cached = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    with as_in_inference(plain):
        expected, _ = train(plain, batches, MultirateConfig.off())
    found, multirate = train(cached, batches)
    assert counts(multirate) == (12, 12)
    assert found == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_rows_depend_on_the_adapters_in_use() -> None:
    """A reference model without adapters, and an adapter with another factor, have rows of their own."""
    peft = pytest.importorskip("peft")
    tf.set_seed(1)
    config = peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(FAMILIES["bert"]()[0], config).eval()
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    batch = batch_of(rows_of("bert", 4), WIDTH)

    def losses() -> list[float]:
        values = [model(**batch).loss.item()]
        with model.disable_adapter():
            values.append(model(**batch).loss.item())
        layer.scaling["default"] *= 5
        values.append(model(**batch).loss.item())
        layer.scaling["default"] /= 5
        return values

    with torch.no_grad():
        expected = losses()
    assert len(set(expected)) == 3
    never = MultirateConfig.two_rate("last:1", "never", activation_cache="memory")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(never).attach(model, optimizer) as multirate:
        model(**batch).loss.backward()
        with torch.no_grad():
            assert losses() == expected
            assert losses() == expected
        assert counts(multirate) == (4 + 12, 12)


class CallsForward(nn.Module):
    """Runs no hook of its model, as Sentence Transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.bert
        self.classifier = model.classifier

    def forward(self, **batch: Tensor) -> Tensor:
        return self.classifier(self.model.forward(**batch).pooler_output)


@pytest.mark.parametrize("direct", [True, False])
def test_a_model_whose_forward_is_called_directly_gets_a_warning(
    direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bert = FAMILIES["bert"]()[0]
    model = CallsForward(bert) if direct else bert
    batch = batch_of(rows_of("bert", 4), WIDTH)
    del batch["labels"]
    never = MultirateConfig.two_rate("last:1", "never", activation_cache="memory")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(never).attach(model, optimizer) as multirate:
        output = model(**batch)
        (output if direct else output.logits).sum().backward()
        model(**batch)
        assert counts(multirate) == ((0, 0) if direct else (4, 4))
    assert caplog.text.count("forward method of BertModel is called directly") == direct
    assert not bert.bert.encoder.layer[2]._forward_pre_hooks


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_groups_with_period_never(family: str) -> None:
    """The same as freezing by hand."""
    rows = rows_of(family)
    batches = [batch_of(part, WIDTH) for part in shuffled(rows, 3, 4)]
    by_hand = model_of(family)
    never = copy.deepcopy(by_hand).requires_grad_(True)
    expected, _ = train(by_hand, batches)
    found, multirate = train(never, batches, MultirateConfig.two_rate("last:1", "never", activation_cache="memory"))
    assert counts(multirate) == (24, 12)
    assert found == expected
    assert all(parameter.requires_grad for parameter in never.parameters())
    assert_untouched(never)


def test_rates_above_never_blocks() -> None:
    """A finite period above, as no step of it changes the frozen blocks."""
    model = FAMILIES["bert"]()[0].train()
    config = MultirateConfig.ladder([1, 2, "never"], activation_cache="memory")
    batches = [batch_of(part, WIDTH) for part in shuffled(rows_of("bert"), 3, 4)]
    _, multirate = train(model, batches, config)
    assert counts(multirate) == (24, 12)


def test_several_calls_in_a_step() -> None:
    model, rows = model_of("bert"), rows_of("bert", 8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with Multirate(MEMORY).attach(model, optimizer) as multirate:
        for step in range(2):
            multirate.begin_step(step)
            (model(**batch_of(rows[:4])).loss + model(**batch_of(rows[4:])).loss).backward()
            optimizer.step()
        assert counts(multirate) == (8, 8)


def test_autocast_has_rows_of_its_own() -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with Multirate(MEMORY).attach(model, optimizer) as multirate:
        model(**batch)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                model(**batch).loss.backward()
    assert counts(multirate) == (4, 8)
    assert all(p.grad is not None for name, p in model.named_parameters() if "layer.3" in name)


def test_calls_for_hidden_states_run_the_whole_model() -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with Multirate(MEMORY).attach(model, optimizer) as multirate:
        model(**batch)
        output = model(**batch, output_hidden_states=True)
        assert all(bool(state.isfinite().all()) for state in output.hidden_states)
    assert counts(multirate) == (0, 4)


class Skipping(nn.Module):
    """Its last block reads the output of the first one too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in self.blocks[1:-1]:
            x = block(x)
        return self.blocks[-1](x + first)


class Rare(Skipping):
    """On most batches the last block reads nothing from the first one."""

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in self.blocks[1:-1]:
            x = block(x)
        return self.blocks[-1](x + torch.relu(first - 1e6))


class Noisy(nn.Module):
    """Dropout outside of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, 0.5, self.training)
        for block in self.blocks:
            x = block(x)
        return x


class Reversed(Noisy):
    """The last block runs first."""

    def forward(self, x: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Twice(Noisy):
    """Every block runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(block(x))
        return x


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x) + y, x * 2


class Pairs(nn.Module):
    """A block returns two tensors of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Pair() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            x, y = block(x, y)
        return x + y


class Sum(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum(0)


class Sums(nn.Module):
    """A block returns one tensor for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Sum(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x[None] if x.dim() == 1 else x)
        return x


REFUSED = {
    Skipping: "depends on them in another way too",
    Rare: "depends on them in another way too",
    Noisy: "in training it differs from that in evaluation mode",
    Reversed: "that may get a gradient runs before it",
    Twice: "blocks that run once each",
    Pairs: "depends on them in another way too",
    Sums: r"keeps one tensor for each row, but 'blocks\.2' returns none",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_are_refused(kind: type[nn.Module]) -> None:
    model = kind()
    for block in model.blocks[:-1]:
        block.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.blocks[-1].parameters(), lr=0.1)
    with Multirate(MEMORY).attach(model, optimizer), pytest.raises(NotImplementedError, match=REFUSED[kind]):
        model(torch.randn(3, 4))
    assert_untouched(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def attach(model: nn.Module, config: MultirateConfig = MEMORY) -> Multirate:
    trained = [p for p in model.parameters() if p.requires_grad]
    return Multirate(config).attach(model, torch.optim.SGD(trained, lr=0.1))


def test_models_without_a_frozen_prefix_are_refused_before_training() -> None:
    model = FAMILIES["bert"]()[0]
    with pytest.raises(ValueError, match=r"none below 'bert\.embeddings.*period='never'"):
        attach(model)
    freeze(model, 1)
    model.bert.embeddings.LayerNorm.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"none below 'bert\.embeddings\.LayerNorm\.bias'"):
        attach(model)
    with pytest.raises(ValueError, match="none below"):  # groups that are frozen in between do not count
        attach(FAMILIES["bert"]()[0], MultirateConfig.two_rate("last:1", 5, activation_cache="memory"))
    with pytest.raises(ValueError, match="a model with a stack of blocks"):
        attach(nn.Sequential(nn.Linear(2, 2)))


def test_other_refusals() -> None:
    with pytest.raises(NotImplementedError, match="blocks have cross-attention"):
        attach(model_of("t5"))
    dropping = model_of("wav2vec2")
    dropping.config.layerdrop = 0.1
    with pytest.raises(ValueError, match=r"dropped at random \(layerdrop=0\.1\)"):
        attach(dropping)
    compiled = model_of("bert")
    compiled.compile(backend="eager")
    with pytest.raises(NotImplementedError, match=r"does not work with torch\.compile"):
        attach(compiled)
    with pytest.raises(NotImplementedError, match="does not work with DataParallel"):
        attach(nn.DataParallel(model_of("bert")), MEMORY)


def test_inputs_that_are_refused() -> None:
    model, batch = model_of("bert"), batch_of(rows_of("bert", 4), WIDTH)
    embedded = model.bert.embeddings.word_embeddings(batch["input_ids"]).detach().requires_grad_()
    with (
        attach(model),
        pytest.raises(NotImplementedError, match="'inputs_embeds' of BertModel, which requires a grad"),
    ):
        model(inputs_embeds=embedded, attention_mask=batch["attention_mask"])
    decoder = model_of("llama")
    decoder.config.use_cache = True
    with attach(decoder), pytest.raises(ValueError, match=r"model\.config\.use_cache = False"):
        decoder(**batch)
    speaking = model_of("bert")
    speaking.config.output_hidden_states = True
    with attach(speaking), pytest.raises(NotImplementedError, match="Hidden states and attentions are such outputs"):
        speaking(**batch)


def test_a_custom_model_is_the_owner_itself() -> None:
    class Plain(Noisy):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model = Plain()
    freeze(model, 1)
    with attach(model) as multirate:
        x = torch.randn(3, 4)
        first = model(x, labels=torch.ones(3))
        assert torch.equal(model(x[[2, 0, 1]], labels=torch.zeros(3)), first[[2, 0, 1]])
    assert counts(multirate) == (3, 3)


def staged(cache: str | None) -> MultirateConfig:
    later = MultirateConfig.two_rate("last:1", "never", activation_cache=cache)
    return MultirateConfig.stages([(0.4, MultirateConfig.off()), (0.8, later), (1.0, MultirateConfig.ladder([1, 2]))])


def test_a_stage_with_a_cache_is_the_stage_without() -> None:
    ends, losses = [], []
    for cache in (None, "memory"):
        model = model_of("bert", 9)  # nothing is frozen by hand
        batches = [batch_of(rows, WIDTH) for rows in (rows_of("bert")[:6], rows_of("bert")[6:])]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        tf.set_seed(3)
        with Multirate(staged(cache)).attach(model, optimizer, total_steps=10) as multirate:
            for step in range(10):
                multirate.begin_step(step)
                model(**batches[step % 2]).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():  # the resting group is trainable between steps
                    losses.append(model.eval()(**batches[0]).loss.item())
                model.train()
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    assert losses[:10] == losses[10:]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    # Steps 4 to 7 and their evaluations: each row ran once, and until the second step has shown that the loss does not
    # read padding, the first evaluation and the second step ran too.
    assert counts(multirate) == (2 * 6 + 4 * 6 - 6, 2 * 6 + 6)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_stage_keeps_no_rows_on_disk() -> None:
    with pytest.raises(ValueError, match=r"stage 2 has an activation cache on disk.*use activation_cache='memory'"):
        staged("disk")


def test_a_stage_without_resting_blocks_has_no_cache() -> None:
    model = model_of("bert", 9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    config = MultirateConfig.stages([(0.5, MultirateConfig.off()), (1.0, MEMORY)])
    with pytest.raises(ValueError, match="there is none below"):
        Multirate(config).attach(model, optimizer, total_steps=4)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("places", [None, [slice(0, 2), slice(1, 3)]])
def test_kept_rows_are_put_together_where_they_are(places: list[slice] | None) -> None:
    """Whatever the default device is: only memory of the host can be pinned."""
    with torch.device("meta"):
        batch = put_together([torch.ones(2, 1, device="cpu")] * 2, places, 3)
    assert batch.device.type == "cpu"
    assert batch.sum() == 4.0
