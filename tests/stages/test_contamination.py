"""Training rows that hold evaluation items: reported beside the scores, and left out where the recipe says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.layout import RunLayout
from soka_cli.stages import contamination as module
from soka_cli.stages.context import StageContext
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.report import report
from soka_cli.stages.train import train
from tests import builders
from tests.stages.pipeline import context_for

ENTRY = {"task": "gsm8k", "protocol": "plain", "path": "test.jsonl", "max_new_tokens": 6, "batch_size": 4}
THINGS = ("apples", "boats", "cups", "doors", "eggs", "flags", "grapes", "hats")
POISONED = {3: 1, 6: 4}  # training row -> the test item that stands in it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.tiny_model_folder(tmp_path_factory.mktemp("model"))


def row(thing: str, verb: str) -> dict[str, str]:
    question = f"Bob {verb} four {thing} on each of five days; how many {thing} is that?"
    return {"question": question, "answer": f"{verb} {thing}: 4*5=<<4*5=20>>20\n#### 20"}


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """A recipe whose training rows share no 13 words with the test items, but for two that are in both."""
    test = [row(thing, "sells") for thing in THINGS]
    training = [row(thing, "buys") for thing in THINGS]
    training = [test[POISONED[number]] if number in POISONED else one for number, one in enumerate(training)]
    builders.write_jsonl(tmp_path / "train.jsonl", training)
    builders.write_jsonl(tmp_path / "test.jsonl", test)
    builders.write_recipe(tmp_path / "tiny.yaml", builders.recipe_mapping(model, "train.jsonl", eval=[ENTRY], adapter={"method": "lora"}))
    return tmp_path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def evaluated(folder: Path, *overrides: str, **options: Any) -> tuple[StageContext, dict[str, Any]]:
    context = context_for(folder, *overrides, **options)
    assert evaluate(context, kinds=["base"]).status == "done"
    return context, read(context.layout.contamination)


def test_items_in_the_training_rows_are_named_with_the_rows(folder: Path) -> None:
    _, found = evaluated(folder)
    (evaluation,) = found["evaluations"]
    assert evaluation["ids"] == ["1", "4"]
    assert [one["rows"] for one in evaluation["overlaps"]] == [[{"source": 0, "row": 3}], [{"source": 0, "row": 6}]]
    assert found["training"] == {
        "rows": 8,
        "overlapping": 2,
        "dropped": None,
        "sources": [{"path": str(folder / "train.jsonl"), "rows": [3, 6]}],
    }
    assert (evaluation["share"], evaluation["whole"], evaluation["near"]) == (2 / 8, 2, 2)


def test_scores_stand_there_with_and_without_them(folder: Path) -> None:
    context, found = evaluated(folder)
    sets = found["evaluations"][0]["scores"]["base"]
    assert {name: some["items"] for name, some in sets.items()} == {"all": 8, "without": 6, "without_near": 6, "overlapping": 2}
    scores = read(context.layout.scores("gsm8k-plain", "base"))
    assert sets["all"]["metrics"] == scores["metrics"]


def test_rows_that_hold_no_item_give_an_empty_report(folder: Path) -> None:
    _, found = evaluated(folder, "data.train.rows=3")
    (evaluation,) = found["evaluations"]
    assert (evaluation["ids"], evaluation["share"], found["training"]["overlapping"]) == ([], 0.0, 0)
    assert evaluation["scores"]["base"]["overlapping"] is None


def test_a_limit_compares_the_items_that_are_asked(folder: Path) -> None:
    assert evaluated(folder, "eval.0.limit=2")[1]["evaluations"][0]["ids"] == ["1"]


def test_the_outcome_shows_share_and_scores(folder: Path) -> None:
    outcome = evaluate(context_for(folder), kinds=["base"])
    assert outcome.figures["contamination"]["evaluations"][0]["overlapping"] == 2
    overlap, scores = outcome.tables[-2:]
    assert overlap.rows == (("gsm8k-plain", 8, "2 (25.0%)", 2, 0, 2, 2),)
    assert {line[2] for line in scores.rows} == {"strict", "flexible", "numeric"}
    assert any("2 of 8 training rows" in note for note in outcome.notes)


def test_the_report_shows_them(folder: Path) -> None:
    context, _ = evaluated(folder)
    report(context)
    for page in (context.layout.report_text, context.layout.report_page):
        text = page.read_text()
        assert "Items that training rows hold" in text
        assert "25.0%" in text
    assert read(context.layout.report_findings)["contamination"]["evaluations"][0]["near"] == 2


def test_nothing_is_compared_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, found = evaluated(folder)
    train(context)
    monkeypatch.setattr(module, "compare", lambda *_: pytest.fail("the rows were read again"))
    evaluate(context, kinds=["adapter"])
    again = read(context.layout.contamination)
    assert list(again["evaluations"][0]["scores"]) == ["base", "adapter"]
    assert again["training"] == found["training"]


def test_other_training_rows_are_compared_anew(folder: Path) -> None:
    evaluated(folder)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    builders.write_jsonl(folder / "train.jsonl", rows[:4])
    context = context_for(folder)
    assert evaluate(context, kinds=["base"]).status == "already done"
    assert read(context.layout.contamination)["evaluations"][0]["ids"] == ["1"]


def test_training_rows_that_are_not_here_keep_nothing_from_being_evaluated(folder: Path) -> None:
    (folder / "train.jsonl").unlink()
    context = context_for(folder)
    outcome = evaluate(context, kinds=["base"])
    assert outcome.figures["contamination"] is None
    assert any("No overlap" in warning for warning in context.reporter.warnings)
    assert not context.layout.contamination.exists()


def test_a_run_that_was_trained_on_other_rows_is_not_judged_by_these(folder: Path) -> None:
    train(context_for(folder))
    context = context_for(folder, "data.train.rows=3")
    assert evaluate(context, kinds=["base"]).figures["contamination"] is None
    assert any("other rows" in warning for warning in context.reporter.warnings)


def ledger(layout: RunLayout) -> Any:
    return read(layout.environment("train"))["data"]


def test_dropped_rows_are_not_trained_on_and_are_counted(folder: Path) -> None:
    context = context_for(folder, "data.decontaminate=drop")
    train(context)
    assert ledger(context.layout)["decontaminated"] == {
        "words": 13,
        "dropped": 2,
        "sources": [{"path": str(folder / "train.jsonl"), "dropped": 2, "rows": [3, 6]}],
    }
    account = ledger(context.layout)["train"]
    assert (account["read"], account["used"], account["dropped"]) == (8, 6, {"an evaluation has it too": 2})
    assert not context.reporter.warnings
    assert any("2 of 8 training rows" in message for message in context.reporter.messages)


def test_by_default_every_row_is_trained_on(folder: Path) -> None:
    context = context_for(folder)
    train(context)
    assert ledger(context.layout)["train"]["used"] == 8
    assert "decontaminated" not in ledger(context.layout)


def test_after_dropping_no_item_is_in_what_was_trained_on(folder: Path) -> None:
    train(context_for(folder, "data.decontaminate=drop"))
    _, found = evaluated(folder, "data.decontaminate=drop")
    assert found["training"] == {"rows": 6, "overlapping": 0, "dropped": 2, "sources": [{"path": str(folder / "train.jsonl"), "rows": []}]}
    assert found["evaluations"][0]["ids"] == []


def test_rows_are_dropped_for_all_items_whatever_the_limit(folder: Path) -> None:
    train(context_for(folder, "data.decontaminate=drop", "eval.0.limit=1"))
    assert train(context_for(folder, "data.decontaminate=drop")).status == "already done"


def test_other_items_make_a_decontaminated_training_stale(folder: Path) -> None:
    train(context_for(folder, "data.decontaminate=drop"))
    builders.write_jsonl(folder / "test.jsonl", [row(thing, "hides") for thing in THINGS])
    with pytest.raises(SokaError) as caught:
        train(context_for(folder, "data.decontaminate=drop"))
    assert caught.value.exit_code == ExitCode.RUN
    assert "decontaminated_of" in caught.value.why


def test_other_items_leave_an_ordinary_training_alone(folder: Path) -> None:
    train(context_for(folder))
    builders.write_jsonl(folder / "test.jsonl", [row(thing, "hides") for thing in THINGS])
    assert train(context_for(folder)).status == "already done"


def test_dropping_every_row_is_refused(folder: Path) -> None:
    builders.write_jsonl(folder / "train.jsonl", [row(thing, "sells") for thing in THINGS])
    with pytest.raises(SokaError) as caught:
        train(context_for(folder, "data.decontaminate=drop"))
    assert caught.value.exit_code == ExitCode.DATA


def test_dropping_needs_something_to_compare_with(folder: Path) -> None:
    with pytest.raises(SokaError) as caught:
        context_for(folder, "data.decontaminate=drop", "eval=[]")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "decontaminate" in str(caught.value.where) + str(caught.value.why)


def test_of_several_sources_each_row_is_named_by_its_source(folder: Path) -> None:
    conversation = [{"role": "user", "content": row("cups", "sells")["question"]}, {"role": "assistant", "content": "20"}]
    builders.write_jsonl(folder / "chat.jsonl", [{"messages": []}, {"messages": "none"}, {"messages": conversation}])
    recipe = (folder / "tiny.yaml").read_text()
    assert "  train:\n    path: train.jsonl\n    task: gsm8k\n" in recipe
    several = "  train:\n  - {path: train.jsonl, task: gsm8k}\n  - {path: chat.jsonl, messages: messages}\n"
    (folder / "tiny.yaml").write_text(recipe.replace("  train:\n    path: train.jsonl\n    task: gsm8k\n", several))
    _, found = evaluated(folder)
    assert [source["rows"] for source in found["training"]["sources"]] == [[3, 6], [2]]
    assert found["evaluations"][0]["ids"] == ["1", "2", "4"]
    assert found["evaluations"][0]["overlaps"][1]["rows"] == [{"source": 1, "row": 2}]


def test_held_out_rows_are_decontaminated_too(folder: Path) -> None:
    context = context_for(folder, "data.decontaminate=drop", "data.validation.fraction=0.5")
    train(context)
    account = ledger(context.layout)
    assert (account["train"]["used"], account["validation"]["used"]) == (3, 3)
    assert account["train"]["dropped"] == {"an evaluation has it too": 2}
    assert account["validation"]["dropped"] == {}


@pytest.fixture
def with_validation(folder: Path) -> Path:
    """The same with a file of validation rows, the second of which is test item 2."""
    builders.write_jsonl(folder / "held-out.jsonl", [row("boats", "hides"), row("cups", "sells"), row("doors", "hides")])
    return folder


def held_out_path(folder: Path) -> str:
    return str(folder / "held-out.jsonl")


def test_rows_of_a_validation_file_are_looked_at_and_named_apart(with_validation: Path) -> None:
    _, found = evaluated(with_validation, f"data.validation.path={held_out_path(with_validation)}")
    (evaluation,) = found["evaluations"]
    assert evaluation["ids"] == ["1", "2", "4"]
    assert evaluation["overlaps"][1]["rows"] == [{"source": "validation", "row": 1}]
    sources = [{"path": held_out_path(with_validation), "rows": [1]}]
    assert found["validation"] == {"rows": 3, "overlapping": 1, "dropped": None, "sources": sources}
    assert (found["training"]["rows"], found["training"]["overlapping"]) == (8, 2)


def test_validation_rows_that_hold_items_are_said(with_validation: Path) -> None:
    context = context_for(with_validation, f"data.validation.path={held_out_path(with_validation)}")
    notes = evaluate(context, kinds=["base"]).notes
    assert any(note.startswith("1 of 3 validation rows hold some of the items asked") for note in notes)
    report(context)
    assert "3 validation rows of a file of their own, 1 of them" in context.layout.report_text.read_text()


def test_a_validation_files_rows_are_dropped_as_training_rows_are(with_validation: Path) -> None:
    overrides = ("data.decontaminate=drop", f"data.validation.path={held_out_path(with_validation)}")
    context = context_for(with_validation, *overrides)
    train(context)
    account = ledger(context.layout)
    assert account["decontaminated"]["validation"] == {"path": held_out_path(with_validation), "dropped": 1, "rows": [1]}
    assert account["decontaminated"]["dropped"] == 2
    assert (account["validation"]["used"], account["validation"]["dropped"]) == (2, {"an evaluation has it too": 1})
    assert any("1 of 3 validation rows" in message for message in context.reporter.messages)
    _, found = evaluated(with_validation, *overrides)
    assert found["evaluations"][0]["ids"] == []
    assert (found["validation"]["rows"], found["validation"]["dropped"], found["training"]["dropped"]) == (2, 1, 2)


def test_validation_by_the_test_set_leaves_nothing_to_hold_out_and_is_refused(folder: Path) -> None:
    with pytest.raises(SokaError) as caught:
        train(context_for(folder, "data.decontaminate=drop", f"data.validation.path={folder / 'test.jsonl'}"))
    assert caught.value.exit_code == ExitCode.DATA
    assert "All 8 rows of data.validation" in caught.value.what and "data.validation.path" in caught.value.hint


def test_the_report_counts_the_rows_that_were_dropped(folder: Path) -> None:
    context = context_for(folder, "data.decontaminate=drop")
    train(context)
    evaluate(context, kinds=["base"])
    report(context)
    text = context.layout.report_text.read_text()
    assert "2 more that overlapped were left out of the training" in text
    assert "an evaluation has it too" in text
