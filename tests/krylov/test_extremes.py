"""Claims about both ends of the spectrum and the bounds beyond them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import diags_array
from scipy.sparse.linalg import eigsh

from spectra.errors import SpectraError
from spectra.krylov import (
    SymmetricOperator,
    Tridiagonal,
    extreme_eigenvalues,
    extremes_of,
    lanczos,
    lower_bound,
    posterior_lower_bound,
    random_start,
)


def diagonal(values, device="cpu"):
    d = torch.as_tensor(np.asarray(values), dtype=torch.float64, device=device)
    return SymmetricOperator(lambda v: d * v, len(d), d.dtype, d.device)


def runs_from(A, *, steps, seed, probes=1):
    starts = (random_start(A.dim, seed=seed, probe=p) for p in range(probes))
    return [lanczos(A, start, steps=steps).without_basis() for start in starts]


def test_both_ends_agree_with_scipy_on_a_large_sparse_matrix(device):
    n = 4000
    main = np.sin(np.arange(n)) * np.linspace(0, 3, n) ** 2
    matrix = diags_array([np.ones(n - 1), main, np.ones(n - 1)], offsets=[-1, 0, 1]).tocsr()
    diagonal = torch.from_numpy(main).to(device)

    def product(v):
        w = diagonal * v
        w[1:] += v[:-1]
        w[:-1] += v[1:]
        return w

    A = SymmetricOperator(product, n, torch.float64, device)
    found = extreme_eigenvalues(A, steps=150)
    low, high = np.sort(eigsh(matrix, k=2, which="BE", return_eigenvectors=False, v0=np.ones(n)))
    assert abs(found.lambda_min - low) <= found.residual_min + 1e-10
    assert abs(found.lambda_max - high) <= found.residual_max + 1e-10
    assert found.converged


def test_residuals_are_those_of_the_vectors(matrix_with):
    """P31, P33"""
    matrix = matrix_with([-3.0, *np.linspace(-0.5, 1, 80), 12.0])
    found = extreme_eigenvalues(SymmetricOperator.from_matrix(matrix), steps=9)
    for value, y, residual in [
        (found.lambda_min, found.vector_min, found.residual_min),
        (found.lambda_max, found.vector_max, found.residual_max),
    ]:
        assert float(y.norm()) == pytest.approx(1, abs=1e-14)
        assert float(y @ matrix @ y) == pytest.approx(value, abs=1e-12)
        assert float((matrix @ y - value * y).norm()) == pytest.approx(residual, abs=1e-12)
    assert abs(float(found.vector_min @ found.vector_max)) < 1e-13


def test_both_ends_have_the_right_sign_where_the_smallest_has_the_largest_modulus(matrix_with):
    """P30"""
    found = extreme_eigenvalues(
        SymmetricOperator.from_matrix(matrix_with([-9.0, *np.linspace(-0.1, 0.1, 60), 4.0]))
    )
    assert found.lambda_min == pytest.approx(-9, rel=1e-12)
    assert found.lambda_max == pytest.approx(4, rel=1e-12)
    assert found.converged


def test_a_run_that_is_too_short_says_so_beside_its_values(device):
    """P26"""
    A = diagonal(np.linspace(-1, 1, 3000), device)
    short, long = (extreme_eigenvalues(A, steps=steps) for steps in (8, 200))
    assert not short.converged
    assert short.residual_min > 1e-3
    assert -1 < short.lambda_min < -0.5
    assert long.converged
    assert long.lambda_min == pytest.approx(-1, abs=long.residual_min)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_convergence_is_judged_beside_the_size_of_the_operator(device, scale):
    """P18"""
    A = diagonal(scale * np.linspace(-1, 1, 3000), device)
    assert not extreme_eigenvalues(A, steps=8).converged
    assert extreme_eigenvalues(A, steps=200).converged


@pytest.mark.parametrize("spectrum", [[0.0] * 9, [2.0] * 9, [0.0] * 8 + [-3.0], [5.0]])
def test_special_operators_have_exact_ends(matrix_with, spectrum):
    """P21"""
    found = extreme_eigenvalues(SymmetricOperator.from_matrix(matrix_with(spectrum)))
    assert found.converged
    assert found.lambda_min == pytest.approx(min(spectrum), abs=1e-14)
    assert found.lambda_max == pytest.approx(max(spectrum), abs=1e-14)


def test_a_given_start_is_used(device):
    A = diagonal([1.0, 2.0, 3.0], device)
    start = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=device)
    found = extreme_eigenvalues(A, start=start)
    assert found.lambda_min == found.lambda_max == 2.0
    assert found.steps == 1


def test_the_extremes_cost_the_products_of_their_run_and_two_residuals(matrix_with, counted):
    """P41"""
    product = counted(matrix_with(np.linspace(-1, 1, 60)))
    extreme_eigenvalues(product.operator(), steps=13)
    assert product.calls == 15


def test_a_converged_residual_is_that_of_the_products_and_not_zero(matrix_with):
    """T's own falls below all rounding; some eigenvalue of the float32 matrix lies within ours."""
    matrix = matrix_with([-3.0, *np.linspace(-0.5, 1, 80), 12.0], torch.float32)
    A = SymmetricOperator.from_matrix(matrix)
    found = extreme_eigenvalues(A, steps=70)
    start = random_start(A.dim, seed=0, probe=0, dtype=A.dtype, device=A.device)
    assert max(lanczos(A, start, steps=70).end_residuals()) < 1e-9
    values = np.linalg.eigvalsh(matrix.double().cpu().numpy())
    for value, residual in (
        (found.lambda_min, found.residual_min),
        (found.lambda_max, found.residual_max),
    ):
        assert 1e-8 < residual < 1e-4
        assert np.abs(values - value).min() <= residual


def test_ends_without_vectors_know_whether_they_have_converged(device):
    A = diagonal(np.linspace(-1, 1, 500), device)
    start = random_start(500, seed=0, probe=0, device=device)
    for steps, converged in ((10, False), (300, True)):
        found = extremes_of(lanczos(A, start, steps=steps), vectors=False)
        assert found.vector_max is None
        assert found.converged is converged


# --- until both ends have converged -------------------------------------------------------------

ENDS = np.concatenate(([-3.0, -1.0], np.linspace(-0.2, 1, 996), [5.0, 12.0]))


def cut(run: Tridiagonal, steps: int) -> Tridiagonal:
    """The same run, ended after so many steps."""
    betas = np.append(run.betas, run.residual_norm)
    return replace(
        run,
        alphas=run.alphas[:steps],
        betas=betas[: steps - 1],
        residual_norm=float(betas[steps - 1]),
        basis=run.basis[:steps],
        exhausted=False,
    )


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("wait", [1, 10])
def test_a_run_ends_within_a_few_steps_of_the_first_whose_ends_have_converged(
    tolerance, wait, device
):
    A = diagonal(ENDS, device)
    start = random_start(A.dim, seed=0, probe=0, device=device)
    whole = lanczos(A, start, steps=100)
    ended = lanczos(A, start, steps=100, until_converged=tolerance, wait=wait)
    within = [cut(whole, m).ends_within(tolerance) for m in range(1, 101)]
    first = within.index(True) + 1
    late = 5 if wait == 1 else 10
    assert first <= ended.steps <= first + late
    assert ended.steps % late == 0
    np.testing.assert_array_equal(ended.alphas, whole.alphas[: ended.steps])
    assert torch.equal(ended.basis, whole.basis[: ended.steps])
    for y, end, residual in zip(
        (ended.vector(0), ended.vector(-1)), (0, -1), ended.end_residuals(), strict=True
    ):
        value = ended.ritz().values[end]
        assert float((A @ y - value * y).norm()) == pytest.approx(residual, abs=1e-12)
        assert residual <= tolerance * 12


def test_looking_at_the_residuals_on_the_way_costs_no_product(counted):
    product = counted(torch.diag(torch.as_tensor(ENDS)))
    found = extreme_eigenvalues(product.operator(), steps=100, until_converged=1e-6)
    assert found.converged
    assert product.calls - 2 == found.steps < 60


def test_a_run_that_does_not_converge_goes_to_the_ceiling_and_says_so(device):
    """P26: the steps stay a limit, and what is not reached is not claimed."""
    A = diagonal(np.linspace(-1, 1, 3000), device)
    found = extreme_eigenvalues(A, steps=30, until_converged=1e-6)
    assert found.steps == 30
    assert not found.converged
    loose = extreme_eigenvalues(A, steps=300, until_converged=0.1)  # looser than `converged`
    assert loose.steps < 30
    assert not loose.converged
    strict = extreme_eigenvalues(diagonal(ENDS, device), steps=14, until_converged=1e-12)
    assert max(strict.residual_min, strict.residual_max) < 1e-3 * 12
    assert not strict.converged  # good enough for the default, but not for what was asked


@pytest.mark.parametrize("spectrum", [[0.0] * 9, [2.0] * 9, [-1.0] * 3 + [2.0] * 4])
def test_a_space_that_is_exhausted_before_the_first_look_has_converged(matrix_with, spectrum):
    """P21"""
    A = SymmetricOperator.from_matrix(matrix_with(spectrum))
    found = extreme_eigenvalues(A, until_converged=1e-9)
    assert found.converged
    assert found.steps == len(set(spectrum))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_end_that_converges_late_among_ghosts_of_the_other_ends_the_run(dtype):
    """The outlier is copied many times over before the other end is found."""
    d = torch.as_tensor(np.concatenate((np.linspace(0, 1, 999) ** 0.5, [100.0])), dtype=dtype)
    d[0] = -0.05
    A = SymmetricOperator(lambda v: d * v, 1000, dtype)
    found = extreme_eigenvalues(A, steps=400, until_converged=2e-5, basis="none")
    whole = lanczos(
        A, random_start(1000, seed=0, probe=0, dtype=dtype), steps=found.steps, basis="none"
    )
    assert np.sum(np.abs(whole.ritz().values - 100) < 0.1) >= 2
    assert found.steps < 200
    assert found.lambda_min == pytest.approx(-0.05, abs=2e-3)
    for y, value in ((found.vector_min, found.lambda_min), (found.vector_max, found.lambda_max)):
        assert float((A.apply(y) - value * y).norm()) <= 4e-3


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1.0, float("nan")])
def test_a_tolerance_that_is_no_share_is_refused(tolerance):
    with pytest.raises(SpectraError, match="until_converged"):
        extreme_eigenvalues(diagonal([1.0, 2.0]), until_converged=tolerance)


# --- a start that is not random -------------------------------------------------------------------


@pytest.mark.parametrize("moved", [1e-4, 1e-2])
def test_ritz_vectors_of_a_neighbouring_matrix_reach_the_same_residual_in_fewer_steps(
    matrix_with, moved
):
    """From epoch to epoch: the start serves the extremes, which carry no T to misuse."""
    before = matrix_with(np.concatenate(([-3.0, -1.0], np.linspace(-0.2, 1, 196), [5.0, 12.0])))
    drift = matrix_with(moved * np.linspace(-1, 1, 200), seed=1)
    first = extreme_eigenvalues(SymmetricOperator.from_matrix(before), until_converged=1e-8)
    A = SymmetricOperator.from_matrix(before + drift)
    drawn = extreme_eigenvalues(A, until_converged=1e-8)
    warm = extreme_eigenvalues(A, start=first.vector_min + first.vector_max, until_converged=1e-8)
    truth = torch.linalg.eigvalsh(before + drift).cpu()
    for found in (drawn, warm):
        assert found.converged
        assert found.lambda_min == pytest.approx(float(truth[0]), abs=1e-7)
        assert found.lambda_max == pytest.approx(float(truth[-1]), abs=1e-7)
    assert warm.steps < drawn.steps
    assert (drawn.start, warm.start) == ("random", "given")


def test_an_eigenvector_that_the_start_does_not_hold_is_missed_with_small_residuals(device):
    """Why random probes stay: what "converged" says is that some eigenvalue is near."""
    A = diagonal(ENDS, device)
    old = torch.zeros(A.dim, dtype=torch.float64, device=device)
    old[1] = old[-1] = 1.0  # the ends of an epoch in which -3 was not yet there
    misled = extreme_eigenvalues(A, start=old, until_converged=1e-8)
    assert misled.lambda_min == pytest.approx(-1.0, abs=1e-12)
    assert misled.converged
    drawn = extreme_eigenvalues(A, until_converged=1e-8)
    assert drawn.lambda_min == pytest.approx(-3.0, abs=1e-6)


# --- lower bounds ---------------------------------------------------------------------------------

HIDDEN = {
    "edge of a bulk": np.linspace(0, 1, 200),
    "just outside a bulk": np.array([-0.05, *np.linspace(0, 1, 199)]),
    "far outside a bulk": np.array([-1.0, *np.linspace(0, 1, 199)]),
    "alone against a multiple": np.array([-3.0, -1.0] + [0.0] * 99 + [1.0] * 99),
}


@pytest.mark.parametrize(("steps", "probes", "seeds"), [(3, 1, 300), (9, 1, 200), (9, 3, 60)])
@pytest.mark.parametrize("name", HIDDEN)
def test_the_lower_bounds_fail_no_more_often_than_they_say(name, steps, probes, seeds):
    """P34: the bounds hold with 95 %, on any spectrum, at any depth"""
    A, truth = diagonal(HIDDEN[name]), HIDDEN[name].min()
    prior = posterior = 0
    for seed in range(seeds):
        runs = runs_from(A, steps=steps, seed=seed, probes=probes)
        ends = [run.ritz().values[[0, -1]] for run in runs]
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        bound = lower_bound(low, high, dim=200, steps=steps, probes=probes)
        prior += bound is not None and bound > truth + 1e-12
        posterior += posterior_lower_bound(runs) > truth + 1e-12
    allowed = 0.05 * seeds + 3 * np.sqrt(0.05 * 0.95 * seeds)
    assert prior <= allowed
    assert posterior <= allowed


def test_the_lower_bound_is_the_theorems():
    # 1.648 √10000 exp(-√ε 199) = 0.025 at √ε = log(6592) / 199
    epsilon = (np.log(6592) / 199) ** 2
    expected = -1 - epsilon / (1 - 2 * epsilon) * 11
    assert lower_bound(-1.0, 10.0, dim=10_000, steps=100) == pytest.approx(expected, rel=1e-12)


def test_the_lower_bound_is_unknown_where_it_would_be_worth_nothing():
    assert lower_bound(-1.0, 10.0, dim=10_000, steps=6) is None
    assert lower_bound(-1.0, 10.0, dim=10_000, steps=8) < -1
    assert lower_bound(-1.0, 10.0, dim=50, steps=50) == -1.0


def test_more_steps_probes_and_doubt_raise_the_lower_bound():
    common = {"dim": 10_000, "steps": 50}
    plain = lower_bound(0.0, 1.0, **common)
    assert lower_bound(0.0, 1.0, dim=10_000, steps=100) > plain
    assert lower_bound(0.0, 1.0, **common, probes=4) > plain
    assert lower_bound(0.0, 1.0, **common, confidence=0.5) > plain


def test_the_posterior_bound_is_tight_where_the_run_has_converged():
    A = diagonal(HIDDEN["far outside a bulk"])
    (run,) = runs_from(A, steps=20, seed=0)
    low, high = run.ritz().values[[0, -1]]
    assert lower_bound(low, high, dim=200, steps=20) < low - 0.05
    assert low - 1e-9 < posterior_lower_bound([run]) <= low


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("spectrum", [[0.0] * 4, [3.0], [1.0] * 5, [-1.0, 0.0, 2.0]])
def test_the_posterior_bound_of_an_exhausted_run_is_its_smallest_value(spectrum, scale):
    """P18, P21"""
    (run,) = runs_from(diagonal(scale * np.array(spectrum)), steps=9, seed=0)
    bound = posterior_lower_bound([run])
    assert bound == pytest.approx(scale * min(spectrum), abs=1e-12 * scale)


def test_the_posterior_bound_follows_the_scale_of_the_operator():
    """P18"""
    spectrum = HIDDEN["just outside a bulk"]
    bounds = [
        posterior_lower_bound(runs_from(diagonal(s * spectrum), steps=10, seed=0)) / s
        for s in (1.0, 1e-12, 1e12)
    ]
    np.testing.assert_allclose(bounds, bounds[0], rtol=1e-9)
