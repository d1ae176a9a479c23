"""DistributedDataParallel: at fast-only steps its reducer rests, and live gradients are averaged here.

The reducer waits for a gradient of every parameter that was trainable when the model was wrapped. Where one
is missing it stops without having reduced anything, or reduces zeros for all that is idle.
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


WIRE: dict[Any, torch.dtype | None] = {
    default_hooks.allreduce_hook: None,
    default_hooks.fp16_compress_hook: torch.float16,
    default_hooks.bf16_compress_hook: torch.bfloat16,
}
"""Communication hooks that are honoured at fast-only steps, and the dtype in which each lets gradients travel."""


class DDPSync(GradSync):
    """See `hf_multirate.distributed.grad_sync.GradSync`.

    Args:
        ddp: The wrapped model.

    Raises:
        NotImplementedError: a communication hook is registered that is none of `WIRE`.
        ValueError: a parameter was frozen when DDP was made, and is trained now.
    """

    averages = True

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp
        self.group = ddp.process_group
        # The graph of the first iteration is the one that the reducer goes by.
        self.records_first = ddp.static_graph
        self._owned = _owned(ddp)
        self._wire: torch.dtype | None = None
        self._reduces_over: dist.ProcessGroup = ddp.process_group
        for hook, state in ddp._comm_hooks:
            if hook not in WIRE:
                raise NotImplementedError(
                    f"the communication hook {hook.__qualname__!r} of DistributedDataParallel is not applied at "
                    "fast-only steps. Use fp16_compress_hook or bf16_compress_hook, or none."
                )
            self._wire = WIRE[hook]
            self._reduces_over = state if isinstance(state, dist.ProcessGroup) else _world()
        self._average: GradientAllReduce | None = None
        self._overlaps: bool | None = None

    @contextmanager
    def pruned(self, live: Sequence[nn.Parameter], *, last: bool) -> Iterator[None]:
        """See `hf_multirate.distributed.grad_sync.GradSync`.

        The last micro-batch of a step sends gradients while backward goes on. The first one that is known to be the
        last is only watched: if backward reaches a parameter more than once (some kinds of checkpointing and of cached
        losses), in any process, everything is sent behind backward for good.
        """
        if self._ddp._join_config.enable:
            raise_unsupported(
                "Join (join_uneven_inputs) around DistributedDataParallel: a process without batches takes no part in "
                "the means of fast-only steps. Give all processes as many batches, as drop_last does."
            )
        with ExitStack() as stack:
            stack.enter_context(_reducer_rests(self._ddp))
            if last and self._overlaps is not False:
                self._average = self._average_of(live)
                stack.enter_context(self._average.watching(sends=self._overlaps is True))
            yield

    def average(self, live: Sequence[nn.Parameter]) -> None:
        """See `hf_multirate.distributed.grad_sync.GradSync`; what the wrapper leaves alone is left alone."""
        average = self._average or self._average_of(live)
        average.finish()
        if self._overlaps is None and self._average is not None:
            again = torch.tensor(float(any(count > 1 for count in average.counts.values())), device=live[0].device)
            dist.all_reduce(again, group=self._reduces_over)
            self._overlaps = not again.item()
        self._average = None
        # The reducer has noted what backward reached here, and would take it for reached at the next full step too,
        # where a batch may not use it. Buckets are not built again by that: with unused parameters they never are.
        if self._ddp.find_unused_parameters and not self._ddp.static_graph:
            self._ddp.reducer._reset_state()

    def _average_of(self, live: Sequence[nn.Parameter]) -> GradientAllReduce:
        return GradientAllReduce([p for p in live if p in self._owned], self._reduces_over, self._wire)


@contextmanager
def _reducer_rests(ddp: DistributedDataParallel) -> Iterator[None]:
    """`DistributedDataParallel.no_sync`, which acts on forward passes only, around each of them by itself.

    A context of the caller's, of ``no_sync`` or ``accelerator.accumulate``, may begin or end while this one is open.
    """
    synchronises: list[bool] = []

    def before(module: nn.Module, args: Any) -> None:
        synchronises.append(ddp.require_backward_grad_sync)
        ddp.require_backward_grad_sync = False

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if not synchronises:  # something before this hook's counterpart has failed
            return
        ddp.require_backward_grad_sync = synchronises.pop()
        # Buffers are broadcast before the forward pass that follows one with synchronisation, as that one would be.
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


def _owned(ddp: DistributedDataParallel) -> set[nn.Parameter]:
    """Parameters that DDP reduces, by the names it compares: of each module, so without a name for the root itself.

    Raises:
        ValueError: a parameter was frozen when DDP was made, and is trained now.
    """
    owned = {
        parameter
        for module_name, module in ddp.module.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if f"{module_name}.{name}" not in ddp.parameters_to_ignore
    }
    trained = sum(parameter.requires_grad for parameter in owned)
    reduced = ddp._get_ddp_logging_data()["num_parameter_tensors"]  # type: ignore[no-untyped-call]
    if trained > reduced:
        raise ValueError(
            f"{trained} parameters are trained, but DistributedDataParallel reduces the gradients of {reduced}: the "
            "others were frozen when it was made, and would differ between processes. Set requires_grad first, then "
            "wrap the model."
        )
    return owned


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None  # DistributedDataParallel asks for a process group when it is made
    return world
