"""Draw what lies around the parameters: slices, surfaces, and what SAM's step does to a direction.

A slice shows twice how the loss bends along w + tv: the loss without its tangent beside the
parabola ½ t² vᵀHv, and second and slope differences at every distance beside vᵀHv, with bars of
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, SymmetricalLogLocator

from spectra.landscape import Amplification, Differences, Landscape, Slice, Surface

from .pages import ALARM, INK, OUTSIDE, PLAIN, STYLE

_WIDTHS = {1: 3.6, 2: 6.4, 3: 8.4}  # inches by columns; 10 for more
_HESSIAN: dict[str, Any] = {"color": INK, "linewidth": 1.0, "linestyle": (0, (4, 2))}
_SECOND: dict[str, Any] = {"color": PLAIN, "marker": "o", "markersize": 2.6}
_SLOPES: dict[str, Any] = {"color": ALARM, "marker": "^", "markersize": 3.2, "linewidth": 0.8}
_PREDICTED: dict[str, dict[str, Any]] = {  # by the end of the field's name in `Predictions`
    "plain": {"label": "(1 + ρλ)² or 1 + ρλ", "linestyle": (0, (4, 2))},
    "normalised": {"label": "with ρ/‖g‖ for ρ", "linestyle": (0, (1, 1.5))},
    "second_order": {"label": "second order, vᵀHg", "linestyle": (0, (6, 1.5, 1, 1.5))},
}
_BEYOND = 30.0  # a prediction leaves the panel where it is so many times the largest value


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


def slice_panels(slices: Mapping[str, Slice | None], *, title: str = "") -> Figure:
    """Draw slices side by side: the loss above, its curvature by differences below.

    Args:
        slices: by what stands above each; None leaves its place empty.
        title: of the figure.
    """
    with mpl.rc_context(fname=STYLE):
        figure, panels = _page(len(slices), 2, 4.4, title)
        for column, (name, cut) in enumerate(slices.items()):
            panels[0, column].set_title(name, y=1.0, pad=12)  # above a power of ten, or none
            if cut is None:
                _leave_empty(*panels[:, column])
                continue
            draw_slice(panels[0, column], cut)
            draw_differences(panels[1, column], cut)
            panels[0, column].set_xlabel("t")
            panels[1, column].set_xlabel("t")
        panels[0, 0].set_ylabel("L(w + tv) − L(w) − t·a")
        panels[1, 0].set_ylabel("Curvature along v")
        handles = [
            Line2D([], [], label="loss without tangent; second difference", **_SECOND),
            Line2D([], [], label="slope difference", **_SLOPES),
            Line2D([], [], label="of the Hessian: ½ t² vᵀHv; vᵀHv", **_HESSIAN),
            Patch(color=PLAIN, alpha=0.2, label="bound of the rounding"),
        ]
        _add_legend(figure, handles)
    return figure


def draw_slice(ax: Axes, cut: Slice, *, reach: float | None = None) -> Axes:
    """Draw the loss along a line, less its tangent, over the parabola of the Hessian.

    Args:
        ax: empty axes.
        cut: what to draw.
        reach: how far to both sides; by default where the loss still bends to the Hessian's side.

    Returns:
        The same axes.
    """
    reach = reach or _reach(cut)
    near = np.abs(cut.positions) <= reach * (1 + 1e-9)
    t, bends = cut.positions[near], cut.bends[near]
    fine = np.linspace(-reach, reach, 201)
    ax.plot(t, bends, linewidth=0.8, label="loss", **_SECOND)
    ax.plot(fine, 0.5 * fine**2 * cut.second_difference.curvature, label="parabola", **_HESSIAN)
    low, high = min(0.0, float(bends.min())), max(0.0, float(bends.max()))
    room = 0.15 * (high - low) or 1.0
    # Where the parabola goes astray it must not flatten what was measured.
    parabola = 0.5 * reach**2 * cut.second_difference.curvature
    ax.set_ylim(
        low - room + max(min(0.0, parabola - low), low - high),
        high + room + min(max(0.0, parabola - high), high - low),
    )
    ax.set_xlim(-1.05 * reach, 1.05 * reach)
    ax.ticklabel_format(scilimits=(-2, 3))
    ax.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    return ax


def draw_differences(ax: Axes, cut: Slice) -> Axes:
    """Draw second and slope differences against the distance, with the rounding of each.

    Args:
        ax: empty axes.
        cut: what to draw.

    Returns:
        The same axes.
    """
    curvature = cut.second_difference.curvature
    unit = 10.0 ** math.floor(math.log10(abs(curvature) or 1.0))
    pairs: list[tuple[Differences | None, dict[str, Any]]] = [
        (cut.second_difference, _SECOND),
        (cut.slope_difference, _SLOPES),
    ]
    seen: list[float] = [curvature, 0.0]
    for found, style in pairs:
        if found is None:
            continue
        told = found.errors < 10 * abs(curvature)  # elsewhere it is all rounding
        t, values, errors = found.distances[told], found.values[told], found.errors[told]
        ax.fill_between(
            t, values - errors, values + errors, color=style["color"], alpha=0.2, linewidth=0
        )
        ax.plot(t, values, **{"linewidth": 0.8} | style)
        seen += values.tolist()
    ax.axhline(curvature, label="vᵀHv", **_HESSIAN)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=unit)
    ends = np.arcsinh(np.array([min(seen), max(seen)]) / unit)
    low, high = unit * np.sinh(ends + (0.1 * np.ptp(ends) + 0.2) * np.array([-1, 1]))
    ax.set_ylim(low, high)
    ticks = SymmetricalLogLocator(base=10, linthresh=unit)
    ticks.set_params(numticks=6)
    ax.yaxis.set_major_locator(ticks)
    ax.set_xlim(cut.distances[0] / 1.5, cut.distances[-1] * 1.5)
    ax.xaxis.set_major_locator(LogLocator(numticks=5))
    return ax


def surface_panels(surfaces: Mapping[str, Surface | None], *, title: str = "") -> Figure:
    """Draw surfaces side by side, as contours above and in three dimensions below.

    Args:
        surfaces: by what stands above each; None leaves its place empty.
        title: of the figure.

    Returns:
        One figure; all panels share their colours and their height.
    """
    scale = _common(*(seen for seen in surfaces.values() if seen is not None))
    with mpl.rc_context(fname=STYLE):
        figure, panels = _page(len(surfaces), 2, 4.9, title, solid_below=True)
        for column, (name, seen) in enumerate(surfaces.items()):
            panels[0, column].set_title(name)
            if seen is None:
                _leave_empty(*panels[:, column])
                continue
            draw_contours(panels[0, column], seen, scale=scale)
            draw_solid(panels[1, column], seen, scale=scale)
        if not any(surfaces.values()):
            return figure
        colours = mpl.cm.ScalarMappable(norm=scale, cmap="cividis")
        bar = figure.colorbar(colours, ax=panels.ravel().tolist(), shrink=0.5, aspect=30)
        bar.set_label("Loss")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_power))
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar.outline.set_visible(False)
    return figure


def draw_contours(ax: Axes, seen: Surface, *, scale: Normalize | None = None) -> Axes:
    """Draw a surface from above, colours and lines by the logarithm of the loss.

    Args:
        ax: empty axes.
        seen: what to draw.
        scale: of log₁₀ L, to share with other panels; the surface's own if None.

    Returns:
        The same axes.
    """
    scale = scale or _common(seen)
    levels = MaxNLocator(14).tick_values(scale.vmin or 0.0, scale.vmax or 0.0)
    place = (seen.alphas, seen.betas, _logarithm(seen.losses, scale).T)
    ax.contourf(*place, levels=levels, norm=scale, cmap="cividis")
    ax.contour(*place, levels=levels, colors="white", linewidths=0.5, alpha=0.8, linestyles="solid")
    ax.plot(0, 0, "+", color=ALARM, markersize=8, markeredgewidth=1.6)
    ax.set_xlabel("α")
    ax.set_ylabel("β")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    ax.grid(visible=False)
    return ax


def draw_solid(ax: Any, seen: Surface, *, scale: Normalize | None = None) -> Any:
    """Draw a surface in three dimensions, its height the logarithm of the loss.

    Args:
        ax: empty axes with three dimensions.
        seen: what to draw.
        scale: as in `draw_contours`.

    Returns:
        The same axes.
    """
    scale = scale or _common(seen)
    alphas, betas = np.meshgrid(seen.alphas, seen.betas, indexing="ij")
    look = {"cmap": "cividis", "norm": scale, "edgecolor": INK, "linewidth": 0.15}
    ax.plot_surface(alphas, betas, _logarithm(seen.losses, scale), rcount=60, ccount=60, **look)
    ax.set_zlim(scale.vmin, scale.vmax)
    ax.set_xlabel("α", labelpad=-8)
    ax.set_ylabel("β", labelpad=-8)
    ax.zaxis.set_major_formatter(FuncFormatter(_power))
    ax.zaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(2))
    ax.tick_params(labelsize=6, pad=-3)
    ax.set_facecolor("white")
    ax.set_box_aspect((4, 4, 3), zoom=1.2)
    ax.view_init(elev=28, azim=-55)
    return ax


def amplification_panels(
    measured: Amplification | None, directions: Sequence[str], *, title: str = ""
) -> Figure:
    """Draw R(ρ) above and S(ρ) below, a column for each direction that has a name.

    Args:
        measured: what was measured; None leaves an empty place.
        directions: names of its rows; those called "random" are the controls.
        title: of the figure.
    """
    named = [k for k, name in enumerate(directions) if name != "random"]
    controls = [k for k, name in enumerate(directions) if name == "random"]
    with mpl.rc_context(fname=STYLE):
        figure, panels = _page(max(1, len(named)), 2, 4.4, title)
        if measured is None:
            _leave_empty(*panels[:, 0])
            return figure
        for column, k in enumerate(named):
            above, below = panels[:, column]
            draw_squared(above, measured, k, controls).set_title(directions[k])
            draw_signed(below, measured, k, controls).set_xlabel("SAM's radius ρ")
        panels[0, 0].set_ylabel("R = Σb² / Σa²")
        panels[1, 0].set_ylabel("S = Σab / Σa²")
        handles: list[Any] = [
            Line2D([], [], label="measured", **_SECOND),
            Patch(color=PLAIN, alpha=0.25, label="95 % over batches"),
            *(Line2D([], [], color=INK, **style) for style in _PREDICTED.values()),
        ]
        if controls:
            handles.append(Line2D([], [], color=OUTSIDE, label="random directions"))
        _add_legend(figure, handles)
    return figure


def draw_squared(ax: Axes, measured: Amplification, row: int, controls: Sequence[int] = ()) -> Axes:
    """Draw the squared amplification of one direction against SAM's radius.

    Args:
        ax: empty axes.
        measured: what was measured.
        row: of the direction.
        controls: rows that are drawn in grey.

    Returns:
        The same axes.
    """
    return _draw_ratio(ax, measured, "squared", row, controls)


def draw_signed(ax: Axes, measured: Amplification, row: int, controls: Sequence[int] = ()) -> Axes:
    """Draw the signed slope of one direction: below zero the component is reversed.

    Args:
        ax: empty axes.
        measured: what was measured.
        row: of the direction.
        controls: rows that are drawn in grey.

    Returns:
        The same axes.
    """
    ax.axhline(0, color=INK, linewidth=0.7)
    return _draw_ratio(ax, measured, "slope", row, controls)


def _draw_ratio(
    ax: Axes, measured: Amplification, kind: str, row: int, controls: Sequence[int]
) -> Axes:
    found, radii = getattr(measured, kind), measured.radii
    for k in controls:
        ax.plot(radii, found.value[k], color=OUTSIDE, linewidth=0.5, alpha=0.6, label="control")
    ax.axhline(1, color=INK, linewidth=0.7, linestyle=":")
    values = np.concatenate(
        [found.value[[row, *controls]].ravel(), found.low[row], found.high[row]]
    )
    values = values[np.isfinite(values)]
    for name, style in _PREDICTED.items():
        expected = getattr(measured.predictions, f"{kind}_{name}")[row]
        shown = np.abs(expected) <= _BEYOND * np.abs(values).max(initial=1.0)
        ax.plot(radii[shown], expected[shown], color=INK, linewidth=0.9, **style)
    ax.fill_between(radii, found.low[row], found.high[row], color=PLAIN, alpha=0.25, linewidth=0)
    ax.plot(radii, found.value[row], **_SECOND)
    if kind == "squared":
        ax.set_yscale("log")
    elif np.abs(values).max(initial=0.0) > 10:
        ax.set_yscale("symlog", linthresh=1)
    return ax


def _reach(cut: Slice) -> float:
    """Choose how far to look: a little beyond where the loss bends to the Hessian's side."""
    found = cut.second_difference
    told = found.errors < np.abs(found.values)
    other = told & (found.values * found.curvature <= 0)
    farthest = float(cut.distances[-1])
    return 1.05 * float(cut.distances[np.argmax(other)]) if other.any() else farthest


def _page(
    columns: int, rows: int, height: float, title: str, *, solid_below: bool = False
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(_WIDTHS.get(columns, 10.0), height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9.5)
    panels = np.empty((rows, columns), dtype=object)
    for k in range(rows * columns):
        kind = {"projection": "3d"} if solid_below and k >= columns else {}
        panels[k // columns, k % columns] = figure.add_subplot(rows, columns, k + 1, **kind)
    return figure, panels


def _leave_empty(*panels: Axes) -> None:
    for ax in panels:  # not invisible: a layout with a colour bar counts on every place
        ax.set_axis_off()
        ax.patch.set_visible(False)
    words = panels[0].text(0.5, 0.5, "not computed yet", transform=panels[0].transAxes)
    words.set(ha="center", color=ALARM)


def _add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    columns = max(1, int(figure.get_figwidth() / 2.4))
    figure.legend(handles=handles, loc="outside lower left", ncols=columns)


def _common(*surfaces: Surface) -> Normalize:
    """Choose a scale of log₁₀ L for surfaces; it ends two decades below the lowest middle."""
    if not surfaces:
        return Normalize(0.0, 1.0)
    middles = [s.losses[len(s.alphas) // 2, len(s.betas) // 2] for s in surfaces]
    least = min((middle for middle in middles if middle > 0), default=1e-8) / 100
    held = np.concatenate([s.losses.ravel() for s in surfaces])
    low, high = max(float(held.min()), least), max(float(held.max()), 2 * least)
    return Normalize(math.log10(low), math.log10(high))


def _logarithm(losses: Float64[np.ndarray, "p q"], scale: Normalize) -> Float64[np.ndarray, "p q"]:
    return np.asarray(np.log10(np.maximum(losses, 10.0 ** (scale.vmin or 0.0))))


def _power(value: float, _: int | None = None) -> str:
    return rf"$10^{{{value:g}}}$"
