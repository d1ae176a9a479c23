"""Freeze the groups with period ``"never"`` of a model, and restore them."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from hf_multirate.model.never import switch_off, switch_on
from hf_multirate.model.unwrap import canonical_parameters


WRAPPED_TOO_EARLY = (
    "the rate groups {groups} have period 'never', but their parameters were trainable when the model was wrapped in "
    "DistributedDataParallel, which waits for their gradients. Call freeze_never(model) of the controller first."
)


class FrozenGroups:
    """The model whose parameters are frozen, if any.

    Attributes:
        model: The model, without wrappers.
        until_detach: Whether `hf_multirate.Multirate.detach` restores the parameters.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.until_detach = False

    def freeze(self, model: nn.Module, names: Collection[str]) -> bool:
        """Switch ``requires_grad`` off for the parameters ``names``; those of another model are restored first.

        Returns:
            Whether a parameter was on.
        """
        if self.model is not model:
            self.restore()
        if not names:
            return False
        self.model = model
        parameters = canonical_parameters(model)
        return switch_off(parameters[name] for name in names)

    def restore(self) -> None:
        """Switch ``requires_grad`` on again."""
        if self.model is not None:
            switch_on(self.model.parameters())
        self.model, self.until_detach = None, False

    def detach(self) -> None:
        """As `restore`, if the parameters are frozen until `hf_multirate.Multirate.detach`."""
        if self.until_detach:
            self.restore()
