"""Muon for the matrices of the blocks, and AdamW for all else, in one optimizer.

Whether drift of slow parameters loses less under Muon than under AdamW is an open question: Muon is said to bear old
gradients that AdamW does not. The step of a matrix has the root mean square of one of AdamW (``match_rms_adamw`` of
`torch.optim.Muon`), so that both take the learning rates of one grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import TrainingArguments

from hf_multirate import MultirateConfig, multirate_parameter_groups
from hf_multirate.model.stacks import find_whole_stack


class MuonAndAdamW(Optimizer):
    """Two optimizers that share their parameter groups with this one.

    Args:
        groups: Parameter groups. Each becomes up to two: its matrices of blocks, and the rest.
        matrices: The parameters that Muon updates, of two dimensions.
        lr: Learning rate of groups without one.
        weight_decay: Weight decay of groups without one.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0
    ) -> None:
        chosen, listed = {id(p) for p in matrices}, list(groups)
        self.muon = Muon(_part(listed, chosen, inside=True), lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(_part(listed, chosen, inside=False), lr, weight_decay=weight_decay)
        super().__init__([p for group in listed for p in group["params"]], {"lr": lr})
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    @property
    def state(self) -> Any:
        """State of both."""
        return {**self.muon.state, **self.adamw.state}

    @state.setter
    def state(self, value: Any) -> None:
        """`torch.optim.Optimizer` sets it when it is made."""

    def state_dict(self) -> dict[str, Any]:
        """Those of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load those of both. Loading makes new groups, and schedules have to reach them."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step both."""
        del closure
        self.muon.step()
        self.adamw.step()


def _part(groups: Iterable[dict[str, Any]], chosen: set[int], *, inside: bool) -> list[dict[str, Any]]:
    parts = [{**group, "params": [p for p in group["params"] if (id(p) in chosen) == inside]} for group in groups]
    return [part for part in parts if part["params"]]


def matrices_of_blocks(model: nn.Module) -> list[nn.Parameter]:
    """Weights of two dimensions in the blocks of ``model``: not embeddings, and not the head."""
    stack = find_whole_stack(model)
    blocks = (stack.module.get_submodule(name) for name in stack.blocks)
    return [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]


def muon(model: nn.Module, args: TrainingArguments, config: MultirateConfig) -> MuonAndAdamW:
    """An optimizer for ``model`` with the learning rates of ``config``."""
    groups = multirate_parameter_groups(model, config, args.learning_rate, args.weight_decay)
    return MuonAndAdamW(groups, matrices_of_blocks(model), args.learning_rate, args.weight_decay)
