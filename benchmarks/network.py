"""The network of speed and memory: a BERT of random weights, of the size of MiniLM by default."""

from __future__ import annotations

import argparse
from typing import Any

from transformers import BertConfig, BertForSequenceClassification


MINILM = {"hidden": 384, "layers": 6}


def add_sizes(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """Options for the sizes of the network, and for further integers, with their defaults."""
    for name, default in (MINILM | defaults).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")


def encoder(options: argparse.Namespace, **settings: Any) -> BertForSequenceClassification:
    """A classifier of the sizes in ``options``, with heads of width 32."""
    sizes = {"hidden_size": options.hidden, "intermediate_size": 4 * options.hidden}
    heads = {"num_hidden_layers": options.layers, "num_attention_heads": options.hidden // 32}
    return BertForSequenceClassification(BertConfig(**sizes, **heads, **settings))
