"""The released recurrence: harmless on a fixed matrix, misleading on one that moves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from spectra.krylov import SymmetricOperator, lanczos, random_start
from spectra.released import released_lanczos

N = 60


def prescribed(values: list[float] | Tensor, seed: int = 0) -> Tensor:
    """Make a dense symmetric matrix with these eigenvalues."""
    spectrum = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    n = len(spectrum)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
    matrix = (q * spectrum) @ q.T
    return (matrix + matrix.T) / 2


def indefinite() -> Tensor:
    return prescribed([-4.0, *np.linspace(-0.5, 0.5, N - 2), 7.0])


def ratio(values: np.ndarray) -> float:
    return float(abs(values[0] / values[-1]))


def toy(
    seed: int, n: int = 83, d: int = 400, *, noise: float = 0.3, spread: float = 2.0
) -> tuple[SymmetricOperator, SymmetricOperator]:
    """(1/n) Jᵀ diag(c) J, positive semi-definite: fixed, and with J and c re-drawn every time."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base, weights = draw(n, d), torch.exp(spread * draw(n))

    def fixed(v: Tensor) -> Tensor:
        return base.T @ (weights * (base @ v)) / n

    def moving(v: Tensor) -> Tensor:
        J, c = base + noise * draw(n, d), torch.exp(spread * draw(n))
        return J.T @ (c * (J @ v)) / n

    return SymmetricOperator(fixed, d), SymmetricOperator(moving, d)


def test_on_a_fixed_matrix_its_extremes_are_the_exact_ones() -> None:
    """The recurrence is harmless there, before the Krylov space is exhausted.

    At curvatures in the hundreds, that is, where 1e-6 is nothing beside a norm.
    """
    A = SymmetricOperator.from_matrix(100 * indefinite())
    for seed in range(5):
        run = released_lanczos(A, steps=25, seed=seed)
        values = run.ritz().values
        assert values[0] == pytest.approx(-400, rel=1e-6)
        assert values[-1] == pytest.approx(700, rel=1e-6)
        assert not run.exhausted


@pytest.mark.parametrize("seed", range(5))
def test_a_semidefinite_operator_that_moves_looks_like_a_saddle(seed: int) -> None:
    """P1: the published signature, |λmin/λmax| → 1, where no draw has a negative eigenvalue."""
    fixed, moving = toy(seed)
    run = released_lanczos(moving, steps=100, seed=seed)
    values = run.ritz().values
    assert values[0] < 0
    assert ratio(values) > 0.8
    late_beta = np.median(run.betas[50:])
    assert abs(np.median(run.alphas[50:])) < 0.1 * late_beta, "α ≈ 0"
    assert late_beta > 0.5 * np.median(run.betas[:50]), "β does not shrink"
    start = random_start(fixed.dim, seed=seed, probe=0)
    exact = lanczos(fixed, start, steps=100).ritz().values
    assert ratio(exact) < 1e-10
    assert ratio(released_lanczos(fixed, steps=75, seed=seed).ritz().values) < 0.05


def test_reorthogonalising_in_full_shrinks_the_illusion() -> None:
    """Re-drawing and the recurrence multiply: neither alone makes the published ratio."""
    released, exact = [], []
    for seed in range(5):
        released.append(ratio(released_lanczos(toy(seed)[1], steps=100).ritz().values))
        moving = toy(seed)[1]
        start = random_start(moving.dim, seed=seed, probe=0)
        exact.append(ratio(lanczos(moving, start, steps=100).ritz().values))
    assert np.median(released) > 0.95
    assert np.median(exact) < 0.9
    assert all(b < a for a, b in zip(released, exact, strict=True))


@pytest.mark.parametrize(("scale", "error"), [(1.0, 1e-4), (1e-5, 0.5), (1e-6, 0.95)])
def test_its_eigenvalues_depend_on_the_scale_and_the_exact_ones_do_not(
    scale: float, error: float
) -> None:
    """P18: 1e-6 is added to every norm, which is much where the curvature is small."""
    A = SymmetricOperator.from_matrix(scale * indefinite())
    off = abs(released_lanczos(A, steps=25).ritz().values[-1] / (7 * scale) - 1)
    assert off <= error
    assert (off > 0.01) == (scale < 1)
    values = lanczos(A, random_start(N, seed=0, probe=0), steps=25).ritz().values
    assert values[-1] / scale == pytest.approx(7, rel=1e-9)


def test_its_vectors_are_not_quite_unit_vectors() -> None:
    """P18"""
    run = released_lanczos(SymmetricOperator.from_matrix(1e-5 * indefinite()), steps=5)
    assert run.basis is not None
    lengths = torch.linalg.vector_norm(run.basis, dim=1)
    assert bool((lengths < 1 - 1e-9).all())
    assert float(lengths.min()) < 0.99


def test_its_beta_is_the_norm_before_the_vectors_are_orthogonalised() -> None:
    """P29: on an operator that moves, T is not Qᵀ A Q and β contains what was then taken away."""
    products: list[Tensor] = []
    moving = toy(0)[1]

    def recorded(v: Tensor) -> Tensor:
        products.append(moving.matvec(v))
        return products[-1]

    run = released_lanczos(SymmetricOperator(recorded, moving.dim), steps=30)
    assert run.basis is not None
    q = run.basis
    shrunk = []
    for j in range(1, run.steps):
        w = products[j - 1] - run.alphas[j - 1] * q[j - 1]
        if j > 1:
            w = w - run.betas[j - 2] * q[j - 2]
        before = float(w.norm())
        assert run.betas[j - 1] == pytest.approx(before, rel=1e-10)
        after = w - q[:j].T @ (q[:j] @ w)
        shrunk.append(float(after.norm()) / before)
    assert min(shrunk) < 0.9
    fixed = lanczos(toy(0)[0], random_start(moving.dim, seed=0, probe=0), steps=30)
    assert fixed.asymmetry < 1e-10 * fixed.alphas.max()


def test_only_a_beta_of_zero_stops_it() -> None:
    """P21: past breakdown it goes on with rounding; only the zero operator ends at once."""
    two_valued = SymmetricOperator.from_matrix(prescribed([1.0] * 30 + [2.0] * 30))
    assert lanczos(two_valued, random_start(N, seed=0, probe=0), steps=40).steps == 2
    assert released_lanczos(two_valued, steps=40).steps == 40
    zero: Callable[[Tensor], Tensor] = torch.zeros_like
    run = released_lanczos(SymmetricOperator(zero, N), steps=40)
    assert run.steps == 1
    assert run.ritz().values.tolist() == [0.0]


def test_every_step_is_one_product_and_the_probe_is_rademacher() -> None:
    """P36, P41: never more steps than parameters, one start vector for a seed."""
    seen: list[Tensor] = []
    matrix, ticks = indefinite(), []

    def product(v: Tensor) -> Tensor:
        seen.append(v.clone())
        return matrix @ v

    A = SymmetricOperator(product, N)
    run = released_lanczos(A, steps=7, seed=3, callback=ticks.append)
    assert len(seen) == run.steps == 7
    assert ticks == list(range(1, 8))
    entries = seen[0] * N**0.5
    assert bool(torch.isclose(entries.abs(), torch.ones(N, dtype=torch.float64), rtol=1e-5).all())
    again, other = released_lanczos(A, steps=7, seed=3), released_lanczos(A, steps=7, seed=4)
    assert np.array_equal(run.alphas, again.alphas)
    assert not np.array_equal(run.alphas, other.alphas)
    assert released_lanczos(A, steps=10 * N).steps <= N


@pytest.mark.parametrize(
    ("noise", "spread", "moves", "least", "most"),
    [
        pytest.param(0.3, 2.0, False, 0.0, 1e-3, id="fixed"),
        pytest.param(0.1, 0.0, True, 0.0, 0.15, id="draws of one size"),
        pytest.param(0.3, 2.0, True, 0.9, 1.1, id="draws of many sizes"),
    ],
)
def test_beta_is_a_ratchet_where_draws_put_curvature_elsewhere(
    noise: float, spread: float, moves: bool, least: float, most: float
) -> None:
    """β_{j+1} ≥ |⟨q_{j−1}, A_j q_j⟩ − α_j⟨q_{j−1}, q_j⟩ − β_j‖q_{j−1}‖²| / ‖q_{j−1}‖.

    By Cauchy and Schwarz, for β is taken before the orthogonalisation. A fixed symmetric A makes
    the inner product β_j, and the bound vanishes. With a new draw in every product it is the share
    of β that no later step can lose: small where all draws agree on the outliers, all of it where
    they do not; and only there is the ratio of the ends near 1.
    """
    operator = toy(0, noise=noise, spread=spread)[moves]
    products: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        products.append(operator @ v)
        return products[-1]

    run = released_lanczos(SymmetricOperator(product, operator.dim), steps=60)
    q, alphas, betas = run.basis, run.alphas, run.betas
    assert q is not None
    share = []
    for j in range(1, 59):
        square = float(q[j - 1] @ q[j - 1])
        inner = float(q[j - 1] @ products[j]) - alphas[j] * float(q[j - 1] @ q[j])
        share.append(abs(inner - betas[j - 1] * square) / square**0.5 / betas[j - 1])
    assert (betas[1:] >= np.array(share) * betas[:-1] * (1 - 1e-9)).all()
    assert least <= np.median(share) <= most
    near_one = abs(ratio(run.ritz().values)) > 0.9
    assert near_one == (least > 0.5)
