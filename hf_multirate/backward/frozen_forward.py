"""Forward pass of modules that never get a gradient: they run as inactive modules at every step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from hf_multirate.backward.gradient_checkpointing import (
    checkpointing_modules,
    input_embeddings,
    marked_inputs_detached,
    non_reentrant,
)
from hf_multirate.backward.idle_forward import InactiveForward
from hf_multirate.backward.partial_backward import inactive_modules, keep_requires_grad_off, requires_grad_off
from hf_multirate.config.schedule import Step
from hf_multirate.model.adapters import adapter_parameters
from hf_multirate.model.step_part import StepPart


logger = logging.getLogger(__name__)


class FrozenForward(StepPart):
    """Runs the modules with frozen parameters and without trained ones as inactive modules.

    At fast steps, `hf_multirate.backward.partial_backward.PartialBackward` does this for modules that contain idle
    parameters too.

    Args:
        model: The model that owns the parameters.
        never: Name -> parameter that never gets a gradient.
        groups: Rate group name -> parameter name -> parameter.
        inactive: Runs inactive modules forward.
        compiled: Whether ``torch.compile`` traces the model. Then no hook is added to the model.
    """

    def __init__(
        self,
        model: nn.Module,
        never: Mapping[str, nn.Parameter],
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        inactive: InactiveForward,
        *,
        compiled: bool = False,
    ) -> None:
        self._model = model
        self._never = list(never.values())
        self._inactive = inactive
        self._compiled = compiled
        self._checkpointing = checkpointing_modules(model)
        self._groups = [list(members.values()) for members in groups.values()]
        self._modules: dict[tuple[int, ...], list[nn.Module]] = {}
        trained = [parameter for members in self._groups for parameter in members]
        self._identities = {id(parameter) for parameter in self._never}, {id(parameter) for parameter in trained}
        self._embeddings = input_embeddings(model, (module for _, module in inactive_modules(model, trained)))
        own = {id(parameter) for parameter in adapter_parameters(model)}  # PEFT switches them on itself
        self._unfreezable = {name: parameter for name, parameter in never.items() if id(parameter) not in own}

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool = False) -> Iterator[None]:
        """A context in which the frozen modules are inactive, and their parameters stay frozen."""
        del last
        self._warn_of_unfrozen()
        with ExitStack() as stack:
            stack.enter_context(requires_grad_off(self._never))
            if not self._compiled:  # the end of disable_adapter() of PEFT switches requires_grad on
                stack.enter_context(keep_requires_grad_off(self._model, self._never))
            if step.full:
                stack.enter_context(non_reentrant(self._model, self._checkpointing, hooked=not self._compiled))
                detached = marked_inputs_detached(self._model, self._embeddings, renewed=not self._compiled)
                stack.enter_context(detached)
            stack.enter_context(self._inactive.running(self.modules(step.live), cuts=True))
            yield

    def _warn_of_unfrozen(self) -> None:
        unfrozen = [name for name, parameter in self._unfreezable.items() if parameter.requires_grad]
        if unfrozen:
            logger.warning(
                "%d parameters of rate groups with period 'never' were unfrozen during training, e.g. %s. They get no "
                "gradient and keep their values. Use MultirateConfig.stages to train them later in the run.",
                len(unfrozen), unfrozen[:3],
            )  # fmt: skip
            self._unfreezable = {}

    def modules(self, live: tuple[int, ...]) -> list[nn.Module]:
        """The outermost modules with frozen parameters, and without other ones, at a step with ``live`` groups."""
        if live not in self._modules:
            found = inactive_modules(self._model, [p for i in live for p in self._groups[i]])
            frozen, trained = self._identities
            owned = {module: {id(p) for p in module.parameters()} for _, module in found}
            self._modules[live] = [module for module, ids in owned.items() if ids & frozen and not ids & trained]
        return self._modules[live]

    def close(self) -> None:
        """Release the references to the model."""
        self._modules.clear()
        self._inactive.close()
