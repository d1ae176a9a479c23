"""Check before training whether an optimizer works with rate groups.

Multirate training has two requirements. First, the optimizer must not update, decay or count a parameter whose
gradient is None, because idle parameters have none. Second, the optimizer must keep changes of the weights that it has
not made itself, because idle parameters drift and some live parameters take longer steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_multirate.optim.optimizer_trial import ROUNDS, Trial, run_trial
from hf_multirate.optim.write_guard import ProtectedTensorError, restored_on_exit


ALTERNATIVE = "Use AdamW or SGD, or standard training (period 1)."
DURING_BACKWARD = (
    "does not move parameters in step(). It updates them during backward, or it holds them in a global variable; "
    f"neither can be controlled. {ALTERNATIVE}"
)
SOME_STEPS = (
    "moves parameters at some calls of step() only, e.g. because it accumulates gradients itself. It is unknown which "
    "gradients each update contains. Use gradient_accumulation_steps and an optimizer that moves at every step. "
    f"{ALTERNATIVE}"
)
CHANGE = 16.0
"""Value added to the weights of a copy, to check whether the optimizer keeps a change that it has not made."""


def check_optimizer(
    optimizer: Optimizer, *, idles: bool = True, changes: bool = False, exchanges: bool = False
) -> None:
    """Run steps of a copy of ``optimizer`` with all gradients and with some gradients missing.

    The copy holds small copies of the parameters: see `hf_multirate.optim.optimizer_copy`. The optimizer itself takes
    no step, and its parameters and state do not change.

    Args:
        optimizer: The optimizer.
        idles: Whether some steps leave parameters without a gradient.
        changes: Whether multirate training changes weights outside of the optimizer.
        exchanges: Whether multirate training changes the state of the optimizer.

    Raises:
        ValueError: the optimizer moves parameters without a gradient, fails if a gradient is missing, or undoes
            changes of the weights. Also if it swaps weights between training and evaluation, has no learning rate,
            needs a closure, or does not move parameters in ``step()``.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, LayerWiseDummyOptimizer):
        raise ValueError(f"a layer-wise optimizer {DURING_BACKWARD}")
    if callable(getattr(type(optimizer), "train", None)) and callable(getattr(type(optimizer), "eval", None)):
        raise ValueError(
            f"optimizer {name} swaps the weights between train() and eval(), so the evaluated weights are not the "
            f"trained ones. {ALTERNATIVE}"
        )
    if idles:
        require_rates(optimizer, "how far idle groups drift is unknown")
    with restored_on_exit(optimizer):
        trial = _first_step(optimizer, name)
        if idles:
            _check_idle(trial, name)
        if changes:
            _check_changes(trial, name)
        if exchanges and not trial.keeps_state():
            raise ValueError(
                f"optimizer {name} keeps its state in inner optimizers, but random subsets and averaged copies have "
                f"to change that state. {ALTERNATIVE}"
            )


def require_rates(optimizer: Optimizer, otherwise: str) -> None:
    """Check that every group of ``optimizer`` has a learning rate that scales its steps.

    Args:
        optimizer: The optimizer.
        otherwise: The consequence of a missing learning rate, for the error.

    Raises:
        ValueError: a group has no learning rate, or ignores it, as with ``relative_step`` of Adafactor.
    """
    for group in optimizer.param_groups:
        if group.get("lr") is None or group.get("relative_step"):
            raise ValueError(
                f"optimizer {type(optimizer).__name__} has no learning rate in its groups or finds its own step sizes "
                f"(relative_step), so {otherwise}. Give it a learning rate and relative_step=False, or use AdamW or "
                "SGD."
            )


def require_real_state(state: Mapping[str | None, Tensor], optimizer: Optimizer, reason: str) -> None:
    """Check that state tensors of a parameter have real or complex numbers.

    Args:
        state: The tensors.
        optimizer: Their optimizer.
        reason: What is done with them, for the error.

    Raises:
        ValueError: a tensor has integers, which stand for other numbers, as those of an 8-bit optimizer.
    """
    for key, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(
                f"optimizer {type(optimizer).__name__} keeps its state {key!r} as {tensor.dtype} codes of other "
                f"numbers, but {reason}. Use an optimizer with floating-point state, such as AdamW or SGD."
            )


def _first_step(optimizer: Optimizer, name: str) -> Trial:
    try:
        trial = run_trial(optimizer)
    except NotImplementedError as error:
        raise ValueError(f"optimizer {name} {DURING_BACKWARD}") from error
    except ProtectedTensorError as error:
        raise ValueError(
            f"optimizer {name} could not be checked: step() of its copy writes to tensors that the copy shares with "
            f"the original, such as those in a global variable. {ALTERNATIVE}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"optimizer {name} {_reason_of_failure(optimizer)} ({type(error).__name__}: {error}). {ALTERNATIVE}"
        ) from error
    if trial.unmoved():
        raise ValueError(f"optimizer {name} {SOME_STEPS if _moves_later(trial) else DURING_BACKWARD}")
    return trial


def _moves_later(trial: Trial) -> bool:
    try:
        for _ in range(ROUNDS):
            trial.step([parameter for group in trial.groups for parameter in group])
    except Exception:  # the optimizer is rejected anyway
        return False
    return not trial.unmoved()


def _reason_of_failure(optimizer: Optimizer) -> str:
    """A text on why the first step of ``optimizer`` failed."""
    try:
        run_trial(optimizer, closure=lambda: torch.tensor(1.0, requires_grad=True))
    except Exception:  # it fails with a closure too
        return "failed on copies of its parameters, so it is unknown whether it skips parameters without a gradient"
    return (
        "needs a closure. A closure runs forward and backward inside of step(), where backward cannot be skipped, and "
        "Trainer passes none"
    )


def _check_idle(trial: Trial, name: str) -> None:
    for live in trial.rounds():
        before = trial.values()
        try:
            trial.step(live)
        except Exception as error:
            raise ValueError(
                f"optimizer {name} fails where some parameters have no gradient, as at every fast step. It requires "
                f"all gradients, or both of each pair ({type(error).__name__}: {error}). {ALTERNATIVE}"
            ) from error
        idle = before.keys() - set(live)
        if not all(_same(parameter, before[parameter]) for parameter in idle):
            raise ValueError(
                f"optimizer {name} moves parameters whose gradient is None, so idle groups would move or decay twice. "
                "Use an optimizer that skips them, such as AdamW or SGD, or standard training (period 1)."
            )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, NaN included: unused weights may be NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _check_changes(trial: Trial, name: str) -> None:
    trial.set("lr", 1e-3)
    trial.set("weight_decay", 0.0)
    live = [parameter for parameters in trial.samples() for parameter in parameters]
    with torch.no_grad():
        for parameter in live:
            parameter.add_(CHANGE)
    changed = trial.values()
    for _ in range(ROUNDS):
        trial.step(live)
    if any(float((p.detach() - changed[p]).abs().max()) > CHANGE / 8 for p in live):
        raise ValueError(
            f"optimizer {name} undoes a change of the weights that it has not made, because it keeps its own copies "
            "of them (master weights, slow weights), or its steps grow too fast to tell (Rprop). Drift, "
            "idle='long_step', random subsets, lr_scale and averaged copies change the "
            "weights. Use idle='freeze', or AdamW, SGD or standard training (period 1)."
        )
