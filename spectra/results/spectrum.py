"""What is known of one class's Hessian, and its place in the two files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spectra.errors import SpectraError
from spectra.files import plain
from spectra.krylov import SpectralMeasure, Tridiagonal, nonconvexity

CAVEAT = "not the spectrum of a matrix"
OPEN_MASS = 0.01  # where bounds of the share below zero lie farther apart, tables tell these alone
DOCTOR_KEYS = ("fixed_operator", "repeatability", "asymmetry", "noise_floor")
CERTIFICATE_KEYS = (
    *("operator", "dtype", "rayleigh_quotient", "residual"),
    *("noise_floor", "negative_curvature", "lower_bound_95"),
)
_ARRAYS = ("runs", "quadratic_forms", "known_forms", "measure")  # these live in esd.npz
_RUN = (  # of a Tridiagonal
    *("alphas", "betas", "residual_norm", "exhausted", "asymmetry", "orthogonal"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassSpectrum:
    """What is known of one class's Hessian; a field that is None is unknown."""

    label: str  # "overall", "class 8", "head": unique within an analysis
    name: str  # the class's own name, for people
    classes: tuple[int, ...] = ()  # class indices that the operator is the mean over; () is all
    count: int  # samples
    share: float  # of the data set's samples, 0..1
    samples_sha256: str | None = None  # of their labels and positions, and pixels if frozen draws
    loss: float | None = None
    loss_stderr: float | None = None  # over draws of the augmentation, where those are drawn anew
    train_accuracy: float | None = None  # 0..1
    test_accuracy: float | None = None  # 0..1
    lambda_min: float | None = None
    lambda_max: float | None = None
    residual_min: float | None = None  # some eigenvalue lies within it of lambda_min
    residual_max: float | None = None
    nonconvexity: float | None = None  # max(0, -lambda_min) / lambda_max
    negative_mass: float | None = None  # share of eigenvalues below -negative_mass_threshold
    negative_mass_stderr: float | None = None  # needs three probes
    negative_mass_bounds: tuple[float, float] | None = None  # what the quadrature leaves open
    negative_mass_threshold: float | None = None
    trace: float | None = None
    trace_stderr: float | None = None
    steps: int = 0  # Krylov steps of the longest run
    probes: int = 0  # finished Lanczos runs from random starts
    converged: bool = False  # both residuals are small
    doctor: Mapping[str, Any] = field(default_factory=dict)  # DOCTOR_KEYS
    certificate: Mapping[str, Any] = field(default_factory=dict)  # CERTIFICATE_KEYS
    protocol: Literal["exact", "released"] = "exact"
    operator: Literal["fixed", "resampled"] = "fixed"
    complete: bool = True  # False: interrupted between probes
    error: str | None = None  # why the numbers are missing; a failed class is a result, too
    notes: tuple[str, ...] = ()
    runs: tuple[Tridiagonal, ...] = ()  # one a probe, saved without basis; () if unknown
    quadratic_forms: tuple[float, ...] = ()  # (q,) vᵀHv of further random unit v
    known_forms: tuple[float, ...] = ()  # (q,) cᵀTc of the same v, see `krylov.trace`
    measure: SpectralMeasure | None = None  # nodes and weights, one pair a probe

    def __post_init__(self) -> None:
        found = self.probes if self.measure is None else len(self.measure.nodes)
        if found != self.probes or len(self.runs) not in (0, found):
            raise SpectraError(
                f"{self.label} has probes={self.probes}, nodes of {found} and {len(self.runs)} "
                "runs, expected one of each: the files could not be read back; give all of them"
            )

    @property
    def caveat(self) -> str | None:
        """Say what these numbers are not, where the operator was no fixed matrix."""
        moving = self.protocol == "released" or self.operator == "resampled"
        return CAVEAT if moving or self.doctor.get("fixed_operator") is False else None

    @property
    def finished(self) -> bool:
        """Tell whether all of its probes are made; one that failed is to be tried again."""
        return self.complete and self.error is None

    @property
    def proven(self) -> bool:
        """Tell whether the certificate proves that λmin is negative."""
        return bool(self.certificate.get("negative_curvature"))

    @property
    def ratios(self) -> list[float | None]:
        """Give the non-convexity of every probe by itself; the spectrum's is of all ends."""
        nodes = () if self.measure is None else self.measure.nodes
        floor = 0.0 if self.caveat else self.doctor.get("noise_floor") or 0.0
        return [nonconvexity(float(values[0]), float(values[-1]), floor) for values in nodes]

    @property
    def negative_mass_scatter(self) -> float | None:
        """Give the standard error of the negative mass that random starts alone would have.

        As measured over three probes or more. The weight that a random unit vector has on k of n
        eigenvectors follows the distribution Beta(k/2, (n − k)/2), which tells it for fewer.
        """
        share, dim = self.negative_mass, None if self.measure is None else self.measure.dim
        if self.negative_mass_stderr is not None or share is None or dim is None:
            return self.negative_mass_stderr
        spread = max(0.0, share * (1 - share))  # a sum of squares may be 1 and a rounding
        return math.sqrt(2 * spread / ((dim + 2) * self.probes))

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON object: every known key, plain types, unknown and non-finite as None."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in _ARRAYS]
        entry = {name: getattr(self, name) for name in names} | {"caveat": self.caveat}
        entry["doctor"] = dict.fromkeys(DOCTOR_KEYS) | dict(self.doctor)
        entry["certificate"] = dict.fromkeys(CERTIFICATE_KEYS) | dict(self.certificate)
        told: dict[str, Any] = plain(entry)
        return told

    def to_row(self) -> dict[str, Any]:
        """Give the same as a row of a table: nested keys as ``doctor_asymmetry``, lists joined.

        The bounds of the negative mass are columns of their own, ``negative_mass_low`` and
        ``negative_mass_high``, and where they lie more than `OPEN_MASS` apart, or start vectors
        scatter by more and none of it was measured, its own is empty: it would claim what nobody
        knows.
        """
        low, high = self.negative_mass_bounds or (None, None)
        entry: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            if name == "negative_mass_bounds":
                entry |= {"negative_mass_low": low, "negative_mass_high": high}
            else:
                entry[name] = value
        unseen = 0.0 if self.negative_mass_stderr is not None else self.negative_mass_scatter or 0.0
        if low is not None and high is not None and max(high - low, unseen) > OPEN_MASS:
            entry |= {"negative_mass": None, "negative_mass_stderr": None}
        nested = {name: entry.pop(name) for name in ("doctor", "certificate")}
        entry |= {name: " ".join(map(str, entry[name])) for name in ("classes", "notes")}
        return entry | {f"{a}_{b}": v for a, d in nested.items() for b, v in d.items()}


def to_arrays(spectrum: ClassSpectrum) -> dict[str, np.ndarray]:
    """Give what of a spectrum lies in ``esd.npz``, by its keys there."""
    label, measure = spectrum.label, spectrum.measure
    arrays = {
        f"{label}/{name}": np.array(getattr(spectrum, name), dtype=float)
        for name in ("quadratic_forms", "known_forms")
    }
    if measure is not None:
        arrays[f"{label}/dim"] = np.array(measure.dim)
        for p, (nodes, weights) in enumerate(zip(measure.nodes, measure.weights, strict=True)):
            arrays |= {f"{label}/probe {p}/nodes": nodes, f"{label}/probe {p}/weights": weights}
    for p, run in enumerate(spectrum.runs):
        arrays |= {f"{label}/probe {p}/{key}": np.asarray(getattr(run, key)) for key in _RUN}
    return arrays


def to_spectrum(
    entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path
) -> ClassSpectrum:
    """Build a spectrum from its object in ``esd.json`` and the arrays beside it.

    Args:
        entry: the object.
        arrays: all of ``esd.npz``.
        path: of ``esd.json``, for messages.

    Raises:
        SpectraError: if the two do not belong together.
    """
    names = {f.name for f in dataclasses.fields(ClassSpectrum)} - set(_ARRAYS)
    fields = {name: value for name, value in entry.items() if name in names}
    fields["classes"] = tuple(fields.get("classes", ()))
    fields["notes"] = tuple(fields.get("notes", ()))
    bounds = fields.get("negative_mass_bounds")
    fields["negative_mass_bounds"] = None if bounds is None else tuple(bounds)
    label, probes = entry["label"], range(entry["probes"])

    def kept(probe: str) -> dict[str, Any]:
        found = {key: arrays[f"{probe}/{key}"] for key in _RUN if key != "orthogonal"}
        found["orthogonal"] = arrays.get(f"{probe}/orthogonal", np.array(True))  # older files
        return {key: value if value.ndim else value.item() for key, value in found.items()}

    try:
        fields["quadratic_forms"] = tuple(arrays[f"{label}/quadratic_forms"].tolist())
        known = arrays.get(f"{label}/known_forms", np.zeros(0))  # older files know nothing
        fields["known_forms"] = tuple(known.tolist())
        if f"{label}/dim" not in arrays:
            return ClassSpectrum(**fields)
        dim = int(arrays[f"{label}/dim"])
        nodes = tuple(arrays[f"{label}/probe {p}/nodes"] for p in probes)
        weights = tuple(arrays[f"{label}/probe {p}/weights"] for p in probes)
        runs = tuple(
            Tridiagonal(**kept(f"{label}/probe {p}"), basis=None, dim=dim)
            for p in probes
            if f"{label}/probe {p}/alphas" in arrays
        )
    except KeyError as error:
        raise SpectraError(
            f"{path.with_name('esd.npz')} has no {error}, which {path.name} speaks of: the two "
            "are of different runs; run the analysis again"
        ) from error
    measure = SpectralMeasure(nodes=nodes, weights=weights, dim=dim) if nodes else None
    return ClassSpectrum(**fields, runs=runs, measure=measure)
