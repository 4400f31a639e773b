"""Under which layout and precision a network computes what it means, told by a few samples.

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
from torch import Tensor

from spectra.hessian.network import calling, forked_random_state, logits_of

if TYPE_CHECKING:
    from spectra.hessian.objective import Objective

_FEW = 4  # samples whose logits and losses are compared
_ROUNDED = 1e-3  # relative; float32 rounds them by less
REFUSED = (RuntimeError, TypeError, ValueError, IndexError)  # raised by what a network cannot take


@contextlib.contextmanager
def trial(objective: Objective) -> Iterator[None]:
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
        with trial(few):
            inputs, targets, _ = few.batch(slice(0, _FEW))
            logits = logits_of(few.network(inputs))
            losses = few.loss.per_sample(logits, targets)
            return torch.cat([logits.flatten(), losses.flatten()]).double()
    except REFUSED:
        return None


def _near(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and bool((a - b).norm() <= _ROUNDED * b.norm())
