"""Evaluation by a server: the same answers as here, kept and gone on with in the same way, nothing secret recorded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from soka_cli.cli.app import main
from soka_cli.errors import ExitCode, SokaError
from soka_cli.models import served
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.run.lines import read_lines
from soka_cli.run.reporter import SilentReporter
from soka_cli.stages.answerer import Completion, Decoding, Question
from soka_cli.stages.context import StageContext
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.local_answerer import LocalAnswerer
from soka_cli.stages.served_answerer import ServedAnswerer, ServedAnswerers
from soka_cli.stages.server_choice import ServerChoice
from tests import builders
from tests.stub_server import Stub, answers, hangs_up, of_model

ITEMS = 8
KEY = "sk-a-secret-of-the-user"
NAME = "gsm8k-plain"
PROMPTS = ["Question: how many?", "a", "2 and 2 are", "A rather longer prompt that goes on for a while", "</s>"]
ENTRY = {"task": "gsm8k", "protocol": "plain", "max_new_tokens": 8, "batch_size": 3}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in served.KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(served, "PATIENCE", (0.001, 0.001))
    monkeypatch.setattr(served.Server.__init__, "__kwdefaults__", {**served.Server.__init__.__kwdefaults__, "patience": (0.001, 0.001)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    builders.tiny_model_folder(place / "base", seed=3)
    builders.gsm8k_file(place, ITEMS, "test.jsonl")
    return place


def context_of(folder: Path, run: Path, **entry: Any) -> StageContext:
    mapping = builders.recipe_mapping(folder / "base", folder / "test.jsonl")
    mapping["eval"] = [ENTRY | {"path": str(folder / "test.jsonl")} | entry]
    recipe = builders.write_recipe(run.parent / f"{run.name}.yaml", mapping)
    return StageContext(load_recipe(recipe), RunLayout(run), reporter=SilentReporter(), device="cpu", offline=True)


def completions(answerer: Any, prompts: list[str]) -> dict[str, Completion]:
    questions = [Question(prompt, 0, prompt) for prompt in prompts]
    return {question.id: completion for some in answerer.answer(questions, ()) for question, completion in some}


def both(decoding: Decoding, *, end: str = "</s>", **options: Any) -> tuple[dict[str, Completion], dict[str, Completion]]:
    """What the tiny model answers here, and behind a server."""
    tokenizer = builders.byte_tokenizer()
    tokenizer.eos_token = end
    model = builders.tiny_model(seed=3)
    with Stub(of_model(model, tokenizer, **options)) as stub:
        there = ServedAnswerer(served.Server(stub.url), served.ServedModel("tiny", None), tokenizer, decoding, at_once=3)
        far = completions(there, PROMPTS)
    model.generation_config.eos_token_id = None
    here = LocalAnswerer(model, tokenizer, decoding, batch_size=4, reporter=SilentReporter())
    return completions(here, PROMPTS), far


def ascii_in(text: str) -> list[str]:
    return [letter for letter in text if letter.isascii()]


def without_gaps(found: dict[str, Completion]) -> dict[str, tuple[str, str, int]]:
    return {name: (one.text, one.stop_reason, one.tokens) for name, one in found.items()}


# ---- the same answers


def test_a_server_answers_as_the_same_model_does_here() -> None:
    near, far = both(Decoding((), 12))
    assert without_gaps(near) == without_gaps(far)
    assert {one.stop_reason for one in near.values()} == {"length"}


@pytest.mark.parametrize("tells_ids", [True, False])
def test_stop_strings_and_ends_are_where_they_are_here(tells_ids: bool) -> None:
    free, _ = both(Decoding((), 12))
    end, stop = ascii_in(free["a"].text)[0], ascii_in(free["2 and 2 are"].text)[2]
    word = builders.byte_tokenizer().tokenize(end)[0]
    near, far = both(Decoding(("never written", stop), 12), end=word, tells_ids=tells_ids)
    assert without_gaps(near) == without_gaps(far)
    assert {"eos", "stop"} <= {one.stop_reason for one in near.values()}


def test_predictions_and_scores_are_those_of_backend_hf(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = builders.tiny_model(seed=3), builders.byte_tokenizer()
    evaluate(context_of(folder, tmp_path / "here"), kinds=["base"])
    with Stub(of_model(model, tokenizer), limit=512, tokenizer=tokenizer) as stub:
        evaluate(context_of(folder, tmp_path / "there"), kinds=["base"], server=ServerChoice(stub.url))
    found = {}
    for name in ("here", "there"):
        rows = read_lines(RunLayout(tmp_path / name).predictions(NAME, "base"))
        found[name] = sorted(({**row, "smallest_gap": None} for row in rows), key=lambda row: row["id"])
    assert found["here"] == found["there"]
    assert len(found["there"]) == ITEMS


# ---- what is sent


def test_a_prompt_goes_as_token_ids_with_one_bos() -> None:
    tokenizer = builders.byte_tokenizer()
    with Stub() as stub:
        answerer = ServedAnswerer(served.Server(stub.url), served.ServedModel("tiny", None), tokenizer, Decoding(("Q:",), 4), at_once=1)
        completions(answerer, ["a", "<s>b"])
    assert [body["prompt"][:1] + body["prompt"][1:].count(1) * [1] for body in stub.asked] == [[1], [1]]
    assert all(body["temperature"] == 0.0 and body["repetition_penalty"] == 1.0 and body["stop"] == ["Q:"] for body in stub.asked)


def test_a_sample_is_drawn_by_the_server_with_its_own_seed() -> None:
    decoding = Decoding((), 4, temperature=0.8, top_p=0.95)
    with Stub() as stub:
        answerer = ServedAnswerer(served.Server(stub.url), served.ServedModel("tiny", None), builders.byte_tokenizer(), decoding, at_once=1)
        list(answerer.answer([Question("x", sample, "a", seed=70 + sample) for sample in range(2)], ()))
    assert sorted((body["temperature"], body["top_p"], body["seed"]) for body in stub.asked) == [(0.8, 0.95, 70), (0.8, 0.95, 71)]
    assert all(body.items() >= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}.items() for body in stub.asked)


def test_a_special_token_that_spells_a_stop_string_ends_the_answer_too() -> None:
    tokenizer = builders.byte_tokenizer()
    with Stub(lambda body: {"text": "x", "finish_reason": "stop", "stop_reason": 0, "token_ids": [91, 0]}) as stub:
        answerer = ServedAnswerer(served.Server(stub.url), served.ServedModel("tiny", None), tokenizer, Decoding(("<unk>",), 4), at_once=1)
        found = completions(answerer, ["a"])["a"]
    assert stub.asked[0]["stop_token_ids"] == [0]
    assert (found.text, found.stop_reason) == (tokenizer.decode([91]), "stop")


def test_no_more_requests_are_under_way_than_the_entry_allows(folder: Path, tmp_path: Path) -> None:
    with Stub(delay=0.02) as stub:
        evaluate(context_of(folder, tmp_path / "run"), server=ServerChoice(stub.url))
    assert 2 <= stub.most <= 3
    assert len(stub.asked) == ITEMS


# ---- room


def test_an_answer_that_the_context_ends_says_so() -> None:
    tokenizer = builders.byte_tokenizer()
    with Stub() as stub:
        answerer = ServedAnswerer(served.Server(stub.url), served.ServedModel("tiny", 6), tokenizer, Decoding((), 4), at_once=1)
        found = completions(answerer, ["a", "abcd", "abcdef"])
    assert [(one.text, one.stop_reason) for one in found.values()] == [("aaaa", "length"), ("a", "context"), ("", "context")]
    assert len(stub.asked) == 2
    assert len(list(answerer.limits([Question("x", 0, "abcd"), Question("y", 0, "abcdef")]))) == 2


@pytest.mark.parametrize(("told", "wanted"), [(" of 4 tokens", ("aa", "context")), ("", ("", "context"))])
def test_a_context_that_shows_in_a_refusal_alone_is_kept_to(told: str, wanted: tuple[str, str]) -> None:
    refusal = answers(400, {"error": {"message": f"beyond the maximum context length{told}"}})
    with Stub(faults=[refusal]) as stub:
        tokenizer = builders.byte_tokenizer()
        answerer = ServedAnswerer(served.Server(stub.url), served.ServedModel("tiny", None), tokenizer, Decoding((), 4), at_once=1)
        found = completions(answerer, ["a"])["a"]
    assert (found.text, found.stop_reason) == wanted


# ---- kept, gone on with, never mixed


def test_what_a_failing_server_answered_is_kept_and_the_rest_asked_later(folder: Path, tmp_path: Path) -> None:
    context = context_of(folder, tmp_path / "run", batch_size=1)
    with Stub(faults=[None, None, hangs_up, hangs_up, hangs_up]) as stub:
        with pytest.raises(SokaError) as caught:
            evaluate(context, server=ServerChoice(stub.url))
        assert caught.value.exit_code == ExitCode.ENVIRONMENT
        before = read_lines(context.layout.predictions(NAME, "other"))
        stub.seen.clear()
        evaluate(context, server=ServerChoice(stub.url))
    assert len(before) == 2
    assert len(stub.asked) == ITEMS - 2
    after = read_lines(context.layout.predictions(NAME, "other"))
    assert all(row in after for row in before)


def test_done_is_done_wherever_the_server_moves(folder: Path, tmp_path: Path) -> None:
    for status in ("done", "already done"):
        with Stub() as stub:
            assert evaluate(context_of(folder, tmp_path / "run"), server=ServerChoice(stub.url)).status == status


def test_answers_from_here_and_from_a_server_are_never_mixed(folder: Path, tmp_path: Path) -> None:
    context = context_of(folder, tmp_path / "run")
    evaluate(context, kinds=["base"])
    with Stub() as stub, pytest.raises(SokaError) as caught:
        evaluate(context, kinds=["base"], server=ServerChoice(stub.url))
    assert caught.value.exit_code == ExitCode.RUN
    assert not stub.asked


def test_another_served_model_is_another_evaluation(folder: Path, tmp_path: Path) -> None:
    context = context_of(folder, tmp_path / "run")
    with Stub(names=("one", "two")) as stub:
        evaluate(context, server=ServerChoice(stub.url, "one"))
        with pytest.raises(SokaError) as caught:
            evaluate(context, server=ServerChoice(stub.url, "two"))
    assert caught.value.exit_code == ExitCode.RUN


# ---- which model


def test_scores_name_the_served_model_and_the_server(folder: Path, tmp_path: Path) -> None:
    with Stub(limit=700) as stub:
        scores = evaluate(context_of(folder, tmp_path / "run"), server=ServerChoice(stub.url)).figures["scores"][0]
    assert (scores["model"], scores["model_name"]) == ("other", "tiny")
    told = {"backend": "vllm", "server": stub.url.removeprefix("http://"), "served_model": "tiny", "context": 700, "dtype": None}
    assert scores["decoding"].items() >= told.items()


def test_a_kind_is_the_users_word_and_has_to_exist_in_the_run(folder: Path, tmp_path: Path) -> None:
    context = context_of(folder, tmp_path / "run")
    with Stub() as stub:
        with pytest.raises(SokaError) as caught:
            evaluate(context, kinds=["merged"], server=ServerChoice(stub.url))
        assert caught.value.exit_code == ExitCode.RUN
        shutil.copytree(folder / "base", context.layout.merged_model)
        scores = evaluate(context, kinds=["merged"], server=ServerChoice(stub.url)).figures["scores"][0]
    assert scores["model"] == "merged" and scores["model_sha256"]


def test_a_folder_is_not_what_a_server_serves(folder: Path, tmp_path: Path) -> None:
    with Stub() as stub, pytest.raises(SokaError, match="not chosen by --model") as caught:
        evaluate(context_of(folder, tmp_path / "run"), kinds=[], folder=folder / "base", server=ServerChoice(stub.url))
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_served_model_of_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    def other(text: str, add_special_tokens: bool) -> Any:
        return type("Encoding", (), {"input_ids": [5, 6, 7]})

    with Stub(tokenizer=other) as stub, pytest.raises(SokaError, match="another tokenizer") as caught:
        ServedAnswerers(context_of(folder, tmp_path / "run"), ServerChoice(stub.url)).of(Decoding((), 4), at_once=1)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


# ---- through the command line


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    context_of(folder, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_key_is_recorded_nowhere(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SOKA_API_KEY", KEY)
    refusal = answers(400, {"error": {"message": f"not with {KEY}"}})
    with Stub(faults=[None, refusal]) as stub:
        assert main(["eval", "-r", "tiny.yaml", "--backend", "vllm", "--url", stub.url]) == ExitCode.ENVIRONMENT
        assert main(["eval", "-r", "tiny.yaml", "--backend", "vllm", "--url", stub.url, "-v"]) == ExitCode.DONE
        assert stub.seen[-1][1]["Authorization"] == f"Bearer {KEY}"
    said = capsys.readouterr()
    written = [path for path in here.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in said.out + said.err


def test_an_address_with_a_password_leaves_no_trace(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "-r", "tiny.yaml", "--backend", "vllm", "--url", f"http://me:{KEY}@localhost:1"]) == ExitCode.USAGE
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert not [path for path in here.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("words", [["--backend", "vllm"], ["--url", "http://localhost:1"], ["--served-model", "tiny"]])
@pytest.mark.parametrize("verb", ["eval", "generate"])
def test_options_that_do_not_go_together_are_refused(here: Path, verb: str, words: list[str]) -> None:
    assert main([verb, "-r", "tiny.yaml", *words]) == ExitCode.USAGE


def test_generate_asks_a_server_and_keeps_the_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = builders.tiny_model(seed=3), builders.byte_tokenizer()
    words = ["generate", "-r", "tiny.yaml", "--json", "--max-new-tokens", "5", *(word for one in PROMPTS for word in ("-p", one))]
    found: dict[str, list[str]] = {}
    assert main([*words, "--device", "cpu"]) == ExitCode.DONE
    found["base"] = [row["base"] for row in json.loads(capsys.readouterr().out)["answers"]]
    with Stub(of_model(model, tokenizer)) as stub:
        assert main([*words, "--backend", "vllm", "--url", stub.url]) == ExitCode.DONE
    found["served"] = [row["served"] for row in json.loads(capsys.readouterr().out)["answers"]]
    assert found["served"] == found["base"]
