"""Name the code that trains in the place of this package, for an error."""

from __future__ import annotations

from torch.optim import Optimizer
from transformers import Trainer


LOOPS = ("train", "_inner_training_loop", "_run_epoch")
"""Methods of Trainer whose override may be a loop of its own."""

PLACE = "takes the place of the one that this package needs, so it trains plainly."


def other_optimizer(optimizer: Optimizer | None) -> str:
    """What to do about an ``optimizer`` that is not that of the trainer; None if the trainer has none."""
    cause = (
        "trainer.optimizer is None in a training loop of its own"
        if optimizer is None
        else f"{type(optimizer).__name__}, which is not trainer.optimizer, took a step with parameters of the model"
    )
    return (
        f"{cause}: rate groups act on the steps of trainer.optimizer. Assign the optimizer of the loop to "
        "trainer.optimizer before the first step, as create_optimizer() does."
    )


def takeover(trainer: Trainer, *, standard_loop: bool) -> str:
    """What trains instead of the training step of this package, and what to do about it.

    Args:
        trainer: The trainer.
        standard_loop: Whether the loop was that of Trainer, so that it is a training step which is to blame.
    """
    found = {False: _loop(trainer), True: _training_step(trainer)}
    return (
        found[standard_loop]
        or found[not standard_loop]
        or (
            "the optimizer took a step with gradients that are not of super().training_step: every parameter would "
            "train at every step. Leave optimizer.step() to Trainer."
        )
    )


def _training_step(trainer: Trainer) -> str | None:
    if "training_step" in vars(trainer):
        return (
            f"the training_step that was assigned to this {type(trainer).__name__} {PLACE} Call "
            "type(trainer).training_step(trainer, model, inputs, num_items_in_batch) in it, and change the loss in "
            "compute_loss."
        )
    for kind in type(trainer).__mro__:
        # What comes behind the classes of this package is called by them.
        if "training_step" in vars(kind):
            if is_ours(kind):
                return None
            return (
                f"{kind.__name__}.training_step {PLACE} Call super().training_step(model, inputs, num_items_in_batch) "
                "in it, and change the loss in compute_loss."
            )
    return None


def _loop(trainer: Trainer) -> str | None:
    for method in LOOPS:
        if method in vars(trainer):
            return (
                f"the {method} that was assigned to this {type(trainer).__name__} {PLACE} Leave it to Trainer, or use "
                "hf_multirate.Multirate in a loop of your own."
            )
    before = True
    for kind in type(trainer).__mro__:
        before = before and not is_ours(kind)
        if before and "train" in vars(kind) and not trainer.is_in_train:
            return (
                f"{kind.__name__}.train takes a step without super().train(), so it trains plainly. Put the loop into "
                "_inner_training_loop and let it call self.training_step(model, inputs) for each batch, or use "
                "hf_multirate.Multirate in it, as in a loop of your own."
            )
        for method in LOOPS:
            if method in vars(kind) and kind is not Trainer and not is_ours(kind):
                return (
                    f"{kind.__name__}.{method} is a training loop of its own, which calls no training_step, so it "
                    "trains plainly. Let it call self.training_step(model, inputs) for each batch, or use "
                    "hf_multirate.Multirate in it, as in a loop of your own."
                )
    return None


def is_ours(kind: type) -> bool:
    """Whether a class is of this package."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]
