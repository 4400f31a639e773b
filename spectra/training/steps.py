"""SGD's step, and the gradients that it can follow: taken at w, or near it.

With the batch's loss L(w) = Σ aᵢℓᵢ, aᵢ = wᵢ/Σw, its part L_t over the samples of rare classes and
its part L_h over the others, norms taken over all parameters at once, and g/‖g‖ short for
g/(‖g‖₂ + 1e-12):

    sgd      ∇L(w)
    sam      ∇L(w + e), e = ρ·g/‖g‖, g = ∇L(w); adaptive: e = ρ·w²g/‖wg‖, entry by entry
    pgd      ∇L(w), after w ← w + r‖w‖·ξ, ξ uniform in the unit ball, if the last gradient's norm
             was at most a threshold and the last perturbation is `interval` steps old; the trainer
             lets r fall with the learning rate η: in PGD r ∝ η, in its stochastic form η·ξ is added
    lpf-sgd  mean over M parts of the batch of ∇L(w + γ·ε), the standard deviation of ε a filter's
             norm (a vector's for biases and batch norm)
    imbsam   ∇L_h(w) + 2∇L_t(w + e), e = ρ·g_t/‖g_t‖, g_t = 2∇L_t(w): the published 1/B and 2/B
    sse-sam  ∇L_h(w + e_h) + ∇L_t(w + e_t), each climbing its own loss by its own radius

Only pgd moves w for good; the others put its bits back. The first pass is at w, gives the loss and
the logits that are logged, and alone moves the batch norms' statistics. No step waits for the
device, and none has a batch-dependent shape, so that each can be recorded as one CUDA graph.

References:
    Foret et al., SAM, https://arxiv.org/abs/2010.01412
    Kwon et al., ASAM, https://arxiv.org/abs/2102.11600
    Jin et al., How to escape saddle points efficiently (PGD), https://arxiv.org/abs/1703.00887
    Jin et al., its stochastic form, https://arxiv.org/abs/1902.04811
    Bisla et al., Low-pass filtering SGD, https://arxiv.org/abs/2201.08025
    ImbSAM, https://github.com/cool-xuan/Imbalanced_SAM
    Lyu et al., SSE-SAM, https://arxiv.org/abs/2412.13715
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..networks import filter_axes, filter_norms

STEPS = ("sgd", "sam", "pgd", "lpf-sgd", "imbsam", "sse-sam")
Gradient = list[Tensor | None]  # None: the loss does not depend on this parameter


@dataclass
class Pass:
    """What one forward pass over a batch gives."""

    shares: Float[Tensor, " n"]  # wᵢℓᵢ
    total: Float[Tensor, ""]  # Σw over the whole batch
    logits: Float[Tensor, "n classes"]

    def loss(self, among: Bool[Tensor, " n"] | None = None) -> Float[Tensor, ""]:
        """Add up Σ aᵢℓᵢ over the batch, or over some of its samples; over none it is 0."""
        shares = self.shares if among is None else torch.where(among, self.shares, 0)
        return shares.sum() / self.total


# Runs the network on the current batch, or on a slice of it.
Forward = Callable[[slice], Pass]
WHOLE = slice(None)


@dataclass
class Weights:
    """The parameters w of a network: gradients there, and visits to places nearby."""

    network: nn.Module
    still: bool = True  # whether only the pass at w moves batch-norm statistics

    def __post_init__(self) -> None:
        named = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [p for _, p in named]
        axes = filter_axes(self.network)
        self.axes = [axes[name] for name, _ in named]  # of the filters in each parameter

    def gradient(self, loss: Tensor, *, keep: bool = False) -> Gradient:
        """Differentiate a loss; `keep` its graph if another one shares it."""
        return list(
            torch.autograd.grad(loss, self.parameters, retain_graph=keep, allow_unused=True)
        )

    @contextmanager
    def moved(self, direction: Sequence[Tensor | None], scale: Tensor | float) -> Iterator[None]:
        """Visit w + scale·direction; afterwards every bit of w is as before."""
        pairs = [(p, d) for p, d in zip(self.parameters, direction, strict=True) if d is not None]
        used = [p for p, _ in pairs]
        before = [p.detach().clone() for p in used]  # subtracting would not restore w
        with torch.no_grad():
            torch._foreach_add_(used, list(torch._foreach_mul([d for _, d in pairs], scale)))
        try:
            with still_statistics(self.network, self.still):
                yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(used, before)


@dataclass
class Escape:
    """What PGD remembers from step to step."""

    last_norm: Float[Tensor, ""]  # of the gradient
    since: Float[Tensor, ""]  # steps since the last perturbation


def sgd(weights: Weights, forward: Forward) -> tuple[Gradient, Pass]:
    """Take the gradient at w."""
    here = forward(WHOLE)
    return weights.gradient(here.loss()), here


def sam(
    weights: Weights, forward: Forward, *, radius: Tensor | float, adaptive: bool = False
) -> tuple[Gradient, Pass]:
    """Take the gradient where the loss is highest nearby, to first order."""
    here = forward(WHOLE)
    slope = weights.gradient(here.loss())
    climb, length = slope, slope
    if adaptive:
        length = _scaled(slope, [p.detach() for p in weights.parameters])
        climb = _scaled(length, [p.detach() for p in weights.parameters])
    with weights.moved(climb, radius * _inverse(length)):
        return weights.gradient(forward(WHOLE).loss()), here


def pgd(
    weights: Weights,
    forward: Forward,
    *,
    noise: Sequence[Tensor],
    radius: Tensor | float,
    threshold: float,
    interval: int,
    memory: Escape,
) -> tuple[Gradient, Pass]:
    """Perturb w for good where its gradient has become small, then take the gradient.

    Args:
        weights: the parameters.
        forward: the batch.
        noise: a point of the unit ball, shaped like the parameters.
        radius: of the ball, in units of ‖w‖.
        threshold: largest norm of the last gradient that lets w be perturbed.
        interval: steps between two perturbations at least.
        memory: updated in place.
    """
    due = (memory.last_norm <= threshold) & (memory.since + 1 >= interval)
    with torch.no_grad():
        size = torch.where(due, radius * norm([p.detach() for p in weights.parameters]), 0)
        torch._foreach_add_(weights.parameters, list(torch._foreach_mul(list(noise), size)))
    slope, here = sgd(weights, forward)
    memory.since.copy_(torch.where(due, 0, memory.since + 1))
    memory.last_norm.copy_(norm(slope))
    return slope, here


def lpf_sgd(
    weights: Weights,
    forward: Forward,
    *,
    noise: Sequence[Sequence[Tensor]],
    deviation: Tensor | float,
    parts: Sequence[slice],
) -> tuple[Gradient, Pass]:
    """Average gradients at places drawn around w.

    Args:
        weights: the parameters.
        forward: the batch.
        noise: standard normal draws shaped like the parameters, one for each part.
        deviation: γ, in units of the filters' norms.
        parts: slices that the batch is cut into.
    """
    with torch.no_grad():
        here = forward(WHOLE)
        own = zip(weights.parameters, weights.axes, strict=True)
        sizes = [filter_norms(p.detach(), axis) for p, axis in own]
    slopes: list[Gradient] = []
    for part, draw in zip(parts, noise, strict=True):
        scattered = [size * d for size, d in zip(sizes, draw, strict=True)]
        with weights.moved(scattered, deviation):
            there = forward(part)
            slopes.append(weights.gradient(there.shares.sum() / here.total))
    total = slopes[0]
    for other in slopes[1:]:
        total = _sum(total, other)
    return total, here


def imbsam(
    weights: Weights, forward: Forward, rare: Bool[Tensor, " n"], *, radius: Tensor | float
) -> tuple[Gradient, Pass]:
    """Take the tail's gradient where the tail's loss is highest nearby, the head's at w."""
    here = forward(WHOLE)
    head = weights.gradient(here.loss(~rare), keep=True)
    tail = weights.gradient(2 * here.loss(rare))
    with weights.moved(tail, radius * _inverse(tail)):
        return _sum(head, weights.gradient(2 * forward(WHOLE).loss(rare))), here


def sse_sam(
    weights: Weights,
    forward: Forward,
    rare: Bool[Tensor, " n"],
    *,
    radius: Tensor | float,
    tail_radius: Tensor | float,
    climb_head: bool,
) -> tuple[Gradient, Pass]:
    """Let head and tail climb their own losses; in the second stage the head stays at w."""
    here = forward(WHOLE)
    head = weights.gradient(here.loss(~rare), keep=True)
    tail = weights.gradient(here.loss(rare))
    if climb_head:
        with weights.moved(head, radius * _inverse(head)):
            head = weights.gradient(forward(WHOLE).loss(~rare))
    with weights.moved(tail, tail_radius * _inverse(tail)):
        return _sum(head, weights.gradient(forward(WHOLE).loss(rare))), here


def descend(
    parameters: Sequence[Tensor],
    momenta: Sequence[Tensor],
    slope: Gradient,
    *,
    lr: Tensor | float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Take SGD's step in place: v ← μv + g + λw, w ← w − lr·v; what has no gradient stays.

    Args:
        parameters: w.
        momenta: v, zero at the start.
        slope: g.
        lr: a tensor where a CUDA graph is to read it anew.
        momentum: μ, without Nesterov's correction.
        weight_decay: λ, on every parameter that has a gradient.
    """
    used = [i for i, gradient in enumerate(slope) if gradient is not None]
    w, v = [parameters[i] for i in used], [momenta[i] for i in used]
    with torch.no_grad():
        g = torch._foreach_add([g for g in slope if g is not None], w, alpha=weight_decay)
        torch._foreach_mul_(v, momentum)
        torch._foreach_add_(v, list(g))
        if isinstance(lr, Tensor):
            torch._foreach_sub_(w, list(torch._foreach_mul(v, lr)))
        else:
            torch._foreach_add_(w, v, alpha=-lr)


def norm(tensors: Sequence[Tensor | None]) -> Float[Tensor, ""]:
    """Take the norm over all entries of all tensors."""
    return nn.utils.get_total_norm([t for t in tensors if t is not None])


@contextmanager
def still_statistics(network: nn.Module, still: bool = True) -> Iterator[None]:
    """Let batch norm use the batch's statistics, as in training, but not remember them."""
    moving = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for module in moving:
            module.track_running_stats = not still
        yield
    finally:
        for module in moving:
            module.track_running_stats = True


def _inverse(tensors: Sequence[Tensor | None]) -> Float[Tensor, ""]:
    return (norm(tensors) + 1e-12).reciprocal()


def _scaled(gradient: Gradient, by: Sequence[Tensor]) -> Gradient:
    return [None if g is None else g * w for g, w in zip(gradient, by, strict=True)]


def _sum(one: Gradient, other: Gradient) -> Gradient:
    return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]
