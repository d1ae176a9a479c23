"""Averaged copies: turns, the reference, what is shared and what is not, resume, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import Adafactor

from hf_multirate import (
    AveragedCopies,
    AveragedCopiesTrainer,
    CopiesConfig,
    Multirate,
    MultirateConfig,
    MultirateTrainingArguments,
)
from hf_multirate.averaged_copies.store import on_device
from tests.support.reference import averaged_copies
from tests.support.runs import FIVE, arguments, assert_same, differ, example, history, weights
from tests.support.small import batch, gradient_of, network, values


STEPS, RATE = 29, 0.02


def loop(
    model: nn.Module, optimizer: Optimizer, config: CopiesConfig, note: Callable[[int], None], steps: int
) -> None:
    schedule = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    with AveragedCopies(config).attach(model, optimizer) as copies:
        for step in range(steps):
            copies.begin_step(step)
            inputs, labels = batch(step)
            nn.functional.cross_entropy(model(inputs.to(model[0].weight.dtype)), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            note(step)


def no_note(step: int) -> None:
    del step


@pytest.mark.parametrize("momenta", ["keep", "average", "reset"])
@pytest.mark.parametrize(("periods", "mu"), [((1, 3), 0.0), ((1, 4), 0.9), ((1, 2, 6), 0.9)])
def test_equals_the_plain_tensors(periods: tuple[int, ...], mu: float, momenta: str) -> None:
    for steps in range(STEPS - 10, STEPS):
        model = network().double()
        wanted = averaged_copies(
            values(model), gradient_of(deepcopy(model)), periods=periods, h=lambda n: RATE * (1 - n / STEPS), mu=mu,
            steps=steps, weight_decay=0.01, momenta=momenta,
        )  # fmt: skip
        optimizer = SGD(model.parameters(), lr=RATE, momentum=mu, weight_decay=0.01)
        loop(model, optimizer, CopiesConfig(periods, momenta, turns="fixed"), no_note, steps)
        got = values(model)
        assert max(float((got[i] - wanted[i]).abs().max()) for i in wanted) < 1e-10, steps


@pytest.mark.parametrize("change", [{"periods": (1, 6)}, {"momenta": "average"}, {"momenta": "reset"}])
def test_settings_of_the_reference_matter(change: dict[str, Any]) -> None:
    model = network().double()
    results = []
    for settings in ({}, change):
        args: dict[str, Any] = {"periods": (1, 3), "h": lambda n: RATE, "mu": 0.9, "steps": STEPS, **settings}
        results.append(averaged_copies(values(model), gradient_of(deepcopy(model)), **args))
    assert max(float((results[0][i] - results[1][i]).abs().max()) for i in results[0]) > 1e-4


def test_turns_of_three_copies() -> None:
    config = CopiesConfig((1, 2, 4), turns="fixed")
    turns = [config.turn(step) for step in range(config.cycle + 2)]
    assert [copy for copy, _ in turns] == [0, 0, 1, 0, 0, 1, 2, 0, 0]
    assert [merged for _, merged in turns] == [(), (), (0, 1), (), (), (), (0, 1, 2), (), ()]


@pytest.mark.parametrize("periods", [(1, 2), (1, 3, 6), (1, 2, 4, 12)])
def test_turns_are_those_of_a_clock(periods: tuple[int, ...]) -> None:
    wanted = []
    for time in range(1, periods[-1] + 1):
        arriving = tuple(copy for copy, period in enumerate(periods) if time % period == 0)
        turns = [(copy, ()) for copy in arriving]
        wanted += [*turns[:-1], (arriving[-1], arriving)] if len(arriving) > 1 else turns
    config = CopiesConfig(periods, turns="fixed")
    assert [config.turn(step) for step in range(2 * config.cycle)] == 2 * wanted


@pytest.mark.parametrize("periods", [(1, 2), (1, 5), (1, 3, 6), (1, 2, 4, 12)])
def test_drawn_turns_meet_all_of_the_data_and_the_same_averages(periods: tuple[int, ...]) -> None:
    drawn, fixed = CopiesConfig(periods), CopiesConfig(periods, turns="fixed")
    merges = [fixed.turn(step)[1] for step in range(fixed.cycle) if fixed.turn(step)[1]]
    places = set()
    for cycle in range(3 * drawn.cycle):
        turns = [drawn.turn(cycle * drawn.cycle + place) for place in range(drawn.cycle)]
        assert [merged for _, merged in turns if merged] == merges
        times = [0] * len(periods)
        for copy, merged in turns:
            times[copy] += periods[copy]
            # All copies that are averaged have come to the same time.
            assert len({times[other] for other in merged}) <= 1
        assert times == [periods[-1]] * len(periods)
        places.add([copy for copy, _ in turns].index(len(periods) - 1))
    assert places == set(range(drawn.cycle))


def test_a_turn_does_not_take_longer_for_longer_periods() -> None:
    config = CopiesConfig((1, 10**12), turns="fixed")
    assert config.turn(10**12 - 1) == (0, ())
    assert config.turn(10**12) == (1, (0, 1))
    assert config.turn(10**12 + 1) == (0, ())


def test_each_copy_has_its_own_batches_state_and_step_size() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=RATE)
    rates: list[float] = []
    # Registered before the copies have theirs, so it sees the step size of the update.
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    counts: list[float] = []

    def note(step: int) -> None:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(RATE * (1 - (step + 1) / STEPS))
        counts.append(float(optimizer.state[model[0].weight]["step"]))

    loop(model, optimizer, CopiesConfig((1, 3), turns="fixed"), note, 8)
    assert counts == [1, 2, 3, 3, 4, 5, 6, 6]
    assert rates == pytest.approx([RATE * (1 - step / STEPS) * (3 if step in (3, 7) else 1) for step in range(8)])


def test_between_steps_the_model_has_the_fastest_copy() -> None:
    model = network()
    seen = []

    def note(step: int) -> None:
        seen.append(values(model))

    inside: list[dict[str, Tensor]] = []
    model[0].register_forward_pre_hook(lambda module, args: inside.append(values(model)))
    start = values(model)
    loop(model, SGD(model.parameters(), lr=RATE), CopiesConfig((1, 3), turns="fixed"), note, 8)
    assert_same(inside[3], start)  # the slow copy has not moved before its turn
    for step in (1, 2, 5, 6):
        assert_same(inside[step], seen[step - 1])
    assert_same(inside[4], seen[3])
    assert_same(inside[7], inside[4])  # both began at the average
    assert differ(seen[2], seen[3])


@pytest.mark.parametrize("buffers", ["keep", "average"])
def test_running_statistics(buffers: str) -> None:
    model = network()
    means: list[Tensor] = []

    def note(step: int) -> None:
        means.append(model[2].running_mean.clone())

    inside: list[Tensor] = []
    model[0].register_forward_pre_hook(lambda module, args: inside.append(model[2].running_mean.clone()))
    loop(model, SGD(model.parameters(), lr=RATE), CopiesConfig((1, 3), buffers=buffers, turns="fixed"), note, 8)
    assert not inside[3].any()
    assert torch.equal(means[3], means[2]) == (buffers == "keep")
    assert torch.equal(inside[7], inside[4]) == (buffers == "average")
    assert int(model[2].num_batches_tracked) == 6


SETTINGS: dict[str, Any] = {"max_steps": 10, "save_strategy": "steps", "save_steps": 1}
COPIES = CopiesConfig((1, 3), "keep", turns="fixed")


def trainer_of(folder: Path, copies: CopiesConfig = COPIES, family: str = "resnet", **settings: Any) -> Any:
    model, rows = example(family)
    return AveragedCopiesTrainer(
        model=model, args=arguments(folder, **SETTINGS | settings), train_dataset=rows, copies=copies
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("copies")
    trainer = trainer_of(folder)
    trainer.train()
    return folder, (weights(trainer), history(trainer), trainer.optimizer.state_dict())


@pytest.mark.parametrize("step", [2, 3, 4, 5, 7])
def test_resumed_is_uninterrupted(tmp_path: Path, whole: tuple[Path, Any], step: int) -> None:
    if not FIVE and step > 6:
        pytest.skip("plain Trainer of 4.57 does not resume to the bit in a second epoch")
    folder, wanted = whole
    trainer = trainer_of(tmp_path)
    for parameter in trainer.model.parameters():
        parameter.data.add_(1.0)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert_same([weights(trainer), history(trainer), trainer.optimizer.state_dict()], list(wanted))


def test_trainer_logs_the_turn_and_differs_from_plain_training(tmp_path: Path, whole: tuple[Path, Any]) -> None:
    logged = [entry["averaged_copies/phase"] for entry in whole[1][1] if "loss" in entry]
    assert logged == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    other = trainer_of(tmp_path, CopiesConfig((1, 9), turns="fixed"))
    other.train()
    assert differ(weights(other), whole[1][0])


def test_micro_batches_of_a_step_are_of_one_copy(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    class Watching(AveragedCopiesTrainer):
        def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append((self.state.global_step, float(next(model.parameters()).detach().sum())))
            return super().compute_loss(model, *args, **kwargs)

    model, rows = example("bert")
    args = arguments(tmp_path, max_steps=5, gradient_accumulation_steps=2)
    start = float(next(model.parameters()).detach().sum())
    Watching(model=model, args=args, train_dataset=rows, copies=COPIES).train()
    assert [step for step, _ in seen] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert one == other
    assert seen[6][1] == start


def test_error_in_a_micro_batch_leaves_the_fastest_copy() -> None:
    model = network()
    copies = AveragedCopies(CopiesConfig((1, 3), turns="fixed")).attach(model, SGD(model.parameters(), lr=RATE))
    with torch.no_grad():
        model[0].weight.add_(1.0)  # so that the copies differ
    fastest = values(model)

    def fail() -> None:
        assert differ(values(model), fastest)
        raise KeyError("in forward")

    copies.set_step(3)
    with pytest.raises(KeyError, match="in forward"), copies.micro_batch():
        fail()
    assert_same(values(model), fastest)
    copies.begin_step(3)
    copies.detach()
    assert_same(values(model), fastest)


def test_other_periods_in_the_checkpoint(tmp_path: Path, whole: tuple[Path, Any]) -> None:
    trainer = trainer_of(tmp_path, CopiesConfig((1, 2, 4), turns="fixed"))
    with pytest.raises(ValueError, match=r"has 2 copies.*fit the 3 copies"):
        trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoint-3"))
    assert not trainer.copies.attached


def test_module_that_cannot_be_deep_copied_trains() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(weight_norm(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 3))
    model(batch(0)[0])
    with pytest.raises(RuntimeError, match="deepcopy"):
        deepcopy(model)
    before = values(model)
    optimizer = SGD(model.parameters(), lr=RATE)
    with AveragedCopies(CopiesConfig((1, 2), turns="fixed")).attach(model, optimizer) as copies:
        for step in range(6):
            copies.begin_step(step)
            inputs, labels = batch(step)
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert differ(values(model), before) == set(before)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))


def frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lazy, r"'1.weight' cannot be copied.*lazy module"),
        (lambda: nn.Linear(2, 2, device="meta"), "'weight' cannot be copied.*'meta'"),
        (frozen, "no trainable parameter"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_models_without_values_are_refused(build: Callable[[], nn.Module], words: str) -> None:
    model = build()
    optimizer = SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=words):
        AveragedCopies(CopiesConfig(turns="fixed")).attach(model, optimizer)


def test_misuse_is_named() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=RATE)
    copies = AveragedCopies(CopiesConfig(turns="fixed"))
    for call in (lambda: copies.begin_step(0), copies.state_dict):
        with pytest.raises(RuntimeError, match="Call attach"):
            call()
    with copies.attach(model, optimizer):
        for other in (copies, Multirate(MultirateConfig.off()), AveragedCopies(CopiesConfig(turns="fixed"))):
            with pytest.raises(RuntimeError, match="attached already"):
                other.attach(model, optimizer)
        with pytest.raises(ValueError, match="got -1"):
            copies.begin_step(-1)
        copies.begin_step(0)
        model(batch(0)[0]).sum().backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="without begin_step"):
            optimizer.step()
    optimizer.step()  # the optimizer is free again


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one copy": ({"periods": (1,)}, ValueError, r"two or more.*got \(1,\)"),
    "no copy": ({"periods": ()}, ValueError, "two or more"),
    "first": ({"periods": (2, 4)}, ValueError, "first is 1"),
    "no multiple": ({"periods": (1, 2, 5)}, ValueError, r"\(1, 2, 5\)"),
    "same": ({"periods": (1, 1)}, ValueError, "larger multiple"),
    "float": ({"periods": (1, 2.0)}, TypeError, "2.0"),
    "momenta": ({"momenta": "forget"}, ValueError, "forget"),
    "buffers": ({"buffers": "forget"}, ValueError, "forget"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_are_refused(case: str) -> None:
    change, kind, words = BAD[case]
    with pytest.raises(kind, match=words):
        CopiesConfig(**change, turns="fixed")


def test_trainer_wants_a_config(tmp_path: Path) -> None:
    model, rows = example("bert")
    with pytest.raises(TypeError, match=r"CopiesConfig, got \(1, 25\)"):
        AveragedCopiesTrainer(model=model, args=arguments(tmp_path), train_dataset=rows, copies=(1, 25))


@pytest.mark.parametrize("field", [{"multirate_period": "4"}, {"multirate_train_time": "1s"}, {"multirate": "off"}])
def test_settings_of_rate_groups_are_refused(tmp_path: Path, field: dict[str, Any]) -> None:
    model, rows = example("bert")
    args = arguments(tmp_path).to_dict()
    fields = {name: args[name] for name in ("output_dir", "report_to")}
    for given in ({}, field):
        multirate_args = MultirateTrainingArguments(**fields, **given)
        settings = {"model": model, "args": multirate_args, "train_dataset": rows, "copies": COPIES}
        if not given:
            AveragedCopiesTrainer(**settings)
            continue
        with pytest.raises(ValueError, match=f"it would ignore {next(iter(field))}="):
            AveragedCopiesTrainer(**settings)


def test_step_sizes_of_the_optimizers_own_are_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="relative_step"):
        AveragedCopies(CopiesConfig((1, 2), turns="fixed")).attach(model, Adafactor(model.parameters()))


def test_counts_of_steps_are_not_averaged() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * self.scale

    model = Scaled()
    optimizer = AdamW(model.parameters(), lr=0.01)
    with AveragedCopies(CopiesConfig((1, 4), turns="fixed")).attach(model, optimizer) as copies:
        for step in range(5):
            copies.begin_step(step)
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert {float(state["step"]) for state in optimizer.state.values()} == {4.0}


def stepped(model: nn.Module, optimizer: Any, copies: AveragedCopies, steps: int) -> None:
    for step in range(steps):
        copies.begin_step(step)
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_state_of_another_shape_is_averaged_too() -> None:
    model = nn.Linear(3, 2)
    optimizer = Adafactor(model.parameters(), lr=0.01, relative_step=False)
    with AveragedCopies(CopiesConfig((1, 2), turns="fixed")).attach(model, optimizer) as copies:
        stepped(model, optimizer, copies, copies.config.cycle)
        state = copies.state_dict()["states"][0]["weight"]
        own = optimizer.state[model.weight]
        assert own["exp_avg_sq_row"].shape == (2,)
        for key in ("exp_avg_sq_row", "exp_avg_sq_col"):
            assert torch.equal(own[key], state[key])


def test_state_in_codes_has_no_mean() -> None:
    class Codes(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                self.state[parameter]["code"] = torch.zeros_like(parameter, dtype=torch.uint8)

    for momenta in ("keep", "average"):
        model = nn.Linear(3, 2)
        optimizer = Codes(model.parameters(), lr=0.01)
        config = CopiesConfig((1, 2), turns="fixed", momenta=momenta)
        with AveragedCopies(config).attach(model, optimizer) as copies:
            if momenta == "keep":
                stepped(model, optimizer, copies, config.cycle)
                continue
            with pytest.raises(ValueError, match=r"state 'code' as torch\.uint8 codes.*momenta='average'"):
                stepped(model, optimizer, copies, config.cycle)


def test_learning_rate_is_back_after_an_error_within_a_step() -> None:
    class Failing(SGD):
        def step(self, closure: Any = None) -> Any:
            if self.param_groups[0]["lr"] > 0.1:
                raise RuntimeError("no")
            return super().step(closure)

    model = network()
    optimizer = Failing(model.parameters(), lr=0.05)
    copies = AveragedCopies(CopiesConfig((1, 3), turns="fixed")).attach(model, optimizer)
    for step in range(3):
        copies.begin_step(step)
        optimizer.step()
    copies.begin_step(3)
    with pytest.raises(RuntimeError, match="no"):
        optimizer.step()
    copies.detach()
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(
    ("settings", "device"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")]
)
def test_step_counts_of_a_checkpoint_go_where_the_optimizer_keeps_them(settings: dict[str, Any], device: str) -> None:
    parameter = nn.Parameter(torch.empty(2, device="meta"))
    state = on_device({"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}, parameter, settings)
    assert state["step"].device.type == device
    assert state["exp_avg"].device.type == "meta"


def test_moments_of_a_scalar_go_to_the_device_of_the_scalar() -> None:
    """Such as the temperature of CLIP, whose moments look like a step count."""
    parameter = nn.Parameter(torch.empty((), device="meta"))
    state = on_device({"step": torch.tensor(3.0), "exp_avg": torch.zeros(())}, parameter, {})
    assert {key: value.device.type for key, value in state.items()} == {"step": "cpu", "exp_avg": "meta"}


def test_a_wrapped_model_has_the_copies_of_the_inner_one() -> None:
    inner = network()
    model = torch.compile(inner, backend="eager")
    optimizer = SGD(inner.parameters(), lr=0.1)
    with AveragedCopies(COPIES).attach(model, optimizer) as copies:
        assert not any("_orig_mod" in name for one in copies.state_dict()["values"] for name in one)
        with pytest.raises(RuntimeError, match="the model is attached already"):
            AveragedCopies(COPIES).attach(inner, SGD(inner.parameters(), lr=0.1))


def test_replicas_of_one_process_are_refused() -> None:
    model = nn.DataParallel(network())
    with pytest.raises(NotImplementedError, match=r"averaged copies do not work with DataParallel.*DistributedData"):
        AveragedCopies(COPIES).attach(model, SGD(model.parameters(), lr=0.1))
