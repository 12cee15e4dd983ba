"""What a bar is told of work that was done in an earlier session: it counts, and is no measure of this one's speed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soka_cli.run.reporter import SilentReporter, SilentTask
from soka_cli.stages.evaluate import evaluate
from soka_cli.stages.train import train
from tests import builders


class Bars(SilentReporter):
    """Remembers how far each bar was moved, and what it was told to have been there before."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, float] = {}
        self.moved: dict[str, float] = {}

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[SilentTask]:
        before, moved = self.before, self.moved

        class Bar(SilentTask):
            def already(self, amount: float, **figures: float | str) -> None:
                before[title] = before.get(title, 0) + amount

            def advance(self, amount: float = 1, **figures: float | str) -> None:
                moved[title] = moved.get(title, 0) + amount

        yield Bar()


def test_a_resumed_training_moves_its_bar_by_its_own_steps_alone(tmp_path: Path, llama_folder: Path) -> None:
    for steps, reporter in ((2, Bars()), (5, bars := Bars())):
        options = {"steps": steps, "schedule": "constant"}
        mapping = builders.recipe_mapping(llama_folder, builders.gsm8k_file(tmp_path), train=options)
        train(builders.stage_context(tmp_path, mapping, reporter=reporter))
    (title,) = bars.before
    assert (bars.before[title], bars.moved[title]) == (2, 3)


def test_a_resumed_evaluation_moves_its_bar_by_its_own_answers_alone(tmp_path: Path, llama_folder: Path) -> None:
    test = builders.gsm8k_file(tmp_path, 3)
    for samples, reporter in ((2, Bars()), (3, bars := Bars())):
        entry = {"task": "gsm8k", "path": str(test), "max_new_tokens": 2, "samples": samples, "temperature": 1.0}
        evaluate(builders.stage_context(tmp_path, builders.recipe_mapping(llama_folder, test, eval=[entry]), reporter=reporter))
    (title,) = bars.before
    assert (bars.before[title], bars.moved[title]) == (2 * 3, 3)
