"""Turns a function of (request, own options) into a command with the options that all verbs share."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soka_cli.cli.request import Request

if TYPE_CHECKING:
    from soka_cli.stages.outcome import Outcome

COMMON: dict[str, tuple[Any, Any]] = {
    "overrides": (
        Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe overrides, e.g. train.lr=1e-4 eval.0.limit=10.")],
        None,
    ),
    "recipe": (
        Annotated[str | None, typer.Option("--recipe", "-r", metavar="NAME|PATH", help="Recipe file, or a packaged recipe's name.")],
        None,
    ),
    "run": (Annotated[Path | None, typer.Option("--run", "-d", metavar="DIR", help="Run directory (default: runs/<recipe>).")], None),
    "device": (Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:k]", help="Where to compute.")], "auto"),
    "force": (Annotated[bool, typer.Option("--force", help="Set a stage whose inputs changed aside and do it again.")], False),
    "offline": (Annotated[bool, typer.Option("--offline", help="Never ask the network.")], False),
    "json": (Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")], False),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="Show the libraries' own messages.")], False),
}

Body = Callable[..., "Outcome | None"]


def verb(application: typer.Typer, name: str, *, examples: tuple[str, ...], without: tuple[str, ...] = ()) -> Callable[[Body], Body]:
    """Register `body(request, reporter, **own)` as `soka NAME`; its docstring is the help.

    Args:
        examples: commands shown under the help.
        without: common options that this verb does not read.
    """

    def register(body: Body) -> Body:
        own = list(inspect.signature(body).parameters.values())[2:]
        shared = {key: value for key, value in COMMON.items() if key not in without}

        @functools.wraps(body)
        def command(**words: Any) -> None:
            from soka_cli.cli.guard import answer

            common = {key: words.pop(key) for key in shared}
            common["overrides"] = tuple(common.get("overrides") or ())
            request = Request(verb=name, command=words.pop("click_context").obj or f"soka {name}", **common)
            raise typer.Exit(answer(request, lambda reporter: body(request, reporter, **words)))

        parameters = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for key, (annotation, default) in shared.items()
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters.append(inspect.Parameter("click_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        command.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *parameters]}
        del command.__wrapped__
        application.command(name, epilog=epilog(examples))(command)
        return body

    return register


def epilog(examples: tuple[str, ...]) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {example}" for example in examples)
