"""The page docs/results/gpu.md, from the results of `python -m benchmarks gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu import page_parts as parts
from benchmarks.gpu.results import FAILED, SKIPPED, GpuResults
from benchmarks.tables import table


PAGE = "gpu.md"
FILE = "gpu.jsonl"
HEADER = "<!-- Written by `python -m benchmarks report` from benchmarks/results/gpu.jsonl. -->"
TITLE = "# On a GPU"
NOT_MEASURED = "**Not measured yet.**"
HOW = """\
```bash
python -m benchmarks gpu      # nine minutes on a GPU of the H100 class
python -m benchmarks report   # this page from the results
```

The command makes all its data and networks, and needs torch, transformers, accelerate and peft beside this package. A
second call continues: a cell whose result is there is not repeated, and what lacked time is measured. `--parts` runs
some of the parts, `--minutes` sets the time, and `--repeat` repeats what failed or was skipped.

| part | what it measures |
|---|---|
| `kinds` | seconds of full and fast steps of BERT, ViT and Llama; predicted and measured speed-up of a cycle; drift |
| `runs` | whole runs of `MultirateTrainer` and `Trainer` in turn; idle time of the GPU; host synchronisation |
| `memory` | bytes at the peak of full and fast steps, with gradient checkpointing and LoRA |
| `correctness` | equality with `Trainer` bit for bit, resume, precisions, `torch.compile`, attention kernels |
| `equal_time` | accuracy at shares of the baseline's seconds, for two tasks of texts; needs the extra `examples` |"""
SECTIONS = (
    ("Steps", parts.kinds),
    ("Runs", parts.runs),
    ("Memory", parts.memory),
    ("Correctness", parts.correctness),
    ("Accuracy at equal time", parts.equal_time),
)
"""Titles, and what makes their tables."""


def page(path: Path) -> str:
    """Text of the page for the results in ``path``, which may not exist."""
    file = GpuResults(path)
    if not file.cells:
        return "\n\n".join([HEADER, TITLE, f"{NOT_MEASURED} To measure:", HOW]) + "\n"
    found = [HEADER, TITLE, HOW, *_machines(file)]
    for title, tables in SECTIONS:
        found.append(f"## {title}")
        found += list(tables(file)) or [NOT_MEASURED]
    return "\n\n".join([*found, *_left_out(file)]) + "\n"


def _machines(file: GpuResults) -> Iterator[str]:
    """Device, versions and commit of all results."""
    yield "## Machine"
    rows = []
    for line in file.machines.values():
        memory = f"{line['memory_bytes'] / 1e9:.0f} GB" if "memory_bytes" in line else ""
        cuda = f"CUDA {line['cuda']}" if "cuda" in line else ""
        device = ", ".join(text for text in (line["device"], memory, cuda) if text)
        versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
        commit = line["commit"][:7] + (", with changed files" if line["dirty"] else "")
        rows.append([device, f"{line['processor']}, {line['cores']} cores", versions, commit])
    yield table(["device", "processor", "versions", "commit"], rows)


def _left_out(file: GpuResults) -> Iterator[str]:
    """Cells without a value, with the reason."""
    lines = [line for line in file.cells.values() if line["status"] in (SKIPPED, FAILED)]
    if lines:
        yield "## Skipped and failed"
        rows = [[line["part"], line["cell"], line["status"], parts.in_cell(line["reason"])] for line in lines]
        yield table(["part", "cell", "status", "reason"], rows)
