"""What all figures share: colours, style, the layout of a page, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spectra.files import replacing
from spectra.results import CAVEAT, Analysis

COLOURS = {"head": "#F08080", "mid": "#6495ED", "tail": "#FFD700"}
PLAIN, OUTSIDE, ALARM, INK = "#1f77b4", "#8C8C8C", "#B22222", "#262626"
STYLE = Path(__file__).parents[1] / "spectra.mplstyle"
RIBBON, LINE = 0.15, 0.14  # inches: heights of a ribbon and of a line of facts
_WIDTHS = {1: 3.6, 2: 6.4, 3: 8.4}  # of grids, inches by columns; 10 for more
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.62, 0.08, 0.78, 0.42  # inches around the panels


def lay_out(
    count: int,
    columns: int,
    width: float,
    *,
    lines: int,
    ribbon: bool,
    x: str,
    y: str,
) -> tuple[Figure, list[Axes]]:
    """Lay panels out in inches, so that nothing depends on what is drawn in them.

    Args:
        count: panels.
        columns: of panels.
        width: of the figure in inches.
        lines: of facts above the panels.
        ribbon: whether room for ribbons is needed.
        x: label of the common axis.
        y: label of the other.
    """
    top, gap = _TOP + LINE * lines + RIBBON * ribbon, 0.36 + RIBBON * ribbon
    wide = (width - _LEFT - _RIGHT - 0.14 * (columns - 1)) / columns
    high = wide * (0.62 if columns < 4 else 0.7)
    rows = max(1, math.ceil(count / columns))
    height = top + rows * high + (rows - 1) * gap + _BOTTOM
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    panels = []
    for k in range(count):
        left = _LEFT + k % columns * (wide + 0.14)
        low = height - top - high - k // columns * (high + gap)
        ax = figure.add_axes((left / width, low / height, wide / width, high / height))
        ax.tick_params(labelleft=k % columns == 0, labelbottom=k + columns >= count)
        panels.append(ax)
    middle = (height - top + _BOTTOM) / 2 / height
    figure.text(0.12 / width, middle, y, rotation=90, ha="left", va="center")
    figure.text((width + _LEFT - _RIGHT) / 2 / width, 0.08 / height, x, ha="center")
    return figure, panels


def open_grid(
    columns: int, rows: int, height: float, title: str, *, solid_below: bool = False
) -> tuple[Figure, np.ndarray]:
    """Open a figure with a grid of axes that lays itself out.

    Args:
        columns: of the grid.
        rows: of the grid.
        height: of the figure in inches.
        title: bold, at the left; none where it is empty.
        solid_below: the rows below the first have three dimensions.

    Returns:
        The figure, and its axes (rows, columns).
    """
    figure = Figure(figsize=(_WIDTHS.get(columns, 10.0), height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9.5)
    panels = np.empty((rows, columns), dtype=object)
    for k in range(rows * columns):
        kind = {"projection": "3d"} if solid_below and k >= columns else {}
        panels[k // columns, k % columns] = figure.add_subplot(rows, columns, k + 1, **kind)
    return figure, panels


def leave_empty(*panels: Axes) -> None:
    """Say in the first of some axes that what belongs there is not computed yet."""
    for ax in panels:  # not invisible: a layout with a colour bar counts on every place
        ax.set_axis_off()
        ax.patch.set_visible(False)
    words = panels[0].text(0.5, 0.5, "not computed yet", transform=panels[0].transAxes)
    words.set(ha="center", color=ALARM)


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Write a legend below everything, as many in a row as there is room for."""
    columns = max(1, int(figure.get_figwidth() / 2.4))
    figure.legend(handles=handles, loc="outside lower left", ncols=columns)


def facts_of(*analyses: Analysis, **more: object) -> str:
    """List the data and the settings that decide the numbers, each value once."""
    held: dict[str, list[object]] = {}
    for analysis in analyses:
        data, settings = analysis.data, analysis.settings
        facts = {"data": data.get("name"), "split": data.get("split")}
        keys = ("loss", "protocol", "augment", "steps", "probes", "dtype", "max_samples")
        for key, value in (facts | {key: settings.get(key) for key in keys} | more).items():
            if value is not None and value not in held.setdefault(key, []):
                held[key].append(value)
    return ",  ".join(
        f"{key}\N{NO-BREAK SPACE}{' and '.join(map(str, values))}"
        for key, values in held.items()
        if values
    )


def write_head(
    figure: Figure,
    title: str,
    facts: Sequence[str],
    handles: Sequence[Any],
    *,
    page: str = "",
    columns: int | None = None,
) -> None:
    """Write above the panels whose they are and what their marks mean.

    Args:
        figure: the page.
        title: bold, at the left.
        facts: lines below it.
        handles: of the legend below them.
        page: at the right.
        columns: of the legend; all in one row if None.
    """
    width, height = figure.get_size_inches()
    left, top, below = 0.12 / width, 1 - 0.1 / height, 1 - 0.31 / height
    figure.text(left, top, title, va="top", fontweight="bold", fontsize=9.5)
    figure.text(1 - _RIGHT / width, top, page, va="top", ha="right")
    figure.text(left, below, "\n".join(facts), va="top", fontsize=7.5, linespacing=1.3)
    anchor = (0.05 / width, below - LINE * len(facts) / height)
    columns = columns or len(handles)
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=anchor, ncols=columns)


def add_ribbon(ax: Axes, *, shown: bool) -> float:
    """Say above a panel what its numbers are not; give the height that a title starts from."""
    if not shown:
        return 1.0
    top = 1.0 + RIBBON / size_of(ax)[1]
    ribbon = Rectangle((0, 1), 1, top - 1, transform=ax.transAxes, clip_on=False, color=ALARM)
    ax.add_patch(ribbon)
    words = ax.text(0.5, 0.55 + 0.45 * top, CAVEAT, transform=ax.transAxes)
    words.set(ha="center", va="center", color="white", weight="bold", fontsize=7)
    return top


def size_of(ax: Axes) -> tuple[float, float]:
    """Give width and height of axes in inches."""
    place, size = ax.get_position(), ax.figure.get_figure(root=True).get_size_inches()
    return float(place.width * size[0]), float(place.height * size[1])


def save(figures: Sequence[Figure], folder: str | Path, stem: str = "esd") -> list[Path]:
    """Write every page as png and pdf: ``esd.png``, ``esd-2.png``, ...; equal input, equal bytes.

    Returns:
        The paths, in the order of the pages.

    Raises:
        SpectraError: If the disk is full or the folder cannot be written.
    """
    paths = []
    dateless: Mapping[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": "spectra", "Producer": None},
    }
    with mpl.rc_context(fname=STYLE):
        for i, figure in enumerate(figures):
            for kind, metadata in dateless.items():
                path = Path(folder) / f"{stem}{f'-{i + 1}' if i else ''}.{kind}"
                with replacing(path) as partial:
                    figure.savefig(partial, format=kind, metadata=metadata)
                paths.append(path)
    return paths
