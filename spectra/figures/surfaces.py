"""Draw the loss over a plane through the parameters, as contours and in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from spectra.landscape import Surface

from .pages import ALARM, INK, OUTSIDE, STYLE, leave_empty, open_grid, plain_text

# Without its darkest fifth, so that black, which is below the scale, is darker in grey as well.
_CIVIDIS = mpl.colormaps["cividis"](np.linspace(0.2, 1, 256))
_COLOURS = ListedColormap(_CIVIDIS).with_extremes(under="black", bad=OUTSIDE)
_LEVELS = 15
_ACROSS = 2  # surfaces side by side: more would be too small


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
        columns = min(_ACROSS, len(surfaces))
        pairs = math.ceil(len(surfaces) / columns)  # of rows: contours, and solids below them
        solids = range(1, 2 * pairs, 2)
        figure, panels = open_grid(columns, 2 * pairs, 4.2 * pairs, title, solid=solids)
        for k in range(pairs * columns):
            above, below = panels[k // columns * 2 : k // columns * 2 + 2, k % columns]
            name, seen = (*surfaces.items(), *[("", None)] * columns)[k]
            above.set_title(plain_text(name))
            if seen is None:
                leave_empty(above, below, said=k < len(surfaces))
                continue
            draw_contours(above, seen, scale=scale)
            solid = draw_solid(below, seen, scale=scale)
            solid.zaxis.set_major_formatter(NullFormatter())  # the colour bar has the numbers
        if not any(surfaces.values()):
            return figure
        colours = mpl.cm.ScalarMappable(norm=scale, cmap=_COLOURS)
        bar = figure.colorbar(
            colours, ax=panels.ravel().tolist(), shrink=0.6, aspect=30, extend="min"
        )
        bar.set_label(rf"Loss; black: below $10^{{{scale.vmin:.1f}}}$")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_power))
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar.outline.set_visible(False)
    return figure


def draw_contours(ax: Axes, seen: Surface, *, scale: Normalize | None = None) -> Axes:
    """Draw a surface from above, colours and lines by the logarithm of the loss.

    Below the scale it is black; where the loss is no number, a cross.

    Args:
        ax: empty axes.
        seen: what to draw.
        scale: of log₁₀ L, to share with other panels; the surface's own if None.

    Returns:
        The same axes.
    """
    scale = scale or _common(seen)
    levels = np.linspace(scale.vmin or 0.0, scale.vmax or 0.0, _LEVELS)
    heights = _logarithm(seen.losses, scale)
    place = (seen.alphas, seen.betas, np.ma.masked_invalid(heights).T)
    ax.contourf(*place, levels=levels, norm=scale, cmap=_COLOURS, extend="min")
    i, j = np.nonzero(np.isnan(heights))
    ax.plot(seen.alphas[i], seen.betas[j], "x", color=ALARM, markersize=4, label="no number")
    ax.contour(*place, levels=levels, colors="white", linewidths=0.5, alpha=0.8, linestyles="solid")
    ax.plot(0, 0, "+", color=ALARM, markersize=8, markeredgewidth=1.6)
    ax.set_xlabel("α")
    ax.set_ylabel("β")
    ax.xaxis.set_major_locator(MaxNLocator(2))
    ax.yaxis.set_major_locator(MaxNLocator(4))
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
    look = {"cmap": _COLOURS, "norm": scale, "edgecolor": INK, "linewidth": 0.15}
    ax.plot_surface(alphas, betas, _logarithm(seen.losses, scale), rcount=60, ccount=60, **look)
    ax.set_zlim(scale.vmin, scale.vmax)
    ax.set_xlabel("α", labelpad=-9)
    ax.set_ylabel("β", labelpad=-9)
    ax.zaxis.set_major_formatter(FuncFormatter(_power))
    ax.zaxis.set_major_locator(MaxNLocator(4, integer=True))
    # The numbers of two axes would meet at their common corner.
    ax.set_xticks([seen.alphas[0], 0])
    ax.set_yticks([0, seen.betas[-1]])
    ax.tick_params(labelsize=7, pad=-4)
    ax.set_facecolor("white")
    ax.set_box_aspect((4, 4, 3), zoom=1.05)
    ax.view_init(elev=28, azim=-55)
    return ax


def _common(*surfaces: Surface) -> Normalize:
    """Choose a scale of log₁₀ L for surfaces; it ends two decades below the lowest middle."""
    if not surfaces:
        return Normalize(0.0, 1.0)
    middles = [s.losses[len(s.alphas) // 2, len(s.betas) // 2] for s in surfaces]
    least = min((middle for middle in middles if 0 < middle < math.inf), default=1e-8) / 100
    held = np.concatenate([s.losses.ravel() for s in surfaces])
    held = held[np.isfinite(held)]
    low = max(float(held.min(initial=math.inf)), least) if len(held) else least
    high = max(float(held.max(initial=0.0)), 2 * low)
    return Normalize(math.log10(low), math.log10(high))


def _logarithm(losses: Float64[np.ndarray, "p q"], scale: Normalize) -> Float64[np.ndarray, "p q"]:
    """Give log₁₀ L: NaN where it is no number, just below the scale where it is below it."""
    low, high = scale.vmin or 0.0, scale.vmax or 0.0
    least = 10.0 ** (low - 0.01 * (high - low))
    held = np.where(np.isfinite(losses), np.maximum(losses, least), np.nan)
    return np.asarray(np.log10(held))


def _power(value: float, _: int | None = None) -> str:
    return rf"$10^{{{value:g}}}$"
