"""The networks: built from configs with random weights, on the device, with a batch for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn


LABELS = 2
CLASSES = {"num_labels": LABELS, "problem_type": "single_label_classification"}
"""Without the type of problem, the first step sets it, and a compiled model is compiled again for that."""

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TINY_LENGTH, TINY_BATCH, TINY_VOCABULARY, TINY_IMAGE = 8, 2, 50, 32


@dataclass(frozen=True)
class Network:
    """A network and the size of its batches.

    Attributes:
        name: Name in results.
        family: ``bert``, ``vit`` or ``llama``.
        batch: Rows of a batch.
        length: Tokens of a row; for images their number of patches and one.
        sizes: Arguments of its config.
        vocabulary: Number of tokens.
        image: Pixels of a side.
    """

    name: str
    family: str
    batch: int
    length: int
    sizes: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 30_000
    image: int = 224

    @property
    def shape(self) -> str:
        """Rows and tokens in words."""
        return f"{self.batch} x {self.length}"

    def make(self, device: torch.device, seed: int = 0) -> Any:
        """The network in training mode, with random weights that are drawn on ``device``."""
        tf.set_seed(seed)
        with device:
            return BUILDERS[self.family](self).train()

    def rows(self, number: int, seed: int = 0) -> list[dict[str, Tensor]]:
        """Random rows on the CPU, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        if self.family == "vit":
            shape = (number, 3, self.image, self.image)
            pixels = torch.randn(shape, generator=generator)
            return [{"pixel_values": row, "labels": torch.tensor(i % LABELS)} for i, row in enumerate(pixels)]
        tokens = torch.randint(3, self.vocabulary, (number, self.length), generator=generator)
        if self.family == "llama":
            return [{"input_ids": row, "labels": row} for row in tokens]
        return [{"input_ids": row, "labels": torch.tensor(i % LABELS)} for i, row in enumerate(tokens)]

    def one_batch(self, device: torch.device) -> dict[str, Tensor]:
        """A batch on ``device``."""
        rows = self.rows(self.batch)
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}

    def tiny(self) -> Network:
        """The same family with a few thousand weights."""
        more = {"num_key_value_heads": 2} if self.family == "llama" else {}
        sizes = TINY | more | ({"patch_size": 8} if self.family == "vit" else {})
        small = {"length": TINY_LENGTH, "vocabulary": TINY_VOCABULARY, "image": TINY_IMAGE}
        return replace(self, batch=min(self.batch, TINY_BATCH), sizes=sizes, **small)

    def with_batch(self, batch: int) -> Network:
        """The same network with another number of rows."""
        return replace(self, batch=batch)


def _bert(network: Network) -> nn.Module:
    config = tf.BertConfig(vocab_size=network.vocabulary, attn_implementation="sdpa", **CLASSES, **network.sizes)
    return tf.BertForSequenceClassification(config)


def _vit(network: Network) -> nn.Module:
    return tf.ViTForImageClassification(
        tf.ViTConfig(image_size=network.image, **CLASSES, attn_implementation="sdpa", **network.sizes)
    )


def _llama(network: Network) -> nn.Module:
    config = tf.LlamaConfig(
        vocab_size=network.vocabulary, max_position_embeddings=2048, use_cache=False, attn_implementation="sdpa",
        bos_token_id=0, eos_token_id=1, pad_token_id=2, **network.sizes,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config)


BUILDERS: dict[str, Callable[[Network], nn.Module]] = {"bert": _bert, "vit": _vit, "llama": _llama}


def _llama_sizes(hidden: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": heads}


LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}

NETWORKS = {
    network.name: network
    for network in (
        Network("BERT-base", "bert", 32, 128),
        Network("BERT-large", "bert", 32, 128, LARGE),
        Network("ViT-B/16", "vit", 32, 197),
        Network("Llama 0.5 B", "llama", 8, 1024, _llama_sizes(1280, 3456, 20, 20), 32_000),
        Network("Llama 1.5 B", "llama", 8, 1024, _llama_sizes(2048, 5632, 28, 16), 32_000),
    )
}
"""By name. A Llama of 0.5 B has 478 million weights, that of 1.5 B 1,570 million."""
