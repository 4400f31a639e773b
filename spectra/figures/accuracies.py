"""Draw test accuracies: class by class, and against SAM's radius.

Hollow markers on broken lines are published values, smaller filled ones ours; whiskers are a
standard deviation over training seeds, where there are two or more. The background is head, mid and
tail.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .pages import COLOURS, INK, PLAIN, STYLE, open_grid, plain_text

Value = tuple[float, float | None]  # mean and standard deviation, in %
_COLOURS = (INK, PLAIN, "#B22222", "#8C8C8C")  # differ in grey, too, and so do the markers
_MARKERS = "osD^v"


def class_panels(
    panels: Mapping[str, Mapping[str, Sequence[Value]]],
    names: Sequence[str],
    groups: Mapping[str, Sequence[int]],
) -> Figure:
    """Draw class-wise accuracies side by side, over the same axes.

    Args:
        panels: title -> run -> accuracy of each class (C,); runs called published are hollow.
        names: of the classes (C,).
        groups: classes of head, mid and tail.

    Returns:
        One figure, two panels in a row.
    """
    with mpl.rc_context(fname=STYLE):
        figure, places = _open(len(panels), 2.9)
        for ax, (title, curves) in zip(places, panels.items(), strict=True):
            draw_classes(ax, curves, names, groups)
            ax.set_title(plain_text(textwrap.fill(title, 38)))
        return figure


def draw_classes(
    ax: Axes,
    curves: Mapping[str, Sequence[Value]],
    names: Sequence[str],
    groups: Mapping[str, Sequence[int]],
) -> Axes:
    """Draw the accuracies of runs class by class.

    Args:
        ax: empty axes.
        curves: run -> accuracy of each class (C,).
        names: of the classes (C,).
        groups: classes of head, mid and tail.

    Returns:
        The same axes.
    """
    for name, members in groups.items():
        if not members:
            continue
        low, high = min(members) - 0.5, max(members) + 0.5
        ax.axvspan(low, high, color=COLOURS[name], alpha=0.16, linewidth=0, zorder=0)
        ax.text((low + high) / 2, 2, name, ha="center", va="bottom", fontsize=7)
    for k, (label, values) in enumerate(curves.items()):
        _draw_curve(ax, [float(c) for c in range(len(values))], values, label, k)
    if not curves:
        _say_empty(ax)
    every = max(1, len(names) // 12)
    slanted = max(map(len, names), default=0) > 2
    ticks = [plain_text(name) for name in names[::every]]
    ax.set_xticks(range(0, len(names), every), ticks, rotation=45 if slanted else 0)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(0, 103)
    ax.set_xlabel("Class, by falling number of training samples")
    ax.set_ylabel("Test accuracy, %")
    if curves:
        _name_curves(ax, curves.values(), loc="lower left", bbox_to_anchor=(0, 0.06))
    return ax


def radius_panels(
    ours: Mapping[str, Mapping[float, Mapping[str, Value]]],
    published: Mapping[float, Mapping[str, Value]],
    parts: Mapping[str, str],
) -> Figure:
    """Draw accuracy against SAM's radius, a panel for each part of the classes.

    Args:
        ours: protocol -> radius -> part -> accuracy.
        published: radius -> part -> accuracy.
        parts: title of a panel -> part; a part that a radius was not evaluated for is left out.

    Returns:
        One figure, two panels in a row.
    """
    with mpl.rc_context(fname=STYLE):
        figure, places = _open(len(parts), 2.5)
        for ax, (title, part) in zip(places, parts.items(), strict=True):
            paper = {radius: values[part] for radius, values in published.items() if part in values}
            curves = {"published": paper} | {
                name: {radius: values[part] for radius, values in curve.items() if part in values}
                for name, curve in ours.items()
            }
            draw_radius(ax, {name: curve for name, curve in curves.items() if curve})
            ax.set_title(plain_text(title))
        return figure


def draw_radius(ax: Axes, curves: Mapping[str, Mapping[float, Value]]) -> Axes:
    """Draw accuracy against the radius, on a logarithmic axis.

    Args:
        ax: empty axes.
        curves: name -> radius -> accuracy; one called published is hollow.

    Returns:
        The same axes.
    """
    ax.set_xscale("log")
    for k, (label, values) in enumerate(curves.items()):
        radii = sorted(values)
        _draw_curve(ax, radii, [values[radius] for radius in radii], label, k)
    if not curves:
        _say_empty(ax)
    ticks = sorted({radius for values in curves.values() for radius in values})
    ax.set_xticks(ticks, [f"{radius:g}" for radius in ticks])
    ax.set_xticks([], minor=True)
    ax.margins(0.08, 0.2)
    low, high = ax.get_ylim()
    ax.set_ylim(max(0, low), min(100, high))
    ax.set_xlabel("Radius ρ")
    ax.set_ylabel("Test accuracy, %")
    if curves:
        _name_curves(ax, [curve.values() for curve in curves.values()], loc="best")
    return ax


def _open(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Open a figure with places for panels, two in a row of a height in inches."""
    columns = min(2, max(1, count))
    rows = max(1, -(-count // columns))
    figure, grid = open_grid(columns, rows, height * rows, "")
    places: list[Axes] = grid.ravel().tolist()
    for ax in places[count:]:
        ax.remove()
    return figure, places[:count]


def _draw_curve(
    ax: Axes, places: Sequence[float], values: Sequence[Value], label: str, k: int
) -> None:
    paper = "published" in label
    style: dict[str, Any] = {
        "color": _COLOURS[k % len(_COLOURS)],
        "markersize": 6.5 if paper else 4.0,
    }
    style |= {"marker": _MARKERS[k % len(_MARKERS)], "linestyle": (0, (3, 2)) if paper else "-"}
    style["markerfacecolor"] = "white" if paper else style["color"]
    ax.plot(places, [mean for mean, _ in values], label=plain_text(label), **style)
    for place, (mean, std) in zip(places, values, strict=True):
        if std is not None:
            ax.vlines(place, mean - std, mean + std, color=style["color"], linewidth=1.2)


def _name_curves(ax: Axes, curves: Iterable[Iterable[Value]], **place: Any) -> None:
    """Write the legend, whiskers included where there are any."""
    handles = list(ax.lines)
    if any(std is not None for values in curves for _, std in values):
        handles.append(Line2D([], [], label="± s.d. over seeds", color=INK, marker="|", ls="none"))
    ax.legend(handles=handles, frameon=True, framealpha=0.9, **place)


def _say_empty(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no run yet", transform=ax.transAxes, ha="center", va="center")
