"""Claims about probes, quadrature, densities and the errors of estimates."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.stats import norm, wasserstein_distance

from spectra.errors import SpectraError
from spectra.krylov import (
    SpectralMeasure,
    SymmetricOperator,
    extreme_eigenvalues,
    extremes_of,
    known_forms,
    lanczos,
    quadratic_form_probes,
    random_start,
    spectral_measure,
    symlog_grid,
    trace_estimate,
)
from spectra.krylov.measure import MOST_NODES, Kernel

properties = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def diagonal(values, device="cpu"):
    d = torch.as_tensor(np.asarray(values), dtype=torch.float64, device=device)
    return SymmetricOperator(lambda v: d * v, len(d), d.dtype, d.device)


def one_probe(nodes, weights):
    return SpectralMeasure((np.array(nodes),), (np.array(weights),), dim=1000)


# --- probes ---------------------------------------------------------------------------------------


def test_equal_seeds_draw_equal_probes_and_no_pair_collides(device):
    """P36: among them seeds that torch's generator, which keeps 32 bits, would confuse"""
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    pairs = list(itertools.product(seeds, seeds))
    draws = torch.stack([random_start(40, seed=s, probe=p, device=device) for s, p in pairs])
    again = torch.stack([random_start(40, seed=s, probe=p, device=device) for s, p in pairs])
    assert torch.equal(draws, again)
    overlaps = (draws @ draws.T - torch.eye(len(pairs), device=device)).abs()
    assert float(overlaps.max()) < 0.75


def test_every_device_and_dtype_sees_the_same_unit_probe(device):
    """P36"""
    reference = random_start(1000, seed=3, probe=4)
    assert torch.equal(random_start(1000, seed=3, probe=4, device=device).cpu(), reference)
    single = random_start(1000, seed=3, probe=4, dtype=torch.float32, device=device)
    assert torch.equal(single.cpu(), reference.float())
    assert float(reference.norm()) == pytest.approx(1)


def test_drawing_probes_leaves_the_global_generators_alone():
    """P36"""
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    spectral_measure(diagonal(np.arange(9.0)), steps=3, probes=2)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_gaussian_probes_are_uniform_on_the_sphere_and_rademacher_ones_are_signs():
    draws = torch.stack([random_start(5, seed=0, probe=p) for p in range(4000)])
    np.testing.assert_allclose(draws.T @ draws / 4000, np.eye(5) / 5, atol=0.012)
    signs = random_start(16, seed=0, probe=0, distribution="rademacher")
    assert set((signs * 4).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("seed", "probe"), [(-1, 0), (0, -1), (2**64, 0)])
def test_seeds_that_would_wrap_are_refused(seed, probe):
    with pytest.raises(SpectraError, match="expected both from 0"):
        random_start(3, seed=seed, probe=probe)


def test_one_product_probes_never_meet_those_of_lanczos_runs(counted, matrix_with):
    """P36"""
    product = counted(matrix_with(np.arange(30.0)))
    A = product.operator()
    extra = quadratic_form_probes(A, probes=10, seed=0)
    assert product.calls == 10
    first = spectral_measure(A, steps=2, probes=10, seed=0).probe_moments(1)
    assert len(np.unique(np.concatenate((extra, first)).round(12))) == 20
    same = quadratic_form_probes(A, probes=10, seed=0, first_probe=0)
    np.testing.assert_allclose(same, first, rtol=1e-12)  # same kind of sample: they may be pooled


# --- quadrature -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "nodes", "weights"),
    [
        (1, [2.0], [1.0]),
        (2, [2 - (2 / 3) ** 0.5, 2 + (2 / 3) ** 0.5], [0.5, 0.5]),
        (3, [1.0, 2.0, 3.0], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_nodes_and_weights_of_a_small_case_are_those_worked_out_by_hand(
    device, steps, nodes, weights
):
    """P23, P24: golden values, on every torch that the suite runs with (2.11 and 2.13 so far)"""
    A = diagonal([1.0, 2.0, 3.0], device)
    run = lanczos(A, torch.ones(3, dtype=torch.float64, device=device), steps=steps)
    measure = SpectralMeasure.from_tridiagonals([run], 3)
    np.testing.assert_allclose(measure.nodes[0], nodes, rtol=1e-14)
    np.testing.assert_allclose(measure.weights[0], weights, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_are_real_not_negative_and_sum_to_one(matrix_with, dtype):
    """P23"""
    A = SymmetricOperator.from_matrix(matrix_with(np.linspace(-3, 9, 80), dtype))
    measure = spectral_measure(A, steps=40, probes=3)
    for weights in measure.weights:
        assert weights.dtype == np.float64
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-13)


def test_full_depth_gives_every_eigenvalue_with_the_weight_the_probe_holds_of_it(device):
    """P20, P23, P25"""
    spectrum = np.array([-4.0, -1.0, 0.0, 2.0, 5.0, 9.0])
    measure = spectral_measure(diagonal(spectrum, device), steps=50)
    start = random_start(6, seed=0, probe=0).numpy()
    np.testing.assert_allclose(measure.nodes[0], spectrum, atol=1e-13)
    np.testing.assert_allclose(measure.weights[0], start**2, atol=1e-13)


def test_moments_below_twice_the_depth_are_exact(matrix_with):
    """P23"""
    matrix = matrix_with([-1.0, *np.linspace(0, 0.9, 40), 1.0])
    measure = spectral_measure(SymmetricOperator.from_matrix(matrix), steps=5)
    power = random_start(42, seed=0, probe=0, device=matrix.device)
    start = power.clone()
    for k in range(10):
        assert measure.moment(k).value == pytest.approx(float(start @ power), rel=1e-11)
        power = matrix @ power
    assert measure.moment(10).value != pytest.approx(float(start @ power), rel=1e-6)


@pytest.mark.parametrize("power", [-12, -6, 6, 12])
def test_scaling_the_operator_scales_the_kth_moment_by_its_kth_power(matrix_with, power):
    """P18"""
    matrix, s = matrix_with([-4.0, *np.linspace(0, 1, 50), 20.0]), 10.0**power
    plain = spectral_measure(SymmetricOperator.from_matrix(matrix), steps=12, probes=3)
    scaled = spectral_measure(SymmetricOperator.from_matrix(matrix * s), steps=12, probes=3)
    for k in (1, 2, 3, 4):
        assert scaled.moment(k).value == pytest.approx(plain.moment(k).value * s**k, rel=1e-10)
        assert scaled.moment(k).stderr == pytest.approx(plain.moment(k).stderr * s**k, rel=1e-9)
    assert scaled.mass_below(-s).value == pytest.approx(plain.mass_below(-1.0).value, rel=1e-10)


def test_the_distance_to_the_true_spectrum_shrinks_with_depth():
    spectrum = np.concatenate((np.linspace(-1, 1, 900), np.linspace(4, 6, 100)))
    distances = []
    for steps in (2, 6, 20, 60):
        measure = spectral_measure(diagonal(spectrum), steps=steps, probes=8)
        nodes, weights = np.concatenate(measure.nodes), np.concatenate(measure.weights)
        distances.append(wasserstein_distance(nodes, spectrum, weights))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.1 < distances[0]


def test_p_probes_of_m_steps_cost_p_times_m_products_and_answers_cost_none(matrix_with, counted):
    """P41"""
    product = counted(matrix_with(np.linspace(-1, 1, 60)))
    heard: list[int] = []
    measure = spectral_measure(product.operator(), steps=7, probes=4, callback=heard.append)
    grid = measure.symlog_grid()
    measure.density(grid)
    measure.cumulative(grid)
    measure.trace()
    measure.mass_below(0.0)
    assert product.calls == 28
    assert heard == [1, 2, 3, 4, 5, 6, 7] * 4


def test_no_probes_are_refused():
    with pytest.raises(SpectraError, match="probes=0"):
        spectral_measure(diagonal([1.0]), probes=0)


# --- estimates and their errors -------------------------------------------------------------------


def test_standard_errors_need_three_probes_and_are_unknown_below():
    A = diagonal(np.linspace(-1, 2, 30))
    for probes in (1, 2):
        measure = spectral_measure(A, steps=10, probes=probes)
        for estimate in (measure.trace(), measure.moment(2), measure.mass_below(0.0)):
            assert estimate.stderr is None
            assert estimate.interval() is None
            assert estimate.samples == probes
        density = measure.density(measure.symlog_grid())
        assert density.low is None
        assert density.high is None
    assert spectral_measure(A, steps=10, probes=3).trace().stderr > 0


def test_a_multiple_of_the_identity_has_a_trace_without_error():
    estimate = spectral_measure(diagonal([2.0] * 50), steps=10, probes=3).trace()
    assert estimate.value == pytest.approx(100, rel=1e-14)
    assert estimate.stderr == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def squares():
    """(7800, 50) squared entries of probes: vᵀ diag(λ) v = λ · squares, without 7800 products."""
    return torch.stack([random_start(50, seed=1, probe=p) for p in range(7800)]).numpy() ** 2


def coverage(forms, truth):
    intervals = np.array([trace_estimate(row, 50).interval() for row in forms])
    return np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))


@pytest.mark.parametrize(
    "spectrum",
    [
        pytest.param(np.linspace(0.5, 2, 50), id="positive"),
        pytest.param(np.linspace(-2, -0.5, 50), id="negative"),
        pytest.param(np.linspace(-1, 1, 50), id="zero"),
        pytest.param(np.linspace(-1, 1.02, 50), id="sign-changing"),
        pytest.param([*np.linspace(-1, 2, 44), -9, -7, -5, 5, 8, 9], id="saddle with outliers"),
    ],
)
def test_the_trace_interval_covers_the_truth_as_often_as_it_says(squares, spectrum):
    """P34, P35: 600 seeds, thirteen samples each"""
    forms = (squares @ spectrum).reshape(600, 13)
    np.testing.assert_allclose(
        quadratic_form_probes(diagonal(spectrum), probes=3, seed=1, first_probe=0),
        forms[0, :3],
        rtol=1e-12,
    )
    covered = coverage(forms, np.sum(spectrum))
    assert 0.92 < covered < 0.977  # 0.95 ± 3 binomial standard deviations


def test_a_dominating_eigenvalue_makes_the_trace_interval_optimistic_by_as_much_as_stated(squares):
    """P34: what trace_estimate's docstring admits"""
    spectrum = np.array([100.0, *np.linspace(0, 0.1, 49)])
    forms = (squares[: 700 * 11] @ spectrum).reshape(700, 11)
    assert 0.83 < coverage(forms, spectrum.sum()) < 0.91


def test_lanczos_probes_and_one_product_probes_pool_into_one_trace():
    """P34"""
    A = diagonal(np.linspace(-1, 2, 50))
    measure = spectral_measure(A, steps=8, probes=3, seed=5)
    extra = quadratic_form_probes(A, probes=10, seed=5)
    pooled = trace_estimate(np.concatenate((measure.probe_moments(1), extra)), 50)
    assert pooled.samples == 13
    low, high = pooled.interval()
    assert low < 25 < high
    assert pooled.stderr < measure.trace().stderr


@pytest.mark.parametrize("outlier", [100.0, -100.0])
def test_what_lanczos_knows_makes_the_trace_interval_honest_beside_an_outlier(outlier):
    """300 seeds: the interval covers as often as it says, and is a fraction of the plain one"""
    spectrum = np.array([outlier, 30.0, -10.0, *np.linspace(-0.2, 0.5, 297)])
    A, covered, widths = diagonal(spectrum), 0, []
    for seed in range(300):
        run = lanczos(A, random_start(300, seed=seed, probe=0), steps=12)
        forms = quadratic_form_probes(A, probes=10, seed=seed)
        known = known_forms(run, probes=10, seed=seed)
        trace = trace_estimate(forms, 300, known=known, known_trace=float(run.alphas.sum()))
        low, high = trace.interval()
        covered += low <= spectrum.sum() <= high
        widths.append(trace.stderr)
    assert 0.91 < covered / 300 < 0.985  # 0.95 ± 3 binomial standard deviations
    assert np.median(widths) < 0.1 * np.sqrt(2 / 10) * abs(outlier)


def test_a_whole_krylov_space_leaves_nothing_of_the_trace_to_chance():
    spectrum = np.array([5.0, -3.0, *np.linspace(-1, 1, 18)])
    A = diagonal(spectrum)
    run = lanczos(A, random_start(20, seed=0, probe=0), steps=20)
    known = known_forms(run, probes=10, seed=0)
    np.testing.assert_allclose(known, quadratic_form_probes(A, probes=10, seed=0), atol=1e-12)
    with pytest.raises(SpectraError, match="without its basis"):
        known_forms(run.without_basis(), probes=1, seed=0)


def test_bands_of_the_distribution_cover_the_truth_as_often_as_they_say(squares):
    """P34: 780 seeds, ten probes each, at full depth (where weights are the squared entries)"""
    spectrum = np.concatenate(([-2.0, -1.5, -1.0], np.linspace(0.5, 3, 47)))
    grid = np.array([0.0, 1.25, 2.25])
    truth = np.array([np.mean(spectrum <= x) for x in grid])
    covered, share = np.zeros(3), 0
    for weights in squares.reshape(780, 10, 50):
        measure = SpectralMeasure((spectrum,) * 10, tuple(weights), 50)
        curve = measure.cumulative(grid)
        covered += (curve.low <= truth) & (truth <= curve.high)
        low, high = measure.mass_below(0.0).interval()
        share += low <= truth[0] <= high
    assert np.all(np.abs(covered[1:] / 780 - 0.95) < 0.0235)  # 3 binomial standard deviations
    assert covered[0] == share  # one number, two ways
    assert 0.90 < share / 780 < 0.97  # three eigenvalues: skewed, a little optimistic


def test_the_negative_mass_counts_the_weights_below_the_threshold():
    measure = one_probe([-2.0, -0.5, 0.0, 1.0], [0.1, 0.2, 0.3, 0.4])
    assert measure.mass_below(0.0).value == pytest.approx(0.3)
    assert measure.mass_below(-0.5).value == pytest.approx(0.1)
    assert measure.mass_below(-5.0).value == 0.0
    assert measure.mass_below(9.0).value == pytest.approx(1.0)


# --- densities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["default", "paper"])
def test_the_density_integrates_to_the_smoothed_weights_over_any_interval(kernel):
    """P38: not renormalised, neither inside the grid nor at its ends"""
    measure = one_probe([-50.0, -1.0, 0.0, 0.2, 3.0, 100.0], [0.01, 0.2, 0.5, 0.2, 0.08, 0.01])
    for low, high in [(-60.0, 130.0), (-1.0, 0.1), (2.0, 4.0), (99.0, 101.0), (-50.0, 0.2)]:
        grid = symlog_grid(low, high, linear=1e-3, points=60_000)
        ends = measure.cumulative(np.array([low, high]), kernel).mean
        density = measure.density(grid, kernel).mean
        assert trapezoid(density, grid) == pytest.approx(ends[1] - ends[0], abs=1e-6)


@pytest.mark.parametrize("spread", [1.0, 1e2, 1e5])
def test_an_interior_spike_keeps_its_weight_at_any_range(spread):
    """P38: on the helper's own grid, whatever the range"""
    measure = one_probe([-spread, 0.3 * spread, spread], [0.495, 0.01, 0.495])
    grid = measure.symlog_grid()
    density = measure.density(grid).mean
    inside = (grid > 0.2 * spread) & (grid < 0.4 * spread)
    assert trapezoid(density[inside], grid[inside]) == pytest.approx(0.01, rel=1e-3)
    assert trapezoid(density, grid) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("power", [-12, -3, 3, 12])
def test_the_density_follows_the_scale_of_the_operator(power):
    """P37"""
    s = 10.0**power
    A, B = (diagonal(scale * np.linspace(-1, 3, 40)) for scale in (1.0, s))
    a, b = (spectral_measure(X, steps=20, probes=3) for X in (A, B))
    grid = a.symlog_grid()
    np.testing.assert_allclose(b.symlog_grid(), grid * s, rtol=1e-8, atol=1e-9 * s)
    plain, scaled = a.density(grid), b.density(grid * s)
    np.testing.assert_allclose(scaled.mean * s, plain.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scaled.high * s, plain.high, rtol=1e-6, atol=1e-9)


def test_a_bulk_beside_an_outlier_ten_thousand_times_wider_stays_resolved():
    """P37"""
    rng = np.random.default_rng(0)
    bulk = 0.01 * rng.standard_normal(1999)
    measure = spectral_measure(diagonal([*bulk, 100.0]), steps=60, probes=4)
    grid = np.linspace(-0.05, 0.05, 2001)
    density = measure.density(grid).mean
    mean = trapezoid(density * grid, grid)
    deviation = np.sqrt(trapezoid(density * (grid - mean) ** 2, grid))
    assert trapezoid(density, grid) == pytest.approx(1, abs=0.01)
    assert deviation == pytest.approx(0.01, rel=0.25)


def test_the_papers_kernel_has_the_variance_of_the_published_figures():
    measure = one_probe([-6.0, 40.0], [0.5, 0.5])
    grid = np.linspace(39.9, 40.1, 5)
    expected = 0.5 * norm.pdf(grid, 40.0, np.sqrt(1e-5 * 46))
    np.testing.assert_allclose(measure.density(grid, "paper").mean, expected, rtol=1e-12)
    small = one_probe([0.0, 1e-3], [0.5, 0.5]).density(np.zeros(1), "paper").mean
    assert small[0] == pytest.approx(norm.pdf(0, 0, 1e-5**0.5), rel=0.05)  # a floor at range 1


def test_the_density_is_the_mean_of_its_probes_with_students_band():
    nodes = (np.array([0.0, 1.0]),) * 3
    weights = (np.array([0.2, 0.8]), np.array([0.5, 0.5]), np.array([0.8, 0.2]))
    density = SpectralMeasure(nodes, weights, 10).density(np.array([1.0]))
    peak = norm.pdf(0, 0, 0.05 * np.hypot(1, 1e-3))
    assert density.mean[0] == pytest.approx(0.5 * peak)
    reach = 4.302652729911275 * 0.3 / 3**0.5 * peak  # t at 0.975 with two degrees of freedom
    assert density.high[0] == pytest.approx((0.5 * peak) + reach)
    assert density.low[0] == 0.0  # a density is not negative


def test_the_zero_operator_has_a_finite_density_at_zero():
    """P21"""
    measure = spectral_measure(diagonal([0.0] * 5), steps=3, probes=3)
    grid = measure.symlog_grid()
    density = measure.density(grid)
    assert np.all(np.isfinite(density.mean))
    assert trapezoid(density.mean, grid) == pytest.approx(1, abs=1e-3)
    assert measure.trace().value == 0.0


def test_the_plain_distribution_is_a_step_function_from_zero_to_one():
    measure = one_probe([-1.0, 0.0, 2.0], [0.2, 0.3, 0.5])
    curve = measure.cumulative(np.array([-2.0, -1.0, -0.5, 0.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(curve.mean, [0, 0.2, 0.2, 0.5, 0.5, 1.0, 1.0])


def test_the_symlog_grid_is_even_near_zero_and_in_the_logarithm_far_off():
    grid = symlog_grid(-1e-5, 100.0, linear=1e-3, points=5001)
    assert np.all(np.diff(grid) > 0)
    assert grid[0] == pytest.approx(-1e-5)
    assert grid[-1] == pytest.approx(100)
    far = grid[grid > 1]
    assert np.ptp(np.diff(np.log(far))) < 1e-6


def test_an_unknown_kernel_or_distribution_is_refused():
    # The tests' run-time checks would refuse them first: reach beneath those.
    with pytest.raises(SpectraError, match="expected 'default' or 'paper'"):
        inspect.unwrap(SpectralMeasure._sigma)(one_probe([1.0], [1.0]), np.ones(1), "box")
    with pytest.raises(SpectraError, match="expected 'gaussian' or 'rademacher'"):
        inspect.unwrap(random_start)(3, seed=0, probe=0, distribution="uniform")


def test_each_default_has_one_definition():
    """P39"""
    seen: dict[str, set[object]] = {}
    functions = (spectral_measure, extreme_eigenvalues, extremes_of, random_start)
    for function in (*functions, SpectralMeasure.density, quadratic_form_probes):
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.default not in (inspect.Parameter.empty, None):
                seen.setdefault(name, set()).add(parameter.default)
    assert seen["steps"] == {100}
    assert all(len(values) == 1 for values in seen.values())


@properties
@given(shift=st.floats(-20, 20), scale=st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_shifting_and_scaling_the_operator_shifts_and_scales_the_measure(shift, scale, seed):
    spectrum = np.array([-3.0, -1.0, 0.0, 0.5, 2.0, 2.5, 7.0])
    plain = spectral_measure(diagonal(spectrum), steps=7, seed=seed)
    moved = spectral_measure(diagonal(scale * spectrum + shift), steps=7, seed=seed)
    np.testing.assert_allclose(moved.nodes[0], scale * plain.nodes[0] + shift, atol=1e-10)
    np.testing.assert_allclose(moved.weights[0], plain.weights[0], atol=1e-10)


def test_the_bracket_of_the_mass_below_holds_for_each_start_vector() -> None:
    """P37's neighbour: a quadrature cannot say on which side of a threshold a node's mass lies."""
    values = np.concatenate([np.linspace(-1, 0.2, 150), np.geomspace(0.3, 50, 50)])
    A = SymmetricOperator.from_matrix(torch.diag(torch.tensor(values)))
    for seed in range(20):
        start = random_start(len(values), seed=seed, probe=0)
        measure = SpectralMeasure.from_tridiagonals([lanczos(A, start, steps=12)], len(values))
        for threshold in np.linspace(-1.5, 60, 97):
            truth = float((start.numpy() ** 2)[values < threshold].sum())
            low, high = measure.mass_bounds(float(threshold))
            assert low - 1e-12 <= truth <= high + 1e-12
            assert low <= measure.mass_below(float(threshold)).value <= high + 1e-12


def test_the_curve_is_the_density_on_its_own_grid() -> None:
    measure = one_probe([-1.0, 0.0, 3.0, 3.001], [0.2, 0.7, 0.05, 0.05])
    grid, mean = measure.curve()
    assert {*measure.symlog_grid(), *measure.nodes[0]} <= set(grid)
    assert np.all(np.diff(grid) > 0)
    np.testing.assert_array_equal(mean, measure.density(grid).mean)
    assert trapezoid(mean, grid) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("kernel", ["default", "paper"])
def test_the_curve_shows_every_outlier_and_its_weight(kernel: Kernel) -> None:
    """The published kernel is a fiftieth as wide as the grid is coarse at 400."""
    nodes, weights = [-30.0, 0.0, 1.0, 400.0, 900.0], [0.01, 0.7, 0.2, 0.03, 0.06]
    measure = one_probe(nodes, weights)
    grid, mean = measure.curve(kernel)
    for node, weight in zip(nodes, weights, strict=True):
        sigma = float(measure._sigma(np.array([node]), kernel)[0])
        near = np.abs(grid - node) <= 5 * sigma
        peak = weight / (sigma * np.sqrt(2 * np.pi))
        assert mean[near].max() >= 0.999 * peak
        if node >= 400:
            assert trapezoid(mean[near], grid[near]) == pytest.approx(weight, rel=0.05)


def test_points_around_nodes_are_bounded_in_number_and_spent_on_what_stands_alone() -> None:
    crowd = np.linspace(0, 1000, 40_000)
    measure = one_probe([-50.0, *crowd, 2000.0, 2000.0 + 1e-9], np.full(40_003, 1 / 40_003))
    points = measure.around_nodes("paper")
    assert len(points) <= 13 * MOST_NODES
    assert {-50.0, 2000.0} <= set(points)
