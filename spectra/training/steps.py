"""One update of the weights: plain SGD and sharpness-aware minimisation (SAM).

    SAM:  g = ∇L(w),  e = ρ·g/(‖g‖₂ + 1e-12),  then the SGD step at w with ∇L(w + e)

The norm is global over all parameters and the batch is the same in both passes. Both steps return
the loss () and the logits (n, C) at w, detached.

References:
    Foret et al., Sharpness-aware minimization, https://arxiv.org/abs/2010.01412
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

# Runs the network on one batch and gives the mean loss () and the logits (n, C).
Forward = Callable[[], tuple[Tensor, Tensor]]


def sgd_step(forward: Forward, optimizer: Optimizer) -> tuple[Tensor, Tensor]:
    """Take one step with the gradient at w."""
    loss, logits = _differentiate(forward, optimizer)
    optimizer.step()
    return loss, logits


def sam_step(
    forward: Forward, optimizer: Optimizer, *, network: nn.Module, rho: float
) -> tuple[Tensor, Tensor]:
    """Take one step with the gradient at w + e; momentum and weight decay see w.

    Args:
        forward: called twice, at w and at w + e.
        optimizer: holds the parameters.
        network: its batch-norm statistics move in the first pass only.
        rho: radius ρ in parameter space.
    """
    loss, logits = _differentiate(forward, optimizer)
    with torch.no_grad():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        used = [p for p in parameters if p.grad is not None]
        slopes = [p.grad for p in used]
        before = [p.clone() for p in used]  # kept, because subtracting e would not restore w
        scale = rho / (nn.utils.get_total_norm(slopes) + 1e-12)
        torch._foreach_add_(used, torch._foreach_mul(slopes, scale))
    with still_statistics(network):
        _differentiate(forward, optimizer)
    with torch.no_grad():
        torch._foreach_copy_(used, before)
    optimizer.step()
    return loss, logits


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norm use the batch's statistics, as in training, but not remember them."""
    moving = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for module in moving:
            module.track_running_stats = False
        yield
    finally:
        for module in moving:
            module.track_running_stats = True


def _differentiate(forward: Forward, optimizer: Optimizer) -> tuple[Tensor, Tensor]:
    optimizer.zero_grad()
    loss, logits = forward()
    torch.autograd.backward(loss)
    return loss.detach(), logits.detach()
