"""Small parts by themselves: telemetry, cost model, gradient check, arguments."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hf_multirate import MultirateConfig, MultirateTrainingArguments
from hf_multirate.cost import StepCosts, boundary, layers_of
from hf_multirate.gradient_check import GradientCheck
from hf_multirate.partition import assign
from hf_multirate.telemetry import Telemetry


def test_telemetry_leaves_out_the_first_step_of_a_kind() -> None:
    times = iter([0, 9, 10, 16, 20, 28, 30, 32, 40, 42])
    telemetry = Telemetry(2.5, clock=lambda: float(next(times)))
    for full in (True, True, False, False, False):
        telemetry.start()
        telemetry.stop(full=full)
    summary = telemetry.summary()
    assert (summary["seconds_full_step"], summary["seconds_fast_step"]) == (6.0, 2.0)
    assert (summary["full_steps"], summary["fast_steps"], summary["speedup_predicted"]) == (2, 3, 2.5)
    assert summary["speedup_realised"] == pytest.approx(5 * 6 / (2 * 6 + 3 * 2))


def test_telemetry_of_nothing_claims_nothing() -> None:
    assert Telemetry().summary()["speedup_realised"] is None


def _stack() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(9, 4), *(nn.Linear(4, 4, bias=False) for _ in range(4)))


@pytest.mark.parametrize(
    ("fast", "fast_cost"), [("4", 4 + 1), ("[34]", 4 + 2 + 1), ("0", 4 + 4), (r"[1-4]", 4 + 4 + 3)]
)
def test_cost_counts_forward_weight_gradients_and_input_gradients(fast: str, fast_cost: int) -> None:
    model = _stack()
    config = MultirateConfig.two_rate(fast, period=3)
    costs = StepCosts(["fast", "slow"], assign(config, model), layers_of(model))
    full = 4 + 4 + 4  # forward, weights, inputs of every layer: the table below requires a gradient too
    assert [costs.of((0, 1)), costs.of((0,))] == pytest.approx([1.0, fast_cost / full])
    assert costs.speedup(config.schedule.kinds) == pytest.approx(3 / (1.0 + 2 * fast_cost / full))


def test_boundary_is_the_first_live_parameter() -> None:
    assert boundary(layers_of(_stack()), {"4.weight", "2.weight"}) == "2.weight"


def test_a_parameter_of_a_resumed_run_has_had_a_gradient() -> None:
    part = nn.Linear(2, 2)
    groups = {"slow": dict(part.named_parameters())}
    assert GradientCheck(groups).silent == {"slow"}
    assert not GradientCheck(groups, had=part.parameters()).silent
    part.weight.grad = torch.ones(2, 2)
    resumed = GradientCheck(groups, strict=True, had=part.parameters())
    with pytest.raises(
        RuntimeError, match=r"1 of 2 parameters of rate group 'slow' got no gradient at step 7.*'bias'"
    ):
        resumed.check(frozenset({"slow"}), 7)


def _check(strict: bool = False) -> tuple[GradientCheck, dict[str, nn.Parameter]]:
    members = {name: nn.Parameter(torch.ones(1)) for name in "abc"}
    groups = {"fast": {"a": members["a"]}, "slow": {"b": members["b"], "c": members["c"]}}
    return GradientCheck(groups, strict=strict), members


def _give(members: dict[str, nn.Parameter], names: str) -> None:
    for name, parameter in members.items():
        parameter.grad = torch.ones(1) if name in names else None


FULL = frozenset({"fast", "slow"})


def test_idle_gradient_and_with_strict_a_silent_group_are_errors() -> None:
    check, members = _check(strict=True)
    _give(members, "ab")
    with pytest.raises(RuntimeError, match=r"idle at step 3.*'b'"):
        check.check(frozenset({"fast"}), 3)
    _give(members, "a")
    with pytest.raises(RuntimeError, match="'slow' got no gradient at step 5"):
        check.check(FULL, 5)


@pytest.mark.parametrize("silent", ["fast", "slow"])
def test_a_part_that_never_has_a_gradient_is_an_error_at_its_third_full_step(silent: str) -> None:
    check, members = _check()
    check.check(FULL, 0)  # of a batch that was given up: no turn of any group
    for step in (1, 2, 3, 4, 5):
        full = step in (1, 3, 5)
        _give(members, ("bc" if full else "") if silent == "fast" else "a")
        if step == 5:
            with pytest.raises(
                RuntimeError, match=rf"the {silent} rate groups \['{silent}'\] never got a gradient in 3"
            ):
                check.check(FULL, step)
        else:
            check.check(FULL if full else frozenset({"fast"}), step)


def test_a_gradient_that_was_there_before_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    for strict in (False, True):
        check, members = _check(strict)
        _give(members, "abc")
        check.check(FULL, 0)
        _give(members, "ab")
        if strict:
            with pytest.raises(RuntimeError, match=r"1 of 2 parameters.*'c'"):
                check.check(FULL, 5)
            continue
        assert check.check(FULL, 5)
        assert list(check.missed) == ["c"]
        assert check.check(FULL, 10)
        _give(members, "abc")
        assert check.check(FULL, 15)
        assert not check.missed
        check.summarize()
        found = [record.getMessage() for record in caplog.records]
        assert "1 of 2 parameters of rate group 'slow' got no gradient at step 5 (turn 2 of the group)" in found[0]
        assert found[1:] == ["gradients were missing for 1 parameters at some of their turns: c at 2 of 4."]


def test_a_parameter_that_never_had_a_gradient_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    check, members = _check()
    _give(members, "ab")
    for step in (0, 5):
        check.check(FULL, step)
    check.summarize()
    assert [": c. Further cases" in record.getMessage() for record in caplog.records] == [True]


def _arguments(folder: Path, **settings: object) -> MultirateConfig:
    return MultirateTrainingArguments(output_dir=str(folder), report_to=[], **settings).to_multirate_config()


@pytest.mark.parametrize(("word", "same"), [(False, "off"), (True, "on")])
def test_off_and_on_of_yaml_are_what_they_say(tmp_path: Path, word: bool, same: str) -> None:
    args = MultirateTrainingArguments(output_dir=str(tmp_path), report_to=[], multirate=word)
    assert args.multirate == same
    assert _arguments(tmp_path, multirate=word) == _arguments(tmp_path, multirate=same)


def test_arguments_build_the_config(tmp_path: Path) -> None:
    given = {
        "multirate_fast": "head",
        "multirate_period": 3,
        "multirate_idle": "hold",
        "multirate_idle_mode": "train",
        "multirate_idle_dtype": "bfloat16",
        "multirate_idle_compile": True,
    }
    more = {"idle_dtype": "bfloat16", "idle_compile": True}
    assert _arguments(tmp_path, **given) == MultirateConfig.two_rate("head", 3, "hold", idle_mode="train", **more)
    assert _arguments(tmp_path) == MultirateConfig.two_rate()
    assert _arguments(tmp_path, multirate="off") == MultirateConfig.off()
    drifting = _arguments(tmp_path, multirate_drift_steps=2)
    assert drifting == MultirateConfig.two_rate(drift_steps=2)
    assert [group.drift_steps for group in drifting.groups] == [None, 2]
    path = tmp_path / "c.json"
    path.write_text(MultirateConfig.two_rate("x").to_json())
    assert _arguments(tmp_path, multirate_config=str(path)) == MultirateConfig.two_rate("x")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multirate": "maybe"}, "maybe"),
        ({"multirate_period": 0}, "at least 1"),
        ({"multirate_fast": "last:x"}, "last:x"),
        ({"multirate_config": "none.json"}, "none.json"),
        ({"multirate_config": "none.json", "multirate_fast": "head"}, "multirate_fast"),
        ({"multirate_drift_steps": -1}, "multirate_drift_steps must be at least 0"),
        ({"multirate_drift_steps": 2, "multirate_idle": "hold"}, "only 'drift'"),
        ({"multirate_drift_steps": 0, "multirate": "auto"}, "multirate_drift_steps is given too"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_there(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        _arguments(tmp_path, **settings)
