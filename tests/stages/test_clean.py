from pathlib import Path

import pytest

from soka_cli.errors import SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.lock import RunLock
from soka_cli.stages.clean import clean
from soka_cli.stages.context import StageContext
from tests.run.conftest import in_child


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return StageContext(load_recipe("gsm8k"), RunLayout(tmp_path / "run"))


def set_aside(context: StageContext) -> None:
    for name, size in (("train-20260101T000000Z", 10), ("merge-20260102T000000Z", 32)):
        (context.layout.set_aside / name / "sub").mkdir(parents=True)
        (context.layout.set_aside / name / "sub" / "file").write_bytes(b"x" * size)
    context.layout.adapter.mkdir(parents=True)
    (context.layout.adapter / "weights").write_text("kept")


def test_set_aside_stages_are_listed_with_their_sizes_and_stay(context: StageContext) -> None:
    set_aside(context)
    outcome = clean(context)
    assert [(Path(one["path"]).name, one["bytes"]) for one in outcome.figures["set_aside"]] == [
        ("merge-20260102T000000Z", 32),
        ("train-20260101T000000Z", 10),
    ]
    assert (outcome.figures["bytes"], outcome.figures["removed"]) == (42, False)
    assert len(list(context.layout.set_aside.iterdir())) == 2


def test_confirmed_they_are_removed_and_nothing_else_is(context: StageContext) -> None:
    set_aside(context)
    outcome = clean(context, confirmed=True)
    assert outcome.figures["removed"] and len(outcome.figures["set_aside"]) == 2
    assert not context.layout.set_aside.exists()
    assert (context.layout.adapter / "weights").read_text() == "kept"


def test_where_nothing_is_set_aside_nothing_is_made(context: StageContext) -> None:
    outcome = clean(context, confirmed=True)
    assert (outcome.status, outcome.figures["set_aside"]) == ("already done", [])
    assert not context.layout.root.exists()


def test_nothing_is_removed_under_a_run_at_work(context: StageContext) -> None:
    set_aside(context)

    def other_process() -> None:
        with pytest.raises(SokaError, match="in use by process"):
            clean(context, confirmed=True)

    with RunLock(context.layout.lock):
        assert in_child(other_process) == 0
    assert len(list(context.layout.set_aside.iterdir())) == 2
