"""Draw the loss over a plane through the parameters, as contours and in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from spectra.landscape import Surface

from .pages import ALARM, INK, STYLE, leave_empty, open_grid


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
        figure, panels = open_grid(len(surfaces), 2, 4.9, title, solid_below=True)
        for column, (name, seen) in enumerate(surfaces.items()):
            panels[0, column].set_title(name)
            if seen is None:
                leave_empty(*panels[:, column])
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
