"""A symmetric matrix that is known only by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spectra.errors import SpectraError

if TYPE_CHECKING:
    import scipy.sparse.linalg

CPU = torch.device("cpu")
DENSE_LIMIT = 5000  # a 5000 x 5000 float64 matrix takes 0.2 GB and 5000 products


@dataclass(frozen=True, repr=False)
class SymmetricOperator:
    """Hold a fixed symmetric n x n matrix A as the function v -> A v."""

    matvec: Callable[[Tensor], Tensor]  # (n,) -> (n,), trusted to be linear, symmetric and fixed
    dim: int  # n
    dtype: torch.dtype = torch.float64  # of the vectors that matvec takes and gives
    device: torch.device = CPU  # where they live

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "n n"]) -> SymmetricOperator:
        """Wrap a dense matrix in its own dtype, on its own device.

        Raises:
            SpectraError: if it is not symmetric to the square root of its dtype's rounding.
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
        """Multiply a vector without asking whether the product is finite (no device sync).

        Args:
            vector: (n,) of any floating dtype; it is cast to the operator's.

        Returns:
            A v, (n,), cut off from autograd. It may be memory that `matvec` owns: do not write it.

        Raises:
            SpectraError: if the vector or the product has another shape than (n,).
        """
        vector = _tensor(vector)
        self.expect(vector, "a vector")
        product = self.matvec(vector.detach().to(self.device, self.dtype)).detach()
        self.expect(product, "a product")
        return product

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(dim={self.dim}, dtype={self.dtype}, device={str(self.device)!r})"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of A."""
        return self.dim, self.dim

    def __matmul__(self, other: Float[Tensor | np.ndarray, "n ..."]) -> Float[Tensor, "n ..."]:
        """Multiply a vector (n,), or a matrix (n, k) column by column; the product is a tensor.

        Raises:
            SpectraError: on a wrong shape, or if a product holds NaN or Inf.
        """
        other = _tensor(other)
        if other.ndim == 2:
            return torch.stack([self @ column for column in other.T], dim=1)
        product = self.apply(other)
        if not bool(torch.isfinite(product).all()):
            raise not_finite("a product A @ v")
        return product

    def dense(self, *, force: bool = False) -> Float64[Tensor, "n n"]:
        """Write A out on the CPU in float64, a product a column, as they come (not symmetrised).

        Raises:
            SpectraError: if n > 5000 and `force` is not set.
        """
        if self.dim > DENSE_LIMIT and not force:
            raise SpectraError(
                f"got an operator of size {self.dim}, expected at most {DENSE_LIMIT} for a dense "
                f"matrix: it would take {self.dim} products and {8e-9 * self.dim**2:.1f} GB; "
                "use lanczos, or force=True"
            )
        matrix = torch.eye(self.dim, dtype=torch.float64)
        for j in range(self.dim):
            matrix[:, j] = self @ matrix[:, j]
        return matrix

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """Show A to SciPy as a float64 LinearOperator (for `eigsh` and its relatives)."""
        from scipy.sparse.linalg import LinearOperator  # takes half a second

        def multiply(array: np.ndarray) -> np.ndarray:
            product = self @ torch.from_numpy(np.array(array, dtype=np.float64).reshape(-1))
            return product.to("cpu", torch.float64).numpy()

        return LinearOperator((self.dim, self.dim), matvec=multiply, rmatvec=multiply, dtype=float)

    def expect(self, vector: Tensor, what: str) -> None:
        """Refuse what has another shape than (n,)."""
        if tuple(vector.shape) != (self.dim,):
            raise SpectraError(
                f"got {what} of shape {tuple(vector.shape)}, expected ({self.dim},): broadcasting "
                "it would give another operator; flatten the parameters into one vector"
            )


def _tensor(given: Tensor | np.ndarray) -> Tensor:
    # torch takes neither negative strides nor, quietly, what is read-only: a copy has neither.
    return torch.from_numpy(np.array(given)) if isinstance(given, np.ndarray) else given


def not_finite(what: str) -> SpectraError:
    """Name the product that holds NaN or Inf."""
    return SpectraError(
        f"got NaN or Inf in {what}, expected finite numbers: every eigenvalue after it would be "
        "meaningless; look for NaN in weights or inputs and for overflow (try float64)"
    )
