"""What is wrong with a recipe: collected first, raised together."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from soka_cli.errors import ExitCode, SokaError

OTHER_NAMES = {"learning_rate": "lr", "r": "rank", "num_train_epochs": "epochs", "gradient_accumulation_steps": "micro_batch_size"}
"""What other tools call an option -> what it is called here."""


@dataclass(frozen=True)
class Mistake:
    """One thing to mend. `place` is file:line, a file, or the override."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def raise_all(mistakes: Sequence[Mistake], recipe: str) -> None:
    """Raise one error (exit 2) that shows every mistake once, in the order of discovery; nothing where there are none."""
    distinct = list(dict.fromkeys(mistakes))
    if not distinct:
        return
    places = list(dict.fromkeys(mistake.place for mistake in distinct))
    raise SokaError(
        f"{len(distinct)} mistake{'s' if len(distinct) > 1 else ''} in recipe {recipe}",
        where=", ".join(places),
        why="\n".join(map(str, distinct)),
        hint=f"mend {'them' if len(distinct) > 1 else 'it'}, then: soka plan --recipe {recipe}",
        exit_code=ExitCode.USAGE,
    )


def did_you_mean(word: str, known: Sequence[str], *, kind: str = "there are") -> str:
    """`; did you mean lr? there are: epochs, lr, ...` to put after a sentence about `word`."""
    guess = nearest(word, known)
    return f"{f'; did you mean {guess}?' if guess else ';'} {kind}: {', '.join(known)}"


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    if OTHER_NAMES.get(word) in known:
        return OTHER_NAMES[word]
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return near[0] if near else None
