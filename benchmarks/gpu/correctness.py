"""Part ``correctness``: what must be equal is equal on this device, and each feature works on it.

Run in a process of its own, with ``CUBLAS_WORKSPACE_CONFIG`` set before CUDA starts, since runs are compared bit for
bit. The checks that compile come last: they switch TensorFloat-32 on for the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from benchmarks import configs
from benchmarks.gpu.cells import Bench, Cell
from benchmarks.gpu.checks import Outcome, both, difference, outcome, same_bits, small_network, trained, weights
from benchmarks.gpu.kernels import KERNELS, check_flash_attention_2, check_kernel
from benchmarks.gpu.kinds import SETTINGS
from benchmarks.gpu.models import Network
from benchmarks.gpu.place import SkippedError, require_cuda
from benchmarks.gpu.steps import require_compiler
from benchmarks.gpu.training import BASELINE, CONTENDERS, trainer_for
from hf_multirate import Multirate, MultirateConfig


PART = "correctness"
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Variables that must be set before CUDA starts."""

STEPS, SAVED = 12, 6
"""Steps of a run, and the step after which it is saved: in the middle of a cycle of four."""

PERIOD_1 = configs.two_rate("last:1", 1)
DRIFT, FREEZE = SETTINGS["last:1, drift"], SETTINGS["last:1"]
LADDER = SETTINGS["ladder 1,2,4"]
EXACT: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": True}, "fp16": {"fp16": True}}


def cells() -> list[Cell]:
    """The checks in their order."""
    checks: dict[str, Callable[[Bench], Outcome]] = {
        **{f"period 1 equals Trainer, {name}": partial(check_period_1, name) for name in EXACT},
        **{f"resume in mid-cycle, {name}": partial(check_resume, name) for name in ("freeze", "drift")},
        "equal to the CPU": check_cpu,
        "fp16 with a gradient scaler": check_scaler,
        **{f"{kernel} attention": partial(check_kernel, kernel) for kernel in KERNELS},
        "flash_attention_2": check_flash_attention_2,
        "activation cache": check_activation_cache,
        "inactive_dtype": check_inactive_dtype,
        "no graph is compiled after the first cycle": check_compile,
    }
    return [Cell(PART, name, 60 if check is check_compile else 6, check) for name, check in checks.items()]


@contextmanager
def deterministic() -> Iterator[None]:
    """A context with deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check_period_1(precision: str, bench: Bench) -> Outcome:
    """With period 1, all weights are those of Trainer; with another period they are not."""
    if precision == "fp16":
        require_cuda(bench.place)
    network, settings = small_network(bench), {**EXACT[precision], "max_steps": STEPS, "learning_rate": 1e-3}
    with deterministic():
        plain, ours, other = (trained(bench, network, c, **settings) for c in (None, PERIOD_1, LADDER))
    found = same_bits(ours, plain, f"{STEPS} steps")
    if same_bits(other, plain, "")["passed"]:
        return outcome(False, "a ladder gave the weights of Trainer too, so the comparison shows nothing")
    return found


def check_resume(idle: str, bench: Bench) -> Outcome:
    """A run that is resumed in the middle of a cycle ends with the weights of one that was not stopped."""
    network, config = small_network(bench), {"freeze": LADDER, "drift": DRIFT}[idle]
    with tempfile.TemporaryDirectory() as folder, deterministic():
        settings = {"max_steps": STEPS, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": SAVED}
        settings |= {"folder": folder, "bf16": bench.place.bf16}
        saved = str(Path(folder, f"checkpoint-{SAVED}"))

        def stopped(of: MultirateConfig | None) -> Outcome:
            whole = trained(bench, network, of, **settings)
            again = trained(bench, network, of, resume=saved, **settings)
            return same_bits(again, whole, f"resumed after {SAVED} of {STEPS} steps")

        found = stopped(config)
        if not found["passed"] and not stopped(None)["passed"]:
            raise SkippedError("Trainer itself does not resume with the same bits here")
    return found


def without_dropout(network: Network) -> Network:
    """The same BERT without dropout."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return replace(network, sizes=network.sizes | off)


def check_cpu(bench: Bench) -> Outcome:
    """The same run on the device and on the CPU, without dropout: equal but for rounding."""
    require_cuda(bench.place)
    network = without_dropout(small_network(bench))
    rows = network.one_batch(torch.device("cpu"))
    found = []
    for name, config in {"Trainer's steps": configs.off(), "freeze": FREEZE, "drift": DRIFT}.items():
        ends = [_own_loop(network, rows, config, device) for device in ("cpu", "cuda")]
        gap = difference(*ends)
        found.append(outcome(gap < 1e-4, f"{name}: {gap:.1e}"))
    return both(*found)


def _own_loop(
    network: Network, batch: dict[str, torch.Tensor], config: MultirateConfig, device: str
) -> dict[str, Any]:
    """Weights after steps of SGD on ``device``, from the weights that the CPU draws."""
    model = network.make(torch.device("cpu")).to(device)
    moved = {name: value.to(device) for name, value in batch.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with Multirate(config).attach(model, optimizer) as controller:
        for step in range(2 * controller.schedule.cycle):
            controller.begin_step(step)
            model(**moved).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def check_scaler(bench: Bench) -> Outcome:
    """With fp16 the loss stays finite, and steps that the scaler skips do not count in the schedule."""
    require_cuda(bench.place)
    with trainer_for(bench, small_network(bench), LADDER, max_steps=24, fp16=True, learning_rate=1e-4) as trainer:
        result = trainer.train()
        scale = trainer.accelerator.scaler.get_scale()
        timing = trainer.multirate.timing  # type: ignore[attr-defined]
        steps = timing.counted(full=True) + timing.counted(full=False)
    loss = result.training_loss
    text = f"{steps} of 24 steps applied, scale {scale:g}, mean loss {loss:.3f}"
    return outcome(0 < steps <= 24 and abs(loss) < 1e3 and scale > 0, text)


def check_activation_cache(bench: Bench) -> Outcome:
    """Frozen blocks are run once for each row, and the weights are those without a cache."""
    network = without_dropout(small_network(bench))
    ends, hits = [], 0
    for cache in (None, "memory"):
        config = configs.never("last:1", cache)
        with deterministic(), trainer_for(bench, network, config, num_train_epochs=3) as trainer:
            trainer.train()
            ends.append(weights(trainer))
            kept = trainer.multirate.activation_cache  # type: ignore[attr-defined]
            hits = kept.summary()["hits"] if kept is not None else 0
    gap = difference(*ends)
    return outcome(hits > 0 and gap < 1e-3, f"{hits} rows were taken from the cache, difference of weights {gap:.1e}")


def check_inactive_dtype(bench: Bench) -> Outcome:
    """Inactive modules in bfloat16 change the weights, and the loss of the run stays close to that in float32."""
    losses, ends = [], []
    for dtype in (None, "bfloat16"):
        config = configs.two_rate("last:1", 4, "freeze", inactive_dtype=dtype)
        with trainer_for(bench, small_network(bench), config, max_steps=STEPS, learning_rate=1e-3) as trainer:
            losses.append(trainer.train().training_loss)
            ends.append(weights(trainer))
    changed, gap = difference(*ends), abs(losses[1] - losses[0]) / abs(losses[0])
    text = f"relative difference of the mean loss {gap:.1e}, of weights at most {changed:.1e}"
    return outcome(changed > 0 and gap < 0.02, text)


class Graphs(TrainerCallback):
    """Number of graphs after each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the number."""
        self.seen.append(counters["stats"]["unique_graphs"])


def check_compile(bench: Bench) -> Outcome:
    """Nothing is compiled after the first cycle, and graphs break no more often than with Trainer."""
    require_compiler(bench.place)
    breaks, seen = {}, []
    for contender in (BASELINE, "ladder 1,2,4"):
        torch._dynamo.reset()
        counters.clear()
        graphs = Graphs()
        settings = {"torch_compile": True, "torch_compile_backend": "eager" if bench.tiny else "inductor"}
        with trainer_for(bench, small_network(bench), CONTENDERS[contender], max_steps=STEPS, **settings) as trainer:
            trainer.add_callback(graphs)
            trainer.train()
        breaks[contender], seen = sum(counters["graph_break"].values()), graphs.seen
    text = f"{seen[3]} graphs after the first cycle of 4, {seen[-1]} after {STEPS} steps; graph breaks {breaks}"
    return outcome(seen[3] == seen[-1] > 0 and breaks["ladder 1,2,4"] <= breaks[BASELINE], text)
