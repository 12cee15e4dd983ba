"""pass@k as a module that `evaluate` loads."""

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.metrics import load
from soka_cli.sandbox import find_isolation

RIGHT, WRONG = "def f(x):\n    return x + 1", "def f(x):\n    return x"
TEST = "assert f(1) == 2\nassert f(2) == 3"


def test_programs_are_judged_in_the_sandbox() -> None:
    if find_isolation().layer is None:
        pytest.skip("nothing isolates programs here")
    found = load("code_eval").compute(predictions=[[RIGHT, WRONG], [WRONG, WRONG]], references=[TEST, TEST], k=[1, 2])
    assert found == pytest.approx({"pass@1": 0.25, "pass@1_stderr": 0.25, "pass@2": 0.5, "pass@2_stderr": 0.5})


def test_more_draws_than_candidates_are_an_error() -> None:
    with pytest.raises(SokaError) as caught:
        load("code_eval").compute(predictions=[[RIGHT, WRONG], [WRONG]], references=[TEST, TEST], k=[2])
    assert caught.value.exit_code == ExitCode.USAGE
