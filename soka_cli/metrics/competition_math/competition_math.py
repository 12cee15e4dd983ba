"""MATH: exact as the authors' string equality, symbolic as equality of mathematical objects; a module for `evaluate.load`."""

import datasets
import evaluate

from soka_cli.metrics.judged_texts import INPUTS, values


class CompetitionMath(evaluate.Metric):
    """`compute(predictions=completions, references=gold answers, protocol=None)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="MATH: exact as the authors' string equality, symbolic as equality of mathematical objects.",
            citation="Hendrycks et al., Measuring Mathematical Problem Solving With the MATH Dataset, arXiv 2103.03874",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str], protocol: str | None = None) -> dict[str, float | None]:
        return values("math", predictions, references, protocol)
