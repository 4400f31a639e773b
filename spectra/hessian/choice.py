"""Trust a way of differentiating only after it has been compared with another, in float64.

Reverse-over-forward is silently wrong through LayerNorm and InstanceNorm, double backward through
`weight_norm`; other layers lack a formula. One product over a few samples tells: every path is held
against a central difference of the gradient, and the chosen one against another path. Both are
taken a little beside the model's own parameters, where no ReLU stands exactly on its kink.

Where a network keeps gradients from some parameters that its output depends on (`torch.no_grad`,
`detach`), all of this agrees, on the derivative of a gradient that is none: a matrix without
symmetry, whose quotients prove nothing. So a second product has to find it symmetric. And a sample
has to have the same logits alone as beside others, or no mean over samples is meant.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectra.choices import PathName
from spectra.errors import SpectraError, first_line
from spectra.hessian.network import by_itself, calling, culprit, forked_random_state, recopied
from spectra.hessian.objective import Objective
from spectra.krylov.operator import not_finite
from spectra.losses import as_loss

# The fastest first; the reference stands last and needs no comparison with itself.
_PREFERENCE: tuple[PathName, ...] = (
    "reverse-over-forward",
    "forward-over-reverse",
    "double-backward",
)
_SAMPLES = 8
_AGREEMENT = 1e-8  # relative, between two exact float64 paths
_DIFFERENCE = 1e-4  # relative, against finite differences
_SYMMETRIC = 1e-6  # relative, of vᵀHu and uᵀHv
_ROUNDING = 1e-13  # relative, of a product's sums
_ALONE = 1e-6  # relative, of a sample's logits alone and in a batch
_ASIDE = 1e-3  # how far from the model's parameters the paths are compared, relative to their size
_STEPS = (1e-4, 1e-6, 1e-8, 1e-9)  # of the differences: the small ones find no kink in between


@dataclass(frozen=True)
class ProductChoice:
    """Which way of differentiating a model is used, and what it was compared with."""

    path: PathName  # the fastest that passed
    reference: PathName  # the slower one that it was compared with
    disagreement: float  # relative, in float64, of the two over a few samples
    finite_difference_error: float  # relative, of the reference against central differences
    refused: dict[str, str]  # paths that failed, and why
    # A sample, by the fastest path, in float64 with few at once: hardly less than in the run.
    seconds: float = field(default=0.0, compare=False)
    conclusive: bool = True  # two steps of the differences agreed: no kink lay in between

    def second(self, device: torch.device) -> PathName:
        """Name another right path, for a float64 pass over many samples; the same if none is left.

        Not double backward on a GPU, where there is a third: to it a layer's weights are what a
        convolution gives whose kernel is a whole image's gradient, for which cuDNN has no way that
        fills a GPU.
        """
        others = [p for p in _PREFERENCE if p != self.path and p not in self.refused]
        return others[0] if device.type == "cuda" and others else self.reference

    def __str__(self) -> str:
        """Say in one line what was compared with what."""
        truth = (
            f"which is {self.finite_difference_error:.1e} from finite differences"
            if self.conclusive
            else "while finite differences did not agree among themselves (kinks, or no curvature)"
        )
        compared = f"{self.disagreement:.1e} (relative, float64) from {self.reference}"
        return f"{self.path}, {compared}, {truth}"


@by_itself
def choose_product(objective: Objective, *, path: PathName | None = None) -> ProductChoice:
    """Compare the paths on a few samples in float64 and choose the fastest right one.

    Args:
        objective: the objective whose products are wanted.
        path: insist on this path instead of the fastest.

    Returns:
        The choice with its evidence.

    Raises:
        SpectraError: no path agrees with a finite difference of the gradient, or the path that was
            asked for does not; a layer is random (it is named); a gradient is not finite, or none
            of the loss; samples depend on the others in their batch.
    """
    seen = torch.nonzero(objective.weights)[:, 0]
    index = seen[torch.linspace(0, len(seen) - 1, min(_SAMPLES, len(seen))).long()]
    # A copy of its own, for its parameters are moved; random layers draw from the global state.
    few = objective.select(index).recut(batch_size=_SAMPLES, dtype=torch.float64)
    few = replace(few, redraw=None)
    if few.network is objective.network:
        few = replace(few, network=recopied(few.network))
    with forked_random_state(few.device):
        choice = _compare(few, path)
        _require_alone(few)
        return choice


def _compare(few: Objective, path: PathName | None) -> ProductChoice:
    generator = torch.Generator().manual_seed(0)
    vector, aside = torch.randn(2, few.dim, generator=generator, dtype=torch.float64).to(few.device)
    vector = vector / vector.norm()
    _move(few, aside * (_ASIDE * _size(few) / aside.norm()))

    products: dict[PathName, Tensor] = {}
    refused: dict[str, str] = {}
    seconds: dict[PathName, float] = {}
    for name in _PREFERENCE:
        start = time.perf_counter()
        try:
            products[name] = few.product(vector, name)
        except (RuntimeError, NotImplementedError) as error:
            refused[name] = first_line(error)
        seconds[name] = (time.perf_counter() - start) / len(few.samples)
    truth, noise, conclusive = central_difference(few, vector)
    if not bool(torch.isfinite(truth).all()):
        raise not_finite("the gradient of the loss")
    # Too many kinks, or too little curvature, for differences: then two paths have to agree.
    right = [
        name
        for name, product in products.items()
        if float((product - truth).norm()) <= _DIFFERENCE * float(truth.norm()) + noise
        or (not conclusive and _confirmed(name, products))
    ]
    for name in products.keys() - set(right):
        refused[name] = (
            f"{relative(products[name], truth):.0%} away from a finite difference of the "
            "gradient in float64"
        )
    if not right or (path is not None and path not in right):
        raise _refusal(few, path, refused)
    for name in right if path is None else [path]:
        reference = next((other for other in reversed(right) if other != name), name)
        disagreement = relative(products[name], products[reference])
        if disagreement < _AGREEMENT or right == [name]:
            _require_symmetric(few, name, vector, products[name], noise)
            off = relative(products[reference], truth)
            for other in right:
                gap = relative(products[other], products[name])
                if gap >= _AGREEMENT:
                    refused.setdefault(other, f"{gap:.1e} away from {name} in float64")
            took = min(seconds[path] for path in right)  # the first one warmed torch up
            return ProductChoice(name, reference, disagreement, off, refused, took, conclusive)
        refused[name] = f"{disagreement:.1e} away from {reference} in float64"
    raise _refusal(few, path, refused)


@by_itself
def central_difference(
    objective: Objective, vector: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], float, bool]:
    """Difference the gradient along a unit vector, with the steps that agree best.

    Args:
        objective: in float64; its network is copied, for the parameters are moved.
        vector: (n,) of norm 1.

    Returns:
        The estimate of the product, the rounding in it, and whether two steps agree at all: a
        kink of ReLU between the two points of a step makes it useless.
    """
    few = replace(objective, network=recopied(objective.network))
    size = _size(few)
    estimates, noises = [], []
    at = 0.0
    for step in (relative * size for relative in _STEPS):
        sides = []
        for to in (step, -step):
            _move(few, (to - at) * vector)
            at = to
            sides.append(few.gradient())
        estimates.append((sides[0] - sides[1]) / (2 * step))
        noises.append(1e-13 * float(sides[0].norm() + sides[1].norm()) / step)
    pairs = zip(estimates, estimates[1:], noises, strict=False)
    spread, k = min((float((a - b).norm()), k) for k, (a, b, _) in enumerate(pairs))
    noise = noises[k + 1]
    return estimates[k], noise, spread <= _DIFFERENCE * float(estimates[k].norm()) + noise


def _size(few: Objective) -> float:
    return max(1e-3, float(torch.cat([p.reshape(-1) for p in few.rows.here().values()]).norm()))


def _move(few: Objective, direction: Float[Tensor, " n"]) -> None:
    with torch.no_grad():
        for name, piece in few.rows.direction(direction).items():
            few.network.get_parameter(name).add_(piece)


def random_layer(objective: Objective) -> str | None:
    """Name the first layer whose output changes from pass to pass over a few samples."""
    few = objective.samples.select(slice(0, _SAMPLES))
    with objective.arithmetic(), calling(widened=objective.widened):
        return culprit(objective.network, few.prepared(objective.dtype, objective.device))


def _require_symmetric(
    few: Objective, path: PathName, vector: Tensor, product: Tensor, noise: float
) -> None:
    """Refuse a gradient that leaves out what the loss depends on: its derivative lacks symmetry."""
    size = float(product.norm())
    if size == 0.0:
        _require_moved(few)
        return
    there = few.product(product / size, path)
    defect = abs(float(vector @ there) - size)
    if defect <= _SYMMETRIC * size + noise:
        return
    # Samples that are fitted to the last bits have products of rounding, in which p − 1 is small
    # beside the logits' own derivatives.
    logits = of_logits(few).product(vector, path)
    if defect <= _ROUNDING * float(logits.norm()):
        return
    gradients = few.rows.split(few.gradient())
    without = [name for name, part in gradients.items() if not bool(part.any())]
    listed = f" (none reaches {', '.join(without[:3])})" if without else ""
    raise SpectraError(
        f"got a model that keeps gradients from parameters which its loss depends on{listed}, "
        f"expected autograd's gradient to be that of the loss: its derivative is no Hessian "
        f"(vᵀHu and uᵀHv differ by {defect / size:.1e}), and would prove negative curvature "
        "where there is none; parameters under torch.no_grad or detach need requires_grad_(False)"
    )


def _logits_alone(logits: Tensor, _: Tensor) -> Tensor:
    """Give Σ z²/2 + |z|, both of whose derivatives by the logits z are 1 and more in size."""
    flat = logits.reshape(len(logits), -1)
    flat = torch.where(flat.isfinite(), flat, 0)  # a mask has no derivatives
    return (flat.square() / 2 + flat.abs()).sum(1)


LOGITS = as_loss(_logits_alone)


def of_logits(objective: Objective) -> Objective:
    """Take a loss's place by a function of the logits with derivatives of their own size."""
    return replace(objective, loss=LOGITS)


def _require_moved(few: Objective) -> None:
    """Refuse a network whose outputs stay when all its parameters move: it runs another's."""
    x = few.samples.prepared(few.dtype, few.device)
    network = recopied(few.network)
    with few.arithmetic(), torch.no_grad():
        before = few.logits(x)
        for parameter in network.parameters():
            parameter.add_(torch.rand_like(parameter).add_(0.1))
        after = replace(few, network=network).logits(x)
    if torch.equal(before, after):
        raise SpectraError(
            "got a network whose outputs do not depend on its parameters, expected ones that do: "
            "its Hessian would be zero; a `forward` that calls another module (the original of a "
            "copy, a closure) runs that one's parameters: make it a method of its own class"
        )


def _require_alone(few: Objective) -> None:
    """Refuse a network that gives a sample other logits in other company."""
    x = few.samples.prepared(few.dtype, few.device)
    with few.arithmetic(), torch.no_grad():
        alone = torch.cat([few.logits(x[i : i + 1]) for i in range(len(x))])
        gap = relative(few.logits(x), alone)
        coupled = gap > _ALONE and random_layer(few) is None
    if coupled:
        raise SpectraError(
            f"got a model whose output for a sample depends on the others in its batch ({gap:.1e} "
            "from the one alone), expected one that takes each by itself: the Hessian would "
            "depend on how the data are cut into batches; use statistics that are kept, or take "
            "them over the features of a sample"
        )


def _confirmed(name: PathName, products: dict[PathName, Tensor]) -> bool:
    return any(
        other != name and relative(products[name], product) < _AGREEMENT
        for other, product in products.items()
    )


def _refusal(few: Objective, path: PathName | None, refused: dict[str, str]) -> SpectraError:
    layer = random_layer(few)
    if layer is not None:
        return SpectraError(
            f"got a model whose {layer} gives another output in every pass, expected a fixed "
            "function of the parameters: every product would be with another matrix; take the "
            "randomness out (F.dropout needs training=self.training)"
        )
    why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    return SpectraError(
        f"got a model whose Hessian-vector product is wrong or missing ({why}), expected "
        f"{path or 'one path'} to agree with finite differences and other paths: the spectrum "
        "would be that of no matrix; replace the layer at fault (weight_norm, custom autograd "
        "functions and fused kernels are known ones), or leave the choice of the path to spectra"
    )


def relative(a: Tensor, b: Tensor) -> float:
    """Measure how far two vectors are apart, beside the longer one; 0 where both are zero."""
    scale = max(float(a.norm()), float(b.norm()))
    gap = float((a - b).norm())  # NaN where either has one, and that is no agreement
    return gap / scale if scale > 0 else gap
