"""Trust a way of differentiating only after it has been compared with another, in float64.

Reverse-over-forward is silently wrong through LayerNorm and InstanceNorm, double backward through
`weight_norm`; other layers lack a formula. One product over a few samples tells: double backward is
held against a central difference of the gradient, the faster paths against double backward.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectra.errors import SpectraError
from spectra.hessian.objective import Objective
from spectra.hessian.products import ProductName

# The fastest first; the reference stands last and needs no comparison with itself.
_PREFERENCE: tuple[ProductName, ...] = (
    "reverse-over-forward",
    "forward-over-reverse",
    "double-backward",
)
_SAMPLES = 8
_AGREEMENT = 1e-8  # relative, between two exact float64 paths
_DIFFERENCE = 1e-2  # relative, against finite differences: kinks of ReLU lie between the two points


@dataclass(frozen=True)
class ProductChoice:
    """Which way of differentiating a model is used, and what it was compared with."""

    path: ProductName  # the fastest that passed
    reference: ProductName  # the slower one that it was compared with
    disagreement: float  # relative, in float64, of the two over a few samples
    finite_difference_error: float  # relative, of the reference against central differences
    refused: dict[str, str]  # paths that failed, and why


def choose_product(objective: Objective, *, path: ProductName | None = None) -> ProductChoice:
    """Compare the paths on a few samples in float64 and choose the fastest right one.

    Args:
        objective: the objective whose products are wanted.
        path: insist on this path instead of the fastest.

    Returns:
        The choice with its evidence.

    Raises:
        SpectraError: no path agrees with a finite difference of the gradient, or the path that was
            asked for does not.
    """
    count = len(objective.samples)
    index = torch.linspace(0, count - 1, min(_SAMPLES, count)).long()
    # A copy of its own, for the finite differences move its parameters.
    few = objective.select(torch.unique(index)).recut(batch_size=_SAMPLES, dtype=torch.float64)
    few = replace(few, network=copy.deepcopy(few.network), redraw=None)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(few.dim, generator=generator, dtype=torch.float64).to(few.device)
    truth = _central_difference(few, vector)

    products: dict[ProductName, Tensor] = {}
    refused: dict[str, str] = {}
    errors: dict[ProductName, float] = {}
    for name in _PREFERENCE:
        try:
            products[name] = few.product(vector, name)
        except SpectraError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            refused[name] = str(error).splitlines()[0][:160]
            continue
        errors[name] = min(_relative(products[name], estimate) for estimate, _ in truth)
        # A Hessian that is zero leaves nothing but the rounding of the gradients.
        if not any(
            float((products[name] - estimate).norm())
            <= _DIFFERENCE * float(estimate.norm()) + noise
            for estimate, noise in truth
        ):
            refused[name] = (
                f"{errors[name]:.0%} away from a finite difference of the gradient in float64"
            )
    right = [name for name in _PREFERENCE if name in products and name not in refused]
    if not right or (path is not None and path not in right):
        raise SpectraError(
            f"got a model whose Hessian-vector product is wrong or missing ({_explain(refused)}), "
            f"expected {path or 'one path'} to agree with finite differences: the spectrum would "
            "be that of no matrix; replace the layer at fault (weight_norm, grid_sample and "
            "fused kernels are known ones)"
        )
    reference = right[-1]
    for name in right:
        disagreement = _relative(products[name], products[reference])
        if disagreement < _AGREEMENT and path in (None, name):
            return ProductChoice(name, reference, disagreement, errors[reference], refused)
        refused[name] = f"{disagreement:.1e} away from {reference} in float64"
    raise SpectraError(
        f"got a request for {path}, which is wrong for this model ({_explain(refused)}); leave the "
        "choice to spectra"
    )


def _central_difference(few: Objective, vector: Float[Tensor, " n"]) -> list[tuple[Tensor, float]]:
    """Difference the gradient along a vector; each estimate comes with its rounding noise.

    Three steps, of which the best counts: a kink of ReLU may lie between the two points of one.
    """
    theta = {name: few.network.get_parameter(name) for name in few.parameters}
    start = {name: value.detach().clone() for name, value in theta.items()}
    size = float(torch.cat([value.reshape(-1) for value in start.values()]).norm())
    direction = few._split(vector)
    estimates = []
    for relative in (1e-4, 1e-5, 1e-6):
        step = relative * max(size, 1e-3) / float(vector.norm())
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for name, piece in direction.items():
                    theta[name].copy_(start[name] + sign * step * piece)
            sides.append(few.gradient())
        noise = 1e-13 * float(sides[0].norm() + sides[1].norm()) / step
        estimates.append(((sides[0] - sides[1]) / (2 * step), noise))
    with torch.no_grad():
        for name, value in start.items():
            theta[name].copy_(value)
    return estimates


def _relative(a: Tensor, b: Tensor) -> float:
    scale = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / scale if scale > 0 else 0.0


def _explain(refused: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in refused.items())
