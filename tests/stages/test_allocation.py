"""Rule budget through the stages: decompose shares the total out, and what got no term is left alone to the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from soka_cli.adapter import FactorFile, weight_digest
from soka_cli.adapter.methods import peft_config
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import RankRule, balanced, kron_dense, rearrange
from soka_cli.models.base import load_base
from soka_cli.stages import decomposition
from soka_cli.stages.allocation import allocated, spread_evenly
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import decompose
from soka_cli.stages.merge import merge
from soka_cli.stages.report import report
from soka_cli.stages.train import train
from tests import builders

TERM = balanced(32, 32).term_parameters
TARGETS = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(2) for kind in "qo"]
SMALL = TARGETS[2:]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose second layer's weights are a hundredth of their size, so that a budget passes them by."""
    folder = builders.tiny_model_folder(tmp_path_factory.mktemp("base"))
    model = builders.tiny_model()
    with torch.no_grad():
        for name in SMALL:
            model.get_submodule(name).weight *= 0.01
    model.save_pretrained(folder)
    return folder


def context_on(base: Path, folder: Path, *, run: str = "run", **rank: Any) -> StageContext:
    adapter = {"target_modules": ["q_proj", "o_proj"], "rank": {"rule": "budget", "parameters": 5 * TERM, **rank}}
    found: StageContext = builders.stage_context(
        folder, builders.recipe_mapping(base, builders.gsm8k_file(folder), adapter=adapter), run=run
    )
    return found


def layers(context: StageContext) -> dict[str, Any]:
    return dict(json.loads(context.layout.layers.read_text()))


def test_the_total_is_spent_and_modules_without_terms_are_named_apart(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path, parameters=5 * TERM + 3)
    outcome = decompose(context)
    found = layers(context)
    assert [module["name"] for module in found["modules"]] == TARGETS[:2]
    assert {module["rank_bound_by"] for module in found["modules"]} == {"budget"}
    assert found["totals"]["components"] == 5
    assert found["totals"]["parameters"] == sum(module["parameters"] for module in found["modules"]) == 5 * TERM
    assert found["without_terms"] == outcome.figures["without_terms"] == SMALL
    assert "2 of 4 target modules got no term, and no adapter" in outcome.notes


def test_the_records_are_those_of_the_terms_that_are_left(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path)
    decompose(context)
    file, spectra = FactorFile.read(context.layout.factors), load_file(context.layout.spectra)
    model = builders.tiny_model()
    for module in layers(context)["modules"]:
        name, rank = module["name"], module["rank"]
        weight, factors, spectrum = model.get_submodule(name).weight.detach(), file.modules[name], spectra[name]
        assert factors.rank == rank
        dense = kron_dense(factors.left, factors.right, factors.sigma)
        assert float((weight - dense).norm() / weight.norm()) == pytest.approx(module["relative_error"], rel=1e-5)
        assert module["energy_kept"] == pytest.approx(float(spectrum[:rank].square().sum()) / module["total_energy"])
        assert module["energy_computed"] > module["energy_kept"]
        assert module["parameters"] == rank * TERM
        assert set(module["ranks"]) == {"energy", "gap", "relative-gap", "chord", "gavish-donoho"}


def test_the_file_of_factors_has_a_digest_of_every_target_and_spectra_of_all(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path)
    decompose(context)
    file = FactorFile.read(context.layout.factors)
    assert set(file.modules) == set(TARGETS[:2])
    assert file.without_terms == tuple(SMALL)
    weights = load_file(base / "model.safetensors")
    assert file.digests == {name: weight_digest(weights[f"{name}.weight"]) for name in TARGETS}
    assert set(load_file(context.layout.spectra)) == set(TARGETS)


def test_max_and_floor_bound_the_ranks(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path, parameters=6 * TERM, max=2, floor=1)
    decompose(context)
    assert {module["name"]: (module["rank"], module["rank_bound_by"]) for module in layers(context)["modules"]} == {
        TARGETS[0]: (2, "max"),
        TARGETS[1]: (2, "max"),
        SMALL[0]: (1, "budget"),
        SMALL[1]: (1, "budget"),
    }


def test_the_stage_and_peft_give_the_same_terms(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path, parameters=7 * TERM)
    decompose(context)
    config: Any = peft_config(context.recipe.adapter, seed=context.recipe.seed)
    network = get_peft_model(load_base(context.recipe.model), config).base_model.model
    file = FactorFile.read(context.layout.factors)
    assert config.rank_pattern == {name: factors.rank for name, factors in file.modules.items()}
    for name, factors in file.modules.items():
        made: Any = network.get_submodule(name)
        assert torch.equal(made.start_factors("default").left, factors.left)
        assert torch.equal(made.start_factors("default").sigma, factors.sigma)


def test_equal_modules_are_told_apart_by_their_order_alone(tmp_path: Path) -> None:
    """Twice the same layer: five terms for four pairs of equal values, and two seeds that agree."""
    model = builders.tiny_model()
    model.model.layers[1].load_state_dict(model.model.layers[0].state_dict())
    folder = builders.tiny_model_folder(tmp_path / "model")
    model.save_pretrained(folder)
    ranks = []
    for seed in (0, 1):
        mapping = builders.recipe_mapping(folder, builders.gsm8k_file(tmp_path))
        mapping["adapter"] |= {"target_modules": ["q_proj"], "rank": {"rule": "budget", "parameters": 5 * TERM}}
        context = builders.stage_context(tmp_path, mapping | {"seed": seed}, run=f"run{seed}")
        outcome = decompose(context)
        modules = layers(context)["modules"]
        ranks.append({module["name"]: (module["rank"], module["rank_bound_by"]) for module in modules})
    assert ranks[0] == ranks[1] == {TARGETS[0]: (3, "unresolved"), TARGETS[2]: (2, "unresolved")}
    assert any("terms were taken in the order of the modules" in note for note in outcome.notes)


def test_a_killed_run_ends_with_the_files_of_an_undisturbed_one(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = context_on(base, tmp_path, run="whole")
    decompose(whole)
    done: list[str] = []
    original = decomposition.part_of

    def dying(*arguments: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append("one")
        return original(*arguments, **options)

    context = context_on(base, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decomposition, "part_of", dying)
        decompose(context)
    decompose(context)
    for name in ("factors", "spectra"):
        assert getattr(context.layout, name).read_bytes() == getattr(whole.layout, name).read_bytes()


@pytest.mark.parametrize(("rank", "least"), [({"parameters": TERM - 1}, TERM), ({"parameters": 4 * TERM - 1, "floor": 1}, 4 * TERM)])
def test_a_total_that_is_too_small_is_refused_before_a_weight_is_read(
    base: Path, tmp_path: Path, rank: dict[str, int], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decomposition, "part_of", lambda *_: pytest.fail("a weight was decomposed"))
    context = context_on(base, tmp_path, **rank)
    with pytest.raises(SokaError) as caught:
        decompose(context)
    assert (caught.value.exit_code, caught.value.where) == (ExitCode.USAGE, "adapter.rank.parameters")
    assert caught.value.why.endswith(f"the least that works is {least}")


def test_the_parts_are_left_alone_under_any_other_rule() -> None:
    parts: list[Any] = [object(), object()]
    assert allocated(RankRule(), parts) == parts


def test_an_even_spread_needs_no_weight() -> None:
    shapes = {name: balanced(32, 32) for name in TARGETS}
    even = spread_evenly(RankRule("budget", parameters=6 * TERM), shapes)
    assert [even[name].rank for name in TARGETS] == [2, 2, 1, 1]


def test_gavish_donoho_without_noise_says_that_it_computes_all_values(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    mapping = builders.recipe_mapping(base, builders.gsm8k_file(tmp_path), adapter={"rank": {"rule": "gavish-donoho"}})
    context: StageContext = builders.stage_context(tmp_path, mapping)
    object.__setattr__(context.reporter, "say", said.append)
    decompose(context)
    assert any("all of each weight's are computed" in line for line in said)
    spectra = load_file(context.layout.spectra)
    assert {module["name"]: min(module["m"] * module["n"], module["p"] * module["q"]) for module in layers(context)["modules"]} == {
        name: len(values) for name, values in spectra.items()
    }


def test_a_gradient_start_is_scaled_to_the_terms_that_are_left(base: Path, tmp_path: Path) -> None:
    """||K|| is that of as many leading terms of the weight, whatever the budget cut."""
    mapping = builders.recipe_mapping(base, builders.gsm8k_file(tmp_path))
    mapping["adapter"] |= {"target_modules": ["q_proj"], "rank": {"rule": "budget", "parameters": 5 * TERM}, "init": "gradient"}
    context = builders.stage_context(tmp_path, mapping)
    decompose(context)
    weights = load_file(base / "model.safetensors")
    for name, factors in FactorFile.read(context.layout.factors).modules.items():
        own = torch.linalg.svdvals(rearrange(weights[f"{name}.weight"], balanced(32, 32)).double())
        assert float(factors.sigma.double().norm()) == pytest.approx(float(own[: factors.rank].norm()), rel=1e-5)


def test_a_run_with_a_module_without_terms_trains_merges_and_reports(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path)
    train(context)
    saved = json.loads((context.layout.adapter / "adapter_config.json").read_text())
    assert set(saved["rank_pattern"]) == set(TARGETS[:2])
    assert all(name.replace(".", "\\.") in saved["exclude_modules"] for name in SMALL)
    tensors = load_file(context.layout.adapter_weights)
    trained = sum(tensor.numel() for name, tensor in tensors.items() if "soka_start" not in name)
    assert trained == 5 * TERM
    merge(context)
    before, after = load_file(base / "model.safetensors"), load_file(context.layout.merged_model / "model.safetensors")
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(TARGETS[:2])
    report(context)
    assert json.loads(context.layout.report_findings.read_text())


def test_the_report_names_the_modules_without_terms(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path)
    decompose(context)
    report(context)
    assert json.loads(context.layout.report_findings.read_text())["decomposition"]["without_terms"] == SMALL
    for page in ("report.md", "report.html"):
        text = (context.layout.report / page).read_text()
        assert f"2 more got no term of the budget, and no adapter: {', '.join(SMALL)}." in text


def test_a_report_of_modules_that_all_have_terms_speaks_of_no_others(base: Path, tmp_path: Path) -> None:
    context = context_on(base, tmp_path, parameters=6 * TERM, floor=1)
    decompose(context)
    report(context)
    assert "got no term" not in (context.layout.report / "report.md").read_text()
