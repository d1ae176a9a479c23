"""Short training runs on tiny models, and what has to be equal when two of them are the same."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_multirate import MultirateConfig, MultirateTrainer
from tests.support.tiny import BATCH, FAMILIES, LABELS, VOCAB


FIVE = int(tf.__version__.partition(".")[0]) >= 5
"""Whether this is transformers 5, and not 4.57."""

PERIOD = 4
CONFIG = MultirateConfig.two_rate("last:1", PERIOD, turns="fixed", idle="drift")
COMPILED: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), **(DEFAULTS | settings))


def example(family: str, count: int = 12) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model and ``count`` different rows for it, the same ones at every call."""
    tf.set_seed(1)
    model, batch = FAMILIES[family]()
    rows = [{key: value[i % BATCH].clone() for key, value in batch.items()} for i in range(count)]
    for i, row in enumerate(rows):
        if "pixel_values" in row:
            row["pixel_values"].normal_()
        else:
            row["input_ids"].random_(3, VOCAB)
        row["labels"] = row["input_ids"] if row["labels"].dim() else torch.tensor(i % LABELS)
    return model, rows


def without_dropout(model: nn.Module) -> None:
    """Turn dropout off for good, in attention too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "dropout_prob" in vars(module):  # attention of transformers 4.57
            module.dropout_prob = 0.0


def trainer_for(
    folder: Path,
    config: MultirateConfig | None,
    family: str = "bert",
    *,
    kind: type[Trainer] | None = None,
    **rest: Any,
) -> Trainer:
    """A `Trainer` if ``config`` is None; ``rest`` are settings of a trainer or of its arguments.

    A value that is a function of the model is called with it first.
    """
    model, rows = example(family)
    own = {"optimizers", "optimizer_cls_and_kwargs", "compute_loss_func", "callbacks", "eval_dataset", "model_init"}
    own |= {"multirate_record", "multirate_log"}
    kwargs = {key: rest.pop(key) for key in own & rest.keys()}
    if callable(kwargs.get("optimizers")):
        kwargs["optimizers"] = kwargs["optimizers"](model)
    if "model_init" not in kwargs:
        kwargs["model"] = model
    if config is not None:
        kwargs["multirate"] = config
    kind = kind or (Trainer if config is None else MultirateTrainer)
    return kind(args=arguments(folder, **rest), train_dataset=rows, **kwargs)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def history(trainer: Trainer) -> list[dict[str, float]]:
    """The log of every step and evaluation without durations; the last entry, a summary, is left out."""
    entries = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    assert entries, "nothing was logged"
    return [{key: value for key, value in entry.items() if not _is_timing(key)} for entry in entries]


def _is_timing(key: str) -> bool:
    """Whether a figure depends on the clock, or on how many steps this process has seen."""
    of_steps = ("multirate/seconds", "multirate/speedup", "multirate/full_share", "multirate/loss_decrease_per_second")
    return key.endswith(("runtime", "per_second")) or key.startswith(of_steps)


@functools.cache
def compiled_is_exact() -> bool:
    """Whether standard training ends with the same bits when it is compiled; on some processors it does not.

    There the second step is another one by rounding, each time in the same way.
    """
    ends = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # while it traces, dynamo reads what warns
        for settings in ({}, COMPILED):
            trainer = trainer_for(Path(folder), None, "llama-lm", max_steps=12, **settings)
            trainer.train()
            ends.append(weights(trainer))
    return all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def assert_same(one: Any, other: Any, where: str = "", *, exact: bool = True) -> None:
    """Bit for bit, through dictionaries and lists; to rounding if not ``exact``, where a step is 1e-2 long."""
    if isinstance(one, Tensor):
        same = torch.equal(one, other) if exact else torch.allclose(one, other, rtol=0.0, atol=1e-4)
        assert same, f"{where} differs by {(one.double() - other.double()).abs().max()}"
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]", exact=exact)
    elif isinstance(one, Sequence) and not isinstance(one, str):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]", exact=exact)
    elif isinstance(one, float) and not exact:
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5), where
    else:
        assert one == other, where


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that are not equal."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def phases(trainer: Any) -> list[float]:
    return [entry["multirate/phase"] for entry in history(trainer) if "loss" in entry]


class Watched(MultirateTrainer):
    """Notes for each micro-batch its step, which parameters were live, and how many bytes autograd kept."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[int, frozenset[str]]] = []
        self.saved: list[int] = []

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        live = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        self.seen.append((self.state.global_step, live))
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = super().compute_loss(model, *args, **kwargs)
        self.saved.append(sum(sizes.values()))
        return loss


def recorded_pair(folder: Path) -> Path:
    """``folder`` with the records of two comparable runs with evaluation, ``multirate`` and ``baseline``."""
    for name, config in (("multirate", CONFIG), ("baseline", MultirateConfig.off())):
        _, rows = example("bert")
        evaluation = {"eval_dataset": rows, "eval_strategy": "steps", "eval_steps": 4}
        trainer_for(folder / name, config, max_steps=3 * PERIOD, multirate_record=True, **evaluation).train()
    return folder
