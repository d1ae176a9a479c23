"""Tiny models of very many families of transformers, built from configs, each with a batch that gives a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import transformers as tf
from torch import nn


Batch = dict[str, Any]
VOCAB, LABELS, ROWS, LENGTH, IMAGE = 48, 3, 2, 16, 32
# One size under all the names that configs have for it; each config takes the names that it knows.
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "hidden_dim", "projection_dim")
WIDER = (
    "intermediate_size",
    "ffn_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "d_ff",
    "d_inner",
    "n_inner",
    "ffn_hidden_size",
)
LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
    "num_key_value_heads", "num_decoder_attention_heads", "num_encoder_attention_heads",
)  # fmt: skip
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_source_positions",
    "max_target_positions",
)
SIZES: dict[str, Any] = (
    dict.fromkeys(WIDTHS, 16) | dict.fromkeys(WIDER, 32) | dict.fromkeys(LAYERS, 4) | dict.fromkeys(HEADS, 2)
    | dict.fromkeys(LENGTHS, 64)
    | {"vocab_size": VOCAB, "num_labels": LABELS, "head_dim": 8, "image_size": IMAGE, "patch_size": 8}
    | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    | {"forced_eos_token_id": None}
)  # fmt: skip


def text() -> Batch:
    ids = torch.randint(3, VOCAB, (ROWS, LENGTH))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % LABELS}


def bare_text() -> Batch:
    batch = text()
    del batch["attention_mask"]
    return batch


def language() -> Batch:
    batch = text()
    return batch | {"labels": batch["input_ids"]}


def tokens() -> Batch:
    batch = language()
    return {"input_ids": batch["input_ids"], "labels": batch["labels"]}


def ended() -> Batch:
    batch = text()
    batch["input_ids"][:, -1] = 2  # BART classifies the last token that ends a text
    return batch


def image() -> Batch:
    return {"pixel_values": torch.randn(ROWS, 3, IMAGE, IMAGE), "labels": torch.arange(ROWS) % LABELS}


def wave() -> Batch:
    return {"input_values": torch.randn(ROWS, 800), "labels": torch.arange(ROWS) % LABELS}


def large_image() -> Batch:
    return image() | {"pixel_values": torch.randn(ROWS, 3, 2 * IMAGE, 2 * IMAGE)}


def inputs() -> Batch:
    batch = text()
    return {"inputs": batch["input_ids"], "labels": batch["labels"]}


def captioned() -> Batch:
    return image() | language()


def in_text(patches: int = 16) -> Batch:
    """Texts with places for the patches of an image."""
    ids = torch.randint(3, 40, (ROWS, LENGTH + patches))
    ids[:, 1 : 1 + patches] = VOCAB - 1
    return image() | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def framed() -> Batch:
    batch = in_text(4)
    return batch | {"pixel_values": batch["pixel_values"][:, None]}


def tiled() -> Batch:
    one = torch.ones(ROWS, 1, dtype=torch.long)
    crossed = torch.ones(ROWS, LENGTH, 1, 1, dtype=torch.long)
    tiles = {"aspect_ratio_ids": one, "aspect_ratio_mask": one[:, None], "cross_attention_mask": crossed}
    return language() | tiles | {"pixel_values": torch.randn(ROWS, 1, 1, 3, IMAGE, IMAGE)}


def spectrum() -> Batch:
    return {"input_features": torch.randn(ROWS, 8, 128), "labels": torch.randint(3, VOCAB, (ROWS, 8))}


def read_image() -> Batch:
    return {"pixel_values": image()["pixel_values"], "labels": torch.randint(3, VOCAB, (ROWS, 8))}


def visual_text() -> Batch:
    seen = {"visual_embeds": torch.randn(ROWS, 4, 16), "visual_attention_mask": torch.ones(ROWS, 4)}
    kinds = {"visual_token_type_ids": torch.ones(ROWS, 4, dtype=torch.long)}
    return text() | seen | kinds | {"labels": torch.rand(ROWS, LABELS)}


def regions() -> Batch:
    return text() | {"visual_feats": torch.randn(ROWS, 4, 16), "visual_pos": torch.rand(ROWS, 4, 4)}


def series() -> Batch:
    return {"past_values": torch.randn(ROWS, 32, 2), "future_values": torch.randn(ROWS, 4, 2)}


def pair() -> Batch:
    """Texts and images that belong together."""
    batch = text() | image()
    del batch["labels"]
    return batch | {"return_loss": True}


class Family(NamedTuple):
    """A class of transformers, its batch, and settings of its config beside those of the tiny size.

    ``config`` is its class if it is not that of the model. With ``parts`` the settings are all that there are.
    """

    model: str
    batch: Callable[[], Batch]
    settings: Mapping[str, Any]
    config: str | None = None
    parts: bool = False

    def build(self) -> nn.Module:
        kind = getattr(tf, self.model)
        config = kind.config_class if self.config is None else getattr(tf, self.config)
        model: nn.Module = kind(config(**(self.settings if self.parts else _sized(config, self.settings))))
        return model


def _sized(kind: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the tiny size that the config has, and ``own`` ones."""
    aliases = kind.attribute_map
    names = set(kind().to_dict()) | set(aliases)
    taken = {name: value for name, value in SIZES.items() if name in names and name not in own}
    # Two names of one setting would be refused.
    doubled = {alias for alias, name in aliases.items() if alias in taken and (name in taken or name in own)}
    return {**{name: value for name, value in taken.items() if name not in doubled}, **own}


PLAIN = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
WORDS = {name: SIZES[name] for name in (*PLAIN, "max_position_embeddings", "vocab_size", "pad_token_id")} | {
    "bos_token_id": 0,
    "eos_token_id": 2,
}
IMAGES = {name: SIZES[name] for name in (*PLAIN, "image_size", "patch_size")}
LLAMA = WORDS | {"model_type": "llama", "num_key_value_heads": 2}
CLIP = IMAGES | {"model_type": "clip_vision_model", "projection_dim": 16}
TOKEN = {"image_token_index": VOCAB - 1}
SPEECH: dict[str, Any] = {
    **{"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16},
    **{"layerdrop": 0.0, "apply_spec_augment": False},
}
TEXTS: dict[str, Family] = {
    "big_bird": Family("BigBirdForSequenceClassification", text, {"attention_type": "original_full"}),
    "canine": Family(
        "CanineForSequenceClassification",
        text,
        {"num_hash_buckets": 16, "local_transformer_stride": 8, "downsampling_rate": 4},
    ),
    "convbert": Family("ConvBertForSequenceClassification", text, {}),
    "deberta": Family("DebertaForSequenceClassification", text, {}),
    "ernie": Family("ErnieForSequenceClassification", text, {}),
    "fnet": Family("FNetForSequenceClassification", bare_text, {}),
    "funnel": Family(
        "FunnelForSequenceClassification", text, {"block_sizes": [2, 2, 2], "num_decoder_layers": 1, "d_head": 8}
    ),
    "flaubert": Family("FlaubertForSequenceClassification", text, {}),
    "xlm": Family("XLMForSequenceClassification", text, {}),
    "ibert": Family("IBertForSequenceClassification", text, {}),
    "layoutlm": Family("LayoutLMForSequenceClassification", text, {}),
    "longformer": Family("LongformerForSequenceClassification", text, {"attention_window": 4}),
    "luke": Family("LukeForSequenceClassification", text, {"entity_vocab_size": 8, "entity_emb_size": 8}),
    "megatron_bert": Family("MegatronBertForSequenceClassification", text, {}),
    "mobilebert": Family(
        "MobileBertForSequenceClassification",
        text,
        {"intra_bottleneck_size": 16, "true_hidden_size": 16, "hidden_size": 16},
    ),
    "mpnet": Family("MPNetForSequenceClassification", text, {}),
    "nystromformer": Family(
        "NystromformerForSequenceClassification", text, {"num_landmarks": 4, "segment_means_seq_len": 16}
    ),
    "rembert": Family(
        "RemBertForSequenceClassification", text, {"input_embedding_size": 16, "output_embedding_size": 16}
    ),
    "roformer": Family("RoFormerForSequenceClassification", text, {}),
    "squeezebert": Family("SqueezeBertForSequenceClassification", text, {}),
    "tapas": Family("TapasForSequenceClassification", text, {}),
    "xlm_roberta": Family("XLMRobertaForSequenceClassification", text, {}),
    "xlnet": Family("XLNetForSequenceClassification", text, {"d_inner": 32}),
    "xmod": Family("XmodForSequenceClassification", text, {"languages": ["en"], "default_language": "en"}),
    "yoso": Family("YosoForSequenceClassification", text, {}),
    "esm": Family("EsmForSequenceClassification", text, {}),
    "data2vec_text": Family("Data2VecTextForSequenceClassification", text, {}),
    "xlm_roberta_xl": Family("XLMRobertaXLForSequenceClassification", text, {}),
    "perceiver": Family(
        "PerceiverForSequenceClassification",
        inputs,
        {
            "num_latents": 4,
            "d_latents": 16,
            "num_self_attends_per_block": 4,
            "num_blocks": 1,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
        },
    ),
    "gpt_neo": Family("GPTNeoForCausalLM", language, {"attention_types": [[["global", "local"], 2]]}),
    "gptj": Family("GPTJForCausalLM", language, {"rotary_dim": 4}),
    "gpt_neox": Family("GPTNeoXForCausalLM", language, {}),
    "bloom": Family("BloomForCausalLM", language, {}),
    "opt": Family("OPTForCausalLM", language, {"word_embed_proj_dim": 16}),
    "falcon": Family("FalconForCausalLM", language, {}),
    "mpt": Family("MptForCausalLM", language, {}),
    "codegen": Family("CodeGenForCausalLM", language, {"rotary_dim": 4, "n_head": 4}),
    "phi": Family("PhiForCausalLM", language, {}),
    "phi3": Family("Phi3ForCausalLM", language, {}),
    "gemma": Family("GemmaForCausalLM", language, {}),
    "gemma2": Family("Gemma2ForCausalLM", language, {}),
    "gemma3": Family("Gemma3ForCausalLM", language, {}, "Gemma3TextConfig"),
    "mistral": Family("MistralForCausalLM", language, {}),
    "mixtral": Family("MixtralForCausalLM", language, {"num_local_experts": 4}),
    "qwen2": Family("Qwen2ForCausalLM", language, {}),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        language,
        {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", language, {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    ),
    "olmo": Family("OlmoForCausalLM", language, {}),
    "olmo2": Family("Olmo2ForCausalLM", language, {}),
    "olmoe": Family("OlmoeForCausalLM", language, {"num_experts": 4, "num_experts_per_tok": 2}),
    "starcoder2": Family("Starcoder2ForCausalLM", language, {}),
    "stablelm": Family("StableLmForCausalLM", language, {}),
    "cohere": Family("CohereForCausalLM", language, {}),
    "granite": Family("GraniteForCausalLM", language, {}),
    "granitemoe": Family("GraniteMoeForCausalLM", language, {"num_local_experts": 4}),
    "persimmon": Family("PersimmonForCausalLM", language, {}),
    "xglm": Family("XGLMForCausalLM", language, {}),
    "openai_gpt": Family("OpenAIGPTLMHeadModel", tokens, {}),
    "biogpt": Family("BioGptForCausalLM", language, {}),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        language,
        {
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
        },
    ),
    "gpt_oss": Family("GptOssForCausalLM", language, {"num_local_experts": 4}),
    "jetmoe": Family("JetMoeForCausalLM", language, {"num_local_experts": 2, "kv_channels": 8}),
    "nemotron": Family("NemotronForCausalLM", language, {}),
    "helium": Family("HeliumForCausalLM", language, {}),
    "smollm3": Family("SmolLM3ForCausalLM", language, {}),
    "glm4": Family("Glm4ForCausalLM", language, {}),
    "mamba": Family("MambaForCausalLM", tokens, {"state_size": 4}),
    "mamba2": Family(
        "Mamba2ForCausalLM",
        tokens,
        {
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "hidden_size": 16,
            "expand": 2,
        },
    ),
    "falcon_mamba": Family("FalconMambaForCausalLM", tokens, {"state_size": 4}),
    "jamba": Family(
        "JambaForCausalLM",
        language,
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 4,
        },
    ),
    "bamba": Family(
        "BambaForCausalLM",
        language,
        {
            "attn_layer_indices": [1, 3],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "zamba": Family(
        "ZambaForCausalLM",
        language,
        {
            "mamba_d_state": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "attention_head_dim": 16,
            "n_mamba_heads": 2,
            "num_hidden_layers": 6,
            "layer_types": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
        },
    ),
    "recurrent_gemma": Family("RecurrentGemmaForCausalLM", language, {"lru_width": 16, "attention_window_size": 8}),
    "rwkv": Family("RwkvForCausalLM", tokens, {"attention_hidden_size": 16}),
    "falcon_h1": Family(
        "FalconH1ForCausalLM",
        language,
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "lfm2": Family("Lfm2ForCausalLM", language, {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False}),
    "granitemoehybrid": Family(
        "GraniteMoeHybridForCausalLM",
        language,
        {
            "layer_types": ["mamba", "attention", "mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
            "mamba_chunk_size": 8,
            "num_local_experts": 4,
            "shared_intermediate_size": 16,
        },
    ),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        language,
        {
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "nemotron_h": Family(
        "NemotronHForCausalLM",
        language,
        {
            "hybrid_override_pattern": "M*-M",
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "ssm_state_size": 4,
            "chunk_size": 8,
        },
    ),
    "ctrl": Family("CTRLLMHeadModel", language, {"dff": 32}),
    "mt5": Family("MT5ForConditionalGeneration", language, {"d_kv": 8}),
    "longt5": Family(
        "LongT5ForConditionalGeneration",
        language,
        {"decoder_start_token_id": 1, "local_radius": 4, "global_block_size": 4, "d_kv": 8},
    ),
    "umt5": Family("UMT5ForConditionalGeneration", language, {"d_kv": 8}),
    "mbart": Family("MBartForConditionalGeneration", language, {}),
    "pegasus": Family("PegasusForConditionalGeneration", language, {}),
    "blenderbot": Family("BlenderbotForConditionalGeneration", language, {}),
    "marian": Family("MarianMTModel", language, {}),
    "m2m100": Family("M2M100ForConditionalGeneration", language, {}),
    "led": Family(
        "LEDForConditionalGeneration",
        language,
        {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    ),
    "prophetnet": Family(
        "ProphetNetForConditionalGeneration",
        language,
        {
            "num_encoder_layers": 4,
            "num_decoder_layers": 4,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
        },
    ),
    "fsmt": Family(
        "FSMTForConditionalGeneration", language, {"src_vocab_size": 48, "tgt_vocab_size": 48, "langs": ["a", "b"]}
    ),
    "switch": Family(
        "SwitchTransformersForConditionalGeneration",
        language,
        {"decoder_start_token_id": 1, "d_kv": 8, "num_experts": 2},
    ),
    "nllb_moe": Family("NllbMoeForConditionalGeneration", language, {"num_experts": 2, "expert_capacity": 64}),
    "plbart": Family("PLBartForConditionalGeneration", language, {}),
    "bigbird_pegasus": Family("BigBirdPegasusForConditionalGeneration", language, {"attention_type": "original_full"}),
    "pegasus_x": Family("PegasusXForConditionalGeneration", language, {"block_size": 4, "num_global_tokens": 4}),
    "t5_deep_encoder": Family(
        "T5ForConditionalGeneration",
        language,
        {"num_layers": 8, "num_decoder_layers": 2, "d_kv": 8, "decoder_start_token_id": 1},
    ),
}
OTHERS: dict[str, Family] = {
    "beit": Family("BeitForImageClassification", image, {}),
    "deit": Family("DeiTForImageClassification", image, {}),
    "swin": Family(
        "SwinForImageClassification",
        image,
        {"embed_dim": 8, "depths": [1, 2, 4], "num_heads": [2, 2, 2], "window_size": 2, "patch_size": 4},
    ),
    "swinv2": Family(
        "Swinv2ForImageClassification",
        image,
        {"embed_dim": 8, "depths": [1, 2, 4], "num_heads": [2, 2, 2], "window_size": 2, "patch_size": 4},
    ),
    "mobilenet_v1": Family("MobileNetV1ForImageClassification", image, {"depth_multiplier": 0.25}),
    "mobilenet_v2": Family("MobileNetV2ForImageClassification", image, {"depth_multiplier": 0.25}),
    "mobilevit": Family(
        "MobileViTForImageClassification",
        large_image,
        {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "patch_size": 2},
    ),
    "pvt": Family(
        "PvtForImageClassification",
        large_image,
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [2, 2, 2, 2],
            "image_size": 64,
            "num_attention_heads": [1, 1, 2, 2],
            "patch_sizes": [4, 2, 2, 2],
        },
    ),
    "pvt_v2": Family(
        "PvtV2ForImageClassification",
        large_image,
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 3, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "image_size": 64,
        },
    ),
    "poolformer": Family(
        "PoolFormerForImageClassification",
        image,
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "patch_sizes": [7, 3, 3, 3]},
    ),
    "regnet": Family(
        "RegNetForImageClassification",
        image,
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "embedding_size": 8, "groups_width": 8},
    ),
    "segformer": Family(
        "SegformerForImageClassification",
        image,
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 2, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
    ),
    "bit": Family(
        "BitForImageClassification",
        image,
        {"hidden_sizes": [16, 16, 16, 32], "depths": [1, 1, 2, 1], "embedding_size": 16, "num_groups": 4},
    ),
    "focalnet": Family(
        "FocalNetForImageClassification",
        image,
        {"embed_dim": 8, "depths": [1, 1, 2, 1], "focal_levels": [1, 1, 1, 1], "focal_windows": [3, 3, 3, 3]},
    ),
    "dinov2_reg": Family("Dinov2WithRegistersForImageClassification", image, {}),
    "vit_msn": Family("ViTMSNForImageClassification", image, {}),
    "ijepa": Family("IJepaForImageClassification", image, {}),
    "swiftformer": Family(
        "SwiftFormerForImageClassification", large_image, {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}
    ),
    "hubert": Family("HubertForSequenceClassification", wave, {**SPEECH}),
    "wavlm": Family("WavLMForSequenceClassification", wave, {**SPEECH}),
    "sew": Family("SEWForSequenceClassification", wave, {**SPEECH, "squeeze_factor": 2}),
    "unispeech": Family("UniSpeechForSequenceClassification", wave, {**SPEECH}),
    "w2v2_conformer": Family("Wav2Vec2ConformerForSequenceClassification", wave, {**SPEECH}),
    "whisper": Family("WhisperForConditionalGeneration", spectrum, {"num_mel_bins": 8}),
    "vit_mae": Family(
        "ViTMAEForPreTraining",
        large_image,
        {
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 4,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
            "image_size": 64,
        },
    ),
    "clip_wide_text": Family(
        "CLIPModel",
        pair,
        {"text_config": WORDS | {"num_hidden_layers": 8}, "vision_config": IMAGES, "projection_dim": 16},
        parts=True,
    ),
    "siglip_pair": Family("SiglipModel", pair, {"text_config": WORDS, "vision_config": IMAGES}, parts=True),
    "chinese_clip": Family(
        "ChineseCLIPModel", pair, {"text_config": WORDS, "vision_config": IMAGES, "projection_dim": 16}, parts=True
    ),
    "clip_image": Family(
        "CLIPForImageClassification",
        image,
        {"text_config": WORDS, "vision_config": IMAGES, "projection_dim": 16, "num_labels": LABELS},
        parts=True,
    ),
    "blip": Family(
        "BlipForConditionalGeneration",
        captioned,
        {
            "text_config": WORDS | {"encoder_hidden_size": 16, "sep_token_id": 2},
            "vision_config": IMAGES,
            "projection_dim": 16,
        },
        parts=True,
    ),
    "blip2": Family(
        "Blip2ForConditionalGeneration",
        lambda: in_text(4),
        {
            "text_config": WORDS | {"model_type": "opt", "word_embed_proj_dim": 16, "ffn_dim": 32},
            "vision_config": IMAGES,
            "qformer_config": WORDS | {"encoder_hidden_size": 16},
            "num_query_tokens": 4,
        }
        | TOKEN,
        parts=True,
    ),
    "llava": Family(
        "LlavaForConditionalGeneration", in_text, {"text_config": LLAMA, "vision_config": CLIP} | TOKEN, parts=True
    ),
    "llava_deep_vision": Family(
        "LlavaForConditionalGeneration",
        in_text,
        {"text_config": LLAMA | {"num_hidden_layers": 2}, "vision_config": CLIP | {"num_hidden_layers": 8}} | TOKEN,
        parts=True,
    ),
    "idefics3": Family(
        "Idefics3ForConditionalGeneration",
        framed,
        {"text_config": LLAMA, "vision_config": IMAGES, "image_token_id": VOCAB - 1, "scale_factor": 2},
        parts=True,
    ),
    "git": Family("GitForCausalLM", captioned, {"vision_config": IMAGES} | WORDS, parts=True),
    "visual_bert": Family(
        "VisualBertForQuestionAnswering",
        visual_text,
        {"visual_embedding_dim": 16, "num_labels": LABELS} | WORDS,
        parts=True,
    ),
    "lxmert": Family(
        "LxmertForQuestionAnswering",
        regions,
        {"l_layers": 2, "x_layers": 3, "r_layers": 2, "num_qa_labels": LABELS, "visual_feat_dim": 16}
        | {name: value for name, value in WORDS.items() if name != "num_hidden_layers"},
        parts=True,
    ),
    "mllama": Family(
        "MllamaForConditionalGeneration",
        tiled,
        {
            "text_config": WORDS | {"num_key_value_heads": 2, "cross_attention_layers": [1, 3]},
            "vision_config": IMAGES
            | {
                "attention_heads": 2,
                "num_global_layers": 2,
                "max_num_tiles": 1,
                "vision_output_dim": 48,
                "intermediate_layers_indices": [0, 1],
                "supported_aspect_ratios": [[1, 1]],
            },
        },
        parts=True,
    ),
    "patchtst": Family(
        "PatchTSTForPrediction",
        series,
        {"num_input_channels": 2, "context_length": 32, "patch_length": 4, "patch_stride": 4, "prediction_length": 4},
    ),
    "patchtsmixer": Family(
        "PatchTSMixerForPrediction",
        series,
        {"num_input_channels": 2, "context_length": 32, "patch_length": 4, "patch_stride": 4, "prediction_length": 4},
    ),
}
ALL = TEXTS | OTHERS
