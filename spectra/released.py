"""The recurrence of the paper's released analysis, rewritten with its flaws, for reproduction only.

It differs from `krylov.lanczos` in four ways, each of which matters when the operator moves:

    vectors are divided by their norm + 1e-6, so they are not unit vectors;
    β_j is the norm of w *before* it is orthogonalised, so T does not belong to the basis;
    w is orthogonalised once, vector by vector;
    only β = 0 to the last bit counts as breakdown.

With the augmentation re-drawn in every product its Ritz values are not those of any matrix; on a
fixed operator they agree with the exact recurrence where β ≫ 1e-6, until the Krylov space is
exhausted.

References:
    Rangwani et al., Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data,
    https://arxiv.org/abs/2212.13827 (the protocol); Yao et al., PyHessian,
    https://arxiv.org/abs/1912.07145 (the recurrence that it uses)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from spectra.krylov import SymmetricOperator, Tridiagonal, random_start

_GUARD = 1e-6  # added to every norm that is divided by


def released_lanczos(
    A: SymmetricOperator,
    *,
    steps: int = 100,
    seed: int = 0,
    probe: int = 0,
    callback: Callable[[int], None] | None = None,
) -> Tridiagonal:
    """Run the released recurrence from one Rademacher probe.

    Args:
        A: what is multiplied with; it need not be a fixed matrix.
        steps: Krylov steps m, at most n.
        seed: of the probe.
        probe: its number; the released analysis makes one.
        callback: called with 1, 2, ..., m after each product.

    Returns:
        T and the vectors, of which neither is orthonormal or belongs to the other: the residual
        that follows from them is meaningless and has to be recomputed.
    """
    start = random_start(
        A.dim, seed=seed, probe=probe, distribution="rademacher", dtype=A.dtype, device=A.device
    )
    steps = min(steps, A.dim)
    basis = torch.zeros((steps, A.dim), dtype=A.dtype, device=A.device)
    basis[0] = _shrunk(start * A.dim**0.5)  # entries ±1, as drawn there
    alphas: list[float] = []
    betas: list[float] = []
    w = torch.zeros_like(basis[0])
    for j in range(steps):
        beta = float(w.norm())
        if j > 0:
            if beta == 0.0:
                break
            betas.append(beta)
            for q in basis[:j]:
                w = w - torch.dot(w, q) * q
            basis[j] = _shrunk(w)
        w = A @ basis[j]
        if callback is not None:
            callback(j + 1)
        alpha = torch.dot(w, basis[j])
        alphas.append(float(alpha))
        w = w - alpha * basis[j]
        if j > 0:
            w = w - beta * basis[j - 1]
    m = len(alphas)
    return Tridiagonal(
        alphas=np.array(alphas),
        betas=np.array(betas[: m - 1]),
        residual_norm=float(w.norm()),
        basis=basis[:m],
        exhausted=m == A.dim,
        dim=A.dim,
    )


def _shrunk(vector: Tensor) -> Tensor:
    shrunk: Tensor = vector / (vector.norm() + _GUARD)
    return shrunk
