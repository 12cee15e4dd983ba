"""From a name to a folder, up to the network's edge."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.errors as hub
import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models import snapshot as module
from soka_cli.models.snapshot import HTTP_ERROR, snapshot
from tests.builders import tiny_model_folder

LLAMA = "meta-llama/Llama-2-7b-hf"


def response(status: int) -> Any:
    return SimpleNamespace(headers={}, request=SimpleNamespace(url="https://secret.example/?token=hf_verysecret"), status_code=status)


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, cause: BaseException | None = None) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error from cause

    monkeypatch.setattr(module, "snapshot_download", download)


def refusal(name: str = LLAMA, **options: Any) -> SokaError:
    with pytest.raises(SokaError) as caught:
        snapshot(name, **options)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    assert caught.value.hint
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "the hub's own text could carry an address"
    return caught.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def test_a_folder_is_taken_as_it_is(folder: Path) -> None:
    assert snapshot(str(folder)) == folder


def test_a_folder_named_like_a_hub_id_wins_over_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, AssertionError("the hub was asked"))
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert snapshot("owner/name").resolve() == folder.resolve()


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_question_to_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, AssertionError("the hub was asked"))
    assert "no model folder" in refusal(name).what


def test_a_gated_model_says_where_the_licence_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, hub.GatedRepoError("gated", response=response(403)))
    error = refusal()
    assert "gated" in error.what
    assert all(part in error.hint for part in (f"https://huggingface.co/{LLAMA}", "hf auth login", "model.name=FOLDER"))


def test_a_missing_or_private_model_is_told_apart_from_a_gated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, hub.RepositoryNotFoundError("404", response=response(404)))
    assert "no model" in refusal().what


def test_a_missing_revision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, hub.RevisionNotFoundError("404", response=response(404)))
    assert "abc123" in refusal(revision="abc123").what


def test_offline_without_a_cached_copy_says_drop_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, hub.LocalEntryNotFoundError("nothing here"))
    assert "drop --offline" in refusal(offline=True).hint


def test_the_offline_variable_is_recognised_behind_the_hubs_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, hub.LocalEntryNotFoundError("nothing here"), hub.OfflineModeIsEnabled("HF_HUB_OFFLINE=1"))
    assert "HF_HUB_OFFLINE" in refusal().why


@pytest.mark.parametrize(
    "error",
    [
        hub.LocalEntryNotFoundError("an error happened"),
        ConnectionError("refused"),
        HTTP_ERROR("no route"),
    ],
)
def test_without_a_network_the_hint_is_to_download_elsewhere(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, error)
    found = refusal()
    assert "cannot be downloaded" in found.what and "hf download" in found.hint


def test_another_status_of_the_hub_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, hub.HfHubHTTPError("bad", response=response(503)))
    assert "503" in refusal().what


def test_a_full_disk_during_the_download_is_no_network_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, OSError(28, "No space left on device"))
    assert "No space left" in refusal().what


def test_a_name_that_nothing_could_have_is_refused() -> None:
    assert "possible Hub id" in refusal("two  spaces").what


def test_no_error_repeats_what_the_hub_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (hub.GatedRepoError, hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HfHubHTTPError):
        failing_with(monkeypatch, error("bearer hf_verysecret", response=response(401)))
        assert "hf_verysecret" not in str(refusal())


def test_only_the_weight_files_that_the_index_names_are_fetched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="30KB")
    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(sharded)

    monkeypatch.setattr(module, "snapshot_download", download)
    assert snapshot(LLAMA) == sharded
    assert asked[1] == sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(asked[1]) > 1


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    assert "config.json" in refusal(str(tmp_path)).what


def test_pickled_weights_are_refused_with_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    error = refusal(str(tmp_path))
    assert "pytorch_model.bin" in error.what and "save_pretrained" in error.hint


def test_a_tokenizer_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert snapshot(str(tmp_path), weights=False) == tmp_path
    assert "no weights" in refusal(str(tmp_path)).what
