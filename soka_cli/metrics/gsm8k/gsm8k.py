"""GSM8K: strict and flexible as lm-evaluation-harness has them, numeric as equality of exact numbers; a module for `evaluate.load`."""

import datasets
import evaluate

from soka_cli.metrics.judged_texts import INPUTS, values


class Gsm8k(evaluate.Metric):
    """`compute(predictions=completions, references=gold answers, protocol=None)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="GSM8K: strict and flexible as lm-evaluation-harness has them, numeric as equality of exact numbers.",
            citation="Cobbe et al., Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str], protocol: str | None = None) -> dict[str, float | None]:
        return values("gsm8k", predictions, references, protocol)
