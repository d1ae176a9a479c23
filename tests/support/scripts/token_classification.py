import sys

import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
)


def main(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = BertForTokenClassification(BertConfig(vocab_size=40, num_labels=3, max_position_embeddings=32, **sizes))
    words = torch.randint(3, 40, (32, 8))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row % 3} for row in words]
    args = TrainingArguments(folder, max_steps=6, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
