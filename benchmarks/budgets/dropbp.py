"""DropBP (Woo et al., NeurIPS 2024, arXiv 2402.17812): backward skips residual branches that are drawn at each step.

Forward is unchanged. The gradient passes a skipped branch through its residual only, and parameters of the branch get
no gradient at that step. Unlike the paper, all branches have one drop rate, and a step skips a fixed number of them:
the rate is the same for each branch, and all steps cost the same. Written from the paper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer


class DropBP(TrainerCallback):
    """Draws the skipped branches at each step.

    Args:
        model: A BERT or a ResNet.
        rate: Share of branches that a step skips.
        seed: Seed of the draws. They take no numbers from the generator of torch.

    Raises:
        NotImplementedError: the model has no residual branches that are known here.
    """

    def __init__(self, model: nn.Module, rate: float, seed: int) -> None:
        self.branches = residual_branches(model)
        self.number = round(rate * len(self.branches))
        self.dropped: set[int] = set()
        self._generator = torch.Generator().manual_seed(seed)
        for index, module in enumerate(self.branches.values()):
            module.register_forward_hook(self._hook(index))

    @property
    def kind(self) -> str:
        """Kind of all steps."""
        return f"{self.number} of {len(self.branches)} skipped"

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the branches that this step skips."""
        order = torch.randperm(len(self.branches), generator=self._generator)
        self.dropped = set(order[: self.number].tolist())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Skip nothing outside of steps."""
        self.dropped = set()

    def _hook(self, index: int) -> Any:
        def skip(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            return output.detach() if index in self.dropped and module.training else None

        return skip


def residual_branches(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose output is added to a residual, by name, in the order of the forward pass.

    Raises:
        NotImplementedError: there are none that are known here.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, BertLayer):
            found[f"{name}.attention"] = module.attention.output.dropout
            found[f"{name}.output"] = module.output.dropout
        elif isinstance(module, (ResNetBasicLayer, ResNetBottleNeckLayer)):
            found[f"{name}.layer"] = module.layer
    if not found:
        raise NotImplementedError(f"DropBP knows BERT and ResNet, got {type(model).__name__}.")
    return found
