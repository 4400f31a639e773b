"""The smallest and the largest eigenvalue of A, with residuals and probabilistic bounds.

Ritz values lie inside the spectrum: θ_min ≥ λmin. How far below λmin can be depends on how much of
its eigenvector u the start q_1 happens to hold; for a Gaussian start that is known in probability.
*Before the run* (Kuczyński, Woźniakowski), after m steps and with R = λmax - λmin,

    P[θ_min - λmin > ε R] ≤ 1.648 √n exp(-√ε (2m - 1));

*after it*, T has the characteristic polynomial p with p(A) q_1 = β_1 ... β_(m-1) r, hence

    Π_i (θ_i - λmin) |uᵀ q_1| ≤ β_1 ... β_(m-1) ‖r‖,   (uᵀ q_1)² ~ Beta(1/2, (n-1)/2).

Rounding of the products comes on top of both.

References:
    Kuczyński, Woźniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms
    with a random start, 1992, theorem 4.2 (https://doi.org/10.1137/0613066);
    van Dorsselaer, Hochstenbach, van der Vorst, Computing probabilistic bounds for extreme
    eigenvalues of symmetric matrices with the Lanczos method, 2000 (https://ir.cwi.nl/pub/4505).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv
from torch import Tensor

from spectra.krylov.basis import Place
from spectra.krylov.lanczos import Tridiagonal, lanczos
from spectra.krylov.measure import random_start
from spectra.krylov.operator import SymmetricOperator
from spectra.krylov.replay import ritz_vectors

TOLERANCE = 1e-3  # residual that counts as converged, as a share of max|θ|


@dataclass(frozen=True)
class Extremes:
    """Hold both ends of the spectrum as Ritz values; some eigenvalue lies within each residual.

    Of the matrix whose products were made: what rounding inside a product does comes on top.
    """

    lambda_min: float
    lambda_max: float
    residual_min: float  # ‖A y - θ y‖ of the unit Ritz vector
    residual_max: float
    # Unit Ritz vectors, where the basis lay; None if not asked for.
    vector_min: Float[Tensor, " n"] | None
    vector_max: Float[Tensor, " n"] | None
    converged: bool  # both residuals within the tolerance times max|θ|
    steps: int  # Krylov steps of the (longest) run
    start: str = "random"  # or "given": then no bound, density or trace follows from the run


def nonconvexity(low: float, high: float, floor: float = 0.0) -> float | None:
    """Give max(0, −λmin)/λmax, None where λmax is not positive beyond the noise floor."""
    return max(0.0, -low) / high if high > floor else None


def extremes_of(
    run: Tridiagonal, *, tolerance: float = TOLERANCE, vectors: bool = True
) -> Extremes:
    """Read both ends off a Lanczos run, with the residuals that T tells.

    Once Lanczos has converged these fall below all rounding; `measured_ends` takes them anew.

    Args:
        run: with its basis, unless `vectors` is False.
        tolerance: largest residual that counts as converged, relative to max|θ|.
        vectors: form the two Ritz vectors, too.
    """
    values = run.ritz().values
    low, high = run.end_residuals()
    return Extremes(
        lambda_min=float(values[0]),
        lambda_max=float(values[-1]),
        residual_min=low,
        residual_max=high,
        vector_min=run.vector(0) if vectors else None,
        vector_max=run.vector(-1) if vectors else None,
        converged=max(low, high) <= tolerance * float(abs(values[[0, -1]]).max()),
        steps=run.steps,
    )


def measured_ends(
    A: SymmetricOperator,
    values: tuple[float, float],
    vectors: tuple[Float[Tensor, " n"], Float[Tensor, " n"]],
    *,
    steps: int,
    tolerance: float = TOLERANCE,
) -> Extremes:
    """Measure the residuals of both ends with one product each.

    T alone would call them zero once Lanczos has converged, where the rounding of the products
    still stands, and tells nothing about an operator that moves.

    Args:
        A: what Lanczos ran on, of size n.
        values: the outermost Ritz values.
        vectors: (n,) each, of unit norm, that belong to them.
        steps: Krylov steps of the longest run.
        tolerance: largest residual that counts as converged, relative to the larger modulus.
    """
    low, high = (
        float(((A @ y).double() - value * y.to(A.device).double()).norm())
        for value, y in zip(values, vectors, strict=True)
    )
    return Extremes(
        lambda_min=values[0],
        lambda_max=values[1],
        residual_min=low,
        residual_max=high,
        vector_min=vectors[0],
        vector_max=vectors[1],
        converged=max(low, high) <= tolerance * max(map(abs, values)),
        steps=steps,
    )


def extreme_eigenvalues(
    A: SymmetricOperator,
    *,
    steps: int = 100,
    seed: int = 0,
    start: Float[Tensor, " n"] | None = None,
    tolerance: float = TOLERANCE,
    until_converged: float | None = None,
    basis: Place = "device",
    callback: Callable[[int], None] | None = None,
) -> Extremes:
    """Find the smallest and the largest eigenvalue with one Lanczos run, and two products more.

    These measure the residuals. A run that has not converged is returned with them and
    `converged=False`.

    Args:
        A: the operator, of size n.
        steps: Krylov steps, at most; at most n are made.
        seed: of the Gaussian start (its probe 0).
        start: (n,) another start, e.g. the sum of both Ritz vectors of an earlier epoch: it reaches
            the same residuals in two thirds of the steps (committed digits, ten epochs on, 1e-5).
            It serves these two values alone: no bound, density or trace follows from such a run,
            and an eigenvector that the start does not hold is missed, with small residuals.
        tolerance: as in `extremes_of`; where that is stricter, `until_converged` takes its place.
        until_converged: end the run by the residuals that T tells, as `lanczos` does. Where the
            rounding of the products is larger (float32 below 1e-6), `converged` is False.
        basis: where `lanczos` keeps it; "none" runs again for the vectors (`ritz_vectors`).
        callback: called with 1, 2, ... after each product of the run.

    Raises:
        SpectraError: what `lanczos` raises.
    """
    kind = "random" if start is None else "given"
    if start is None:
        start = random_start(A.dim, seed=seed, probe=0, dtype=A.dtype, device=A.device)
    run = lanczos(
        A, start, steps=steps, until_converged=until_converged, basis=basis, callback=callback
    )
    tolerance = min(tolerance, until_converged or tolerance)
    values = run.ritz().values
    if run.basis is None:
        low, high = ritz_vectors(A, start, run)
    else:
        low, high = run.vector(0), run.vector(-1)
    ends = float(values[0]), float(values[-1])
    measured = measured_ends(A, ends, (low, high), steps=run.steps, tolerance=tolerance)
    return replace(measured, start=kind)


def lower_bound(
    theta_min: float,
    theta_max: float,
    *,
    dim: int,
    steps: int,
    probes: int = 1,
    confidence: float = 0.95,
) -> float | None:
    """Bound λmin from below with a stated probability, knowing only how long the runs were.

    λmax I - A and A - λmin I have the same Krylov spaces; with half of the allowed failures each,
    θ_min - λmin ≤ ε R and λmax - θ_max ≤ ε R, hence R ≤ (θ_max - θ_min) / (1 - 2 ε).

    Args:
        theta_min: the smallest Ritz value of all probes, which had Gaussian starts.
        theta_max: the largest.
        dim: n.
        steps: m, of the shortest run.
        probes: number of independent starts; the bound fails only if each of them does.
        confidence: probability that it holds.

    Returns:
        The bound, or None where it is worth nothing (ε ≥ 1/2).
    """
    if steps >= dim:
        return theta_min  # exact with probability 1
    failure = ((1 - confidence) / 2) ** (1 / probes)
    epsilon = (math.log(1.648 * math.sqrt(dim) / failure) / (2 * steps - 1)) ** 2
    if epsilon >= 0.5:
        return None
    return theta_min - epsilon / (1 - 2 * epsilon) * (theta_max - theta_min)


def posterior_lower_bound(runs: Sequence[Tridiagonal], *, confidence: float = 0.95) -> float:
    """Bound λmin from below with a stated probability, from the T that came out.

    Once θ_min has converged it lies a small multiple of the residual below, where `lower_bound`
    still gives a fixed share of the whole spectrum away.

    Args:
        runs: Lanczos runs from independent Gaussian starts.
        confidence: probability that it holds.
    """
    failure = (1 - confidence) ** (1 / len(runs))
    return min(_below(run, failure) for run in runs)  # holds as soon as one of them does


def _below(run: Tridiagonal, failure: float) -> float:
    theta = run.ritz().values
    if run.residual_norm == 0 or run.dim == 1:
        return float(theta[0])
    overlap = math.sqrt(float(betaincinv(0.5, (run.dim - 1) / 2, failure)))
    target = float(np.log(run.betas).sum()) + math.log(run.residual_norm / overlap)
    # The d = θ_1 - λmin with Σ log(θ_i - θ_1 + d) = target, by bisection on log d.
    high = target / run.steps  # d if all θ were equal: it can only be smaller
    low = max(high - 100.0, -700.0)  # exp must not vanish
    for _ in range(80):
        middle = 0.5 * (low + high)
        too_small = float(np.log(theta - theta[0] + math.exp(middle)).sum()) < target
        low, high = (middle, high) if too_small else (low, middle)
    return float(theta[0]) - math.exp(high)
