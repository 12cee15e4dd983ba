"""Code that comes with a model runs only where the recipe asks for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.merge import merge
from soka_cli.stages.plan import plan
from soka_cli.stages.train import train
from tests import builders

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class TinyConfig(LlamaConfig):
    model_type = "tiny-own"


class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model whose code lies beside it, and the file that appears when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = builders.tiny_model_folder(tmp_path / "own"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "modeling_own.TinyConfig", "AutoModelForCausalLM": "modeling_own.TinyForCausalLM"}
    config |= {"model_type": "tiny-own", "architectures": ["TinyForCausalLM"], "auto_map": named}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(CODE.format(marker=str(marker)))
    return folder, marker


def context_of(folder: Path, model: Path, **section: Any) -> Any:
    mapping = builders.recipe_mapping(model, builders.gsm8k_file(folder), model=section, train={"steps": 1})
    return builders.stage_context(folder, mapping)


def test_a_models_own_code_does_not_run_unasked(own_code: tuple[Path, Path], tmp_path: Path) -> None:
    folder, marker = own_code
    for stage in (plan, train):
        with pytest.raises(SokaError) as caught:
            stage(context_of(tmp_path, folder))
        assert caught.value.exit_code is ExitCode.ENVIRONMENT and "model.trust_remote_code=true" in caught.value.hint
    assert not marker.exists()


def test_a_models_own_code_runs_where_it_is_trusted(own_code: tuple[Path, Path], tmp_path: Path) -> None:
    folder, marker = own_code
    context = context_of(tmp_path, folder, trust_remote_code=True)
    plan(context)
    assert train(context).status == "done"
    assert merge(context).status == "done"
    assert marker.exists() and (context.layout.merged_model / "modeling_own.py").is_file()


def test_no_option_of_a_recipe_holds_a_token() -> None:
    from soka_cli.recipe.options import sections

    names = {name for section in sections() for name in section.model_fields}
    assert not {name for name in names if ("token" in name and name != "max_new_tokens") or "secret" in name or "password" in name}
