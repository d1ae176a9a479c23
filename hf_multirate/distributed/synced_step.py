"""Synchronisation of an optimizer step between the processes of a run, and checks that they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.schedule import Step
from hf_multirate.distributed.grad_sync import GradSync
from hf_multirate.distributed.unsupported import raise_if_random_subsets
from hf_multirate.model.step_part import StepPart


class SyncedStep(StepPart):
    """Averages the gradients of fast steps, and checks that this happens before each optimizer step.

    Args:
        config: The rate groups.
        sync: Gradient synchronisation for the wrapper of the model.
        groups: Rate group name -> parameter name -> parameter.
        fingerprint: Returns description -> value, for values that have to be the same in all processes.

    Raises:
        NotImplementedError: the configuration has random subsets, but the parameters are sharded.
        RuntimeError: processes have different configurations or parameters.
    """

    def __init__(
        self,
        config: MultirateConfig,
        sync: GradSync,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        fingerprint: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._config = config
        self._sync = sync
        self._groups = groups
        self._fingerprint = fingerprint
        self._live: tuple[int, ...] | None = None
        self._averaged = self._compared = False
        self._records = sync.records_first
        if sync.shards:
            raise_if_random_subsets(config)
        if sync.group is not None:
            members = {name: list(group) for name, group in groups.items()}
            check_ranks_agree({"the configuration": config.to_json(), "the rate groups": str(members)}, sync.group)

    def begin(self, step: Step) -> None:
        """Start ``step``, and compare the processes if a comparison is due."""
        self._live = None if step.full else step.live
        self._averaged = False
        if self._compares(step):
            self._compare(step)

    def end(self) -> None:
        """End the step: the optimizer has taken or skipped it."""
        self._live, self._records = None, False

    def cuts(self) -> bool:
        """Whether backward may be partial: not while the wrapper records its first backward pass."""
        return not self._records

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool) -> Iterator[None]:
        """A context for forward and backward of one micro-batch; the last one averages gradients on exit."""
        with self._synced(last=last):
            yield
        if last:
            self.synchronize()

    @contextmanager
    def _synced(self, *, last: bool) -> Iterator[None]:
        if self._live is None:
            yield
            return
        if self._averaged and self._sync.averages:
            raise RuntimeError(
                "synchronize() was called before the last micro-batch of a step. Gradients that are accumulated later "
                "would not be averaged. Call it once, after the last backward pass (if accelerator.sync_gradients)."
            )
        if self.cuts():
            with self._sync.partial_backward(self._parameters(live=True), last=last):
                yield
            return
        yield
        for parameter in self._parameters(live=False):
            parameter.grad = None

    def synchronize(self) -> None:
        """Average the gradients unless the wrapper does. Further calls in the same step do nothing."""
        if self._live is not None and self.cuts() and not self._averaged:
            self._sync.average(self._parameters(live=True))
        self._averaged = True

    def before_step(self, step: Step) -> bool:
        """Check that the gradients were averaged.

        Raises:
            RuntimeError: `synchronize` was necessary and was not called.
        """
        if self._live is not None and self._sync.averages and not self._averaged:
            raise RuntimeError(
                f"the gradients of step {step.index} were not averaged over the processes. Call synchronize() of the "
                "controller at every step, after the last backward pass and before gradients are clipped."
            )
        return True

    def _compares(self, step: Step) -> bool:
        """Whether processes are compared before ``step``: the first step, and every ``check_ranks_every`` cycles."""
        if not self._compared:
            return self._sync.group is not None
        every = self._config.check_ranks_every * self._config.cycles.cycle
        return every > 0 and step.index % every == 0

    def _compare(self, step: Step) -> None:
        """Raise `RuntimeError` if processes differ in step, fingerprint or, with ``check_ranks_every``, weights."""
        group = self._sync.group
        if group is None:
            return
        check_ranks_agree({"the step": str(step.index), **self._fingerprint()}, group)
        self._compared = True
        if self._config.check_ranks_every and not self._sync.shards:
            parameters = {name: p for members in self._groups.values() for name, p in members.items()}
            check_weights(parameters, group, step.index)

    def _parameters(self, *, live: bool) -> list[nn.Parameter]:
        indices = self._live or ()
        return [
            parameter
            for index, members in enumerate(self._groups.values())
            if (index in indices) is live
            for parameter in members.values()
        ]


def require_wrapper(config: MultirateConfig, sync: GradSync) -> None:
    """Check that the model is wrapped if there are several processes.

    Raises:
        RuntimeError: there are several processes and the model has no wrapper.
    """
    several = dist.is_initialized() and dist.get_world_size() > 1
    if several and sync.group is None and config.skips_backward:
        raise RuntimeError(
            f"there are {dist.get_world_size()} processes, but the attached model has no distributed wrapper, so the "
            "gradients of fast steps would differ between processes. Attach the model returned by "
            "DistributedDataParallel, fully_shard() or Accelerator.prepare(), not the inner model."
        )


CHUNK = 1 << 20
"""Number of elements that are hashed at once, which bounds the memory of the debug check."""

MAX_CHARACTERS = 160
"""Largest number of characters of a value in an error."""


def check_ranks_agree(fingerprint: Mapping[str, str], group: dist.ProcessGroup) -> None:
    """Compare values between the processes of a group; a collective call.

    Args:
        fingerprint: Description -> value; all processes have the same keys.
        group: The process group.

    Raises:
        RuntimeError: processes have different values.
    """
    gathered: list[dict[str, str]] = [{} for _ in range(group.size())]
    dist.all_gather_object(gathered, dict(fingerprint), group=group)
    for key in fingerprint:
        values = [of_rank[key] for of_rank in gathered]
        if len(set(values)) > 1:
            other_rank = next(rank for rank, value in enumerate(values) if value != values[0])
            first, second = _difference(values[0], values[other_rank])
            raise RuntimeError(
                f"processes disagree about {key}: process 0 has {first}, process {other_rank} has {second}. "
                "Give every process the same configuration, model and checkpoint."
            )


def _difference(first: str, second: str) -> list[str]:
    """Both texts, long ones shortened to the part around their first difference."""
    position = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    start = max(0, position - MAX_CHARACTERS // 2)
    return [
        ("..." if start else "") + shorten(text[start:], MAX_CHARACTERS, placeholder="...") for text in (first, second)
    ]


def check_weights(parameters: Mapping[str, Tensor], group: dist.ProcessGroup, step: int) -> None:
    """Compare unsharded parameters bit by bit between the processes of a group; a collective call.

    Args:
        parameters: Name -> parameter.
        group: The process group.
        step: Index of the step, for the error.

    Raises:
        RuntimeError: a parameter differs between processes.
    """
    hashes = torch.stack([_hash(parameter) for parameter in parameters.values()])
    extremes = torch.stack([hashes, -hashes])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    differ = [name for name, (high, low) in zip(parameters, extremes.T.tolist(), strict=True) if high != -low]
    if differ:
        raise RuntimeError(
            f"before step {step} the weights differ between processes: {differ[0]!r} is the first of {len(differ)} "
            f"differing parameters (of {len(parameters)}). Look for code that changes weights or gradients in one "
            "process only, such as a callback on rank 0, or for a parameter that DistributedDataParallel ignores."
        )


@torch.no_grad()
def _hash(parameter: Tensor) -> Tensor:
    """Sum of the bit patterns of all elements, each multiplied by its position, modulo 2**64."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    value = parameter.detach().resolve_conj().contiguous()
    value = torch.view_as_real(value) if value.is_complex() else value
    bits = value.view(integers[value.element_size()]).view(-1)
    result = torch.zeros((), dtype=torch.int64, device=parameter.device)
    for start in range(0, bits.numel(), CHUNK):
        part = bits[start : start + CHUNK].to(torch.int64)
        result += (part * torch.arange(start + 1, start + 1 + part.numel(), device=part.device)).sum()
    return result
