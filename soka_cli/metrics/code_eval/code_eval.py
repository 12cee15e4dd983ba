"""pass@k of MBPP, HumanEval and their like, the programs judged in soka's sandbox; a module for `evaluate.load`."""

from collections.abc import Sequence

import datasets
import evaluate

from soka_cli.metrics.judged_programs import INPUTS, pass_values


class CodeEval(evaluate.Metric):
    """`compute(predictions=[[program, ...], ...], references=[tests, ...], k=(1,))`, as the Hub's code_eval takes them."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="pass@k without bias; the programs run in soka's sandbox and the tests outside of it.",
            citation="Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: list[list[str]], references: list[str], k: Sequence[int] = (1,), timeout: float = 10.0, unsafe: bool = False
    ) -> dict[str, float | None]:
        return pass_values(predictions, references, k, timeout, unsafe)
