"""Examine an operator before a Lanczos step is spent on it, and certify what came out.

With v a random unit vector, w = Av and u = w/‖w‖, a fixed symmetric matrix has

    A v = w again               repeatability  ‖Av − w‖ / ‖w‖
    vᵀ(A u) = uᵀ(A v) = ‖w‖      asymmetry      |vᵀAu − ‖w‖| / ‖w‖
    A(v + 2u) = w + 2Au         nonlinearity   ‖A(v+2u) − w − 2Au‖ / max(‖A(v+2u)‖, ‖w‖)

u is taken along w because uᵀAv is then as large as it can be, and no small number is divided by.

The certificate of a unit vector y is its Rayleigh quotient θ = yᵀHy, recomputed in float64 by
another way of differentiating, over other batches. θ ≥ λmin for every y, so θ + noise floor < 0
proves negative curvature. The noise floor, an estimate and a long one, is

    ‖Hy − H'y‖ + δ + (n + N)·2⁻⁵³·max(√n ‖Hz‖, ‖Hy‖) + 2⁻⁵²·s²·‖Gy‖,   z a random unit vector

where H' is a second float64 pass along another path and over other batches (where one path alone
is right for the model, a central difference of the gradient, with its own noise δ); |θ − θ'| ≤
‖Hy − H'y‖, and the norm, unlike the difference of two numbers, is not small by accident. The third
term is for the inner product over n parameters and the sum over N samples; it is taken at the size
of H (n ‖Hz‖² is its squared Frobenius norm on average) and not of Hy, for a y in the null space has
nothing but rounding in Hy. The rounding inside the network is what the disagreement of the two
passes measures, but for what both have in common. That is the forward pass, whose own rounding
moves the point at which both differentiate: where a network subtracts nearly equal numbers, and the
curvature is due to their difference, its sign could be wrong, and nothing here would tell. And a
softmax gives probabilities that are off by 2⁻⁵³, however near to 0 and 1, so that samples which are
fitted to the last bits have curvatures of rounding. G is the Hessian of Σ z²/2 + |z|, whose
derivatives by the logits z are 1 and more in size where such a sample's are off by 2⁻⁵³; s is the
scale of a cosine head that the loss names (one inside a given function is not seen), 1 otherwise.
‖Hy − θy‖ says that *some* eigenvalue lies within it of θ, no more.

References:
    B. Parlett, "The Symmetric Eigenvalue Problem", SIAM 1998, ch. 4,
    https://doi.org/10.1137/1.9781611971163
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectra.hessian import HessianOperator, Objective
from spectra.hessian.choice import central_difference, of_logits, random_layer
from spectra.hessian.network import forked_random_state
from spectra.krylov import SymmetricOperator, random_start
from spectra.writing import at_most, number, with_error

PRODUCTS_PER_EXAMINATION = 5
PRODUCTS_PER_CERTIFICATE = 4  # two of them in float64
CERTIFICATE_COST = 14  # in products of the fast path: two passes in float64, two plain
_SMALLEST = torch.finfo(torch.float64).tiny  # a zero operator has a noise floor, too
_ORDINARY = 1e-4  # relative: what float32 allows by itself
_DOCTORS_PROBE = 2**64 - 1  # the examination's start vector is none of the Lanczos probes'


@dataclass(frozen=True)
class Examination:
    """What an operator did when it was asked twice."""

    fixed_operator: bool
    repeatability: float  # relative
    asymmetry: float  # relative
    nonlinearity: float  # relative
    rounding: float  # relative: the same sum over other batches; eps of the dtype at least
    culprit: str | None  # what makes it move, where that is known

    def noise_floor(self, scale: float) -> float:
        """Turn the largest relative defect into eigenvalue units, at the size of the spectrum."""
        return max(self.repeatability, self.asymmetry, self.nonlinearity, self.rounding) * scale

    def __str__(self) -> str:
        """Say in one line what was found."""
        named = "" if self.culprit is None else f" ({self.culprit})"
        found = "fixed" if self.fixed_operator else f"not a fixed symmetric matrix{named}"
        parts = ("repeatability", "asymmetry", "nonlinearity", "rounding")
        return f"{found}: " + ", ".join(f"{name} {getattr(self, name):.1e}" for name in parts)


@dataclass(frozen=True)
class Certificate:
    """An upper bound of λmin that does not depend on how its vector was found."""

    operator: str  # whose quotient this is: "none" (no augmentation), "frozen:5"
    dtype: str
    rayleigh_quotient: float  # θ = yᵀHy ≥ λmin
    residual: float  # ‖Hy − θy‖: some eigenvalue lies within it of θ
    noise_floor: float
    negative_curvature: bool  # θ + noise floor < 0: proven
    # Of the operator that Lanczos ran on, in its precision: holds with 95 % over the random start;
    # None where worth nothing.
    lower_bound_95: float | None

    def __str__(self) -> str:
        """Say in one line what is proven, of which operator."""
        found = "" if self.negative_curvature else "no "
        theta = f"yᵀHy {with_error(self.rayleigh_quotient, self.noise_floor)}"
        bound = self.lower_bound_95
        below = "" if bound is None else f", λmin > {at_most(bound, 6)} (95 %)"
        drawn = "" if self.operator == "none" else f" over {self.operator}"
        found += f"negative curvature proven{drawn}"
        return f"{found}: {theta} in {self.dtype}, residual {number(self.residual, 1)}{below}"


def examine(operator: SymmetricOperator, *, seed: int = 0) -> Examination:
    """Tell whether an operator is a fixed symmetric matrix, and what moves it if not.

    Args:
        operator: what Lanczos is to run on; five products are spent.
        seed: of the random test vector.

    Returns:
        The defects, relative to the size of the product.
    """
    with forked_random_state(operator.device):  # a random layer draws from the global state
        return _examine(operator, seed)


def _examine(operator: SymmetricOperator, seed: int) -> Examination:
    v = random_start(
        operator.dim, seed=seed, probe=_DOCTORS_PROBE, dtype=operator.dtype, device=operator.device
    )
    v = v / v.norm()
    w = operator @ v
    size = _norm(w)
    tiny = torch.finfo(operator.dtype).eps
    if size == 0.0:
        again = _norm(operator @ v)
        moves = again != 0.0
        return Examination(not moves, float(moves), 0.0, 0.0, tiny, None)
    u = w / size
    au = operator @ u
    repeated = _norm((operator @ v) - w) / size
    asymmetry = abs(_dot(v, au) - size) / size
    both = operator @ (v + 2 * u)
    nonlinearity = _norm(both - w - 2 * au) / max(_norm(both), size)
    rounding = tiny
    if isinstance(operator, HessianOperator) and operator.objective.redraw is None:
        other = operator.objective.recut().product(v, operator.choice.path)
        rounding = max(tiny, _norm(other - w) / size)
    tolerance = min(5e-2, max(1e-10, 1e3 * (2**-11 if _uses_tf32(operator) else tiny)))
    # A sum that other batches change more is not expected to be symmetric and linear to less.
    ordinary = min(_ORDINARY, 10 * rounding)
    fixed = repeated <= tolerance and max(asymmetry, nonlinearity) <= max(tolerance, ordinary)
    found = None if fixed else _find_culprit(operator)
    return Examination(fixed, repeated, asymmetry, nonlinearity, rounding, found)


def certify(
    operator: HessianOperator,
    vector: Float[Tensor, " n"],
    *,
    name: str = "none",
    lower_bound_95: float | None = None,
) -> Certificate:
    """Recompute the Rayleigh quotient of a vector in two independent float64 passes.

    Four products are spent: two in float64, and two in the operator's own precision that measure
    its size and G's; more where the second one has to be differenced.

    Args:
        operator: the fixed operator; only what it is the Hessian of is used, not its products.
        vector: (n,) any nonzero vector; the Ritz vector of λmin gives the sharpest bound.
        name: how the operator is called in the certificate.
        lower_bound_95: a probabilistic lower bound to be passed on.

    Returns:
        The certificate.
    """
    choice = operator.choice
    objective = replace(operator.objective, redraw=None)
    first, y, hy = _exact_product(operator, vector)
    theta = _dot(y, hy)
    # One sample more at once than the first pass: the cuts differ wherever they can.
    second = first.recut(batch_size=first.batch_size + 1, backwards=False)
    # The same rounding twice would agree with itself.
    if choice.path == choice.second(objective.device):
        other, noise, _ = central_difference(second, y)
    else:
        other, noise = second.product(y, choice.path), 0.0
    z = random_start(
        objective.dim, seed=0, probe=_DOCTORS_PROBE, dtype=objective.dtype, device=objective.device
    )
    size = objective.dim**0.5 * _norm(objective.product(z, choice.path))
    operations = objective.dim + objective.count
    floor = _norm(hy - other) + noise + operations * 2.0**-53 * max(size, _norm(hy), _SMALLEST)
    logits = of_logits(objective).product(y.to(objective.dtype), choice.path)
    floor += 2.0**-52 * getattr(objective.loss, "scale", 1.0) ** 2 * _norm(logits)
    return Certificate(
        name,
        "float64",
        theta,
        _norm(hy - theta * y),
        floor,
        theta + floor < 0,
        lower_bound_95,
    )


def rayleigh_quotient(operator: HessianOperator, vector: Float[Tensor, " n"]) -> float:
    """Recompute yᵀHy in one float64 pass, for an end that needs no certificate.

    Args:
        operator: as in `certify`.
        vector: (n,) any nonzero vector y; taken with its norm divided out.
    """
    _, y, hy = _exact_product(operator, vector)
    return _dot(y, hy)


def _exact_product(
    operator: HessianOperator, vector: Float[Tensor, " n"]
) -> tuple[Objective, Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Give the float64 objective that made it, the unit vector y, and Hy by another path."""
    objective = replace(operator.objective, redraw=None)
    y = vector.detach().to(device=objective.device, dtype=torch.float64)
    y = y / y.norm()
    exact = objective.recut(dtype=torch.float64, backwards=True)
    return exact, y, exact.product(y, operator.choice.second(exact.device))


def _find_culprit(operator: SymmetricOperator) -> str | None:
    if not isinstance(operator, HessianOperator):
        return None
    objective = operator.objective
    if objective.redraw is not None:
        return "the augmentation is drawn again in every product"
    layer = random_layer(objective)
    return None if layer is None else f"the output of {layer} changes from pass to pass"


def _uses_tf32(operator: SymmetricOperator) -> bool:
    return isinstance(operator, HessianOperator) and operator.objective.tf32


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))
