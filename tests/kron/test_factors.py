"""From a weight to its leading Kronecker terms: the oracles of the method."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from soka_cli.kron import Decomposition, KronFactors, KronShape, RankRule, balanced, decompose_weight, kron_dense, module_seed
from tests.kron.shapes import random_shapes


def decompose(weight: torch.Tensor, shape: KronShape, rank: int) -> Decomposition:
    return decompose_weight(weight, shape, RankRule("fixed", value=rank), seed=0)


def dense(factors: KronFactors) -> torch.Tensor:
    return kron_dense(factors.left.double(), factors.right.double(), factors.sigma.double())


def noise(out_features: int, in_features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "shape", [KronShape(3, 4, 2, 5), KronShape(8, 6, 4, 9), KronShape(16, 18, 18, 16), KronShape(2, 2, 40, 30)], ids=str
)
def test_an_exact_sum_of_terms_is_recovered(shape: KronShape) -> None:
    generator = torch.Generator().manual_seed(0)
    rank = min(3, shape.max_rank)
    left = torch.randn(rank, shape.m, shape.n, generator=generator)
    right = torch.randn(rank, shape.p, shape.q, generator=generator)
    weight = kron_dense(left, right, torch.tensor([3.0, 2.0, 1.0])[:rank])
    found = decompose(weight, shape, rank)
    assert float((dense(found.factors) - weight.double()).norm() / weight.norm()) < 1e-6
    assert found.relative_error < 1e-6
    assert found.choice.energy_kept == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("shape", random_shapes(25), ids=str)
def test_the_squared_error_of_every_rank_is_the_tail_of_the_spectrum(shape: KronShape) -> None:
    weight = noise(shape.out_features, shape.in_features)
    full = decompose_weight(weight, shape, RankRule(spectrum="full"), seed=0).spectrum
    assert len(full) == shape.max_rank
    assert float(full.square().sum()) == pytest.approx(float(weight.double().square().sum()), rel=1e-10)
    errors = []
    for rank in sorted({1, (shape.max_rank + 1) // 2, shape.max_rank}):
        found = decompose(weight, shape, rank)
        error = float((weight.double() - dense(found.factors)).square().sum())
        assert error == pytest.approx(float(full[rank:].square().sum()), abs=1e-5 * found.total_energy)
        assert found.relative_error**2 == pytest.approx(error / found.total_energy, abs=1e-9)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)


def test_the_low_rank_shape_gives_the_plain_svd() -> None:
    weight = noise(24, 40)
    found = decompose(weight, KronShape(24, 1, 1, 40), 5)
    left, sigma, right = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(found.spectrum[:5], sigma[:5], rtol=1e-10, atol=0)
    torch.testing.assert_close(dense(found.factors), left[:, :5] * sigma[:5] @ right[:5], rtol=0, atol=1e-5)


def test_factors_have_unit_norm_and_a_positive_largest_entry() -> None:
    factors = decompose(noise(48, 60), KronShape(6, 6, 8, 10), 7).factors
    torch.testing.assert_close(factors.left.flatten(1).norm(dim=1), torch.ones(7))
    torch.testing.assert_close(factors.right.flatten(1).norm(dim=1), torch.ones(7))
    peaks = factors.left.flatten(1).gather(1, factors.left.flatten(1).abs().argmax(1, keepdim=True))
    assert bool((peaks > 0).all())
    assert {part.dtype for part in (factors.left, factors.right, factors.sigma)} == {torch.float32}
    assert (factors.shape, factors.rank) == (KronShape(6, 6, 8, 10), 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_that_holds_the_weight_does_not_matter(dtype: torch.dtype) -> None:
    weight = noise(32, 48).to(dtype)
    shape = balanced(32, 48)
    one, other = (decompose(held, shape, 4) for held in (weight, weight.float()))
    assert torch.equal(one.factors.left, other.factors.left)
    assert torch.equal(one.spectrum, other.spectrum)
    assert one.relative_error == other.relative_error


def test_threads_at_work_together_give_the_bits_of_one_alone() -> None:
    weights = [noise(64, 64, seed) for seed in range(8)]
    alone = [decompose(weight, balanced(64, 64), 3) for weight in weights]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda weight: decompose(weight, balanced(64, 64), 3), weights))
    assert all(torch.equal(a.factors.left, b.factors.left) for a, b in zip(alone, together, strict=True))


def test_a_trainable_weight_is_read_and_left_alone() -> None:
    weight = torch.nn.Parameter(noise(12, 12))
    before = weight.detach().clone()
    found = decompose(weight, balanced(12, 12), 2)
    assert torch.equal(weight, before)
    assert not found.factors.left.requires_grad


def test_a_weight_that_is_not_finite_is_refused_with_its_first_index() -> None:
    weight = noise(6, 20)
    weight[4, 3] = float("nan")
    weight[2, 17] = float("inf")
    with pytest.raises(ValueError, match=r"inf at index \(2, 17\)"):
        decompose(weight, KronShape(3, 4, 2, 5), 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_the_smallest_weights_decompose(size: tuple[int, int]) -> None:
    weight = noise(*size)
    found = decompose_weight(weight, balanced(*size), RankRule(), seed=0)
    torch.testing.assert_close(dense(found.factors).float(), weight)


def test_a_zero_weight_has_one_term_of_size_zero() -> None:
    found = decompose_weight(torch.zeros(6, 20), KronShape(3, 4, 2, 5), RankRule(), seed=0)
    assert (found.factors.rank, found.relative_error, found.total_energy, found.sigma_error_bound) == (1, 0.0, 0.0, 0.0)
    assert not dense(found.factors).any()


def test_a_modules_seed_depends_on_both_and_on_nothing_else() -> None:
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    seeds = {module_seed(seed, name) for seed in (0, 1) for name in names}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert module_seed(0, "q_proj") == module_seed(0, "q_proj")


def test_factors_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        KronFactors(torch.zeros(2, 3, 4), torch.zeros(3, 2, 5), torch.zeros(2))
