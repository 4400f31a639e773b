"""A symmetric matrix that is known only by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from spectra.errors import SpectraError

CPU = torch.device("cpu")
DENSE_LIMIT = 5000  # a 5000 x 5000 float64 matrix takes 0.2 GB and 5000 products


@dataclass(frozen=True)
class SymmetricOperator:
    """Hold a fixed symmetric n x n matrix A as the function v -> A v.

    Args:
        matvec: maps a flat vector (n,) to A v, of the same shape, dtype and device; it is trusted
            to be linear, symmetric and the same in every call (the doctor examines that).
        dim: n.
        dtype: of the vectors that `matvec` takes and gives.
        device: where they live.
    """

    matvec: Callable[[Tensor], Tensor]
    dim: int
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "n n"]) -> SymmetricOperator:
        """Wrap a dense symmetric matrix, in its own dtype and on its own device.

        Args:
            matrix: (n, n), symmetric up to the square root of its dtype's rounding.

        Raises:
            SpectraError: if the matrix is not symmetric.
        """
        skew, size = (float(part.abs().max()) for part in (matrix - matrix.T, matrix))
        if skew > size * torch.finfo(matrix.dtype).eps ** 0.5:
            raise SpectraError(
                f"got a matrix that differs from its transpose by {skew:.3g} (largest entry "
                f"{size:.3g}), expected a symmetric one: its Lanczos values would be no "
                "eigenvalues; symmetrise it first, (M + M.T) / 2"
            )
        return cls(lambda v: matrix @ v, matrix.shape[0], matrix.dtype, matrix.device)

    def apply(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Multiply one vector, without looking whether the product is finite (no device sync).

        Args:
            vector: (n,) of any floating dtype; it is cast to the operator's.

        Returns:
            A v, (n,), cut off from autograd. It may be memory that `matvec` owns: do not write it.

        Raises:
            SpectraError: if the vector or the product has another shape than (n,).
        """
        self._expect(vector.shape, "a vector")
        product = self.matvec(vector.detach().to(self.device, self.dtype)).detach()
        self._expect(product.shape, "a product")
        return product

    def __matmul__(self, other: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Multiply a vector (n,), or a matrix (n, k) column by column, and refuse NaN and Inf.

        Raises:
            SpectraError: on a wrong shape, or if the product is not finite.
        """
        if other.ndim == 1:
            product = self.apply(other)
        else:
            product = torch.empty(other.shape, dtype=self.dtype, device=self.device)
            for j in range(other.shape[1]):
                product[:, j] = self.apply(other[:, j])
        if not bool(torch.isfinite(product).all()):
            raise not_finite("a product A @ v")
        return product

    def dense(self, *, force: bool = False) -> Float64[Tensor, "n n"]:
        """Write A out, one product per column, just as the products give it (not symmetrised).

        Args:
            force: also beyond 5000 rows.

        Returns:
            A, (n, n), float64, on the CPU.

        Raises:
            SpectraError: if A is large and `force` is not set.
        """
        if self.dim > DENSE_LIMIT and not force:
            raise SpectraError(
                f"got an operator of size {self.dim}, expected at most {DENSE_LIMIT} for a dense "
                f"matrix: it would take {self.dim} products and {8e-9 * self.dim**2:.1f} GB; "
                "use lanczos, or force=True"
            )
        matrix = torch.empty((self.dim, self.dim), dtype=torch.float64)
        unit = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
        for j in range(self.dim):
            unit[j] = 1
            matrix[:, j] = self @ unit
            unit[j] = 0
        return matrix

    def to_scipy(self) -> LinearOperator:
        """Show A to SciPy as a float64 LinearOperator (for `eigsh` and its relatives)."""

        def multiply(array: np.ndarray) -> np.ndarray:
            product = self @ torch.as_tensor(np.ascontiguousarray(array).reshape(-1))
            return product.to("cpu", torch.float64).numpy()

        return LinearOperator(  # symmetric: A and its adjoint are one function
            (self.dim, self.dim), matvec=multiply, rmatvec=multiply, dtype=np.dtype(np.float64)
        )

    def _expect(self, shape: torch.Size, what: str) -> None:
        if tuple(shape) != (self.dim,):
            raise SpectraError(
                f"got {what} of shape {tuple(shape)}, expected ({self.dim},): broadcasting it "
                "would give another operator; flatten the parameters into one vector"
            )


def not_finite(what: str) -> SpectraError:
    """Name the product that holds NaN or Inf."""
    return SpectraError(
        f"got NaN or Inf in {what}, expected finite numbers: every eigenvalue after it would be "
        "meaningless; look for NaN in weights or inputs and for overflow (try float64)"
    )
