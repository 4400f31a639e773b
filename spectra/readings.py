"""From finished Lanczos runs to the numbers of one spectrum, each with its error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from spectra.doctor import Certificate, Examination
from spectra.files import replacing
from spectra.hessian import HessianOperator
from spectra.krylov import (
    TOLERANCE,
    Extremes,
    SpectralMeasure,
    Tridiagonal,
    lower_bound,
    measured_ends,
    nonconvexity,
    posterior_lower_bound,
    trace_estimate,
)
from spectra.results import ClassSpectrum

Form = Callable[[Sequence[Literal[0, -1]]], Iterable[Tensor]]  # ends -> unit Ritz vectors


class RitzVectors:
    """What is read off the bases before they go, kept on disk between probes.

    The Ritz vectors of the outermost values so far, and what the first run knows of the vectors
    that the trace is sampled with.
    """

    def __init__(self, path: Path | None, label: str) -> None:
        self.path, self.label = path, label
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.values = (float("inf"), -float("inf"))
        self.known_forms: np.ndarray | None = None  # (q,) see `krylov.trace`

    def take(self, run: Tridiagonal, form: Form | None = None) -> None:
        """Form the vectors of a run's ends where they lie farther out than those held.

        Args:
            run: a finished run.
            form: gives vectors for a sequence of ends, 0 or -1; those in the run's basis if None.
        """
        values = run.ritz().values
        low, high = float(values[0]), float(values[-1])
        ends: list[Literal[0, -1]] = []
        if low < self.values[0]:
            ends.append(0)
        if high > self.values[1]:
            ends.append(-1)
        for end, vector in zip(ends, form(ends) if form else map(run.vector, ends), strict=True):
            if end == 0:
                self.low, self.values = vector, (low, self.values[1])
            else:
                self.high, self.values = vector, (self.values[0], high)

    def measured(
        self, operator: HessianOperator, steps: int, tolerance: float = TOLERANCE
    ) -> Extremes:
        """Measure both ends anew, see `measured_ends`.

        Args:
            operator: what Lanczos ran on.
            steps: Krylov steps of the longest run.
            tolerance: largest residual that counts as converged, relative to the larger modulus.
        """
        assert self.low is not None
        assert self.high is not None
        vectors = self.low, self.high
        return measured_ends(operator, self.values, vectors, steps=steps, tolerance=tolerance)

    def save(self, probes: int) -> None:
        """Leave the vectors for a resumed run, which has the T of so many probes."""
        if self.path is not None:
            state = {"label": self.label, "probes": probes, "values": list(self.values)}
            state["known_forms"] = None if (k := self.known_forms) is None else k.tolist()
            with replacing(self.path) as path:
                torch.save(state | {"low": self.low, "high": self.high}, path)

    def load(self, probes: int, runs: Sequence[Tridiagonal] = ()) -> bool:
        """Read what `save` left; False if it belongs to other runs, which then are made anew.

        Args:
            probes: number of the runs that are held.
            runs: these, whose outermost Ritz values the vectors have to belong to.
        """
        if self.path is None or not self.path.exists():
            return False
        try:
            state = torch.load(self.path, weights_only=True)
            if (state["label"], state["probes"]) != (self.label, probes):
                return False
            low, high = state["values"]
            if runs and not _outermost(runs, low, high):
                return False
            known = state.get("known_forms")
            self.known_forms = None if known is None else np.array(known)
            self.low, self.high, self.values = state["low"], state["high"], (low, high)
        except Exception:  # whatever a damaged file raises: its vectors can be made again
            return False
        return True

    def drop(self) -> None:
        """Remove the file of a finished spectrum."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def assemble(
    outline: ClassSpectrum,
    runs: Sequence[Tridiagonal],
    ends: Extremes,
    forms: Float64[np.ndarray, " q"],
    examination: Examination,
    certificate: Certificate,
    *,
    known_forms: Float64[np.ndarray, " q"] | None = None,
    apart: float | None = None,
    fixed_steps: bool = True,
) -> ClassSpectrum:
    """Read every answer off the runs; what a moving operator cannot say stays unknown.

    Args:
        outline: what was known before.
        runs: one Lanczos run a probe, without basis.
        ends: the outermost Ritz values with their residuals.
        forms: (q,) vᵀHv of further random unit vectors, for the trace.
        examination: of the operator.
        certificate: of the Ritz vector of λmin.
        known_forms: (q,) what the T of the first run knows of these, None where it knows nothing.
        apart: how far λmax is from its vector's float64 Rayleigh quotient, where that was computed.
        fixed_steps: the number of steps was fixed beforehand; False if the residuals decided.

    Returns:
        The finished spectrum.
    """
    measure = SpectralMeasure.from_tridiagonals(runs, runs[0].dim)
    low, high = ends.lambda_min, ends.lambda_max
    defect = examination.noise_floor(max(abs(low), abs(high)))
    floor = max(defect, apart or 0.0, *(run.asymmetry for run in runs))
    fixed = outline.caveat is None and examination.fixed_operator
    known = replace(
        outline,
        lambda_min=low,
        lambda_max=high,
        residual_min=ends.residual_min,
        residual_max=ends.residual_max,
        nonconvexity=nonconvexity(low, high, floor if fixed else 0.0),
        steps=ends.steps,
        probes=len(runs),
        converged=ends.converged,
        doctor=asdict(examination) | {"noise_floor": floor},
        certificate=asdict(certificate),
        runs=tuple(runs),
        quadratic_forms=tuple(forms.tolist()),
        known_forms=() if known_forms is None else tuple(known_forms.tolist()),
        measure=measure,
    )
    if examination.culprit is not None:
        known = replace(known, notes=(*outline.notes, f"the operator moves: {examination.culprit}"))
    if len(forms) and examination.fixed_operator:  # else it would be of rounding, or of other draws
        if known_forms is None:  # those of Lanczos are of the same kind
            trace = trace_estimate(np.append(forms, measure.probe_moments(1)), measure.dim)
        else:
            of_t = float(runs[0].alphas.sum())
            trace = trace_estimate(forms, measure.dim, known=known_forms, known_trace=of_t)
        # An error that all products share shows in no scatter of theirs.
        size = max(abs(low), abs(high))
        shared = abs(trace.value) * floor / size if size else 0.0
        stderr = None if trace.stderr is None else math.hypot(trace.stderr, shared)
        known = replace(known, trace=trace.value, trace_stderr=stderr)
    if not fixed:
        return known
    # T is of the products' precision: what that does to λmin shows in the certificate's yᵀHy.
    off = abs(low - certificate.rayleigh_quotient)
    threshold = max(floor, 1e-6 * max(high, 0.0))
    mass, stderr, bounds = _mass_below(-threshold, measure, runs, floor)
    return replace(
        known,
        negative_mass=mass,
        negative_mass_stderr=stderr,
        negative_mass_bounds=bounds,
        negative_mass_threshold=threshold,
        certificate={
            **known.certificate,
            "lower_bound_95": _lower_bound(runs, low, high, max(floor, off), fixed_steps),
        },
    )


def _mass_below(
    where: float, measure: SpectralMeasure, runs: Sequence[Tridiagonal], floor: float
) -> tuple[float, float | None, tuple[float, float]]:
    """Give the share of eigenvalues below a place, its standard error, what T leaves open."""
    values, dim = runs[0].ritz().values, runs[0].dim
    if runs[0].orthogonal and len(values) == dim:  # all eigenvalues are known, to rounding
        few, some, many = (int((values < x).sum()) for x in (where - floor, where, where + floor))
        return some / dim, 0.0, (few / dim, many / dim)
    mass = measure.mass_below(where)
    low, high = measure.mass_bounds(where)
    if all(run.exhausted for run in runs):
        hidden = max(_hidden(run, where, floor) for run in runs)
        low, high = max(low, mass.value - hidden), min(high, mass.value + hidden)
    return mass.value, mass.stderr, (low, high)


def _lower_bound(
    runs: Sequence[Tridiagonal], low: float, high: float, floor: float, fixed_steps: bool
) -> float | None:
    # Each of the two bounds holds with 97.5 %, so the better one of them with 95 %. The first is
    # for steps that are fixed beforehand; and without a basis some of them only made copies.
    prior = None
    if fixed_steps and all(run.orthogonal for run in runs):
        prior = lower_bound(
            low,
            high,
            dim=runs[0].dim,
            steps=min(run.steps for run in runs),
            probes=len(runs),
            confidence=0.975,
        )
    bounds = (prior, posterior_lower_bound(runs, confidence=0.975))
    finite = [bound for bound in bounds if bound is not None and np.isfinite(bound)]
    found = max(finite, default=-np.inf)
    return found - floor if low - found <= high - low else None


def _outermost(runs: Sequence[Tridiagonal], low: float, high: float) -> bool:
    """Tell whether these are the outermost Ritz values of some runs, to a solver's rounding."""
    values = np.concatenate([run.ritz().values[[0, -1]] for run in runs])
    gaps = abs(values.min() - low), abs(values.max() - high)
    return bool(max(gaps) <= 1e-12 * np.abs(values).max())


def _hidden(run: Tridiagonal, where: float, floor: float) -> float:
    """Bound how far the weight that an exhausted T counts below a place is from q_1's there.

    The products round, A Q = Q T + r e_mᵀ + F, and ‖F‖ is taken to be the noise floor φ. With P the
    projector on the eigenvalues of A below, c₋ and c₊ the parts of q_1 along the Ritz vectors Q₋
    below and Q₊ above, all of them g away or more, ε = (‖r‖ + φ)/g and w = ‖c₋‖²,

        ‖P q_1‖² − w = ‖X c₊‖² − ‖Y c₋‖² + 2 c₋ᵀZ c₊,   X = P Q₊, Y = (1 − P) Q₋, Z = Q₋ᵀX

    Sylvester's equations for X, Y and Z, of spectra that a gap parts, give ‖X‖, ‖Y‖ ≤ ε (Davis and
    Kahan) and, for r is orthogonal to Q and F need not be, ‖Z‖ ≤ φ/2g + ε². Together that is at
    most 2ε² + √(w(1 − w)) φ/g.
    """
    ritz = run.ritz()
    gap = float(np.abs(ritz.values - where).min())
    reach = run.residual_norm + floor
    if reach >= gap:
        return 1.0
    below = min(1.0, float((ritz.first[ritz.values < where] ** 2).sum()))
    mixed = (below * (1 - below)) ** 0.5 * floor / gap
    return float(min(1.0, 2 * (reach / gap) ** 2 + mixed))
