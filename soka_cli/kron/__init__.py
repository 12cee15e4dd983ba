"""Algebra of Kronecker sums on tensors: shapes, rearrangement, solver, rank rules, products. Knows no model, file or recipe."""

from soka_cli.kron.allocate import Allotment, Bid, allocate, allocate_evenly, refuse_too_little
from soka_cli.kron.angles import principal_angles
from soka_cli.kron.contraction import LaidOut, right_comes_first
from soka_cli.kron.elbow import clear_elbow
from soka_cli.kron.factors import Decomposition, KronFactors, decompose_weight, first_non_finite, module_seed
from soka_cli.kron.kept import Kept
from soka_cli.kron.linear import computed_in, factored_update, laid_out_update, matrix_update, merged_linear
from soka_cli.kron.plan import PLANS, Plan, Work, choose_plan
from soka_cli.kron.product import KronSum, kron_dense, kron_difference, kron_product
from soka_cli.kron.rank import RankChoice, RankRule, choose_rank
from soka_cli.kron.rearrange import rearrange, restore
from soka_cli.kron.search import ShapeCandidate, ShapeSearch, search_budget, search_shape
from soka_cli.kron.shape import KronShape, affordable, balanced, blocked, choose_shape, divisors, explicit
from soka_cli.kron.solver import Triplets, leading_triplets
from soka_cli.kron.spectrum import term_spectrum, update_terms
from soka_cli.kron.start import random_factors, scaled_to

__all__ = [
    "PLANS",
    "Allotment",
    "Bid",
    "Decomposition",
    "Kept",
    "KronFactors",
    "KronShape",
    "KronSum",
    "LaidOut",
    "Plan",
    "RankChoice",
    "RankRule",
    "ShapeCandidate",
    "ShapeSearch",
    "Triplets",
    "Work",
    "affordable",
    "allocate",
    "allocate_evenly",
    "balanced",
    "blocked",
    "choose_plan",
    "choose_rank",
    "choose_shape",
    "clear_elbow",
    "computed_in",
    "decompose_weight",
    "divisors",
    "explicit",
    "factored_update",
    "first_non_finite",
    "kron_dense",
    "kron_difference",
    "kron_product",
    "laid_out_update",
    "leading_triplets",
    "matrix_update",
    "merged_linear",
    "module_seed",
    "principal_angles",
    "random_factors",
    "rearrange",
    "refuse_too_little",
    "restore",
    "right_comes_first",
    "scaled_to",
    "search_budget",
    "search_shape",
    "term_spectrum",
    "update_terms",
]
