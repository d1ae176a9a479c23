"""Which modules are the stack, what lies above it, and what the first fast step says of that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hf_multirate import Multirate, MultirateConfig, RateGroup
from hf_multirate.config.rate_group import parse_preset
from hf_multirate.model import presets
from hf_multirate.model.auto_periods import block_groups
from hf_multirate.model.presets import preset_names
from tests.support.stacks import stack_of
from tests.support.tiny import FAMILIES


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.inner(x))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Tower(nn.Module):
    """Blocks of two classes between an input and a head, which may be registered first."""

    def __init__(self, blocks: int = 6, name: str = "head", *, first: bool = False) -> None:
        super().__init__()
        if first:
            self.add_module(name, nn.Linear(8, 2))
        self.put = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Wide() if i % 2 else Narrow() for i in range(blocks))
        if not first:
            self.add_module(name, nn.Linear(8, 2))
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.put(x)
        for layer in self.layers:
            x = layer(x)
        return self.get_submodule(self.name)(x)


class Pair(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.text, self.image = one, other


def fast_of(model: nn.Module, fast: str = "last:1") -> set[str]:
    names = Multirate(MultirateConfig.two_rate(fast, idle="drift")).assign(model).partition["fast"]
    return {name.rpartition(".")[0] for name in names}


def train(model: nn.Module, config: MultirateConfig, steps: int = 3, parts: int = 1) -> Multirate:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Multirate(config).attach(model, optimizer) as controller:
        for number in range(steps):
            for _ in range(parts):
                controller.begin_step(number)
                model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return controller


def test_blocks_of_several_classes_are_a_stack() -> None:
    assert stack_of(Tower()) == ("layers", 6)
    assert fast_of(Tower()) == {"layers.5.up", "layers.5.down", "head"}


def test_blocks_of_several_classes_with_experts_inside() -> None:
    model = Tower(2)
    model.layers[1].experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))
    assert stack_of(model) == ("layers", 2)


def test_a_pipeline_with_one_large_part_is_no_stack() -> None:
    assert stack_of(nn.Sequential(Tower(), nn.Linear(2, 2))) == ("0.layers", 6)


def test_a_list_of_models_is_no_stack() -> None:
    models = nn.ModuleList(FAMILIES["bert"]()[0] for _ in range(2))
    assert stack_of(models) == ("1.bert.encoder.layer", 4)


def test_a_norm_between_layers_is_no_block() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.LayerNorm(4))]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers), "norm": nn.LayerNorm(4)})
    assert stack_of(model) == ("layers", 3)
    assert fast_of(model) == {"layers.4", "layers.5", "norm"}


@pytest.mark.parametrize("frozen", ["teacher", "all of a larger tower"])
def test_what_is_frozen_is_no_stack(frozen: str) -> None:
    student = Tower(3)
    teacher = copy.deepcopy(student) if frozen == "teacher" else Tower(9)
    model = Pair(student, teacher.requires_grad_(False))
    assert stack_of(model) == ("text.layers", 3)
    assert fast_of(model) == {"text.layers.2.inner", "text.head"}


def test_blocks_without_a_trainable_parameter_are_not_counted() -> None:
    model = Tower(6)
    for layer in model.layers[:4]:
        layer.requires_grad_(False)
    assert stack_of(model) == ("layers", 2)
    assert fast_of(model, "depth:0.33") == {"layers.5.up", "layers.5.down", "head"}


def test_two_towers_give_one_warning_and_can_be_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Pair(Tower(), Tower())
    assert fast_of(model) == {"image.layers.5.up", "image.layers.5.down", "image.head"}
    (line,) = caplog.messages
    assert "'image.layers'" in line
    assert "'last:1@text.layers'" in line
    caplog.clear()
    assert fast_of(model, "last:1@text") == {"text.layers.5.up", "text.layers.5.down", "text.head"}
    groups = [RateGroup(f"part {i}", f"part:{i}/2@text", i, idle="drift") for i in (1, 2)]
    upper = Multirate(MultirateConfig(groups)).assign(model).partition["part 1"]
    assert "text.layers.3.up.weight" in upper
    assert caplog.messages == []


def test_an_encoder_and_its_decoder_leave_no_choice(caplog: pytest.LogCaptureFixture) -> None:
    for family in ("bart", "t5"):
        Multirate(MultirateConfig.two_rate(idle="drift")).assign(FAMILIES[family]()[0])
    assert not any("applies to the blocks" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("place", "words"),
    [("txt", "names no module of Pair; closest.*text"), ("layers", "names 2 modules"), ("text.head", "has no stack")],
)
def test_a_place_that_names_no_stack_is_refused(place: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preset_names("last", 1, Pair(Tower(), Tower()), place)


def test_a_place_is_part_of_a_preset() -> None:
    assert parse_preset("depth:0.5@text") == ("depth", 0.5)
    with pytest.raises(ValueError, match="unknown preset 'last:1@'"):
        parse_preset("last:1@")


class Tasks(nn.Module):
    """One encoder for several tasks, each of which has it as a part."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.tasks = nn.ModuleDict()
        for name in ("a", "b"):
            self.tasks[name] = nn.ModuleDict({"encoder": encoder, "classifier": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    "config",
    [MultirateConfig.two_rate("last:1", idle="drift"), MultirateConfig.ladder([1, 2, 4], idle="drift")],
    ids=str,
)
def test_an_encoder_at_several_paths(config: MultirateConfig) -> None:
    partition = Multirate(config).assign(Tasks(Tower())).partition
    fast = partition[config.groups[0].name]
    assert {"tasks.a.encoder.layers.5.up.weight", "tasks.a.classifier.weight", "tasks.b.classifier.weight"} < set(fast)
    assert "tasks.a.encoder.layers.0.inner.weight" not in fast


def test_a_module_used_above_and_below_is_as_deep_as_below() -> None:
    model = Tower()
    model.layers[5].norm = model.layers[0].norm = nn.LayerNorm(8)
    assert "layers.0.norm" not in fast_of(model)


def test_a_head_registered_before_its_encoder_is_fast(caplog: pytest.LogCaptureFixture) -> None:
    config = MultirateConfig.two_rate("last:1", 2, idle="drift")
    costs = [train(Tower(first=first), config).timing.speedup_predicted for first in (False, True)]
    assert costs[0] == costs[1]
    assert "head" in fast_of(Tower(first=True))
    assert caplog.messages == []


def test_a_slow_module_above_the_fast_ones_is_named(caplog: pytest.LogCaptureFixture) -> None:
    train(Tower(name="outcome", first=True), MultirateConfig.two_rate("last:1", 2, idle="drift"))
    (line,) = caplog.messages
    assert "backward runs through 1 inactive modules" in line
    assert "outcome are slow but lie above 'layers.5.up'" in line
    assert "hook" not in line


class Backwards(Tower):
    """Runs its blocks from the last to the first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.put(x)
        for layer in reversed(self.layers):
            x = layer(x)
        return self.get_submodule(self.name)(x)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_wrong_prediction_is_corrected_at_the_first_fast_step(parts: int, caplog: pytest.LogCaptureFixture) -> None:
    config = MultirateConfig.two_rate("last:1", 2, idle="drift")
    model = Backwards()
    promised = Multirate(config).assign(model).describe()
    controller = train(model, config, parts=parts)
    (line,) = caplog.messages
    assert "lie above 'layers.5.up'" in line
    assert "corrected 0.71" in line
    assert "predicted speed-up 1.3" in line
    assert "predicted speed-up: 1.3" in promised
    assert controller.timing.speedup_predicted == pytest.approx(1.17, abs=0.01)
    assert controller.timing.predicted_cost(full=False) == pytest.approx(0.71, abs=0.01)
    assert controller.timing.summary()["speedup_predicted"] == controller.timing.speedup_predicted


@pytest.mark.parametrize("parts", [1, 2])
def test_a_right_prediction_says_nothing(parts: int, caplog: pytest.LogCaptureFixture) -> None:
    config = MultirateConfig.ladder([1, 2, 4], idle="drift")
    costs = Multirate(config).assign(model := Tower()).describe()
    controller = train(model, config, 5, parts)
    assert caplog.messages == []
    assert f"{controller.timing.speedup_predicted:.2f}x" in costs


def test_a_pass_that_fails_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    model, config = Backwards(), MultirateConfig.two_rate("last:1", 2, idle="drift")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Multirate(config).attach(model, optimizer) as controller:
        controller.set_step(1)
        with pytest.raises(RuntimeError, match="mat1"), controller.micro_batch():
            model(torch.randn(4, 7))
        assert caplog.messages == []
        with controller.micro_batch():
            model(torch.randn(4, 8)).sum().backward()
    assert "corrected" in caplog.text


def test_adapters_on_blocks_of_several_classes(caplog: pytest.LogCaptureFixture) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Tower(), peft.LoraConfig(r=2, target_modules=["inner", "up"]))
    train(model, MultirateConfig.two_rate("last:1", 2, idle="drift"))
    assert caplog.messages == []


def test_set_up_looks_at_a_stack_once_for_all_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for one more block does not depend on how many there are."""
    calls = [0]
    modules = nn.Module.named_modules

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return modules(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    found = []
    for blocks in (50, 100, 200):
        calls[0] = 0
        model = Tower(blocks)
        assert len(block_groups(model)) == blocks + 1  # the head is in the group of the top block
        Multirate(MultirateConfig.auto()).assign(model)
        found.append(calls[0])
    assert found[2] - found[1] <= 2.2 * (found[1] - found[0])


class ManyHeads(nn.Module):
    """Heads of several tasks, larger than the encoder or above a frozen one."""

    def __init__(self, name: str, heads: list[nn.Module]) -> None:
        super().__init__()
        self.encoder = Tower(3)
        self.add_module(name, nn.ModuleList(heads))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["named", "of layers", "of sequences"])
def test_heads_side_by_side_are_no_stack(kind: str, frozen: bool) -> None:
    make: dict[str, Callable[[], nn.Module]] = {
        "named": lambda: nn.Linear(2, 2),
        "of layers": lambda: nn.Linear(2, 400),
        "of sequences": lambda: nn.Sequential(nn.Linear(2, 99), nn.ReLU(), nn.Linear(99, 3)),
    }
    model = ManyHeads("task_heads" if kind == "named" else "outputs", [make[kind]() for _ in range(400)])
    model.encoder.requires_grad_(not frozen)
    assert stack_of(model) == ("encoder.layers", 3)
    names = preset_names("last", 1, model)
    assert {name for name, _ in model.named_parameters() if not name.startswith("encoder")} < names


def test_a_dictionary_of_numbered_blocks_is_a_stack() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleDict({f"block{i}": Narrow() for i in range(4)}), "fc": nn.Linear(8, 2)})
    assert stack_of(model) == ("blocks", 4)
    assert fast_of(model) == {"blocks.block3.inner", "fc"}
    with pytest.raises(ValueError, match="has no stack"):
        stack_of(nn.ModuleDict({"a": Narrow(), "b": Narrow()}))


def test_a_flat_sequence_with_norms_is_a_stack_if_there_is_no_other() -> None:
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())]
    assert stack_of(nn.Sequential(*layers)) == ("", 4)
    model = nn.ModuleDict({"layers": nn.ModuleList([Narrow(), Narrow()]), "head": nn.Sequential(*layers)})
    assert stack_of(model) == ("layers", 2)


class Taught(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = Tower()
        self.teacher = copy.deepcopy(self.student)
        self.teacher.embeddings = nn.Embedding(2, 2)  # so it counts as lying below, where there is no backward
        self.teacher.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        return torch.as_tensor(self.student(x) - target)


def test_the_cost_of_a_teacher_is_corrected(caplog: pytest.LogCaptureFixture) -> None:
    config = MultirateConfig.two_rate("last:1", 2, idle="drift")
    own = train(Tower(), config).timing.predicted_cost(full=False)
    controller = train(Taught(), config)
    (line,) = caplog.messages
    assert "some modules, such as a teacher, run without gradients" in line
    # Of a full step 3 parts of 4 are those of the student: one for its forward pass, two for backward.
    assert controller.timing.predicted_cost(full=False) == pytest.approx((1 + 3 * own) / 4, abs=0.02)


class Loop(Tower):
    """Runs its blocks twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.put(x)
        for layer in [*self.layers, *self.layers]:
            x = layer(x)
        return self.get_submodule(self.name)(x)


def test_blocks_that_run_again_are_named_as_above(caplog: pytest.LogCaptureFixture) -> None:
    controller = train(Loop(), MultirateConfig.two_rate("last:1", 2, idle="drift"))
    (line,) = caplog.messages
    assert "lie above 'layers.5.up'" in line
    assert "hook" not in line
    assert controller.timing.predicted_cost(full=False) > 0.6


def test_the_levels_of_a_model_are_found_once_for_all_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    levels = presets.levels_of
    monkeypatch.setattr(presets, "levels_of", lambda *args: asked.append(args) or levels(*args))
    Multirate(MultirateConfig.ladder([1] * 10 + [2] * 10, idle="drift")).assign(Tower(20))
    assert len(asked) == 1
