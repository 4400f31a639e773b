"""Whether a network takes the samples, and which layout and precision it means, told by a few.

Channels-last is the faster layout, but a network may view what its convolutions put out, whose
entries then stand in another order. And a network, or a loss, may name a precision: that rounds
(`x.float()`) or belongs to the function, where bits are read or numbers drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spectra.errors import SpectraError, first_line
from spectra.hessian.network import calling, forked_random_state, logits_of, require_outputs
from spectra.losses import LossSpec

if TYPE_CHECKING:
    from spectra.hessian.objective import Objective

_FEW = 4  # samples whose logits and losses are compared
_ROUNDED = 1e-3  # relative; float32 rounds them by less
# What networks raise on inputs that they cannot take; torchvision's asserts.
_REFUSED = (RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError)


@contextlib.contextmanager
def _trial(objective: Objective) -> Iterator[None]:
    """Set torch up for a pass of a few samples that leaves no trace."""
    with (
        objective.arithmetic(),
        torch.no_grad(),
        forked_random_state(objective.device),
        calling(widened=objective.widened),
    ):
        yield


def settled(objective: Objective) -> Objective:
    """Choose the layout, and whether float32 by name means the precision of the parameters."""
    plain = _in_plain_layout(objective)
    widens = _means_its_own_precision(plain)
    plain, objective = replace(plain, widens=widens), replace(objective, widens=widens)
    if plain.network is objective.network:
        return objective
    there = _seen(plain)
    return objective if there is None or _near(_seen(objective), there) else plain


def try_out(objective: Objective) -> int:
    """Pass one sample through the network.

    Args:
        objective: with its samples, loss and network, the layout settled.

    Returns:
        Bytes that the layers put out for it.

    Raises:
        SpectraError: if the network cannot take it, or lacks outputs for the classes of the data.
    """
    seen = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal seen
        if isinstance(output, Tensor):
            seen += output.numel() * output.element_size()

    leaves = [m for m in objective.network.modules() if next(m.children(), None) is None]
    hooks = [m.register_forward_hook(count) for m in leaves]
    x = objective.batch(slice(0, 1))[0]
    try:
        with _trial(objective):
            output = objective.network(x)
    except _REFUSED as error:
        why = first_line(error) or type(error).__name__
        raise SpectraError(
            f"got inputs of shape {tuple(x.shape[1:])}, which the network cannot take ({why}); "
            "expected what it was built for: check --dataset, --data and --model"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    logits = logits_of(output)
    if isinstance(objective.loss, LossSpec):
        require_outputs(logits, int(objective.samples.targets.max()) + 1)
    return seen


def _in_plain_layout(objective: Objective) -> Objective:
    """Copy a network that has images or filters to lay out in another way."""
    images = objective.samples.inputs.dim() == 4
    filters = any(parameter.dim() == 4 for parameter in objective.network.parameters())
    if objective.layout == torch.contiguous_format or not (images or filters):
        return objective
    return replace(objective, layout=torch.contiguous_format).copied(objective.dtype)


def _means_its_own_precision(objective: Objective) -> bool:
    """Tell whether the losses are float32's where float64 takes the place of float32 by name.

    Where nothing changes by that, nobody names any, and the answer is no.
    """
    double, single = (
        objective if objective.dtype == dtype else objective.copied(dtype)
        for dtype in (torch.float64, torch.float32)
    )
    plain, wide = (_seen(replace(double, widens=widens)) for widens in (False, True))
    if wide is None or (plain is not None and torch.equal(plain, wide)):
        return False
    return _near(wide, _seen(single))


def _seen(objective: Objective) -> Tensor | None:
    """Give the logits and losses of a few samples in float64; None where one of them fails."""
    few = replace(objective, redraw=None, tf32=False)
    try:
        with _trial(few):
            inputs, targets, _ = few.batch(slice(0, _FEW))
            logits = logits_of(few.network(inputs))
            losses = few.loss.per_sample(logits, targets)
            return torch.cat([logits.flatten(), losses.flatten()]).double()
    except _REFUSED:
        return None


def _near(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and bool((a - b).norm() <= _ROUNDED * b.norm())
