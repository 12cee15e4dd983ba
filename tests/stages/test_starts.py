"""Where the terms come from: the weight, nothing, the loss gradient or an early update; and the shapes searched for them."""

import json
import shutil
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from soka_cli.adapter import FactorFile, SokaConfig, attach_factors, weight_digest
from soka_cli.adapter.methods import peft_config
from soka_cli.data.encode import encode_rows
from soka_cli.data.load import load_rows
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronFactors, RankRule, decompose_weight, kron_dense, module_seed, search_budget, search_shape
from soka_cli.models.base import load_base, load_folder, load_tokenizer
from soka_cli.stages import decomposition, lesson, starts
from soka_cli.stages.context import StageContext
from soka_cli.stages.decompose import decompose
from soka_cli.stages.merge import merge
from soka_cli.stages.plan import plan
from soka_cli.stages.report import report
from soka_cli.stages.train import train
from tests import builders

Contexts = Callable[..., StageContext]
INITS = ("weight", "random", "gradient", "early-update")
FROM_DATA = ("gradient", "early-update")
FIXED = {"rule": "fixed", "value": 3}


def context_in(
    folder: Path, model: Path, *, run: str = "run", rows: int = 10, options: dict[str, Any] | None = None, **adapter: Any
) -> StageContext:
    """A context for an adapter section and some rows; its run directory is `folder/run`."""
    data = builders.gsm8k_file(folder, rows)
    if adapter.get("init") in FROM_DATA:
        adapter = {"init_rows": rows, **adapter}
    if adapter.get("init") == "early-update":
        adapter = {"init_steps": 3, "init_lr": 1e-2, **adapter}
    context: StageContext = builders.stage_context(
        folder, builders.recipe_mapping(model, data, adapter={"rank": FIXED, **adapter}, **(options or {})), run=run
    )
    return context


@pytest.fixture
def contexts(llama_folder: Path, tmp_path: Path) -> Contexts:
    """Contexts on the tiny Llama, in a folder of this test's own."""

    def make(run: str = "run", model: Path = llama_folder, **choices: Any) -> StageContext:
        return context_in(tmp_path, model, run=run, **choices)

    return make


@pytest.fixture(scope="module")
def done(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    """Decomposed runs of each init and shape, each made once; read them only."""
    folder = tmp_path_factory.mktemp("done")

    @cache
    def make(init: str = "weight", shape: str = "balanced") -> StageContext:
        context = context_in(folder, llama_folder, run=f"{init}-{shape}", init=init, shape=shape)
        decompose(context)
        return context

    return make


def layers(context: StageContext) -> list[dict[str, Any]]:
    return list(json.loads(context.layout.layers.read_text())["modules"])


def searches(context: StageContext) -> list[dict[str, Any]]:
    return list(json.loads(context.layout.search.read_text())["modules"])


def factors(context: StageContext) -> dict[str, KronFactors]:
    return FactorFile.read(context.layout.factors).modules


def refusal(context: StageContext, exit_code: ExitCode) -> SokaError:
    with pytest.raises(SokaError) as caught:
        decompose(context)
    assert caught.value.exit_code is exit_code and caught.value.hint
    return caught.value


def dense(terms: KronFactors) -> Tensor:
    return kron_dense(terms.left, terms.right, terms.sigma)


def unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm()


def losses(context: StageContext, model: Any) -> tuple[list[Tensor], int]:
    """Summed loss of each row, one at a time without padding, and the number of supervised tokens: code of this test's own."""
    data = context.recipe.data
    rows, _ = encode_rows(
        load_tokenizer(context.recipe.model),
        load_rows(data.sources[0].path),
        source=data.sources[0],
        template=data.template,
        max_length=256,
    )
    found, tokens = [], 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        found.append(cross_entropy(model(input_ids=ids).logits[0, :-1], labels[1:], reduction="sum"))
        tokens += int((labels[1:] != -100).sum())
    return found, tokens


def targets_of(model: Any) -> dict[str, Tensor]:
    return {name: module.weight for name, module in model.named_modules() if name.endswith(("q_proj", "v_proj"))}


def fresh_model(context: StageContext) -> Any:
    model = load_base(context.recipe.model).requires_grad_(False)
    for weight in targets_of(model).values():
        weight.requires_grad_(True)
    return model


def own_gradient(context: StageContext) -> dict[str, Tensor]:
    model = fresh_model(context)
    rows, tokens = losses(context, model)
    (torch.stack(rows).sum() / tokens).backward()
    return {name: weight.grad.clone() for name, weight in targets_of(model).items() if weight.grad is not None}


def own_update(context: StageContext, steps: int, lr: float) -> dict[str, Tensor]:
    model = fresh_model(context)
    before = {name: weight.detach().clone() for name, weight in targets_of(model).items()}
    optimizer = torch.optim.AdamW(targets_of(model).values(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        rows, tokens = losses(context, model)
        (torch.stack(rows).sum() / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach() - before[name] for name, weight in targets_of(model).items()}


# ---- what is decomposed


def require_terms_of(context: StageContext, matrices: dict[str, Tensor], tolerance: float) -> None:
    """The factor file's terms point where those of `matrices` do, and the records are about these matrices."""
    spectra = load_file(context.layout.spectra)
    records = {one["name"]: one for one in layers(context)}
    assert len(matrices) == 4 and matrices.keys() == factors(context).keys()
    for name, terms in factors(context).items():
        found = decompose_weight(matrices[name], terms.shape, RankRule("fixed", value=3), seed=0)
        torch.testing.assert_close(unit(dense(terms)), unit(dense(found.factors)), rtol=0, atol=tolerance)
        torch.testing.assert_close(spectra[name][:3], found.spectrum[:3], rtol=tolerance, atol=0)
        assert records[name]["energy_kept"] == pytest.approx(found.choice.energy_kept, rel=tolerance)
        assert records[name]["total_energy"] == pytest.approx(found.total_energy, rel=tolerance)


def test_a_gradient_start_is_the_gradient_that_autograd_gives(done: Contexts) -> None:
    require_terms_of(done("gradient"), own_gradient(done("gradient")), 1e-4)


def test_the_gradient_of_a_transposed_weight_is_split_as_out_by_in(contexts: Contexts, tmp_path: Path) -> None:
    folder = builders.tiny_model_folder(tmp_path / "gpt2", "gpt2")
    context = contexts(model=folder, init="gradient", target_modules=["c_fc"])
    decompose(context)
    model = load_base(context.recipe.model).requires_grad_(False)
    weights = {f"transformer.h.{index}.mlp.c_fc": model.transformer.h[index].mlp.c_fc.weight.requires_grad_(True) for index in (0, 1)}
    rows, tokens = losses(context, model)
    (torch.stack(rows).sum() / tokens).backward()
    for name, terms in factors(context).items():
        assert weights[name].grad is not None
        found = decompose_weight(weights[name].grad.T, terms.shape, RankRule("fixed", value=3), seed=0)
        torch.testing.assert_close(unit(dense(terms)), unit(dense(found.factors)), rtol=0, atol=1e-4)


def test_an_early_update_is_that_of_a_copy_trained_apart(done: Contexts) -> None:
    context = done("early-update")
    require_terms_of(context, own_update(context, steps=3, lr=1e-2), 2e-3)


def test_micro_batches_add_up_to_one_batch(contexts: Contexts) -> None:
    spectra = []
    for size in (1, 4):
        context = contexts(f"run{size}", init="gradient", options={"train": {"micro_batch_size": size}})
        decompose(context)
        spectra.append(load_file(context.layout.spectra))
    for name in spectra[0]:
        torch.testing.assert_close(spectra[0][name], spectra[1][name], rtol=1e-4, atol=0)


def test_steps_read_the_next_rows_and_begin_again_after_the_last(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []
    collate = lesson.Collator.__call__

    def seen(self: Any, rows: Any) -> Any:
        read.append([row["row"] for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(lesson.Collator, "__call__", seen)
    decompose(contexts(rows=5, init="early-update", init_rows=2, init_steps=4, options={"train": {"micro_batch_size": 2}}))
    rows = [row for rows in read for row in rows]
    assert sorted(rows[:5]) == [0, 1, 2, 3, 4] and rows[5:] == rows[:3]


def test_which_rows_are_read_follows_from_the_seed(contexts: Contexts) -> None:
    found = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        context = contexts(run, init="gradient", init_rows=3, options={"seed": seed})
        decompose(context)
        found.append(load_file(context.layout.spectra)["model.layers.0.self_attn.q_proj"])
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], rtol=1e-3)


def test_rows_held_out_for_validation_are_not_read(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = lesson.encode

    def counted(context: StageContext, tokenizer: Any, parts: list[Any], name: str) -> Any:
        seen.extend(row for part in parts for row in part.rows)
        return original(context, tokenizer, parts, name)

    monkeypatch.setattr(lesson, "encode", counted)
    decompose(contexts(init="gradient", options={"data": {"validation": {"fraction": 0.3}}}))
    assert len(seen) == 7


def test_random_terms_have_the_weights_ranks_and_sigmas_and_directions_of_their_own(contexts: Contexts) -> None:
    rule = {"rule": "min", "tau": 0.9, "max": 5}
    weight, drawn = contexts("weight", rank=rule), contexts("random", init="random", rank=rule)
    decompose(weight)
    decompose(drawn)
    assert layers(weight) == [{**one, "seconds": other["seconds"]} for one, other in zip(layers(drawn), layers(weight), strict=True)]
    heads = []
    for name, terms in factors(drawn).items():
        assert torch.equal(terms.sigma, factors(weight)[name].sigma)
        assert float((unit(dense(terms)) * unit(dense(factors(weight)[name]))).sum()) < 0.5
        heads.append(terms.left[0])
    assert len({head.flatten()[0].item() for head in heads}) == len(heads), "each module draws its own"


@pytest.mark.parametrize("init", FROM_DATA)
def test_terms_from_data_have_the_norm_of_the_weights_own(done: Contexts, init: str) -> None:
    weight, learnt = done("weight"), done(init)
    own = {one["name"]: one["total_energy"] for one in layers(weight)}
    assert all(one["weight_energy"] == pytest.approx(own[one["name"]]) != one["total_energy"] for one in layers(learnt))
    for name, terms in factors(learnt).items():
        assert float(terms.sigma.norm()) == pytest.approx(float(factors(weight)[name].sigma.norm()), rel=1e-5)
        torch.testing.assert_close(terms.left.flatten(1).norm(dim=1), torch.ones(terms.rank))
        spectrum = load_file(learnt.layout.spectra)[name][: terms.rank]
        torch.testing.assert_close(terms.sigma.double() / terms.sigma[0], spectrum / spectrum[0], rtol=1e-5, atol=0)


# ---- files, and the pipeline behind them


@pytest.mark.parametrize("init", INITS)
def test_every_start_yields_the_same_files_for_the_base_weights(done: Contexts, init: str) -> None:
    weight, other = done("weight"), done(init)
    assert sorted(path.name for path in other.layout.decompose.iterdir()) == ["factors.safetensors", "layers.json", "spectra.safetensors"]
    assert not other.layout.decompose_parts.exists()
    first, second = load_file(weight.layout.factors), load_file(other.layout.factors)
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == {name: tuple(tensor.shape) for name, tensor in second.items()}
    model = load_base(other.recipe.model)
    digests = FactorFile.read(other.layout.factors).digests
    assert digests == {name: weight_digest(module) for name, module in targets_of(model).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["balanced", "search"])
@pytest.mark.parametrize("init", INITS)
def test_every_start_leaves_every_bit_of_the_base_s_answer(done: Contexts, init: str, shape: str, dtype: str) -> None:
    context = done(init, shape)
    section = context.recipe.model.model_copy(update={"dtype": dtype})
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        expected = load_base(section)(input_ids=ids).logits
        config: Any = peft_config(context.recipe.adapter, seed=context.recipe.seed)
        attached = attach_factors(load_base(section), config, context.layout.factors)
        assert torch.equal(attached(input_ids=ids).logits, expected)


@pytest.mark.parametrize("init", ["random", *FROM_DATA])
def test_a_run_trains_and_merges_from_every_start(contexts: Contexts, llama_folder: Path, init: str) -> None:
    context = contexts(init=init, shape="search", options={"train": {"steps": 2}})
    train(context)
    assert merge(context).status == "done"
    base, merged = (targets_of(load_folder(folder, dtype="float32")) for folder in (llama_folder, context.layout.merged_model))
    assert not any(torch.equal(base[name], merged[name]) for name in base)
    report(context)
    shown = json.loads(context.layout.report_findings.read_text())
    words = {"random": "weight", "gradient": "loss gradient", "early-update": "early update"}[init]
    assert f"share of the {words}'s squared norm" in context.layout.report_page.read_text()
    for one in shown["modules"]:
        before, after = (model[one["name"]].detach() for model in (base, merged))
        assert one["relative_update"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-2)


@pytest.mark.parametrize("init", FROM_DATA)
def test_other_data_makes_a_start_from_data_stale(contexts: Contexts, init: str) -> None:
    decompose(contexts(init=init))
    assert decompose(contexts(init=init)).status == "already done"
    assert "data.train.sha256" in refusal(contexts(init=init, rows=9, init_rows=10), ExitCode.RUN).why


def test_a_start_from_the_weight_reads_no_data_and_no_model(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model or its data was loaded")

    monkeypatch.setattr(starts, "Lesson", forbidden)
    for init in ("weight", "random"):
        decompose(contexts(init, init=init))
    assert decompose(contexts(init, init=init, rows=9)).status == "already done"


# ---- memory, interruption, refusal


def test_no_more_than_one_weights_gradient_lives_at_a_time(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    living: list[weakref.ref[Tensor]] = []
    peaks = []
    original = lesson.Lesson._matrix

    def counted(self: lesson.Lesson, name: str, gradient: Tensor | None) -> Tensor:
        assert gradient is not None
        living.append(weakref.ref(gradient))
        held = [weight for weight in self.model.parameters() if weight.grad is not None]
        peaks.append((len([one for one in living if one() is not None]), len(held)))
        return original(self, name, gradient)

    monkeypatch.setattr(lesson.Lesson, "_matrix", counted)
    decompose(contexts(init="gradient", target_modules="all-linear"))
    assert len(peaks) == 14 * 5, "14 weights, 5 micro-batches"
    assert set(peaks) == {(1, 1)}


@pytest.mark.parametrize("init", FROM_DATA)
def test_too_little_memory_is_refused_before_the_model_is_loaded(contexts: Contexts, monkeypatch: pytest.MonkeyPatch, init: str) -> None:
    monkeypatch.setattr(starts, "free_memory", lambda device: 1000)
    monkeypatch.setattr(lesson, "load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    error = refusal(contexts(init=init), ExitCode.RESOURCES)
    assert "0.00 GB are free" in error.what


def test_a_killed_run_goes_on_with_the_matrices_that_are_there(contexts: Contexts, done: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, context = done("gradient", "search"), contexts(init="gradient", shape="search")
    worked = []
    original = decomposition.make_start

    def dying(*arguments: Any, **options: Any) -> Any:
        if len(worked) == 2:
            raise KeyboardInterrupt
        worked.append("one")
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decomposition, "make_start", dying)
        decompose(context)
    with monkeypatch.context() as patch:
        patch.setattr(starts, "Lesson", lambda *_, **__: pytest.fail("the gradient was taken again"))
        decompose(context)
    for name in ("factors.safetensors", "spectra.safetensors", "search.json"):
        assert (context.layout.decompose / name).read_bytes() == (whole.layout.decompose / name).read_bytes()


def test_a_run_killed_amid_the_gradient_takes_it_again(contexts: Contexts, done: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    context = contexts(init="gradient")
    added = []
    original = starts.MatrixStore.add

    def dying(self: Any, name: str, matrix: Tensor) -> None:
        if len(added) == 7:
            raise KeyboardInterrupt
        added.append(name)
        original(self, name, matrix)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(starts.MatrixStore, "add", dying)
        decompose(context)
    assert context.layout.decompose_matrices.exists()
    decompose(context)
    assert context.layout.factors.read_bytes() == done("gradient").layout.factors.read_bytes()


def test_matrices_of_other_inputs_are_not_taken(contexts: Contexts, done: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decomposition, "make_start", dying)
        decompose(contexts(init="gradient", init_rows=4))
    context = contexts(init="gradient")
    decompose(context)
    assert context.layout.factors.read_bytes() == done("gradient").layout.factors.read_bytes()


def zeroed(base: Path, folder: Path, ending: str) -> Path:
    """A copy of the model with the weights of that name at zero."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    changed = {name: torch.zeros_like(tensor) if name.endswith(ending) else tensor for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_module_that_the_loss_does_not_move_is_named(contexts: Contexts, llama_folder: Path, tmp_path: Path) -> None:
    """With the attention's output at zero, nothing that goes into it has a gradient."""
    model = zeroed(llama_folder, tmp_path / "mute", "o_proj.weight")
    error = refusal(contexts(model=model, init="gradient"), ExitCode.TRAINING)
    assert "loss gradient of model.layers." in error.what and "is zero" in error.what


def test_early_steps_that_diverge_are_stopped(contexts: Contexts) -> None:
    error = refusal(contexts(init="early-update", init_lr=1e30), ExitCode.TRAINING)
    assert "diverged" in error.what and "of 3" in error.where and "adapter.init_lr=" in error.hint


@pytest.mark.parametrize("init", FROM_DATA)
def test_a_loss_that_is_not_finite_is_no_start(contexts: Contexts, llama_folder: Path, tmp_path: Path, init: str) -> None:
    shutil.copytree(llama_folder, tmp_path / "broken")
    tensors = load_file(llama_folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    assert "the loss is nan" in refusal(contexts(model=tmp_path / "broken", init=init), ExitCode.TRAINING).what


def test_fewer_rows_than_asked_for_are_said(contexts: Contexts) -> None:
    context = contexts(init="gradient", init_rows=64)
    decompose(context)
    assert "init gradient has 10 rows to read, 64 were asked for" in context.reporter.warnings  # type: ignore[attr-defined]


# ---- shapes


def test_search_json_compares_at_one_budget_and_layers_json_has_the_shape_chosen(contexts: Contexts) -> None:
    context = contexts(shape="search")
    outcome = decompose(context)
    assert [one["name"] for one in searches(context)] == [one["name"] for one in layers(context)]
    for found, module in zip(searches(context), layers(context), strict=True):
        assert found["chosen"] == {name: module[name] for name in "mnpq"}
        assert found["parameters"] == search_budget(RankRule("fixed", value=3), module["out_features"], module["in_features"])
        assert all(one["parameters"] <= found["parameters"] for one in found["candidates"])
        certified = [one for one in found["candidates"] if one["energy_kept"] is not None]
        taken = next(one for one in certified if found["chosen"].items() <= one.items())
        assert module["rank"] == taken["terms"] and module["parameters"] == taken["parameters"]
        assert module["energy_kept"] == pytest.approx(taken["energy_kept"], rel=1e-6)
        assert taken["energy_kept"] >= max(one["energy_kept"] for one in certified) / 1.1
    assert outcome.figures["search"]["modules"] == 4
    assert outcome.figures["search"]["energy_kept"]["searched"] >= outcome.figures["search"]["energy_kept"]["balanced"]


def test_the_matrix_that_is_searched_is_the_one_that_init_decomposes(done: Contexts) -> None:
    context = done("gradient", "search")
    gradient = own_gradient(context)
    for found in searches(context):
        matrix = gradient[found["name"]]
        expected = search_shape(matrix, found["parameters"], seed=module_seed(0, found["name"]))
        assert found["total_energy"] == pytest.approx(float(matrix.square().sum()), rel=1e-3)
        assert found["chosen"] == vars(expected.chosen.shape)


def test_no_search_json_without_a_search_and_a_pattern_may_search_alone(contexts: Contexts, done: Contexts) -> None:
    mixed = contexts(shape_pattern={"v_proj": "search"})
    decompose(mixed)
    assert not done().layout.search.exists()
    assert [one["name"].rpartition(".")[2] for one in searches(mixed)] == ["v_proj", "v_proj"]
    assert {(one["m"], one["n"]) for one in layers(mixed) if "q_proj" in one["name"]} == {(4, 8)}


def test_the_shape_does_not_depend_on_the_recipes_seed(contexts: Contexts) -> None:
    found = []
    for seed in range(3):
        context = contexts(f"seed{seed}", shape="search", target_modules="all-linear", options={"seed": seed})
        decompose(context)
        found.append([one["chosen"] for one in searches(context)])
    assert found[0] == found[1] == found[2]


def test_peft_finds_the_shapes_and_terms_that_decompose_writes(contexts: Contexts) -> None:
    rule = {"rule": "min", "tau": 0.9, "max": 4}
    context = contexts(shape="search", init="random", rank=rule)
    decompose(context)
    config = SokaConfig(target_modules=["q_proj", "v_proj"], shape="search", init="random", rank=rule)
    adapted: Any = get_peft_model(load_base(context.recipe.model), config)
    assert config.shape_pattern == {one["name"]: {"m": one["m"], "n": one["n"]} for one in layers(context)}
    for name, terms in factors(context).items():
        start = adapted.base_model.model.get_submodule(name).start_factors("default")
        assert torch.equal(start.left, terms.left) and torch.equal(start.right, terms.right) and torch.equal(start.sigma, terms.sigma)


@pytest.mark.parametrize("rank", [FIXED, {"rule": "min", "max": 6}, {"rule": "energy", "tau": 0.3, "max": 4}])
def test_the_plan_of_a_search_holds_what_comes_of_it(contexts: Contexts, rank: dict[str, Any]) -> None:
    context = contexts(shape="search", rank=rank, target_modules="all-linear")
    planned = plan(context).figures
    totals = decompose(context).figures
    for name in ("parameters", "components"):
        assert planned["totals"][name]["from"] <= totals[name] <= planned["totals"][name]["to"]
    assert all(one["shape"] is None and one["searched"] > 1 for one in planned["kinds"])
    assert (
        planned["totals"]["parameters"]["to"]
        <= plan(contexts("b", rank=rank, target_modules="all-linear")).figures["totals"]["parameters"]["to"]
    )


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ({"block": 4}, {(8, 8, 4, 4), (4, 8, 4, 4)}),
        ({"m": 16, "n": 1}, {(16, 1, 2, 32), (16, 1, 1, 32)}),
        ("balanced", {(4, 8, 8, 4), (4, 4, 4, 8)}),
    ],
)
def test_grouped_queries_and_non_square_shapes_are_split_as_asked(contexts: Contexts, shape: Any, sizes: set[tuple[int, ...]]) -> None:
    context = contexts(shape=shape)
    decompose(context)
    assert {tuple(one[name] for name in "mnpq") for one in layers(context)} == sizes


def test_the_low_rank_shape_is_the_ordinary_svd_from_end_to_end(contexts: Contexts) -> None:
    context = contexts(shape_pattern={"q_proj": {"m": 32, "n": 1}, "v_proj": {"m": 16, "n": 1}})
    decompose(context)
    for name, weight in targets_of(load_base(context.recipe.model)).items():
        left, sigma, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        torch.testing.assert_close(dense(factors(context)[name]).double(), left[:, :3] * sigma[:3] @ right[:3], rtol=0, atol=1e-5)


def test_a_block_that_does_not_divide_is_refused_with_the_nearest_that_do(contexts: Contexts) -> None:
    error = refusal(contexts(shape={"block": 24}), ExitCode.USAGE)
    assert "block 24 does not divide 32 and 32; the nearest that do: 16 and 32" in error.why


# ---- the plan of a start


def test_the_plan_counts_what_a_start_from_data_holds(contexts: Contexts) -> None:
    figures = {init: plan(contexts(init, init=init)).figures for init in INITS}
    assert figures["weight"]["start_memory"] is None and figures["random"]["start_memory"] is None
    model, targets = figures["weight"]["model"]["parameters"], 2 * (32 * 32 + 16 * 32)
    early, gradient = figures["early-update"]["start_memory"], figures["gradient"]["start_memory"]
    assert (early["weights"], early["gradients"], early["optimizer"]) == (4 * model, 4 * targets, 8 * targets)
    assert (gradient["weights"], gradient["gradients"], gradient["optimizer"]) == (4 * model, 2 * 4 * 32 * 32, 0)
    assert early["total"] == sum(value for name, value in early.items() if name != "total")


def test_the_plan_says_where_a_start_does_not_fit(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    from soka_cli.stages import plan as stage

    monkeypatch.setattr(stage, "available_memory", lambda: 1000)
    notes = plan(contexts(init="early-update")).notes
    assert any("init early-update loads the model" in note and "decompose will refuse (exit 6)" in note for note in notes)


# ---- other kinds of models


@pytest.mark.parametrize("init", FROM_DATA)
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("rxn-albert", {"question": "CCO.CC(=O)Cl>>", "answer": "CC(=O)OCC"}),
        ("aren-translit", {"question": "آتزمون", "answer": "atzmon"}),
        ("stories260K", {"question": "Once upon a time", "answer": ", there was a little girl."}),
    ],
)
def test_encoders_and_encoder_decoders_start_from_their_own_loss(tmp_path: Path, name: str, row: dict[str, str], init: str) -> None:
    model = builders.shared_folder("models", name)
    data = builders.write_jsonl(tmp_path / "rows.jsonl", [row])
    own = {"init": init, "init_rows": 1} | ({"init_steps": 2} if init == "early-update" else {})
    mapping = builders.recipe_mapping(model, data, adapter={"target_modules": "all-linear", **own})
    mapping["data"]["train"] = {"path": str(data), "prompt": "question", "target": "answer"}
    context = builders.stage_context(tmp_path, mapping)
    decompose(context)
    assert all(one["total_energy"] > 0 and one["rank"] == 2 for one in layers(context))


def test_an_encoder_predicts_masked_targets_and_an_encoder_decoder_writes_them(tmp_path: Path) -> None:
    """The loss of a lesson is the model's own on what a person would feed it."""
    for name, row, form in (
        ("rxn-albert", {"question": "CCO.CC(=O)Cl>>", "answer": "CC(=O)OCC"}, "masked"),
        ("aren-translit", {"question": "آتزمون", "answer": "atzmon"}, "encoder-decoder"),
    ):
        model = builders.shared_folder("models", name)
        data = builders.write_jsonl(tmp_path / f"{name}.jsonl", [row])
        mapping = builders.recipe_mapping(model, data, adapter={"target_modules": "all-linear", "init": "gradient", "init_rows": 1})
        mapping["data"]["train"] = {"path": str(data), "prompt": "question", "target": "answer"}
        taught = lesson.Lesson(builders.stage_context(tmp_path, mapping, run=name), [], "cpu")
        [(loss, _)] = taught._loss_shares(taught.rows)
        prompt, target = ([*taught.tokenizer(row[part], add_special_tokens=False).input_ids] for part in ("question", "answer"))
        target.append(taught.tokenizer.eos_token_id)
        first = taught.rows[0]["input_ids"][: len(taught.rows[0]["input_ids"]) - len(prompt) - len(target)]
        if form == "masked":
            ids = torch.tensor([[*first, *prompt, *[taught.tokenizer.mask_token_id] * len(target)]])
            logits = taught.model(input_ids=ids).logits[0, -len(target) :]
        else:
            start = taught.model.config.decoder_start_token_id
            ids, begun = torch.tensor([[*first, *prompt]]), torch.tensor([[start, *target[:-1]]])
            logits = taught.model(input_ids=ids, decoder_input_ids=begun).logits[0]
        assert taught.form == form
        assert float(loss.detach()) == pytest.approx(float(cross_entropy(logits, torch.tensor(target)).detach()), rel=1e-4)
