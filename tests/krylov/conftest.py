"""Matrices with a prescribed spectrum: the ground truth of this room."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from spectra.krylov import SymmetricOperator

MakeMatrix = Callable[..., Tensor]


class Counted:
    """A product with a matrix that counts how often it is asked for."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.calls = matrix, 0

    def __call__(self, v: Tensor) -> Tensor:
        self.calls += 1
        return self.matrix @ v

    def operator(self) -> SymmetricOperator:
        return SymmetricOperator(self, len(self.matrix), self.matrix.dtype, self.matrix.device)


@pytest.fixture(scope="session")
def counted() -> type[Counted]:
    return Counted


@pytest.fixture(scope="session")
def matrix_with(device: torch.device) -> MakeMatrix:
    """Make a dense symmetric matrix with given eigenvalues and random eigenvectors."""

    def make(values: Sequence[float], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        spectrum = torch.as_tensor(values, dtype=torch.float64)
        n, generator = len(spectrum), torch.Generator().manual_seed(seed)
        q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
        matrix = (q * spectrum) @ q.T
        return ((matrix + matrix.T) / 2).to(device, dtype)

    return make
