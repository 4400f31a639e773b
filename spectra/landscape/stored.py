"""Hold what was seen around a checkpoint, write it, and read it back without one product.

Two files in one folder, schema 1; unknown is null:

``landscape.json``: ``schema``; ``checkpoint``, ``data``, ``settings``, ``device``, ``versions``
and ``notes`` as in ``esd.json``, the fields of `Survey` among the settings; ``directions``, the
names of the rows of the amplification; and ``views``, one object a class: ``label``, ``name``,
``classes``, ``count``, ``loss``, and the certificates of both Ritz vectors, ``low`` (λmin) and
``high`` (λmax).

``landscape.npz``: the fields of the records below under "class 8/along_low/...", ".../along_high",
".../plane", ".../random" and "amplification/...", and "schema", "checkpoint_sha256", by which a
file beside the wrong ``landscape.json`` is refused. The vectors themselves are not kept.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from spectra.doctor import Certificate
from spectra.errors import SpectraError
from spectra.files import write_pair
from spectra.landscape.slices import Differences, Slice
from spectra.landscape.statistics import Amplification
from spectra.landscape.surfaces import Surface

SCHEMA = 1
STEM = "landscape"
_NESTED = ("second_difference", "slope_difference")  # records within a Slice
_ABOUT = ("checkpoint", "data", "settings", "device", "versions")
_SEEN = {"along_low": Slice, "along_high": Slice, "plane": Surface, "random": Surface}
CONTROL = "random"  # name of each direction that is no Ritz vector
Record = TypeVar("Record")


def rows_of(directions: Sequence[str]) -> tuple[list[int], list[int]]:
    """List the rows of an amplification that have a name, and those of the controls."""
    controls = [k for k, name in enumerate(directions) if name == CONTROL]
    return [k for k in range(len(directions)) if k not in controls], controls


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What was seen around the parameters of one class's loss."""

    label: str  # "class 8", "overall"
    name: str  # the class's own name, for people
    classes: tuple[int, ...]  # () is all
    count: int  # samples
    low: Certificate  # of the Ritz vector of λmin
    high: Certificate  # of that of λmax
    along_low: Slice
    along_high: Slice
    plane: Surface | None = None  # α along the vector of λmin, β along that of λmax
    random: Surface | None = None  # two filter-normalised random directions

    @property
    def loss(self) -> float:
        """Give L(w), in float64."""
        return self.along_low.loss


@dataclass(frozen=True, kw_only=True, eq=False)
class Landscape:
    """All views of one checkpoint, with what is needed to believe and to repeat them."""

    checkpoint: Mapping[str, Any]  # file, sha256, arch, epoch
    data: Mapping[str, Any]  # as in `results`
    settings: Mapping[str, Any]
    device: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    views: tuple[View, ...] = ()
    amplification: Amplification | None = None
    directions: tuple[str, ...] = ()  # names of its rows: "class 8 λmin", ..., "random"

    @property
    def labels(self) -> tuple[str, ...]:
        """List the labels that are present, in order."""
        return tuple(view.label for view in self.views)

    def get(self, label: str) -> View | None:
        """Find a view by its label, None if it is absent."""
        return next((view for view in self.views if view.label == label), None)

    def slice(self, label: str, end: Literal["λmin", "λmax"]) -> Slice | None:
        """Find the slice along one of a view's Ritz vectors, None if it is absent."""
        view = self.get(label)
        return None if view is None else view.along_low if end == "λmin" else view.along_high

    def surface(self, label: str, plane: Literal["Ritz", "random"] = "Ritz") -> Surface | None:
        """Find the surface of a view over one of the two planes, None if it is absent."""
        view = self.get(label)
        return None if view is None else view.plane if plane == "Ritz" else view.random

    def save(self, folder: str | Path) -> Path:
        """Write ``landscape.npz`` and ``landscape.json``, whole or not at all.

        Args:
            folder: made if absent.

        Returns:
            The path of ``landscape.json``.

        Raises:
            SpectraError: If the disk is full or the folder cannot be written.
        """
        arrays = {"schema": np.array(SCHEMA), "checkpoint_sha256": np.array(self._sha256)}
        views = []
        for view in self.views:
            for name in _SEEN:
                arrays |= _packed(f"{view.label}/{name}", getattr(view, name))
            plain = {key: getattr(view, key) for key in ("label", "name", "classes", "count")}
            ends = {"low": asdict(view.low), "high": asdict(view.high)}
            views.append(plain | {"loss": view.loss} | ends)
        arrays |= _packed("amplification", self.amplification)
        head = {name: getattr(self, name) for name in (*_ABOUT, "notes", "directions")}
        path = Path(folder) / f"{STEM}.json"
        document = {"schema": SCHEMA, **head, "views": views}
        write_pair(path, document, arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Landscape:
        """Read a landscape back, finished or not.

        Args:
            path: ``landscape.json``, or the folder that it lies in.

        Raises:
            SpectraError: If a file is missing, truncated, of something else or of another schema.
        """
        path = Path(path)
        path = path / f"{STEM}.json" if path.is_dir() else path
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise ValueError(f"schema {document['schema']!r}, expected {SCHEMA}")
            binary = path.with_suffix(".npz")
            with binary.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            views = tuple(_view(entry, arrays) for entry in document["views"])
            found = cls(
                **{name: document[name] for name in _ABOUT},
                notes=tuple(document["notes"]),
                views=views,
                amplification=_unpacked(Amplification, "amplification", arrays),
                directions=tuple(document["directions"]),
            )
        except OSError as error:
            raise SpectraError(
                f"no landscape can be read at {path} ({error.strerror or error}); expected "
                f"{STEM}.json and {STEM}.npz; make them with `python -m spectra.landscape CKPT`"
            ) from error
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise SpectraError(
                f"{path} or its {STEM}.npz is truncated or no landscape ({error}), and a guess at "
                "the rest would be a wrong result; run spectra.landscape again"
            ) from error
        if str(arrays.get("checkpoint_sha256")) != found._sha256:
            raise SpectraError(
                f"{path.with_suffix('.npz')} belongs to another checkpoint than {path}: it would "
                "be drawn under a wrong name; run spectra.landscape again"
            )
        return found

    @property
    def _sha256(self) -> str:
        return str(self.checkpoint.get("sha256"))


def _view(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> View:
    label = entry["label"]
    seen: dict[str, Any] = {
        name: _unpacked(kind, f"{label}/{name}", arrays) for name, kind in _SEEN.items()
    }
    if seen["along_low"] is None or seen["along_high"] is None:
        raise KeyError(f"no slice of {label}")
    return View(
        label=label,
        name=entry["name"],
        classes=tuple(entry["classes"]),
        count=entry["count"],
        low=Certificate(**entry["low"]),
        high=Certificate(**entry["high"]),
        **seen,
    )


def _packed(place: str, record: Any) -> dict[str, np.ndarray]:
    """List the fields of a record, and of the records in it, as arrays."""
    arrays: dict[str, np.ndarray] = {}
    for field in fields(record) if record is not None else ():
        name, value = f"{place}/{field.name}", getattr(record, field.name)
        if is_dataclass(value):
            arrays |= _packed(name, value)
        elif value is not None:
            arrays[name] = np.asarray(value)
    return arrays


def _unpacked(kind: type[Record], place: str, arrays: Mapping[str, np.ndarray]) -> Record | None:
    """Build a record from what `_packed` listed; None where nothing is kept at the place."""
    if not any(name.startswith(f"{place}/") for name in arrays):
        return None
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        name = f"{place}/{field.name}"
        if field.name in _NESTED:
            values[field.name] = _unpacked(Differences, name, arrays)
        elif str(field.type).startswith("tuple"):
            values[field.name] = tuple(arrays[name].tolist())
        else:
            values[field.name] = arrays[name] if arrays[name].ndim else arrays[name].item()
    return kind(**values)
