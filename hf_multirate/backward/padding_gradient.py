"""Gradient at padded positions: whether the loss reads them, so that rows have to be kept with their padding.

Attention gives padded positions the weight 0, but a head or a loss may read them: the softmax of extractive question
answering runs over all positions, a mean may ignore the mask, and with padding on the left a padded position predicts
the first token. The loss reads a padded position if it has a gradient there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_multirate.backward.row_keys import Rows


logger = logging.get_logger(__name__)

TOLERANCE = 1e-6
"""Largest gradient at padded positions, as a share of the largest one at tokens, that counts as 0."""


class PaddingGradient:
    """Watches the gradient of kept outputs until one batch with padding has shown whether the loss reads it.

    Attributes:
        read: Whether the loss reads padded positions; None as long as it is not known.

    Args:
        trained: The parameters above the kept outputs that get a gradient at a full step.
    """

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        self._trained = trained
        self.read: bool | None = None

    def unknown(self, rows: Rows) -> bool:
        """Whether ``rows`` have padding that the loss may read."""
        return self.read is None and _has_padding(rows)

    def watch(self, output: Tensor, rows: Rows) -> Tensor:
        """``output``, which requires a gradient if this pass shows whether the loss reads the padding of ``rows``.

        A step at which a trained group is idle shows nothing: its backward does not reach the output.
        """
        if not (self.unknown(rows) and torch.is_grad_enabled() and all(p.requires_grad for p in self._trained)):
            return output
        padded = _padded_positions(rows).to(output.device)

        def see(gradient: Tensor) -> None:
            sizes = gradient.abs().flatten(2).amax(dim=2)
            largest = sizes.max()
            if not (largest > 0 and torch.isfinite(largest)):
                return  # a later batch shows it
            if (sizes[padded] > TOLERANCE * largest).any():
                self.set_read()
            else:
                self.read = False

        output = output.requires_grad_()
        output.register_hook(see)  # type: ignore[no-untyped-call]
        return output

    def set_read(self) -> None:
        """The loss reads padded positions. The first call logs a warning."""
        if not self.read:
            logger.warning(
                "the model or its loss reads padded positions, as the loss of extractive question answering does. So "
                "the activation cache keeps rows with their padding, and finds a row again only with the same "
                "padding. Pad all rows to one length, on the right."
            )
        self.read = True


def _has_padding(rows: Rows) -> bool:
    return rows.places is not None and bool(_padded_positions(rows).any())


def _padded_positions(rows: Rows) -> Tensor:
    """A mask of shape (rows, positions)."""
    padded = torch.ones(len(rows.keys), rows.width, dtype=torch.bool)
    for row, place in enumerate(rows.places or ()):
        padded[row, place] = False
    return padded
