"""Singular triplets against matrices whose spectra are known, by both methods."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from soka_cli.kron import RankRule, Triplets, balanced, decompose_weight, leading, leading_triplets, rearrange
from soka_cli.kron.certificate import clustered_bound
from soka_cli.kron.solver import Method

METHODS: tuple[Method, ...] = ("exact", "randomised")


def known_matrix(sigma: torch.Tensor, a: int, b: int, seed: int = 0) -> torch.Tensor:
    """[a, b] fp32 with these singular values, the rest zero; fp32 rounding moves them by about 1e-7 of the largest."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(a, len(sigma), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(b, len(sigma), generator=generator, dtype=torch.float64))
    return (left * sigma.double() @ right.T).float()


def assert_sound(matrix: torch.Tensor, triplets: Triplets) -> None:
    """Sigma within its bound of the true one, vectors orthonormal, A v = sigma u, A^T u = sigma v, energy whole."""
    matrix = matrix.double()
    true = torch.linalg.svdvals(matrix)[: len(triplets.sigma)]
    assert bool(((triplets.sigma - true).abs() <= triplets.error_bound + 1e-14 * true[0]).all())
    assert bool((triplets.sigma.diff() <= 0).all())
    for vectors in (triplets.left, triplets.right):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors)), rtol=0, atol=2e-6)
    left, right = triplets.left.double(), triplets.right.double()
    allowed = triplets.residual + 2e-6 * max(float(true[0]), 1e-300)
    assert bool(triplets.residual.le(1e-2 * true[0] + 1e-300).all())
    assert bool(((matrix @ right.T).T - triplets.sigma[:, None] * left).norm(dim=1).le(allowed).all())
    assert bool(((matrix.T @ left.T).T - triplets.sigma[:, None] * right).norm(dim=1).le(allowed).all())
    assert triplets.total_energy == pytest.approx(float(matrix.square().sum()), rel=1e-12)


SPECTRA = {
    "power law": torch.arange(1, 401).double() ** -1.0,
    "fast decay": 10.0 ** -torch.arange(0, 12).double(),
    "steep power law": torch.arange(1, 401).double() ** -4.0,
    "halving": 0.5 ** torch.arange(0, 400).double(),
    "plateau of 16": torch.cat([torch.full((16,), 5.0), torch.linspace(1, 0.5, 384)]),
    "17 copies": torch.cat([torch.full((17,), 3.0), torch.linspace(1, 0.1, 383)]),
    "40 copies": torch.cat([torch.full((40,), 3.0), torch.linspace(1, 0.1, 360)]),
    "rank 5": torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]),
    "one far above the rest": torch.cat([torch.ones(1), torch.linspace(1e-3, 1e-4, 399)]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SPECTRA)
def test_bounds_hold_on_known_spectra(name: str, method: Method) -> None:
    matrix = known_matrix(SPECTRA[name], 440, 400)
    count = 45 if name == "40 copies" else 20
    triplets = leading_triplets(matrix, count, seed=3, method=method)
    assert_sound(matrix, triplets)
    expected = torch.zeros(count, dtype=torch.float64)
    expected[: len(SPECTRA[name])] = SPECTRA[name][:count].double()
    assert bool(((triplets.sigma - expected).abs() <= triplets.error_bound + 1e-6 * expected[0]).all())


@pytest.mark.parametrize("method", METHODS)
def test_bounds_hold_on_flat_noise_and_are_small(method: Method) -> None:
    matrix = torch.randn(600, 500, generator=torch.Generator().manual_seed(1))
    triplets = leading_triplets(matrix, 17, seed=0, method=method)
    assert_sound(matrix, triplets)
    assert float(triplets.error_bound.max()) < 1e-4 * float(triplets.sigma[0])


@pytest.mark.parametrize("method", METHODS)
def test_one_huge_entry_does_not_hide_the_rest(method: Method) -> None:
    matrix = torch.randn(400, 300, generator=torch.Generator().manual_seed(2))
    matrix[7, 11] = 1e5
    assert_sound(matrix, leading_triplets(matrix, 10, seed=0, method=method))


@pytest.mark.parametrize("scale", [1e-20, 1e25])
@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_the_matrix_does_not_matter(method: Method, scale: float) -> None:
    matrix = torch.randn(300, 280, generator=torch.Generator().manual_seed(3)) * scale
    assert_sound(matrix, leading_triplets(matrix, 5, seed=0, method=method))


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_zero_values_and_orthonormal_vectors(method: Method) -> None:
    triplets = leading_triplets(torch.zeros(50, 30), 8, seed=0, method=method)
    assert_sound(torch.zeros(50, 30), triplets)
    assert not triplets.sigma.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (13, 13), (20, 7)])
def test_all_values_of_a_small_matrix_are_found(size: tuple[int, int]) -> None:
    matrix = torch.randn(*size, generator=torch.Generator().manual_seed(4))
    for method in METHODS:
        triplets = leading_triplets(matrix, min(size), seed=0, method=method)
        assert_sound(matrix, triplets)
        torch.testing.assert_close((triplets.left.T * triplets.sigma.float()) @ triplets.right, matrix, rtol=1e-5, atol=1e-5)


def test_the_gram_path_agrees_with_the_full_svd() -> None:
    matrix = torch.randn(300, 700, generator=torch.Generator().manual_seed(5))
    for turned in (matrix, matrix.T):
        assert_sound(turned, leading_triplets(turned, 17, seed=0, method="exact"))


def test_the_same_seed_gives_the_same_bits_and_another_seed_the_same_values() -> None:
    matrix = known_matrix(torch.arange(1, 301).double() ** -0.5, 420, 400)
    first, again, other = (leading_triplets(matrix, 17, seed=seed, method="randomised") for seed in (1, 1, 2))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("left", "sigma", "right", "error_bound"))
    assert bool(((first.sigma - other.sigma).abs() <= first.error_bound + other.error_bound).all())


def test_the_exact_method_reads_no_seed() -> None:
    matrix = torch.randn(300, 280, generator=torch.Generator().manual_seed(6))
    first, other = (leading_triplets(matrix, 17, seed=seed) for seed in (1, 2))
    assert torch.equal(first.left, other.left)


def test_the_global_generator_is_left_alone() -> None:
    matrix = torch.randn(300, 280)
    before = torch.random.get_rng_state()
    leading_triplets(matrix, 5, seed=0, method="randomised")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_is_refused(value: float) -> None:
    matrix = torch.zeros(5, 5)
    matrix[2, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        leading_triplets(matrix, 2, seed=0)


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_that_there_is_not_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="not between 1 and 5"):
        leading_triplets(torch.ones(5, 7), count, seed=0)


def test_a_fresh_block_finds_copies_that_the_first_could_not_see() -> None:
    """The residuals of a matrix with two values vanish after two blocks of 16, with 32 of 40 copies found."""
    diagonal = torch.cat([torch.full((40,), 3.0), torch.ones(460)])
    matrix = torch.zeros(500, 520)
    matrix[range(500), range(500)] = diagonal
    for seed in range(3):
        triplets = leading_triplets(matrix, 43, seed=seed, method="randomised")
        assert bool(((triplets.sigma - diagonal[:43]).abs() <= triplets.error_bound).all())
        assert float(triplets.error_bound.max()) < 1e-3


def test_the_randomised_method_is_not_the_exact_one_in_disguise() -> None:
    matrix = torch.randn(600, 500, generator=torch.Generator().manual_seed(7))
    first, other = (leading_triplets(matrix, 17, seed=seed, method="randomised") for seed in (1, 2))
    assert not torch.equal(first.left, other.left)


def test_values_far_below_the_first_are_not_lost_in_fp32_rounding() -> None:
    matrix = known_matrix(SPECTRA["halving"], 440, 400)
    triplets = leading_triplets(matrix, 17, seed=0, method="randomised")
    assert float(triplets.error_bound.max()) < 1e-8 * float(triplets.sigma[0])


def test_values_whose_intervals_overlap_share_the_bound_of_their_group() -> None:
    """A chain too: 2.9 overlaps 3.0 alone, and 2.7 only the interval that the two have together."""
    sigma = torch.tensor([3.0, 2.9, 2.7, 1.0], dtype=torch.float64)
    residual = torch.tensor([0.08, 0.08, 0.09, 0.1], dtype=torch.float64)
    joined = (2 * 0.08**2 + 0.09**2) ** 0.5
    expected = torch.tensor([joined, joined, joined, 0.1], dtype=torch.float64)
    torch.testing.assert_close(clustered_bound(sigma, residual), expected)


@pytest.mark.parametrize("model", ["llama288-math", "stories260K", "rxn-albert", "aren-translit"])
def test_bounds_hold_on_every_matrix_of_a_real_model(shared: Path, model: str) -> None:
    checked = 0
    with safe_open(shared / "models" / model / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            if weight.ndim != 2 or min(weight.shape) < 16:
                continue
            matrix = rearrange(weight.float(), balanced(*weight.shape))
            assert_sound(matrix, leading_triplets(matrix, min(17, *matrix.shape), seed=0, method="randomised"))
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_the_bound_is_what_the_tolerance_asks_for(tolerance: float) -> None:
    matrix = torch.randn(700, 600, generator=torch.Generator().manual_seed(8))
    triplets = leading_triplets(matrix, 17, seed=0, method="randomised", tolerance=tolerance)
    assert_sound(matrix, triplets)
    assert float(triplets.error_bound.max()) <= tolerance * float(triplets.sigma[0])


def test_bounds_are_tightened_until_the_caller_is_settled() -> None:
    matrix, asked = torch.randn(700, 600, generator=torch.Generator().manual_seed(9)), []

    def settled(sigma: torch.Tensor, error_bound: torch.Tensor, energy: float) -> bool:
        asked.append(float(error_bound.max() / sigma[0]))
        assert energy == pytest.approx(float(matrix.double().square().sum()))
        return asked[-1] <= 2e-6

    triplets = leading_triplets(matrix, 17, seed=0, method="randomised", tolerance=1e-2, settled=settled)
    assert_sound(matrix, triplets)
    assert asked[0] > 2e-6
    assert float(triplets.error_bound.max()) <= 2e-6 * float(triplets.sigma[0])


def test_a_question_that_nothing_settles_ends_with_the_finest_bounds() -> None:
    matrix = known_matrix(SPECTRA["17 copies"], 440, 400)
    triplets = leading_triplets(matrix, 20, seed=0, method="randomised", settled=lambda sigma, error_bound, energy: False)
    assert_sound(matrix, triplets)
    assert float(triplets.error_bound.max()) <= 1e-5 * float(triplets.sigma[0])


def test_a_basis_that_would_grow_too_large_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, restarts = torch.randn(900, 800, generator=torch.Generator().manual_seed(10)), []
    monkeypatch.setattr(leading, "MOST_COLUMNS", 160)
    restart = leading.KrylovSpace.restart
    monkeypatch.setattr(leading.KrylovSpace, "restart", lambda self, *pairs: (restarts.append(self.size), restart(self, *pairs))[1])
    triplets = leading_triplets(matrix, 17, seed=0, method="randomised", tolerance=1e-4)
    assert_sound(matrix, triplets)
    assert restarts
    assert float(triplets.error_bound.max()) <= 1e-4 * float(triplets.sigma[0])


def test_a_search_that_gives_up_hands_over_to_the_exact_method(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(600, 500, generator=torch.Generator().manual_seed(11))
    monkeypatch.setattr(leading, "MOST_STEPS", 6)
    given_up = leading_triplets(matrix, 17, seed=0, method="randomised")
    assert torch.equal(given_up.left, leading_triplets(matrix, 17, seed=0, method="exact").left)


def test_two_seeds_find_the_same_ranks_of_flat_spectra() -> None:
    """A rule that reads gaps within a few per mille of sigma: each seed's choice is the other's, or marked unresolved."""
    for index in range(4):
        weight = torch.randn(576, 576, generator=torch.Generator().manual_seed(20 + index))
        first, other = (decompose_weight(weight, balanced(576, 576), RankRule(max=16), seed=seed).choice for seed in (1, 2))
        assert first.rank == other.rank or "unresolved" in (first.bound_by, other.bound_by)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_vectors_that_a_certificate_rests_on_are_orthogonal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the wanted ones were multiplied once more in fp64 and have left the space that the guards come from."""
    overlaps, probe = [], leading.LeadingSearch._probe

    def seen(search: leading.LeadingSearch, deflated: torch.Tensor, *rest: object) -> float:
        overlaps.append(float((deflated.T @ deflated - torch.eye(deflated.shape[1])).abs().max()))
        return probe(search, deflated, *rest)

    monkeypatch.setattr(leading.LeadingSearch, "_probe", seen)
    leading_triplets(known_matrix(SPECTRA[name], 440, 400), 20, seed=3, method="randomised")
    assert all(overlap <= 2e-6 for overlap in overlaps)
