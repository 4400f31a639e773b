"""What a notebook shows: figures, tables, and analyses side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spectra import Analysis
from spectra.tables import to_markdown
from spectra.writing import Markdown


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


def table(analysis: Analysis) -> Markdown:
    """Set the table of an analysis, with the footer that explains its marks."""
    return Markdown(to_markdown(analysis))


def beside(**analyses: Analysis) -> Analysis:
    """Put analyses together, to be drawn over the same axes; each label gets its analysis's name.

    Args:
        analyses: by what is said of them, as ``exact`` and ``released``.

    Returns:
        All spectra, one analysis after the other. Settings that differ hold all their values.
    """
    spectra = [
        replace(spectrum, label=f"{spectrum.label}, {name}")
        for name, analysis in analyses.items()
        for spectrum in analysis.spectra
    ]
    together = merged(list(analyses.values()))
    settings = {**together.settings, "kernel": "default"}
    return replace(together, settings=settings, spectra=tuple(spectra))


def merged(parts: Sequence[Analysis]) -> Analysis:
    """Join what analyses say of themselves, without their spectra; all values where they differ."""

    def joined(section: str) -> dict[str, Any]:
        held = [getattr(part, section) for part in parts]
        keys = dict.fromkeys(key for values in held for key in values)
        return {key: one([values[key] for values in held if key in values], key) for key in keys}

    def one(values: Sequence[Any], key: str = "") -> Any:
        different = [v for i, v in enumerate(values) if v not in values[:i]]
        if len(different) == 1:
            return different[0]
        if key == "max_samples":
            different = ["all" if value is None else value for value in different]
        told = (part for value in different for part in str(value).split(" and "))
        return " and ".join(dict.fromkeys(told))  # parts may have been joined themselves

    return Analysis(
        checkpoint=joined("checkpoint"),
        data=joined("data"),
        settings=joined("settings"),
        device=one([part.device for part in parts if part.device] or [""]),
        versions=joined("versions"),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
