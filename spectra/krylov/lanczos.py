"""Lanczos tridiagonalisation, reorthogonalised in full.

From a unit vector q_1, after m products with A:

    A Q - Q T = r e_mᵀ,   Qᵀ Q = I,   Qᵀ r = 0,   T = tridiag(β, α, β) = Qᵀ A Q,

with Q (n, m) the orthonormal basis of the Krylov space span{q_1, A q_1, ..., A^(m-1) q_1}.
For T s = θ s, the vector y = Q s has yᵀ A y = θ and ‖A y - θ y‖ = ‖r‖ |s_m|: some eigenvalue of
A lies that near to θ. The s_1² are the weights of the quadrature q_1ᵀ f(A) q_1 ≈ Σ s_1² f(θ).

References:
    Parlett, The Symmetric Eigenvalue Problem, 1998, chapter 13
    (https://doi.org/10.1137/1.9781611971163);
    Giraud, Langou, Rozložník, van den Eshof, Rounding error analysis of the classical
    Gram-Schmidt orthogonalization process, 2005 (https://doi.org/10.1007/s00211-005-0615-4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from spectra.errors import SpectraError
from spectra.krylov.basis import Basis, Place
from spectra.krylov.operator import SymmetricOperator, not_finite

CHECKED = 5  # steps between two looks at the residuals, at least; each costs the solution of T


@dataclass(frozen=True)
class Ritz:
    """Hold the eigenvalues of T and the ends of its unit eigenvectors s."""

    values: Float64[np.ndarray, " m"]  # θ, ascending
    first: Float64[np.ndarray, " m"]  # s_1 of each
    last: Float64[np.ndarray, " m"]  # s_m of each


@dataclass(frozen=True)
class Tridiagonal:
    """Hold the outcome of a Lanczos run, A Q - Q T = r e_mᵀ."""

    alphas: Float64[np.ndarray, " m"]  # diagonal of T
    betas: Float64[np.ndarray, " m-1"]  # its off-diagonal, positive
    residual_norm: float  # ‖r‖
    basis: Float[Tensor, "m n"] | None  # Qᵀ, orthonormal rows
    exhausted: bool  # no further direction: m = n, or r is zero to rounding
    dim: int  # n
    asymmetry: float = 0.0  # largest |q_iᵀ A q_j| that T holds for zero; rounding if A is fixed
    orthogonal: bool = True  # False: no basis was kept, and T may hold converged values repeatedly

    @property
    def steps(self) -> int:
        """Tell m, the number of products made."""
        return len(self.alphas)

    def after(self, steps: int) -> Tridiagonal:
        """Go back to what the run had found after fewer steps: the leading block of T.

        Args:
            steps: k, 1 or more; the whole run where it had fewer.

        Returns:
            The run as it would have ended after k steps; `asymmetry` stays that of the whole.

        Raises:
            SpectraError: for less than one step.
        """
        if steps < 1:
            raise SpectraError(f"got {steps} steps, expected 1 or more: T has no end before that")
        if steps >= self.steps:
            return self
        return replace(
            self,
            alphas=self.alphas[:steps],
            betas=self.betas[: steps - 1],
            residual_norm=float(self.betas[steps - 1]),
            basis=None if self.basis is None else self.basis[:steps],
            exhausted=False,
        )

    def ritz(self) -> Ritz:
        """Solve T; the Ritz value i has the residual `residual_norm * abs(last[i])`."""
        values, vectors = self._solve()
        return Ritz(values, vectors[0].copy(), vectors[-1].copy())

    def end_residuals(self) -> tuple[float, float]:
        """Tell how near to the smallest and to the largest Ritz value some eigenvalue must lie."""
        ritz = self.ritz()
        residuals = self.residual_norm * np.abs(ritz.last)
        if self.orthogonal:
            return float(residuals[0]), float(residuals[-1])
        # While a copy is born its residual is large, and the value that it copies lies beside it.
        near = (np.abs(ritz.values - ritz.values[end]) + residuals for end in (0, -1))
        low, high = (float(distances.min()) for distances in near)
        return low, high

    def ends_within(self, tolerance: float) -> bool:
        """Tell whether both ends' residuals are within the tolerance times the larger modulus."""
        values = self.ritz().values
        largest = float(max(abs(values[0]), abs(values[-1])))
        return max(self.end_residuals()) <= tolerance * largest

    def eigenvectors(self) -> Float64[np.ndarray, "m m"]:
        """Give the unit eigenvectors of T as columns, in the order of the Ritz values."""
        return self._solve()[1]

    def vector(self, index: int) -> Float[Tensor, " n"]:
        """Form a unit Ritz vector y = Q s, in the dtype and on the device of the basis.

        Args:
            index: which Ritz value, ascending; negative ones count from the largest.

        Raises:
            SpectraError: if the basis has been dropped.
        """
        if self.basis is None:
            raise SpectraError(
                "got a Lanczos run without its basis, expected one with it: Ritz vectors lie in "
                "the basis; ask for them before without_basis(), or run it again (ritz_vectors)"
            )
        y: Tensor = torch.as_tensor(self.eigenvectors()[:, index]).to(self.basis) @ self.basis
        return y.div_(torch.linalg.vector_norm(y, dtype=torch.float64))

    def without_basis(self) -> Tridiagonal:
        """Let the (m, n) basis go and keep T."""
        return replace(self, basis=None)

    def _solve(self) -> tuple[np.ndarray, np.ndarray]:
        # By QL: LAPACK's default driver is faster, but less orthogonal where T nearly splits.
        values, vectors = eigh_tridiagonal(self.alphas, self.betas, lapack_driver="stev")
        return values, vectors


def lanczos(
    A: SymmetricOperator,
    start: Float[Tensor, " n"],
    *,
    steps: int,
    until_converged: float | None = None,
    basis: Place = "device",
    wait: int | None = None,
    callback: Callable[[int], None] | None = None,
) -> Tridiagonal:
    """Run Lanczos from a start vector, with exactly one product per step.

    Gram-Schmidt is run twice over the whole basis; α, β and T are float64 whatever the dtype of A;
    the basis has that dtype, but at least float32. The run ends early where β is rounding beside
    T: the Krylov space is exhausted. What is found only after the next steps have been made (a
    GPU is not awaited in every step) cuts T and the basis back to where they had to end.

    Without a basis Gram-Schmidt sees the last two vectors alone. Orthogonality is then lost as
    soon as a Ritz value has converged, and T finds its eigenvalue again, as a *ghost*: no value
    is false, and the weights s_1² of the copies add up to that of the one, but values cannot be
    counted, and n steps do not exhaust the space.

    Args:
        A: the operator, of size n.
        start: (n,), any norm but zero.
        steps: m; min(m, n) are made at most.
        until_converged: stop as soon as the residuals |β_m s_m| of both outermost Ritz values are
            within so many times the larger modulus; asked every few steps, at no product. A small
            residual says nothing of an eigenvalue farther out that has not shown itself yet.
        basis: where the m · n numbers of the basis are kept: on the "device" of the operator, on
            the "host" (the same T to rounding), or nowhere ("none"; `ritz_vectors` runs it again).
        wait: steps between two looks at T, for each of which the device is awaited; no number
            depends on it but where `until_converged` ends a run. By default 1 on a CPU and 10
            elsewhere.
        callback: called with 1, 2, ..., m after each product.

    Returns:
        T, the basis, ‖r‖, and how far A was from one fixed symmetric matrix along the way.

    Raises:
        SpectraError: if steps < 1, the tolerance is no share, the start is zero or not finite, a
            product is not finite, or the basis does not fit the memory.
    """
    if steps < 1:
        raise SpectraError(f"got steps={steps}, expected 1 or more: T would be empty; raise steps")
    if until_converged is not None and not 0 < until_converged < 1:
        raise SpectraError(
            f"got until_converged={until_converged}, expected a share of the larger modulus, "
            "between 0 and 1: the run would stop at once or never; 1e-3 is what `converged` means"
        )
    steps, orthogonal = min(steps, A.dim), basis != "none"
    wait = wait or (1 if A.device.type == "cpu" else 10)
    kept = room_for(A, steps, basis)
    tiny = 16 * torch.finfo(kept.rows.dtype).eps
    alphas: list[float] = []
    betas: list[float] = []
    size = asymmetry = 0.0
    exhausted, due = False, CHECKED
    unread: list[Tensor] = []
    with kept.page_locked():
        for _, facts in recurrence(A, start, kept, steps, callback):
            unread.append(facts)
            if len(unread) < wait and len(alphas) + len(unread) < steps:
                continue
            for alpha, beta, stray in _read(unread):
                alphas.append(alpha)
                betas.append(beta)
                if not (np.isfinite(alpha) and np.isfinite(beta)):
                    raise not_finite(f"the product of Krylov step {len(alphas)} of {steps}")
                size, asymmetry = max(size, abs(alpha), beta), max(asymmetry, stray)
                exhausted = beta <= tiny * size or (orthogonal and len(alphas) == A.dim)
                if exhausted:
                    break
            if exhausted:
                break
            unread = []
            if until_converged is not None and len(alphas) >= due:
                T = np.array(alphas), np.array(betas[:-1])
                so_far = Tridiagonal(*T, betas[-1], None, exhausted, A.dim, asymmetry, orthogonal)
                if so_far.ends_within(until_converged):
                    break
                due = len(alphas) + max(CHECKED, len(alphas) // 20)
    T = np.array(alphas), np.array(betas[:-1])
    rows = kept.first(len(alphas))
    return Tridiagonal(*T, betas[-1], rows, exhausted, A.dim, asymmetry, orthogonal)


def room_for(A: SymmetricOperator, steps: int, place: Place) -> Basis:
    """Make room for a basis in the precision of the operator, but at least float32."""
    dtype = torch.promote_types(A.dtype, torch.float32)
    return Basis.empty(place, steps=steps, dim=A.dim, dtype=dtype, device=A.device)


def recurrence(
    A: SymmetricOperator,
    start: Float[Tensor, " n"],
    kept: Basis,
    steps: int,
    callback: Callable[[int], None] | None = None,
) -> Iterator[tuple[Float[Tensor, " n"], Float64[Tensor, " 3"]]]:
    """Make steps of Lanczos; of each yield the row q_j, and α_j, β_j and the stray part.

    Nothing here waits for the device. After a breakdown it goes on in some direction.
    """
    A.expect(start, "a start vector")
    row = kept.add(_unit(start.detach().to(A.device, torch.float64)))
    before, beta = row, torch.zeros((), dtype=torch.float64, device=A.device)
    for j in range(steps):
        q, w = row.to(torch.float64), A.apply(row).to(torch.float64, copy=True)
        if callback is not None:
            callback(j + 1)
        alpha = torch.dot(q, w)
        w.addcmul_(q, alpha, value=-1)
        if j > 0:
            w.addcmul_(before, beta, value=-1)
        leak = kept.remove_from(w)  # zero but for rounding, if A is one symmetric matrix
        kept.remove_from(w)
        beta = torch.linalg.vector_norm(w)
        yield row, torch.stack((alpha, beta, leak.abs().max()))
        if j + 1 < steps:  # β = 0: no direction is left, and 0/0 would be no vector
            before, row = row, kept.add(w.div_(torch.where(beta == 0, 1.0, beta)))


def _read(facts: list[Tensor]) -> list[list[float]]:
    """Fetch what the steps since the last look have found: the one wait for the device."""
    rows: list[list[float]] = torch.stack(facts).tolist()
    return rows


def _unit(start: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    largest = float(start.abs().max())
    if not 0 < largest < float("inf"):  # NaN fails this, too
        raise SpectraError(
            f"got a start vector whose largest entry is {largest}, expected a finite one that is "
            "not zero: it spans no Krylov space; draw it with random_start"
        )
    start = start / largest  # no square of an entry can overflow or vanish
    return start.div_(torch.linalg.vector_norm(start))
