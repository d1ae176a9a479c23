import sys

import torch
from transformers import (
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)


def main(folder):
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_labels=3,
        conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), classifier_proj_size=16, apply_spec_augment=False,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, layerdrop=0.0,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config)
    model.freeze_feature_encoder()
    rows = [{"input_values": torch.randn(400) * (1 + i % 3), "labels": i % 3} for i in range(32)]
    args = TrainingArguments(folder, max_steps=6, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
