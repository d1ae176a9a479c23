"""torch.compile: one graph for each set of live groups, none of them stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer
from hf_multirate.model.unwrap import is_compiled
from tests.support.runs import (
    COMPILED,
    CONFIG,
    PERIOD,
    assert_same,
    compiled_is_exact,
    example,
    history,
    trainer_for,
    weights,
)


# While it traces, dynamo reads what warns.
pytestmark = pytest.mark.filterwarnings("ignore")
LADDER = MultirateConfig.ladder([1, 2, 4], idle="drift")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Graphs(TrainerCallback):
    """How many graphs there are after each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    ("config", "settings", "wanted"),
    [
        (CONFIG, {}, [1, *[2] * 11]),
        (CONFIG, {"optim": "sgd"}, [1, *[2] * 11]),
        (CONFIG, {"gradient_accumulation_steps": 2}, [1, *[2] * 11]),
        (LADDER, {}, [1, 2, *[3] * 10]),
        (MultirateConfig.off(), {}, [1] * 12),
    ],
    ids=["default", "sgd", "gas2", "ladder", "off"],
)
def test_one_graph_for_each_set_of_live_groups(
    tmp_path: Path, config: MultirateConfig, settings: dict[str, Any], wanted: list[int]
) -> None:
    settings = {**settings, "max_steps": 12}
    graphs = Graphs()
    compiled = trainer_for(tmp_path, config, "llama-lm", callbacks=[graphs], **COMPILED, **settings)
    compiled.train()
    assert graphs.seen == wanted
    assert not counters["graph_break"]
    eager = trainer_for(tmp_path, config, "llama-lm", **settings)
    eager.train()
    exact = compiled_is_exact()
    assert_same(weights(compiled), weights(eager), exact=exact)
    assert_same(history(compiled), history(eager), exact=exact)


def test_a_resumed_run_compiles_the_same_two(tmp_path: Path) -> None:
    settings = {**COMPILED, "max_steps": 8, "save_strategy": "steps", "save_steps": 6}
    whole = trainer_for(tmp_path, CONFIG, "llama-lm", **settings)
    whole.train()
    counters.clear()
    torch._dynamo.reset()
    again = trainer_for(tmp_path, CONFIG, "llama-lm", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_same(weights(again), weights(whole))
    assert counters["stats"]["unique_graphs"] == 1  # steps 6 and 7 are fast-only


def test_evaluation_in_between_leaves_the_graphs(tmp_path: Path) -> None:
    graphs = Graphs()
    settings = {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset": example("llama-lm")[1][:4], "max_steps": 12}
    trainer = trainer_for(tmp_path, CONFIG, "llama-lm", callbacks=[graphs], **COMPILED, **settings)
    trainer.train()
    plain = Graphs()
    counters.clear()
    torch._dynamo.reset()
    trainer_for(tmp_path, None, "llama-lm", callbacks=[plain], **COMPILED, **settings).train()
    assert [ours - theirs for ours, theirs in zip(graphs.seen, plain.seen, strict=True)] == [0, *[1] * 11]


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_checkpointing_no_gradient_is_lost(tmp_path: Path, reentrant: bool) -> None:
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    graphs = Graphs()
    compiled = trainer_for(tmp_path, CONFIG, "llama-lm", callbacks=[graphs], max_steps=12, **COMPILED, **kwargs)
    compiled.train()
    assert len(set(graphs.seen[PERIOD + 1 :])) == 1
    eager = trainer_for(tmp_path, CONFIG, "llama-lm", max_steps=12)
    eager.train()
    assert_same(weights(compiled), weights(eager), exact=compiled_is_exact())


def test_what_counts_as_compiled() -> None:
    model = example("llama-lm")[0]
    assert not is_compiled(model)
    assert is_compiled(torch.compile(model, backend="eager"))
    model.model.layers[0].compile(backend="eager")
    assert is_compiled(model)


def test_layers_that_are_compiled_by_themselves(tmp_path: Path) -> None:
    ends = []
    for compiles in (True, False):
        model, rows = example("llama-lm")
        if compiles:
            for layer in model.model.layers:
                layer.compile(backend="eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with Multirate(CONFIG).attach(model, optimizer) as multirate:
            for step in range(2 * PERIOD):
                multirate.begin_step(step)
                batch = {key: value[None] for key, value in rows[step].items()}
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    assert_same(*ends)


def test_trainer_is_the_one_that_compiles(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG, "llama-lm", **COMPILED)
    trainer.train()
    assert isinstance(trainer, MultirateTrainer)
    assert is_compiled(trainer.model_wrapped)


def test_more_graphs_than_torch_makes_are_warned_of(tmp_path: Path, warnings_of: Any) -> None:
    config = MultirateConfig.ladder([1, 2, 4])
    with torch._dynamo.config.patch(recompile_limit=2):
        assert "3 kinds of steps" in warnings_of(trainer_for(tmp_path, config, "llama-lm", max_steps=2, **COMPILED))
        assert "kinds of steps" not in warnings_of(trainer_for(tmp_path, config, "llama-lm", max_steps=2))
    assert "kinds of steps" not in warnings_of(trainer_for(tmp_path, config, "llama-lm", max_steps=2, **COMPILED))


def test_nothing_is_compiled_again_after_the_first_cycle(tmp_path: Path) -> None:
    """The default ladder, with batches of different lengths."""
    graphs = Graphs()
    config = MultirateConfig.ladder([1, 2, 4], turns="fixed")
    trainer = trainer_for(tmp_path, config, "llama-lm", callbacks=[graphs], max_steps=12, **COMPILED)
    trainer.train_dataset = [
        {key: value[: len(value) - i // 2 % 3] for key, value in row.items()}
        for i, row in enumerate(trainer.train_dataset)
    ]
    trainer.args.train_sampling_strategy = "sequential"
    trainer.train()
    assert graphs.seen[4:] == graphs.seen[4:5] * 8
