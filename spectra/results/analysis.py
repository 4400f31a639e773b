"""All spectra of one checkpoint, saved and read back."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectra.errors import SpectraError
from spectra.files import plain, write_pair

from .reading import SCHEMA, read_arrays, read_json
from .spectrum import ClassSpectrum, to_arrays, to_spectrum

_TOLD = ("parameters", "augment", "dtype", "seed", "max_samples")  # settings that get a column


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """All spectra of one checkpoint, with what is needed to believe and to repeat them."""

    checkpoint: Mapping[str, Any]  # file, sha256, arch, epoch
    data: Mapping[str, Any]  # name, split, fingerprints, counts; groups
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
            arrays |= to_arrays(spectrum)
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
        document = read_json(path)
        arrays = read_arrays(path.with_name("esd.npz"))
        spectra = tuple(to_spectrum(entry, arrays, path) for entry in document["spectra"])
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
