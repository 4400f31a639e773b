"""What a SAM step makes of the gradient's component along a direction, batch by batch.

With g_B = ∇L_B(w) and H_B the gradient and Hessian of a minibatch's weighted mean loss, and a unit
vector v, fixed while batches are drawn:

    a_B = ⟨v, g_B⟩,   b_B(ρ) = ⟨v, ∇L_B(w + ρ g_B/‖g_B‖)⟩,   vᵀH_B g_B

The Taylor residual ‖∇L_B(w+e) − g_B − H_B e‖ / ‖H_B e‖, e = ρ g_B/‖g_B‖, says how much of the step
second order leaves unexplained. It falls with ρ; where it does not, H_B is wrong, or kinks of ReLU
make it. Batches are drawn independently, each without replacement.

References:
    Rangwani et al., Escaping saddle points for effective generalization on class-imbalanced data,
    2022, https://arxiv.org/abs/2212.13827;
    Foret et al., SAM, 2020, https://arxiv.org/abs/2010.01412
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from spectra.choices import PathName
from spectra.errors import SpectraError
from spectra.hessian import HessianOperator, Objective
from spectra.hessian.network import recopied
from spectra.krylov.operator import not_finite
from spectra.landscape.statistics import Amplification, stream
from spectra.landscape.subject import choice_of, direction_in, objective_of

RADII = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8)


def amplification(
    subject: Objective | HessianOperator,
    directions: Float[Tensor, "*k n"],
    *,
    eigenvalues: Sequence[float] | None = None,
    radii: Sequence[float] | Float[np.ndarray, " r"] = RADII,
    batches: int = 256,
    batch_size: int = 128,
    seed: int = 0,
    batch_norm: Literal["evaluation", "training"] = "evaluation",
    callback: Callable[[int], None] | None = None,
) -> Amplification:
    """Measure how SAM's gradient changes along directions, at frozen weights and augmentation.

    The cost of a batch is a gradient for each radius and one product, for all directions together.

    Args:
        subject: the loss that is trained, with its class weights, over the training samples (or
            over some of them: the source of the gradients), in the precision wanted.
        directions: (k, n) or (n,), each rescaled to norm 1; controls are further rows.
        eigenvalues: (k,) λ of each row, for the predictions; NaN where there is none.
        radii: (r,) ρ.
        batches: M, each drawn without replacement and independently of the others.
        batch_size: samples in each.
        seed: of the draw and of the bootstrap.
        batch_norm: statistics of "evaluation", or those of each batch as in "training" (nothing
            remembers them; dropout stays off).
        callback: called with 1, 2, ... after each batch.

    Returns:
        What was measured, and R, S, the sign agreement, γ and their predictions from it.

    Raises:
        SpectraError: directions of another shape, more samples a batch than there are, a batch
            that does not fit the memory where it may not be cut, NaN or Inf in a gradient, and
            what `choose_product` raises.
    """
    objective, choice = objective_of(subject), choice_of(subject)
    path = choice.path
    rows = directions if directions.dim() == 2 else directions[None]
    v = torch.empty(len(rows), objective.dim, dtype=objective.dtype, device=objective.device)
    for i, row in enumerate(rows):  # one at a time in float64: all of them may be too large
        v[i] = _unit(direction_in(objective, row, f"direction {i}"))
    known = np.full(len(v), np.nan) if eigenvalues is None else np.array(eigenvalues, dtype=float)
    pool = torch.nonzero(objective.weights)[:, 0].cpu().numpy()
    rho = checked_radii(radii)
    if known.shape != (len(v),) or not 1 <= batch_size <= len(pool) or batches < 1:
        raise SpectraError(
            f"got {known.size} eigenvalues for {len(v)} directions, and {batches} batches of "
            f"{batch_size} from {len(pool)} samples; expected one eigenvalue for each direction, "
            "one batch or more, and no more samples in it than there are"
        )
    if batch_norm == "training":
        # Reverse-over-forward is silently wrong through the statistics of a batch.
        ways: tuple[PathName, ...] = ("double-backward", "forward-over-reverse")
        path = next((way for way in ways if way not in choice.refused), path)
        if path not in ways:
            raise SpectraError(
                f"got a model for which {' and '.join(ways)} are wrong or missing, expected one of "
                "them: the other path is wrong through the statistics of a batch; use "
                "batch_norm='evaluation'"
            )
        objective = _with_batch_statistics(objective, batch_size)
    elif batch_norm != "evaluation":
        raise SpectraError(f"got batch_norm={batch_norm!r}, expected 'evaluation' or 'training'")
    measured = []
    for number in range(batches):
        index = torch.from_numpy(pool[minibatch(len(pool), batch_size, seed, number)])
        found = _of_batch(objective.select(index), path, v, rho)
        if not np.isfinite(found[: -len(rho)]).all():
            raise not_finite(f"the gradients of batch {number + 1} of {batches}")
        if batch_norm == "training" and objective.batch_size != batch_size:
            raise SpectraError(
                f"got batches of {batch_size} samples, which do not fit the memory; expected whole "
                "ones: cut up, they would have other batch-norm statistics; lower batch_size"
            )
        measured.append(found)
        if callback is not None:
            callback(number + 1)
    k, r = len(v), len(rho)
    norms, a, curved, b, residuals = np.split(
        np.stack(measured, axis=-1), np.cumsum([1, k, k, k * r])
    )
    return Amplification(
        radii=rho,
        eigenvalues=known,
        components=a,
        shifted=b.reshape(k, r, -1),
        curved=curved,
        gradient_norms=norms[0],
        taylor_residuals=residuals,
        dim=objective.rows.moving,
        batch_size=batch_size,
        seed=seed,
        batch_norm=batch_norm,
    )


def checked_radii(
    radii: Sequence[float] | Float[np.ndarray, " r"],
) -> Float64[np.ndarray, " r"]:
    """Give SAM's radii ρ as an array, or refuse them."""
    rho = np.array(radii, dtype=np.float64)
    if len(rho) == 0 or not np.isfinite(rho).all():
        raise SpectraError(
            f"got the radii {rho.tolist()}, expected one finite number or more: there would be no "
            "step to measure"
        )
    return rho


def _unit(direction: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    unit: Tensor = direction / direction.norm()
    return unit


def minibatch(count: int, size: int, seed: int, number: int) -> Int64[np.ndarray, " size"]:
    """Draw a batch of positions without replacement; it depends on the arguments alone."""
    drawn: np.ndarray = stream(seed, number).choice(count, size, replace=False)
    return drawn


def _of_batch(
    batch: Objective, path: PathName, v: Float[Tensor, "k n"], radii: Float64[np.ndarray, " r"]
) -> Float64[np.ndarray, " f"]:
    """Measure one batch: ‖g‖, a (k), vᵀHg (k), b (k r), residuals (r), one wait for the device."""
    g = batch.gradient()
    hg = batch.product(g, path)
    norm = torch.linalg.vector_norm(g, dtype=torch.float64)
    inverse = torch.where(norm > 0, 1 / norm, 0)

    def inner(x: Tensor) -> Tensor:  # a row at a time: v may be too large to be held in float64
        return torch.stack([torch.dot(row.double(), x.double()) for row in v])

    a, b, residuals = inner(g), [], []
    for radius in radii.tolist():
        there = batch.gradient(shift=radius * inverse * g) if radius != 0 else g
        b.append(inner(there))
        expected = (radius * inverse * hg).double()
        size = expected.norm()
        left = (there.double() - g.double() - expected).norm()
        residuals.append(torch.where(size > 0, left / size, torch.nan))
    found = [norm[None], a, inner(hg), torch.stack(b, dim=1).reshape(-1), torch.stack(residuals)]
    return torch.cat(found).cpu().numpy()


def _with_batch_statistics(objective: Objective, size: int) -> Objective:
    """Let batch norm use the statistics of each batch, and remember none; batches stay whole."""
    network: nn.Module = recopied(objective.network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Without running statistics a batch norm in evaluation mode takes those of its inputs.
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    return replace(objective, network=network).recut(batch_size=size, backwards=False)
