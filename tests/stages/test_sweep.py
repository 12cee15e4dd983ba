"""Sweeps of tiny runs; their commands run in this process, save where processes are what is tested."""

import json
import shlex
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from soka_cli.cli.app import main
from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe, to_mapping
from soka_cli.recipe.places import packaged_recipes
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages import sweep as stage
from soka_cli.stages.compare import compare
from soka_cli.stages.outcome import Outcome
from soka_cli.stages.sweep_points import Sweep
from soka_cli.stages.sweep_runner import Ended, Job, run_jobs
from tests import builders
from tests.stages.pipeline import context_for, recipe_folder

LORA = {"set": {"adapter.method": "lora", "adapter.rank": {"rule": "fixed", "value": 1}}}
GRID = {"grid": {"train.lr": [1e-3, 1e-2]}, "methods": {"soka": {}, "lora": LORA}}
DIVERGING = 1e30


class InProcess:
    """Runs jobs by calling the command line here; remembers which, and fails those that it is told to."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.fails: dict[str, int] = {}
        self.interrupt_at: str | None = None

    def __call__(self, jobs: Sequence[Job], count: int, *, devices: object, begun: Callable[[Job], None]) -> Generator[Ended, None, None]:
        for job in jobs:
            begun(job)
            self.started.append(job.name)
            if job.name == self.interrupt_at:
                raise KeyboardInterrupt
            code = self.fails.get(job.name, 0)
            for words in job.commands:
                code = code or main([*words, "--quiet", "--json", "--device", "cpu"])
            yield Ended(job, code, "it failed" if code else None)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    found = InProcess()
    monkeypatch.setattr(stage, "run_jobs", found)
    return found


@pytest.fixture
def folder(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe tiny.yaml that has a sweep of two methods and two rates."""
    monkeypatch.chdir(tmp_path)
    recipe_folder(tmp_path, llama_folder, data={"validation": {"fraction": 0.2}}, sweep=GRID)
    return tmp_path


def swept(folder: Path, *overrides: str, force: bool = False, **options: Any) -> Outcome:
    return stage.sweep(context_for(folder, *overrides, force=force, run="runs/s"), overrides=overrides, **options)


def with_sweep(folder: Path, llama_folder: Path, sweep: dict[str, Any], **sections: Any) -> None:
    recipe_folder(folder, llama_folder, **{"data": {"validation": {"fraction": 0.2}}, "sweep": sweep, **sections})


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs/s/sweep.json").read_text())


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in record(folder)["runs"]}


def test_every_method_is_tried_at_the_same_rates_in_directories_of_their_own(folder: Path, runner: InProcess) -> None:
    outcome = swept(folder)
    found = runs(folder)
    assert {(one["method"], one["values"]["train.lr"]) for one in found.values()} == {
        (m, r) for m in ("soka", "lora") for r in (1e-3, 1e-2)
    }
    assert all(one["status"] == "done" and one["metric"] > 0 and one["parameters"] > 0 for one in found.values())
    assert outcome.exit_code == ExitCode.DONE and runner.started == list(found)


def test_a_run_of_a_sweep_is_an_ordinary_run_directory(folder: Path, runner: InProcess) -> None:
    swept(folder)
    directory = folder / "runs/s/lora-lr0.001"
    expected = load_recipe(
        folder / "tiny.yaml", ["sweep=null", "adapter.method=lora", "adapter.rank={rule: fixed, value: 1}", "train.lr=1e-3"]
    )
    assert load_recipe(directory / "recipe.yaml").recipe == expected.recipe
    assert main(["train", "--run", str(directory), "--quiet", "--device", "cpu"]) == ExitCode.DONE
    assert main(["report", "--run", str(directory), "--quiet"]) == ExitCode.DONE


def test_sweeping_again_starts_nothing_and_says_the_same(folder: Path, runner: InProcess) -> None:
    first = swept(folder)
    runner.started.clear()
    again = swept(folder)
    assert runner.started == [] and again.status == "already done"
    assert again.figures["runs"] == first.figures["runs"] and again.figures["best"] == first.figures["best"]


def test_a_wider_grid_runs_what_is_new_alone(folder: Path, runner: InProcess) -> None:
    swept(folder)
    runner.started.clear()
    swept(folder, "sweep.grid.train.lr=[1e-3,1e-2,3e-2]")
    assert runner.started == ["soka-lr0.03", "lora-lr0.03"]


def test_other_rows_under_the_same_name_are_not_taken_for_done(folder: Path, runner: InProcess) -> None:
    swept(folder)
    builders.gsm8k_file(folder, 30)
    outcome = swept(folder)
    assert outcome.exit_code == ExitCode.SWEEP
    assert {one["exit_code"] for one in runs(folder).values()} == {ExitCode.RUN}
    assert swept(folder, force=True).exit_code == ExitCode.DONE


def test_a_failed_run_is_recorded_the_others_go_on_and_the_exit_is_9(folder: Path, runner: InProcess) -> None:
    runner.fails["soka-lr0.001"] = ExitCode.RESOURCES
    outcome = swept(folder)
    found = runs(folder)
    assert outcome.exit_code == ExitCode.SWEEP and outcome.figures["failed"] == ["soka-lr0.001"]
    assert (found["soka-lr0.001"]["status"], found["soka-lr0.001"]["exit_code"], found["soka-lr0.001"]["metric"]) == ("failed", 6, None)
    assert [one["status"] for one in found.values()].count("done") == 3
    assert record(folder)["best"]["soka"]["values"] == {"train.lr": 1e-2}


def test_a_failed_run_is_tried_again_by_the_next_call(folder: Path, runner: InProcess) -> None:
    runner.fails["soka-lr0.001"] = ExitCode.RESOURCES
    swept(folder)
    runner.started.clear()
    runner.fails.clear()
    assert swept(folder).exit_code == ExitCode.DONE
    assert runner.started == ["soka-lr0.001"]


def test_a_diverged_run_would_diverge_again_and_is_tried_again_with_force_alone(folder: Path, runner: InProcess) -> None:
    rates = f"sweep.grid.train.lr=[1e-3,{DIVERGING}]"
    swept(folder, rates)
    diverged = [name for name, one in runs(folder).items() if one["exit_code"] == ExitCode.TRAINING]
    assert diverged
    runner.started.clear()
    assert swept(folder, rates).exit_code == ExitCode.SWEEP and runner.started == []
    swept(folder, rates, force=True)
    assert set(runner.started) == set(diverged)


def test_an_interrupted_sweep_goes_on_where_it_stopped(folder: Path, runner: InProcess) -> None:
    runner.interrupt_at = "lora-lr0.001"
    with pytest.raises(KeyboardInterrupt):
        swept(folder)
    assert [one["status"] for one in runs(folder).values()] == ["done", "done", "interrupted", "waiting"]
    runner.interrupt_at = None
    runner.started.clear()
    assert swept(folder).exit_code == ExitCode.DONE
    assert runner.started == ["lora-lr0.001", "lora-lr0.01"]


def test_the_best_of_a_method_is_its_lowest_loss_and_an_edge_is_said(folder: Path, runner: InProcess) -> None:
    outcome = swept(folder)
    for method, best in record(folder)["best"].items():
        assert best["mean"] == min(one["metric"] for one in runs(folder).values() if one["method"] == method)
        assert best["rates_tried"] == [1e-3, 1e-2] and best["edge"] in ("lowest", "highest")
    assert sum("of the grid" in mark for mark in outcome.figures["marks"]) == 2


def test_a_rate_inside_the_grid_is_no_edge(folder: Path, runner: InProcess) -> None:
    swept(folder, "sweep.grid.train.lr=[1e-6,1e-2,1e-7]", "sweep.methods={soka: {}}", "train.sigma_lr=null")
    best = record(folder)["best"]["soka"]
    assert (best["values"]["train.lr"], best["edge"], best["rates_tried"]) == (1e-2, "highest", [1e-7, 1e-6, 1e-2])


def test_the_page_shows_every_run_and_a_line_for_each_method(folder: Path, runner: InProcess) -> None:
    page = Path(swept(folder, "sweep.grid.adapter.target_modules=[[q_proj],[q_proj,v_proj]]").figures["page"])
    text = page.read_text()
    assert all(name in text for name in runs(folder))
    assert 'data-plot="rate"' in text and 'data-plot="soka-train.lr-adapter.target_modules"' in text
    assert "<script" not in text


def test_further_seeds_are_run_at_each_method_s_best_and_do_not_choose_it(folder: Path, runner: InProcess) -> None:
    swept(folder, "sweep.best_seeds=[7]")
    found = record(folder)
    assert [one["name"] for one in found["runs"]][4:] == [
        f"{m}-lr{found['best'][m]['values']['train.lr']:g}-seed7" for m in ("soka", "lora")
    ]
    chosen = {
        method: min((one for one in found["runs"] if one["method"] == method and one["seed"] == 0), key=lambda one: one["metric"])
        for method in found["best"]
    }
    assert all(found["best"][method]["values"] == one["values"] for method, one in chosen.items())
    assert all(len(best["seeds"]) == 2 and best["spread"] is not None for best in found["best"].values())


# ---- halving

HALVING = "sweep.halving={steps: [2, 4], keep: 0.5}"


def test_halving_stops_the_worse_half_of_each_method_and_goes_on_with_the_better(folder: Path, runner: InProcess) -> None:
    swept(folder, HALVING, "train.schedule=constant")
    found = list(runs(folder).values())
    for method in ("soka", "lora"):
        stopped, done = sorted((one for one in found if one["method"] == method), key=lambda one: one["steps"])
        assert (stopped["status"], stopped["steps"], done["status"], done["steps"]) == ("stopped", 2, "done", 4)
        curve = [json.loads(line) for line in (folder / done["run"] / "train/metrics.jsonl").read_text().splitlines()]
        assert stopped["metric"] >= curve[1]["eval_loss"]
        assert [row["step"] for row in curve] == [1, 2, 3, 4]


def test_a_halved_sweep_that_is_done_starts_nothing_again(folder: Path, runner: InProcess) -> None:
    words = (HALVING, "train.schedule=constant")
    first = swept(folder, *words)
    runner.started.clear()
    again = swept(folder, *words)
    assert runner.started == [] and again.figures["runs"] == first.figures["runs"]


def test_under_a_schedule_that_knows_its_length_each_length_is_trained_from_the_start(folder: Path, runner: InProcess) -> None:
    swept(folder, HALVING)
    assert {name for name in runner.started if name.endswith("-2steps")} == {
        f"{m}-lr{r}-2steps" for m in ("soka", "lora") for r in ("0.001", "0.01")
    }
    assert sum(name.endswith("-4steps") for name in runner.started) == 2
    finished = [one for one in runs(folder).values() if one["status"] == "done"]
    assert all((folder / one["run"] / "train/metrics.jsonl").read_text().count("\n") == 4 for one in finished)


# ---- before anything runs


def test_a_dry_run_adds_up_and_writes_nothing(folder: Path) -> None:
    outcome = swept(folder, dry_run=True)
    figures = outcome.figures
    assert figures["totals"]["steps"] == sum(one["steps"] for one in figures["runs"]) == 16
    assert figures["totals"]["tokens"] == sum(one["tokens"] for one in figures["runs"])
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("schedule", "steps"), [("constant", 4 * 2 + 2 * 2), ("cosine", 4 * 2 + 2 * 4)])
def test_a_dry_run_counts_the_steps_that_halving_saves(folder: Path, schedule: str, steps: int) -> None:
    assert swept(folder, HALVING, f"train.schedule={schedule}", dry_run=True).figures["totals"]["steps"] == steps


def test_a_dry_run_counts_what_is_left_and_tells_the_time_by_what_is_done(folder: Path, runner: InProcess) -> None:
    swept(folder)
    found = swept(folder, "sweep.grid.train.lr=[1e-3,1e-2,3e-2]", dry_run=True).figures["totals"]
    assert (found["runs"], found["runs_left"], found["steps"]) == (6, 2, 8)
    assert found["seconds"] > 0


def test_a_dry_run_counts_what_evaluation_adds_of_one_model_or_of_all_three(folder: Path) -> None:
    found = {stages: swept(folder, f"sweep.stages={stages}", dry_run=True) for stages in ("train", "eval", "run")}
    most = 5 * 6  # items and tokens of each
    tokens = {stages: outcome.figures["totals"]["answer_tokens_at_most"] for stages, outcome in found.items()}
    assert tokens == {"train": 0, "eval": 4 * most, "run": 4 * 3 * most}
    operations = {stages: outcome.figures["totals"]["answer_operations_at_most"] for stages, outcome in found.items()}
    assert operations["run"] == pytest.approx(3 * operations["eval"]) and operations["eval"] > 0
    assert "evaluation writes at most 120 tokens" in found["eval"].notes[0] and "evaluation" not in found["train"].notes[0]


@pytest.mark.parametrize("halving", [(), ("sweep.halving={steps: [2, 4], keep: 0.5}",)], ids=["grid", "halving"])
def test_a_dry_run_counts_the_further_seeds_of_the_best_apart(folder: Path, halving: tuple[str, ...]) -> None:
    plain, outcome = swept(folder, *halving, dry_run=True), swept(folder, *halving, "sweep.best_seeds=[0,7,8]", dry_run=True)
    assert outcome.figures["totals"] == plain.figures["totals"] and plain.figures["best_seeds"] is None
    seeds = outcome.figures["best_seeds"]
    assert (seeds["runs"], seeds["steps"]) == (2 * 2, 2 * 2 * 4)
    assert "not counted above" in outcome.notes[1] and f"{seeds['tokens']:,} tokens" in outcome.notes[1]


def test_printed_commands_say_that_the_further_seeds_are_not_among_them(folder: Path) -> None:
    context = context_for(folder, "sweep.best_seeds=[7]", run="runs/s")
    outcome = stage.sweep(context, overrides=("sweep.best_seeds=[7]",), print_commands=True)
    (warning,) = context.reporter.warnings
    assert len(outcome.text.splitlines()) == 4 and "best_seeds is not among the commands" in warning and "sweep.best_seeds=[7]" in warning


def test_the_printed_commands_make_the_sweep_s_runs(folder: Path, runner: InProcess) -> None:
    lines = swept(folder, print_commands=True).text.splitlines()
    assert len(lines) == 4
    for line in lines:
        _, *words = shlex.split(line)
        assert main([*words, "--device", "cpu", "--quiet"]) == ExitCode.DONE
    assert swept(folder).status == "already done" and runner.started == []


def test_halving_s_commands_cannot_be_printed(folder: Path) -> None:
    with pytest.raises(SokaError) as caught:
        swept(folder, HALVING, print_commands=True)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("stages", ["train", "eval", "run"])
def test_a_run_s_training_is_shared_out_where_processes_are_asked_for(folder: Path, stages: str) -> None:
    for line in swept(folder, f"sweep.stages={stages}", print_commands=True, num_processes=2).text.splitlines():
        commands = line.split(" && ")
        assert commands[0].startswith("soka train") and "--num-processes 2" in commands[0]
        assert [command.split()[1] for command in commands[1:]] == {"train": [], "eval": ["eval"], "run": ["run"]}[stages]


@pytest.mark.parametrize(
    ("sweep", "named"),
    [
        ({"grid": {"train.lrr": [1], "adapter.rank.tau": [0.9]}}, "train.lrr"),
        ({"grid": {"train.lr": [1e-3, 1e-3]}}, "share the folder"),
        ({"grid": {"train.steps": [2, 4]}, "halving": {"steps": [2, 4]}}, "halving sets train.steps itself"),
        ({"metric": "gsm8k-plain/strict"}, "needs stages: eval"),
        ({"metric": "other/strict", "stages": "eval"}, "names no eval entry"),
        ({"grid": {"train.lr": []}}, "sweep.grid"),
        ({"grid": {"sweep.seeds": [1]}}, "sweep.seeds"),
        ({"halving": {"steps": [4, 2]}}, "steps must rise"),
        ({"methods": {"a/b": {}}}, "a/b"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_exit_2_before_anything_runs(
    folder: Path, llama_folder: Path, runner: InProcess, sweep: dict[str, Any], named: str
) -> None:
    with_sweep(folder, llama_folder, sweep)
    with pytest.raises(SokaError) as caught:
        swept(folder)
    assert caught.value.exit_code == ExitCode.USAGE
    assert named in str(caught.value)
    assert runner.started == []


def test_all_values_that_make_no_recipe_are_said_at_once(folder: Path, llama_folder: Path) -> None:
    with_sweep(folder, llama_folder, {"grid": {"train.lr": [-1, -2]}, "methods": {"x": {"set": {"adapter.method": "sokka"}}}})
    with pytest.raises(SokaError) as caught:
        swept(folder)
    assert all(word in caught.value.why for word in ("train.lr=-1", "train.lr=-2", "sokka"))


def test_files_inside_a_grid_s_mappings_and_a_method_s_lists_lie_beside_the_recipe_from_wherever_soka_is_called(
    folder: Path, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "data.validation": {"path": "test.jsonl"},
        "eval": [{"task": "gsm8k", "protocol": "lm-eval", "path": "test.jsonl", "shots": {"path": "train.jsonl"}}],
    }
    grid = {"data.train": [{"path": name, "task": "gsm8k"} for name in ("train.jsonl", "test.jsonl")]}
    with_sweep(folder, llama_folder, {"grid": grid, "methods": {"soka": {"set": settings}}})
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    found = [point.recipe for point in Sweep.of(load_recipe(folder / "tiny.yaml"), ()).points()]
    train, test = str(folder / "train.jsonl"), str(folder / "test.jsonl")
    assert [recipe.data.sources[0].path for recipe in found] == [train, test]
    assert all(recipe.data.validation is not None and recipe.data.validation.path == test for recipe in found)
    assert all((entry.path, entry.shots and entry.shots.path) == (test, train) for recipe in found for entry in recipe.eval)


def test_held_out_rows_are_needed_for_their_loss_and_the_training_loss_takes_its_place(
    folder: Path, llama_folder: Path, runner: InProcess
) -> None:
    recipe_folder(folder, llama_folder, sweep=GRID | {"metric": "eval_loss"})
    with pytest.raises(SokaError, match="does not fit"):
        swept(folder)
    recipe_folder(folder, llama_folder, sweep=GRID)
    swept(folder)
    assert record(folder)["metric"] == "loss"


def test_a_recipe_without_a_sweep_is_exit_2(folder: Path, llama_folder: Path) -> None:
    recipe_folder(folder, llama_folder)
    assert main(["sweep", "-r", "tiny.yaml", "--json"]) == ExitCode.USAGE


def test_the_directory_of_one_run_is_no_sweep_s(folder: Path, runner: InProcess) -> None:
    swept(folder)
    shutil.copytree(folder / "runs/s/lora-lr0.001", folder / "runs/one")
    with pytest.raises(SokaError) as caught:
        stage.sweep(context_for(folder, run="runs/one"))
    assert caught.value.exit_code == ExitCode.RUN


def test_the_other_verbs_take_the_recipe_s_own_values(folder: Path) -> None:
    assert main(["train", "-r", "tiny.yaml", "-d", "runs/one", "--quiet", "--device", "cpu"]) == ExitCode.DONE
    assert to_mapping(load_recipe("runs/one/recipe.yaml").recipe)["train"]["lr"] == 1e-2


# ---- scores, comparison


def test_a_score_judges_runs_where_the_recipe_says_so(folder: Path, llama_folder: Path, runner: InProcess) -> None:
    with_sweep(folder, llama_folder, GRID | {"stages": "eval", "metric": "gsm8k-plain/strict"})
    swept(folder)
    found = runs(folder)
    for one in found.values():
        scores = json.loads((folder / one["run"] / "eval/gsm8k-plain-adapter/scores.json").read_text())
        assert one["metric"] == scores["metrics"]["strict"]["value"]
    assert record(folder)["better"] == "higher"
    runner.started.clear()
    assert swept(folder).status == "already done"


def test_a_sweep_is_compared_by_the_best_runs_of_its_methods_with_the_rates_tried(folder: Path, runner: InProcess) -> None:
    swept(folder)
    figures = compare([Path("runs/s")], reporter=SilentReporter()).figures
    best = {method: one["values"]["train.lr"] for method, one in record(folder)["best"].items()}
    assert {run["method"]: run["lr"] for run in figures["runs"]} == best
    assert all(run["rates_tried"] == [1e-3, 1e-2] for run in figures["runs"])
    assert not any("one learning rate" in mark for mark in figures["marks"])


def test_a_sweep_is_compared_over_all_seeds_of_its_best_settings(folder: Path, runner: InProcess) -> None:
    swept(folder, "sweep.best_seeds=[7,8]")
    outcome = compare([Path("runs/s")], reporter=SilentReporter())
    figures, best = outcome.figures, record(folder)["best"]
    assert sorted(run["seed"] for run in figures["runs"]) == [0, 0, 7, 7, 8, 8]
    for one in figures["configurations"]:
        of_one = best[one["name"].partition("-")[0]]
        assert one["seeds"] == of_one["seeds"] == [0, 7, 8]
        last = one["figures"]["loss at equal steps"]
        assert (last["mean"], last["spread"]) == pytest.approx((of_one["mean"], of_one["spread"]))
    (table,) = (table for table in outcome.tables if table.title.startswith("Over seeds"))
    assert [row[2] for row in table.rows] == ["0, 7, 8"] * 2 and all("±" in row[4] for row in table.rows)
    assert not any("one seed" in mark for mark in figures["marks"])


def test_unequal_budgets_of_rates_are_marked(folder: Path, llama_folder: Path, runner: InProcess) -> None:
    with_sweep(folder, llama_folder, GRID | {"methods": {"soka": {}, "lora": LORA | {"grid": {"train.lr": [1e-2]}}}})
    outcome = swept(folder)
    marks = [*outcome.figures["marks"], *compare([Path("runs/s")], reporter=SilentReporter()).figures["marks"]]
    assert sum("soka 2, lora 1" in mark for mark in marks) >= 2


ABLATIONS = [name for name in packaged_recipes() if name.startswith("ablations/")]


def test_every_ablation_has_a_large_and_a_small_form() -> None:
    assert len(ABLATIONS) == 14
    assert {name.removeprefix("ablations/demo-") for name in ABLATIONS if "demo-" in name} == {
        name.removeprefix("ablations/") for name in ABLATIONS if "demo-" not in name
    }


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_opens_with_its_command_time_and_purpose_and_every_run_of_it_is_a_recipe(name: str) -> None:
    loaded = load_recipe(name)
    head = loaded.source_text.split("extends:")[0]
    assert f"soka sweep -r {name}.yaml" in head and "# Time: " in head and "# Shows: " in head
    points = Sweep.of(loaded, ()).points()
    assert len({point.name for point in points}) == len(points) >= 4
    assert all(point.recipe.sweep is None and point.recipe.data.validation is not None for point in points)
    assert (points[0].recipe.model.name == "soka:demo/model") == ("demo-" in name)


@pytest.mark.slow
def test_runs_of_their_own_processes_come_to_the_same_end(folder: Path, runner: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(folder)
    here = runs(folder)
    shutil.rmtree(folder / "runs")
    monkeypatch.setattr(stage, "run_jobs", run_jobs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    swept(folder, jobs=2)
    assert {name: one["metric"] for name, one in runs(folder).items()} == pytest.approx({name: one["metric"] for name, one in here.items()})
    assert all((folder / f"runs/s/logs/{name}.jsonl").read_text().startswith("{") for name in here)


def test_from_the_list_of_recipes_to_a_comparison_of_two_methods_in_four_commands(
    folder: Path, runner: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["recipes"], ["sweep", "-r", "tiny.yaml", "--dry-run"], ["sweep", "-r", "tiny.yaml"], ["compare", "runs/tiny"]):
        assert main(words) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "ablations/demo-methods" in shown and "Pareto front" in shown
    assert Path("runs/comparison/compare.html").is_file()
