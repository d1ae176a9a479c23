import sys

import torch
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainingArguments,
)


MASK = 39


def main(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=40, pad_token_id=1, max_position_embeddings=32, **sizes)
    model = RobertaForMaskedLM(config)
    rows = []
    for words in torch.randint(3, MASK, (32, 8)):
        hidden = torch.rand(8) < 0.3
        labels = words.where(hidden, torch.tensor(-100))
        rows.append({"input_ids": words.where(~hidden, torch.tensor(MASK)), "labels": labels})
    args = TrainingArguments(folder, max_steps=6, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
