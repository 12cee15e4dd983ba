"""The choice of a plan: what is cheap by count is chosen, and nothing but sizes, type and device decides."""

from dataclasses import replace

import pytest
import torch

from soka_cli.kron import PLANS, Work, choose_plan
from soka_cli.kron.plan import seconds

LARGE = Work((2, 64, 64, 64, 64), vectors=1024, inside=True)
SMALL = Work((2, 32, 32, 32, 32), vectors=1024, inside=True)


def test_a_few_terms_of_many_vectors_are_merged() -> None:
    assert choose_plan(LARGE) == choose_plan(SMALL) == "merged"


def test_many_terms_take_the_gradient_of_the_whole_matrix() -> None:
    assert choose_plan(replace(SMALL, sizes=(32, 32, 32, 32, 32))) == "dense"


@pytest.mark.parametrize("work", [LARGE, SMALL], ids=str)
def test_a_single_vector_never_forms_a_matrix(work: Work) -> None:
    for trained in (True, False):
        assert choose_plan(replace(work, vectors=1, trained=trained)) == "factored"


def test_a_few_terms_of_a_large_layer_beside_its_weight_go_factor_by_factor() -> None:
    assert choose_plan(replace(LARGE, inside=False, dtype=torch.bfloat16)) == "factored"


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_no_plan_costs_less_with_more_vectors_or_terms(side: int, rank: int) -> None:
    work = Work((rank, side, side, side, side), vectors=64, inside=True)
    for plan in PLANS:
        less = seconds(plan, work)
        assert less < seconds(plan, replace(work, vectors=1024))
        assert less < seconds(plan, replace(work, sizes=(2 * rank, side, side, side, side)))
        assert less > seconds(plan, replace(work, trained=False))
        assert less >= seconds(plan, replace(work, kept=True))


def test_the_low_rank_end_of_the_shapes_costs_the_same_from_both_sides() -> None:
    """out x 1 (x) 1 x in and 1 x in (x) out x 1 are the same terms."""
    one, other = (replace(LARGE, sizes=sizes) for sizes in ((2, 4096, 1, 1, 4096), (2, 1, 4096, 4096, 1)))
    assert seconds("factored", one) == seconds("factored", other)
    assert choose_plan(one) == choose_plan(other) == "factored"
