"""Find the user code that bypasses the training step of this package, for an error."""

from __future__ import annotations

from torch.optim import Optimizer
from transformers import Trainer


LOOPS = ("train", "_inner_training_loop", "_run_epoch")
"""Methods of Trainer whose override may be a custom training loop."""

CONSEQUENCE = "takes the place of the training step of this package, so the run would be standard training."


def other_optimizer_message(optimizer: Optimizer | None) -> str:
    """Error message for a step of ``optimizer``, which is not ``trainer.optimizer``; None if the trainer has none."""
    cause = (
        "trainer.optimizer is None in a custom training loop"
        if optimizer is None
        else f"{type(optimizer).__name__}, which is not trainer.optimizer, took a step with parameters of the model"
    )
    return (
        f"{cause}. Rate groups apply only to the steps of trainer.optimizer. Assign the optimizer of the loop to "
        "trainer.optimizer before the first step, as create_optimizer() does."
    )


def bypass_message(trainer: Trainer, *, standard_loop: bool) -> str:
    """Error message that names the code that bypasses the training step of this package.

    Args:
        trainer: The trainer.
        standard_loop: Whether the loop of Trainer ran, so that an overridden ``training_step`` is the likely cause.
    """
    causes = {False: _loop_message(trainer), True: _training_step_message(trainer)}
    return (
        causes[standard_loop]
        or causes[not standard_loop]
        or (
            "the optimizer took a step with gradients that do not come from super().training_step, so every parameter "
            "would be trained at every step. Let Trainer call optimizer.step()."
        )
    )


def _training_step_message(trainer: Trainer) -> str | None:
    if "training_step" in vars(trainer):
        return (
            f"the training_step that was assigned to this {type(trainer).__name__} {CONSEQUENCE} Call "
            "type(trainer).training_step(trainer, model, inputs, num_items_in_batch) in it, and compute a custom "
            "loss in compute_loss."
        )
    for kind in type(trainer).__mro__:
        # Methods of later classes are called by the methods of this package.
        if "training_step" in vars(kind):
            if is_package_class(kind):
                return None
            return (
                f"{kind.__name__}.training_step {CONSEQUENCE} Call super().training_step(model, inputs, "
                "num_items_in_batch) in it, and compute a custom loss in compute_loss."
            )
    return None


def _loop_message(trainer: Trainer) -> str | None:
    for method in LOOPS:
        if method in vars(trainer):
            return (
                f"the {method} that was assigned to this {type(trainer).__name__} {CONSEQUENCE} Remove it, or use "
                "hf_multirate.Multirate in a custom training loop."
            )
    before = True
    for kind in type(trainer).__mro__:
        before = before and not is_package_class(kind)
        if before and "train" in vars(kind) and not trainer.is_in_train:
            return (
                f"{kind.__name__}.train takes a step without super().train(), so the run would be standard training. "
                "Move the loop to _inner_training_loop and call self.training_step(model, inputs) for each batch, or "
                "use hf_multirate.Multirate in the loop."
            )
        for method in LOOPS:
            if method in vars(kind) and kind is not Trainer and not is_package_class(kind):
                return (
                    f"{kind.__name__}.{method} is a custom training loop that calls no training_step, so the run "
                    "would be standard training. Call self.training_step(model, inputs) for each batch, or use "
                    "hf_multirate.Multirate in the loop."
                )
    return None


def is_package_class(kind: type) -> bool:
    """Whether a class belongs to this package."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]
