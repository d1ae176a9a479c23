"""What is trained: the rows of the paper's tables, and its ablations."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.budgets.contenders import Contender
from benchmarks.budgets.settings import STANDARD, Setting


ALL = STANDARD.name
"""All parameters at every step."""

HEAD = "multirate, fast = head"
BLOCK = "multirate, fast = last block + head"

STAGES = r"encoder\.stages\.[{}]\.|^classifier"
"""Regular expression for stages of a ResNet, counted from 0, and its head."""

HEAD_ALONE = 10.0
"""Factor on the learning rates of a head that is trained alone, as in the benchmark at equal time."""


def _static(name: str, fast: str, rate_scale: float = 1.0) -> Setting:
    return Setting(name, "frozen", "never", {"fast": fast}, rate_scale=rate_scale)


def _multirate(name: str, build: dict[str, str] | None = None, **options: str | float) -> Setting:
    return Setting(name, "multirate", "paper", options, build or {})


RUNNING = {"batch_norm": "running"}
"""Batch norm as it is in Trainer: statistics of the batch, and running statistics of the run for evaluation."""

_COMMON = (STANDARD, _multirate(HEAD), _static("head", "head", HEAD_ALONE))

_VISION = (
    _static("stages 2 + 3 + 4 + head", STAGES.format("123")),
    _static("stages 3 + 4 + head", STAGES.format("23")),
    _static("stage 4 + head", STAGES.format("3")),
)

_LANGUAGE = (
    _multirate(BLOCK, fast="last:1"),
    *(_static(f"last {n} blocks + head", f"last:{n}") for n in (3, 2)),
    _static("last block + head", "last:1"),
)

_ABLATIONS = (
    _multirate("without drift: one long step", idle="hold"),
    _multirate("without drift: frozen", idle="freeze"),
    _multirate("period 2", period=2),
    _multirate("period 10", period=10),
    _multirate("slow steps as long as fast ones", slow_scale=0.2),
    Setting("all, running batch norm", "baseline", "standard", build=RUNNING),
    _multirate("running batch norm", RUNNING),
    _multirate("running batch norm, frozen at fast steps", RUNNING, buffers="freeze"),
)


def label(row: str) -> str:
    """Name of a row in tables."""
    return "all parameters" if row == ALL else row


CONTENDERS = {s.name: Contender(s) for s in (*_COMMON, *_VISION, *_LANGUAGE, *_ABLATIONS)}


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper.

    Attributes:
        name: Name of the command.
        tasks: Names of the tasks of this size, and of the size of the paper.
        rows: What is compared, in the order of the runs of a seed.
        multirate: Rows in whose seconds all parameters are trained too.
        repeated: Rows with more seeds.
        ablations: What is compared with `HEAD`.
    """

    name: str
    tasks: tuple[str, ...]
    full_tasks: tuple[str, ...]
    rows: tuple[str, ...]
    multirate: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    ablations: tuple[str, ...] = ()


VISION = Experiment(
    "vision",
    ("vision",),
    ("full_vision",),
    (ALL, HEAD, *(s.name for s in _VISION), "head"),
    (HEAD,),
    ablations=tuple(s.name for s in _ABLATIONS),
)
LANGUAGE = Experiment(
    "language",
    ("language_adamw", "language_sgd"),
    ("full_language_adamw", "full_language_sgd"),
    (ALL, HEAD, *(s.name for s in _LANGUAGE), "head"),
    (HEAD, BLOCK),
    repeated=(ALL, HEAD),
)
EXPERIMENTS = {experiment.name: experiment for experiment in (VISION, LANGUAGE)}
