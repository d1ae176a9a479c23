"""Find out, before training, whether an optimizer works with rate groups.

Multirate training rests on two things. An idle parameter has ``grad = None``, and an optimizer that moves, decays or
counts it all the same would do so unnoticed. And idle parameters drift, or live ones take longer steps: the optimizer
has to take over a change of the weights that it has not made.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_multirate.optim.optimizer_trial import ROUNDS, Trial, tried
from hf_multirate.optim.unchanged import TouchedError, untouched


INSTEAD = "Use AdamW or SGD, or standard training (period 1)."
DURING_BACKWARD = (
    "does not move parameters in step(): it updates them during backward, where nothing can follow, or reaches them "
    f"through a global variable. {INSTEAD}"
)
SOME_STEPS = (
    "moves parameters at some calls of step() only, as one that accumulates gradients itself: which gradients count "
    f"is not known. Use gradient_accumulation_steps and an optimizer that moves at every step. {INSTEAD}"
)
CHANGE = 16.0
"""What is added to the weights of a copy, to see whether it is still there some steps later."""


def check_optimizer(
    optimizer: Optimizer, *, idles: bool = True, changes: bool = False, exchanges: bool = False
) -> None:
    """Step a copy of ``optimizer`` with all gradients, and with some of them missing.

    The copy has small copies of the parameters, see `hf_multirate.optim.optimizer_copy`. The optimizer is not
    stepped, and nothing that it trains or holds is changed.

    Args:
        optimizer: The optimizer.
        idles: Whether there will be parameters without a gradient, which it then has to leave alone.
        changes: Whether weights will be changed by something else than the optimizer.
        exchanges: Whether its state will be changed too.

    Raises:
        ValueError: the optimizer moves parameters without a gradient or fails where one is missing, undoes changes of
            the weights, swaps weights between training and evaluation, has no learning rate, needs a closure, or does
            not move parameters in ``step()`` at all.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, LayerWiseDummyOptimizer):
        raise ValueError(f"a layer-wise optimizer {DURING_BACKWARD}")
    if callable(getattr(type(optimizer), "train", None)) and callable(getattr(type(optimizer), "eval", None)):
        raise ValueError(
            f"optimizer {name} swaps the weights between train() and eval(), so what it moves is not "
            f"what is evaluated. {INSTEAD}"
        )
    if idles:
        require_rates(optimizer, "how far idle groups drift is not known")
    with untouched(optimizer):
        trial = _first_step(optimizer, name)
        if idles:
            _check_idle(trial, name)
        if changes:
            _check_changes(trial, name)
        if exchanges and not trial.keeps_state():
            raise ValueError(
                f"optimizer {name} keeps its state in optimizers that it holds, where random subsets and copies of "
                f"the model cannot exchange it. {INSTEAD}"
            )


def require_rates(optimizer: Optimizer, otherwise: str) -> None:
    """Refuse an optimizer whose groups have no learning rate to go by.

    Args:
        optimizer: The optimizer.
        otherwise: What cannot be done without one, for the error.

    Raises:
        ValueError: a group has none, or its steps do not follow it, as with ``relative_step`` of Adafactor.
    """
    for group in optimizer.param_groups:
        if group.get("lr") is None or group.get("relative_step"):
            raise ValueError(
                f"optimizer {type(optimizer).__name__} has no learning rate in its groups or finds its own step sizes "
                f"(relative_step), so {otherwise}. Give it a learning rate and relative_step=False, or use AdamW or "
                "SGD."
            )


def _first_step(optimizer: Optimizer, name: str) -> Trial:
    try:
        trial = tried(optimizer)
    except NotImplementedError as error:
        raise ValueError(f"optimizer {name} {DURING_BACKWARD}") from error
    except TouchedError as error:
        raise ValueError(
            f"optimizer {name} could not be tried: its step() writes to tensors that a copy of it still shares, "
            f"such as those of a global variable. {INSTEAD}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"optimizer {name} {_wants(optimizer)} ({type(error).__name__}: {error}). {INSTEAD}"
        ) from error
    if trial.unmoved():
        raise ValueError(f"optimizer {name} {SOME_STEPS if _moves_later(trial) else DURING_BACKWARD}")
    return trial


def _moves_later(trial: Trial) -> bool:
    try:
        for _ in range(ROUNDS):
            trial.step([parameter for group in trial.groups for parameter in group])
    except Exception:  # it was to be refused anyway
        return False
    return not trial.unmoved()


def _wants(optimizer: Optimizer) -> str:
    """Why its first step failed, in words."""
    try:
        tried(optimizer, closure=lambda: torch.tensor(1.0, requires_grad=True))
    except Exception:  # with a closure it fails too
        return (
            "could not be tried on copies of its parameters, so whether it leaves those without a gradient alone is "
            "not known"
        )
    return (
        "needs a closure, which runs forward and backward inside of step(), where nothing is pruned; Trainer passes "
        "none"
    )


def _check_idle(trial: Trial, name: str) -> None:
    for live in trial.rounds():
        before = trial.values()
        try:
            trial.step(live)
        except Exception as error:
            raise ValueError(
                f"optimizer {name} fails where some parameters have no gradient, as at every fast step: it expects "
                f"all of them, or those of each pair ({type(error).__name__}: {error}). {INSTEAD}"
            ) from error
        idle = before.keys() - set(live)
        if not all(_same(parameter, before[parameter]) for parameter in idle):
            raise ValueError(
                f"optimizer {name} moves parameters whose gradient is None: idle groups would move or decay twice. "
                "Use an optimizer that skips them, such as AdamW or SGD, or standard training (period 1)."
            )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, of which some may be NaN: weights that nothing reads may be."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _check_changes(trial: Trial, name: str) -> None:
    trial.set("lr", 1e-3)
    trial.set("weight_decay", 0.0)
    live = [parameter for alike in trial.samples() for parameter in alike]
    with torch.no_grad():
        for parameter in live:
            parameter.add_(CHANGE)
    changed = trial.values()
    for _ in range(ROUNDS):
        trial.step(live)
    if any(float((p.detach() - changed[p]).abs().max()) > CHANGE / 8 for p in live):
        raise ValueError(
            f"optimizer {name} undoes a change of the weights that it has not made, since it keeps copies of them "
            "(master weights, slow weights). Drift, idle='long_step', random subsets, lr_scale and copies of the "
            "model change them. Use idle='freeze', or AdamW, SGD or standard training (period 1)."
        )
