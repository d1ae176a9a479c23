import sys

import torch
from transformers import (
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    Trainer,
    TrainingArguments,
)


def main(folder):
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=40, dim=16, hidden_dim=32, n_layers=4, n_heads=2, max_position_embeddings=32)
    model = DistilBertForQuestionAnswering(config)
    texts = torch.randint(3, 40, (32, 8))
    rows = [
        {"input_ids": text, "attention_mask": torch.ones_like(text), "start_positions": 1, "end_positions": 1 + i % 6}
        for i, text in enumerate(texts)
    ]
    args = TrainingArguments(folder, max_steps=6, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
