"""Stochastic Lanczos quadrature: the eigenvalue density of A and what follows from it, with errors.

For a random unit vector v, E[n vᵀ f(A) v] = tr f(A). A Lanczos run of m steps from v gives nodes
θ_i (Ritz values) and weights w_i = s_1i² (Σ w_i = 1) with

    vᵀ f(A) v ≈ Σ_i w_i f(θ_i),   exact for polynomials f of degree below 2m.

Each probe v is one independent sample of such a sum. Standard errors are the scatter of the probes
(three at least, else unknown), intervals use Student's t.

References:
    Ubaru, Chen, Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, 2017
    (https://doi.org/10.1137/16M1104974);
    Chen, Trogdon, Ubaru, Analysis of stochastic Lanczos quadrature for spectrum approximation,
    2021 (https://arxiv.org/abs/2105.06595).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.special import ndtr, stdtrit
from torch import Tensor

from spectra.errors import SpectraError
from spectra.krylov.lanczos import Tridiagonal, lanczos
from spectra.krylov.operator import SymmetricOperator

Distribution = Literal["gaussian", "rademacher"]
Kernel = Literal["default", "paper"]

WIDTH = 0.05  # kernel σ on the axis asinh(x / linear zone): 5 % of a node far from zero
LINEAR = 1e-3  # the linear zone around zero, as a share of the largest modulus
AROUND = np.array([-5, -3, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 3, 5])  # in σ: a kernel's shape
MOST_NODES = 1000  # with such points around them
EXTRA_PROBES = 2**32  # number of the first one-product probe; Lanczos probes count from 0


def random_start(
    n: int,
    *,
    seed: int,
    probe: int,
    distribution: Distribution = "gaussian",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " n"]:
    """Draw a random unit vector that depends on (seed, probe) alone.

    The pair is the key of a counter-based CPU generator: distinct pairs have distinct streams
    (torch's own CPU generator keeps only 32 bits of a seed). The draw is float64 and then cast,
    so that every device and dtype sees the same probe.

    Args:
        n: length.
        seed: of the analysis, 0 to 2^64 - 1.
        probe: number of the probe, likewise.
        distribution: "gaussian" is uniform on the sphere (bounds need that), "rademacher" ±1/√n.
        dtype: of the result.
        device: of the result.

    Raises:
        SpectraError: if seed or probe is out of range, or the distribution unknown.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011
        (https://doi.org/10.1145/2063384.2063405).
    """
    if not (0 <= seed < 2**64 and 0 <= probe < 2**64):
        raise SpectraError(
            f"got seed={seed}, probe={probe}, expected both from 0 to 2**64 - 1: they are the key "
            "of the random numbers, and wrapping them would make probes collide; choose others"
        )
    random = np.random.Generator(np.random.Philox(key=np.array([seed, probe], dtype=np.uint64)))
    if distribution == "gaussian":
        draw: np.ndarray = random.standard_normal(n)
    elif distribution == "rademacher":
        draw = random.integers(2, size=n) * 2.0 - 1.0
    else:
        raise _unknown("distribution", distribution, "'gaussian' or 'rademacher'")
    return torch.from_numpy(draw / np.linalg.norm(draw)).to(device, dtype)


@dataclass(frozen=True)
class Estimate:
    """Hold a mean over independent samples, with its standard error where it is known."""

    value: float
    stderr: float | None  # None below three samples
    samples: int

    @classmethod
    def of(cls, samples: Float64[np.ndarray, " p"]) -> Estimate:
        """Average p independent samples."""
        p = len(samples)
        stderr = float(np.std(samples, ddof=1) / np.sqrt(p)) if p >= 3 else None
        return cls(float(np.mean(samples)), stderr, p)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Give Student's t confidence interval, or None where the standard error is unknown."""
        if self.stderr is None:
            return None
        reach = float(stdtrit(self.samples - 1, (1 + level) / 2)) * self.stderr
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class Density:
    """Hold a density over a grid (or its integral, from `cumulative`), with its 95 % band."""

    grid: Float64[np.ndarray, " g"]
    mean: Float64[np.ndarray, " g"]  # over the probes
    low: Float64[np.ndarray, " g"] | None  # band of that mean, pointwise, Student's t;
    high: Float64[np.ndarray, " g"] | None  # None below three probes


@dataclass(frozen=True)
class SpectralMeasure:
    """Hold the quadrature of every probe; all else is computed from it without a product."""

    nodes: tuple[Float64[np.ndarray, " _"], ...]  # (m_p,) Ritz values of probe p, ascending
    weights: tuple[Float64[np.ndarray, " _"], ...]  # (m_p,) not negative, sum 1
    dim: int  # n

    @classmethod
    def from_tridiagonals(cls, runs: Sequence[Tridiagonal], dim: int) -> SpectralMeasure:
        """Collect the quadratures of Lanczos runs that started from independent random probes."""
        ritz = [run.ritz() for run in runs]
        return cls(tuple(r.values for r in ritz), tuple(r.first**2 for r in ritz), dim)

    @property
    def support(self) -> tuple[float, float]:
        """Tell the smallest and the largest node of all probes."""
        return min(float(x[0]) for x in self.nodes), max(float(x[-1]) for x in self.nodes)

    def probe_moments(self, k: int) -> Float64[np.ndarray, " p"]:
        """Give vᵀ Aᵏ v of each probe v; exact for k < 2m."""
        return self._sums(lambda x: x**k)

    def moment(self, k: int) -> Estimate:
        """Estimate tr(Aᵏ)/n."""
        return Estimate.of(self.probe_moments(k))

    def trace(self) -> Estimate:
        """Estimate tr(A) from these probes alone.

        A few of them scatter widely. `trace_estimate` takes what a run's T knows and adds one
        product for each of some further vectors (`known_forms`, `quadratic_form_probes`).
        """
        return Estimate.of(self.dim * self.probe_moments(1))

    def mass_below(self, threshold: float) -> Estimate:
        """Estimate the share of the n eigenvalues that lie below the threshold.

        The standard error is the scatter among probes; that a quadrature cannot tell where between
        two nodes the mass lies comes on top.
        """
        return Estimate.of(self._sums(lambda x: np.where(x < threshold, 1.0, 0.0)))

    def mass_bounds(self, threshold: float) -> tuple[float, float]:
        """Bracket what `mass_below` reads off: nodes beside the threshold stand for both sides.

        With the weights w of a Gauss quadrature, the measure below its k-th node is at least
        w_1 + ... + w_(k-1) and up to it at most w_1 + ... + w_k (Chebyshev, Markov, Stieltjes);
        between two nodes that leaves the weights of both. Mean over the probes.

        References:
            Szegő, Orthogonal Polynomials, 1975, section 3.41
        """
        sums = [np.concatenate(([0.0, 0.0], np.cumsum(w), [1.0, 1.0])) for w in self.weights]
        below = [int(np.searchsorted(x, threshold)) for x in self.nodes]
        low = np.mean([total[k] for total, k in zip(sums, below, strict=True)])
        high = np.mean([min(1.0, total[k + 2]) for total, k in zip(sums, below, strict=True)])
        return float(low), float(high)

    def density(self, grid: Float64[np.ndarray, " g"], kernel: Kernel = "default") -> Density:
        """Smooth the weights with Gaussians: φ(x) = Σ_i w_i N(x; θ_i, σ_i²).

        Nothing is renormalised: over any interval the density integrates to the difference of
        `cumulative(..., kernel)` at its ends.

        Args:
            grid: (g,) eigenvalue axis, in any order.
            kernel: "default" has σ_i = 0.05 hypot(θ_i, 0.001 max|θ|), which is a constant width
                on `symlog_grid` and follows the scale of A; "paper" has the published figures'
                σ² = 1e-5 max(1, λmax - λmin).
        """
        root = np.sqrt(2 * np.pi)
        return self._curve(grid, kernel, lambda z, s: np.exp(-0.5 * z * z) / (s * root), np.inf)

    def cumulative(self, grid: Float64[np.ndarray, " g"], kernel: Kernel | None = None) -> Density:
        """Sum the weights up to each grid point: the distribution function, within [0, 1].

        Args:
            grid: (g,) eigenvalue axis, in any order.
            kernel: None for plain steps, else the integral of `density` with that kernel.
        """
        if kernel is None:
            return self._curve(grid, "default", lambda z, s: np.where(z >= 0, 1.0, 0.0), 1.0)
        return self._curve(grid, kernel, lambda z, s: np.asarray(ndtr(z)), 1.0)

    def curve(
        self, kernel: Kernel = "default"
    ) -> tuple[Float64[np.ndarray, " g"], Float64[np.ndarray, " g"]]:
        """Give a grid, with points at every node, and the mean density over it, ready to plot."""
        grid = np.union1d(self.symlog_grid(), self.around_nodes(kernel))
        return grid, self.density(grid, kernel).mean

    def around_nodes(self, kernel: Kernel = "default") -> Float64[np.ndarray, " g"]:
        """List points at the nodes and closely around: between those of a grid a kernel may hide.

        Beside nodes within half a σ of each other they lie around one of them, and where more than
        `MOST_NODES` are left around those that stand most alone. The nodes themselves are all among
        them, but where they are ten times as many.
        """
        nodes = np.unique(np.concatenate(self.nodes))
        apart: list[float] = []
        for node, sigma in zip(nodes, self._sigma(nodes, kernel), strict=True):
            if not apart or node - apart[-1] > sigma / 2:
                apart.append(node)
        alone = np.array(apart)
        sigma = self._sigma(alone, kernel)
        gaps = np.diff(alone, prepend=-np.inf, append=np.inf)
        first = np.argsort(-np.minimum(gaps[:-1], gaps[1:]) / sigma, kind="stable")[:MOST_NODES]
        points: np.ndarray = alone[first, None] + sigma[first, None] * AROUND
        return np.union1d(points, nodes if len(nodes) <= 10 * MOST_NODES else [])

    def symlog_grid(self, points: int | None = None) -> Float64[np.ndarray, " g"]:
        """Lay a symlog axis over the support that resolves and contains the default kernel."""
        low, high = self.support
        pad = 5 * self._sigma(np.array([low, high]), "default")
        return symlog_grid(low - pad[0], high + pad[1], LINEAR * self._scale, points)

    @property
    def _scale(self) -> float:
        return max(map(abs, self.support)) or 1.0  # the zero operator has no scale of its own

    def _sigma(self, nodes: np.ndarray, kernel: Kernel) -> np.ndarray:
        if kernel == "default":
            return np.asarray(WIDTH * np.hypot(nodes, LINEAR * self._scale))
        if kernel == "paper":
            low, high = self.support
            return np.full_like(nodes, np.sqrt(1e-5 * max(1.0, high - low)))
        raise _unknown("kernel", kernel, "'default' or 'paper'")

    def _sums(self, f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        pairs = zip(self.nodes, self.weights, strict=True)
        return np.stack([np.asarray(f(x) @ w) for x, w in pairs])

    def _curve(
        self,
        grid: np.ndarray,
        kernel: Kernel,
        value: Callable[[np.ndarray, np.ndarray], np.ndarray],  # of (x - θ)/σ and σ
        ceiling: float,
    ) -> Density:
        def at_grid(x: np.ndarray) -> np.ndarray:
            sigma = self._sigma(x, kernel)
            return value((grid[:, None] - x) / sigma, sigma)

        values = self._sums(at_grid)
        mean, p = values.mean(axis=0), len(values)
        if p < 3:
            return Density(grid, mean, None, None)
        reach = stdtrit(p - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(p)
        return Density(grid, mean, np.maximum(mean - reach, 0), np.minimum(mean + reach, ceiling))


def symlog_grid(
    low: float, high: float, linear: float, points: int | None = None
) -> Float64[np.ndarray, " g"]:
    """Lay a grid that is linear near zero and logarithmic far off: even in asinh(x / linear).

    Args:
        low: left end.
        high: right end.
        linear: half-width of the linear zone, > 0.
        points: g; by default four to a kernel width.
    """
    left, right = np.arcsinh(low / linear), np.arcsinh(high / linear)
    points = points or int(np.ceil((right - left) / (WIDTH / 4))) + 1
    return np.asarray(linear * np.sinh(np.linspace(left, right, points)))


def spectral_measure(
    A: SymmetricOperator,
    *,
    steps: int = 100,
    probes: int = 1,
    seed: int = 0,
    distribution: Distribution = "gaussian",
    callback: Callable[[int], None] | None = None,
) -> SpectralMeasure:
    """Run Lanczos from the probes 0, 1, ... of a seed, holding one basis at a time.

    Args:
        A: the operator, of size n.
        steps: Krylov steps m per probe, at most n are made.
        probes: number of random starts; error bars need three.
        seed: names the probes, see `random_start`.
        distribution: of their entries.
        callback: called after each product with its number within the probe.

    Raises:
        SpectraError: if probes < 1, and what `lanczos` raises.
    """
    if probes < 1:
        raise SpectraError(f"got probes={probes}, expected 1 or more: nothing would be measured")
    runs = [
        lanczos(A, _start(A, seed, p, distribution), steps=steps, callback=callback).without_basis()
        for p in range(probes)
    ]
    return SpectralMeasure.from_tridiagonals(runs, A.dim)


def _start(A: SymmetricOperator, seed: int, probe: int, distribution: Distribution) -> Tensor:
    return random_start(
        A.dim, seed=seed, probe=probe, distribution=distribution, dtype=A.dtype, device=A.device
    )


def _unknown(what: str, got: str, expected: str) -> SpectraError:
    return SpectraError(
        f"got {what}={got!r}, expected {expected}: nothing else is defined; choose one of them"
    )
