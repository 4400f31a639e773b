"""The loss along a line, and at which distances it bends as the Hessian says.

Along w + tv, with a = ⟨v, ∇L(w)⟩,

    second difference   [L(w+tv) + L(w−tv) − 2L(w)] / t²      → vᵀHv as t → 0
    slope difference    [⟨v,∇L(w+tv)⟩ − ⟨v,∇L(w−tv)⟩] / 2t    → vᵀHv as t → 0

and at finite t both hold what the Hessian does not: the higher derivatives, and the kinks of ReLU.
A kink of slope J at distance s adds J(t−s)/t² and J/2t once t > s, and H knows nothing of it.
Small t is the rounding's: with u the unit roundoff, N samples of weights w_i, n parameters and σ
the noise of one evaluation, the errors are taken to be

    second difference  4δ/t²,  δ = 3σ + (1 + log₂ N) u max(|L(w)|, |L(w±tv)|) + 2u √Σw_i² / Σw_i
    slope difference    δ/t,   δ = 6σ + (1 + log₂ n) u ‖v‖ max ‖∇L(w±tv)‖

with σ the noise of the loss or of the slope. These are estimates, long ones, and no bounds. The
terms with the logarithms are those of the sums. A log-softmax rounds beside 1, however small the
loss: the last term, for independent samples, where the loss is one of ours. The rest is σ: the
third differences of evaluations so near together that a smooth L leaves nothing in them have the
variance 20 σ². Their median is taken, for a kink among them is no rounding. σ is measured at w and
at the far end where the loss, or its gradient, is larger, and taken to grow evenly in between: at
a minimum next to nothing rounds, and at its walls much. What rounds alike from end to end, as the
probabilities of samples with 1 − p < u/t, is not seen by σ. The slope difference resolves t some
thousand times smaller.

References:
    Moré, Wild, Estimating computational noise, SIAM J. Sci. Comput. 33 (2011),
    https://doi.org/10.1137/100786125
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spectra.doctor import Certificate, certify
from spectra.errors import SpectraError
from spectra.hessian import HessianOperator, Objective
from spectra.landscape.subject import choice_of, direction_in, objective_of
from spectra.losses import LossSpec

_NEAR = 12  # evaluations that the noise is measured from
_UNIT = 2.0**-53  # the unit roundoff of float64
_WIDER = 100.0  # how much farther apart they are taken where most of them are equal


@dataclass(frozen=True)
class Differences:
    """Hold the curvature along a line as seen from finite distances, beside that of the Hessian."""

    distances: Float64[np.ndarray, " t"]  # ascending, positive, in units of ‖v‖
    values: Float64[np.ndarray, " t"]
    errors: Float64[np.ndarray, " t"]  # of the rounding in each value, estimated
    curvature: float  # vᵀHv
    curvature_error: float  # its noise floor

    def agrees(self, *, tolerance: float = 0.0) -> np.ndarray:
        """Tell at which distances the value is vᵀHv within the error, and `tolerance` of |vᵀHv|."""
        allowed = self.errors + self.curvature_error + tolerance * abs(self.curvature)
        return np.asarray(np.abs(self.values - self.curvature) <= allowed)

    def agreement(
        self, *, tolerance: float = 0.0, resolution: float = 0.1
    ) -> tuple[float, float] | None:
        """Find over which distances the line bends as the Hessian says.

        Args:
            tolerance: a share of |vᵀHv| that a value may be off beside its error.
            resolution: the share of |vᵀHv| below which an error has to be for a value to count.

        Returns:
            The first distance that is resolved, and the last one before the first disagreement;
            None where the first disagrees already, or none is resolved.
        """
        resolved = self.errors < resolution * abs(self.curvature)
        agrees = self.agrees(tolerance=tolerance)[resolved]
        if not agrees.any() or not agrees[0]:
            return None
        last = len(agrees) if agrees.all() else int(np.argmin(agrees))
        distances = self.distances[resolved]
        return float(distances[0]), float(distances[last - 1])


@dataclass(frozen=True)
class Slice:
    """Hold the loss along w + tv, for t of both signs."""

    distances: Float64[np.ndarray, " t"]  # ascending, positive, in units of ‖v‖
    ahead: Float64[np.ndarray, " t"]  # L(w + tv)
    behind: Float64[np.ndarray, " t"]  # L(w − tv)
    loss: float  # L(w)
    slope: float  # a = ⟨v, ∇L(w)⟩
    norm: float  # ‖v‖
    second_difference: Differences
    slope_difference: Differences | None  # None where no slopes were asked for

    @cached_property
    def positions(self) -> Float64[np.ndarray, " p"]:
        """Give the signed distances from one end to the other, 0 among them, p = 2t + 1."""
        return np.concatenate([-self.distances[::-1], [0.0], self.distances])

    @cached_property
    def losses(self) -> Float64[np.ndarray, " p"]:
        """Give the losses at `positions`."""
        return np.concatenate([self.behind[::-1], [self.loss], self.ahead])

    @cached_property
    def bends(self) -> Float64[np.ndarray, " p"]:
        """Give L(w+tv) − L(w) − t·a at `positions`: what the tangent leaves."""
        return (self.losses - self.loss) - self.positions * self.slope


def loss_slice(
    subject: Objective | HessianOperator,
    direction: Float[Tensor, " n"],
    distances: Sequence[float] | Float[np.ndarray, " t"],
    *,
    dtype: torch.dtype = torch.float64,
    slopes: bool = False,
    certificate: Certificate | None = None,
) -> Slice:
    """Evaluate a loss along a line through the parameters, on fixed samples.

    Args:
        subject: whose loss; the operator of a class, or its objective.
        direction: (n,) v; it is not rescaled, so distances count in units of its norm.
        distances: (t,) positive, in any order; each is taken ahead and behind.
        dtype: precision of the losses. Gradients are float64 in any case, and so is vᵀHv, which
            is a certificate's.
        slopes: evaluate gradients at every distance, too, at about three times the cost.
        certificate: that of v, where it is known; made here when None.

    Returns:
        The losses, the tangent, and the curvature by differences and by the Hessian.

    Raises:
        SpectraError: a direction of another shape or none at all, a distance that is not positive,
            and what `choose_product` raises.
    """
    objective = objective_of(subject)
    size = objective.batch_size
    v = direction_in(objective, direction, "a direction")
    t = np.unique(np.asarray(distances, dtype=np.float64))
    if len(t) == 0 or not (np.isfinite(t).all() and t[0] > 0):
        raise SpectraError(
            f"got {len(t)} distances from {t.min(initial=0)} to {t.max(initial=0)}, expected "
            "positive numbers: each is taken in both directions, and the differences divide by it"
        )
    norm = float(torch.linalg.vector_norm(v))
    if certificate is None:
        certificate = certify(HessianOperator.of(objective, choice_of(subject)), v)
    theta, floor = certificate.rayleigh_quotient, certificate.noise_floor
    exact = _Line(objective.recut(batch_size=size, backwards=False, dtype=torch.float64), v)
    line = exact
    if dtype != torch.float64:
        line = _Line(objective.recut(batch_size=size, backwards=False, dtype=dtype), v)

    def beside_hessian(values: np.ndarray, errors: np.ndarray) -> Differences:
        return Differences(t, values, errors, norm**2 * theta, norm**2 * floor)

    slope = float(exact.slopes(np.zeros(1))[0][0])
    by_slopes = None
    if slopes:  # first: the losses come with the gradients
        (up, steep), (down, steep_behind) = exact.slopes(t), exact.slopes(-t)
        inner = norm * np.maximum(steep, steep_behind)
        inner *= (1 + math.log2(objective.dim)) * _UNIT
        noise = exact.noise(lambda at: exact.slopes(at)[0], t, steep, steep_behind)
        by_slopes = beside_hessian((up - down) / (2 * t), (6 * noise + inner) / t)
    loss, ahead, behind = float(line.losses(np.zeros(1))[0]), line.losses(t), line.losses(-t)
    # The differences from L(w) first: they are exact where the losses are close.
    second = ((ahead - loss) + (behind - loss)) / t**2
    largest = np.maximum(abs(loss), np.maximum(np.abs(ahead), np.abs(behind)))
    rounding = 3 * line.noise(line.losses, t, ahead, behind) + line.loss_rounding(largest)
    return Slice(
        distances=t,
        ahead=ahead,
        behind=behind,
        loss=loss,
        slope=slope,
        norm=norm,
        second_difference=beside_hessian(second, 4 * rounding / t**2),
        slope_difference=by_slopes,
    )


@dataclass(frozen=True)
class _Line:
    """Evaluate an objective along a line, and tell how it rounds there."""

    objective: Objective
    v: Float[Tensor, " n"]  # float64
    known: dict[float, tuple[float, float, float]] = field(default_factory=dict)  # L, ⟨v, ∇L⟩, ‖∇L‖

    def losses(self, at: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
        return np.array([self._loss(s) for s in at.tolist()])

    def _loss(self, s: float) -> float:
        return self.known[s][0] if s in self.known else self.objective.value(shift=s * self.v)

    def slopes(
        self, at: Float64[np.ndarray, " t"]
    ) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
        """Give ⟨v, ∇L⟩ and ‖∇L‖, and keep the losses that come with them."""
        for s in at.tolist():
            if s not in self.known:
                loss, g = self.objective.value_and_gradient(shift=s * self.v)
                self.known[s] = loss, float(torch.dot(self.v, g)), float(g.norm())
        found = np.array([self.known[s][1:] for s in at.tolist()])
        return found[:, 0], found[:, 1]

    def loss_rounding(self, size: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
        """Bound what the sums round, and a log-softmax, in losses of such a size."""
        count, weights = len(self.objective.samples), self.objective.weights
        relative = (1 + math.log2(count)) * size
        ours = isinstance(self.objective.loss, LossSpec)
        beside_one = 2 * float(weights.norm()) / self.objective.normalizer if ours else 0.0
        return np.asarray(self._roundoff * (relative + beside_one))

    def noise(
        self,
        f: Callable[[np.ndarray], np.ndarray],
        distances: Float64[np.ndarray, " t"],
        ahead: Float64[np.ndarray, " t"],
        behind: Float64[np.ndarray, " t"],
    ) -> Float64[np.ndarray, " t"]:
        """Estimate the standard deviation of the rounding in f at every distance.

        Args:
            f: what is rounded.
            distances: ascending, from w.
            ahead: what tells at which end f rounds more.
            behind: the same on the other side.
        """
        near = self._noise_at(f, 0.0, distances)
        held = np.nonzero(np.isfinite(ahead) & np.isfinite(behind))[0]
        if len(held) == 0:
            return np.full(len(distances), near)
        last = held[-1]
        end = float(distances[last]) * (1 if abs(ahead[last]) >= abs(behind[last]) else -1)
        far = max(near, self._noise_at(f, end, distances))
        return near + (far - near) * np.minimum(distances / abs(end), 1)

    def _noise_at(
        self,
        f: Callable[[np.ndarray], np.ndarray],
        place: float,
        distances: Float64[np.ndarray, " t"],
    ) -> float:
        """Estimate the standard deviation of the rounding in f near a place, on its inner side."""
        live = self.objective.rows.here().values()
        norm, inwards = float(self.v.norm()), -1 if place > 0 else 1
        size = max(1e-3, math.hypot(*(float(p.norm()) for p in live)) + abs(place) * norm)
        apart = self._roundoff ** (2 / 3) * size / norm
        apart = min(apart, float(distances[0])) if place == 0 else apart
        while True:
            values = f(place + inwards * np.arange(_NEAR) * apart)
            if len(np.unique(values)) > _NEAR // 2 or apart >= distances[-1]:
                break
            apart *= _WIDER  # so near together all round alike, farther apart they need not
        third = np.abs(np.diff(values, 3)) / math.sqrt(20)  # 20 = 1 + 9 + 9 + 1
        middle = float(np.median(third)) / 0.6745  # that of a normal deviate's modulus
        return middle if middle > 0 else float(np.sqrt(np.mean(third**2)))

    @property
    def _roundoff(self) -> float:
        return torch.finfo(self.objective.dtype).eps / 2
