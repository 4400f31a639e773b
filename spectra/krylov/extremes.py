"""The smallest and the largest eigenvalue of A, with residuals and probabilistic bounds.

Ritz values lie inside the spectrum: θ_min ≥ λmin, with some eigenvalue within the residual. How
far below λmin can be is a question of luck, of how much of its eigenvector the start q_1 holds;
for a Gaussian start the answer holds with a stated probability, in two forms.

*Before the run* (Kuczyński, Woźniakowski): after m steps, with R = λmax - λmin,

    P[θ_min - λmin > ε R] ≤ 1.648 √n exp(-√ε (2m - 1)),

*after it* (from the T that came out): T has the characteristic polynomial p with
p(A) q_1 = (Π β) r/‖r‖, the product running over all off-diagonals and ‖r‖, hence

    Π_i (θ_i - λmin) |uᵀ q_1| ≤ β_1 ... β_(m-1) ‖r‖,   A u = λmin u,

where (uᵀ q_1)² is Beta(1/2, (n-1)/2). Rounding of the products comes on top of both.

References:
    Kuczyński, Woźniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms
    with a random start, 1992, theorem 4.2 (https://doi.org/10.1137/0613066);
    van Dorsselaer, Hochstenbach, van der Vorst, Computing probabilistic bounds for extreme
    eigenvalues of symmetric matrices with the Lanczos method, 2000
    (https://ir.cwi.nl/pub/4505).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import beta as beta_distribution
from torch import Tensor

from spectra.krylov.lanczos import Tridiagonal, lanczos
from spectra.krylov.measure import random_start
from spectra.krylov.operator import SymmetricOperator

TOLERANCE = 1e-3  # residual that counts as converged, as a share of max|θ|


@dataclass(frozen=True)
class Extremes:
    """Hold both ends of the spectrum as Ritz values; each has an eigenvalue within its residual."""

    lambda_min: float
    lambda_max: float
    residual_min: float  # ‖A y - θ y‖ of the unit Ritz vector
    residual_max: float
    vector_min: Float[Tensor, " n"] | None  # unit Ritz vectors, (n,), or None if not asked for
    vector_max: Float[Tensor, " n"] | None
    converged: bool  # both residuals within the tolerance times max|θ|
    steps: int  # Krylov steps of the (longest) run


def extremes_of(
    run: Tridiagonal, *, tolerance: float = TOLERANCE, vectors: bool = True
) -> Extremes:
    """Read both ends off a Lanczos run.

    Args:
        run: with its basis, unless `vectors` is False.
        tolerance: largest residual that counts as converged, relative to max|θ|.
        vectors: form the two Ritz vectors, too.
    """
    ritz = run.ritz()
    low, high = float(ritz.values[0]), float(ritz.values[-1])
    residual_low, residual_high = (run.residual_norm * float(abs(ritz.last[i])) for i in (0, -1))
    return Extremes(
        lambda_min=low,
        lambda_max=high,
        residual_min=residual_low,
        residual_max=residual_high,
        vector_min=run.vector(0) if vectors else None,
        vector_max=run.vector(-1) if vectors else None,
        converged=_converged(low, high, residual_low, residual_high, tolerance),
        steps=run.steps,
    )


def best_extremes(found: Sequence[Extremes], *, tolerance: float = TOLERANCE) -> Extremes:
    """Merge runs from several probes: each end from the run that reached farthest out.

    Args:
        found: at least one.
        tolerance: as in `extremes_of`.
    """
    low = min(found, key=lambda e: e.lambda_min)
    high = max(found, key=lambda e: e.lambda_max)
    return Extremes(
        lambda_min=low.lambda_min,
        lambda_max=high.lambda_max,
        residual_min=low.residual_min,
        residual_max=high.residual_max,
        vector_min=low.vector_min,
        vector_max=high.vector_max,
        converged=_converged(
            low.lambda_min, high.lambda_max, low.residual_min, high.residual_max, tolerance
        ),
        steps=max(e.steps for e in found),
    )


def extreme_eigenvalues(
    A: SymmetricOperator,
    *,
    steps: int = 100,
    seed: int = 0,
    start: Float[Tensor, " n"] | None = None,
    tolerance: float = TOLERANCE,
    vectors: bool = True,
    callback: Callable[[int], None] | None = None,
) -> Extremes:
    """Find the smallest and the largest eigenvalue with one Lanczos run.

    A run that has not converged is returned with its residuals and `converged=False`.

    Args:
        A: the operator, of size n.
        steps: Krylov steps, at most n are made.
        seed: of the Gaussian start (probe 0).
        start: (n,) another start instead, e.g. the eigenvector at an earlier epoch; such a run may
            feed neither densities nor bounds.
        tolerance: largest residual that counts as converged, relative to max|θ|.
        vectors: return the two Ritz vectors, too.
        callback: called with 1, 2, ... after each product.

    Raises:
        SpectraError: what `lanczos` raises.
    """
    if start is None:
        start = random_start(A.dim, seed=seed, probe=0, dtype=A.dtype, device=A.device)
    run = lanczos(A, start, steps=steps, callback=callback)
    return extremes_of(run, tolerance=tolerance, vectors=vectors)


def lower_bound(
    theta_min: float,
    theta_max: float,
    *,
    dim: int,
    steps: int,
    probes: int = 1,
    confidence: float = 0.95,
) -> float | None:
    """Bound λmin from below with a stated probability, knowing only how long the run was.

    The theorem is applied to λmax I - A and to A - λmin I, which have the same Krylov spaces, each
    failing with half of the allowed probability: θ_min - λmin ≤ ε R and λmax - θ_max ≤ ε R, hence
    R ≤ (θ_max - θ_min) / (1 - 2 ε). Only for Gaussian starts.

    Args:
        theta_min: the smallest Ritz value of all probes.
        theta_max: the largest.
        dim: n.
        steps: m, of the shortest run.
        probes: number of independent starts; the bound fails only if each of them does.
        confidence: probability that it holds.

    Returns:
        The bound, or None where it is worth nothing (ε ≥ 1/2).
    """
    if steps >= dim:
        return theta_min  # the run is exact with probability 1
    failure = ((1 - confidence) / 2) ** (1 / probes)
    epsilon = (math.log(1.648 * math.sqrt(dim) / failure) / (2 * steps - 1)) ** 2
    if epsilon >= 0.5:
        return None
    return theta_min - epsilon / (1 - 2 * epsilon) * (theta_max - theta_min)


def posterior_lower_bound(runs: Sequence[Tridiagonal], *, confidence: float = 0.95) -> float:
    """Bound λmin from below with a stated probability, from the T that came out.

    Once θ_min has converged this is tight to about its residual, where `lower_bound` still spends
    a fixed share of the whole spectrum's width. Only for independent Gaussian starts.

    Args:
        runs: Lanczos runs; the bound fails only if each of them does.
        confidence: probability that it holds.
    """
    failure = (1 - confidence) ** (1 / len(runs))
    return min(_below(run, failure) for run in runs)  # holds as soon as one of them does


def _below(run: Tridiagonal, failure: float) -> float:
    # The d > 0 with Σ log(θ_i - θ_1 + d) = Σ log β - log|uᵀq_1|, by bisection on log d.
    theta = run.ritz().values
    gaps = theta - theta[0]
    if run.residual_norm == 0 or run.dim == 1:
        return float(theta[0])
    overlap = math.sqrt(float(beta_distribution.ppf(failure, 0.5, (run.dim - 1) / 2)))
    target = float(np.log(run.betas).sum()) + math.log(run.residual_norm) - math.log(overlap)
    high = target / run.steps  # for no gaps at all
    low = high - 100.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        if float(np.log(gaps + math.exp(middle)).sum()) < target:
            low = middle
        else:
            high = middle
    return float(theta[0]) - math.exp(high)


def _converged(
    low: float, high: float, residual_low: float, residual_high: float, tolerance: float
) -> bool:
    return max(residual_low, residual_high) <= tolerance * max(abs(low), abs(high))
