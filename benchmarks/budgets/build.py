"""From a contender to a Trainer: all run in `MultirateTrainer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from benchmarks.accuracy.train_one import SameOrder
from benchmarks.accuracy.trainers import BUILDERS as ACCURACY_BUILDERS
from benchmarks.budgets.contenders import Contender
from benchmarks.budgets.dropbp import DropBP
from benchmarks.budgets.muon import muon
from benchmarks.budgets.vcas_control import VCAS
from hf_multirate import MultirateTrainer
from hf_multirate.config.stages import stage_ends


@dataclass(frozen=True)
class Built:
    """A trainer, and the kinds of its steps.

    Attributes:
        trainer: The trainer.
        kind: Returns the kind of the step that has just been taken.
        aside: Kind, process seconds and wall seconds of what came between steps so far; it grows while training.
    """

    trainer: MultirateTrainer
    kind: Callable[[], str]
    aside: list[tuple[str, float, float]]


def build(
    contender: Contender,
    model: nn.Module,
    args: TrainingArguments,
    *,
    fixed_turns: bool = False,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Built:
    """A Trainer for ``model``.

    Args:
        contender: The contender.
        model: The model with its new head.
        args: The training arguments.
        fixed_turns: Whether turns are fixed, to time all kinds of steps in one cycle.
        options: Options that replace those of the setting, to time one kind of step.
        **settings: Other arguments of Trainer.
    """
    setting, config = contender.setting, contender.config
    chosen = {**setting.build, **(options or {})}
    callback: VCAS | DropBP | None = None
    if setting.family == "lora":
        model, _ = ACCURACY_BUILDERS["lora"](model, args, **chosen)
    elif setting.kind == "vcas":
        callback = VCAS(model, seed=args.seed, **chosen)
    elif setting.kind == "dropbp":
        callback = DropBP(model, seed=args.seed, **chosen)
    elif "dropout" in chosen:
        set_dropout(cast(PreTrainedModel, model), **chosen)
    if setting.muon:
        settings["optimizers"] = (muon(model, args, config), None)
    config = replace(config, turns="fixed") if fixed_turns and not setting.parts else config
    trainer = MultirateTrainer(model, args, multirate=config, multirate_record=False, **settings)
    trainer.remove_callback(PrinterCallback)
    added: list[TrainerCallback] = [SameOrder(), *([callback] if callback else [])]
    for one in added:
        trainer.add_callback(one)
    if setting.parts:
        return Built(trainer, lambda: _kind_in_stage(contender, trainer), [])
    if contender.cached:
        return Built(trainer, CachedKind(trainer), [])
    if callback is None:
        return Built(trainer, lambda: live_groups(trainer), [])
    return Built(trainer, lambda: callback.kind, callback.aside if isinstance(callback, VCAS) else [])


def set_dropout(model: PreTrainedModel, dropout: float | None = None, attention: str | None = None) -> None:
    """Set the probability of all dropout of ``model``, and its attention; None leaves them as they are.

    Without dropout, the fused attention of torch takes a third more time on a processor than the eager one.
    """
    if attention is not None:
        model.set_attn_implementation(attention)
    for module in model.modules() if dropout is not None else ():
        if isinstance(module, nn.Dropout):
            module.p = dropout


def live_groups(trainer: MultirateTrainer) -> str:
    """Names of the groups with a gradient at the present step."""
    controller = trainer.multirate
    return kind_of_groups([group.name for group in controller.groups], controller.schedule.live(controller.step or 0))


def kind_of_groups(names: list[str], live: tuple[int, ...]) -> str:
    """The kind of a step with these live groups."""
    return " + ".join(names[i] for i in live)


WRITTEN, KEPT = "written", "kept"


class CachedKind:
    """The kind of the present step with an activation cache: whether the frozen prefix ran, or its output was kept."""

    def __init__(self, trainer: MultirateTrainer) -> None:
        self._trainer = trainer
        self._misses = 0

    def __call__(self) -> str:
        """Called once after each step."""
        cache = self._trainer.multirate.activation_cache
        before, self._misses = self._misses, 0 if cache is None else cache.counts.misses
        return cached_kind(live_groups(self._trainer), kept=self._misses == before)


def cached_kind(groups: str, *, kept: bool) -> str:
    """The kind of a step with these live groups, whose rows were kept or are written."""
    return f"{groups}, {KEPT if kept else WRITTEN}"


IN_STAGE = ": "
"""Between the cost of a stage and the live groups of a step."""


def staged_kinds(contender: Contender, steps: int) -> list[str]:
    """The kind of each step of a contender with stages in a run of ``steps`` steps."""
    kinds = []
    stages = zip(contender.config.stage_list, contender.part_costs, pairwise(_ends(contender, steps)), strict=True)
    for stage, cost, (begin, end) in stages:
        names = [group.name for group in stage.config.groups]
        lives = map(stage.config.schedule.live, range(end - begin))
        kinds += [cost + IN_STAGE + kind_of_groups(names, live) for live in lives]
    return kinds


def _kind_in_stage(contender: Contender, trainer: MultirateTrainer) -> str:
    """The kind of the present step, by the stage and the groups of the controller."""
    controller = trainer.multirate
    index = controller.stage - 1
    live = controller.schedule.live((controller.step or 0) - _ends(contender, trainer.args.max_steps)[index])
    return contender.part_costs[index] + IN_STAGE + kind_of_groups([group.name for group in controller.groups], live)


def _ends(contender: Contender, steps: int) -> tuple[int, ...]:
    """Number of steps before each stage, and of the run."""
    return (0, *stage_ends([part.until for part in contender.setting.parts], steps))
