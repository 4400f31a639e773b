"""Claims about the Lanczos run: identities, exactness, breakdown, scale, cost."""

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.errors import SpectraError
from spectra.krylov import SymmetricOperator, Tridiagonal, lanczos, random_start

properties = settings(max_examples=15, deadline=None, derandomize=True, database=None)

RANDOM_SPECTRUM = np.concatenate(([-4.0, -1.0], np.linspace(0, 1, 95), [3.0, 8.0, 20.0]))


def run_on(matrix, steps, *, probe=0, **options):
    A = SymmetricOperator.from_matrix(matrix)
    start = random_start(A.dim, seed=0, probe=probe, dtype=A.dtype, device=A.device)
    return lanczos(A, start, steps=steps, **options)


def assert_same_run(one: Tridiagonal, other: Tridiagonal) -> None:
    np.testing.assert_array_equal(one.alphas, other.alphas)
    np.testing.assert_array_equal(one.betas, other.betas)
    assert torch.equal(one.basis, other.basis)
    for name in ("residual_norm", "exhausted", "asymmetry", "dim"):
        assert getattr(one, name) == getattr(other, name), name


def tridiagonal(run: Tridiagonal) -> torch.Tensor:
    return torch.from_numpy(np.diag(run.alphas) + np.diag(run.betas, 1) + np.diag(run.betas, -1))


def loss_of_orthogonality(run: Tridiagonal) -> float:
    q = run.basis.cpu().double()
    return float((q @ q.T - torch.eye(len(q), dtype=torch.float64)).abs().max())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("steps", [1, 2, 30, 80])
def test_a_q_minus_q_t_is_the_residual_in_the_last_column(matrix_with, dtype, rounding, steps):
    """P29"""
    matrix = matrix_with(RANDOM_SPECTRUM, dtype)
    run = run_on(matrix, steps)
    q = run.basis.cpu().double().T
    defect = matrix.cpu().double() @ q - q @ tridiagonal(run)
    assert float(defect[:, :-1].abs().max() if steps > 1 else 0) < 20 * rounding
    assert abs(float(defect[:, -1].norm()) - run.residual_norm) < 20 * rounding
    assert float((q.T @ defect[:, -1]).abs().max()) < 20 * rounding


@pytest.mark.parametrize("steps", [5, 50, 51, 100])
def test_the_basis_is_orthonormal_to_rounding(matrix_with, steps):
    """P22, P33"""
    run = run_on(matrix_with(RANDOM_SPECTRUM), steps)
    assert loss_of_orthogonality(run) < 1e-12 * steps
    vectors = torch.stack([run.vector(i) for i in range(run.steps)]).cpu()
    gram = vectors @ vectors.T - torch.eye(run.steps, dtype=torch.float64)
    assert float(gram.abs().max()) < 1e-12 * steps


def test_float32_vectors_of_half_a_million_entries_stay_orthogonal(device):
    """P22: naive float32 sums of that length would lose four digits"""
    n = 2**19 + 3
    diagonal = torch.linspace(-1, 1, n, dtype=torch.float32, device=device)
    A = SymmetricOperator(lambda v: diagonal * v, n, torch.float32, device)
    run = lanczos(A, random_start(n, seed=0, probe=0, dtype=A.dtype, device=device), steps=12)
    assert loss_of_orthogonality(run) < 2e-6


def test_outliers_are_found_once_each_in_float32(device):
    """P22"""
    n = 2000
    diagonal = torch.rand(n, generator=torch.Generator().manual_seed(0))
    diagonal[:4] = torch.tensor([100.0, 90.0, 50.0, -20.0])
    diagonal = diagonal.to(device)
    A = SymmetricOperator(lambda v: diagonal * v, n, torch.float32, device)
    start = random_start(n, seed=0, probe=0, dtype=A.dtype, device=device)
    values = lanczos(A, start, steps=128).ritz().values
    for outlier in (100.0, 90.0, 50.0, -20.0):
        assert np.sum(np.abs(values - outlier) < 0.01 * abs(outlier)) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", range(-12, 13, 3))
def test_scaling_the_operator_scales_nodes_and_leaves_weights_and_steps(matrix_with, dtype, power):
    """P18, P19"""
    matrix = matrix_with(RANDOM_SPECTRUM, dtype)
    plain, scaled = run_on(matrix, 40), run_on(matrix * 10.0**power, 40)
    assert plain.steps == scaled.steps == 40
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    size = 20.0 * 10.0**power
    a, b = plain.ritz(), scaled.ritz()
    np.testing.assert_allclose(b.values, a.values * 10.0**power, rtol=0, atol=tolerance * size)
    outer = np.r_[0:2, -3:0]  # converged: their weights belong to the matrix, not to rounding
    np.testing.assert_allclose(b.first[outer] ** 2, a.first[outer] ** 2, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", [-40, -20, 20, 40])
def test_scaling_by_a_power_of_two_changes_no_digit(matrix_with, dtype, power):
    """P18, P19"""
    matrix = matrix_with(RANDOM_SPECTRUM, dtype)
    plain, scaled = run_on(matrix, 40), run_on(matrix * 2.0**power, 40)
    np.testing.assert_array_equal(scaled.alphas, plain.alphas * 2.0**power)
    np.testing.assert_array_equal(scaled.betas, plain.betas * 2.0**power)
    assert torch.equal(scaled.basis, plain.basis)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exhaustion_is_judged_beside_the_size_of_t(matrix_with, dtype, scale):
    """P19"""
    run = run_on(scale * matrix_with([-1.0] * 10 + [0.0] * 10 + [2.0] * 10, dtype), 20)
    assert run.exhausted
    assert run.steps == 3


def test_more_steps_than_dimensions_stop_there_and_stay_inside_the_spectrum(matrix_with):
    """P20"""
    spectrum = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.456])
    run = run_on(matrix_with(spectrum), 100)
    assert run.steps == 6
    assert run.exhausted
    assert run.basis.untyped_storage().nbytes() == 6 * 6 * 8
    np.testing.assert_allclose(run.ritz().values, spectrum, atol=1e-15)
    single = run_on(matrix_with(spectrum, torch.float32), 100)
    np.testing.assert_allclose(single.ritz().values, spectrum, atol=3e-7)


SPECIAL = {
    "zero": [0.0] * 7,
    "identity": [1.0] * 7,
    "rank one": [0.0] * 6 + [3.0],
    "negative rank one": [-3.0] + [0.0] * 6,
    "two-valued": [-1.0] * 3 + [2.0] * 4,
    "clustered": [1.0, 1.0 + 1e-9, 2.0, 2.0 + 1e-9, 3.0],
    "indefinite": [-5.0, -1.0, 0.0, 2.0, 3.0],
    "one by one": [-2.5],
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_operators_are_solved_exactly(matrix_with, name):
    """P21"""
    spectrum = np.array(SPECIAL[name])
    run = run_on(matrix_with(spectrum), 50)
    distinct = np.unique(spectrum)
    assert run.exhausted
    values = run.ritz().values
    if name == "clustered":  # pairs closer than rounding can part: each node in a pair
        assert np.abs(values[:, None] - distinct).min(axis=1).max() < 1e-9
    else:
        np.testing.assert_allclose(values, distinct, atol=1e-14 * np.abs(spectrum).max())
        assert run.residual_norm <= 1e-14 * np.abs(spectrum).max()


def test_a_step_count_of_zero_is_refused(matrix_with):
    """P25"""
    with pytest.raises(SpectraError, match="steps=0, expected 1 or more"):
        run_on(matrix_with([1.0, 2.0]), 0)


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_indefinite_matrices_keep_every_negative_value_at_every_depth(matrix_with, steps):
    """P25"""
    spectrum = np.array([-4.0, -3.0, -0.5, 1.0, 2.0])
    matrix = matrix_with(spectrum)
    run = run_on(matrix, steps)
    ritz = run.ritz()
    assert run.steps == min(steps, 5)
    assert ritz.values[0] >= -4.0 - 1e-12
    assert ritz.values[-1] <= 2.0 + 1e-12
    start = run.basis[0]
    assert np.isclose(ritz.first**2 @ ritz.values, float(start @ matrix @ start), rtol=1e-12)
    if steps >= 5:
        np.testing.assert_allclose(ritz.values, spectrum, atol=1e-13)


def test_the_indefinite_two_by_two_matrix_is_not_turned_positive(matrix_with):
    """P25"""
    np.testing.assert_allclose(run_on(matrix_with([-2.0, 3.0]), 2).ritz().values, [-2.0, 3.0])


def test_ritz_values_interlace_across_every_step_count(matrix_with):
    """P27: 50 and 51 included"""
    matrix = matrix_with(RANDOM_SPECTRUM)
    longest = run_on(matrix, 60)
    before = None
    for steps in range(1, 61):
        run = run_on(matrix, steps)
        np.testing.assert_array_equal(run.alphas, longest.alphas[:steps])  # one algorithm
        np.testing.assert_array_equal(run.betas, longest.betas[: steps - 1])
        values = run.ritz().values
        if before is not None:
            assert np.all(values[:-1] <= before + 1e-12)
            assert np.all(before <= values[1:] + 1e-12)
        before = values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_operators_keep_t_in_float64_and_the_basis_in_float32(matrix_with, dtype):
    """P28"""
    matrix = matrix_with(RANDOM_SPECTRUM, dtype)
    run = run_on(matrix, 40)
    assert run.alphas.dtype == run.betas.dtype == np.float64
    assert run.basis.dtype == torch.float32
    assert loss_of_orthogonality(run) < 1e-5
    truth = torch.linalg.eigvalsh(matrix.double()).cpu().numpy()
    values = run.ritz().values[[0, -1]]
    np.testing.assert_allclose(values, truth[[0, -1]], rtol=4 * torch.finfo(dtype).eps)


def test_signs_are_right_where_the_smallest_has_the_largest_modulus(matrix_with):
    """P30, P32"""
    values = run_on(matrix_with([-9.0, -7.0, *np.linspace(-0.1, 0.1, 60), 4.0, 5.0]), 40)
    found = values.ritz().values
    np.testing.assert_allclose(found[:2], [-9.0, -7.0], rtol=1e-12)
    np.testing.assert_allclose(found[-2:], [4.0, 5.0], rtol=1e-12)


@pytest.mark.parametrize("steps", [3, 20, 100])
def test_every_ritz_value_is_the_rayleigh_quotient_of_its_vector(matrix_with, steps):
    """P31"""
    matrix = matrix_with(RANDOM_SPECTRUM)
    run = run_on(matrix, steps)
    ritz = run.ritz()
    for i in range(run.steps):
        y = run.vector(i)
        assert abs(float(y @ matrix @ y) - ritz.values[i]) < 1e-12 * 20
        residual = float((matrix @ y - ritz.values[i] * y).norm())
        assert abs(residual - run.residual_norm * abs(ritz.last[i])) < 1e-12 * 20


@pytest.mark.parametrize("wait", [1, 3, 10])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_product_that_is_not_finite_names_its_step(bad, wait):
    """P40: the first such step, however late it is found"""
    calls = []

    def matvec(v):
        calls.append(1)
        w = v * torch.linspace(1, 2, 20, dtype=v.dtype)
        w[7] = bad if len(calls) == 4 else w[7]
        return w

    A, start = SymmetricOperator(matvec, 20), torch.ones(20, dtype=torch.float64)
    with pytest.raises(SpectraError, match="Krylov step 4 of 10"):
        lanczos(A, start, steps=10, wait=wait)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [1, 9, 10, 11, 37])
def test_how_often_the_device_is_awaited_changes_no_digit(matrix_with, dtype, steps):
    matrix = matrix_with(RANDOM_SPECTRUM, dtype)
    each = run_on(matrix, steps, wait=1)
    assert each.steps == steps
    for wait in (2, 10, 1000):
        assert_same_run(run_on(matrix, steps, wait=wait), each)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*SPECIAL, "three-valued"])
def test_a_breakdown_found_late_leaves_what_a_stop_at_once_leaves(matrix_with, name, dtype, scale):
    """P19: the products made beyond it are thrown away, and with them what they say"""
    spectrum = SPECIAL.get(name, [-1.0] * 10 + [0.0] * 10 + [2.0] * 10)
    matrix = scale * matrix_with(spectrum, dtype)
    at_once = run_on(matrix, 25, wait=1)
    assert at_once.exhausted
    assert at_once.steps <= len(spectrum)
    for wait in (2, 10, 1000):
        assert_same_run(run_on(matrix, 25, wait=wait), at_once)


def test_the_device_is_awaited_once_every_so_many_steps(matrix_with, monkeypatch):
    """Nothing but the one look at T asks for a number: a GPU never idles between two steps."""
    module = importlib.import_module("spectra.krylov.lanczos")
    looks: list[int] = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda facts: looks.append(len(facts)) or read(facts))

    class Fetched(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += "_local_scalar_dense" in str(func) or "nonzero" in str(func)
            return func(*args, **(kwargs or {}))

    fetched = {}
    for steps, wait in [(1, 10), (37, 10), (40, 10), (37, 1)]:
        looks.clear()
        with Fetched() as mode:
            run_on(matrix_with(RANDOM_SPECTRUM), steps, wait=wait)
        assert len(looks) == math.ceil(steps / wait)
        assert sum(looks) == steps
        fetched[steps, wait] = mode.calls
    assert len(set(fetched.values())) == 1  # only what setting up costs: no step asks for one


def test_a_gpu_is_awaited_every_ten_steps_and_a_cpu_in_each(matrix_with, counted, device):
    """Seen by the products that a run makes beyond its breakdown."""
    product = counted(matrix_with([-1.0] * 10 + [0.0] * 10 + [2.0] * 10))
    start = random_start(30, seed=0, probe=0, device=device)
    assert lanczos(product.operator(), start, steps=25).steps == 3
    assert product.calls == (3 if device.type == "cpu" else 10)


@pytest.mark.parametrize(("steps", "products"), [(1, 1), (7, 7), (40, 30)])
def test_m_steps_cost_exactly_m_products(matrix_with, counted, steps, products):
    """P41"""
    product = counted(matrix_with(np.arange(30.0)))
    heard: list[int] = []
    run = lanczos(
        product.operator(),
        random_start(30, seed=0, probe=0, device=product.matrix.device),
        steps=steps,
        callback=heard.append,
    )
    run.ritz()
    assert product.calls == run.steps == products
    assert heard == list(range(1, products + 1))


def test_the_work_of_a_step_is_a_fixed_number_of_operations(matrix_with):
    """P41: nothing is done, and no device awaited, per basis vector"""

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    at_step: list[int] = []
    A = SymmetricOperator.from_matrix(matrix_with(RANDOM_SPECTRUM))
    start = random_start(A.dim, seed=0, probe=0, device=A.device)
    with Count() as count:
        lanczos(A, start, steps=30, wait=1, callback=lambda _: at_step.append(count.calls))
    assert len(set(np.diff(at_step[1:]))) == 1


def test_a_fixed_symmetric_operator_leaks_nothing_beyond_rounding(matrix_with):
    run = run_on(matrix_with(RANDOM_SPECTRUM), 60)
    assert run.asymmetry < 1e-12 * 20
    single = run_on(matrix_with(RANDOM_SPECTRUM, torch.float32), 60)
    assert single.asymmetry < 1e-5 * 20


def test_a_moving_or_asymmetric_operator_betrays_itself(matrix_with):
    """P1, P2: seen by the run itself, at no further product"""
    matrix = matrix_with(RANDOM_SPECTRUM).cpu()
    generator = torch.Generator().manual_seed(0)
    skew = torch.randn(100, 100, dtype=torch.float64, generator=generator) * 1e-3

    def moving(v):
        noise = torch.randn(100, dtype=torch.float64, generator=generator)
        return matrix @ v + 1e-2 * noise * v

    start = random_start(100, seed=0, probe=0)
    assert lanczos(SymmetricOperator(moving, 100), start, steps=30).asymmetry > 1e-4
    bent = SymmetricOperator(lambda v: (matrix + skew) @ v, 100)
    assert lanczos(bent, start, steps=30).asymmetry > 1e-4


def test_the_basis_is_orthonormal_even_where_the_operator_is_not_symmetric(device):
    """P33: where a product lies in the known space but for 1e-9, one Gram-Schmidt pass fails"""
    generator = torch.Generator().manual_seed(0)
    q, upper = torch.randn(2, 30, 30, dtype=torch.float64, generator=generator)
    q, _ = torch.linalg.qr(q)
    hessenberg = torch.triu(upper) + 1e-9 * torch.diag(torch.ones(29, dtype=torch.float64), -1)
    matrix = (q @ hessenberg @ q.T).to(device)
    A = SymmetricOperator(lambda v: matrix @ v, 30, torch.float64, device)
    run = lanczos(A, q[:, 0].to(device), steps=10)
    assert run.steps == 10
    assert loss_of_orthogonality(run) < 1e-12
    assert run.asymmetry > 0.1


@pytest.mark.parametrize("norm", [1e-300, 1e-12, 1.0, 1e12, 1e300])
def test_the_norm_of_the_start_does_not_matter(matrix_with, norm):
    A = SymmetricOperator.from_matrix(matrix_with(RANDOM_SPECTRUM))
    start = random_start(100, seed=0, probe=0, device=A.device)
    plain, scaled = lanczos(A, start, steps=10), lanczos(A, start * norm, steps=10)
    np.testing.assert_allclose(scaled.alphas, plain.alphas, rtol=1e-9)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_start_that_spans_nothing_is_refused(matrix_with, bad):
    A = SymmetricOperator.from_matrix(matrix_with([1.0, 2.0]))
    with pytest.raises(SpectraError, match="start vector"):
        lanczos(A, torch.full((2,), bad, dtype=torch.float64), steps=2)


def test_a_start_of_a_wrong_length_is_refused(matrix_with):
    A = SymmetricOperator.from_matrix(matrix_with([1.0, 2.0]))
    with pytest.raises(SpectraError, match=r"a start vector of shape \(3,\), expected \(2,\)"):
        lanczos(A, torch.ones(3, dtype=torch.float64), steps=2)


def test_neither_the_start_nor_what_the_product_returns_is_written_to(device):
    own = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, device=device)
    start = own.clone().requires_grad_()
    A = SymmetricOperator(lambda v: own, 3, torch.float64, device)  # always the same memory
    lanczos(A, start, steps=2)
    assert own.tolist() == start.tolist() == [1.0, 2.0, 3.0]
    same = SymmetricOperator(lambda v: v, 3, torch.float64, device)  # the basis row itself
    assert lanczos(same, own, steps=3).alphas == pytest.approx([1.0])


def test_ritz_vectors_need_the_basis(matrix_with):
    run = run_on(matrix_with([1.0, 2.0]), 2).without_basis()
    with pytest.raises(SpectraError, match="without its basis"):
        run.vector(0)


@properties
@given(shift=st.floats(-50, 50), scale=st.floats(0.01, 100), seed=st.integers(0, 2**64 - 1))
def test_shifting_and_scaling_the_operator_shifts_and_scales_t(matrix_with, shift, scale, seed):
    matrix = matrix_with(RANDOM_SPECTRUM)
    unit = torch.eye(100, dtype=torch.float64, device=matrix.device)
    start = random_start(100, seed=seed, probe=0, device=matrix.device)
    plain = lanczos(SymmetricOperator.from_matrix(matrix), start, steps=12)
    moved = lanczos(SymmetricOperator.from_matrix(scale * matrix + shift * unit), start, steps=12)
    size = 20 * scale + abs(shift)
    np.testing.assert_allclose(moved.alphas, scale * plain.alphas + shift, atol=1e-10 * size)
    np.testing.assert_allclose(moved.betas, scale * plain.betas, atol=1e-10 * size)


@properties
@given(
    spectrum=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12),
    steps=st.integers(1, 14),
)
def test_ritz_values_never_leave_the_spectrum(matrix_with, spectrum, steps):
    run = run_on(matrix_with(spectrum), steps)
    values, rounding = run.ritz().values, 1e-13 * max(map(abs, spectrum))
    assert min(spectrum) - rounding <= values[0]
    assert values[-1] <= max(spectrum) + rounding
    if run.exhausted:  # a Gaussian start reaches all of it
        assert np.isclose(values[0], min(spectrum), rtol=0, atol=1e4 * rounding)
        assert np.isclose(values[-1], max(spectrum), rtol=0, atol=1e4 * rounding)
