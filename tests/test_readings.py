"""What is read off T is true of H; what is read off a basis survives between probes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.doctor import Certificate, Examination, examine
from spectra.krylov import (
    SymmetricOperator,
    extremes_of,
    lanczos,
    lower_bound,
    posterior_lower_bound,
    random_start,
)
from spectra.readings import RitzVectors, assemble
from spectra.results import ClassSpectrum


@pytest.fixture
def saved(tmp_path: Path) -> RitzVectors:
    d = torch.linspace(-1, 2, 30, dtype=torch.float64)
    vectors = RitzVectors(tmp_path / "ritz-vectors.pt", "class 8")
    A = SymmetricOperator(lambda v: d * v, 30, torch.float64)
    vectors.take(lanczos(A, random_start(30, seed=0, probe=0), steps=10))
    vectors.known_forms = np.array([0.25, -0.5])
    vectors.save(1)
    return vectors


def test_what_is_kept_between_probes_is_read_back(saved: RitzVectors) -> None:
    found = RitzVectors(saved.path, "class 8")
    assert found.load(1)
    assert found.values == saved.values
    assert torch.equal(found.low, saved.low)
    assert found.known_forms.tolist() == [0.25, -0.5]


def test_a_file_that_knows_nothing_of_the_trace_leaves_it_to_plain_samples(
    saved: RitzVectors,
) -> None:
    state = torch.load(saved.path, weights_only=True)
    del state["known_forms"]  # as earlier versions wrote it
    torch.save(state, saved.path)
    found = RitzVectors(saved.path, "class 8")
    assert found.load(1)
    assert found.known_forms is None


@pytest.mark.parametrize(("label", "probes"), [("class 9", 1), ("class 8", 2)])
def test_vectors_of_other_runs_are_not_taken(label: str, probes: int, saved: RitzVectors) -> None:
    assert not RitzVectors(saved.path, label).load(probes)


def test_vectors_of_runs_with_other_ends_are_not_taken(saved: RitzVectors) -> None:
    """Another seed, or other weights: the label and the number of probes are the same."""
    d = torch.linspace(-1, 2, 30, dtype=torch.float64)
    A = SymmetricOperator(lambda v: d * v, 30, torch.float64)
    own, other = (lanczos(A, random_start(30, seed=s, probe=0), steps=10) for s in (0, 1))
    assert RitzVectors(saved.path, "class 8").load(1, [own.without_basis()])
    found = RitzVectors(saved.path, "class 8")
    assert not found.load(1, [other])
    found.take(other)
    assert torch.equal(found.low, other.vector(0)), "nothing of the file is left"


def test_of_several_runs_the_outermost_ends_are_held_in_any_order() -> None:
    d = torch.linspace(-1, 2, 200, dtype=torch.float64)
    A = SymmetricOperator(lambda v: d * v, len(d), torch.float64)
    runs = [lanczos(A, random_start(len(d), seed=s, probe=0), steps=4) for s in range(6)]
    lowest, highest = zip(*(run.ritz().values[[0, -1]] for run in runs), strict=True)
    for order in (runs, runs[::-1]):
        found = RitzVectors(None, "class 8")
        for run in order:
            found.take(run)
        assert found.values == (min(lowest), max(highest))
        for y, value in zip((found.low, found.high), found.values, strict=True):
            assert float(y @ (A @ y)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_the_lower_bound_knows_how_far_the_products_are_off(off: float) -> None:
    """Products that are off in the same way each time pass every other test."""
    d = torch.linspace(-1, 2, 30, dtype=torch.float64)
    products = SymmetricOperator(lambda v: d * v + off * v, 30, torch.float64)
    run = lanczos(products, random_start(30, seed=0, probe=0), steps=30)
    ends = extremes_of(run)
    certificate = Certificate("none", "float64", float(-1), 0.0, 1e-15, True, None)
    outline = ClassSpectrum(label="class 8", name="", count=1, share=1.0)
    found = assemble(outline, [run], ends, np.zeros(0), examine(products), certificate)
    assert found.lambda_min == pytest.approx(-1 + off, abs=1e-12)
    assert -1 - 2e-12 - off <= found.certificate["lower_bound_95"] <= -1 + 1e-12


def _read(
    d: torch.Tensor,
    steps: int,
    *,
    examination: Examination | None = None,
    asymmetry: float = 0.0,
    apart: float | None = None,
) -> ClassSpectrum:
    A = SymmetricOperator(lambda v: d * v, len(d), torch.float64)
    run = lanczos(A, random_start(len(d), seed=0, probe=0), steps=steps)
    ends = extremes_of(run)
    outline = ClassSpectrum(label="class 8", name="", count=1, share=1.0)
    certificate = Certificate("none", "float64", ends.lambda_min, 0.0, 1e-15, True, None)
    run = replace(run, asymmetry=max(asymmetry, run.asymmetry))
    given = np.array([0.1, 0.2, 0.3]), examination or examine(A), certificate
    return assemble(outline, [run], ends, *given, apart=apart)


def test_a_lower_bound_that_is_farther_away_than_the_spectrum_is_wide_is_null() -> None:
    d = torch.linspace(-1, 2, 500, dtype=torch.float64)
    assert _read(d, 1).certificate["lower_bound_95"] is None
    assert -1.5 < _read(d, 60).certificate["lower_bound_95"] <= -1


@pytest.mark.parametrize(("power", "better"), [(4, "prior"), (1, "posterior")])
def test_the_lower_bound_is_the_better_of_two_that_hold_with_97_5_percent(
    power: int, better: str
) -> None:
    """Less the noise floor; the one for fixed steps is for no others, and for no copies."""
    d = 2 * torch.linspace(0, 1, 500, dtype=torch.float64) ** power - 1
    A = SymmetricOperator(lambda v: d * v, len(d), torch.float64)
    runs = [lanczos(A, random_start(len(d), seed=0, probe=p), steps=60) for p in range(3)]
    ends = np.array([run.ritz().values[[0, -1]] for run in runs])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    prior = lower_bound(low, high, dim=len(d), steps=60, probes=3, confidence=0.975)
    posterior = posterior_lower_bound(runs, confidence=0.975)
    best = max(prior, posterior)
    assert best == {"prior": prior, "posterior": posterior}[better]
    found = replace(extremes_of(runs[0]), lambda_min=low, lambda_max=high)
    outline = ClassSpectrum(label="class 8", name="", count=1, share=1.0)
    certificate = Certificate("none", "float64", low, 0.0, 1e-15, True, None)
    given = np.zeros(0), Examination(True, 0.0, 0.0, 0.0, 1e-4, None), certificate
    copies = [replace(run, orthogonal=False) for run in runs]
    for of, fixed_steps, expected in (
        (runs, True, best),
        (runs, False, posterior),
        (copies, True, posterior),
    ):
        told = assemble(outline, of, found, *given, fixed_steps=fixed_steps).certificate
        floor = 1e-4 * max(-low, high)
        assert told["lower_bound_95"] == pytest.approx(expected - floor, abs=1e-12)


@pytest.mark.parametrize("seen", ["repeatability", "asymmetry", "nonlinearity", "rounding"])
def test_a_defect_of_the_operator_is_in_its_noise_floor_and_counts_no_eigenvalue_below(
    seen: str,
) -> None:
    d = torch.linspace(-1, 2, 31, dtype=torch.float64)
    examination = replace(Examination(True, 0.0, 0.0, 0.0, 1e-15, None), **{seen: 0.21})
    found = _read(d, 31, examination=examination)
    assert found.doctor["noise_floor"] == pytest.approx(0.42)
    assert found.negative_mass_threshold == found.doctor["noise_floor"]
    shares = [float((d < x).double().mean()) for x in (-0.84, -0.42, 0.0)]
    assert [found.negative_mass_bounds[0], found.negative_mass, found.negative_mass_bounds[1]] == (
        shares
    )
    assert 0 < shares[0] < shares[1] < shares[2]


def test_a_lambda_max_of_rounding_divides_nothing() -> None:
    """One concave parameter and nine that are frozen: the ratio would be that of two roundings."""
    d = torch.tensor([-0.3] + [0.0] * 9, dtype=torch.float64)
    for off in (-3e-9, 0.0, 3e-9):
        found = _read(d + off, 2, examination=Examination(True, 0.0, 0.0, 0.0, 1.2e-7, None))
        assert found.lambda_max == pytest.approx(off, abs=1e-15)
        assert found.nonconvexity is None
        assert found.ratios == [None]
    assert _read(d + 3e-9, 2).nonconvexity == pytest.approx(1e8)  # where it is no rounding


def test_an_error_that_all_products_share_is_in_that_of_the_trace() -> None:
    d = torch.linspace(1, 2, 12, dtype=torch.float64)
    exact = _read(d, 12)
    off = _read(d, 12, examination=Examination(True, 0.0, 0.0, 0.0, 1e-3, None))
    assert off.trace == exact.trace
    assert off.trace_stderr**2 == pytest.approx(exact.trace_stderr**2 + (1e-3 * exact.trace) ** 2)


def test_a_matrix_of_nothing_beside_a_float64_that_has_something_ends_no_run() -> None:
    """As where float32's probabilities are 0 and 1, and float64's are not."""
    found = _read(torch.zeros(12, dtype=torch.float64), 3, apart=1e-12)
    assert (found.lambda_min, found.lambda_max, found.nonconvexity) == (0.0, 0.0, None)
    assert (found.trace, found.doctor["noise_floor"]) == (pytest.approx(1.8), 1e-12)


def test_the_scatter_of_one_start_is_known_without_others() -> None:
    """Of an invariant subspace T tells everything but how much of each eigenvector a start has."""
    d = torch.repeat_interleave(torch.tensor([-1.0, 0.5, 2.0]), 20).double()
    found = _read(d, 3)
    assert found.runs[0].exhausted
    assert found.negative_mass_stderr is None
    low, high = found.negative_mass_bounds
    assert high - low < 1e-12
    row = found.to_row()
    assert row["negative_mass"] is None  # 8 points of 100 at one start
    starts = [random_start(60, seed=s, probe=0) for s in range(4000)]
    shares = np.array([float((q[:20] ** 2).sum() / (q**2).sum()) for q in starts])
    expected = replace(found, negative_mass=1 / 3).negative_mass_scatter
    assert shares.std() == pytest.approx(expected, rel=0.05)
    assert 0.08 < expected < 0.09


def test_what_t_and_the_float64_check_are_off_by_is_in_the_noise_floor_too() -> None:
    d = torch.linspace(-1, 2, 31, dtype=torch.float64)
    whole = _read(d, 31)
    assert whole.doctor["noise_floor"] < 1e-12
    assert whole.negative_mass_threshold == pytest.approx(1e-6 * 2)
    below = _read(-d - 1.5, 31)  # all of it: there is no λmax to be small beside
    assert below.lambda_max < 0
    assert below.negative_mass_threshold == below.doctor["noise_floor"] < 1e-12
    for told in (_read(d, 31, asymmetry=0.125), _read(d, 31, apart=0.125)):
        assert told.doctor["noise_floor"] == told.negative_mass_threshold == 0.125


def test_an_operator_that_moves_has_no_trace() -> None:
    d, generator = torch.linspace(1, 2, 30, dtype=torch.float64), torch.Generator().manual_seed(0)
    moving = SymmetricOperator(
        lambda v: d * v + 0.5 * torch.randn(30, generator=generator, dtype=torch.float64),
        30, torch.float64,
    )  # fmt: skip
    run = lanczos(moving, random_start(30, seed=0, probe=0), steps=10)
    outline = ClassSpectrum(label="class 8", name="", count=1, share=1.0)
    certificate = Certificate("none", "float64", 1.0, 0.0, 1e-15, False, None)
    found = assemble(
        outline, [run], extremes_of(run), np.array([1.0, 2.0]), examine(moving), certificate
    )
    assert (found.trace, found.trace_stderr) == (None, None)
    assert _read(d, 10).trace is not None


@pytest.mark.parametrize(("bulk", "known"), [(0.0, True), (4e-6, False)])
def test_an_exhausted_run_counts_only_what_its_residual_cannot_move(
    bulk: float, known: bool
) -> None:
    """A bulk that the last residual hides lies on both sides of the threshold, 1e-6 of λmax."""
    d = torch.cat([torch.linspace(-bulk, bulk, 200), torch.tensor([0.5, 1.0])]).double()
    A = SymmetricOperator(lambda v: d * v, len(d), torch.float64)
    run = lanczos(A, random_start(len(d), seed=0, probe=0), steps=3)
    run = replace(run, exhausted=True)  # as in float32, where so much is rounding
    outline = ClassSpectrum(label="class 8", name="", count=1, share=1.0)
    certificate = Certificate("none", "float64", 0.0, 0.0, 1e-15, False, None)
    found = assemble(outline, [run], extremes_of(run), np.zeros(0), examine(A), certificate)
    low, high = found.negative_mass_bounds
    truth = float((d < -found.negative_mass_threshold).double().mean())
    assert low <= truth <= high
    assert (high - low < 1e-12) is known


def test_an_exhausted_run_counts_only_what_rounding_cannot_move() -> None:
    """To first order: products that are off by E turn two eigenvectors by ‖E‖ over their gap."""
    off, start = 1e-3, torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    matrix = torch.tensor([[-1.0, off, 0], [off, 1.0, 0], [0, 0, 0.5]], dtype=torch.float64)
    run = lanczos(SymmetricOperator.from_matrix(matrix), start, steps=3)
    assert run.exhausted
    assert run.steps == 2  # the third eigenvector is none of the start's
    examination = Examination(True, 0.0, 0.0, 0.0, off, None)
    outline = ClassSpectrum(label="class 8", name="", count=1, share=1.0)
    certificate = Certificate("none", "float64", -1.0, 0.0, 1e-15, True, None)
    found = assemble(outline, [run], extremes_of(run), np.zeros(0), examination, certificate)
    low, high = found.negative_mass_bounds
    assert abs(found.negative_mass - 0.36) > 100 * off**2
    assert low <= 0.36 <= high < low + 3 * off
