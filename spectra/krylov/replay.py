"""Ritz vectors of a Lanczos run that kept no basis, from the same recurrence once more.

    y = Q s = s_1 q_1 + ... + s_j q_j,   T_j s = θ s

The rows q_i come again, one by one, from the same start: as many products a second time. They stop
at the j at which |β_j s_j| has come down to rounding, for T_j has no ghosts yet: later, s would be
any mixture of the copies of θ, and Q s as short as their difference.

References:
    Cullum, Willoughby, Lanczos Algorithms for Large Symmetric Eigenvalue Computations, 1985,
    chapter 4 (https://doi.org/10.1137/1.9780898719192)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from spectra.krylov.lanczos import Tridiagonal, recurrence, room_for
from spectra.krylov.operator import SymmetricOperator


def ritz_vectors(
    A: SymmetricOperator,
    start: Float[Tensor, " n"],
    run: Tridiagonal,
    *,
    ends: Sequence[Literal[0, -1]] = (0, -1),
    callback: Callable[[int], None] | None = None,
) -> tuple[Float[Tensor, " n"], ...]:
    """Form unit Ritz vectors of the outermost values of a run, with at most as many products again.

    Args:
        A: the operator of the run. It has to be a fixed matrix: another one gives other rows, and
            vectors that mean nothing (their residuals, which cost one product each, tell).
        start: (n,) of the run.
        run: without basis, from `lanczos(..., basis="none")`.
        ends: 0 for the smallest Ritz value, -1 for the largest.
        callback: called with 1, 2, ... after each product.

    Returns:
        A vector (n,) for each end, in the precision of the run's basis, on the device of A.
    """
    kept = room_for(A, run.steps, "none")
    parts = [_components(run, end, torch.finfo(kept.rows.dtype).eps) for end in ends]
    sums = [torch.zeros(A.dim, dtype=torch.float64, device=A.device) for _ in ends]
    steps = max(map(len, parts), default=0)
    for j, (row, _) in enumerate(recurrence(A, start, kept, steps, callback)):
        for y, s in zip(sums, parts, strict=True):
            if j < len(s):
                y.add_(row, alpha=float(s[j]))
    return tuple(y.div_(torch.linalg.vector_norm(y)).to(kept.rows.dtype) for y in sums)


def _components(run: Tridiagonal, end: int, eps: float) -> Float64[np.ndarray, " j"]:
    """Find the eigenvector s of T_j for the j at which the outermost value has first converged."""
    couplings = np.append(run.betas, run.residual_norm)
    size = max(np.abs(run.alphas).max(), couplings.max()) or 1.0  # a zero matrix has no size
    enough = eps**0.75  # of a residual, as a share of the size of T
    best, at, found = math.inf, 0, np.ones(1, dtype=np.float64)
    for j in range(1, run.steps + 1):
        which = 0 if end == 0 else j - 1
        _, vector = eigh_tridiagonal(
            run.alphas[:j], run.betas[: j - 1], select="i", select_range=(which, which)
        )
        residual = float(couplings[j - 1] * abs(vector[-1, 0])) / size
        if residual < best or best > enough:
            best, at, found = residual, j, np.asarray(vector[:, 0], dtype=np.float64)
        if best <= 4 * eps or (best <= enough and j == at + 5):  # it falls no more; no copy yet
            break
    return found
