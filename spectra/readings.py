"""From finished Lanczos runs to the numbers of one spectrum, each with its error."""

from __future__ import annotations

import contextlib
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

    def load(self, probes: int) -> bool:
        """Read what `save` left; False if it belongs to other runs, which then are made anew."""
        if self.path is None or not self.path.exists():
            return False
        try:
            state = torch.load(self.path, weights_only=True)
            if (state["label"], state["probes"]) != (self.label, probes):
                return False
            self.low, self.high = state["low"], state["high"]
            self.values = (state["values"][0], state["values"][1])
            known = state.get("known_forms")
            self.known_forms = None if known is None else np.array(known)
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
        fixed_steps: the number of steps was fixed beforehand; False if the residuals decided.

    Returns:
        The finished spectrum.
    """
    measure = SpectralMeasure.from_tridiagonals(runs, runs[0].dim)
    low, high = ends.lambda_min, ends.lambda_max
    floor = max(
        examination.noise_floor(max(abs(low), abs(high))), max(run.asymmetry for run in runs)
    )
    known = replace(
        outline,
        lambda_min=low,
        lambda_max=high,
        residual_min=ends.residual_min,
        residual_max=ends.residual_max,
        nonconvexity=nonconvexity(low, high),
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
        known = replace(known, trace=trace.value, trace_stderr=trace.stderr)
    if outline.caveat is not None or not examination.fixed_operator:
        return known
    # T is of the products' precision: what that does to λmin shows in the certificate's yᵀHy.
    apart = abs(low - certificate.rayleigh_quotient)
    threshold = max(floor, 1e-6 * max(high, 0.0))
    mass = measure.mass_below(-threshold)
    bounds = measure.mass_bounds(-threshold)
    if all(run.exhausted for run in runs):
        hidden = max(_hidden(run, -threshold) for run in runs)
        bounds = max(bounds[0], mass.value - hidden), min(bounds[1], mass.value + hidden)
    return replace(
        known,
        negative_mass=mass.value,
        negative_mass_stderr=mass.stderr,
        negative_mass_bounds=bounds,
        negative_mass_threshold=threshold,
        certificate={
            **known.certificate,
            "lower_bound_95": _lower_bound(runs, low, high, max(floor, apart), fixed_steps),
        },
    )


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


def _hidden(run: Tridiagonal, where: float) -> float:
    """Bound the share that an exhausted T counts on the wrong side of a place.

    Of the weight of a node that is g away at most (‖r‖/g)² lies beyond.
    """
    gap = float(np.abs(run.ritz().values - where).min())
    return (run.residual_norm / gap) ** 2 if run.residual_norm < gap else 1.0
