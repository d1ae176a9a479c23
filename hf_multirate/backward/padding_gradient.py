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

WATCH_EVERY = 8
"""Batches of kept rows of which one is watched."""


class PaddingGradient:
    """Watches the gradient at padded positions, in the whole run: a loss may read them later, as by a new term.

    Attributes:
        read: Whether the loss reads padded positions; None before the first batch with padding has run backward.

    Args:
        trained: The parameters above the kept outputs that get a gradient at a full step.
    """

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        self._trained = trained
        self._hits = 0
        self.read: bool | None = None

    def unknown(self, rows: Rows) -> bool:
        """Whether ``rows`` have padding, of which no batch has shown whether the loss reads it."""
        return self.read is None and _has_padding(rows)

    def watch(self, output: Tensor, rows: Rows) -> Tensor:
        """``output`` of a pass of the prefix, which requires a gradient if this pass shows whether padding is read.

        A step at which a trained group is idle shows nothing: its backward does not reach the output.
        """
        if self.read or not (torch.is_grad_enabled() and all(p.requires_grad for p in self._trained)):
            return output
        if not _has_padding(rows):
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
                self.read = self.read or False

        output = output.requires_grad_()
        output.register_hook(see)  # type: ignore[no-untyped-call]
        return output

    def watch_hit(self, output: Tensor, rows: Rows) -> Tensor:
        """As `watch`, for one in `WATCH_EVERY` batches of kept rows: each takes a few percent of a step."""
        if not torch.is_grad_enabled():
            return output
        self._hits += 1
        return self.watch(output, rows) if self._hits % WATCH_EVERY == 1 else output

    def set_read(self) -> None:
        """The loss reads padded positions. The first call logs a warning."""
        if not self.read:
            logger.warning(
                "the model or its loss reads padded positions, as the loss of extractive question answering does. So "
                "the activation cache keeps rows with their padding, and finds a row again only with the same "
                "padding. Pad all rows to one length, on the right.%s",
                f" Up to {WATCH_EVERY} batches before this one had zeros there." if self._hits else "",
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
