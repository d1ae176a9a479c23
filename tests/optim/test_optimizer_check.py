"""Optimizers that hold optimizers, copies of the weights or pairs: trained right, or refused for the true reason."""

from __future__ import annotations

import functools
import gc
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_multirate import AveragedCopies, CopiesConfig, Multirate, MultirateConfig, MultirateTrainer
from hf_multirate.controller.guards import unwrap_optimizer
from hf_multirate.trainer.checkpoint_files import read_saved
from tests.support.runs import CONFIG, PERIOD, arguments, assert_same, example, phases, trainer_for, weights
from tests.support.small import network, values


FROZEN = MultirateConfig.two_rate("last:1", PERIOD, idle="freeze")


def everything(groups: Any) -> list[Tensor]:
    return [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]


class MuonAndAdamW(Optimizer):
    """Muon for matrices and AdamW for the rest, behind one interface."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        held = everything(params)
        self.muon = torch.optim.Muon([p for p in held if p.ndim == 2], lr=10 * lr)
        self.adamw = AdamW([p for p in held if p.ndim != 2], lr=lr)
        super().__init__(held, {})
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    @property
    def state(self) -> Any:
        return {**self.muon.state, **self.adamw.state}

    @state.setter
    def state(self, value: Any) -> None:
        """That of the two it is made of."""

    def step(self, closure: Any = None) -> None:
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups


class MuonWithAuxiliaryAdam(Optimizer):
    """One class with a branch for each group."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        held = everything(params)
        matrices, rest = [p for p in held if p.ndim == 2], [p for p in held if p.ndim != 2]
        super().__init__([{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                first = self.state[p].setdefault("first", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                if group["use_muon"]:
                    left, _, right = torch.linalg.svd(first, full_matrices=False)
                    p.add_(left @ right, alpha=-group["lr"])
                else:
                    second = self.state[p].setdefault("second", torch.zeros_like(p)).lerp_(p.grad**2, 0.001)
                    p.addcdiv_(first, second.sqrt() + 1e-8, value=-group["lr"])


class Bare(MuonAndAdamW):
    """Does not call ``Optimizer.__init__``."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        held = everything(params)
        self.muon = torch.optim.Muon([p for p in held if p.ndim == 2], lr=10 * lr)
        self.adamw = AdamW([p for p in held if p.ndim != 2], lr=lr)
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)


class Closures(Optimizer):
    """Keeps partial functions, bound methods and a closure with a count of its own."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        held = everything(params)
        super().__init__(held, {"lr": lr})
        inner = AdamW(self.param_groups, lr=lr)
        steps, count = [inner.step, functools.partial(inner.zero_grad, set_to_none=True)], 0

        def run() -> int:
            nonlocal count
            count += 1
            steps[0]()
            return count

        self.run, self.inner, self.note, self.counts = run, inner, [], []
        self.append = self.counts.append

    def step(self, closure: Any = None) -> None:
        self.append(self.run())
        torch.rand(1), random.random(), np.random.rand()


class ById(Optimizer):
    """Keeps its buffers by the identity of parameters."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.buffers = {id(p): torch.zeros_like(p) for p in everything(self.param_groups)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(self.buffers[id(p)].lerp_(p.grad, 0.1), alpha=-group["lr"])


class CallsBase(AdamW):
    """Its step is around that of a class of torch."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class MasterWeights(Optimizer):
    """Steps copies in single precision, from which the model is filled."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.held = everything(self.param_groups)
        self.masters = [nn.Parameter(p.detach().float().clone()) for p in self.held]
        self.inner = AdamW(self.masters, lr=lr)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        for p, master in zip(self.held, self.masters, strict=True):
            master.grad = None if p.grad is None else p.grad.float()
        self.inner.step()
        for p, master in zip(self.held, self.masters, strict=True):
            p.copy_(master)


class Lookahead(Optimizer):
    """Goes back half-way to slow weights at every fifth step."""

    def __init__(self, params: Any, lr: float = 1e-3, *, skips: bool = False) -> None:
        self.optimizer, self.count, self.skips = AdamW(params, lr=lr), 0, skips
        super().__init__(self.optimizer.param_groups, {})
        self.param_groups = self.optimizer.param_groups
        self.slow = {p: p.detach().clone() for p in everything(self.param_groups)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.optimizer.step()
        self.count += 1
        for p, slow in self.slow.items():
            if self.count % 5 == 0 and not (self.skips and p.grad is None):
                p.copy_(slow.lerp_(p, 0.5))


class TwoSteps(Optimizer):
    """Needs the loss twice."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.base = SGD(self.param_groups, lr=lr)

    def step(self, closure: Any = None) -> None:
        assert closure is not None
        closure()
        self.base.step()


class EverySecond(AdamW):
    """Does something at every second call."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return super().step(closure) if self.count % 2 == 0 else None


INNER: dict[str, Optimizer] = {}


class InAGlobal(Optimizer):
    """Holds its optimizer in a variable of the module."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        INNER["it"] = AdamW(everything(self.param_groups), lr=lr)

    def step(self, closure: Any = None) -> None:
        INNER["it"].step()


Kind = Callable[..., Optimizer]
WORKS: list[Kind] = [MuonAndAdamW, MuonWithAuxiliaryAdam, Bare, Closures, ById, CallsBase]
REFUSED: dict[Kind, str] = {
    MasterWeights: "MasterWeights undoes a change of the weights",
    Lookahead: "Lookahead moves parameters whose gradient is None",
    functools.partial(Lookahead, skips=True): "Lookahead undoes a change of the weights",
    TwoSteps: "TwoSteps needs a closure",
    torch.optim.LBFGS: "LBFGS needs a closure",
    EverySecond: "EverySecond moves parameters at some calls",
    InAGlobal: "InAGlobal does not move parameters.*global variable",
}


def trained(folder: Path, kind: Kind, config: MultirateConfig = CONFIG, **settings: Any) -> Any:
    settings = {"optimizers": lambda model: (kind(model.parameters()), None), **settings}
    trainer = trainer_for(folder, config, max_steps=9, **settings)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", WORKS)
def test_wrappers_take_full_and_fast_steps_and_drift(tmp_path: Path, kind: Kind) -> None:
    trainer = trained(tmp_path, kind, save_strategy="steps", save_steps=8)
    assert phases(trainer) == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert trainer.multirate.applied_steps == 9
    saved = read_saved(tmp_path / "checkpoint-8" / "multirate.json")
    assert saved is not None
    assert set(saved.state["displacement"]) == set(trainer.multirate.partition["slow"])
    assert len(everything(unwrap_optimizer(trainer.optimizer).param_groups)) == len(list(trainer.model.parameters()))


@pytest.mark.parametrize("kind", [MuonAndAdamW, MuonWithAuxiliaryAdam, Bare, CallsBase])
def test_wrappers_resume_to_the_bit(tmp_path: Path, kind: Kind) -> None:
    end = weights(trained(tmp_path, kind, save_strategy="steps", save_steps=3))
    for step in (3, 6):
        again = trainer_for(
            tmp_path / "again", CONFIG, max_steps=9, optimizers=lambda model: (kind(model.parameters()), None)
        )
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_same(weights(again), end)


def test_the_class_of_a_wrapper_and_its_settings_will_do(tmp_path: Path) -> None:
    made = {"optimizers": (None, None), "optimizer_cls_and_kwargs": (MuonAndAdamW, {"lr": 1e-3})}
    trainer = trained(tmp_path, MuonAndAdamW, **made)
    assert trainer.multirate.applied_steps == 9


def test_period_one_is_standard_training(tmp_path: Path) -> None:
    ends = []
    for config in (MultirateConfig.two_rate(period=1, idle="drift"), None):
        trainer = trainer_for(tmp_path, config, optimizers=lambda model: (MuonAndAdamW(model.parameters()), None))
        trainer.train()
        ends.append(weights(trainer))
    assert_same(*ends)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_for_the_true_reason(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(ValueError, match=REFUSED[kind]):
        trained(tmp_path, kind)


def test_master_weights_train_where_idle_groups_are_frozen(tmp_path: Path) -> None:
    trainer = trained(tmp_path, MasterWeights, FROZEN)
    optimizer = unwrap_optimizer(trainer.optimizer)
    assert all(torch.equal(p, q) for p, q in zip(optimizer.held, optimizer.masters, strict=True))


@pytest.mark.parametrize(
    "config",
    [
        MultirateConfig.random_subsets(PERIOD),
        MultirateConfig.two_rate("5", PERIOD, drift_steps=1, idle="drift"),
    ],
)
def test_whatever_changes_weights_is_refused_for_master_weights(config: MultirateConfig) -> None:
    model = network()
    with pytest.raises(ValueError, match="undoes a change"):
        Multirate(config).attach(model, MasterWeights(model.parameters()))


def test_copies_and_subsets_need_the_state_of_the_optimizer() -> None:
    for attach in (AveragedCopies(CopiesConfig((1, 2))).attach, Multirate(MultirateConfig.random_subsets(2)).attach):
        model = network()
        with pytest.raises(ValueError, match="keeps its state in inner optimizers"):
            attach(model, MuonAndAdamW(model.parameters()))


def facts(optimizer: Optimizer) -> Iterator[Any]:
    """All that an optimizer keeps, without the parameters."""
    for name, value in vars(optimizer).items():
        if isinstance(value, Optimizer):
            yield from facts(value)
        elif name == "param_groups":
            yield [{key: entry for key, entry in group.items() if key != "params"} for group in value]
        elif name in ("count", "counts", "state", "buffers", "masters", "slow"):
            yield f"{name} {value}"


@pytest.mark.parametrize("kind", [*WORKS, *REFUSED])
def test_a_trial_touches_nothing(kind: Kind) -> None:
    model = network()
    optimizer = kind(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    gradients = [parameter.grad for parameter in model.parameters()]
    data = [parameter.data_ptr() for parameter in model.parameters()]
    before, kept = values(model), list(facts(optimizer))
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    fired: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: fired.append(1))
    try:
        Multirate(MultirateConfig.two_rate("5", 2, idle="drift")).attach(model, optimizer).detach()
    except ValueError:
        assert kind in REFUSED
    hook.remove()
    assert not fired
    assert_same(values(model), before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == data
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert all((gradient == 0.5).all() for gradient in gradients)
    assert_same(list(facts(optimizer)), kept)
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())


class Notes(AdamW):
    """Notes its steps in files and in its class, and ends with closing what it holds."""

    count, history, table = 0, [], {}  # type: ignore[var-annotated]

    def __init__(self, params: Any, files: list[Any]) -> None:
        super().__init__(params, lr=1e-3)
        self.files = files

    def step(self, closure: Any = None) -> Any:
        type(self).count += 1
        type(self).last = self.count  # type: ignore[attr-defined]
        self.history.append(1)
        self.table[len(self.table)] = 1
        for file in self.files:
            file.write(b"step")
        return super().step(closure)

    def __del__(self) -> None:
        for file in self.files:
            file.close()


def test_a_trial_writes_no_files_and_counts_in_no_class(tmp_path: Path) -> None:
    model = network()
    with tempfile.NamedTemporaryFile("w", dir=tmp_path) as named, (tmp_path / "log").open("wb") as log:
        optimizer = Notes(model.parameters(), [log])
        optimizer.named = named
        Multirate(MultirateConfig.two_rate("5", 2, idle="drift")).attach(model, optimizer).detach()
        gc.collect()
        assert not log.closed
        assert Path(named.name).exists()
        log.flush()
        assert not (tmp_path / "log").stat().st_size
        assert (Notes.count, Notes.history, Notes.table) == (0, [], {})
        assert "last" not in vars(Notes)


def test_a_write_to_what_a_copy_shares_is_stopped() -> None:
    model = network()
    before = values(model)

    class Reaches(SGD):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(2.0)

    with pytest.raises(ValueError, match="writes to tensors that the copy shares"):
        Multirate(MultirateConfig.two_rate("5", 2, idle="drift")).attach(model, Reaches(model.parameters(), lr=0.1))
    assert_same(values(model), before)


def test_only_the_wrapper_of_accelerate_is_unwrapped() -> None:
    model = network()
    outer = Lookahead(model.parameters())
    assert unwrap_optimizer(outer) is outer


def test_a_parameter_in_two_groups_is_refused() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [next(model.parameters())]})
    with pytest.raises(ValueError, match=r"more than one group.*0\.weight"):
        Multirate(MultirateConfig.two_rate("5", 2, idle="drift")).attach(model, optimizer)


def adapted(folder: Path, make: Callable[[nn.Module], Optimizer]) -> Any:
    base, rows = example("bert")
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    return MultirateTrainer(
        model=model,
        args=arguments(folder),
        train_dataset=rows,
        optimizers=(make(model), None),
        multirate=MultirateConfig.ladder([1, PERIOD], idle="drift"),
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_plus_works(tmp_path: Path) -> None:
    trainer = adapted(tmp_path, lambda model: create_loraplus_optimizer(model, AdamW, lr=1e-3, loraplus_lr_ratio=16))
    trainer.train()
    assert trainer.state.global_step == 6


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_fa_is_refused_by_name(tmp_path: Path) -> None:
    trainer = adapted(tmp_path, lambda model: create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=1e-3))
    with pytest.raises(ValueError, match=r"LoraFAOptimizer fails where some parameters have no gradient.*pair"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("config", [CONFIG, FROZEN, MultirateConfig.auto(1.2)], ids=["drift", "frozen", "auto"])
def test_weights_that_are_not_finite_and_not_read_are_no_error(tmp_path: Path, config: MultirateConfig) -> None:
    trainer = trainer_for(tmp_path, config)
    rows = trainer.model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        rows[1], rows[2] = float("nan"), float("inf")  # no text of the rows has these tokens
    trainer.train()
    assert trainer.state.global_step == 6
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert rows[3:].isfinite().all()
