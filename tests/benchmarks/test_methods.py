"""The methods of the accuracy benchmark do what their names say, on the same batches."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.accuracy import tasks, train_one
from benchmarks.accuracy.block_methods import LISA, BAdam
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.train_one import Spec
from tests.benchmarks.tiny_task import TINY, load, network


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
AUTO = ("multirate last:1 k5 drift", "auto 1.6")


@pytest.mark.usefixtures("_tiny")
def test_results_of_automatic_periods_have_the_chosen_periods() -> None:
    given, chosen = (train_one.run(Spec("tiny", "long", name, 1e-3, 0, "trial"), None)["periods"] for name in AUTO)
    assert given == [1, 5]
    assert chosen[0] == 1 < chosen[-1]


@pytest.mark.usefixtures("_tiny")
def test_a_task_in_bfloat16_trains_all_methods_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "tiny_bf16", dataclasses.replace(TINY, name="tiny_bf16", bf16=True))
    mixed: set[bool] = set()
    forward = torch.nn.Linear.forward

    def noted(self: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        mixed.add(torch.is_autocast_enabled("cpu"))
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    for task, name in itertools.product(("tiny", "tiny_bf16"), ("baseline", "multirate head k5 drift")):
        mixed.clear()
        result = train_one.run(Spec(task, "short", name, 1e-3, 0, "trial"), None)
        assert mixed == {task == "tiny_bf16"}
        assert result["settings"]["task"]["precision"] == {"tiny": "float32", "tiny_bf16": "bfloat16"}[task]
    assert {task.name for task in tasks.TASKS.values() if task.bf16} >= {"trec_bf16", "embedded_bf16"}


@pytest.mark.usefixtures("_tiny")
def test_inactive_modules_run_in_bfloat16_where_the_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: set[torch.dtype] = set()
    forward = torch.nn.Linear.forward

    def noted(self: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        dtypes.add(self.weight.dtype)
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)

    def used(name: str) -> set[torch.dtype]:
        dtypes.clear()
        train_one.train(Spec("tiny", "short", name, 1e-3, 0, "trial"), load())
        return dtypes.copy()

    assert used("multirate last:1 k5 freeze") == {torch.float32}
    assert used("multirate last:1 k5 freeze bfloat16") == {torch.float32, torch.bfloat16}


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize(
    "method", ["LoRA", "head only", "LISA", "multirate head k5 drift", "multirate last:1 k5 freeze"]
)
def test_every_method_sees_the_batches_of_the_baseline(method: str) -> None:
    def batches(name: str, seed: int) -> list[list[list[int]]]:
        data, seen = load(), []

        def collator(rows: list[dict[str, Any]]) -> Any:
            seen.append([row["input_ids"] for row in rows])
            return data.collator(rows)

        spec = Spec("tiny", "long", name, 1e-3, seed, "trial")
        train_one.train(spec, dataclasses.replace(data, collator=collator))
        return seen[:12]  # two epochs; validation rows follow

    baseline = batches("baseline", 0)
    assert batches(method, 0) == baseline
    assert batches(method, 1) != baseline
    assert baseline[:6] != baseline[6:]


def test_names_say_periods_and_idle_rules() -> None:
    for name, method in METHODS.items():
        if method.kind == "two_rate":
            words = "{fast} k{period} {idle}".format(**method.options)
            assert name.startswith(f"multirate {words}")
            assert [group.period for group in method.config.groups] == [1, method.options["period"]]
        elif method.kind == "ladder":
            periods = method.options["periods"]
            assert name.startswith(f"multirate ladder {','.join(map(str, periods))} {method.options['idle']}")
            assert [group.period for group in method.config.groups] == periods
        elif method.kind == "auto":
            assert name == f"auto {method.options['speedup']:g}"
        else:
            assert method.config is None


@pytest.mark.parametrize("kind", [LISA, BAdam])
def test_block_methods_train_the_blocks_they_say(kind: type) -> None:
    model = network(0)
    more = {"active": 2} if kind is LISA else {}
    callback = kind(model, interval=3, seed=0, **more)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = []
    for step in range(9):
        callback.on_step_begin(None, SimpleNamespace(global_step=step), None, optimizer=optimizer)
        before = {name: [p.clone() for p in part] for name, part in callback.parts.items()}
        model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {
            name
            for name, part in callback.parts.items()
            if any(not torch.equal(p, old) for p, old in zip(part, before[name], strict=True))
        }
        assert moved == set(callback.live)
        seen.append(moved)
    assert all(seen[i] == seen[i - i % 3] for i in range(9))
    assert len({frozenset(moved) for moved in seen}) > 1
    if kind is LISA:
        assert all(len(moved) == 3 and "outside" in moved for moved in seen)
    else:
        assert all(len(moved) == 1 for moved in seen)
        assert set(optimizer.state) == set(callback.parts[callback.live[0]])  # no state of other blocks
    callback.on_train_end(None, None, None)
    assert all(parameter.requires_grad for parameter in model.parameters())
