"""Keys of rows: what changes them, and what does not."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import Tensor

from hf_multirate.backward.row_keys import Rows, named_inputs, rows_of
from tests.support.tiny import ENCODER


MODEL = tf.BertModel(tf.BertConfig(**ENCODER))
IDS = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 4, 3, 6]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def rows(seed: bytes = b"", **inputs: Tensor) -> Rows:
    named = named_inputs(MODEL, (), inputs)
    assert named is not None
    found = rows_of(MODEL, named, seed, padded=True)
    assert found is not None
    return found


def test_padding_and_neighbours_do_not_count() -> None:
    both = rows(input_ids=IDS, attention_mask=MASK)
    cut = rows(input_ids=IDS[:1, :3], attention_mask=MASK[:1, :3])
    other_token = IDS.clone()
    other_token[0, 3:] = 9
    assert both.keys[0] == cut.keys[0] == rows(input_ids=other_token, attention_mask=MASK).keys[0]
    assert both.keys[0] != both.keys[1]
    assert both.places == [slice(0, 3), slice(0, 5)]
    assert both.signature == cut.signature


def test_the_offset_of_left_padding_counts() -> None:
    left = rows(input_ids=IDS.roll(2, 1)[:1], attention_mask=MASK.roll(2, 1)[:1])
    assert left.places == [slice(2, 5)]
    assert left.keys[0] != rows(input_ids=IDS, attention_mask=MASK).keys[0]


def test_padding_in_between() -> None:
    """The same tokens at other positions."""
    ids = torch.tensor([[5, 6, 6, 7, 0]])
    one = rows(input_ids=ids, attention_mask=torch.tensor([[1, 0, 1, 1, 0]]))
    assert one.places is not None
    assert one.places[0].tolist() == [0, 2, 3]
    assert one.keys != rows(input_ids=ids, attention_mask=torch.tensor([[1, 1, 0, 1, 0]])).keys


def test_rows_without_a_mask_are_whole() -> None:
    whole = rows(input_ids=IDS)
    assert whole.places is None
    assert whole.keys[0] != rows(input_ids=IDS[:, :3]).keys[0]


@pytest.mark.parametrize(
    "other",
    [
        {"input_ids": IDS.int(), "attention_mask": MASK},
        {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.ones_like(IDS)},
        {"input_ids": IDS, "attention_mask": MASK, "position_ids": torch.arange(5)[None]},
        {"inputs_embeds": torch.zeros(2, 5, 16), "attention_mask": MASK},
    ],
    ids=["dtype", "types", "positions", "embeddings"],
)
def test_other_inputs_have_other_keys(other: dict[str, Tensor]) -> None:
    assert not set(rows(input_ids=IDS, attention_mask=MASK).keys) & set(rows(**other).keys)


def test_every_tensor_of_a_row_counts() -> None:
    types = torch.zeros_like(IDS)
    changed = types.clone()
    changed[1, 2] = 1
    one, other = (rows(input_ids=IDS, attention_mask=MASK, token_type_ids=t) for t in (types, changed))
    assert one.keys[0] == other.keys[0]
    assert one.keys[1] != other.keys[1]


def test_tensors_for_all_rows_count_for_each() -> None:
    one, other = (rows(input_ids=IDS, attention_mask=MASK, position_ids=torch.arange(5)[None] + i) for i in (0, 1))
    assert not set(one.keys) & set(other.keys)


def test_the_seed_counts() -> None:
    assert not set(rows(b"a", input_ids=IDS).keys) & set(rows(b"b", input_ids=IDS).keys)


def test_values_that_have_no_key() -> None:
    inputs = named_inputs(MODEL, (IDS,), {"past_key_values": tf.DynamicCache()})
    assert inputs is not None
    assert rows_of(MODEL, inputs, b"", padded=True) is None
    assert named_inputs(MODEL, (IDS,), {"input_ids": IDS}) is None


def test_bfloat16_has_keys() -> None:
    embedded = torch.randn(2, 5, 16).bfloat16()
    assert rows(inputs_embeds=embedded).keys == rows(inputs_embeds=embedded.clone()).keys
