"""DistributedDataParallel: at fast steps its reducer is disabled, and the live gradients are averaged here.

The reducer of DDP expects a gradient for every parameter that was trainable when the model was wrapped. If
one is missing, it raises an error without any reduction, or it reduces zeros for all idle parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from hf_multirate.distributed.all_reduce import GradientAllReduce
from hf_multirate.distributed.grad_sync import GradSync
from hf_multirate.distributed.unsupported import raise_unsupported
from hf_multirate.model.hooks import OwnHook


SUPPORTED_COMM_HOOKS: dict[Any, torch.dtype | None] = {
    default_hooks.allreduce_hook: None,
    default_hooks.fp16_compress_hook: torch.float16,
    default_hooks.bf16_compress_hook: torch.bfloat16,
}
"""Supported communication hook -> dtype in which gradients are sent; None is the dtype of each gradient."""


class DDPSync(GradSync):
    """Gradient synchronisation for DDP: see `hf_multirate.distributed.grad_sync.GradSync`.

    Args:
        ddp: The wrapped model.

    Raises:
        NotImplementedError: the registered communication hook is not in `SUPPORTED_COMM_HOOKS`.
        ValueError: a trainable parameter was frozen when the model was wrapped.
    """

    averages = True

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp
        self.group = ddp.process_group
        # With static_graph, the reducer uses the graph of the first iteration at all later steps.
        self.records_first = ddp.static_graph
        self._reduced = _reduced_parameters(ddp)
        self._comm_dtype: torch.dtype | None = None
        self._reduces_over: dist.ProcessGroup = ddp.process_group
        for hook, state in ddp._comm_hooks:
            if hook not in SUPPORTED_COMM_HOOKS:
                raise NotImplementedError(
                    f"the communication hook {hook.__qualname__!r} of DistributedDataParallel is not supported at "
                    "fast steps. Use fp16_compress_hook, bf16_compress_hook or no hook."
                )
            self._comm_dtype = SUPPORTED_COMM_HOOKS[hook]
            self._reduces_over = state if isinstance(state, dist.ProcessGroup) else _world()
        self._average: GradientAllReduce | None = None
        self._sends_in_backward: bool | None = None

    @contextmanager
    def partial_backward(self, live: Sequence[nn.Parameter], *, last: bool) -> Iterator[None]:
        """See `hf_multirate.distributed.grad_sync.GradSync`.

        At the last micro-batch of a step, gradients are sent while backward runs. The first such micro-batch only
        counts gradients. If a parameter receives more than one in any process, as with some kinds of checkpointing and
        cached losses, all later steps send their gradients after backward.

        Raises:
            NotImplementedError: the model is used within ``Join``.
        """
        if self._ddp._join_config.enable:
            raise_unsupported(
                "Join (join_uneven_inputs) around DistributedDataParallel: at fast steps, a process without batches "
                "would be missing from the mean. Give all processes the same number of batches, e.g. with drop_last."
            )
        with ExitStack() as stack:
            stack.enter_context(_reducer_disabled(self._ddp))
            if last and self._sends_in_backward is not False:
                self._average = self._average_of(live)
                stack.enter_context(self._average.watching(sends=self._sends_in_backward is True))
            yield

    def average(self, live: Sequence[nn.Parameter]) -> None:
        """See `hf_multirate.distributed.grad_sync.GradSync`; parameters that DDP ignores are not averaged."""
        average = self._average or self._average_of(live)
        average.finish()
        if self._sends_in_backward is None and self._average is not None:
            again = torch.tensor(float(any(count > 1 for count in average.counts.values())), device=live[0].device)
            dist.all_reduce(again, group=self._reduces_over)
            self._sends_in_backward = not again.item()
        self._average = None
        # The reducer has marked the live parameters as used. Without a reset it would treat them as used at the next
        # full step, where the batch may not use them. The reset rebuilds no buckets if unused parameters are searched.
        if self._ddp.find_unused_parameters and not self._ddp.static_graph:
            self._ddp.reducer._reset_state()

    def _average_of(self, live: Sequence[nn.Parameter]) -> GradientAllReduce:
        return GradientAllReduce([p for p in live if p in self._reduced], self._reduces_over, self._comm_dtype)


@contextmanager
def _reducer_disabled(ddp: DistributedDataParallel) -> Iterator[None]:
    """A context that applies `DistributedDataParallel.no_sync` to each forward pass separately.

    ``no_sync`` only affects forward passes. This way, a ``no_sync`` or ``accelerator.accumulate`` context of the user
    may begin or end while this context is open.
    """
    synchronises: list[bool] = []

    def before(module: nn.Module, args: Any) -> None:
        synchronises.append(ddp.require_backward_grad_sync)
        ddp.require_backward_grad_sync = False

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if not synchronises:  # an earlier pre-hook raised an error, so `before` did not run
            return
        ddp.require_backward_grad_sync = synchronises.pop()
        # DDP broadcasts buffers before a forward pass that follows one with synchronisation.
        ddp.require_forward_param_sync = ddp.require_backward_grad_sync

    handles = [
        ddp.register_forward_pre_hook(OwnHook(before, ddp)),
        ddp.register_forward_hook(OwnHook(after, ddp), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reduced_parameters(ddp: DistributedDataParallel) -> set[nn.Parameter]:
    """The parameters that DDP reduces, by the same comparison of names with ``parameters_to_ignore`` as in DDP.

    Raises:
        ValueError: a trainable parameter was frozen when the model was wrapped.
    """
    included = {
        parameter
        for module_name, module in ddp.module.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if f"{module_name}.{name}" not in ddp.parameters_to_ignore
    }
    trained = sum(parameter.requires_grad for parameter in included)
    reduced = ddp._get_ddp_logging_data()["num_parameter_tensors"]  # type: ignore[no-untyped-call]
    if trained > reduced:
        raise ValueError(
            f"{trained} parameters are trainable, but DistributedDataParallel reduces the gradients of {reduced}. The "
            "others were frozen when the model was wrapped, and would differ between processes. Set requires_grad "
            "first, then wrap the model."
        )
    return included


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None  # DistributedDataParallel requires an initialised process group
    return world
