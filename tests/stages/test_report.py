"""The report of a run: whole, partial, changed, damaged."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronFactors, RankRule, balanced, decompose_weight, kron_dense, rearrange
from soka_cli.recipe.load import load_recipe
from soka_cli.recipe.resolved import to_yaml
from soka_cli.run.environment import package_version
from soka_cli.run.layout import RunLayout
from soka_cli.run.stage import open_stage
from soka_cli.run.write import write_json
from soka_cli.stages.context import StageContext
from soka_cli.stages.outcome import Outcome
from soka_cli.stages.report import report
from tests.builders import recipe_mapping

SIZES = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32), "mlp.down_proj": (32, 48)}
LAYERS = 3
STEPS = 40
PARTS = ("U", "V", "sigma")
SPECTRA = ("update", "trained", "start", "weight_before", "weight_after")
CURVES = ("loss", "grad-norm", "lr", "throughput")
DRAWN = {*CURVES, *(f"{name}-tokens" for name in CURVES), "scores-gsm8k-plain", "map-ranks", "map-energy"} | {
    f"{group}-{kind}" for group in ("spectra", "changes") for kind in ("q_proj", "v_proj", "down_proj")
}
METRICS = ("strict", "flexible", "numeric")
ENTRY = {"task": "gsm8k", "path": "items.jsonl"}


def module_names() -> list[str]:
    return [f"model.layers.{layer}.{kind}" for layer in range(LAYERS) for kind in SIZES]


def make_context(folder: Path, **changes: Any) -> StageContext:
    (folder / "items.jsonl").touch()
    put_base(folder / "base")
    mapping = recipe_mapping(folder / "base", "items.jsonl", **{"eval": [ENTRY], **changes})
    recipe = folder / "arithmetic.yaml"
    recipe.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return StageContext(load_recipe(recipe), RunLayout(folder / "runs" / "arithmetic"), command="soka report")


def base_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(*SIZES[name.split(".", 3)[3]], generator=generator) for name in module_names()}


def put_base(folder: Path, scale: float = 1.0) -> None:
    folder.mkdir(exist_ok=True)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
    write_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 260, **sizes})
    save_file({f"{name}.weight": scale * weight for name, weight in base_weights().items()}, folder / "model.safetensors")


def record_stage(context: StageContext, name: str, outputs: list[Path], extra: dict[str, Any] | None = None) -> None:
    """Leave the manifest as the stage itself would."""
    loaded = context.loaded
    options = {"recipe_yaml": to_yaml(loaded.recipe), "source_text": loaded.source_text, "reporter": context.reporter}
    with open_stage(context.layout, name, {"stage": name}, command=f"soka {name.partition('/')[0]} -r arithmetic", **options) as stage:
        stage.finish(outputs, {"device": "cpu", **(extra or {})})


def put_decomposition(context: StageContext) -> dict[str, KronFactors]:
    layout = context.layout
    kept, rows, spectra = {}, [], {}
    for name, weight in base_weights().items():
        size = tuple(weight.shape)
        shape = balanced(*size)
        found = decompose_weight(weight, shape, RankRule(max=3), seed=0)
        kept[name], spectra[name] = found.factors, found.spectrum
        rows.append(
            {"name": name, "out_features": size[0], "in_features": size[1], "m": shape.m, "n": shape.n, "p": shape.p, "q": shape.q}
            | {"rank": found.choice.rank, "rank_energy": found.choice.rank_energy, "rank_elbow": found.choice.rank_elbow}
            | {"rank_bound_by": found.choice.bound_by, "energy_kept": found.choice.energy_kept, "total_energy": found.total_energy}
            | {"relative_error": found.relative_error, "sigma_error_bound": found.sigma_error_bound, "seconds": 0.01}
            | {"parameters": shape.parameters(found.choice.rank)}
        )
    totals = {"modules": len(rows), "parameters": sum(row["parameters"] for row in rows), "components": sum(row["rank"] for row in rows)}
    write_json(layout.layers, {"modules": rows, "totals": totals | {"seconds": 0.12}})
    save_file(spectra, layout.spectra)
    record_stage(context, "decompose", [layout.decompose])
    return kept


def moved(factors: KronFactors) -> KronFactors:
    return KronFactors(factors.left * 1.1, factors.right + 0.02, factors.sigma * 0.9)


def put_training(context: StageContext, start: dict[str, KronFactors]) -> None:
    layout = context.layout
    rows = []
    for step in range(1, STEPS + 1):
        row = {"step": step, "epoch": step / STEPS, "tokens": 640 * step, "loss": 0.4 + 2.5 / step, "lr": 1e-2 * (1 - step / STEPS)}
        row |= {"grad_norm": 0.5 + (step % 7) / 5, "tokens_per_s": 1500.0 + step, "memory_bytes": 400_000_000 + step}
        rows.append(row | ({"eval_loss": 0.6 + 2.0 / step} if step % 10 == 0 else {}))
    layout.train.mkdir(parents=True, exist_ok=True)
    layout.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tensors = {}
    for name, factors in start.items():
        for prefix, terms in (("soka", moved(factors)), ("soka_start", factors)):
            for part, tensor in zip(PARTS, (terms.left, terms.right, terms.sigma), strict=True):
                tensors[f"base_model.model.{name}.{prefix}_{part}"] = tensor.contiguous()
    layout.adapter.mkdir()
    save_file(tensors, layout.adapter_weights)
    figures = {"trainable_parameters": 4321, "rows": 24, "seconds": 75.4}
    record_stage(context, "train", [layout.metrics, layout.adapter], {"training": figures})


def put_scores(context: StageContext, kind: str, right: float) -> None:
    layout, name = context.layout, "gsm8k-plain"
    metrics = {metric: {"value": right, "stderr": 0.02} for metric in METRICS}
    fields = {"task": "gsm8k", "protocol": "plain", "model": kind, "n": 4, "items": 4, "metrics": metrics, "groups": {}}
    fields |= {"seconds": 1.5, "tokens_per_s": 900.0, "decoding": {}, "template_sha256": None, "data_sha256": None, "adapter_sha256": None}
    write_json(layout.scores(name, kind), fields)
    correct = dict.fromkeys(metrics, True)
    row = {"sample": 0, "gold": "1", "correct": correct, "extracted": "1", "stop_reason": "eos", "prompt_sha256": None}
    rows = [{"id": str(index), "completion": f"#### {index}", **row} for index in range(4)]
    layout.predictions(name, kind).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    record_stage(context, f"eval/{name}-{kind}", [layout.evaluation(name, kind)])


def put_merge(context: StageContext) -> None:
    parity = {"max_abs_weight_error": 3e-8, "max_abs_logit_error": 4.1e-4, "top1_agreement": 1.0, "dtype": "bfloat16"}
    write_json(context.layout.parity, parity)
    record_stage(context, "merge", [context.layout.parity])


def make_whole_run(folder: Path) -> StageContext:
    context = make_context(folder)
    put_training(context, put_decomposition(context))
    for kind, right in (("base", 0.05), ("adapter", 0.95), ("merged", 0.95)):
        put_scores(context, kind, right)
    put_merge(context)
    return context


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    return make_whole_run(tmp_path_factory.mktemp("template"))


def copied(template: StageContext, folder: Path) -> StageContext:
    """The same run in another place: a run directory can be moved."""
    context = make_context(folder)
    shutil.copytree(template.layout.root, context.layout.root)
    return context


@pytest.fixture
def whole(template: StageContext, tmp_path: Path) -> StageContext:
    return copied(template, tmp_path)


@pytest.fixture(scope="module")
def reported(template: StageContext, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """A whole run with its report; read it, never write into it."""
    context = copied(template, tmp_path_factory.mktemp("reported"))
    report(context)
    return context


class Page(HTMLParser):
    """What a browser would see: references, tags that are open, text."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.labels: list[str] = []
        self.ids: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.references += [
            values[name] or "" for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster") if name in values
        ]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag in ("svg", "img"):
            self.labels.append(values.get("aria-label" if tag == "svg" else "alt") or "")
        self.styles += [values["style"] or ""] if "style" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(context: StageContext) -> Page:
    return Page(context.layout.report_page.read_text(encoding="utf-8"))


def test_a_whole_run_gives_page_text_json_plots_and_spectra(whole: StageContext) -> None:
    outcome = report(whole)
    layout = whole.layout
    assert {path.stem for path in layout.plot("x").parent.iterdir()} == DRAWN
    assert layout.report_text.is_file()
    assert layout.learnt_spectra.is_file()
    content = json.loads(layout.report_findings.read_text())
    assert content["missing"] == []
    assert content["trainable_parameters"] == 4321
    assert (content["training"]["first_loss"], content["training"]["steps"]) == (2.9, STEPS)
    assert [module["name"] for module in content["modules"]] == module_names()
    assert outcome.status == "done"
    assert [row[:4] for row in outcome.tables[0].rows][3] == ("gsm8k-plain", "adapter", "strict", "95.0%")
    json.dumps(outcome.figures, allow_nan=False)


def test_the_page_asks_no_network_and_is_well_formed(reported: StageContext) -> None:
    text = reported.layout.report_page.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "<script" not in text
    assert "prefers-color-scheme" in text
    assert 'name="viewport"' in text


def test_ids_are_unique_and_each_reference_leads_to_one(reported: StageContext) -> None:
    page = page_of(reported)
    assert len(page.ids) == len(set(page.ids))
    assert {reference.removeprefix("#") for reference in page.references} <= set(page.ids)
    clips = re.findall(r"url\(#([^)]+)\)", reported.layout.report_page.read_text(encoding="utf-8"))
    assert clips
    assert set(clips) <= set(page.ids)


def test_the_page_prints_in_the_light_scheme(reported: StageContext) -> None:
    text = reported.layout.report_page.read_text(encoding="utf-8")
    assert "@media print" in text
    assert re.findall(r"@media[^{]*prefers-color-scheme[^{]*", text)
    assert all("screen" in rule for rule in re.findall(r"@media[^{]*prefers-color-scheme[^{]*", text))


def test_every_drawing_says_in_words_what_it_shows(reported: StageContext) -> None:
    labels = page_of(reported).labels
    assert len(labels) == len(DRAWN)
    assert all(labels)
    assert "Loss over 640 to 25,600 tokens: 2.9 first, 0.4625 last; on held-out rows 0.8 first and 0.65 last." in labels
    assert "Loss over steps 1 to 40: 2.9 first, 0.4625 last; on held-out rows 0.8 first and 0.65 last." in labels
    assert any("adapter strict 95.0%" in label for label in labels)
    text = reported.layout.report_text.read_text(encoding="utf-8")
    images = re.findall(r"!\[(.+?)\]\((.+?)\)", text)
    assert sorted(alt for alt, _ in images) == sorted(labels)
    assert all((reported.layout.report / path).is_file() for _, path in images)


def test_the_map_names_every_module_once_and_tells_where_the_ranks_differ(reported: StageContext) -> None:
    drawn = ElementTree.parse(reported.layout.plot("map-ranks"))
    words = ["".join(text.itertext()).strip() for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    ranks = [module["rank"] for module in json.loads(reported.layout.layers.read_text())["modules"]]
    kinds = [kind.rpartition(".")[2] for kind in SIZES]
    assert sorted(words) == sorted([*kinds, *(str(layer) for layer in range(LAYERS)), "layer", *map(str, ranks)])


def test_the_spectra_mark_threshold_elbow_and_kept_rank(reported: StageContext) -> None:
    text = reported.layout.plot("spectra-q_proj").read_text(encoding="utf-8")
    assert all(f">{mark}<" in text for mark in ("energy 0.9", "elbow", "kept"))
    assert "kept after term" in text


def test_the_gradient_norm_stands_beside_the_papers_two_levels(reported: StageContext) -> None:
    for name in ("grad-norm", "grad-norm-tokens"):
        text = reported.layout.plot(name).read_text(encoding="utf-8")
        assert ">warned above 2<" in text
        assert ">rarely above 1.5<" in text
    assert "above 2 in 0 and above 1.5 in 5 of 40 logged steps" in text


def test_curves_without_token_counts_stand_over_steps_alone(whole: StageContext) -> None:
    rows = [json.loads(line) for line in whole.layout.metrics.read_text().splitlines()]
    whole.layout.metrics.write_text("".join(json.dumps({**row, "tokens": None}) + "\n" for row in rows))
    report(whole)
    assert not whole.layout.plot("loss-tokens").exists()
    assert whole.layout.plot("loss").is_file()


def test_each_plot_is_an_svg_of_its_own_that_names_its_colours(reported: StageContext) -> None:
    paths = sorted(reported.layout.plot("x").parent.glob("*.svg"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--soka-ink)" in text
        assert not re.search(r"#0[1-9a-f]0[1-9a-f]0[1-9a-f]", text)  # a drawing colour that was not replaced
        assert "--soka-ink:" in text
    assert len(paths) == len(DRAWN)


def test_the_page_shows_recipe_ranks_scores_parity_environment_and_commands(reported: StageContext) -> None:
    for text in ("".join(page_of(reported).words), reported.layout.report_text.read_text(encoding="utf-8")):
        for expected in (
            "rule: fixed",
            "model.layers.2.mlp.down_proj",
            "95.0%",
            "2.0%",
            "4 of 4 completions are the same",
            "0.00041",
            "bfloat16",
            "4,321",
            f"torch {package_version('torch')}",
            "soka train -r arithmetic",
            f"soka run --recipe {reported.layout.root}/recipe.yaml",
        ):
            assert expected in text


def test_the_spectra_after_training_are_those_of_the_dense_difference(reported: StageContext, tmp_path: Path) -> None:
    spectra = load_file(reported.layout.learnt_spectra)
    assert set(spectra) == {f"{name}.{part}" for name in module_names() for part in SPECTRA}
    start = put_decomposition(make_context(tmp_path / "again")) if (tmp_path / "again").mkdir() is None else {}
    rows = {row["name"]: row for row in json.loads(reported.layout.report_findings.read_text())["modules"]}
    for name, factors in start.items():
        now = moved(factors)
        difference = kron_dense(now.left, now.right, now.sigma).double() - kron_dense(factors.left, factors.right, factors.sigma).double()
        assert float(spectra[f"{name}.update"].norm()) == pytest.approx(float(difference.norm()), rel=1e-5)
        torch.testing.assert_close(spectra[f"{name}.start"].float(), factors.sigma)
        norm = rows[name]["total_energy"] ** 0.5
        assert rows[name]["relative_update"] == pytest.approx(float(difference.norm()) / norm, rel=1e-5)


def test_the_spectra_of_the_weights_are_those_of_the_dense_ones_rearranged(reported: StageContext, tmp_path: Path) -> None:
    spectra = load_file(reported.layout.learnt_spectra)
    start = put_decomposition(make_context(tmp_path))
    for name, weight in base_weights().items():
        factors, now = start[name], moved(start[name])
        update = kron_dense(now.left, now.right, now.sigma) - kron_dense(factors.left, factors.right, factors.sigma)
        for side, matrix in (("weight_before", weight), ("weight_after", weight + update)):
            found = spectra[f"{name}.{side}"]
            whole = torch.linalg.svdvals(rearrange(matrix, factors.shape).double())
            torch.testing.assert_close(found, whole[: len(found)], rtol=1e-5, atol=0)


def test_shares_of_energy_distances_and_angles_are_those_of_the_factors(reported: StageContext, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(reported.layout.report_findings.read_text())["changes"]["modules"]}
    spectra = load_file(reported.layout.learnt_spectra)
    for name, factors in put_decomposition(make_context(tmp_path)).items():
        row, weight = rows[name], base_weights()[name]
        before = spectra[f"{name}.weight_before"].square()
        assert row["spectra"]["before"]["top_term"] == pytest.approx(float(before[0] / weight.square().sum()), rel=1e-5)
        assert row["spectra"]["before"]["top_terms"] == pytest.approx(float(before[: factors.rank].sum() / weight.square().sum()), rel=1e-5)
        assert row["moved"]["U"] == pytest.approx(0.1, rel=1e-5)
        assert row["moved"]["sigma"] == pytest.approx(0.1, rel=1e-5)
        assert max(row["angles"]["U"]) < 1e-4  # longer factors span the same
        assert max(row["angles"]["V"]) > 1


def test_without_the_base_the_report_says_that_its_spectra_are_missing(whole: StageContext) -> None:
    shutil.rmtree(whole.recipe.model.name)
    assert any("is not on this machine" in sentence for sentence in report(whole).figures["missing"])
    assert {name.rpartition(".")[2] for name in load_file(whole.layout.learnt_spectra)} == {"update", "trained", "start"}
    put_base(Path(whole.recipe.model.name))
    assert report(whole).figures["missing"] == []  # a base that is back is read without being told to


def test_another_base_than_the_trained_one_is_not_shown_as_it(whole: StageContext) -> None:
    put_base(Path(whole.recipe.model.name), scale=1.01)
    assert any("holds other weights" in sentence for sentence in report(whole).figures["missing"])


def test_the_tensor_names_read_are_those_that_the_adapter_writes() -> None:
    from soka_cli.adapter import layer
    from soka_cli.stages import learnt

    assert (learnt.TRAINED, learnt.START) == (layer.TRAINED, layer.START)


def test_a_second_report_of_an_unchanged_run_says_so_and_writes_nothing(whole: StageContext) -> None:
    report(whole)
    before = whole.layout.report_page.stat()
    assert report(whole).status == "already done"
    after = whole.layout.report_page.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_changed_run_is_reported_anew_without_force(whole: StageContext) -> None:
    report(whole)
    scores = json.loads(whole.layout.scores("gsm8k-plain", "adapter").read_text())
    scores["metrics"]["strict"]["value"] = 0.515
    write_json(whole.layout.scores("gsm8k-plain", "adapter"), scores)
    assert report(whole).status == "done"
    assert "51.5%" in "".join(page_of(whole).words)


def test_the_same_run_gives_the_same_page(whole: StageContext) -> None:
    report(whole)
    first = whole.layout.report_page.read_bytes()
    whole.layout.report_page.unlink()
    with pytest.raises(SokaError) as raised:
        report(whole)
    assert raised.value.exit_code == ExitCode.RUN
    report(StageContext(whole.loaded, whole.layout, force=True))
    assert whole.layout.report_page.read_bytes() == first


def test_scores_are_shown_by_level_and_subject(whole: StageContext) -> None:
    path = whole.layout.scores("gsm8k-plain", "adapter")
    groups = {"level": {"Level 5": {"n": 3, "items": 3, "metrics": {name: {"value": 0.333, "stderr": 0.111} for name in METRICS}}}}
    write_json(path, json.loads(path.read_text()) | {"groups": groups})
    report(whole)
    assert "| Level 5 | 3 | 33.3% | 11.1% |" in whole.layout.report_text.read_text()
    words = "".join(page_of(whole).words)
    assert "gsm8k-plain, adapter, by level" in words
    assert "33.3%" in words


def put_answers(context: StageContext, completion: str) -> None:
    """Three right ones and three wrong ones of the adapter's, and of the merged model's."""
    for kind in ("adapter", "merged"):
        path = context.layout.predictions("gsm8k-plain", kind)
        row = json.loads(path.read_text().splitlines()[0])
        rows = [
            row | {"id": str(index), "completion": f"{completion} {index}", "correct": dict.fromkeys(METRICS, index % 2 == 0), "gold": "7"}
            for index in range(6)
        ]
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_two_right_and_two_wrong_answers_of_the_adapter_are_shown_the_same_each_time(whole: StageContext) -> None:
    put_answers(whole, "so it is")
    report(whole)
    shown = json.loads(whole.layout.report_findings.read_text())["answers"]
    assert [one["right"] for one in shown] == [True, True, False, False]
    assert all(one["model"] == "adapter" and int(one["id"]) % 2 == (not one["right"]) for one in shown)
    report(StageContext(whole.loaded, whole.layout, force=True))
    assert json.loads(whole.layout.report_findings.read_text())["answers"] == shown
    for text in ("".join(page_of(whole).words), whole.layout.report_text.read_text()):
        assert all(one["completion"] in text for one in shown)


def test_an_answer_cannot_break_out_of_its_place(whole: StageContext) -> None:
    put_answers(whole, "</code></pre><script>alert(1)</script>\n```\n# not a heading\n")
    report(whole)
    assert "<script" not in whole.layout.report_page.read_text()
    assert "\n````\n</code></pre><script>" in whole.layout.report_text.read_text()


def test_what_the_run_was_made_of_is_shown_by_the_manifest_s_own_digests(finished: tuple[Path, Outcome]) -> None:
    layout = RunLayout(finished[0] / "runs/tiny")
    manifest = json.loads(layout.manifest.read_text())
    stages = manifest["stages"]
    outputs = {output["path"]: output["sha256"] for record in stages.values() for output in record["outputs"]}
    shown = {row["what"]: row for row in json.loads(layout.report_findings.read_text())["digests"]}
    expected = {
        "recipe.yaml": manifest["recipe_sha256"],
        "base model": stages["train"]["inputs"]["base"],
        "training rows": stages["train"]["inputs"]["data"]["train"]["sha256"],
        "items asked": stages["eval/gsm8k-plain-base"]["inputs"]["data_sha256"],
        "factors at the start": outputs["decompose/factors.safetensors"],
        "trained adapter": outputs["train/adapter/adapter_model.safetensors"],
    }
    assert {what: shown[what]["sha256"] for what in expected} == expected
    assert {"decompose", "train", "eval/gsm8k-plain-adapter"} <= set(shown["base model"]["stages"])
    for text in ("".join(Page(layout.report_page.read_text()).words), layout.report_text.read_text()):
        assert all(row["sha256"] in text for row in shown.values())


def test_what_decompose_warned_of_stands_on_the_page_with_advice(whole: StageContext) -> None:
    layers = json.loads(whole.layout.layers.read_text())
    layers["warnings"] = ["query in target_modules matches nothing"]
    layers["modules"][1]["rank_bound_by"] = "unresolved"
    write_json(whole.layout.layers, layers)
    report(whole)
    matched, unresolved = json.loads(whole.layout.report_findings.read_text())["decomposition"]["warnings"]
    assert matched["sentence"].startswith("query in target_modules") and "soka plan" in matched["advice"]
    assert layers["modules"][1]["name"] in unresolved["sentence"] and "rule: fixed" in unresolved["advice"]
    page, text = whole.layout.report_page.read_text(), whole.layout.report_text.read_text()
    for found in (matched, unresolved):
        assert f'<p class="warning">{found["sentence"]} {found["advice"]}</p>' in page
        assert f"**Warning:** {found['sentence']} {found['advice']}" in text


def test_parameters_and_memory_stand_beside_the_plan(reported: StageContext) -> None:
    parameters, memory = json.loads(reported.layout.report_findings.read_text())["planned"]
    assert parameters["measured"] == 4321
    assert parameters["planned"]["from"] == parameters["planned"]["to"] > 0  # rank fixed at 2
    assert memory["measured"] == 400_000_000 + STEPS
    assert memory["ratio"] == pytest.approx(memory["measured"] / memory["planned"]["to"])
    assert "Planned against measured" in "".join(page_of(reported).words)


def test_the_ledger_of_rows_is_shown(whole: StageContext) -> None:
    ledger = {"read": 30, "used": 24, "truncated": 7, "truncated_rows": [1, 2, 3, 4, 5], "tokens": 2400, "supervised_tokens": 1200}
    ledger |= {"longest": 256, "apart": 0, "dropped": {"the target is empty": 6}, "dropped_rows": {"the target is empty": [8, 9]}}
    environment = json.loads(whole.layout.environment("train").read_text())
    packing = {"rows": 24, "packs": 3, "filled": 0.9}
    write_json(
        whole.layout.environment("train"),
        environment | {"data": {"train": ledger | {"sources": [ledger | {"path": "a.jsonl"}]}, "packing": packing}},
    )
    report(whole)
    text = whole.layout.report_text.read_text()
    for name in ("train", "train, a.jsonl"):
        row = f"| {name} | 30 | 24 | 7 (rows 1, 2, 3, 4, 5, ...) | 6 (rows 8, 9, ...): the target is empty | 100 | 50 | 256 |"
        assert row in text
        assert f"<td>{name}</td>" in whole.layout.report_page.read_text()


def test_a_partial_run_is_reported_and_says_what_is_missing(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    put_decomposition(context)
    outcome = report(context)
    assert outcome.figures["missing"] == [
        f"train has not run: soka train --run {context.layout.root}",
        f"merge has not run: soka merge --run {context.layout.root}",
        f"gsm8k-plain is not scored for base, adapter, merged: soka eval --run {context.layout.root}",
    ]
    words = "".join(page_of(context).words)
    assert "This run is not whole." in words
    assert "train has not run" in words
    assert "## Missing" in context.layout.report_text.read_text()
    assert not context.layout.learnt_spectra.exists()


def test_a_run_of_another_method_misses_no_decomposition(tmp_path: Path) -> None:
    context = make_context(tmp_path, adapter={"method": "lora"}, eval=[])
    put_training(context, {})
    assert report(context).figures["missing"] == [
        f"merge has not run: soka merge --run {context.layout.root}",
        "the recipe has no eval entry, so there are no scores",
    ]
    assert not context.layout.learnt_spectra.exists()


def test_a_train_that_is_under_way_is_shown_as_far_as_it_got(whole: StageContext) -> None:
    lines = whole.layout.metrics.read_text().splitlines(keepends=True)
    whole.layout.metrics.write_text("".join(lines[:1]) + lines[1][:20])
    report(whole)
    assert json.loads(whole.layout.report_findings.read_text())["training"]["steps"] == 1


def test_a_run_directory_without_results_is_refused(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with pytest.raises(SokaError, match="nothing to report") as raised:
        report(context)
    assert raised.value.exit_code == ExitCode.RUN
    assert "soka run" in raised.value.hint
    assert not context.layout.root.exists()


DAMAGES: dict[str, Callable[[RunLayout], Path]] = {
    "layers": lambda layout: layout.layers,
    "spectra": lambda layout: layout.spectra,
    "metrics": lambda layout: layout.metrics,
    "adapter": lambda layout: layout.adapter_weights,
    "scores": lambda layout: layout.scores("gsm8k-plain", "base"),
    "predictions": lambda layout: layout.predictions("gsm8k-plain", "merged"),
    "parity": lambda layout: layout.parity,
    "environment": lambda layout: layout.environment("train"),
    "manifest": lambda layout: layout.manifest,
}


CONTENTS = {"empty": b"", "bare": b"{}\n", "fields": b'{"step": 1, "modules": [{}]}\n', "bytes": b"\x80\x81\n"}
# an empty append file is one that was just begun
DAMAGED = [(name, kind) for name in DAMAGES for kind in CONTENTS if not (kind == "empty" and name in ("metrics", "predictions"))]


@pytest.mark.parametrize(("name", "kind"), DAMAGED)
def test_a_damaged_file_is_named(whole: StageContext, name: str, kind: str) -> None:
    path = DAMAGES[name](whole.layout)
    path.write_bytes(CONTENTS[kind])
    with pytest.raises(SokaError) as raised:
        report(whole)
    assert raised.value.exit_code == ExitCode.RUN
    assert path.name in str(raised.value)
    assert not whole.layout.report_page.exists()


def test_names_cannot_break_out_of_the_page(whole: StageContext) -> None:
    layers = json.loads(whole.layout.layers.read_text())
    spectra = load_file(whole.layout.spectra)
    name = "model.<script>alert(1)</script>|$x_1$.q_proj"
    spectra[name] = spectra.pop(layers["modules"][0]["name"])
    layers["modules"][0]["name"] = name
    write_json(whole.layout.layers, layers)
    save_file(spectra, whole.layout.spectra)
    report(whole)
    assert "<script" not in whole.layout.report_page.read_text(encoding="utf-8")
    assert name in "".join(page_of(whole).words)
    assert "\\|$x_1$" in whole.layout.report_text.read_text(encoding="utf-8")
