"""The notes of the paper: told when they apply, with the numbers behind them, once."""

from pathlib import Path
from typing import Any

import pytest

from soka_cli.recipe.schema import AdapterSection
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.report import report
from soka_cli.stages.symptoms import Row, Watch, slow, steep, symptoms
from soka_cli.stages.train import train
from tests import builders

SOKA = AdapterSection.model_validate({"rank": {"rule": "min", "tau": 0.9, "max": 16}})


def steps(losses: list[float], norms: list[float] | None = None) -> list[Row]:
    return [Row(step, loss, norms[step - 1] if norms else 1.0) for step, loss in enumerate(losses, start=1)]


def test_a_norm_of_two_is_no_symptom_and_one_above_is_told_with_where_and_how_much() -> None:
    assert steep(steps([1.0] * 3, [1.0, 2.0, 0.5]), SOKA) is None
    found = steep(steps([1.0] * 4, [1.0, 2.5, 3.25, 0.5]), SOKA)
    assert found is not None and found.step == 2
    assert "above 2 in 2 of 4 logged steps, first at step 2, at most 3.25 at step 3" in found.sentence
    assert "adapter.rank.max=32" in found.advice


@pytest.mark.parametrize(("fall", "is_slow"), [(0.04, True), (0.06, False), (-0.1, True)])
def test_a_loss_that_falls_by_less_than_a_twentieth_in_a_thousand_steps_is_slow(fall: float, is_slow: bool) -> None:
    found = slow(steps([4.0] * 500 + [4.0 * (1 - fall)] * 500), SOKA)
    assert (found is not None) is is_slow
    if found is not None and fall > 0:
        assert "4 (means of 100 steps): it fell by 4.0%" in found.sentence and "adapter.rank.tau=0.95" in found.advice


def test_slowness_is_not_judged_before_the_thousandth_step() -> None:
    assert slow(steps([4.0] * 999), SOKA) is None
    assert slow([Row(step, 4.0, None) for step in range(10, 1100, 10)], SOKA) is not None  # logged every ten steps


@pytest.mark.parametrize(
    ("rank", "advice"),
    [
        ({"rule": "fixed", "value": 4}, "adapter.rank.value=8"),
        ({"rule": "budget", "parameters": 1000}, "adapter.rank.parameters=2000"),
        ({"rule": "energy", "tau": 0.8}, "adapter.rank.tau=0.9"),
        ({"rule": "elbow", "max": 8}, "adapter.rank.max=16"),
    ],
)
def test_what_to_try_follows_the_rank_rule(rank: dict[str, Any], advice: str) -> None:
    found = steep(steps([1.0], [3.0]), AdapterSection.model_validate({"rank": rank}))
    assert found is not None and advice in found.advice


def test_gradient_norms_of_other_methods_are_not_judged() -> None:
    lora = AdapterSection.model_validate({"method": "lora", "rank": {"rule": "fixed", "value": 4}})
    assert symptoms(steps([1.0], [30.0]), lora) == []


def test_a_symptom_is_told_once_at_its_step_and_not_again_after_a_resume() -> None:
    rows: list[dict[str, Any]] = []
    reporter = SilentReporter()
    watch = Watch(rows, SOKA, reporter)
    told = []
    for step in range(1, 1201):
        rows.append({"step": step, "loss": 4.0, "grad_norm": 2.5 if step == 7 or step > 1100 else 1.0})
        watch.look()
        told.append(len(reporter.warnings))
    assert told[5:7] == [0, 1] and told[998:1000] == [1, 2] and told[-1] == 2
    again = SilentReporter()
    resumed = Watch(rows, SOKA, again)
    rows.append({"step": 1201, "loss": 4.0, "grad_norm": 9.0})
    resumed.look()
    assert again.warnings == []


def test_the_run_warns_and_the_report_repeats_it_with_the_numbers(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soka_cli.stages.symptoms.NORM", 1e-6)
    context = builders.stage_context(tmp_path, builders.recipe_mapping(llama_folder, builders.gsm8k_file(tmp_path)))
    train(context)
    assert [warning for warning in context.reporter.warnings if "in 1 of 1 logged steps, first at step 1" in warning]
    report(context)
    for name in ("report_page", "report_text"):
        page = getattr(context.layout, name).read_text()
        assert "in 4 of 4 logged steps" in page and "adapter.rank.value=4" in page
