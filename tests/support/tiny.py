"""Tiny randomly initialised models of many families, built from configs, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """One token for each of `WORDS`, behind the special ones."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    return tf.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, model_input_names=names, **special)


def _text_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCAB, (BATCH, LENGTH))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % LABELS}


def _lm_batch() -> dict[str, torch.Tensor]:
    batch = _text_batch()
    return {**batch, "labels": batch["input_ids"]}


def _seq2seq_cls_batch() -> dict[str, torch.Tensor]:
    batch = _text_batch()
    batch["input_ids"][:, -1] = 2  # BART classifies the last end-of-sequence token.
    return batch


def _image_batch() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE), "labels": torch.arange(BATCH) % LABELS}


Family = tuple[nn.Module, dict[str, torch.Tensor]]

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
VOCAB, LABELS, BATCH, LENGTH, IMAGE = 40, 3, 2, 6, 32
# The names most configs share. Token 0 begins, 1 pads, 2 ends a text.
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
ENCODER: dict[str, Any] = SIZES | {
    "vocab_size": VOCAB,
    "max_position_embeddings": 32,
    "num_labels": LABELS,
    "pad_token_id": 1,
}
DECODER = ENCODER | {"num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 2}
VISION: dict[str, Any] = SIZES | {"image_size": IMAGE, "patch_size": 8, "num_labels": LABELS}


def _bert() -> Family:
    return tf.BertForSequenceClassification(tf.BertConfig(**ENCODER)), _text_batch()


def _roberta() -> Family:
    return tf.RobertaForSequenceClassification(tf.RobertaConfig(**ENCODER)), _text_batch()


def _distilbert() -> Family:
    config = tf.DistilBertConfig(
        vocab_size=VOCAB, dim=16, hidden_dim=32, n_layers=4, n_heads=2, max_position_embeddings=32, num_labels=LABELS
    )
    return tf.DistilBertForSequenceClassification(config), _text_batch()


def _deberta_v3() -> Family:
    config = tf.DebertaV2Config(
        **ENCODER,
        **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
        **{"norm_rel_ebd": "layer_norm", "position_buckets": 8},
        conv_kernel_size=3,  # DeBERTa-v2-xlarge's, to have every module that feeds the bottom blocks.
    )
    return tf.DebertaV2ForSequenceClassification(config), _text_batch()


def _electra() -> Family:
    config = tf.ElectraConfig(**ENCODER, embedding_size=8)  # Narrower, so there is a projection.
    return tf.ElectraForSequenceClassification(config), _text_batch()


def _modernbert() -> Family:
    special = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    config = tf.ModernBertConfig(**ENCODER, **special, attn_implementation="eager")
    return tf.ModernBertForSequenceClassification(config), _text_batch()


def _gpt2_config() -> tf.GPT2Config:
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return tf.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=4, n_head=2, n_positions=32, num_labels=LABELS, **special
    )


def _gpt2() -> Family:
    return tf.GPT2ForSequenceClassification(_gpt2_config()), _text_batch()


def _gpt2_lm() -> Family:
    return tf.GPT2LMHeadModel(_gpt2_config()), _lm_batch()


def _llama() -> Family:
    return tf.LlamaForSequenceClassification(tf.LlamaConfig(**DECODER)), _text_batch()


def _llama_lm() -> Family:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER)), _lm_batch()


def _qwen() -> Family:
    config = tf.Qwen3Config(**DECODER, head_dim=8, tie_word_embeddings=True)  # Tied, as the small Qwen3 are.
    return tf.Qwen3ForCausalLM(config), _lm_batch()


def _t5() -> Family:
    special = {"decoder_start_token_id": 1, "pad_token_id": 1, "eos_token_id": 2}
    config = tf.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, **special)
    return tf.T5ForConditionalGeneration(config), _lm_batch()


def _bart_config() -> tf.BartConfig:
    sides = {"layers": 3, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sides.items()}
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return tf.BartConfig(
        vocab_size=VOCAB, d_model=16, max_position_embeddings=32, num_labels=LABELS, **sizes, **special
    )


def _bart() -> Family:
    return tf.BartForConditionalGeneration(_bart_config()), _lm_batch()


def _bart_cls() -> Family:
    return tf.BartForSequenceClassification(_bart_config()), _seq2seq_cls_batch()


def _vit() -> Family:
    return tf.ViTForImageClassification(tf.ViTConfig(**VISION)), _image_batch()


def _dinov2() -> Family:
    return tf.Dinov2ForImageClassification(tf.Dinov2Config(**VISION)), _image_batch()


def _resnet() -> Family:
    config = tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16], depths=[1, 2, 1], layer_type="basic", num_labels=LABELS
    )
    return tf.ResNetForImageClassification(config), _image_batch()


def _convnext() -> Family:
    config = tf.ConvNextConfig(hidden_sizes=[8, 8, 16], depths=[1, 2, 1], num_stages=3, num_labels=LABELS)
    return tf.ConvNextForImageClassification(config), _image_batch()


def _wav2vec2() -> Family:
    config = tf.Wav2Vec2Config(
        **{**SIZES, "vocab_size": VOCAB, "num_labels": LABELS, "classifier_proj_size": 16},
        **{"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2)},
        **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
        **{"layerdrop": 0.0, "apply_spec_augment": False},
    )
    batch = {"input_values": torch.randn(BATCH, 400), "labels": torch.arange(BATCH) % LABELS}
    return tf.Wav2Vec2ForSequenceClassification(config), batch


def _clip() -> Family:
    text = {**ENCODER, "bos_token_id": 0, "eos_token_id": 2}
    config = tf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    batch = {**_text_batch(), **_image_batch(), "return_loss": torch.tensor(True)}
    del batch["labels"]  # CLIP's labels are the pairs themselves.
    return tf.CLIPModel(config), batch


FAMILIES: dict[str, Callable[[], Family]] = {
    "bart": _bart,
    "bart-cls": _bart_cls,
    "bert": _bert,
    "clip": _clip,
    "convnext": _convnext,
    "deberta-v3": _deberta_v3,
    "dinov2": _dinov2,
    "distilbert": _distilbert,
    "electra": _electra,
    "gpt2": _gpt2,
    "gpt2-lm": _gpt2_lm,
    "llama": _llama,
    "llama-lm": _llama_lm,
    "modernbert": _modernbert,
    "qwen": _qwen,
    "resnet": _resnet,
    "roberta": _roberta,
    "t5": _t5,
    "vit": _vit,
    "wav2vec2": _wav2vec2,
}
