"""Several completions of each item: drawn by seed, kept by item and sample, scored without bias."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.stages.answerer import Completion
from soka_cli.stages.context import StageContext
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.exam import sample_seed
from soka_cli.stages.local_answerer import LocalAnswerer
from soka_cli.stages.sampling import Chooser, uniform
from soka_cli.tasks.pass_at_k import pass_at_k
from tests import builders
from tests.builders import gsm8k_file, recipe_mapping, stage_context, tiny_model_folder

ITEMS = 5
ENTRY = {"task": "gsm8k", "max_new_tokens": 8, "batch_size": 4, "samples": 3, "temperature": 2.0, "name": "drawn"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    tiny_model_folder(folder / "base")
    gsm8k_file(folder, ITEMS, "test.jsonl")
    return folder


def context_of(base: Path, folder: Path, run: str = "run", *, seed: int = 0, **entry: Any) -> StageContext:
    entries = [{"path": str(base / "test.jsonl")} | ENTRY | entry]
    context: StageContext = stage_context(folder, recipe_mapping(base / "base", base / "test.jsonl", eval=entries, seed=seed), run=run)
    return context


def drawn(context: StageContext) -> dict[tuple[str, int], str]:
    evaluate(context)
    return {(row["id"], row["sample"]): row["completion"] for row in read_lines(context.layout.predictions("drawn", "base"))}


def scores_of(context: StageContext) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(context.layout.scores("drawn", "base").read_text())
    return found


@pytest.fixture(scope="module")
def three(base: Path, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    context = context_of(base, tmp_path_factory.mktemp("three"))
    drawn(context)
    return context


def test_every_item_has_its_samples_in_order_and_they_differ(three: StageContext) -> None:
    rows = read_lines(three.layout.predictions("drawn", "base"))
    assert [(row["id"], row["sample"]) for row in rows] == [(str(item), sample) for item in range(ITEMS) for sample in range(3)]
    assert len({row["completion"] for row in rows}) > ITEMS
    assert all(row["smallest_gap"] is None for row in rows)


def test_scores_say_how_tokens_were_drawn(three: StageContext) -> None:
    scores = scores_of(three)
    assert (scores["n"], scores["items"]) == (3 * ITEMS, ITEMS)
    assert scores["decoding"] | {"strategy": "sampled", "temperature": 2.0, "top_p": 1.0, "samples": 3, "seed": 0} == scores["decoding"]
    assert scores["near_ties"]["count"] is None


@pytest.mark.parametrize("entry", [{"batching": "padded", "batch_size": 2}, {"batching": "continuous", "batch_size": 3}])
def test_a_sample_depends_neither_on_its_batch_nor_on_the_way_of_batching(
    base: Path, three: StageContext, tmp_path: Path, entry: dict[str, Any]
) -> None:
    wanted = {(row["id"], row["sample"]): row["completion"] for row in read_lines(three.layout.predictions("drawn", "base"))}
    assert drawn(context_of(base, tmp_path, **entry)) == wanted


def test_another_seed_draws_others_and_is_another_evaluation(base: Path, three: StageContext, tmp_path: Path) -> None:
    assert drawn(context_of(base, tmp_path, seed=1)) != drawn(three)
    with pytest.raises(SokaError, match="seed") as caught:
        evaluate(context_of(base, tmp_path, seed=2))
    assert caught.value.exit_code is ExitCode.RUN


def test_a_greedy_evaluation_does_not_depend_on_the_seed(base: Path, tmp_path: Path) -> None:
    greedy = {"samples": 1, "temperature": 0.0}
    evaluate(context_of(base, tmp_path, **greedy))
    assert evaluate(context_of(base, tmp_path, seed=1, **greedy)).status == "already done"


def test_more_samples_are_added_to_those_that_are_there(
    base: Path, three: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = drawn(context_of(base, tmp_path, samples=2))
    asked: list[int] = []
    answer = LocalAnswerer.answer

    def counted(self: LocalAnswerer, questions: Any, done: Any) -> Any:
        asked.append(len(questions) - len(done))
        return answer(self, questions, done)

    monkeypatch.setattr(LocalAnswerer, "answer", counted)
    assert two.items() <= drawn(context_of(base, tmp_path, samples=3)).items()
    assert asked == [ITEMS]
    assert read_lines(RunLayout(tmp_path / "run").predictions("drawn", "base")) == read_lines(three.layout.predictions("drawn", "base"))
    with pytest.raises(SokaError, match="samples"):
        evaluate(context_of(base, tmp_path, samples=2))


def programs(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, rights: list[int], **entry: Any) -> StageContext:
    """MBPP with four samples an item, of which as many are right as `rights` says."""
    rows = builders.mbpp_rows(len(rights))
    file = builders.write_jsonl(folder / "mbpp.jsonl", rows)
    codes = {str(row["task_id"]): (row["code"], right) for row, right in zip(rows, rights, strict=True)}

    def answer(self: LocalAnswerer, questions: Any, done: Any) -> Any:
        words = {key: code if key[1] < right else "pass" for key in (one.key for one in questions) for code, right in [codes[key[0]]]}
        yield [(one, Completion(words[one.key], "eos", 2, None)) for one in questions if one.key not in done]

    monkeypatch.setattr(LocalAnswerer, "answer", answer)
    return context_of(base, folder, task="mbpp", path=str(file), samples=4, **entry)


def test_pass_at_k_is_the_mean_of_the_unbiased_estimates(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rights = [0, 1, 4, 2]
    context = programs(base, tmp_path, monkeypatch, rights, pass_at=[1, 2, 4])
    evaluate(context)
    metrics = scores_of(context)["metrics"]
    for k in (1, 2, 4):
        values = [pass_at_k(4, right, k) for right in rights]
        mean = sum(values) / 4
        assert metrics[f"pass@{k}"]["value"] == pytest.approx(mean)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 3 / 4)
        assert metrics[f"pass@{k}"]["stderr"] == pytest.approx(spread)


def test_another_k_is_scored_without_asking_anew(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(programs(base, tmp_path, monkeypatch, [1, 3]))
    context = programs(base, tmp_path, monkeypatch, [1, 3], pass_at=[3])
    monkeypatch.setattr(LocalAnswerer, "answer", lambda *_: pytest.fail("asked again"))
    evaluate(context)
    assert scores_of(context)["metrics"]["pass@3"]["value"] == pytest.approx((pass_at_k(4, 1, 3) + 1) / 2)


def test_seeds_are_their_items_samples_and_recipes_own() -> None:
    seeds = {sample_seed(seed, item, sample) for seed in range(3) for item in ("1", "11", "a b") for sample in range(4)}
    assert len(seeds) == 36 and all(0 <= seed < 2**32 for seed in seeds)


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(4000, 4)
    picked = Chooser(1.0, 1.0)(scores, range(4000), [7] * 4000).argmax(dim=-1)
    shares = torch.bincount(picked, minlength=4) / 4000
    assert torch.allclose(shares, scores[0].softmax(dim=-1), atol=0.03)
    assert shares[3] == 0


def test_temperature_and_top_p_narrow_what_is_drawn() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(500, 4)
    assert set(Chooser(1.0, 0.6)(scores, range(500), [0] * 500).argmax(dim=-1).tolist()) == {3}
    assert set(Chooser(1.0, 0.7)(scores, range(500), [0] * 500).argmax(dim=-1).tolist()) == {2, 3}
    assert set(Chooser(0.05, 1.0)(scores, range(500), [0] * 500).argmax(dim=-1).tolist()) == {3}


def test_draws_are_numbers_from_zero_to_one_that_seed_and_step_fix() -> None:
    draws = [uniform(seed, step) for seed in range(50) for step in range(50)]
    assert 0.0 <= min(draws) < 0.01 and 0.99 < max(draws) < 1.0
    assert len(set(draws)) == 2500
    assert uniform(0, 0) == draws[0]
