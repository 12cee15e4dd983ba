"""Stage decompose: files of the contract, from the files of the base, one weight at a time."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from soka_cli.adapter import FactorFile, attach_factors, weight_digest
from soka_cli.adapter.methods import peft_config
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import kron_dense
from soka_cli.models.base import load_base
from soka_cli.models.checkpoint import Checkpoint
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages import decomposition, launch, parts
from soka_cli.stages.cautions import cautions
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import decompose, decompose_inputs
from soka_cli.stages.launch import Worker
from soka_cli.stages.plan import plan
from soka_cli.stages.work import planned
from tests.builders import gsm8k_file, recipe_mapping, shared_folder, tiny_model, tiny_model_folder, write_recipe
from tests.soak.sameness import differences

Contexts = Callable[..., StageContext]
MODULE = {"name", "out_features", "in_features", "m", "n", "p", "q", "rank", "rank_energy", "rank_elbow", "rank_bound_by", "energy_kept"}
MODULE |= {"total_energy", "relative_error", "sigma_error_bound", "parameters", "seconds", "ranks", "energy_computed", "stored_as"}
MODULE |= {"weight_energy"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture
def contexts(base: Path, tmp_path: Path) -> Contexts:
    def make(folder: Path = base, run: str = "run", force: bool = False, **sections: Any) -> StageContext:
        recipe = write_recipe(tmp_path / "recipe.yaml", recipe_mapping(folder, gsm8k_file(tmp_path), **sections))
        return StageContext(load_recipe(recipe), RunLayout(tmp_path / run), SilentReporter(), device="cpu", force=force)

    return make


def layers(context: StageContext) -> dict[str, Any]:
    return dict(json.loads(context.layout.layers.read_text()))


def refusal(context: StageContext, exit_code: ExitCode) -> SokaError:
    with pytest.raises(SokaError) as caught:
        decompose(context)
    assert caught.value.exit_code is exit_code and caught.value.hint
    return caught.value


ALL_LINEAR = {"target_modules": "all-linear", "rank": {"rule": "min", "tau": 0.9, "max": 5}}


def test_layers_json_has_the_contracts_fields_and_sums(contexts: Contexts) -> None:
    context = contexts(adapter=ALL_LINEAR)
    decompose(context)
    found = layers(context)
    assert len(found["modules"]) == 14
    for module in found["modules"]:
        assert set(module) == MODULE
        assert (module["m"] * module["p"], module["n"] * module["q"]) == (module["out_features"], module["in_features"])
        assert module["parameters"] == module["rank"] * (module["m"] * module["n"] + module["p"] * module["q"] + 1)
    assert found["totals"]["modules"] == 14
    assert found["totals"]["parameters"] == sum(module["parameters"] for module in found["modules"])
    assert found["totals"]["components"] == sum(module["rank"] for module in found["modules"])


def test_factors_are_the_weights_terms_and_the_error_is_what_is_missing(contexts: Contexts) -> None:
    context = contexts(adapter=ALL_LINEAR)
    decompose(context)
    model, file = tiny_model(), FactorFile.read(context.layout.factors)
    spectra = load_file(context.layout.spectra)
    for module in layers(context)["modules"]:
        weight, factors = model.get_submodule(module["name"]).weight.detach(), file.modules[module["name"]]
        dense = kron_dense(factors.left, factors.right, factors.sigma)
        assert torch.linalg.norm(weight - dense) / torch.linalg.norm(weight) == pytest.approx(module["relative_error"], rel=1e-4)
        assert module["relative_error"] ** 2 == pytest.approx(1 - module["energy_kept"], rel=1e-4)
        spectrum = spectra[module["name"]]
        assert spectrum.dtype is torch.float64 and bool((spectrum[:-1] >= spectrum[1:]).all()) and len(spectrum) >= module["rank"]
        assert torch.allclose(spectrum[: module["rank"]].float(), factors.sigma)


def test_a_conv1d_weight_is_split_as_out_by_in(contexts: Contexts, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "gpt2", "gpt2")
    context = contexts(folder, adapter={"target_modules": ["c_fc"], "rank": {"rule": "fixed", "value": 32}})
    decompose(context)
    file, model = FactorFile.read(context.layout.factors), tiny_model("gpt2")
    for name, factors in file.modules.items():
        weight = model.get_submodule(name).weight.detach()
        assert (factors.shape.out_features, factors.shape.in_features) == (weight.shape[1], weight.shape[0]) == (128, 32)
        missing = torch.linalg.norm(weight.T - kron_dense(factors.left, factors.right, factors.sigma)) / torch.linalg.norm(weight)
        assert missing == pytest.approx(next(one["relative_error"] for one in layers(context)["modules"] if one["name"] == name), rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_digests_are_those_of_the_loaded_base(contexts: Contexts, dtype: str) -> None:
    context = contexts(model={"dtype": dtype})
    decompose(context)
    model = load_base(context.recipe.model)
    for name, digest in FactorFile.read(context.layout.factors).digests.items():
        assert weight_digest(model.get_submodule(name).weight) == digest


def test_no_more_than_one_weight_is_read_at_a_time(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = Checkpoint.tensor

    def counted(self: Any, name: str) -> torch.Tensor:
        asked.append(name)
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    decompose(contexts())
    assert sorted(asked) == sorted(f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer in (0, 1) for kind in "qv")


def test_shards_and_a_single_file_give_the_same_factors(contexts: Contexts, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    one, many = contexts(run="one"), contexts(tmp_path / "sharded", run="many")
    decompose(one)
    decompose(many)
    first, second = load_file(one.layout.factors), load_file(many.layout.factors)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_time_there_is_nothing_to_do(contexts: Contexts) -> None:
    first = decompose(contexts())
    before = contexts().layout.factors.stat().st_mtime_ns
    second = decompose(contexts())
    assert (first.status, second.status) == ("done", "already done")
    assert second.figures == first.figures
    assert contexts().layout.factors.stat().st_mtime_ns == before


def test_the_same_base_in_another_folder_is_the_same_base(contexts: Contexts, base: Path, tmp_path: Path) -> None:
    decompose(contexts())
    shutil.copytree(base, tmp_path / "moved")
    assert decompose(contexts(tmp_path / "moved")).status == "already done"


def test_another_base_under_the_same_name_is_refused(contexts: Contexts, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    decompose(contexts(folder))
    shutil.rmtree(folder)
    tiny_model_folder(folder, seed=1)
    assert "base" in refusal(contexts(folder), ExitCode.RUN).why


def test_another_rank_is_refused_and_force_keeps_the_old_aside(contexts: Contexts) -> None:
    decompose(contexts())
    changed = {"rank": {"rule": "fixed", "value": 3}}
    assert "adapter.rank.value: 2 -> 3" in refusal(contexts(adapter=changed), ExitCode.RUN).why
    context = contexts(adapter=changed, force=True)
    decompose(context)
    assert {one["rank"] for one in layers(context)["modules"]} == {3}
    assert list(context.layout.set_aside.glob("decompose-*/**/factors.safetensors"))


def test_a_killed_run_goes_on_with_the_modules_that_are_missing(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contexts(run="whole")
    decompose(whole)
    worked: list[str] = []
    original = decomposition.make_start

    def dying(*arguments: Any, **options: Any) -> Any:
        if len(worked) == 3:
            raise KeyboardInterrupt
        worked.append("one")
        return original(*arguments, **options)

    monkeypatch.setattr(decomposition, "make_start", dying)
    context = contexts()
    with pytest.raises(KeyboardInterrupt):
        decompose(context)
    assert not context.layout.decompose.exists()
    worked.clear()
    decompose(context)
    assert len(worked) == 1, "three of four modules were finished before"
    assert not context.layout.decompose_parts.exists()
    first, second = load_file(whole.layout.factors), load_file(context.layout.factors)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert FactorFile.read(context.layout.factors).digests == FactorFile.read(whole.layout.factors).digests


def interrupted_once(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decomposition, "write_results", dying)
        decompose(context)


def test_a_damaged_part_is_done_again(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    context = contexts()
    interrupted_once(context, monkeypatch)
    written = sorted(context.layout.decompose_parts.iterdir())
    assert len(written) == 4
    written[0].write_bytes(written[0].read_bytes()[:100])
    written[1].write_bytes(b"")
    outcome = decompose(context)
    assert outcome.figures["modules"] == 4
    assert sum("is done again: its part is damaged" in warning for warning in context.reporter.warnings) == 2


def test_parts_of_other_inputs_are_not_taken(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_once(contexts(), monkeypatch)
    context = contexts(adapter={"rank": {"rule": "fixed", "value": 5}})
    decompose(context)
    assert {one["rank"] for one in layers(context)["modules"]} == {5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_index(contexts: Contexts, base: Path, tmp_path: Path, value: float) -> None:
    shutil.copytree(base, tmp_path / "broken")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 7] = value
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    error = refusal(contexts(tmp_path / "broken"), ExitCode.ENVIRONMENT)
    assert "model.layers.1.self_attn.v_proj.weight" in error.where and "(3, 7)" in error.why


def test_a_packed_weight_is_refused(contexts: Contexts, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "packed")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    assert "float8" in refusal(contexts(tmp_path / "packed"), ExitCode.ENVIRONMENT).what


def test_a_shape_that_does_not_divide_is_refused_before_any_work(contexts: Contexts) -> None:
    context = contexts(adapter={"shape": {"block": 7}})
    assert "7 does not divide" in refusal(context, ExitCode.USAGE).why
    assert not context.layout.decompose.exists() and not context.layout.decompose_parts.exists()


def test_a_head_tied_to_the_embedding_is_refused(contexts: Contexts, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "gpt2", "gpt2")
    assert "lm_head shares its weight" in refusal(contexts(folder, adapter={"target_modules": ["lm_head"]}), ExitCode.USAGE).what


def test_a_shape_pattern_changes_its_modules_alone(contexts: Contexts) -> None:
    context = contexts(adapter={"shape_pattern": {"v_proj": {"block": 2}}})
    decompose(context)
    sizes = {one["name"].rpartition(".")[2]: (one["p"], one["q"]) for one in layers(context)["modules"]}
    assert sizes["v_proj"] == (2, 2) and sizes["q_proj"] != (2, 2)


def test_other_methods_have_nothing_to_decompose(contexts: Contexts) -> None:
    context = contexts(adapter={"method": "lora"})
    outcome = decompose(context)
    assert "lora" in outcome.notes[0] and not context.layout.root.exists()


def test_the_table_counts_each_kind_and_sets_lora_beside(contexts: Contexts) -> None:
    context = contexts(adapter=ALL_LINEAR)
    outcome = decompose(context)
    modules = layers(context)["modules"]
    *kinds, last = outcome.tables[0].rows
    assert sum(int(row[1]) for row in kinds) == last[1] == len(modules)
    assert (
        outcome.figures["lora_parameters"] == last[-1] == sum(one["rank"] * (one["out_features"] + one["in_features"]) for one in modules)
    )
    assert sum(outcome.figures["bound_by"].values()) == len(modules)
    assert outcome.next_commands == (f"soka train --run {context.layout.root}",)
    json.dumps(outcome.figures, allow_nan=False)


def test_lora_and_pissa_are_set_beside_at_like_budgets(contexts: Contexts) -> None:
    outcome = decompose(contexts(adapter=ALL_LINEAR))
    like, total = outcome.figures["lora"], outcome.figures["parameters"]
    rank_one = sum(one["out_features"] + one["in_features"] for one in layers(contexts())["modules"])
    assert outcome.figures["pissa"] == like
    assert like["same_parameters"]["parameters"] == like["same_parameters"]["rank"] * rank_one <= total
    assert total - like["same_parameters"]["parameters"] < rank_one


def test_a_name_that_matches_nothing_while_others_do_is_a_warning(contexts: Contexts) -> None:
    context = contexts(adapter={"target_modules": ["q_proj", "query", "layers.7.self_attn.v_proj"]})
    outcome = decompose(context)
    expected = [f"{name} in target_modules matches nothing" for name in ("query", "layers.7.self_attn.v_proj")]
    assert outcome.figures["warnings"] == context.reporter.warnings == expected
    assert all(warning in context.layout.log("decompose").read_text() for warning in expected)
    assert [note for note in outcome.notes if note.startswith("warning")] == [f"warning: {one}" for one in expected]
    assert all(one.advice for one in cautions(expected, [], rule="min"))


def test_all_linear_says_which_layer_is_tied_and_so_left_out(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(tiny_model_folder(tmp_path / "gpt2", "gpt2"), adapter=ALL_LINEAR)
    (warning,) = decompose(context).figures["warnings"]
    assert warning == "lm_head is left out: it shares its weight with transformer.wte.weight"
    assert all(one.advice for one in cautions([warning], [], rule="min"))


def test_terms_of_a_fused_base_start_an_adapter_on_the_model(contexts: Contexts, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "fused", "hrm_text")
    context = contexts(folder, adapter={"target_modules": ["q_proj", "up_proj"]})
    decompose(context)
    attach_factors(load_base(context.recipe.model), peft_config(context.recipe.adapter, seed=0), context.layout.factors)


def test_terms_of_a_packed_base_start_an_adapter_on_it_and_the_outcome_says_what_they_come_from(contexts: Contexts, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the quant extra is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tiny_model_folder(tmp_path / "float")
    packing = BitsAndBytesConfig(load_in_8bit=True)
    packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=packing, device_map={"": "cpu"}, dtype=torch.float32)
    packed.save_pretrained(tmp_path / "packed")
    context = contexts(tmp_path / "packed", adapter={"target_modules": ["q_proj", "lm_head"]})
    outcome = decompose(context)
    assert outcome.figures["stored_as"] == {"int8": 2, "float32": 1}
    assert any("dequantised int8" in note for note in outcome.notes)
    attached = attach_factors(load_base(context.recipe.model), peft_config(context.recipe.adapter, seed=0), context.layout.factors)
    layer = attached.base_model.model.model.layers[0].self_attn.q_proj
    dense = kron_dense(*(getattr(layer, f"soka_start_{part}")["default"] for part in ("U", "V", "sigma")))
    error = torch.linalg.norm(layer.get_base_weight() - dense) / torch.linalg.norm(layer.get_base_weight())
    assert error == pytest.approx(layers(context)["modules"][0]["relative_error"], rel=1e-4)


def test_a_full_disk_exits_6_and_the_next_run_goes_on(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []

    def filling(tensors: Any, path: Path, metadata: Any = None) -> None:
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        saved.append(path)
        save_file(tensors, path, metadata=metadata)

    context = contexts()
    with monkeypatch.context() as patch:
        patch.setattr(parts, "save_file", filling)
        assert "The disk is full" in refusal(context, ExitCode.RESOURCES).what
    assert len(list(context.layout.decompose_parts.iterdir())) == 2
    decompose(context)
    assert "2 of 4 modules are there" in " ".join(context.reporter.messages)


def test_a_shard_that_shrinks_while_it_is_read_is_named(contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model_folder(tmp_path / "base")
    original = decomposition.decompose_modules

    def shrinking(*arguments: Any) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        original(*arguments)

    monkeypatch.setattr(decomposition, "decompose_modules", shrinking)
    error = refusal(contexts(folder), ExitCode.ENVIRONMENT)
    assert error.where == str(folder / "model.safetensors") and "bytes early" in error.why


def shared_out(context: StageContext, rank: int) -> None:
    """What process `rank` of two does after the first one's word."""
    checkpoint = Checkpoint(Path(context.recipe.model.name))
    plan = planned(context, checkpoint, decompose_inputs(context, checkpoint.digest))
    decomposition.help_decompose(context, plan, "cpu", Worker(rank, rank, 2))


def as_first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "CONNECT", launch.timedelta(seconds=0.2))


def test_two_processes_share_the_modules_and_leave_the_files_of_one(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, context = contexts(run="alone", adapter=ALL_LINEAR), contexts(adapter=ALL_LINEAR)
    decompose(alone)
    shared_out(context, 1)
    by_other = len(list(context.layout.decompose_parts.iterdir()))
    assert 0 < by_other < 14
    worked: list[str] = []
    original = decomposition.make_start
    monkeypatch.setattr(decomposition, "make_start", lambda *a, **o: (worked.append("one"), original(*a, **o))[1])
    as_first_of_two(monkeypatch)
    decompose(context)
    assert len(worked) == 14 - by_other
    assert differences(alone.layout, context.layout) == []


def test_the_first_process_does_what_a_dead_one_left(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, context = contexts(run="alone"), contexts()
    decompose(alone)
    monkeypatch.setattr(decomposition, "TAKEN_FOR_DEAD", 0.3)
    as_first_of_two(monkeypatch)
    decompose(context)
    assert differences(alone.layout, context.layout) == []
    assert any("does the others' work" in warning for warning in context.reporter.warnings)


@pytest.mark.parametrize(
    ("model", "modules", "among"),
    [
        ("llama288-math", 28, "model.layers.3.mlp.down_proj"),
        ("stories260K", 35, "model.layers.4.self_attn.o_proj"),
        ("rxn-albert", 8, "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query"),
        ("aren-translit", 96, "model.decoder.layers.5.encoder_attn.k_proj"),
    ],
)
def test_trained_models_of_every_form_decompose_and_plan_under_transformers_names(
    contexts: Contexts, model: str, modules: int, among: str
) -> None:
    folder = shared_folder("models", model)
    context = contexts(folder, adapter={"target_modules": "all-linear", "rank": {"rule": "min", "max": 4}})
    decompose(context)
    records = {one["name"]: one for one in layers(context)["modules"]}
    assert len(records) == modules and among in records
    assert FactorFile.read(context.layout.factors).modules.keys() == records.keys()
    kinds = plan(context).figures["kinds"]
    assert sum(one["modules"] for one in kinds) == modules
    assert {(one["out_features"], one["in_features"]) for one in kinds} == {
        (one["out_features"], one["in_features"]) for one in records.values()
    }
