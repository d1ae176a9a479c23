"""An experiment: the slow part learns from the samples that matter, of all that were seen since its last gradient.

Forward passes of fast-only steps tell the length of each sample's gradient at the logits. A refresh draws its batch
from the batches of the whole cycle with probabilities in proportion, and weighs each sample with the inverse, so that
the gradient is that of all of them on average. (To take the samples with the highest losses diverges with Adam.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hf_multirate import MultirateTrainer


LEAST = 0.01


class ImportanceTrainer(MultirateTrainer):
    """Multirate training of a classifier, with drawn batches at refreshes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen: list[tuple[dict[str, Tensor], Tensor]] = []
        self._generator = torch.Generator().manual_seed(self.args.seed)
        # The loss is a mean of its own: see compute_loss.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """That of the batch, or of one that is drawn from the cycle that ends."""
        if not (self._training and model.training):
            return super().compute_loss(model, inputs, *args, **kwargs)
        if self.multirate.full and self._seen:
            with torch.no_grad():
                logits = model(**_without_labels(inputs)).logits
            self._seen.append((inputs, lengths(logits, inputs["labels"])))
            inputs, weights = self._drawn(len(inputs["labels"]))
            self._seen = []
        else:
            weights = torch.ones(len(inputs["labels"]))
        logits = model(**_without_labels(inputs)).logits
        if not self.multirate.full:
            self._seen.append((inputs, lengths(logits.detach(), inputs["labels"])))
        losses = nn.functional.cross_entropy(logits, inputs["labels"], reduction="none")
        return (losses * weights).mean()

    def _drawn(self, rows: int) -> tuple[dict[str, Tensor], Tensor]:
        """A batch of ``rows`` from all that was seen, and the weights of its samples."""
        chosen, weights = draw(torch.cat([score for _, score in self._seen]), rows, self._generator)
        batch = {key: _stacked([inputs[key] for inputs, _ in self._seen])[chosen] for key in self._seen[0][0]}
        return batch, weights


def draw(scores: Tensor, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples in proportion to ``scores``, and weights with which the mean over them is that over all on average."""
    chances = scores / scores.sum()
    chosen = torch.multinomial(chances, rows, replacement=True, generator=generator)
    return chosen, 1.0 / (len(scores) * chances[chosen])


def lengths(logits: Tensor, labels: Tensor) -> Tensor:
    """Length of the gradient of each sample's cross entropy at the logits, and a little, for none is 0."""
    wrong = logits.softmax(-1) - nn.functional.one_hot(labels, logits.shape[-1])
    return wrong.norm(dim=-1) + LEAST


def _without_labels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in inputs.items() if key != "labels"}


def _stacked(tensors: list[Tensor]) -> Tensor:
    """One below the other, shorter texts padded; pad tokens of the models here are 0, and are masked."""
    rows = [row for tensor in tensors for row in tensor]
    return pad_sequence(rows, batch_first=True) if rows[0].dim() else torch.stack(rows)
