"""Runs PEFT's own generic tests against SoKA: its test modules, unpacked from its source distribution, with SoKA as the method.

    SOKA_PEFT_TESTS=/path/to/peft-0.21.2 python -m tests.adapter.peft_generic [pytest options]

Without SOKA_PEFT_TESTS the source distribution of the installed PEFT is downloaded through pip. Nothing of PEFT's code is kept
here: in a temporary folder its tests become a package, this module is loaded as a pytest plugin that puts SoKA's cases where a
test is parametrised over methods, and tiny random models lie under the names that the tests load from the Hub.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "peft_tests"
MODULES = (
    "test_custom_models",
    "test_decoder_models",
    "test_encoder_decoder_models",
    "test_feature_extraction_models",
    "test_config",
    "test_quantization",
)
EDITS = {
    # The image pipeline is imported at the top and used by tests of other methods only.
    r"^from diffusers import StableDiffusionPipeline$": 'StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})',
    # Plain SGD at 0.5 on a sum of losses over inputs up to 90 diverges from factors of the weight's own size; PEFT lowers the
    # rate there for its own methods of that kind (OSF, HiRA), so SoKA joins them by the type's name.
    r"issubclass\(config_cls, \(VBLoRAConfig, RandLoraConfig, UniLoraConfig, OSFConfig\)\)": (
        'config_cls.__name__ in ("VBLoRAConfig", "RandLoraConfig", "UniLoraConfig", "OSFConfig", "SokaConfig")'
    ),
}
# The config that a test of configs loads from the Hub: any LoRA's does.
HUB_CONFIG = ("peft-internal-testing/tiny-opt-lora-revision", {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})


# ---- the runner


def peft_source(folder: Path) -> Path:
    """PEFT's unpacked source distribution: $SOKA_PEFT_TESTS (a folder or the archive), or a download into `folder`."""
    given = os.environ.get("SOKA_PEFT_TESTS")
    if given and Path(given).is_dir():
        return Path(given)
    archive = Path(given) if given else _downloaded(folder)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if (path / "tests" / "testing_common.py").is_file())


def _downloaded(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "-d", str(folder)]
    subprocess.run([*command, f"peft=={version('peft')}"], check=True, capture_output=True, timeout=300)
    return next(folder.glob("peft-*.tar.gz"))


def lay_out(source: Path, folder: Path) -> None:
    """Make the package of tests and the tiny models under `folder`, from which pytest runs."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for path in (source / "tests").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in EDITS.items():
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        (package / path.name).write_text(text, encoding="utf-8")
    for name, build in TINY_MODELS.items():
        build().save_pretrained(folder / name)
    name, config = HUB_CONFIG
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def run(arguments: Sequence[str], modules: Sequence[str] = MODULES, *, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the tests in a process of their own; its standard output is pytest's."""
    with tempfile.TemporaryDirectory(prefix="soka-peft-tests-") as name:
        folder = Path(name)
        lay_out(peft_source(folder), folder / "work")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(folder / "work"), str(REPOSITORY))),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "home"),
        }
        command = [sys.executable, "-m", "pytest", "-p", "tests.adapter.peft_generic", "-c", os.devnull, "--rootdir", ".", "-q"]
        files = [f"{PACKAGE}/{module}.py" for module in modules]
        options = ["-p", "no:cacheprovider", "-W", "ignore", *arguments, *files]
        return subprocess.run([*command, *options], cwd=folder / "work", env=environment, capture_output=capture, text=True)


# ---- tiny models under the names that the tests use


def _llama_like(config_class: str, **fields: Any) -> Callable[[], Any]:
    small = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    return lambda: _model("AutoModelForCausalLM", config_class, **(small | fields))


def _model(auto_class: str, config_class: str, **fields: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**({"vocab_size": 1024, "pad_token_id": 0} | fields))
    return getattr(transformers, auto_class).from_config(config)


def _encoder(config_class: str, **fields: Any) -> Callable[[], Any]:
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 37, "max_position_embeddings": 64}
    return lambda: _model("AutoModel", config_class, **(small | fields))


def _gpt2() -> Any:
    return _model("AutoModelForCausalLM", "GPT2Config", n_embd=32, n_layer=3, n_head=4, n_positions=128)


def _opt() -> Any:
    sizes = {"hidden_size": 16, "ffn_dim": 4, "num_hidden_layers": 5, "num_attention_heads": 4, "word_embed_proj_dim": 16}
    return _model("AutoModelForCausalLM", "OPTConfig", **sizes, max_position_embeddings=100)


def _opt_125m() -> Any:
    """Stands for the trained one that the quantisation tests load: 24 query and value projections, narrower."""
    sizes = {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 12, "num_attention_heads": 4, "word_embed_proj_dim": 64}
    return _model("AutoModelForCausalLM", "OPTConfig", **sizes, max_position_embeddings=128)


def _gptj() -> Any:
    return _model("AutoModelForCausalLM", "GPTJConfig", n_embd=32, n_layer=3, n_head=4, n_positions=128, rotary_dim=4)


def _t5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 4, "num_heads": 4}
    return _model("AutoModelForSeq2SeqLM", "T5Config", **sizes, decoder_start_token_id=0)


def _bart() -> Any:
    one_side = {"layers": 2, "attention_heads": 4, "ffn_dim": 4}
    layers = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in one_side.items()}
    return _model("AutoModelForSeq2SeqLM", "BartConfig", **layers, d_model=16, max_position_embeddings=100, pad_token_id=1)


TINY_MODELS: dict[str, Callable[[], Any]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": _opt,
    "peft-internal-testing/opt-125m": _opt_125m,
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": _gpt2,
    "hf-internal-testing/tiny-random-gpt2": _gpt2,
    "peft-internal-testing/tiny-random-GPTJForCausalLM": _gptj,
    "trl-internal-testing/tiny-random-LlamaForCausalLM": _llama_like("LlamaConfig"),
    "peft-internal-testing/tiny-dummy-qwen2": _llama_like("Qwen2Config", num_key_value_heads=2),
    "hf-internal-testing/tiny-random-MistralForCausalLM": _llama_like("MistralConfig", num_key_value_heads=2),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": _llama_like("Gemma3TextConfig", num_key_value_heads=2, head_dim=8),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": _t5,
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": _bart,
    "peft-internal-testing/tiny-random-BertModel": _encoder("BertConfig"),
    "peft-internal-testing/tiny-random-RobertaModel": _encoder("RobertaConfig", pad_token_id=1),
    "peft-internal-testing/tiny-random-DebertaModel": _encoder("DebertaConfig"),
    "peft-internal-testing/tiny-random-DebertaV2Model": _encoder("DebertaV2Config"),
}


# ---- the plugin: SoKA's cases in place of the methods' own

FIXED = {"rank": {"rule": "fixed", "value": 2}}
CUSTOM_CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("Vanilla MLP 1 SoKA", "MLP", {"target_modules": "lin0"}),
    ("Vanilla MLP 2 SoKA", "MLP", {"target_modules": ["lin0"]}),
    ("Vanilla MLP 3 SoKA", "MLP", {"target_modules": ["lin1"]}),
    ("Vanilla MLP 4 SoKA", "MLP", {"target_modules": ["lin0", "lin1"], **FIXED}),
    ("Vanilla MLP 5 SoKA", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("Vanilla MLP 6 SoKA", "MLP", {"target_modules": ["lin0"], "shape": {"m": 20, "n": 1}, **FIXED}),
    ("Vanilla MLP 7 SoKA", "MLP", {"target_modules": ["lin0"], "shape": {"block": 5}, "rank_pattern": {"lin0": 3}}),
    ("Embedding + transformers Conv1D SoKA", "EmbConv1D", {"target_modules": ["conv1d"]}),
]
PAIRS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("SoKA Same", {"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    ("SoKA Different", {"target_modules": ["lin0"]}, {"target_modules": ["lin1"], **FIXED}),
]


def _names(mark: pytest.Mark) -> list[str]:
    names = mark.args[0]
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def _soka_rows(names: list[str], rows: Sequence[Any]) -> list[Any] | None:
    """SoKA's rows for a parametrisation over methods; None for any other."""
    from peft import PromptLearningConfig

    from soka_cli.adapter import SokaConfig

    if names in (["config_cls"], ["config_class"]):
        return [SokaConfig]
    if names == ["config_class", "mandatory_kwargs"]:
        return [(SokaConfig, {})]
    if names == ["test_name", "model_id", "config_cls", "config_kwargs"]:
        return [(name, model, SokaConfig, dict(fields)) for name, model, fields in CUSTOM_CASES]
    if names == ["config_cls", "config_kwargs"] and not all(issubclass(row[0], PromptLearningConfig) for row in rows):
        task = next((row[1]["task_type"] for row in rows if isinstance(row, tuple) and "task_type" in row[1]), None)
        common = {"target_modules": None, "task_type": task} if task else {"target_modules": ["q_proj", "v_proj"]}
        return [(SokaConfig, dict(common)), (SokaConfig, common | FIXED)]
    if len(names) == 5 and names[2] == "config_cls":
        off = {"init_weights": False}
        return [(name, "soka", SokaConfig, first | off, second | off) for name, first, second in PAIRS]
    return None


def _with_soka(mark: pytest.Mark) -> pytest.Mark:
    rows = _soka_rows(_names(mark), mark.args[1]) if mark.name == "parametrize" else None
    if rows is None:
        return mark
    kept = {key: value for key, value in mark.kwargs.items() if key != "ids" or callable(value)}
    return getattr(pytest.mark, mark.name)(mark.args[0], rows, *mark.args[2:], **kept).mark


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    common: types.ModuleType | None = sys.modules.get(f"{PACKAGE}.testing_common")
    if common is not None:
        common._skip_if_conv1d_not_supported = lambda *_: None  # type: ignore[attr-defined]  # SoKA does Conv1D layers
    metafunc.definition.own_markers[:] = [_with_soka(mark) for mark in metafunc.definition.own_markers]


def _about_soka(item: pytest.Item) -> bool:
    from soka_cli.adapter import SokaConfig

    callspec = getattr(item, "callspec", None)
    return callspec is not None and any(value is SokaConfig for value in callspec.params.values())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if _about_soka(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _about_soka(item)])
    items[:] = kept


if __name__ == "__main__":
    named = [argument for argument in sys.argv[1:] if argument in MODULES]
    sys.exit(run([argument for argument in sys.argv[1:] if argument not in named], named or MODULES, capture=False).returncode)
