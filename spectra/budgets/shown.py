"""What a notebook shows: figures, tables, and analyses side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from spectra import Analysis
from spectra.tables import to_markdown


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True)
class Table:
    """A table as a notebook shows it."""

    text: str = field(repr=False)

    def _repr_markdown_(self) -> str:
        return self.text


def table(analysis: Analysis) -> Table:
    """Set the table of an analysis, with the footer that explains its marks."""
    return Table(to_markdown(analysis))


def beside(**analyses: Analysis) -> Analysis:
    """Put analyses together, to be drawn over the same axes; each label gets its analysis's name.

    Args:
        analyses: by what is said of them, as ``exact`` and ``released``.

    Returns:
        All spectra, one analysis after the other. Settings that differ hold all their values.
    """
    parts = list(analyses.values())
    spectra = [
        replace(spectrum, label=f"{spectrum.label}, {name}")
        for name, analysis in analyses.items()
        for spectrum in analysis.spectra
    ]

    def joined(section: str) -> dict[str, Any]:
        keys = dict.fromkeys(key for part in parts for key in getattr(part, section))
        together: dict[str, Any] = {}
        for key in keys:
            values = [getattr(p, section)[key] for p in parts if key in getattr(p, section)]
            different = [v for i, v in enumerate(values) if v not in values[:i]]
            together[key] = (
                different[0] if len(different) == 1 else " and ".join(map(str, different))
            )
        return together

    return replace(
        parts[0],
        checkpoint=joined("checkpoint"),
        settings=joined("settings") | {"kernel": "default"},
        spectra=tuple(spectra),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
