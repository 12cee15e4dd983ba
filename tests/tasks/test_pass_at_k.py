"""pass@k against its definition."""

from itertools import combinations

import pytest

from soka_cli.errors import ExitCode, SokaError
from soka_cli.tasks.pass_at_k import pass_at_k


@pytest.mark.parametrize(("samples", "right"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_it_is_the_share_of_draws_with_a_right_sample(samples: int, right: int) -> None:
    marks = [place < right for place in range(samples)]
    for k in range(1, samples + 1):
        draws = list(combinations(marks, k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_with_one_sample_drawn_it_is_the_share_that_is_right() -> None:
    assert pass_at_k(200, 50, 1) == pytest.approx(0.25)


def test_thousands_of_samples_do_not_overflow() -> None:
    assert 0.0 < pass_at_k(10_000, 3, 1_000) < 1.0


@pytest.mark.parametrize("k", [0, 4])
def test_more_draws_than_samples_are_an_error_and_no_silence(k: int) -> None:
    with pytest.raises(SokaError) as caught:
        pass_at_k(3, 1, k)
    assert caught.value.exit_code == ExitCode.USAGE and caught.value.hint
