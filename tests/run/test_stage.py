import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.interrupt import Interrupted
from soka_cli.run.layout import RunLayout
from soka_cli.run.manifest import Manifest, StageRecord
from soka_cli.run.reporter import SilentReporter
from soka_cli.run.stage import Stage, recorded_recipe, stage_is_done
from tests.run.conftest import INPUTS, do_stage, files_under, in_child

CHANGED = {**INPUTS, "train": {"lr": 0.0001, "steps": 10}}
LONGER = {**INPUTS, "train": {"lr": 2e-05, "steps": 20}}


def record_of(layout: RunLayout) -> StageRecord:
    return Manifest.read(layout.manifest).stages["train"]


def refused(action: Callable[[], Any]) -> SokaError:
    with pytest.raises(SokaError) as caught:
        action()
    assert caught.value.exit_code == ExitCode.RUN
    assert caught.value.hint
    return caught.value


def fail_with(error: BaseException, *, write: bool = True) -> Callable[[Stage], None]:
    def work(stage: Stage) -> None:
        if write:
            stage.layout.train.mkdir(parents=True)
            (stage.layout.train / "metrics.jsonl").write_text('{"step": 1}\n')
        raise error

    return work


def test_a_finished_stage_is_recorded_with_inputs_outputs_and_environment(layout: RunLayout) -> None:
    do_stage(layout)
    record = record_of(layout)
    assert (record.status, record.inputs, record.command) == ("done", INPUTS, "soka train")
    assert [(output.path, output.bytes) for output in record.outputs] == [
        ("train/adapter/weights", (layout.adapter / "weights").stat().st_size)
    ]
    assert json.loads(layout.environment("train").read_text())["device"] == "cpu"
    assert layout.recipe.read_text() == "seed: 0\n"
    assert layout.recipe_source.read_text() == "# mine\nseed: 0\n"
    assert Path("runs/.last").read_text() == "runs/tiny\n"


def test_the_same_inputs_again_are_done_and_rewrite_nothing(layout: RunLayout) -> None:
    do_stage(layout)
    before = files_under(layout.root.parent)
    stage = do_stage(layout, json.loads(json.dumps(INPUTS)))
    assert stage.done and not stage.resumable and stage.record is not None
    after = files_under(layout.root.parent)
    lock = str(layout.lock)
    assert {**after, lock: None} == {**before, lock: None}


def test_changed_inputs_are_refused_with_the_recipe_difference(layout: RunLayout) -> None:
    do_stage(layout)
    before = files_under(layout.train)
    error = refused(lambda: do_stage(layout, CHANGED))
    assert error.why == "train.lr: 2e-05 -> 0.0001"
    assert "--force" in error.hint
    assert files_under(layout.train) == before
    assert record_of(layout).status == "done"


def test_force_keeps_the_old_stage_aside_and_begins_anew(layout: RunLayout) -> None:
    do_stage(layout)
    old = (layout.adapter / "weights").read_text()
    reporter = SilentReporter()
    stage = do_stage(layout, CHANGED, force=True, reporter=reporter)
    assert not stage.done and not stage.resumable
    (aside,) = layout.set_aside.iterdir()
    assert aside.name.startswith("train-20") and aside.name.endswith("Z")
    assert (aside / "adapter" / "weights").read_text() == old
    assert json.loads((aside / "stage.json").read_text())["inputs"] == INPUTS
    assert str(aside) in reporter.messages[-1]
    assert record_of(layout).inputs == CHANGED


def test_two_stages_set_aside_in_one_second_have_two_names(layout: RunLayout) -> None:
    do_stage(layout)
    do_stage(layout, CHANGED, force=True)
    do_stage(layout, INPUTS, force=True)
    assert len(list(layout.set_aside.iterdir())) == 2


def test_force_leaves_an_intact_stage_of_the_same_inputs_alone(layout: RunLayout) -> None:
    do_stage(layout)
    assert do_stage(layout, force=True).done
    assert not layout.set_aside.exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("boom"), "failed"), (KeyboardInterrupt(), "interrupted"), (Interrupted(15), "interrupted")],
)
def test_a_stage_that_ends_early_is_recorded_and_may_go_on(layout: RunLayout, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)):
        do_stage(layout, work=fail_with(error))
    assert record_of(layout).status == status
    stage = do_stage(layout, work=lambda stage: None)
    assert stage.resumable and not stage.done
    assert record_of(layout).status == "done"


def test_a_stage_left_without_finish_is_not_done(layout: RunLayout) -> None:
    with pytest.raises(ZeroDivisionError):
        do_stage(layout, work=fail_with(ZeroDivisionError()))
    assert not stage_is_done(layout, "train", INPUTS)
    do_stage(layout)
    assert stage_is_done(layout, "train", INPUTS) and not stage_is_done(layout, "train", CHANGED)


def test_begun_work_on_other_inputs_is_refused_and_force_sets_it_aside(layout: RunLayout) -> None:
    with pytest.raises(RuntimeError):
        do_stage(layout, work=fail_with(RuntimeError("boom")))
    assert "was begun" in refused(lambda: do_stage(layout, CHANGED)).what
    do_stage(layout, CHANGED, force=True)
    (aside,) = layout.set_aside.iterdir()
    assert (aside / "metrics.jsonl").exists()


def test_a_stage_that_failed_before_it_wrote_anything_binds_nobody_to_its_inputs(layout: RunLayout) -> None:
    with pytest.raises(RuntimeError):
        do_stage(layout, work=fail_with(RuntimeError("no such data file"), write=False))
    assert do_stage(layout, CHANGED).record is None
    assert record_of(layout).inputs == CHANGED


def test_more_of_the_same_is_an_extension(layout: RunLayout) -> None:
    def more_steps(old: dict[str, Any], new: dict[str, Any]) -> bool:
        return bool(new["train"]["steps"] > old["train"]["steps"])

    do_stage(layout)
    stage = do_stage(layout, LONGER, extends=more_steps)
    assert stage.resumable and not stage.done
    assert record_of(layout).inputs == LONGER
    refused(lambda: do_stage(layout, INPUTS, extends=more_steps))


def test_force_does_not_throw_away_what_may_be_extended(layout: RunLayout) -> None:
    do_stage(layout)
    assert do_stage(layout, LONGER, extends=lambda old, new: True, force=True).resumable
    assert not layout.set_aside.exists()


@pytest.mark.parametrize("damage", ["missing", "shorter", "same size", "a folder"])
def test_a_damaged_output_is_exit_5_naming_the_file_and_force_does_the_stage_again(layout: RunLayout, damage: str) -> None:
    do_stage(layout)
    path = layout.adapter / "weights"
    content = path.read_bytes()
    path.unlink()
    if damage == "shorter":
        path.write_bytes(content[:-1])
    if damage == "same size":
        path.write_bytes(b"?" + content[1:])
    if damage == "a folder":
        path.mkdir()
    assert refused(lambda: do_stage(layout)).where == str(path)
    do_stage(layout, force=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1, "stages": {"train": {}}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_exit_5_naming_it_and_nothing_is_touched(layout: RunLayout, content: bytes) -> None:
    do_stage(layout)
    layout.manifest.write_bytes(content)
    before = files_under(layout.train)
    for force in (False, True):
        assert refused(lambda force=force: do_stage(layout, force=force)).where == str(layout.manifest)  # type: ignore[misc]
    assert files_under(layout.train) == before


def test_files_without_a_manifest_are_refused_and_force_sets_them_aside(layout: RunLayout) -> None:
    do_stage(layout)
    layout.manifest.unlink()
    assert str(layout.train) in refused(lambda: do_stage(layout)).where
    do_stage(layout, force=True)
    assert len(list(layout.set_aside.iterdir())) == 1


def test_a_moved_directory_is_still_done(layout: RunLayout, tmp_path: Path) -> None:
    do_stage(layout)
    moved = tmp_path / "other machine" / "moved"
    moved.parent.mkdir()
    shutil.move(layout.root, moved)
    assert do_stage(RunLayout(moved)).done


def test_a_run_in_use_is_refused_whatever_is_asked(layout: RunLayout) -> None:
    def work(stage: Stage) -> None:
        assert in_child(lambda: do_stage(layout) and None) == 1

    do_stage(layout, work=work)
    assert in_child(lambda: do_stage(layout) and None) == 0


def test_the_log_holds_the_traceback_without_values_and_the_screen_error_is_untouched(layout: RunLayout) -> None:
    def work(stage: Stage) -> None:
        token = "hf_" + "secret"
        logging.getLogger("soka").info("working")
        raise RuntimeError(f"a bug of {len(token)}")

    with pytest.raises(RuntimeError, match="a bug of 9") as caught:
        do_stage(layout, work=work)
    log = layout.log("train").read_text()
    assert "Traceback" in log and "a bug of 9" in log and "working" in log
    assert "hf_secret" not in log
    assert any(str(layout.log("train")) in note for note in caught.value.__notes__)
    logging.getLogger("soka").error("after the stage")
    assert layout.log("train").read_text() == log


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("... I/O error: No space left on device (os error 28)"), MemoryError()],
)
def test_disk_or_memory_that_runs_out_in_a_stage_is_exit_6(layout: RunLayout, error: Exception) -> None:
    with pytest.raises(SokaError) as caught:
        do_stage(layout, work=fail_with(error))
    assert caught.value.exit_code == ExitCode.RESOURCES
    assert record_of(layout).status == "failed"


def test_a_full_disk_that_stops_even_the_manifest_shows_the_first_failure(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work(stage: Stage) -> None:
        monkeypatch.setattr("soka_cli.run.manifest.write_json", full)
        raise ZeroDivisionError("first")

    with pytest.raises(ZeroDivisionError, match="first"):
        do_stage(layout, work=work)


def test_a_run_directory_that_is_a_file_is_exit_5(layout: RunLayout) -> None:
    layout.root.parent.mkdir()
    layout.root.write_text("a file")
    assert str(layout.root) in refused(lambda: do_stage(layout)).where


def test_the_recorded_recipe_is_refused_when_it_was_edited_cut_or_lost(layout: RunLayout) -> None:
    do_stage(layout)
    assert recorded_recipe(layout).read_text() == "seed: 0\n"
    for text in ("seed: 1\n", "seed:", ""):
        layout.recipe.write_text(text)
        assert refused(lambda: recorded_recipe(layout)).where == str(layout.recipe)
    layout.recipe.unlink()
    assert refused(lambda: recorded_recipe(layout)).where == str(layout.recipe)


def test_seconds_add_up_over_interruptions(layout: RunLayout) -> None:
    with pytest.raises(RuntimeError):
        do_stage(layout, work=fail_with(RuntimeError("boom")))
    manifest = Manifest.read(layout.manifest)
    earlier = manifest.stages["train"].model_copy(update={"seconds": 1000.0})
    manifest.with_stage("train", earlier).write(layout.manifest)
    do_stage(layout, work=lambda stage: None)
    assert 1000.0 < record_of(layout).seconds < 1060.0
