"""Draw everything that a stored landscape holds."""

from __future__ import annotations

from typing import Literal

from matplotlib.figure import Figure

from spectra.landscape import Landscape

from .amplifications import amplification_panels
from .slices import slice_panels
from .surfaces import surface_panels


def landscape_pages(landscape: Landscape) -> dict[str, list[Figure]]:
    """Draw everything that a landscape holds.

    Returns:
        Figures by name: slices, and surfaces and amplification where they were looked at.
    """
    title = str(landscape.checkpoint.get("file", ""))
    ends: tuple[Literal["λmin", "λmax"], ...] = ("λmin", "λmax")
    planes: tuple[Literal["Ritz", "random"], ...] = ("Ritz", "random")
    slices = {f"{x}, {end}": landscape.slice(x, end) for x in landscape.labels for end in ends}
    surfaces = {
        f"{x}, {plane} plane": seen
        for x in landscape.labels
        for plane in planes
        if (seen := landscape.surface(x, plane)) is not None
    }
    pages = {"slices": [slice_panels(slices, title=title)]}
    if surfaces:
        pages["surfaces"] = [surface_panels(surfaces, title=title)]
    if landscape.amplification is not None:
        measured = landscape.amplification
        pages["amplification"] = [amplification_panels(measured, landscape.directions, title=title)]
    return pages
