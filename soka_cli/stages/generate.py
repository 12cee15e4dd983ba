"""Answer prompts with the base and the tuned model side by side."""

from collections.abc import Sequence
from typing import Any

from soka_cli.data.encode import encode_prompt
from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.answerer import Decoding, Question
from soka_cli.stages.completions import Completer
from soka_cli.stages.context import StageContext
from soka_cli.stages.judged_model import JudgedModel, ModelShelf, find_tuned, tuned_folder
from soka_cli.stages.outcome import Outcome, Table
from soka_cli.stages.served_answerer import ServedAnswerers
from soka_cli.stages.server_choice import ServerChoice

BATCH = 8  # prompts answered together


def generate(context: StageContext, prompts: Sequence[str], max_new_tokens: int = 256, server: ServerChoice | None = None) -> Outcome:
    """Greedy answers to prompts taken as they are: no template, no stop strings but the model's own end.

    Where the run has an adapter yet, its answers stand beside the base's; a server's model answers alone.

    Raises:
        SokaError: exit 2 for an empty prompt; exit 5 for a damaged adapter; exit 3 for a base or a server that can't be had.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise SokaError(
            "There is no prompt to answer.", where="--prompt", hint='soka generate --prompt "Question: ..."', exit_code=ExitCode.USAGE
        )
    if server is not None:
        texts = {"served": served_answers(context, server, prompts, max_new_tokens)}
    else:
        texts = local_answers(context, prompts, max_new_tokens)
    answers: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    for kind, some in texts.items():
        for row, text in zip(answers, some, strict=True):
            row[kind] = text
    only_base = list(texts) == ["base"]
    columns = ("prompt", *texts)
    return Outcome(
        stage="generate",
        status="done",
        run=context.layout.root if context.layout.root.is_dir() else None,
        figures={"answers": answers},
        tables=(Table("greedy answers", columns, tuple(tuple(row[column] for column in columns) for row in answers)),),
        notes=() if not only_base else (f"There is no adapter in {context.layout.root} yet: these are the base's answers.",),
        next_commands=() if not only_base else (f"soka train --run {context.layout.root}",),
    )


def local_answers(context: StageContext, prompts: Sequence[str], max_new_tokens: int) -> dict[str, list[str]]:
    """By model kind: the base's answers, and those of what training left."""
    models = [JudgedModel("base")]
    if tuned_folder(context).is_dir():
        models.append(find_tuned(context))
    shelf = ModelShelf(context)
    return {model.kind: answer(shelf, model, prompts, max_new_tokens, context) for model in models}


def served_answers(context: StageContext, server: ServerChoice, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """A served model's answers, in the prompts' order."""
    answerer = ServedAnswerers(context, server).of(Decoding(stops=(), max_new_tokens=max_new_tokens), at_once=BATCH)
    questions = [Question(str(place), 0, prompt) for place, prompt in enumerate(prompts)]
    texts: dict[str, str] = {}
    with context.reporter.task("generate, served", total=len(prompts), unit="prompts") as progress:
        for answers in answerer.answer(questions, ()):
            for question, completion in answers:
                texts[question.id] = completion.text
                if completion.stop_reason == "context":
                    context.reporter.warn(f"served: the server's context was full (prompt {int(question.id) + 1}).")
            progress.advance(len(answers))
    return [texts[question.id] for question in questions]


def answer(shelf: ModelShelf, model: JudgedModel, prompts: Sequence[str], max_new_tokens: int, context: StageContext) -> list[str]:
    """One model's answers, in the prompts' order."""
    loaded, tokenizer = shelf.get(model)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    completer = Completer(loaded, tokenizer, stops=(), max_new_tokens=max_new_tokens, said=context.reporter.warn)
    texts = [""] * len(prompts)
    with context.reporter.task(f"generate, {model.kind}", total=len(prompts), unit="prompts") as progress:
        for batch in completer.batches(encoded, BATCH):
            for place, completion in zip(batch, completer.complete([encoded[place] for place in batch]), strict=True):
                texts[place] = completion.text
                if completion.stop_reason == "context":
                    context.reporter.warn(f"{model.kind}: the context of {completer.limit} tokens was full (prompt {place + 1}).")
            progress.advance(len(batch))
    return texts
