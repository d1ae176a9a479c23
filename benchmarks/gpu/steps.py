"""Steps of training as Trainer takes them: autocast, clipping, fused AdamW; timed by marks on the device."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from benchmarks.gpu.cells import Bench
from benchmarks.gpu.models import Network
from benchmarks.gpu.place import Cpu, SkippedError, require_precision
from benchmarks.speed.harness import Timer
from hf_multirate import Multirate, MultirateConfig


PRECISIONS = ("bf16", "tf32", "fp32")

Span = tuple[str, Any, Any]
"""Kind, and the marks at begin and end."""


@dataclass
class Trainee:
    """A model with its optimizer and a batch.

    Attributes:
        place: The device.
        model: The model without a wrapper.
        called: The model, or its compiled form.
        optimizer: AdamW over all trainable parameters.
        batch: The batch of all steps.
        precision: One of `PRECISIONS`.
    """

    place: Cpu
    model: Any
    called: Any
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]
    precision: str

    def step(self, spans: list[Span] | None = None, kind: str = "") -> None:
        """One step. Its marks, and those of its forward pass, are added to ``spans``."""
        begin = self.place.mark() if spans is not None else None
        with self.place.autocast(self.precision):
            loss = self.called(**self.batch).loss
        middle = self.place.mark() if spans is not None else None
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if spans is not None:
            spans += [(kind, begin, self.place.mark()), (f"{kind}, forward", begin, middle)]


def trainee(
    bench: Bench,
    network: Network,
    precision: str,
    *,
    compiled: bool = False,
    change: Callable[[Any], Any] | None = None,
) -> Trainee:
    """A model on the device with its optimizer.

    Args:
        bench: Device and sizes.
        network: The network.
        precision: One of `PRECISIONS`.
        compiled: Whether the model is compiled as ``torch_compile=True`` does.
        change: Changes the model before the optimizer is made, and returns it.

    Raises:
        SkippedError: the device has no such precision, or nothing to compile with.
    """
    require_precision(bench.place, precision)
    set_precision(precision)
    if compiled:
        require_compiler(bench.place)
    model = network.make(bench.place.device)
    model = change(model) if change else model
    called = torch.compile(model, backend="eager" if bench.tiny else "inductor") if compiled else model
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-6, weight_decay=0.0, fused=True)
    return Trainee(bench.place, model, called, optimizer, network.one_batch(bench.place.device), precision)


def set_precision(precision: str) -> None:
    """Precision of products of float32: TensorFloat-32 for ``tf32``, else float32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def require_compiler(place: Cpu) -> None:
    """Skip the measurement where torch.compile cannot work."""
    if place.kind == "cuda" and not has_triton():
        raise SkippedError("torch.compile needs triton, which is not installed or does not know this GPU")
    if place.kind == "cuda" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise SkippedError("torch.compile needs a C compiler")


def collect(place: Cpu, spans: list[Span], timer: Timer) -> None:
    """Wait for the device once, and give the seconds of ``spans`` to ``timer``."""
    place.synchronize()
    for kind, begin, end in spans:
        timer.add(kind, place.seconds(begin, end))


def kind_of(controller: Multirate, step: int) -> str:
    """Names of the live groups of a step."""
    return " + ".join(controller.groups[i].name for i in controller.schedule.live(step))


def time_baseline(trained: Trainee, timer: Timer, number: int) -> None:
    """Time steps of standard training, as the kind ``baseline``, after one that is not timed."""
    spans: list[Span] = []
    trained.step()
    for _ in range(number):
        trained.step(spans, "baseline")
    collect(trained.place, spans, timer)


def time_cycle(trained: Trainee, name: str, config: MultirateConfig, timer: Timer, cycles: int = 1) -> None:
    """Time steps by live groups, in whole cycles of one attachment.

    The first step of each kind is not timed, since the controller then records the forward pass. With more than one
    cycle the whole first one is not timed either: it compiles.
    """
    spans: list[Span] = []
    with Multirate(config).attach(trained.called, trained.optimizer) as controller:
        cycle = controller.schedule.cycle
        begin = 1 + (cycle if cycles > 1 else max(map(controller.schedule.example, controller.schedule.kinds)))
        for step in range(begin + cycle * max(1, cycles - 1)):
            controller.begin_step(step)
            trained.step(spans if step >= begin else None, f"{name}: {kind_of(controller, step)}")
        collect(trained.place, spans, timer)
