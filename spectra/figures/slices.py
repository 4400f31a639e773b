"""Draw the loss along w + tv, three times.

Without its tangent beside the parabola ½ t² vᵀHv, a little farther than it bends to the same side;
as second and slope differences at every distance beside vᵀHv, with bands of rounding; and as it is,
over the same distances and heights for all lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, SymmetricalLogLocator

from spectra.landscape import Differences, Slice
from spectra.writing import number

from .pages import ALARM, INK, PLAIN, STYLE, add_legend, leave_empty, open_grid, plain_text

_HESSIAN: dict[str, Any] = {"color": INK, "linewidth": 1.0, "linestyle": (0, (4, 2))}
_SECOND: dict[str, Any] = {"color": PLAIN, "marker": "o", "markersize": 2.6}
_SLOPES: dict[str, Any] = {"color": ALARM, "marker": "^", "markersize": 3.2, "linewidth": 0.8}


_OUTSIDE: dict[str, Any] = {"color": INK, "marker": 6, "markersize": 5, "linestyle": "none"}
_FAR = 3.0  # the panel ends at so many times the parabola or the usual loss
_COMMON = 0.5  # how far the loss itself is drawn


def slice_panels(slices: Mapping[str, Slice | None], *, title: str = "") -> Figure:
    """Draw slices side by side: the loss without tangent, its curvature below, then the loss.

    Args:
        slices: by what stands above each; None leaves its place empty.
        title: of the figure.
    """
    seen = [cut for cut in slices.values() if cut is not None]
    reach = min([_COMMON, *(float(cut.distances[-1]) for cut in seen)])
    ends = np.array([_loss_ends(cut, reach) for cut in seen])
    common = (ends[:, 0].min(), ends[:, 1].max()) if seen else None
    with mpl.rc_context(fname=STYLE):
        figure, panels = open_grid(max(1, len(slices)), 3, 6.0, title)
        if not slices:
            leave_empty(*panels[:, 0])
            return figure
        for column, (name, cut) in enumerate(slices.items()):
            above = {"y": 1.0, "pad": 12}  # above a power of ten, or none
            panels[0, column].set_title(plain_text(name), **above)
            if cut is None:
                leave_empty(*panels[:, column])
                continue
            draw_slice(panels[0, column], cut)
            draw_differences(panels[1, column], cut)
            draw_loss(panels[2, column], cut, reach=reach, ends=common)
            panels[2, column].set_xlabel("t")
        panels[0, 0].set_ylabel("L(w+tv) − L(w) − t·a,\nwhile bent to H's side")
        panels[1, 0].set_ylabel("Curvature along v,\nat the distance t")
        panels[2, 0].set_ylabel("L(w+tv),\nin all panels alike")
        handles = [
            Line2D([], [], label="loss; second difference", **_SECOND),
            Line2D([], [], label="slope difference", **_SLOPES),
            Line2D([], [], label="of the Hessian: ½ t² vᵀHv; vᵀHv", **_HESSIAN),
            Patch(color=PLAIN, alpha=0.2, label="rounding, estimated"),
            Line2D([], [], label="outside the panel", **_OUTSIDE),
        ]
        add_legend(figure, handles)
    return figure


def draw_slice(ax: Axes, cut: Slice, *, reach: float | None = None) -> Axes:
    """Draw the loss along a line, less its tangent, over the parabola of the Hessian.

    Args:
        ax: empty axes.
        cut: what to draw.
        reach: how far to both sides; by default a little farther than the loss bends to the
            Hessian's side.

    Returns:
        The same axes. A value that would leave the parabola flat, and one that is no number, does
        not set the scale; the former is marked at the edge.
    """
    reach = reach or _reach(cut)
    with np.errstate(invalid="ignore"):
        left = cut.bends
    near = (np.abs(cut.positions) <= reach * (1 + 1e-9)) & np.isfinite(left)
    t, bends = cut.positions[near], left[near]
    fine = np.linspace(-reach, reach, 201)
    parabola = 0.5 * fine**2 * _finite(cut.second_difference.curvature)
    usual = float(np.quantile(np.abs(bends), 0.75)) if len(bends) else 0.0
    most = _FAR * max(float(np.abs(parabola).max()), usual)
    shown = np.abs(bends) <= most
    ax.plot(t, bends, linewidth=0.8, label="loss", **_SECOND)
    ax.plot(fine, parabola, label="parabola", **_HESSIAN)
    low = min(0.0, float(bends[shown].min(initial=0.0)))
    high = max(0.0, float(bends[shown].max(initial=0.0)))
    # Where the parabola goes astray it must not flatten what was measured.
    low, high = (
        low + max(min(0.0, float(parabola.min()) - low), low - high),
        high + min(max(0.0, float(parabola.max()) - high), high - low),
    )
    room = 0.15 * (high - low) or 1.0
    ax.set_ylim(low - room, high + room)
    for above in (False, True):
        _mark_outside(ax, t[~shown & (bends > 0 if above else bends < 0)], above=above)
    ax.set_xlim(-1.05 * reach, 1.05 * reach)
    ax.ticklabel_format(scilimits=(-2, 3))
    ax.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
    ax.xaxis.get_offset_text().set_visible(False)  # it is said in the label
    ax.set_xlabel(f"|t| ≤ {number(reach)}")
    ax.tick_params(labelbottom=False)
    return ax


def draw_loss(
    ax: Axes, cut: Slice, *, reach: float = _COMMON, ends: tuple[float, float] | None = None
) -> Axes:
    """Draw the loss along a line as it is, logarithmic.

    Args:
        ax: empty axes.
        cut: what to draw; of losses that are no number nothing is seen.
        reach: how far to both sides.
        ends: of the axis, to share with other panels; the slice's own if None.

    Returns:
        The same axes; by themselves they end two decades below L(w), and what lies below their end
        is marked there.
    """
    t, losses = _near(cut, reach)
    ax.set_yscale("log", nonpositive="mask")
    ax.plot(t, losses, linewidth=0.8, label="loss", **_SECOND)
    low, high = ends or _loss_ends(cut, reach)
    ax.set_ylim(low, high)
    _mark_outside(ax, t[losses < low], above=False)
    ax.set_xlim(-1.05 * reach, 1.05 * reach)
    ax.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    return ax


def draw_differences(ax: Axes, cut: Slice) -> Axes:
    """Draw second and slope differences against the distance, with the rounding of each.

    Args:
        ax: empty axes.
        cut: what to draw.

    Returns:
        The same axes.
    """
    curvature = _finite(cut.second_difference.curvature)
    unit = 10.0 ** math.floor(math.log10(abs(curvature) or 1.0))
    pairs: list[tuple[Differences | None, dict[str, Any]]] = [
        (cut.second_difference, _SECOND),
        (cut.slope_difference, _SLOPES),
    ]
    seen: list[float] = [curvature, 0.0]
    for found, style in pairs:
        if found is None:
            continue
        # Elsewhere it is all rounding, or no number.
        told = (found.errors < 10 * abs(curvature)) & np.isfinite(found.values)
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
    ticks.set_params(numticks=5)
    ax.yaxis.set_major_locator(ticks)
    ax.set_xlim(cut.distances[0] / 1.5, cut.distances[-1] * 1.5)
    ax.xaxis.set_major_locator(LogLocator(numticks=4))
    return ax


def _near(cut: Slice, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Give the losses up to a distance that are numbers, and where they were taken."""
    near = (np.abs(cut.positions) <= reach * (1 + 1e-9)) & np.isfinite(cut.losses)
    return cut.positions[near], cut.losses[near]


def _loss_ends(cut: Slice, reach: float) -> tuple[float, float]:
    """Choose the ends of an axis for the losses up to a distance."""
    _, losses = _near(cut, reach)
    positive = losses[losses > 0]
    middle = cut.loss if math.isfinite(cut.loss) and cut.loss > 0 else 1.0
    low = max(float(positive.min(initial=middle)), middle / 100)
    return low / 2, 2 * float(positive.max(initial=middle))


def _mark_outside(ax: Axes, places: np.ndarray, *, above: bool) -> None:
    """Mark where values leave a panel."""
    look = {**_OUTSIDE, "marker": 6 if above else 7, "transform": ax.get_xaxis_transform()}
    ax.plot(places, np.full(len(places), 0.94 if above else 0.06), label="outside", **look)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _reach(cut: Slice) -> float:
    """Choose how far to look: a little beyond where the loss bends to the Hessian's side."""
    found = cut.second_difference
    told = found.errors < np.abs(found.values)
    other = told & (found.values * found.curvature <= 0)
    farthest = float(cut.distances[-1])
    return 1.05 * float(cut.distances[np.argmax(other)]) if other.any() else farthest
