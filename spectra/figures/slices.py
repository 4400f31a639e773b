"""Draw how the loss bends along w + tv, twice.

Without its tangent beside the parabola ½ t² vᵀHv, and as second and slope differences at every
distance beside vᵀHv, with bars of rounding.
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

from .pages import ALARM, INK, PLAIN, STYLE, add_legend, leave_empty, open_grid

_HESSIAN: dict[str, Any] = {"color": INK, "linewidth": 1.0, "linestyle": (0, (4, 2))}
_SECOND: dict[str, Any] = {"color": PLAIN, "marker": "o", "markersize": 2.6}
_SLOPES: dict[str, Any] = {"color": ALARM, "marker": "^", "markersize": 3.2, "linewidth": 0.8}


def slice_panels(slices: Mapping[str, Slice | None], *, title: str = "") -> Figure:
    """Draw slices side by side: the loss above, its curvature by differences below.

    Args:
        slices: by what stands above each; None leaves its place empty.
        title: of the figure.
    """
    with mpl.rc_context(fname=STYLE):
        figure, panels = open_grid(len(slices), 2, 4.4, title)
        for column, (name, cut) in enumerate(slices.items()):
            panels[0, column].set_title(name, y=1.0, pad=12)  # above a power of ten, or none
            if cut is None:
                leave_empty(*panels[:, column])
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
        add_legend(figure, handles)
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


def _reach(cut: Slice) -> float:
    """Choose how far to look: a little beyond where the loss bends to the Hessian's side."""
    found = cut.second_difference
    told = found.errors < np.abs(found.values)
    other = told & (found.values * found.curvature <= 0)
    farthest = float(cut.distances[-1])
    return 1.05 * float(cut.distances[np.argmax(other)]) if other.any() else farthest
