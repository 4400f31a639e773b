"""What the measurements of this room are taken of: an objective at rest, and directions in it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectra.errors import SpectraError
from spectra.hessian import HessianOperator, Objective, ProductChoice, choose_product


def objective_of(subject: Objective | HessianOperator) -> Objective:
    """Take the objective of an operator; an augmentation that is re-drawn is left out."""
    objective = subject.objective if isinstance(subject, HessianOperator) else subject
    return replace(objective, redraw=None)


def choice_of(subject: Objective | HessianOperator) -> ProductChoice:
    """Take an operator's verified way of differentiating, or verify one.

    Raises:
        SpectraError: what `choose_product` raises.
    """
    if isinstance(subject, HessianOperator):
        return subject.choice
    return choose_product(objective_of(subject))


def direction_in(
    objective: Objective, vector: Float[Tensor, "*shape"], what: str
) -> Float[Tensor, " n"]:
    """Take a vector to the objective's device in float64; it has to be one, and to point somewhere.

    Raises:
        SpectraError: another shape than (n,), NaN or Inf, or zero.
    """
    if tuple(vector.shape) != (objective.dim,):
        raise SpectraError(
            f"got {what} of shape {tuple(vector.shape)}, expected ({objective.dim},), one number "
            "for each parameter of the objective: other parameters would be moved; take a Ritz "
            "vector of this objective's own operator"
        )
    direction = vector.detach().to(objective.device, torch.float64)
    length = float(torch.linalg.vector_norm(direction))
    if not 0 < length < float("inf"):
        raise SpectraError(
            f"got {what} of norm {length}, expected a positive one: nothing would move, or "
            "everything to NaN; look at the run that made it"
        )
    return direction
