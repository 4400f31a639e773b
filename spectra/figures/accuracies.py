"""Draw test accuracies: class by class, and against SAM's radius.

Hollow markers on broken lines are published values, filled ones ours; whiskers are a standard
deviation over training seeds, where there are two or more. The background is head, mid and tail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .pages import COLOURS, INK, PLAIN, STYLE

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
        One figure, at most 10 inches wide.
    """
    with mpl.rc_context(fname=STYLE):
        figure = Figure(figsize=(min(10.0, 1.2 + 4.2 * len(panels)), 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
        for ax, (title, curves) in zip(axes, panels.items(), strict=False):
            draw_classes(ax, curves, names, groups)
            ax.set_title(title)
            ax.label_outer()
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
        low, high = min(members) - 0.5, max(members) + 0.5
        ax.axvspan(low, high, color=COLOURS[name], alpha=0.16, linewidth=0, zorder=0)
        ax.text((low + high) / 2, 2, name, ha="center", va="bottom", fontsize=7)
    for k, (label, values) in enumerate(curves.items()):
        _draw_curve(ax, [float(c) for c in range(len(values))], values, label, k)
    if not curves:
        _say_empty(ax)
    every = max(1, len(names) // 12)
    slanted = max(map(len, names), default=0) > 2
    ax.set_xticks(range(0, len(names), every), names[::every], rotation=45 if slanted else 0)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(0, 103)
    ax.set_xlabel("Class, by falling number of training samples")
    ax.set_ylabel("Test accuracy, %")
    if curves:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 0.06), frameon=True, framealpha=0.9)
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
        parts: title of a panel -> part.

    Returns:
        One figure, at most 10 inches wide.
    """
    with mpl.rc_context(fname=STYLE):
        figure = Figure(figsize=(min(10.0, 3.6 * len(parts)), 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(parts), squeeze=False)[0]
        for ax, (title, part) in zip(axes, parts.items(), strict=True):
            curves = {name: {r: v[part] for r, v in c.items()} for name, c in ours.items()}
            paper = {radius: values[part] for radius, values in published.items()}
            draw_radius(ax, {"published": paper} | curves if paper else curves)
            ax.set_title(title)
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
    ax.set_xlabel("Radius ρ")
    ax.set_ylabel("Test accuracy, %")
    if curves:
        ax.legend(loc="upper left", frameon=True, framealpha=0.9)
    return ax


def _draw_curve(
    ax: Axes, places: Sequence[float], values: Sequence[Value], label: str, k: int
) -> None:
    paper = "published" in label
    style: dict[str, Any] = {"color": _COLOURS[k % len(_COLOURS)], "markersize": 4.5}
    style |= {"marker": _MARKERS[k % len(_MARKERS)], "linestyle": (0, (3, 2)) if paper else "-"}
    style["markerfacecolor"] = "white" if paper else style["color"]
    ax.plot(places, [mean for mean, _ in values], label=label, **style)
    for place, (mean, std) in zip(places, values, strict=True):
        if std is not None:
            ax.vlines(place, mean - std, mean + std, color=style["color"], linewidth=1.2)


def _say_empty(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no run yet", transform=ax.transAxes, ha="center", va="center")
