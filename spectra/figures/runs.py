"""What the pages of trajectories share: a panel for each run, one look for each class."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectra.trajectories import RunTrajectory, Trajectory

from .pages import (
    COLOURS,
    INK,
    PLAIN,
    STYLE,
    Head,
    add_ribbon,
    columns_on,
    facts_of,
    lay_out,
    panel_width,
    plain_text,
    size_of,
    width_of,
    wrapped,
)

_MARKERS = "os^Dv<>p*h"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1, 1, 1)))
_LINE: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": "-."}
_MOST = 14  # entries of the legend; of more classes only the groups are named


def open_page(
    trajectory: Trajectory,
    title: str,
    y: str,
    handles: list[Any],
    width: float | None,
    x: str = "Epoch",
) -> tuple[Figure, list[Axes]]:
    """Open a page with a panel for each run."""
    runs = trajectory.runs
    width = width or width_of(len(runs))
    analyses = [analysis for run in runs for analysis in run.analyses]
    head = Head(title, facts_of(*analyses), handles, width)
    ribbon = any(spectrum.caveat for a in analyses for spectrum in a.spectra)
    columns = columns_on(len(runs), width)
    names = max((len(wrapped(run.name, panel_width(columns, width))) for run in runs), default=1)
    with mpl.rc_context(fname=STYLE):
        return lay_out(len(runs), columns, head, ribbon=ribbon, x=x, y=y, names=names)


def finish(ax: Axes, run: RunTrajectory, last: float) -> None:
    """Write the run's name, where its re-weighting starts, and whether its operator moves."""
    if run.reweighted_after is not None and run.reweighted_after <= last:
        ax.axvline(run.reweighted_after, label="re-weighting", zorder=1, **_LINE)
    whole = MaxNLocator(max(2, int(size_of(ax)[0] / 0.5)), integer=True)
    ax.xaxis.set_major_locator(whole)
    name_panel(ax, run)


def name_panel(ax: Axes, run: RunTrajectory) -> None:
    """Write the run's name above, and whether its operator moves."""
    moving = any(s.caveat for analysis in run.analyses for s in analysis.spectra)
    title = plain_text("\n".join(wrapped(run.name, size_of(ax)[0])))
    ax.set_title(title, y=add_ribbon(ax, shown=moving))


def styles_of(run: RunTrajectory) -> dict[str, dict[str, Any]]:
    """Choose colours by group and dashes by the place within it; markers go round."""
    styles: dict[str, dict[str, Any]] = {}
    used: dict[str | None, int] = {}
    for label in run.labels:
        analysis = next(a for a in run.analyses if a.get(label) is not None)
        spectrum = analysis.get(label)
        assert spectrum is not None
        group = analysis.group_of(spectrum)
        k = used[group] = used.get(group, -1) + 1
        styles[label] = {
            "color": INK if not spectrum.classes else _line_colour(group or ""),
            "marker": _MARKERS[len(styles) % len(_MARKERS)],
            "linestyle": _DASHES[k % len(_DASHES)],
        }
    return styles


def _line_colour(group: str) -> tuple[float, ...]:
    return tuple(0.65 * part for part in to_rgb(COLOURS.get(group, PLAIN)))


def handles_of(runs: Sequence[RunTrajectory], *, over_time: bool = True) -> list[Any]:
    """Say what lines and marks mean; for many classes only their groups."""
    styles: dict[str, dict[str, Any]] = {}
    for run in runs:
        for label, style in styles_of(run).items():
            name = run.of(label)[0][1].name
            plain = name in ("", label, label.removeprefix("class "))
            told = label if plain else textwrap.shorten(f"{label} · {name}", 22)
            if styles.setdefault(told, style) != style:  # in another group there
                styles[f"{told}, {run.name}"] = style
    if len(styles) > _MOST:
        colours = [style["color"] for style in styles.values()]
        groups: dict[str, Any] = {f"{name} classes": _line_colour(name) for name in COLOURS}
        groups |= {"other classes": _line_colour(""), "all samples": INK}
        styles = {name: {"color": c} for name, c in groups.items() if c in colours}
    handles = [
        Line2D([], [], label=plain_text(label), markersize=4, **s) for label, s in styles.items()
    ]
    if over_time and any(run.reweighted_after is not None for run in runs):
        handles.append(Line2D([], [], label="re-weighting starts", **_LINE))
    return handles
