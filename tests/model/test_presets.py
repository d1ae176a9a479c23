"""Presets name the expected parameters of every family, and what they name is a suffix of the forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_multirate import MultirateConfig
from hf_multirate.model.presets import preset_names
from tests.support.runs import FIVE
from tests.support.stacks import stack_of
from tests.support.tiny import FAMILIES


class Row(NamedTuple):
    """What a family's presets contain, as prefixes of parameter names."""

    stack: str
    blocks: int
    after: tuple[str, ...]  # Follows the stack but is no head.
    head: tuple[str, ...]
    no_head: str = ""  # Why the head is empty, when it is.
    slow_above: tuple[str, ...] = ()  # Modules above the cut whose weight is tied to one below it.


TIED = "head of .* is tied: 'lm_head.weight' is "
OWN = "has no base model in its attribute .*, so no parameter is known to be outside of it"
EXPECTED = {
    "bart": Row("model.decoder.layers", 3, (), (), TIED + "'model.shared.weight'", ("lm_head",)),
    "bart-cls": Row("model.decoder.layers", 3, (), ("classification_head.",)),
    "bert": Row("bert.encoder.layer", 4, ("bert.pooler.",), ("classifier.",)),
    "clip": Row(
        "vision_model.encoder.layers",
        4,
        ("vision_model.post_layernorm.", "visual_projection.", "text_projection."),
        (),
        OWN,
    ),
    "convnext": Row("convnext.encoder.stages", 3, ("convnext.layernorm.",), ("classifier.",)),
    "deberta-v3": Row("deberta.encoder.layer", 4, (), ("pooler.", "classifier.")),
    "dinov2": Row("dinov2.encoder.layer", 4, ("dinov2.layernorm.",), ("classifier.",)),
    "distilbert": Row("distilbert.transformer.layer", 4, (), ("pre_classifier.", "classifier.")),
    "electra": Row("electra.encoder.layer", 4, (), ("classifier.dense.", "classifier.out_proj.")),
    "gpt2": Row("transformer.h", 4, ("transformer.ln_f.",), ("score.",)),
    "gpt2-lm": Row("transformer.h", 4, ("transformer.ln_f.",), (), TIED + "'transformer.wte.weight'", ("lm_head",)),
    "llama": Row("model.layers", 4, ("model.norm.",), ("score.",)),
    "llama-lm": Row("model.layers", 4, ("model.norm.",), ("lm_head.",)),
    "modernbert": Row("model.layers", 4, ("model.final_norm.",), ("head.", "classifier.")),
    "qwen": Row("model.layers", 4, ("model.norm.",), (), TIED + "'model.embed_tokens.weight'", ("lm_head",)),
    "resnet": Row("resnet.encoder.stages", 3, (), ("classifier.1.",)),
    "roberta": Row("roberta.encoder.layer", 4, (), ("classifier.dense.", "classifier.out_proj.")),
    "t5": Row("decoder.block", 3, ("decoder.final_layer_norm.",), (), OWN, ("lm_head",)),
    "vit": Row("vit.layers" if FIVE else "vit.encoder.layer", 4, ("vit.layernorm.",), ("classifier.",)),
    "wav2vec2": Row("wav2vec2.encoder.layers", 4, (), ("projector.", "classifier.")),
}
# Value of the preset, and how many of 3 or 4 blocks that is.
TOP = [("last", 1, 1), ("last", 2, 2), ("depth", 0.5, 2)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def named(model: nn.Module, prefixes: Iterable[str]) -> frozenset[str]:
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in names), f"the test expects {prefix}, which does not exist"
    return frozenset(name for name in names if name.startswith(tuple(prefixes)))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)  # The same dropout in every run.
    model(**batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def wholly_slow(model: nn.Module, fast: frozenset[str], slow_above: tuple[str, ...]) -> dict[str, nn.Module]:
    """Modules that own parameters, none of them fast: all of them must lie below the cut."""
    fast_parameters = {p for name, p in model.named_parameters() if name in fast}
    return {
        path: module
        for path, module in model.named_modules()
        if (own := set(module.parameters())) and own.isdisjoint(fast_parameters) and path not in slow_above
    }


def test_every_family_is_expected() -> None:
    assert FAMILIES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("family", EXPECTED)
def test_head(family: str) -> None:
    model, _ = FAMILIES[family]()
    row = EXPECTED[family]
    if row.no_head:
        with pytest.raises(ValueError, match=f"{row.no_head}.*use 'last:1'"):
            preset_names("head", None, model)
    else:
        assert preset_names("head", None, model) == named(model, row.head)


@pytest.mark.parametrize(("kind", "value", "count"), TOP)
@pytest.mark.parametrize("family", EXPECTED)
def test_top(family: str, kind: str, value: float, count: int) -> None:
    model, _ = FAMILIES[family]()
    row = EXPECTED[family]
    assert stack_of(model) == (row.stack, row.blocks)
    blocks = [f"{row.stack}.{index}." for index in range(row.blocks - count, row.blocks)]
    assert preset_names(kind, value, model) == named(model, [*blocks, *row.after, *row.head])


@pytest.mark.parametrize("family", EXPECTED)
def test_parts_follow_each_other_from_the_top(family: str) -> None:
    model, _ = FAMILIES[family]()
    blocks = EXPECTED[family].blocks
    parts = [preset_names("part", (part, blocks), model) for part in range(1, blocks + 1)]
    assert parts[0] == preset_names("last", 1, model)
    for part in range(1, blocks):
        assert frozenset().union(*parts[:part]) == preset_names("last", part, model)
    assert sum(map(len, parts)) == len(frozenset().union(*parts)) == len(list(model.parameters()))


def test_lower_parts_are_larger_where_parts_cannot_be_equal() -> None:
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(7))
    assert [len(preset_names("part", (part, 3), model)) for part in (1, 2, 3)] == [4, 4, 6]


LAW = [(f, "last", n) for f in EXPECTED for n in (1, 2)] + [(f, "head", None) for f in EXPECTED if EXPECTED[f].head]


@pytest.mark.parametrize(("family", "kind", "value"), LAW)
def test_preset_is_a_suffix_of_the_forward(family: str, kind: str, value: int | None) -> None:
    model, batch = FAMILIES[family]()
    full = gradients(model, batch)
    if family == "wav2vec2":
        # In train mode its feature extractor makes the waveform require grad, unless told that it is
        # frozen; without this the whole backward runs whatever requires_grad says.
        model.freeze_feature_encoder()
    fast = preset_names(kind, value, model)
    recorded: dict[str, bool] = {}
    for path, module in wholly_slow(model, fast, EXPECTED[family].slow_above).items():

        def hook(_module: nn.Module, _args: Any, output: Any, path: str = path) -> None:
            recorded[path] = any(tensor.requires_grad for tensor in tensors(output))

        module.register_forward_hook(hook)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in fast)
    pruned = gradients(model, batch)

    assert f"{EXPECTED[family].stack}.0" in recorded, "the hooks did not run"
    assert [path for path, graph in recorded.items() if graph] == []
    assert pruned.keys() == full.keys() & fast
    assert pruned
    for name, gradient in pruned.items():
        assert torch.equal(gradient, full[name]), name


def test_depth_rounds_and_keeps_one_block() -> None:
    model, _ = FAMILIES["bert"]()
    assert preset_names("depth", 0.01, model) == preset_names("last", 1, model)
    assert preset_names("depth", 0.7, model) == preset_names("last", 3, model)
    assert preset_names("depth", 1.0, model) == preset_names("last", 4, model)


def test_what_serves_the_bottom_blocks_stays_slow() -> None:
    deberta, bart = FAMILIES["deberta-v3"]()[0], FAMILIES["bart"]()[0]
    after = ("deberta.encoder.rel_embeddings.", "deberta.encoder.LayerNorm.", "deberta.encoder.conv.")
    assert preset_names("last", 4, deberta).isdisjoint(named(deberta, after))
    assert preset_names("last", 3, bart).isdisjoint(named(bart, ["model.decoder.layernorm_embedding."]))


def test_projections_follow_the_other_tower() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text, vision = (
        {"num_hidden_layers": 4, "vocab_size": 40},
        {"num_hidden_layers": 2, "image_size": 16, "patch_size": 8},
    )
    model = CLIPModel(CLIPConfig(text_config=sizes | text, vision_config=sizes | vision, projection_dim=16))
    after = ("text_model.final_layer_norm.", "visual_projection.", "text_projection.")
    assert preset_names("last", 1, model) == named(model, ["text_model.encoder.layers.3.", *after])


def test_plain_module_has_a_top_but_no_head() -> None:
    model = nn.ModuleDict(
        {
            "input": nn.Linear(2, 2),
            "body": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
            "norm": nn.LayerNorm(2),
        }
    )
    assert stack_of(model) == ("body", 3)
    assert preset_names("last", 2, model) == named(model, ["body.2.", "body.4.", "norm."])
    with pytest.raises(ValueError, match=r"ModuleDict has no base_model.*'last:1' or a regular expression"):
        preset_names("head", None, model)


def test_tied_to_a_slow_place_is_slow() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    assert preset_names("last", 1, model) == {"2.bias"}
    assert preset_names("last", 3, model) == named(model, ["0.", "1.", "2."])


def test_with_a_new_head_the_top_is_that_of_the_measured_networks() -> None:
    fast = MultirateConfig.new_head().groups[0].patterns[0]
    kind, _, share = fast.partition(":")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    minilm = BertForSequenceClassification(BertConfig(num_hidden_layers=6, **sizes))
    resnet = ResNetForImageClassification(ResNetConfig(depths=[1, 1, 1, 1], embedding_size=8, hidden_sizes=[8] * 4))
    for model in (minilm, resnet):
        assert preset_names(kind, float(share), model) == preset_names("last", 2, model)


def test_equal_stacks_take_the_last() -> None:
    stacks = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    model = nn.ModuleDict({"encoder": stacks[0], "decoder": stacks[1]})
    assert stack_of(model) == ("decoder", 2)
    assert preset_names("last", 1, model) == named(model, ["decoder.1."])


def test_stack_outside_the_base_model_is_cut_too() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.Linear(2, 2)
            self.decoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            self.out = nn.Linear(2, 2)

    model = Masked()
    assert preset_names("head", None, model) == named(model, ["decoder.", "out."])
    assert preset_names("last", 1, model) == named(model, ["decoder.1.", "out."])


def _shared_blocks() -> nn.Module:
    return nn.ModuleList([nn.Linear(2, 2)] * 3)


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 2), _shared_blocks], ids=["single", "shared"])
def test_no_stack(build: Any) -> None:
    with pytest.raises(ValueError, match=r"has no stack.*regular expression"):
        preset_names("last", 1, build())


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("last", 5, "asks for more than the 4 blocks of 'bert.encoder.layer'"),
        ("last", 0, "1 or more, got 0"),
        ("last", None, "1 or more, got None"),
        ("last", 1.5, "1 or more, got 1.5"),
        ("depth", 0, r"in \(0, 1\], got 0"),
        ("depth", 1.5, r"in \(0, 1\], got 1.5"),
        ("depth", None, r"in \(0, 1\], got None"),
        ("head", 1, "takes no value, got 1"),
        ("top", 1, "one of 'head', 'last', 'depth', 'part', got 'top'"),
    ],
)
def test_wrong_requests(kind: str, value: float | None, message: str) -> None:
    model, _ = FAMILIES["bert"]()
    with pytest.raises(ValueError, match=message):
        preset_names(kind, value, model)


# peft still asks transformers for a property by its old name.
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@peft_warns
def test_peft_names_are_the_outer_models() -> None:
    peft = pytest.importorskip("peft")
    # LoRA on the pooler: its layers own an empty child named lora_embedding_A, which is no input.
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "dense"])
    model = peft.get_peft_model(FAMILIES["bert"]()[0], config)
    inner = "base_model.model"
    assert isinstance(model.get_base_model(), BertForSequenceClassification)
    assert preset_names("head", None, model) == named(model, [f"{inner}.classifier."])
    top = [f"{inner}.{path}." for path in ("bert.encoder.layer.3", "bert.pooler", "classifier")]
    assert preset_names("last", 1, model) == named(model, top)


@peft_warns
def test_peft_prompts_are_an_input() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(FAMILIES["llama-lm"]()[0], config)
    assert preset_names("head", None, model) == named(model, ["base_model.lm_head."])
    top = [f"base_model.{path}." for path in ("model.layers.3", "model.norm", "lm_head")]
    assert preset_names("last", 1, model) == named(model, top)
