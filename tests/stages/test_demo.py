"""The demo's outcome, on a tiny model in place of the packaged one."""

import json
from pathlib import Path

import pytest

from soka_cli.run.lines import read_lines
from soka_cli.stages.demo import demo, example_answers
from soka_cli.stages.outcome import Outcome
from tests.stages.pipeline import context_for


@pytest.fixture
def shown(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Outcome]:
    """The demo's end after a run that did something."""
    with monkeypatch.context() as patched:
        patched.setattr("soka_cli.stages.demo.run", lambda context: finished[1])
        return finished[0], demo(context_for(finished[0]))


def test_it_ends_with_scores_two_answers_the_report_and_commands(shown: tuple[Path, Outcome]) -> None:
    folder, outcome = shown
    assert outcome.tables[0].title == "Scores"
    assert len(outcome.tables) == 3
    assert any(str(folder / "runs/tiny/report/report.html") in note for note in outcome.notes)
    assert any(command.startswith("soka generate --run") for command in outcome.next_commands)
    assert set(outcome.figures) >= {"before", "after", "examples", "scores"}
    json.dumps(outcome.figures, allow_nan=False)


def test_the_answers_are_those_of_the_predictions(shown: tuple[Path, Outcome]) -> None:
    folder, outcome = shown
    layout = context_for(folder).layout
    for kind in ("base", "adapter"):
        written = [row["completion"] for row in read_lines(layout.predictions("gsm8k-plain", kind))]
        assert all(example[kind] in written for example in outcome.figures["examples"])


def test_run_twice_it_says_that_all_is_done(shown: tuple[Path, Outcome]) -> None:
    folder, first = shown
    again = demo(context_for(folder))
    assert (first.status, again.status) == ("done", "already done")
    assert any("done before" in note for note in again.notes)
    assert not any("done before" in note for note in first.notes)
    assert again.tables == first.tables


def test_an_item_that_only_the_adapter_answers_comes_first(shown: tuple[Path, Outcome]) -> None:
    folder, _ = shown
    context = context_for(folder)
    path = context.layout.predictions("gsm8k-plain", "adapter")
    before = path.read_text()
    rows = read_lines(path)
    learnt = rows[-1]
    learnt["correct"]["strict"] = True
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        first = example_answers(context)[0]
    finally:
        path.write_text(before)
    assert (first["gold"], first["adapter"]) == (learnt["gold"], learnt["completion"])


def test_it_claims_no_lead_over_another_method(shown: tuple[Path, Outcome]) -> None:
    assert any("not one method's lead" in note and "templates" in note for note in shown[1].notes)
