"""Started by other tests in one or more processes: train, and save what each process has in the end.

    python processes.py FOLDER WRAPPER CASE [CASE ...]

WRAPPER is ddp or fsdp2. A case is words joined by dashes, each of which sets one thing, and after an @ a
checkpoint to resume from.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, DistributedType
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from torch.distributed.algorithms import Join
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, RMSprop
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_multirate import (
    AveragedCopiesTrainer,
    CopiesConfig,
    Multirate,
    MultirateConfig,
    MultirateTrainer,
    RandomSubset,
    RateGroup,
)
from hf_multirate.distributed import all_reduce as buckets
from tests.support.runs import arguments, example, without_dropout
from tests.support.tiny import FAMILIES
from tests.support.traffic import Traffic, reference


WORLD, RANK = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
ROWS, PERIOD, LONG, SHORT, SAVED = 4, 4, 40, 12, 6
SUBSETS = {
    "element": (3, RandomSubset(0.5, "element", biases=True)),
    "neuron": (3, RandomSubset(0.5, "neuron", biases=True)),
    "step": (1, RandomSubset(0.5, "element", biases=True, redraw="step")),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": (SGD, {"lr": 0.05, "momentum": 0.9}),
    "rmsprop": (RMSprop, {"lr": 1e-3}),
    "adamw": (AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
}
WRAPS: dict[str, dict[str, Any]] = {
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
    "fp16hook": {"comm_hook": DDPCommunicationHookType.FP16},
    "bf16hook": {"comm_hook": DDPCommunicationHookType.BF16},
    "powersgd": {"comm_hook": DDPCommunicationHookType.POWER_SGD},
}


def shard_on_cpu() -> None:
    """Have Accelerate shard on CPUs too, where it would wrap in DDP; what it has wrapped is checked in the end."""
    ordinary = PartialState.__init__

    def init(self: PartialState, *args: Any, **kwargs: Any) -> None:
        ordinary(self, *args, **kwargs)
        if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = init  # type: ignore[method-assign]


def model_of(words: list[str]) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    family = next((word for word in words if word in FAMILIES), "bert")
    # Nine or ten batches in an epoch: of three windows of three, and then one of one.
    model, rows = example(family, ROWS * (10 if "ragged" in words else 9))
    without_dropout(model)  # it would differ between one process and two
    if "routed" in words:
        torch.manual_seed(3)
        model.classifier = Routed(model)
    if "lora" in words:
        torch.manual_seed(2)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"))
    return model, rows


class Routed(torch.nn.Module):
    """Two heads, each for some of the rows: a process may have rows of one of them only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        size, labels = model.classifier.in_features, model.classifier.out_features
        self.heads = torch.nn.ModuleList(torch.nn.Linear(size, labels) for _ in range(2))
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self.route = kwargs["input_ids"][:, 0] % 2

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = [(self.route == i).nonzero()[:, 0] for i in range(2)]
        used = [(rows, head(hidden[rows])) for rows, head in zip(parts, self.heads, strict=True) if len(rows)]
        order = torch.cat([rows for rows, _ in used]).argsort()
        return torch.cat([logits for _, logits in used])[order]


def config_of(words: list[str]) -> Any:  # noqa: PLR0911
    for word in SUBSETS.keys() & set(words):
        return MultirateConfig.random_subsets(*SUBSETS[word], turns="fixed")
    if "plain" in words or "copies" in words:
        return CopiesConfig((1, 2), turns="fixed") if "copies" in words else None
    settings: dict[str, Any] = {"check_ranks_every": 1} if "check" in words else {}
    settings |= {"head_lr_scale": 10.0, "lr_decay": 0.8} if "rates" in words else {}
    if "headstart" in words:
        settings |= {"head_start": 4, "head_start_steps": 20, "head_start_lr": None if "chosen" in words else 1e-2}
    if "memory" in words or "disk" in words:
        settings |= {"activation_cache": "memory" if "memory" in words else "disk", "activation_cache_gb": 0.05}
    if "still" in words:  # what the callback of `reference` comes to
        settings |= {"drift_factor": 0.0, "inactive_forward": "train"}
        settings["group_fn"] = lambda name, _: "fast" if is_fast(name) else None
        return MultirateConfig(
            (RateGroup("fast", (), 1), RateGroup("slow", ".*", PERIOD, idle="drift")), **settings, turns="fixed"
        )
    if "auto" in words:
        return MultirateConfig.auto(1.5, max_period=4, turns="fixed", **settings)
    if "ladder" in words:
        return MultirateConfig.ladder([1, 2, PERIOD], idle="drift", **settings, turns="fixed")
    if "stages" in words:
        fast, slow = RateGroup("fast", "last:1"), RateGroup("slow", ".*", "never")
        later = MultirateConfig.ladder([1, 2, PERIOD], idle="drift", **settings, turns="fixed")
        return MultirateConfig.stages([(0.25, MultirateConfig([fast, slow], **settings)), (1.0, later)])
    if "never" in words:
        periods = [1, PERIOD, "never"] if "refreshed" in words else [1, "never"]
        return MultirateConfig.ladder(periods, **settings, turns="fixed")
    if "middle" in words:  # what is fast is no suffix
        groups = (RateGroup("fast", r"layer\.[12]\.|classifier", 1), RateGroup("slow", ".*", PERIOD, idle="drift"))
        return MultirateConfig(groups, **settings, turns="fixed")
    period = PERIOD + RANK if "disagree" in words else PERIOD
    return MultirateConfig.two_rate(
        "last:1", period, "long_step" if "longstep" in words else "drift", **settings, turns="fixed"
    )


def settings_of(words: list[str], wrapper: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": ROWS // WORLD,
        "max_steps": LONG if "long" in words else SHORT,
        "average_tokens_across_devices": False,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "bf16": "bf16" in words,
        "gradient_accumulation_steps": 3 if "gas3" in words else 1,
        "max_grad_norm": 0.0 if "noclip" in words else 0.1,
        "ddp_find_unused_parameters": "unused" in words,
    }
    if "checkpointing" in words or "reentrant" in words:
        kwargs = {"use_reentrant": "reentrant" in words}
        settings |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
    if wrapper == "fsdp2":
        kind = "SHARDED_STATE_DICT" if "sharded" in words else "FULL_STATE_DICT"
        wraps = {
            "version": 2,
            "transformer_layer_cls_to_wrap": ["BertLayer"],
            "state_dict_type": kind,
        }
        settings |= {"fsdp": True, "fsdp_config": {**wraps, "reshard_after_forward": "whole" not in words}}
    if "save" in words:
        settings |= {"save_strategy": "steps", "save_steps": SAVED}
    if "evaluate" in words:
        settings |= {"eval_strategy": "steps", "eval_steps": 3}
    return settings


def trainer_of(words: list[str], wrapper: str, folder: Path) -> Any:
    model, rows = model_of(words)
    args = arguments(folder, **settings_of(words, wrapper))
    optimizer = next((OPTIMIZERS[word] for word in words if word in OPTIMIZERS), OPTIMIZERS["adamw"])
    common: dict[str, Any] = {"model": model, "args": args, "train_dataset": rows, "eval_dataset": rows[:4]}
    common["optimizer_cls_and_kwargs"] = optimizer
    config = config_of(words)
    if isinstance(config, CopiesConfig):
        trainer: Any = AveragedCopiesTrainer(**common, copies=config)
    else:
        trainer = Trainer(**common) if config is None else MultirateTrainer(**common, multirate=config)
    # `Trainer` multiplies a loss that is a mean by the number of processes.
    trainer.model_accepts_loss_kwargs = False
    if "drop" in words:
        trainer.add_callback(reference(lambda name: not is_fast(name), PERIOD))
    wraps = {key: value for word in words for key, value in WRAPS.get(word, {}).items()}
    if wraps:
        wrap_with(trainer, wraps)
    return trainer


def is_fast(name: str) -> bool:
    """What is at the top of BERT and of ResNet."""
    return any(part in name for part in ("layer.3.", "pooler", "classifier", "stages.1"))


class Nudge(TrainerCallback):
    """Changes a bit of one weight in the last process, after the sixth step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if RANK == WORLD - 1 and state.global_step == SAVED:
            with torch.no_grad():
                weight = kwargs["model"].classifier.weight
                weight[0, 0] = torch.nextafter(weight[0, 0], weight[0, 0] + 1)


class Death(TrainerCallback):
    """Kills the last process after eight steps, once: the second start finds a checkpoint of six."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and RANK == WORLD - 1 and state.global_step == SAVED + 2:
            os._exit(9)


def wrap_with(trainer: Any, settings: dict[str, Any]) -> None:
    """Have Accelerate hand ``settings`` to DDP that have no field in `TrainingArguments`."""
    ordinary = trainer._wrap_model

    def wrap(*args: Any, **kwargs: Any) -> Any:
        model = ordinary(*args, **kwargs)
        if WORLD > 1:
            vars(trainer.accelerator.ddp_handler).update(settings)
        return model

    trainer._wrap_model = wrap


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    values = model.state_dict()
    return {name: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for name, v in values.items()}


def run(case: str, wrapper: str, folder: Path, checkpoint: str | None) -> dict[str, Any]:
    trainer = trainer_of(case.split("-"), wrapper, folder / case)
    traffic = Traffic()
    if "bytes" in case:
        trainer.add_callback(traffic)
    if "nudged" in case:
        trainer.add_callback(Nudge())
    if "dies" in case:
        trainer.add_callback(Death())
        checkpoint = get_last_checkpoint(str(folder / case)) if Path(folder, case).is_dir() else None
    if "partial" in case and RANK:  # a machine whose copy of the checkpoint is not complete
        complete, checkpoint = checkpoint, str(folder / "partial")
        shutil.copytree(str(complete), checkpoint, ignore=shutil.ignore_patterns("multirate*"))
    before = {name: v.detach().clone() for name, v in trainer.model.state_dict().items()}
    trainer.train(resume_from_checkpoint=checkpoint)
    wrappers = {kind.__name__ for module in trainer.model_wrapped.modules() for kind in type(module).__mro__}
    return {
        "weights": whole(trainer.model),
        "before": before,
        "wrapper": sorted(wrappers & {"DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel"}),
        "traffic": traffic.steps,
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def wrapped_of(words: list[str], model: torch.nn.Module) -> torch.nn.Module:
    """By hand, as loops of one's own do it."""
    if "tied" in words:  # DDP is told one of the names only, and reduces the parameter by the other
        model.bert.pooler.dense.weight = model.bert.encoder.layer[3].attention.output.dense.weight
        ignored = "bert.encoder.layer.3.attention.output.dense.weight"
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [ignored])
    if WORLD == 1:
        return model
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    if "several" in words:
        model.classifier = DistributedDataParallel(model.classifier)
    model.bert.embeddings.requires_grad_("thawed" not in words)
    wrapped = DistributedDataParallel(model)
    model.bert.embeddings.requires_grad_(True)
    return torch.compile(wrapped, backend="eager") if "compiled" in words else wrapped


def windows(words: list[str]) -> dict[str, Any]:
    """Accumulation by Accelerate in a loop of one's own: ``begin_step`` before each micro-batch, inside or outside."""
    model, rows = model_of(words)
    kind, settings = OPTIMIZERS["sgd"]
    wraps = DistributedDataParallelKwargs(find_unused_parameters="unused" in words, static_graph="static" in words)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, kwargs_handlers=[wraps])
    wrapped, optimizer = accelerator.prepare(model, kind(model.parameters(), **settings))
    step, rests = 0, []
    with Multirate(config_of(words)).attach(wrapped, optimizer) as multirate:
        for i in range(4 * PERIOD):
            mine = rows[i % 9 * ROWS :][:ROWS][RANK::WORLD]
            batch = {key: torch.stack([row[key] for row in mine]) for key in mine[0]}
            if "before" in words:
                multirate.begin_step(step)
            with accelerator.accumulate(wrapped):
                if "before" not in words:
                    multirate.begin_step(step)
                accelerator.backward(wrapped(**batch).loss)
                if accelerator.sync_gradients:
                    multirate.synchronize()
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    step += 1
                optimizer.step()
                optimizer.zero_grad()
            rests.append(WORLD > 1 and not wrapped.require_backward_grad_sync)
    return {"weights": whole(model), "rests": rests}


def loop(words: list[str]) -> dict[str, Any]:
    """A loop of one's own, with DistributedDataParallel put around the model by hand."""
    model, rows = model_of(words)
    wrapped = wrapped_of(words, model)
    graphs: list[int] = []
    counters.clear()
    kind, settings = OPTIMIZERS["sgd"]
    optimizer = kind(model.parameters(), **settings)
    with ExitStack() as stack:
        multirate = Multirate(config_of(words)).attach(model if "inside" in words else wrapped, optimizer)
        stack.enter_context(multirate)
        if "join" in words:
            stack.enter_context(Join([wrapped]))
        for step in range(2 * PERIOD):
            mine = rows[step * ROWS :][:ROWS][RANK::WORLD]
            batch = {key: torch.stack([row[key] for row in mine]) for key in mine[0]}
            if "last" in words:
                multirate.set_step(step)
                with multirate.micro_batch(last=True):
                    loss = wrapped(**batch).loss
                    # Twice at fast-only steps, always or from the sixth on; DDP itself allows it at none.
                    if step % PERIOD and (("twice" in words) or ("late" in words and step > PERIOD)):
                        (loss / 2).backward(retain_graph=True)
                        loss = loss / 2
                    loss.backward()
            else:
                for _ in range(2 if "early" in words else 1):
                    multirate.begin_step(step)
                    wrapped(**batch).loss.backward()
                    if "early" in words:
                        multirate.synchronize()
                if "forgets" not in words:
                    multirate.synchronize()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            graphs.append(counters["stats"]["unique_graphs"])
    return {"weights": whole(model), "graphs": graphs}


def main() -> None:
    folder, wrapper, cases = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.set_num_threads(1)
    if wrapper == "fsdp2":
        shard_on_cpu()
    buckets.BUCKET_BYTES = 5000  # of the fast part of the models here that is several buckets
    for word in cases:
        case, _, checkpoint = word.partition("@")
        try:
            words = case.split("-")
            if "loop" in words:
                result = windows(words) if "window" in words else loop(words)
            else:
                result = run(case, wrapper, folder, checkpoint or None)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        torch.save(result, folder / f"{case}-{RANK}.pt")
    # A wrapper in a cycle of references holds the group beyond its end, and gloo aborts then.
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
