"""The trace, from one-product probes, with what Lanczos knows already taken out of them.

For v uniform on the sphere, E[n vᵀAv] = tr A with the variance 2‖A‖_F² (n/(n+2), less what the
mean takes): one outlier λ alone scatters it by √2·|λ|, and skews it, so that the scatter of ten
samples says little. Let Q, (m, n), and T belong to a Lanczos run from another start. Then
QᵀTQ is the part of A that is known, and

    tr A = tr T + n E[vᵀAv − cᵀTc],   c = Qv,

for every Q that does not depend on v, since E[vvᵀ] = I/n. The rest A − QᵀTQ has lost the outliers,
and its samples scatter by √2·‖A − QᵀTQ‖_F: for spectra of networks an order of magnitude less. It
costs m inner products a sample, and no product with A.

References:
    Meyer, Musco, Musco, Woodruff, Hutch++: optimal stochastic trace estimation, 2021,
    https://arxiv.org/abs/2010.09649 (the part that is known, from a sketch instead of Lanczos);
    Avron, Toledo, Randomized algorithms for estimating the trace of an implicit symmetric positive
    semi-definite matrix, 2011, https://doi.org/10.1145/1944345.1944349
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64

from spectra.errors import SpectraError
from spectra.krylov.lanczos import Tridiagonal
from spectra.krylov.measure import EXTRA_PROBES, Estimate, random_start
from spectra.krylov.operator import SymmetricOperator


def quadratic_form_probes(
    A: SymmetricOperator, *, probes: int, seed: int, first_probe: int = EXTRA_PROBES
) -> Float64[np.ndarray, " p"]:
    """Sample vᵀAv over Gaussian unit vectors v, one product each.

    They are of the same kind as `SpectralMeasure.probe_moments(1)`; by default their probe numbers
    lie beyond those of any Lanczos run.

    Args:
        A: the operator.
        probes: p, how many.
        seed: that of the Lanczos runs.
        first_probe: number of the first.
    """
    forms = np.empty(probes)
    for i in range(probes):
        v = random_start(A.dim, seed=seed, probe=first_probe + i, dtype=A.dtype, device=A.device)
        product, v = (A @ v).to(torch.float64), v.to(torch.float64)
        forms[i] = float(torch.dot(v, product) / torch.dot(v, v))
    return forms


def known_forms(
    run: Tridiagonal, *, probes: int, seed: int, first_probe: int = EXTRA_PROBES
) -> Float64[np.ndarray, " p"]:
    """Tell what a Lanczos run knows of the samples of `quadratic_form_probes`: cᵀTc, c = Qv.

    Args:
        run: on the same operator, from none of these vectors, with its basis.
        probes: p, as there.
        seed: as there.
        first_probe: as there.

    Raises:
        SpectraError: if the run has no basis.
    """
    if (basis := run.basis) is None:
        raise SpectraError(
            "got a Lanczos run without its basis, expected one that has it: what T knows of a "
            "vector cannot be told without; estimate the trace from the samples alone"
        )
    known = np.empty(probes)
    for i in range(probes):
        v = random_start(
            run.dim, seed=seed, probe=first_probe + i, dtype=basis.dtype, device=basis.device
        )
        c = (basis @ v).to(torch.float64).cpu().numpy()
        known[i] = run.alphas @ c**2 + 2 * run.betas @ (c[:-1] * c[1:])
    return known


def trace_estimate(
    quadratic_forms: Float64[np.ndarray, " p"],
    dim: int,
    *,
    known: Float64[np.ndarray, " p"] | None = None,
    known_trace: float = 0.0,
) -> Estimate:
    """Estimate tr A from independent samples of vᵀAv, less what is known of them.

    With nothing known the t interval is nominal for spread spectra only; where one eigenvalue is
    most of the trace the samples are skewed, and 95 % means about 87 % at eleven of them.

    Args:
        quadratic_forms: (p,) values of vᵀAv for random *unit* vectors v.
        dim: n.
        known: (p,) cᵀTc of the same vectors.
        known_trace: tr T.
    """
    rest = quadratic_forms if known is None else quadratic_forms - known
    return Estimate.of(known_trace + dim * rest)
