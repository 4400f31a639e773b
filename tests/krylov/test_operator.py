"""Claims about SymmetricOperator."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from spectra.errors import SpectraError
from spectra.krylov import SymmetricOperator


def test_products_with_vectors_and_matrices_are_those_of_the_matrix(matrix_with):
    matrix = matrix_with([-2.0, 0.5, 1.0, 7.0])
    A = SymmetricOperator.from_matrix(matrix)
    block = torch.arange(12.0, dtype=torch.float64, device=matrix.device).reshape(4, 3)
    torch.testing.assert_close(A @ block, matrix @ block)
    torch.testing.assert_close(A @ block[:, 1], matrix @ block[:, 1])
    torch.testing.assert_close(A.dense(), matrix.cpu())


def test_arrays_are_multiplied_too_and_an_operator_tells_its_size(matrix_with):
    matrix = matrix_with([-2.0, 0.5, 1.0, 7.0])
    A = SymmetricOperator.from_matrix(matrix)
    block = np.arange(12.0).reshape(4, 3)
    fixed = block.copy()
    fixed.flags.writeable = False
    for array in (block, block[:, 1], block[:, ::-1], fixed):
        torch.testing.assert_close(A @ array, matrix @ torch.as_tensor(array.copy()).to(matrix))
    assert A.shape == (4, 4)
    assert repr(A).startswith("SymmetricOperator(dim=4, dtype=torch.float64, device=")


def test_a_vector_of_another_dtype_is_cast_to_that_of_the_operator(matrix_with):
    A = SymmetricOperator.from_matrix(matrix_with([1.0, 2.0], torch.float32))
    assert (A @ torch.ones(2, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3,), (5,), (1, 4)])
def test_vectors_of_a_wrong_shape_are_refused(matrix_with, shape):
    A = SymmetricOperator.from_matrix(matrix_with([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(SpectraError, match="expected"):
        A @ torch.ones(shape, dtype=torch.float64)


def test_a_product_of_a_wrong_shape_is_refused():
    A = SymmetricOperator(lambda v: v[:1], dim=3)
    with pytest.raises(SpectraError, match=r"a product of shape \(1,\), expected \(3,\)"):
        A @ torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_product_that_is_not_finite_is_refused(bad):
    """P40"""
    A = SymmetricOperator(lambda v: v * bad, dim=3)
    with pytest.raises(SpectraError, match="NaN or Inf in a product"):
        A @ torch.ones(3, dtype=torch.float64)


def test_an_asymmetric_matrix_is_refused():
    with pytest.raises(SpectraError, match="differs from its transpose by 1"):
        SymmetricOperator.from_matrix(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))


def test_a_dense_form_of_a_large_operator_is_refused_before_its_products():
    A = SymmetricOperator(lambda v: v, dim=10_000)
    with pytest.raises(SpectraError, match="force=True"):
        A.dense()


def test_products_are_cut_off_from_autograd():
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    A = SymmetricOperator(lambda v: v * weight, dim=3)
    assert not (A @ torch.ones(3, dtype=torch.float64)).requires_grad


def test_scipy_finds_the_same_ends_of_the_spectrum(matrix_with):
    spectrum = np.concatenate(([-3.0], np.linspace(0, 1, 60), [5.0]))
    A = SymmetricOperator.from_matrix(matrix_with(spectrum))
    found = eigsh(A.to_scipy(), k=2, which="BE", return_eigenvectors=False, v0=np.ones(62))
    np.testing.assert_allclose(np.sort(found), [-3.0, 5.0], rtol=1e-10)
