"""Find out, before training, whether an optimizer leaves a parameter without a gradient alone.

Multirate training rests on it: an idle parameter has ``grad = None``, and whatever else moves,
decays or counts it as a step would do so behind our back.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer


DURING_BACKWARD = (
    "does not move parameters in step(): it updates them during backward, where nothing can follow. Use AdamW or SGD, "
    "or plain training (period 1)."
)


def check_optimizer(optimizer: Optimizer, *, idles: bool = True) -> None:
    """Step a copy of ``optimizer`` on two small parameters of which one has no gradient.

    The copy shares settings, not parameters or state; the optimizer itself is not stepped.

    Args:
        optimizer: The optimizer.
        idles: Whether there will be parameters without a gradient, which it then has to leave alone.

    Raises:
        ValueError: the optimizer moves parameters without a gradient, swaps weights between training and
            evaluation, has no learning rate, or does not move parameters in ``step()`` at all.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, LayerWiseDummyOptimizer):
        raise ValueError(f"a layer-wise optimizer {DURING_BACKWARD}")
    if callable(getattr(type(optimizer), "train", None)) and callable(getattr(type(optimizer), "eval", None)):
        raise ValueError(
            f"optimizer {name} swaps the weights between train() and eval(), so what it moves is not "
            "what is evaluated. Use AdamW or SGD, or plain training (period 1)."
        )
    if idles:
        require_rates(optimizer, "how far idle groups drift is not known")
    for group in optimizer.param_groups:
        if group["params"]:
            _check_group(optimizer, group, name, idles)


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


def _check_group(optimizer: Optimizer, group: dict[str, Any], name: str, idles: bool) -> None:
    like = group["params"][0]
    live, idle = (_small_parameter(like) for _ in range(2))
    probe = _copy_of(optimizer, {**group, "params": [live, idle]})
    start = live.detach().clone()
    _step(probe, name, live, idle)
    before = idle.detach().clone()
    live.grad, idle.grad = torch.ones_like(live), None
    _step(probe, name, live)
    if idles and not torch.equal(idle, before):
        raise ValueError(
            f"optimizer {name} moves parameters whose gradient is None: idle groups would move or decay twice. Use an "
            "optimizer that skips them, such as AdamW or SGD, or plain training (period 1)."
        )
    if torch.equal(live, start):
        raise ValueError(f"optimizer {name} {DURING_BACKWARD}")


def _step(probe: Optimizer, name: str, *parameters: Tensor) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        probe.step()
    except NotImplementedError as error:
        raise ValueError(f"optimizer {name} {DURING_BACKWARD}") from error
    except Exception as error:
        raise ValueError(
            f"optimizer {name} could not be tried on two small parameters, so whether it leaves those without a "
            f"gradient alone is not known ({type(error).__name__}: {error}). Use AdamW or SGD, or plain "
            "training (period 1)."
        ) from error


def _small_parameter(like: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(4, 4, dtype=like.dtype, device=like.device))


def _copy_of(optimizer: Optimizer, group: dict[str, Any]) -> Optimizer:
    """An optimizer of the same class and settings with a single group, empty state and no hooks."""
    probe = object.__new__(type(optimizer))
    hooks: dict[str, Any] = {key: OrderedDict() for key in vars(optimizer) if key.endswith("_hooks")}
    # A scheduler replaces ``step`` on the instance by a counter bound to the original optimizer.
    settings = {key: value for key, value in vars(optimizer).items() if key != "step"}
    vars(probe).update({**settings, **hooks, "defaults": dict(optimizer.defaults)})
    # A warm-up may start at learning rate zero, where nothing would move or decay.
    rates = {"lr": 0.1} if not isinstance(group["lr"], Tensor) else {"lr": torch.full_like(group["lr"], 0.1)}
    decay = {"weight_decay": 0.1} if "weight_decay" in group else {}
    copied = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
    probe.param_groups = [{**copied, **rates, **decay, "params": group["params"]}]
    # APOLLO leaves a seed in the state of each parameter when it is made.
    seeded = {"seed": 0} if any("seed" in state for state in optimizer.state.values()) else {}
    probe.state = defaultdict(dict, {parameter: dict(seeded) for parameter in group["params"]} if seeded else {})
    return probe
