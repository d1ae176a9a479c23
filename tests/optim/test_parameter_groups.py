"""Parameter groups by rate group and learning rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim import SGD, AdamW
from transformers import Trainer

from hf_multirate import Multirate, MultirateConfig, RateGroup, multirate_parameter_groups
from hf_multirate.optim.parameter_groups import FACTOR, divide_parameter_groups
from tests.support.runs import example


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))


CONFIG = MultirateConfig((RateGroup("fast", "^2", 1, lr_scale=4.0), RateGroup("slow", ".*", 3)))


def test_groups_have_rates_and_weight_decay() -> None:
    model = network()
    names = {p: name for name, p in model.named_parameters()}
    groups = multirate_parameter_groups(model, CONFIG, lr=0.5, weight_decay=0.1)
    found = [({names[p] for p in group["params"]}, group["lr"], group["weight_decay"]) for group in groups]
    assert found == [
        ({"0.weight"}, 0.5, 0.1),
        ({"0.bias", "1.weight", "1.bias"}, 0.5, 0.0),
        ({"2.weight"}, 2.0, 0.1),
        ({"2.bias"}, 2.0, 0.0),
    ]


def test_without_weight_decay_the_default_of_the_optimizer_applies() -> None:
    groups = multirate_parameter_groups(network(), CONFIG, lr=0.5)
    assert all(group["weight_decay"] == 0.3 for group in AdamW(groups, weight_decay=0.3).param_groups)
    assert [group["lr"] for group in groups] == [0.5, 2.0]


@pytest.mark.parametrize("family", ["bert", "vit", "resnet", "gpt2-lm"])
def test_weight_decay_is_the_rule_of_trainer(family: str) -> None:
    model, _ = example(family, 4)
    groups = multirate_parameter_groups(model, MultirateConfig.off(), lr=1.0, weight_decay=0.1)
    decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if p in decayed}
    assert names == set(Trainer.get_decay_parameter_names(None, model)) & dict(model.named_parameters()).keys()  # type: ignore[arg-type]


def test_frozen_parameters_are_in_no_group() -> None:
    model = network()
    model[0].requires_grad_(False)
    held = [p for group in multirate_parameter_groups(model, MultirateConfig.off(), lr=1.0) for p in group["params"]]
    assert held == [p for p in model.parameters() if p.requires_grad]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
def test_groups_of_lora_plus_are_divided_further() -> None:
    model, _ = example("bert", 4)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    given = create_loraplus_optimizer(model, AdamW, lr=1e-3, loraplus_lr_ratio=16).param_groups
    config = MultirateConfig.two_rate("last:1", 3, head_lr_scale=10)
    groups = multirate_parameter_groups(model, config, groups=given)
    names = {p: name for name, p in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in groups for p in group["params"]}
    assert {p for group in groups for p in group["params"]} == {p for group in given for p in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {1e-3}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {1.6e-2}
    assert {rate for name, rate in rates.items() if "classifier" in name and "lora" not in name} <= {1e-2, 0.16}


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({}, ValueError, "needs lr, the learning rate of a parameter with factor 1, got none"),
        ({"lr": "fast"}, TypeError, "lr must be"),
        ({"lr": 1.0, "weight_decay": "some"}, TypeError, "weight_decay must be"),
    ],
)
def test_bad_values_are_named(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        multirate_parameter_groups(network(), CONFIG, **arguments)


def test_an_optimizer_with_one_rate_is_not_divided() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = dict(optimizer.param_groups[0])
    divide_parameter_groups(optimizer, model, MultirateConfig.two_rate("^2", 3))
    assert [dict(group) for group in optimizer.param_groups] == [before]


def test_the_given_rate_comes_first_and_empty_groups_go() -> None:
    model = network()
    optimizer = SGD([{"params": list(model.parameters())}, {"params": []}], lr=0.1)
    divide_parameter_groups(optimizer, model, CONFIG)
    assert [(group["lr"], group[FACTOR], len(group["params"])) for group in optimizer.param_groups] == [
        (0.1, 1.0, 4),
        (0.4, 4.0, 2),
    ]


def test_groups_of_an_optimizer_of_optimizers_cannot_be_divided() -> None:
    class Several(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            self.inner = SGD(parameters, lr=0.1)

        @property
        def param_groups(self) -> Any:
            return list(self.inner.param_groups)

    model = network()
    with pytest.raises(ValueError, match="the parameter groups of optimizer Several cannot have learning rates"):
        divide_parameter_groups(Several(model.parameters()), model, CONFIG)


def test_wrapped_blocks_keep_their_weight_decay() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)], nn.Linear(4, 2))
    for i in range(3):
        model[i] = checkpoint_wrapper(model[i])
    groups = multirate_parameter_groups(model, MultirateConfig.two_rate(r"^3\.", 2), lr=0.1, weight_decay=0.01)
    decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert all(decay[p] == (0.01 if p.dim() > 1 else 0.0) for p in model.parameters())


def test_groups_may_name_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    config = MultirateConfig([RateGroup("top", r"^1\.", lr_scale=3.0), RateGroup("rest", ".*", 2)])
    plain = multirate_parameter_groups(model, config, lr=0.1, groups=[{"params": model.parameters()}])
    named = multirate_parameter_groups(model, config, lr=0.1, groups=[{"params": list(model.named_parameters())}])
    assert [group["lr"] for group in named] == [group["lr"] for group in plain] == [0.1, pytest.approx(0.3)]
    assert [group["param_names"] for group in SGD(named).param_groups] == [
        ["0.weight", "0.bias"],
        ["1.weight", "1.bias"],
    ]


def test_groups_may_be_divided_further() -> None:
    model = network()
    groups = multirate_parameter_groups(model, CONFIG, lr=0.5)
    halves = [{**group, "params": part} for group in groups for part in (group["params"][:1], group["params"][1:])]
    optimizer = AdamW([half for half in halves if half["params"]])
    Multirate(CONFIG).attach(model, optimizer).detach()


def test_the_state_of_other_groups_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    configs = [
        MultirateConfig((RateGroup("one", "^0", 1, lr_scale=scale), RateGroup("other", ".*", 2, lr_scale=2.0)))
        for scale in (3.0, 1.5)
    ]
    saved, loaded = (AdamW(multirate_parameter_groups(model, config, lr=0.1)) for config in configs)
    loaded.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match="parameter group 0 of the optimizer has the state of other parameters"):
        Multirate(configs[1]).attach(model, loaded)
    loaded.load_state_dict(AdamW(multirate_parameter_groups(model, configs[1], lr=0.1)).state_dict())
    Multirate(configs[1]).attach(model, loaded).detach()
