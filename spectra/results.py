"""Hold what an analysis found, write it, and read it back without one Hessian-vector product.

Two files in one folder, a public format, schema 1. Unknown is null: never zero, never NaN.

``esd.json``, readable by anything: ``schema``, ``checkpoint`` (file, sha256, arch, epoch),
``data`` (name, split, draw_sha256, pixels_sha256, mean, std, augmentation, counts; groups, e.g.
{"head": [0, 1, 2], ...}),
``settings`` (every flag as resolved, file names without folders), ``device``, ``versions``,
``notes``, and ``spectra``: one object a class, in the order asked for, with the fields of
`ClassSpectrum` up to ``notes`` and the derived ``caveat`` (null, or "not the spectrum of a
matrix") under their own names. Losses and eigenvalues are of per-sample means; accuracies and
``share`` lie in 0..1. Further keys may come within schema 1, none goes or changes its meaning.

``esd.npz``, what figures are redrawn from and an interrupted run goes on from. Per label (L) and
probe p = 0, 1, ...:

    "L/dim"                       ()       number of parameters n
    "L/quadratic_forms"           (q,)     vᵀHv of further random unit v: n·vᵀHv estimates tr(H)
    "L/known_forms"               (q,)     what T of probe 0 knows of them, in whose place the trace
                                           has tr(T); empty where it knows nothing
    "L/probe p/alphas", ".../betas"        (m,) and (m-1,), the diagonals of Lanczos' T
    "L/probe p/residual_norm"     ()       ‖r‖ after the last step
    "L/probe p/exhausted"         ()       whether the Krylov space ended there
    "L/probe p/asymmetry"         ()       largest |q_iᵀHq_j| that T holds for zero
    "L/probe p/orthogonal"        ()       false without a basis: T may hold values repeatedly
    "L/probe p/nodes", ".../weights"       (m,) Ritz values ascending, and weights that sum to 1

and "schema", "checkpoint_sha256", by which a file beside the wrong ``esd.json`` is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spectra.errors import SpectraError
from spectra.files import plain, write_pair
from spectra.krylov import SpectralMeasure, Tridiagonal, nonconvexity

SCHEMA = 1
CAVEAT = "not the spectrum of a matrix"
OPEN_MASS = 0.01  # where bounds of the share below zero lie farther apart, tables tell these alone
DOCTOR_KEYS = ("fixed_operator", "repeatability", "asymmetry", "noise_floor")
CERTIFICATE_KEYS = (
    *("operator", "dtype", "rayleigh_quotient", "residual"),
    *("noise_floor", "negative_curvature", "lower_bound_95"),
)
_TOLD = ("parameters", "augment", "dtype", "seed", "max_samples")  # settings that get a column
_ARRAYS = ("runs", "quadratic_forms", "known_forms", "measure")  # these live in esd.npz
_RUN = (  # of a Tridiagonal
    *("alphas", "betas", "residual_norm", "exhausted", "asymmetry", "orthogonal"),
)
_NUMBERS = (
    *("count", "share", "loss", "train_accuracy", "test_accuracy", "lambda_min", "lambda_max"),
    *("residual_min", "residual_max", "nonconvexity", "negative_mass", "negative_mass_threshold"),
    *("trace", "trace_stderr", "steps", "probes"),
)
_REQUIRED = ("label", "name", *_NUMBERS, "converged", "doctor", "certificate")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassSpectrum:
    """What is known of one class's Hessian; a field that is None is unknown."""

    label: str  # "overall", "class 8", "head": unique within an analysis
    name: str  # the class's own name, for people
    classes: tuple[int, ...] = ()  # class indices that the operator is the mean over; () is all
    count: int  # samples
    share: float  # of the data set's samples, 0..1
    samples_sha256: str | None = None  # labels, positions, and pixels of which `data` has no print
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """All spectra of one checkpoint, with what is needed to believe and to repeat them."""

    checkpoint: Mapping[str, Any]  # file, sha256, arch, epoch
    data: Mapping[str, Any]  # name, split, draw_sha256, pixels_sha256, counts; groups
    settings: Mapping[str, Any]
    device: str
    versions: Mapping[str, str]
    spectra: tuple[ClassSpectrum, ...] = ()
    notes: tuple[str, ...] = ()  # lines for the reader, e.g. that pixels differ

    def __post_init__(self) -> None:
        repeated = [label for label, times in Counter(self.labels).items() if times > 1]
        if repeated:
            raise SpectraError(
                f"got several spectra of {', '.join(repeated)}, expected each label once: one "
                "would hide the other in the files; select each class once"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """List the labels that are present, in order: negative, zero and failed ones count."""
        return tuple(spectrum.label for spectrum in self.spectra)

    @property
    def finished(self) -> tuple[str, ...]:
        """List the labels that a resumed run need not touch again."""
        return tuple(spectrum.label for spectrum in self.spectra if spectrum.finished)

    def get(self, label: str) -> ClassSpectrum | None:
        """Find a spectrum by its label, None if it is absent."""
        return next((s for s in self.spectra if s.label == label), None)

    def group_of(self, spectrum: ClassSpectrum) -> str | None:
        """Tell head, mid or tail, where they are known and the spectrum lies in one."""
        groups: Mapping[str, Sequence[int]] = self.data.get("groups") or {}
        if spectrum.label in groups:
            return spectrum.label
        inside = (name for name, classes in groups.items() if set(spectrum.classes) <= set(classes))
        return next(inside, None) if spectrum.classes else None

    def rows(self) -> list[dict[str, Any]]:
        """Give one row a spectrum: its own columns, then those that tell it from other analyses'.

        These are ``checkpoint`` and ``epoch``, ``group`` (head, mid or tail), ``data`` and
        ``split``, ``criterion`` (ce or trained), some settings, and ``checkpoint_sha256``.
        """
        settings, held = self.settings, self.checkpoint
        return [
            {
                **spectrum.to_row(),
                "checkpoint": held.get("file"),
                "epoch": held.get("epoch"),
                "group": self.group_of(spectrum),
                "data": self.data.get("name"),
                "split": self.data.get("split"),
                "criterion": settings.get("loss"),
                **{key: settings.get(key) for key in _TOLD},
                "checkpoint_sha256": held.get("sha256"),
            }
            for spectrum in self.spectra
        ]

    def with_spectrum(self, spectrum: ClassSpectrum) -> Analysis:
        """Put a spectrum in the place of the one with its label, or at the end."""
        spectra = tuple(spectrum if s.label == spectrum.label else s for s in self.spectra)
        if spectrum.label not in self.labels:
            spectra += (spectrum,)
        return dataclasses.replace(self, spectra=spectra)

    def with_notes(self, notes: Sequence[str]) -> Analysis:
        """Add lines for the reader that are not there yet."""
        return dataclasses.replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))

    def to_dict(self) -> dict[str, Any]:
        """Give the whole of ``esd.json``."""
        names = ("checkpoint", "data", "settings", "device", "versions", "notes")
        head: dict[str, Any] = plain({name: getattr(self, name) for name in names})
        spectra = [spectrum.to_dict() for spectrum in self.spectra]
        return {"schema": SCHEMA, **head, "spectra": spectra}

    def save(self, folder: str | Path) -> Path:
        """Write ``esd.npz`` and ``esd.json``, each under a temporary name first.

        Args:
            folder: made if absent; the files of an earlier save are replaced, or stay whole.

        Returns:
            The path of ``esd.json``.

        Raises:
            SpectraError: If the disk is full or the folder cannot be written.
        """
        folder = Path(folder)
        arrays = {"schema": np.array(SCHEMA), "checkpoint_sha256": np.array(self._sha256)}
        for spectrum in self.spectra:
            arrays |= _to_arrays(spectrum)
        path = folder / "esd.json"
        write_pair(path, self.to_dict(), arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Analysis:
        """Read an analysis back, finished or not.

        Args:
            path: ``esd.json``, or the folder that it lies in; ``esd.npz`` lies beside it.

        Raises:
            SpectraError: If a file is missing, truncated, of something else or of another schema.
        """
        path = Path(path)
        path = path / "esd.json" if path.is_dir() else path
        document = _read_json(path)
        arrays = _read_arrays(path.with_name("esd.npz"))
        spectra = tuple(_to_spectrum(entry, arrays, path) for entry in document["spectra"])
        names = ("checkpoint", "data", "settings", "device", "versions")
        notes = tuple(document.get("notes", ()))
        analysis = cls(**{name: document[name] for name in names}, spectra=spectra, notes=notes)
        if str(arrays.get("checkpoint_sha256")) != analysis._sha256:
            raise SpectraError(
                f"{path.with_name('esd.npz')} belongs to another checkpoint than {path}: its "
                "densities would be drawn under wrong names; run the analysis again"
            )
        return analysis

    @property
    def _sha256(self) -> str:
        return str(self.checkpoint.get("sha256"))


def _to_arrays(spectrum: ClassSpectrum) -> dict[str, np.ndarray]:
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


def _to_spectrum(
    entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path
) -> ClassSpectrum:
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise SpectraError(
            f"no results can be read at {path} ({error.strerror or error}); expected the esd.json "
            "of an analysis, or its folder; make one with `python -m spectra.esd CKPT`"
        ) from error
    except ValueError as error:
        raise SpectraError(
            f"{path} is truncated or no JSON ({error}); expected an esd.json, and a guess at the "
            "rest would be a wrong result; run the analysis again"
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        got = "no result of spectra" if schema is None else f"a result with schema {schema!r}"
        raise SpectraError(
            f"{path} is {got}, expected schema {SCHEMA}: its numbers would be misread; "
            "run the analysis again with this version"
        )
    wrong = _faults(document)
    if wrong:
        raise SpectraError(
            f"{path} does not keep to schema {SCHEMA}: {', '.join(wrong[:5])}"
            f"{', ...' * (len(wrong) > 5)}; it was edited or cut; run the analysis again"
        )
    return dict(document)


def _faults(document: Mapping[str, Any]) -> list[str]:
    keys = {"checkpoint": dict, "data": dict, "settings": dict, "device": str, "versions": dict}
    faults = [
        f"{key} is no {kind.__name__}"
        for key, kind in {**keys, "spectra": list}.items()
        if not isinstance(document.get(key), kind)
    ]
    entries = () if faults else document["spectra"]
    for i, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        faults += [f"spectra[{i}].{key} is missing" for key in _REQUIRED if key not in entry]
        for key in _NUMBERS:
            value, known = entry.get(key), key in ("count", "share", "steps", "probes")
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float | None)
                or (known and key in entry and value is None)
            ):
                faults.append(f"spectra[{i}].{key} = {value!r} is no number")
    return faults


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpectraError(
            f"{path} cannot be read ({reason}); expected the nodes and weights that lie beside "
            "esd.json, without which no density can be drawn; run the analysis again"
        ) from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
