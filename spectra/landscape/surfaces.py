"""The loss on a plane through the parameters, and random directions that are fair to every filter.

    F(α, β) = L(w + αu + βv)

A random direction that ignores the size of the weights makes a network with small filters look
sharper than the same function with large ones. Filter normalisation rescales each filter d_f of a
random direction (the weights of an output channel, or unit) to the norm of the weight's own,
d_f ← d_f ‖w_f‖/‖d_f‖. Biases and batch norms, which have no filters, stay where they are, as in the
figures of the paper that it comes from.

References:
    Li et al., Visualizing the loss landscape of neural nets, 2018, https://arxiv.org/abs/1712.09913
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spectra.errors import SpectraError
from spectra.hessian import HessianOperator, Objective
from spectra.krylov import random_start
from spectra.landscape.subject import direction_in, objective_of
from spectra.networks import filter_axes, filter_norms


@dataclass(frozen=True)
class Surface:
    """Hold the loss on a grid of the plane w + αu + βv."""

    alphas: Float64[np.ndarray, " p"]  # from −A to A, in units of ‖u‖
    betas: Float64[np.ndarray, " q"]  # from −B to B, in units of ‖v‖
    losses: Float64[np.ndarray, "p q"]  # L(w + αu + βv)
    norms: tuple[float, float]  # ‖u‖, ‖v‖
    cosine: float  # of the angle between u and v: the axes are drawn at right angles whatever it is


def surface(
    subject: Objective | HessianOperator,
    u: Float[Tensor, " n"],
    v: Float[Tensor, " n"],
    *,
    extents: tuple[float, float] = (1.0, 1.0),
    points: tuple[int, int] = (25, 25),
    dtype: torch.dtype | None = None,
    callback: Callable[[], None] | None = None,
) -> Surface:
    """Evaluate a loss on a grid around the parameters, on fixed samples.

    Args:
        subject: whose loss; the operator of a class, or its objective.
        u: (n,) first direction, not rescaled.
        v: (n,) second direction, not rescaled.
        extents: A and B: how far the grid reaches to both sides, in units of ‖u‖ and ‖v‖.
        points: p and q; odd numbers have the parameters themselves on the grid.
        dtype: precision of the evaluations; the subject's own when None.
        callback: called after every evaluation.

    Returns:
        The losses, (p, q).

    Raises:
        SpectraError: a direction of another shape or none at all, an extent that is not positive,
            fewer than two points, or two directions along one line.
    """
    objective = objective_of(subject)
    objective = objective.recut(batch_size=objective.batch_size, backwards=False, dtype=dtype)
    one, other = direction_in(objective, u, "u"), direction_in(objective, v, "v")
    if min(extents) <= 0 or not np.isfinite(extents).all() or min(points) < 2:
        raise SpectraError(
            f"got the extents {extents} and {points} points, expected positive extents and 2 or "
            "more points a direction: there would be no surface"
        )
    norms = float(one.norm()), float(other.norm())
    cosine = float(torch.dot(one, other)) / (norms[0] * norms[1])
    if abs(cosine) > 1 - 1e-6:
        raise SpectraError(
            f"got two directions with the cosine {cosine:.7f}, expected two that span a plane: the "
            "surface would be a slice; use loss_slice"
        )
    alphas, betas = (np.linspace(-e, e, k) for e, k in zip(extents, points, strict=True))
    losses = np.empty(points)
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            losses[i, j] = objective.value(shift=float(alpha) * one + float(beta) * other)
            if callback is not None:
                callback()
    return Surface(alphas, betas, losses, norms, cosine)


def filter_normalised(
    subject: Objective | HessianOperator,
    direction: Float[Tensor, " n"] | None = None,
    *,
    seed: int = 0,
    probe: int = 0,
) -> Float[Tensor, " n"]:
    """Rescale each filter of a random direction to the norm of the weights' own.

    Args:
        subject: whose parameters; the operator of a class, or its objective.
        direction: (n,) what is rescaled; a Gaussian one from (seed, probe) when None, the same on
            every device.
        seed: of `random_start`.
        probe: number of the direction: two of them span a surface.

    Returns:
        (n,) in float64 on the subject's device; zero for biases, batch norms (everything with one
        axis or none) and frozen parameters.

    Raises:
        SpectraError: a direction of another shape or none at all.
    """
    objective = objective_of(subject)
    if direction is None:
        direction = random_start(objective.dim, seed=seed, probe=probe)
    rows = objective.rows
    pieces = rows.split(direction_in(objective, direction, "a direction"))
    axes = filter_axes(objective.network)
    for name, weight in rows.here().items():
        weight = weight.to(torch.float64)
        if weight.dim() < 2:
            pieces[name] = torch.zeros_like(weight)
            continue
        lengths, own = (filter_norms(of, axes[name]) for of in (pieces[name], weight))
        # A filter that the direction leaves out has no direction to be rescaled.
        pieces[name] = pieces[name] * torch.where(lengths > 0, own / lengths, 0)
    return rows.flatten(pieces)
