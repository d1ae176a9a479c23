"""Part ``memory``: bytes at the peak of full and fast steps, with gradient checkpointing and with LoRA."""

from __future__ import annotations

from functools import partial
from typing import Any

from peft import LoraConfig, get_peft_model

from benchmarks.gpu.cells import Bench, Cell
from benchmarks.gpu.kinds import SETTINGS
from benchmarks.gpu.steps import Trainee, kind_of, trainee
from hf_multirate import Multirate


PART = "memory"
MEASURED = ("last:1", "ladder 1,2,4", "last:1, drift")
VARIANTS = {
    "plain": (),
    "checkpointing": ("checkpointing",),
    "LoRA": ("lora",),
    "LoRA, checkpointing": ("lora", "checkpointing"),
}


def cells() -> list[Cell]:
    """The cells, the most important first."""
    order = [("Llama 0.5 B", 8), ("BERT-large", 6), ("Llama 1.5 B", 15)]
    return [
        Cell(PART, f"{name}, {variant}", seconds, partial(measure, name, variant))
        for name, seconds in order
        for variant in VARIANTS
    ]


def changed(model: Any, family: str, words: tuple[str, ...]) -> Any:
    """The model with adapters or gradient checkpointing."""
    if "lora" in words:
        task = "CAUSAL_LM" if family == "llama" else "SEQ_CLS"
        model = get_peft_model(model, LoraConfig(task_type=task, r=16, target_modules="all-linear"))
    if "checkpointing" in words:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if "lora" in words:
            model.enable_input_require_grads()
    return model


def measure(name: str, variant: str, bench: Bench) -> dict[str, Any]:
    """Bytes before a step and at its peak, by kind of step."""
    network = bench.network(name)
    words = VARIANTS[variant]
    trained = trainee(
        bench, network, "bf16", change=lambda model: changed(model, network.family, words).to(bench.place.device)
    )
    bench.place.forget_peak()
    for _ in range(2):
        trained.step()
    found = {"baseline": peak_of(trained)}
    rest = bench.place.allocated()
    for setting in MEASURED:
        bench.place.free()  # what an earlier controller held is no memory of this one
        with Multirate(SETTINGS[setting]).attach(trained.model, trained.optimizer) as controller:
            for step in range(controller.schedule.cycle + 1):
                controller.begin_step(step)
                kind = f"{setting}: {kind_of(controller, step)}"
                found[kind] = max(found.get(kind, 0), peak_of(trained))
    return {"network": name, "shape": network.shape, "variant": variant, "between_steps": rest, "peaks": found}


def peak_of(trained: Trainee) -> int:
    """Bytes at the peak of one step."""
    trained.place.forget_peak()
    trained.step()
    return trained.place.peak()
