"""Draw everything that a stored landscape holds, four columns a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from matplotlib.figure import Figure

from spectra.landscape import Landscape, rows_of

from .amplifications import amplification_panels
from .pages import COLUMNS
from .slices import slice_panels
from .surfaces import surface_panels

Held = TypeVar("Held")


def landscape_pages(landscape: Landscape) -> dict[str, list[Figure]]:
    """Draw everything that a landscape holds.

    Returns:
        Pages by name: slices, and surfaces and amplification where they were looked at. The panels
        of a page share their scales, those of two pages do not.
    """
    settings = landscape.settings
    title = ", ".join(
        [
            str(landscape.checkpoint.get("file", "")),
            *["test split"] * (settings.get("split") == "test"),
            *["trained loss"] * (settings.get("loss") == "trained"),
            *[f"at most {n} samples of each" for n in [settings.get("max_samples")] if n],
        ]
    )
    ends: tuple[Literal["λmin", "λmax"], ...] = ("λmin", "λmax")
    planes: tuple[Literal["Ritz", "random"], ...] = ("Ritz", "random")
    slices = [(f"{x}, {end}", landscape.slice(x, end)) for x in landscape.labels for end in ends]
    surfaces = [
        (f"{x}, {plane} plane", seen)
        for x in landscape.labels
        for plane in planes
        if (seen := landscape.surface(x, plane)) is not None
    ]
    pages = {"slices": [slice_panels(dict(part), title=title) for part in _paged(slices)]}
    if surfaces:
        pages["surfaces"] = [surface_panels(dict(part), title=title) for part in _paged(surfaces)]
    if (measured := landscape.amplification) is not None:
        names = landscape.directions
        pages["amplification"] = [
            amplification_panels(
                measured, names, title=title, shown=part, loss=str(settings.get("loss", "ce"))
            )
            for part in _paged(rows_of(names)[0])
        ]
    return pages


def _paged(columns: Sequence[Held]) -> list[Sequence[Held]]:
    """Cut columns into pages; no column is one empty page."""
    return [columns[i : i + COLUMNS] for i in range(0, max(1, len(columns)), COLUMNS)]
