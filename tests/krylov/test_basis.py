"""Claims about where the basis lives: the numbers do not depend on it, and ghosts do no harm."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.errors import SpectraError
from spectra.krylov import (
    SpectralMeasure,
    SymmetricOperator,
    choose_place,
    extreme_eigenvalues,
    lanczos,
    posterior_lower_bound,
    random_start,
    ritz_vectors,
)

SPECTRUM = np.concatenate(([-20.0, -4.0], np.linspace(0, 1, 394), [3.0, 50.0, 90.0, 100.0]))
OUTLIERS = (-20.0, -4.0, 3.0, 50.0, 90.0, 100.0)
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5}
both = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def diagonal(values, dtype=torch.float64, device="cpu") -> SymmetricOperator:
    d = torch.as_tensor(np.asarray(values), dtype=dtype, device=device)
    return SymmetricOperator(lambda v: d * v, len(d), dtype, d.device)


def start_of(A: SymmetricOperator, seed: int = 0) -> torch.Tensor:
    return random_start(A.dim, seed=seed, probe=0, dtype=A.dtype, device=A.device)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move seven float32 rows of 400 entries at once, and three float64 ones."""
    module = importlib.import_module("spectra.krylov.basis")
    monkeypatch.setattr(module, "MOVED", 7 * 400 * 4)


@both
def test_a_basis_in_main_memory_gives_the_same_numbers_to_rounding(small_blocks, dtype, device):
    A = diagonal(SPECTRUM, dtype, device)
    beside, moved = (lanczos(A, start_of(A), steps=60, basis=place) for place in ("device", "host"))
    size = 100 * ROUNDING[dtype]
    assert moved.basis.device.type == "cpu"
    assert moved.basis.shape == beside.basis.shape
    for one, other in zip(
        lanczos(A, start_of(A), steps=12, basis="host").ritz().values,
        lanczos(A, start_of(A), steps=12).ritz().values,
        strict=True,
    ):
        assert one == pytest.approx(other, abs=size)
    outer = np.r_[0:2, -4:0]
    a, b = beside.ritz(), moved.ritz()
    np.testing.assert_allclose(a.values[outer], b.values[outer], rtol=0, atol=size)
    np.testing.assert_allclose(a.first[outer] ** 2, b.first[outer] ** 2, rtol=0, atol=size)
    q = moved.basis.double()
    assert float((q @ q.T - torch.eye(60, dtype=torch.float64)).abs().max()) < size
    t = np.diag(moved.alphas) + np.diag(moved.betas, 1) + np.diag(moved.betas, -1)
    defect = (torch.as_tensor(SPECTRUM) * q).T - q.T @ torch.from_numpy(t)
    assert float(defect[:, :-1].abs().max()) < 20 * size
    assert float(moved.vector(0) @ (A.apply(moved.vector(0)).cpu())) == pytest.approx(-20, abs=size)


def test_the_blocks_are_what_the_test_above_moves(small_blocks):
    """That it could fail: one block a pass would never exercise the order of the blocks."""
    module = importlib.import_module("spectra.krylov.basis")
    basis = module.Basis.empty(
        "host", steps=20, dim=400, dtype=torch.float32, device=torch.device("cpu")
    )
    for _ in range(16):
        basis.add(torch.ones(400, dtype=torch.float64))
    assert [len(rows) for rows in basis._blocks()] == [7, 7, 2]


def test_one_block_in_main_memory_changes_no_digit():
    A = diagonal(SPECTRUM)
    beside, moved = (lanczos(A, start_of(A), steps=40, basis=place) for place in ("device", "host"))
    np.testing.assert_array_equal(beside.alphas, moved.alphas)
    assert torch.equal(beside.basis, moved.basis)


# --- no basis at all ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("steps", [5, 20, 80, 300])
def test_the_weights_of_ghosts_add_up_to_that_of_their_eigenvalue(dtype, steps, device):
    """P22: copies there are, but a density, a moment and an end do not see them."""
    A = diagonal(SPECTRUM, dtype, device)
    start = start_of(A)
    run, whole = (lanczos(A, start, steps=steps, basis=place) for place in ("none", "device"))
    assert not run.orthogonal
    assert whole.orthogonal
    assert run.basis is None
    ritz = run.ritz()
    weight = (start.double() ** 2).cpu().numpy()
    weight /= weight.sum()
    size = 100 * ROUNDING[dtype]
    if steps >= 80:
        copies = [int((np.abs(ritz.values - x) < 0.01).sum()) for x in OUTLIERS]
        assert min(copies) >= 2  # orthogonality is lost: the claim is not empty
        for x in OUTLIERS:
            found = (ritz.first**2)[np.abs(ritz.values - x) < 0.5]
            truth = float(weight[x == SPECTRUM].sum())
            assert found.sum() == pytest.approx(truth, abs=ROUNDING[dtype])
        assert ritz.values[[0, -1]] == pytest.approx([-20, 100], abs=size)
    assert -20 - size <= ritz.values[0]
    assert ritz.values[-1] <= 100 + size
    measures = [SpectralMeasure.from_tridiagonals([r], A.dim) for r in (run, whole)]
    for k in range(1, 6):
        a, b = (measure.moment(k).value for measure in measures)
        assert a == pytest.approx(b, abs=ROUNDING[dtype] * 100.0**k)


@both
def test_a_density_without_a_basis_is_that_with_one(dtype, device):
    """Ghosts resolve the bulk later than new values would; the outliers' bumps are the same."""
    A = diagonal(SPECTRUM, dtype, device)
    start = start_of(A)
    without, whole = (
        SpectralMeasure.from_tridiagonals([lanczos(A, start, steps=m, basis=place)], A.dim)
        for m, place in ((120, "none"), (60, "device"))
    )
    grid = np.concatenate([np.linspace(0.9 * x, 1.1 * x, 101) for x in (-20.0, 3.0, 100.0)])
    a, b = (measure.density(np.sort(grid)).mean for measure in (without, whole))
    np.testing.assert_allclose(a, b, atol=1e-3 * b.max())
    # Two quadratures of one measure lie within each other's brackets.
    for x in (-10.0, -0.5, 1.5, 30.0, 95.0):
        (low, high), (least, most) = (m.mass_bounds(x) for m in (without, whole))
        assert max(low, least) <= min(high, most) + ROUNDING[dtype]


def test_n_steps_without_a_basis_exhaust_nothing():
    """Copies fill T: to call it exact would be wrong."""
    spectrum = np.concatenate((np.linspace(0, 1e-3, 35), np.logspace(0, 4, 5)))
    A = diagonal(spectrum)
    run = lanczos(A, start_of(A), steps=1000, basis="none")
    assert run.steps == 40
    assert not run.exhausted
    assert len(np.unique(np.round(run.ritz().values, 6))) < 40
    assert lanczos(A, start_of(A), steps=1000).exhausted


@pytest.mark.parametrize(
    "spectrum", [[0.0] * 7, [1.0] * 7, [-1.0] * 3 + [2.0] * 4, [-2.5]], ids=str
)
def test_special_operators_are_exhausted_without_a_basis_as_with_one(matrix_with, spectrum):
    """P21"""
    A = SymmetricOperator.from_matrix(matrix_with(spectrum))
    run = lanczos(A, start_of(A), steps=50, basis="none")
    assert run.exhausted
    np.testing.assert_allclose(run.ritz().values, np.unique(spectrum), atol=1e-14)


@both
@pytest.mark.parametrize("steps", [3, 8, 40, 200])
def test_a_second_pass_gives_the_ritz_vectors(dtype, steps, counted, device):
    product = counted(torch.diag(torch.as_tensor(SPECTRUM)).to(device, dtype))
    A = product.operator()
    start = start_of(A)
    run = lanczos(A, start, steps=steps, basis="none")
    product.calls, heard = 0, []
    vectors = ritz_vectors(A, start, run, callback=heard.append)
    assert product.calls == len(heard) <= min(steps, 40)  # no further than the ends needed
    whole = lanczos(A, start, steps=steps)
    size = 100 * ROUNDING[dtype]
    for y, end in zip(vectors, (0, -1), strict=True):
        assert y.dtype == dtype
        assert float(y.double().norm()) == pytest.approx(1, abs=ROUNDING[dtype])
        value = run.ritz().values[end]
        residual = float((A.apply(y).double() - value * y.double()).norm())
        truth = whole.residual_norm * abs(whole.ritz().last[end])
        assert residual <= truth + 2 * size + 100 * torch.finfo(dtype).eps ** 0.75
        if steps <= 8:  # before any copy: the same run
            assert residual == pytest.approx(truth, abs=size)
            assert abs(float(y.double() @ whole.vector(end).double())) == pytest.approx(1, abs=1e-4)
    (only,) = ritz_vectors(A, start, run, ends=[-1])
    assert torch.equal(only, vectors[1])


def test_the_extremes_without_a_basis_are_those_with_one(matrix_with):
    A = SymmetricOperator.from_matrix(matrix_with(SPECTRUM))
    ends = [extreme_eigenvalues(A, steps=150, basis=place) for place in ("none", "device", "host")]
    for found in ends:
        assert found.converged
        assert found.lambda_min == pytest.approx(-20, abs=1e-11)
        assert found.lambda_max == pytest.approx(100, abs=1e-11)
        for y, value in (
            (found.vector_min, found.lambda_min),
            (found.vector_max, found.lambda_max),
        ):
            y = y.to(A.device)  # it lies where the basis lay
            assert float((A @ y - value * y).norm()) < 1e-9
    short = extreme_eigenvalues(A, steps=4, basis="none")
    assert not short.converged


def test_the_posterior_bound_holds_among_ghosts():
    """P34: it stands on the three-term recurrence alone, which needs no orthogonality."""
    spectrum = np.array([-1.0, *np.linspace(0, 1, 195), 5.0, 8.0, 9.0, 20.0])
    A = diagonal(spectrum)
    ghosts = above = 0
    for seed in range(80):
        run = lanczos(A, start_of(A, seed), steps=60, basis="none")
        ghosts += int((np.abs(run.ritz().values - 20) < 1e-3).sum()) - 1
        above += posterior_lower_bound([run]) > -1 + 1e-12
    assert ghosts > 80
    assert above <= 0.05 * 80 + 3 * np.sqrt(0.05 * 0.95 * 80)


# --- where it fits --------------------------------------------------------------------------------


def test_a_basis_goes_to_main_memory_only_where_it_does_not_fit_beside_the_operator():
    gib = 2**30
    assert choose_place(10 * gib, on_device=80 * gib, on_host=None) == "device"
    assert choose_place(10 * gib, on_device=12 * gib, on_host=16 * gib) == "host"  # samples, too
    assert choose_place(10 * gib, on_device=None, on_host=16 * gib) == "device"
    assert choose_place(10 * gib, on_device=None, on_host=None) == "device"


@pytest.mark.parametrize("on_device", [None, 4 * 10**9])
def test_a_basis_that_fits_nowhere_is_refused_with_its_size(on_device):
    with pytest.raises(SpectraError, match=r"basis of 40.0 GB.*16.0 GB.*--basis none"):
        choose_place(40 * 10**9, on_device=on_device, on_host=16 * 10**9)


def test_a_basis_that_the_allocator_refuses_gets_one_line():
    A = SymmetricOperator(lambda v: v, 2**40, torch.float32)
    with pytest.raises(SpectraError, match="no memory for a Krylov basis") as told:
        lanczos(A, torch.ones(1).expand(2**40), steps=2**20)
    assert "\n" not in str(told.value)


MEMORY = """
import sys
from pathlib import Path
import torch
from spectra.krylov import SymmetricOperator, lanczos, random_start, ritz_vectors

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

n = 10**7
d = torch.linspace(-1, 1, n)
d[:2] = torch.tensor([-9.0, 30.0])
A = SymmetricOperator(lambda v: d * v, n, torch.float32)
start = random_start(n, seed=0, probe=0, dtype=torch.float32)
lanczos(A, start[:0].new_ones(n), steps=1, basis="none")  # what the first products load
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = status("VmRSS")
run = lanczos(A, start, steps=int(sys.argv[1]), basis="none")
print((status("VmHWM") - before) / n, *run.ritz().values[[0, -1]])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_ten_million_parameters_take_a_few_vectors_however_many_steps():
    """P43: measured by the system, with the basis' 4 bytes a step and parameter left out."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, "8"], capture_output=True, text=True, check=True
    )
    each, low, high = map(float, done.stdout.split())
    assert each < 48  # bytes; six more rows of float32 would be 24 on top
    assert [low, high] == pytest.approx([-9, 30], rel=1e-3)
