"""What a good recipe comes to: fragments, overrides, locations, numbers, and the text it is written back as."""

from pathlib import Path
from typing import Any

import pytest

from soka_cli.recipe.load import LOCATIONS, load_recipe, to_mapping, to_yaml
from soka_cli.recipe.options import sections
from soka_cli.recipe.places import find_recipe, locate, packaged_fragments, packaged_recipes
from soka_cli.recipe.schema import BlockShape, ExplicitShape, Recipe
from tests.recipe.conftest import GOOD


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


# ---- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("2E-5", 2e-5), ("1", 1.0), (".5", 0.5), ("1_000.5", 1000.5), ("3.", 3.0), ("'2e-5'", 2e-5), ("+1e+2", 100.0)],
)
def test_a_rate_is_a_number_however_it_is_written(text: str, value: float, folder: Path) -> None:
    assert load_recipe("good", [f"train.lr={text}"]).recipe.train.lr == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("991353", 991_353), ("0.99M", 990_000), ("64k", 64_000), ("1_000", 1000), ("1.1K", 1100), ("2e3", 2000), ("1B", 10**9), ("8.0", 8)],
)
def test_a_count_takes_suffixes(text: str, value: int, folder: Path) -> None:
    assert load_recipe("good", [f"data.train.rows={text}"]).recipe.data.sources[0].rows == value


@pytest.mark.parametrize("text", ["on", "yes", "no", "1:30", "2024-01-01", "0o7"])
def test_a_word_that_old_yaml_takes_for_something_else_is_text(text: str, folder: Path) -> None:
    assert load_recipe("good", [f"data.train.split={text}"]).recipe.data.sources[0].split == text


# ---- extends


def test_mappings_merge_lists_replace_and_later_wins(folder: Path) -> None:
    write(folder, "parts/one.yaml", "train: {lr: 1e-1, batch_size: 16}\nadapter: {target_modules: [a, b, c]}\n")
    write(folder, "parts/two.yaml", "train: {lr: 1e-2, warmup: 0.1}\n")
    write(
        folder, "recipe.yaml", "extends: [parts/one, parts/two.yaml]\n" + GOOD.replace("  lr: 2e-5\n", "").replace("  batch_size: 8\n", "")
    )
    recipe = load_recipe("recipe").recipe
    assert (recipe.train.lr, recipe.train.warmup, recipe.train.batch_size) == (1e-2, 0.1, 16)
    assert recipe.adapter.target_modules == ["q_proj", "v_proj"]


def test_a_fragment_may_be_reached_twice(folder: Path) -> None:
    write(folder, "base.yaml", "train: {warmup: 0.2}\n")
    write(folder, "left.yaml", "extends: base\n")
    write(folder, "right.yaml", "extends: base\n")
    write(folder, "recipe.yaml", f"extends: [left, right]\n{GOOD}")
    assert load_recipe("recipe").recipe.train.warmup == 0.2


def test_a_fragment_beside_the_recipe_goes_before_a_packaged_one(folder: Path) -> None:
    write(folder, "models/llama2-7b.yaml", "model: {name: acme/own, revision: abc}\n")
    write(folder, "recipe.yaml", "extends: models/llama2-7b\n" + GOOD.replace("model:\n  name: acme/small\n", ""))
    assert load_recipe("recipe").recipe.model.name == "acme/own"


def test_a_packaged_recipe_can_be_extended_by_name(folder: Path) -> None:
    write(folder, "mine.yaml", "extends: gsm8k\ntrain: {lr: 1e-3}\n")
    mine, packaged = load_recipe("mine").recipe, load_recipe("gsm8k").recipe
    assert mine.train.lr == 1e-3
    assert mine.model == packaged.model


def test_anchors_and_merge_keys_work(folder: Path) -> None:
    entries = "eval:\n  - &one {task: gsm8k, path: acme/test, limit: 3}\n  - {<<: *one, name: again, limit: 4}\n"
    write(folder, "recipe.yaml", GOOD.split("eval:")[0] + entries)
    assert [(entry.folder, entry.limit, entry.path) for entry in load_recipe("recipe").recipe.eval] == [
        ("gsm8k-plain", 3, "acme/test"),
        ("again", 4, "acme/test"),
    ]


# ---- overrides


def test_overrides_reach_sections_lists_and_free_keys(folder: Path) -> None:
    texts = [
        "train.lr=1e-4",
        "eval.0.limit=10",
        "data.train.filter.lang=python",
        "adapter.shape_pattern.layers.0.v_proj={block: 4}",
        "seed=3",
    ]
    recipe = load_recipe("good", texts).recipe
    assert (recipe.train.lr, recipe.eval[0].limit, recipe.seed) == (1e-4, 10, 3)
    assert recipe.data.sources[0].filter == {"lang": "python"}
    assert recipe.adapter.shape_pattern == {"layers.0.v_proj": BlockShape(block=4)}


def test_an_override_sets_the_whole_value(folder: Path) -> None:
    recipe = load_recipe("good", ["adapter={method: full}", "eval=[]"]).recipe
    assert (recipe.adapter.method, recipe.eval) == ("full", [])


def test_an_override_reaches_a_section_that_the_file_does_not_name(folder: Path) -> None:
    assert load_recipe("good", ["data.validation.fraction=0.1"]).recipe.data.validation.fraction == 0.1  # type: ignore[union-attr]


SEVERAL = """\
  train:
    - {path: rows.jsonl, task: gsm8k, weight: 2}
    - {path: acme/talks, messages: talk}
"""


def with_two_sources() -> str:
    return GOOD.replace("  train:\n    path: acme/rows\n    prompt: question\n    target: answer\n", SEVERAL)


def test_sources_of_a_list_have_their_own_paths_and_overrides(folder: Path) -> None:
    write(folder, "parts/recipe.yaml", with_two_sources())
    recipe = load_recipe("parts/recipe", ["data.train.1.rows=5", "data.train.0.prompt=q", "data.train.0.target=a"]).recipe
    first, second = recipe.data.sources
    assert (first.path, first.weight, first.task, first.prompt) == (str(folder / "parts/rows.jsonl"), 2.0, None, "q")
    assert (second.path, second.messages, second.rows) == ("acme/talks", "talk", 5)
    write(folder, "again.yaml", to_yaml(recipe))
    assert load_recipe("again").recipe == recipe


def test_one_source_laid_over_a_list_replaces_it_and_the_reverse(folder: Path) -> None:
    write(folder, "two.yaml", with_two_sources())
    write(folder, "one.yaml", "extends: two\ndata: {train: {path: acme/other, prompt: q, target: a}}\n")
    write(folder, "three.yaml", "extends: one\n" + "data:\n" + SEVERAL)
    assert [source.path for source in load_recipe("one").recipe.data.sources] == ["acme/other"]
    assert len(load_recipe("three").recipe.data.sources) == 2


def test_a_later_override_wins(folder: Path) -> None:
    assert load_recipe("good", ["seed=3", "seed=4"]).recipe.seed == 4


def test_null_takes_an_option_away(folder: Path) -> None:
    recipe = load_recipe("good", ["adapter.rank=null", "train.steps=null"]).recipe
    assert recipe.adapter.rank.rule == "min"
    assert (recipe.train.steps, recipe.train.epochs) == (None, 1.0)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["adapter.method=full"], {"method": "full"}),
        (["adapter.method=lora"], {"method": "lora", "target_modules": ["q_proj", "v_proj"], "rank": {"rule": "fixed", "value": 2}}),
        (["adapter.rank.rule=energy"], {"rank": {"rule": "energy", "tau": 0.9, "max": 16, "spectrum": "leading"}}),
        (["adapter.rank.rule=gavish-donoho"], {"rank": {"rule": "gavish-donoho", "max": 16, "spectrum": "leading"}}),
        (
            ["adapter.rank.rule=budget", "adapter.rank.parameters=0.99M"],
            {"rank": {"rule": "budget", "parameters": 990_000, "floor": 0, "max": 16, "spectrum": "leading"}},
        ),
    ],
)
def test_another_method_or_rule_sends_away_what_only_the_earlier_one_read(texts: list[str], expected: dict[str, Any], folder: Path) -> None:
    write(folder, "good.yaml", GOOD.replace("method: soka", "method: soka\n  shape: balanced\n  init: weight"))
    adapter = to_mapping(load_recipe("good", texts).recipe)["adapter"]
    assert {name: adapter[name] for name in expected} == expected
    if "method" in expected:
        assert adapter == expected


def test_another_start_sends_away_what_only_the_earlier_one_read(folder: Path) -> None:
    write(folder, "good.yaml", GOOD.replace("method: soka", "method: soka\n  init: early-update\n  init_rows: 8\n  init_lr: 1e-3"))
    kept = to_mapping(load_recipe("good").recipe)["adapter"]
    assert (kept["init_rows"], kept["init_steps"], kept["init_lr"]) == (8, 10, 1e-3)
    gradient = to_mapping(load_recipe("good", ["adapter.init=gradient"]).recipe)["adapter"]
    assert gradient["init_rows"] == 8 and not {"init_steps", "init_lr"} & gradient.keys()
    assert not {name for name in to_mapping(load_recipe("good", ["adapter.init=weight"]).recipe)["adapter"] if name.startswith("init_")}


def test_epochs_send_inherited_steps_away_and_the_reverse(folder: Path) -> None:
    assert load_recipe("good", ["train.epochs=2"]).recipe.train.steps is None
    assert load_recipe("gsm8k", ["train.steps=2"]).recipe.train.epochs is None


def test_another_model_does_not_keep_the_first_ones_revision(folder: Path) -> None:
    assert load_recipe("gsm8k").recipe.model.revision
    assert load_recipe("gsm8k", ["model.name=acme/other"]).recipe.model.revision is None
    assert load_recipe("gsm8k", ["model.name=acme/other", "model.revision=abc"]).recipe.model.revision == "abc"


def test_what_one_layer_says_itself_is_never_sent_away(folder: Path) -> None:
    with pytest.raises(Exception, match="1 mistake"):
        load_recipe("good", ["train.epochs=2", "train.steps=3"])


# ---- locations


def test_paths_are_relative_to_the_file_that_writes_them(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "base").mkdir()
    write(elsewhere, "parts/model.yaml", "model: {name: ../base}\n")
    text = GOOD.replace("model:\n  name: acme/small\n", "extends: parts/model\n").replace("path: acme/rows", "path: data/rows.jsonl")
    write(elsewhere, "recipe.yaml", text)
    recipe = load_recipe(elsewhere / "recipe.yaml", ["eval.0.path=test.jsonl"]).recipe
    assert recipe.model.name == str(elsewhere / "base")
    assert recipe.data.sources[0].path == str(elsewhere / "data/rows.jsonl")
    assert recipe.eval[0].path == str(folder / "test.jsonl")


def test_a_name_is_a_folder_only_where_one_exists_beside_the_recipe(folder: Path) -> None:
    assert load_recipe("good").recipe.model.name == "acme/small"
    (folder / "acme" / "small").mkdir(parents=True)
    assert load_recipe("good").recipe.model.name == str(folder / "acme/small")


def test_names_inside_the_package_stay_as_they_are(folder: Path) -> None:
    recipe = load_recipe("good", ["model.name='soka:demo/model'"]).recipe
    assert recipe.model.name == "soka:demo/model"
    assert locate("soka:recipe/shapes").is_dir()  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["soka:", "soka:../pyproject.toml", "soka:nothing/here", "soka:/etc/passwd"])
def test_a_package_name_cannot_leave_the_package(text: str) -> None:
    with pytest.raises(Exception, match="the package has no"):
        locate(text)


@pytest.mark.parametrize("text", ["x" * 5000, "~nobody-of-this-name/model", '"./a\\0b"', "/root/../etc/./hosts/x"])
def test_a_location_that_cannot_exist_is_left_to_the_stage_that_reads_it(text: str, folder: Path) -> None:
    name = load_recipe("good", [f"model.name={text}"]).recipe.model.name
    assert locate(name) == name


def test_every_option_that_holds_a_location_is_settled() -> None:
    """Sections' `path` fields, the model's name, and the adapter that training begins with."""
    with_path = {section.__name__ for section in sections() if "path" in section.model_fields}
    assert with_path == {"SourceSection", "ValidationSection", "EvalSection", "ShotsSection"}
    assert len(LOCATIONS) == len(with_path) + 3  # a training source stands alone or in a list


# ---- writing back


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_loads_and_its_resolved_text_loads_back_equal(name: str, tmp_path: Path) -> None:
    loaded = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(to_yaml(loaded.recipe))
    assert load_recipe(tmp_path / "recipe.yaml").recipe == loaded.recipe
    assert loaded.name == Path(name).name
    assert loaded.source_text == find_recipe(name).read_text()
    first = loaded.source_text.splitlines()[:20]
    command = f"soka sweep -r {name}.yaml" if loaded.recipe.sweep else f"soka run --recipe {name}.yaml"
    assert any(command in line for line in first), "a recipe opens with its command"
    for word in ("Time", "Memory", "how"):
        assert any(word in line for line in first if line.startswith("#")), f"a recipe's heading says {word}"


def test_the_recipes_of_the_contract_are_packaged() -> None:
    assert {"gsm8k", "math", "mbpp"} <= set(packaged_recipes())


@pytest.mark.parametrize("name", [name for name in packaged_fragments() if name.startswith("adapters/")])
def test_a_packaged_adapter_can_be_laid_over_a_packaged_recipe(name: str, folder: Path) -> None:
    write(folder, "mine.yaml", f"extends: [gsm8k, {name}]\n")
    assert load_recipe("mine").recipe.adapter.target_modules


@pytest.mark.parametrize(
    "texts",
    [
        ["adapter={method: full}"],
        ["adapter={method: lora, rank: {rule: fixed, value: 4}, alpha: 8}"],
        ["adapter={method: pissa, rank: {rule: fixed, value: 4}}"],
        ["adapter={method: lokr, match_parameters: 0.99M}", "adapter.config={decompose_factor: 4, decompose_both: true}"],
        ["adapter={method: dora, match_parameters: lora, rank: {rule: fixed, value: 4}}"],
        ["adapter.method=lora", "adapter.match_parameters=soka", "adapter.shape={block: 4}", "adapter.rank={rule: budget, parameters: 9k}"],
        ["adapter={method: peft, config: {peft_type: VERA, d_initial: 1e-1, rank_pattern: {q_proj: 3}}, match_parameters: 9k}"],
        ["adapter={method: peft, config: {peft_type: LOHA}, match_parameters: lora, rank: {rule: fixed, value: 4}}"],
        ["adapter.sigma=split"],
        ["train.schedule=cosine_with_min_lr", "train.schedule_config={min_lr_rate: 1e-1}", "train.max_grad_norm=0"],
        ["data.validation={fraction: 0.1}", "train.keep=best", "train.early_stopping={patience: 3}", "train.trackers=[wandb, mlflow]"],
        ["train.init_from=runs/a/train/adapter", "train.optimizer=adamw-8bit", "train.compile=layers", "train.log_module_norms=true"],
        ["adapter.rank={rule: energy, tau: 0.8, spectrum: full}"],
        ["adapter.shape={m: 4, n: 8}", "adapter.shape_pattern={v_proj: balanced, 'k.*': {block: 2}}", "train.sigma_lr=1e-3"],
        ["adapter.shape=search", "adapter.shape_pattern={v_proj: search}", "adapter.init=early-update", "adapter.init_steps=3"],
        ["adapter.init=random", "adapter.shape={block: 32}"],
        ["adapter.init=gradient"],
        ["data.validation={path: more.jsonl, rows: 5}", "data.train.filter={lang: python}", "train.epochs=2.5"],
        ["adapter.target_modules=all-linear", "eval=[]", "data.train={path: acme/x, task: gsm8k}"],
    ],
)
def test_a_resolved_recipe_of_any_method_loads_back_equal(texts: list[str], folder: Path) -> None:
    recipe = load_recipe("good", texts).recipe
    assert Recipe.model_validate(to_mapping(recipe)) == recipe
    write(folder, "again.yaml", to_yaml(recipe))
    again = load_recipe("again").recipe
    assert again == recipe
    assert to_yaml(again) == to_yaml(recipe)


def test_a_resolved_recipe_says_every_default_and_no_null(folder: Path) -> None:
    mapping = to_mapping(load_recipe("good").recipe)
    assert mapping["train"]["schedule"] == "cosine"
    assert "sigma_lr" not in mapping["train"]
    assert mapping["adapter"]["rank"] == {"rule": "fixed", "value": 2, "spectrum": "leading"}


def test_a_shape_keeps_its_kind(folder: Path) -> None:
    assert load_recipe("good", ["adapter.shape={m: 4, n: 8}"]).recipe.adapter.shape == ExplicitShape(m=4, n=8)
    assert load_recipe("good", ["adapter.shape.block=4"]).recipe.adapter.shape == BlockShape(block=4)


def test_the_origin_of_each_value_is_known(folder: Path) -> None:
    origins = load_recipe("good", ["train.lr=1e-4"]).origins
    assert origins["train.steps"] == "good.yaml:15"
    assert origins["train.lr"] == "override train.lr=1e-4"
    assert origins["eval.0.path"] == "good.yaml:19"


def test_a_path_goes_before_a_packaged_name(folder: Path) -> None:
    write(folder, "gsm8k.yaml", GOOD)
    assert load_recipe("gsm8k.yaml").recipe.model.name == "acme/small"
    assert load_recipe("gsm8k").recipe.model.name == "acme/small"


def test_the_recipe_package_loads_no_torch() -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "peft", "datasets", "numpy")
    code = f"import sys, soka_cli.recipe.load; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
