"""What all figures share: colours, style, the layout of a page, and how it is written."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from spectra.files import replacing
from spectra.results import CAVEAT, Analysis

COLOURS = {"head": "#F08080", "mid": "#6495ED", "tail": "#FFD700"}
PLAIN, OUTSIDE, ALARM, INK = "#1f77b4", "#8C8C8C", "#B22222", "#262626"
STYLE = Path(__file__).parents[1] / "spectra.mplstyle"
COLUMN, TEXT = 3.4, 7.0  # inches: widths of one column and of both; wider would print too small
COLUMNS = 4  # most panels side by side
RIBBON = 0.15  # inches: height of a ribbon
_LEFT, _RIGHT, _BOTTOM, _GAP = 0.62, 0.1, 0.42, 0.14  # inches around the panels and between them
_TITLE, _FACT, _KEY, _NAME = 0.19, 0.14, 0.165, 0.14  # inches: lines of the head and of a panel
# Widths of letters in inches, a little generous.
_LETTERS = {"title": 0.081, "panel": 0.075, "fact": 0.054, "key": 0.06}
_EXACT, _MORE = 48, 48  # colours of a file: the most frequent ones, and those that cover the rest


@dataclass(frozen=True)
class Head:
    """Say above the panels whose they are and what their marks mean, in as many lines as it takes.

    Args:
        title: bold, at the left.
        facts: below it, in one string.
        handles: of the legend below them.
        width: of the page in inches.
    """

    title: str
    facts: str
    handles: Sequence[Any]
    width: float

    @property
    def height(self) -> float:
        """Tell how many inches it takes from the top."""
        lines = _TITLE * len(self._titles) + _FACT * len(self._facts)
        return 0.18 + lines + _KEY * math.ceil(len(self.handles) / self._across)

    def write(self, figure: Figure) -> None:
        """Write it."""
        width, height = figure.get_size_inches()
        left, top = 0.12 / width, height - 0.1
        titles, facts = (plain_text("\n".join(part)) for part in (self._titles, self._facts))
        figure.text(left, top / height, titles, va="top", fontweight="bold")
        top -= 0.02 + _TITLE * len(self._titles)
        words = figure.text(left, top / height, facts, va="top", fontsize=7.5)
        words.set_linespacing(1.3)
        anchor = (0.05 / width, (top - _FACT * len(self._facts)) / height)
        if self.handles:
            figure.legend(
                handles=self.handles, loc="upper left", bbox_to_anchor=anchor, ncols=self._across
            )

    @property
    def _titles(self) -> list[str]:
        return textwrap.wrap(self.title, self._room("title"))

    @property
    def _facts(self) -> list[str]:
        return textwrap.wrap(self.facts, self._room("fact"))

    @property
    def _across(self) -> int:
        return columns_of(self.handles, self.width)

    def _room(self, kind: str) -> int:
        return int((self.width - 0.2) / _LETTERS[kind])


def plain_text(text: str) -> str:
    """Write what others have named, in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def wrapped(text: str, width: float) -> list[str]:
    """Break the title of a panel into lines that fit into so many inches."""
    return textwrap.wrap(text, max(1, int(width / _LETTERS["panel"])))


def columns_of(handles: Sequence[Any], width: float) -> int:
    """Count the columns of a legend that fit beside each other; it is filled down the columns."""
    sizes = [0.45 + _LETTERS["key"] * len(handle.get_label()) for handle in handles]
    for columns in range(len(sizes), 1, -1):
        parts = np.array_split(sizes, columns)
        if sum(float(part.max()) for part in parts) < width - 0.1:
            return columns
    return 1


def width_of(count: int) -> float:
    """Choose the width of a page: one column for a single panel, else both."""
    return COLUMN if count < 2 else TEXT


def columns_on(count: int, width: float) -> int:
    """Choose how many panels stand side by side on a page."""
    return 1 if width < TEXT else {1: 1, 2: 2, 4: 2}.get(count, 3)


def panel_width(columns: int, width: float) -> float:
    """Give the width of the panels of `lay_out` in inches."""
    return (width - _LEFT - _RIGHT - _GAP * (columns - 1)) / columns


def lay_out(
    count: int, columns: int, head: Head, *, ribbon: bool, x: str, y: str, names: int = 1
) -> tuple[Figure, list[Axes]]:
    """Lay panels out in inches, so that nothing depends on what is drawn in them.

    Args:
        count: panels.
        columns: of panels.
        head: what stands above them; it is written, too.
        ribbon: whether room for ribbons is needed.
        x: label of the common axis.
        y: label of the other.
        names: lines of the panels' titles.
    """
    width, room = head.width, _NAME * names + RIBBON * ribbon
    top, gap = head.height + 0.1 + room, 0.22 + room
    wide = panel_width(columns, width)
    high = wide * 0.62
    rows = max(1, math.ceil(count / columns))
    height = top + rows * high + (rows - 1) * gap + _BOTTOM
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    panels = []
    for k in range(count):
        left = _LEFT + k % columns * (wide + _GAP)
        low = height - top - high - k // columns * (high + gap)
        ax = figure.add_axes((left / width, low / height, wide / width, high / height))
        ax.tick_params(labelleft=k % columns == 0, labelbottom=k + columns >= count)
        panels.append(ax)
    middle = (height - top + _BOTTOM) / 2 / height
    figure.text(0.12 / width, middle, y, rotation=90, ha="left", va="center")
    figure.text((width + _LEFT - _RIGHT) / 2 / width, 0.08 / height, x, ha="center")
    head.write(figure)
    return figure, panels


def open_grid(
    columns: int, rows: int, height: float, title: str, *, solid: Collection[int] = ()
) -> tuple[Figure, np.ndarray]:
    """Open a figure with a grid of axes that lays itself out.

    Args:
        columns: of the grid.
        rows: of the grid.
        height: of the figure in inches.
        title: bold, at the left; none where it is empty.
        solid: rows that have three dimensions.

    Returns:
        The figure, and its axes (rows, columns).
    """
    figure = Figure(figsize=(width_of(columns), height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(plain_text(title), x=0.01, ha="left", fontweight="bold")
    panels = np.empty((rows, columns), dtype=object)
    for k in range(rows * columns):
        kind = {"projection": "3d"} if k // columns in solid else {}
        panels[k // columns, k % columns] = figure.add_subplot(rows, columns, k + 1, **kind)
    return figure, panels


def leave_empty(*panels: Axes, said: bool = True) -> None:
    """Hide axes; say in the first of them that what belongs there is not computed yet."""
    for ax in panels:  # not invisible: a layout with a colour bar counts on every place
        ax.set_axis_off()
        ax.patch.set_visible(False)
    if not said:
        return
    words = panels[0].text(0.5, 0.5, "not computed yet", transform=panels[0].transAxes)
    words.set(ha="center", color=ALARM)


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Write a legend below everything, as many in a row as there is room for."""
    columns = columns_of(handles, figure.get_figwidth())
    figure.legend(handles=handles, loc="outside lower left", ncols=columns)


_FACTS = (
    *("loss", "parameters", "protocol", "augment", "steps", "until_converged"),
    *("probes", "dtype", "max_samples"),
)


def facts_of(*analyses: Analysis, **more: object) -> str:
    """List the data and the settings that decide the numbers, each value once."""
    held: dict[str, list[object]] = {}
    for analysis in analyses:
        data, settings = analysis.data, analysis.settings
        facts = {"data": data.get("name"), "split": data.get("split")}
        for key, value in (facts | {key: settings.get(key) for key in _FACTS} | more).items():
            if value is not None and value not in held.setdefault(key, []):
                held[key].append(value)
    return ",  ".join(
        f"{key}\N{NO-BREAK SPACE}{' and '.join(map(str, values))}"
        for key, values in held.items()
        if values
    )


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
            with _laid_out(figure):
                for kind, metadata in dateless.items():
                    path = Path(folder) / f"{stem}{f'-{i + 1}' if i else ''}.{kind}"
                    with replacing(path) as partial:
                        figure.savefig(partial, format=kind, metadata=metadata)
                        if kind == "png":
                            shrunk(partial)
                    paths.append(path)
    return paths


@contextlib.contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay a page out once for all its files: a layout takes longer than the drawing."""
    engine = figure.get_layout_engine()
    if engine is None:
        yield
        return
    engine.execute(figure)
    figure.set_layout_engine(None)  # "none" leaves a place for one, and every page is drawn twice
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def shrunk(path: Path) -> None:
    """Keep 96 colours, which take a third of the bytes.

    The most frequent ones, of backgrounds and lines, stay what they are. Of the others each next
    one is that which lies farthest from all that are kept, so that no small mark's is lost.
    """
    with Image.open(path) as image:
        dpi, pixels = image.info["dpi"], np.asarray(image.convert("RGB")).astype(int)
    codes, place, counts = np.unique(
        pixels @ [65536, 256, 1], return_inverse=True, return_counts=True
    )
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    frequent = np.argsort(-counts, kind="stable")[:_EXACT].tolist()
    kept: list[int] = []
    apart, nearest = np.full(len(codes), np.inf), np.zeros(len(codes), np.uint8)
    while len(kept) < min(_EXACT + _MORE, len(codes)):
        kept.append(frequent[len(kept)] if len(kept) < len(frequent) else int(apart.argmax()))
        far = ((colours - colours[kept[-1]]) ** 2).sum(axis=1)
        nearest[far < apart] = len(kept) - 1
        apart = np.minimum(apart, far)
    few = Image.fromarray(nearest[place].reshape(pixels.shape[:2]))
    few.putpalette(colours[kept].astype(np.uint8).tobytes())
    few.save(path, "PNG", optimize=True, dpi=dpi)
