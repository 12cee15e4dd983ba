"""soka export: what stock PEFT loads without soka, exactly or with the error that is stated; the card; the Hub behind a yes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from peft import PeftModel, get_peft_model
from peft.tuners.lokr.layer import factorization
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from soka_cli.adapter.methods import peft_config
from soka_cli.cli.commands import app
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronShape, balanced
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.reporter import SilentReporter
from soka_cli.run.write import write_json
from soka_cli.stages import export as exporting
from soka_cli.stages import push
from soka_cli.stages.context import StageContext
from soka_cli.stages.export import export
from soka_cli.stages.lokr import factor_groups, lokr_factors, lokr_shape
from soka_cli.stages.low_rank import low_rank
from soka_cli.stages.updates import DenseUpdate, KronUpdate, LowRankUpdate
from tests.builders import gsm8k_file, recipe_mapping, tiny_model_folder, write_recipe

Contexts = Callable[..., StageContext]
IDS = list(range(4, 40))
SHAPES = {"q_proj": {"m": 4, "n": 4}, "v_proj": {"m": 4, "n": 4}, "down_proj": {"m": 4, "n": 6}}


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    """A run of the tiny Llama with a trained adapter, moved away from its start by noise."""

    def make(kind: str = "llama", *, method: str = "soka", moved: float = 0.05, force: bool = False, **adapter: Any) -> StageContext:
        base = tmp_path / "base"
        if not base.exists():
            tiny_model_folder(base, kind)
            (base / "LICENSE.txt").write_text("the base's own terms\n")
            (base / "README.md").write_text("---\nlicense: llama2\n---\n# The base\n")
        section = {"method": method, "target_modules": list(SHAPES), "rank": {"rule": "fixed", "value": 2}}
        section |= {"shape_pattern": SHAPES} if method == "soka" and kind == "llama" else {}
        mapping = recipe_mapping(base, gsm8k_file(tmp_path)) | {"adapter": {"method": "full"} if method == "full" else section | adapter}
        recipe = write_recipe(tmp_path / "recipe.yaml", mapping)
        context = StageContext(load_recipe(recipe), RunLayout(tmp_path / "run"), SilentReporter(), offline=True, force=force)
        if method != "full":
            adapt(context, moved)
        return context

    return make


def adapt(context: StageContext, moved: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(context.recipe.model.name, dtype=torch.float32)
    adapted = get_peft_model(model, peft_config(context.recipe.adapter, seed=0))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += moved * torch.randn_like(parameter)
    adapted.save_pretrained(str(context.layout.adapter), save_embedding_layers=False)


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0]


def trained_answers(context: StageContext) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(context.recipe.model.name, dtype=torch.float32)
    return answers(PeftModel.from_pretrained(base, str(context.layout.adapter)))


def refusal(context: StageContext, exit_code: ExitCode, *arguments: Any, **options: Any) -> SokaError:
    with pytest.raises(SokaError) as caught:
        export(context, *arguments, **options)
    assert caught.value.exit_code is exit_code and caught.value.hint
    return caught.value


def card_code(folder: Path) -> str:
    """The Python of the card, as a reader would paste it."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


STOCK = """
import sys
{code}
import torch
with torch.no_grad():
    logits = model.eval()(torch.tensor([{ids}])).logits[0]
assert not any(name.startswith("soka") for name in sys.modules), "soka is there"
torch.save(logits, "logits.pt")
"""


def stock_answers(context: StageContext, folder: Path) -> torch.Tensor:
    """What the card's own code answers in a process that has no soka at hand."""
    code = card_code(folder).replace("'base'", repr(context.recipe.model.name))
    code = code.replace("revision=None)", "dtype='float32')").replace(repr(folder.name), repr(str(folder)))
    words = [sys.executable, "-P", "-c", STOCK.format(code=code, ids=IDS)]
    done = subprocess.run(words, cwd=folder.parent, env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder.parent / "logits.pt")


# ---- as LoKr


@pytest.mark.slow
def test_lokr_terms_answer_as_the_adapter_does_in_stock_peft_without_soka(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts()
    figures = export(context, "lokr", tmp_path / "out").figures
    assert set(figures["adapters"]) == {path.name for path in (tmp_path / "out").glob("term-*")} and len(figures["adapters"]) >= 4
    assert figures["relative_error"] < 1e-6
    expected, base = trained_answers(context), answers(AutoModelForCausalLM.from_pretrained(context.recipe.model.name, dtype=torch.float32))
    assert not torch.allclose(expected, base, atol=1e-2)
    assert torch.allclose(stock_answers(context, tmp_path / "out"), expected, atol=1e-5)


def test_modules_of_several_shapes_are_grouped_by_the_factor_that_lokr_takes() -> None:
    shapes = {"a": KronShape(4, 4, 8, 8), "b": KronShape(8, 8, 4, 4), "c": KronShape(4, 4, 8, 12), "d": balanced(144, 288)}
    groups = factor_groups(shapes)
    assert sorted(name for names in groups.values() for name in names) == sorted(shapes)
    for factor, names in groups.items():
        for name in names:
            assert lokr_shape(shapes[name].out_features, shapes[name].in_features, factor) == shapes[name]
    assert len(groups) < len(shapes)


@pytest.mark.parametrize(("out_features", "in_features"), [(32, 48), (36, 30), (17, 40), (288, 768)])
def test_every_shape_that_any_factor_gives_is_known(out_features: int, in_features: int) -> None:
    known = lokr_factors(out_features, in_features)
    found = set()
    for factor in (-1, *range(1, 2 * max(out_features, in_features))):
        (m, p), (n, q) = factorization(out_features, factor), factorization(in_features, factor)
        found.add(KronShape(m, n, p, q))
    assert set(known) == found


def test_a_shape_that_lokr_lacks_is_refused_with_the_modules_and_shapes_that_work(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts(shape_pattern={**SHAPES, "q_proj": {"m": 2, "n": 16}})
    error = refusal(context, ExitCode.USAGE, "lokr", tmp_path / "out")
    assert "in 2 modules" in error.what and "model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj" in error.why
    assert "v_proj" not in error.why and not (tmp_path / "out").exists()
    offers = [yaml.safe_load(part.split("}")[0] + "}") for part in error.why.split("LoKr has ")[1].split(" or ")]
    assert offers
    for offer in offers:
        working = contexts(shape_pattern={**SHAPES, "q_proj": offer})
        assert export(working, "lokr", tmp_path / f"works-{offer['m']}-{offer['n']}").status == "done"


def test_terms_that_do_not_add_up_leave_nothing(contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = exporting.terms_of
    monkeypatch.setattr(exporting, "terms_of", lambda now, start: terms(now, start)[:-1])
    assert "add up" in refusal(contexts(), ExitCode.CHECK, "lokr", tmp_path / "out").what
    assert not (tmp_path / "out").exists()


def test_lokr_has_no_layer_for_a_conv1d(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts("gpt2", target_modules=["c_fc"])
    assert "Conv1D" in refusal(context, ExitCode.USAGE, "lokr", tmp_path / "out").what


# ---- as LoRA


def matrices(rank: int) -> list[Any]:
    torch.manual_seed(0)
    left, right = torch.randn(20, rank), torch.randn(rank, 30)
    terms = (torch.randn(2, 4, 5), torch.randn(2, 5, 6), torch.rand(2))
    return [DenseUpdate(left @ right), LowRankUpdate(left, right, 0.5), KronUpdate((terms,))]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("rank", [1, 3, 20, 50])
def test_a_truncated_update_is_the_nearest_of_its_rank(number: int, rank: int) -> None:
    update = matrices(4)[number]
    whole = update.rows(0, 20).double()
    found = low_rank(update, rank=rank)
    sigma = torch.linalg.svdvals(whole)
    assert found.rank == min(rank, int((sigma > 1e-6 * sigma[0]).sum()))
    assert found.error == pytest.approx(float((whole - found.left.double() @ found.right.double()).norm()), abs=1e-9)
    assert found.error == pytest.approx(float(sigma[rank:].norm()), abs=1e-5 * float(sigma[0]))
    assert found.norm == pytest.approx(float(whole.norm()))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("energy", [0.3, 0.9, 1.0])
def test_an_energy_is_kept_by_the_fewest_singular_values_that_do(number: int, energy: float) -> None:
    update = matrices(4)[number]
    sigma = torch.linalg.svdvals(update.rows(0, 20).double())
    found = low_rank(update, energy=energy)
    kept = 1 - found.relative_error**2
    assert kept >= energy - 1e-9
    assert found.rank == 1 or energy == 1.0 or float(sigma[: found.rank - 1].square().sum()) < energy * float(sigma.square().sum())


def test_an_energy_beyond_the_first_look_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from soka_cli.stages import low_rank as module

    monkeypatch.setattr(module, "WHOLE_SIDE", 1)
    torch.manual_seed(0)
    update = DenseUpdate(torch.randn(90, 70))
    found = low_rank(update, energy=0.95)
    assert found.rank > 2 * module.FIRST_LOOK and 1 - found.relative_error**2 >= 0.95


def test_a_zero_update_has_rank_zero() -> None:
    found = low_rank(DenseUpdate(torch.zeros(6, 5)), rank=3)
    assert (found.rank, found.relative_error) == (0, 0.0)


@pytest.mark.parametrize(("kind", "targets"), [("llama", list(SHAPES)), ("gpt2", ["c_attn", "c_fc"])])
def test_a_lora_of_the_whole_rank_answers_as_the_adapter_does(contexts: Contexts, tmp_path: Path, kind: str, targets: list[str]) -> None:
    context = contexts(kind, target_modules=targets)
    figures = export(context, "lora", tmp_path / "out", rank=1000).figures
    assert figures["relative_error"] < 1e-6 and set(figures["modules"])
    base = AutoModelForCausalLM.from_pretrained(context.recipe.model.name, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    assert torch.allclose(answers(loaded), trained_answers(context), atol=1e-5)


def test_the_stated_error_is_that_of_the_files(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts()
    figures = export(context, "lora", tmp_path / "out", energy=0.6).figures
    from soka_cli.stages.deltas import Deltas

    exact, approximate = (Deltas(folder, Path(context.recipe.model.name)) for folder in (context.layout.adapter, tmp_path / "out"))
    lost = {name: float((exact.delta(name) - approximate.delta(name)).norm()) for name in exact.modules}
    norms = {name: float(exact.delta(name).norm()) for name in exact.modules}
    for name, told in figures["modules"].items():
        assert told["relative_error"] == pytest.approx(lost[name] / norms[name], abs=1e-5) and told["relative_error"] ** 2 <= 0.4
    whole = sum(one**2 for one in lost.values()) ** 0.5 / sum(one**2 for one in norms.values()) ** 0.5
    assert figures["relative_error"] == pytest.approx(whole, abs=1e-5)
    assert len({told["rank"] for told in figures["modules"].values()}) > 1  # so the pattern of ranks is at work
    assert f"{figures['relative_error']:.3%}" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["soka", "lora"])
def test_a_lora_answers_in_stock_peft_without_soka(contexts: Contexts, tmp_path: Path, method: str) -> None:
    context = contexts(method=method)
    export(context, "lora", tmp_path / "out", energy=1.0)
    assert torch.allclose(stock_answers(context, tmp_path / "out"), trained_answers(context), atol=1e-5)


def test_a_lora_run_of_rank_2_is_a_lora_of_rank_2(contexts: Contexts, tmp_path: Path) -> None:
    figures = export(contexts(method="lora"), "lora", tmp_path / "out", rank=8).figures
    assert {told["rank"] for told in figures["modules"].values()} == {2} and figures["relative_error"] < 1e-6


# ---- as it is


@pytest.mark.parametrize("method", ["soka", "lora"])
def test_the_peft_folder_is_the_trained_one(contexts: Contexts, tmp_path: Path, method: str) -> None:
    context = contexts(method=method)
    export(context, "peft", tmp_path / "out")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (context.layout.adapter / name).read_bytes()
    code = card_code(tmp_path / "out")
    assert ("import soka_cli.adapter" in code) is (method == "soka")


# ---- the card


def test_the_card_says_base_data_scores_recipe_and_licences_and_no_path_of_this_machine(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts()
    mapping = yaml.safe_load(Path(context.loaded.path or "").read_text())
    mapping["eval"] = [{"task": "gsm8k", "path": "openai/gsm8k"}]
    recipe = write_recipe(tmp_path / "recipe.yaml", mapping)
    context = StageContext(load_recipe(recipe), context.layout, SilentReporter(), offline=True)
    write_json(context.layout.environment("train"), {"training": {"steps": 12, "tokens": 3456, "last_loss": 1.25}})
    scores = {"metrics": {"strict": {"value": 0.5, "stderr": 0.05}}, "items": 100}
    write_json(context.layout.scores("gsm8k-plain", "adapter"), scores)
    export(context, "peft", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter == {"library_name": "peft", "tags": ["soka"], "pipeline_tag": "text-generation", "license": "llama2"}
    assert str(tmp_path) not in text and "train.jsonl" in text and "`base`" in text
    assert "| gsm8k-plain | strict | adapter | 0.500 +- 0.050 | 100 |" in text and "| tokens | 3,456 |" in text
    assert "rule: fixed" in text and "`LICENSE.txt`" in text
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "the base's own terms\n"


# ---- what is refused, repeated, replaced


def test_options_that_do_not_go_together_are_refused(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts()
    for form, options in (
        ("lora", {}),
        ("lora", {"rank": 2, "energy": 0.9}),
        ("lokr", {"rank": 2}),
        ("peft", {"energy": 0.9}),
        ("lora", {"energy": 1.5}),
    ):
        refusal(context, ExitCode.USAGE, form, tmp_path / "out", **options)
    assert "train/model" in refusal(contexts(method="full"), ExitCode.USAGE, "peft", tmp_path / "out").hint
    refusal(contexts(method="lora"), ExitCode.USAGE, "lokr", tmp_path / "out")


def test_without_an_adapter_the_order_is_wrong(contexts: Contexts, tmp_path: Path) -> None:
    context = contexts()
    (context.layout.adapter / "adapter_model.safetensors").unlink()
    refusal(context, ExitCode.RUN, "peft", tmp_path / "out")


def test_the_same_export_is_done_already_and_another_is_refused(contexts: Contexts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = export(contexts(), "lora", out, rank=2)
    again = export(contexts(), "lora", out, rank=2)
    assert (first.status, again.status) == ("done", "already done") and again.figures == first.figures and again.tables == first.tables
    assert "rank: 2 there, 3 asked" in refusal(contexts(), ExitCode.RUN, "lora", out, rank=3).why
    assert export(contexts(force=True), "lora", out, rank=3).status == "done"
    (out / "README.md").write_text("edited")
    assert "changed" in refusal(contexts(), ExitCode.RUN, "lora", out, rank=3).what


def test_a_folder_that_is_no_export_is_never_replaced(contexts: Contexts, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    refusal(contexts(force=True), ExitCode.RUN, "peft", out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_failed_export_leaves_the_earlier_one(contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export(contexts(), "peft", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(exporting, "card_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(contexts(force=True), "lora", out, rank=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".writing")] == []


# ---- to the Hub


class FakeHub:
    """Stands where HfApi does and keeps what it is asked."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012
    error: Exception | None = None

    def whoami(self) -> dict[str, str]:
        if FakeHub.error is not None:
            raise FakeHub.error
        return {"name": "ann"}

    def create_repo(self, repository: str, **options: Any) -> None:
        FakeHub.calls.append(("create", {"repository": repository, **options}))

    def upload_folder(self, **options: Any) -> None:
        files = {path.relative_to(options["folder_path"]).as_posix() for path in options["folder_path"].rglob("*") if path.is_file()}
        FakeHub.calls.append(("upload", {**options, "files": files}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    FakeHub.calls, FakeHub.error = [], None
    monkeypatch.setattr(push, "HfApi", FakeHub)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return FakeHub


def asked(context: StageContext, out: Path, *words: str, answer: str = "") -> Any:
    run = ["--run", str(context.layout.root), "--recipe", str(context.loaded.path)]
    return CliRunner().invoke(app, ["export", *run, "--as", "peft", "--out", str(out), "--json", *words], input=answer)


def test_with_yes_the_folder_is_uploaded_to_a_private_repository(contexts: Contexts, tmp_path: Path, hub: type[FakeHub]) -> None:
    result = asked(contexts(), tmp_path / "out", "--push", "ann/adapter", "--yes")
    assert result.exit_code == 0, result.output
    (create, made), (upload, sent) = hub.calls
    assert (create, upload) == ("create", "upload") and made["private"] is True and made["exist_ok"] is True
    assert made["repository"] == sent["repo_id"] == "ann/adapter" and sent["files"] >= {
        "README.md",
        "adapter_model.safetensors",
        "export.json",
    }
    assert json.loads(result.stdout)["pushed"] == "https://huggingface.co/ann/adapter"


@pytest.mark.parametrize(("answer", "uploads"), [("y\n", 2), ("n\n", 0), ("\n", 0)])
def test_nothing_leaves_without_a_yes(
    contexts: Contexts, tmp_path: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch, answer: str, uploads: int
) -> None:
    from soka_cli.cli import pushing

    monkeypatch.setattr(pushing, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    result = asked(contexts(), tmp_path / "out", "--push", "ann/adapter", "--public", answer=answer)
    assert result.exit_code == 0 and len(hub.calls) == uploads
    assert "as ann, PUBLIC" in result.stderr and "huggingface.co/ann/adapter" in result.stderr
    assert (json.loads(result.stdout.splitlines()[-1])["pushed"] is None) is (uploads == 0)


def test_where_nobody_can_answer_yes_has_to_be_given(contexts: Contexts, tmp_path: Path, hub: type[FakeHub]) -> None:
    result = asked(contexts(), tmp_path / "out", "--push", "ann/adapter")
    assert result.exit_code == ExitCode.USAGE and "--yes" in result.stderr and not hub.calls and not (tmp_path / "out").exists()


def test_offline_nothing_is_pushed(contexts: Contexts, tmp_path: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    context = contexts()
    with pytest.raises(SokaError) as caught:
        push.require_pushable("ann/adapter", offline=True)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = asked(context, tmp_path / "out", "--push", "ann/adapter", "--yes")
    assert result.exit_code == ExitCode.ENVIRONMENT and not hub.calls and not (tmp_path / "out").exists()


def test_a_refusal_of_the_hub_is_exit_3_without_a_token_in_it(contexts: Contexts, tmp_path: Path, hub: type[FakeHub]) -> None:
    response: Any = SimpleNamespace(status_code=403, headers={}, request=None)
    for error in (
        LocalTokenNotFoundError("hf_secret"),
        HfHubHTTPError("Bearer hf_secret", response=response),
        ConnectionError("hf_secret"),
    ):
        hub.error = error
        result = asked(contexts(), tmp_path / "out", "--push", "ann/adapter", "--yes")
        assert result.exit_code == ExitCode.ENVIRONMENT and "hf_secret" not in result.output and not hub.calls
        assert (tmp_path / "out" / "README.md").is_file()  # the export itself stays


def test_a_name_that_the_hub_does_not_take_is_refused_before_anything(contexts: Contexts, tmp_path: Path, hub: type[FakeHub]) -> None:
    assert asked(contexts(), tmp_path / "out", "--push", "a/b/c", "--yes").exit_code == ExitCode.USAGE
    assert asked(contexts(), tmp_path / "out", "--yes").exit_code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_the_written_terms_are_in_fp32(contexts: Contexts, tmp_path: Path) -> None:
    export(contexts(), "lokr", tmp_path / "out")
    tensors = [tensor for path in (tmp_path / "out").glob("term-*/*.safetensors") for tensor in load_file(path).values()]
    assert tensors and {tensor.dtype for tensor in tensors} == {torch.float32}
