"""Draw what SAM's step does to the gradient along a direction: squared, and with its sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from spectra.landscape import Amplification, rows_of

from .pages import INK, OUTSIDE, PLAIN, STYLE, add_legend, leave_empty, open_grid, plain_text

_MEASURED: dict[str, Any] = {"color": PLAIN, "marker": "o", "markersize": 2.6}
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markersize": 3.6}
_PREDICTED: dict[str, dict[str, Any]] = {  # by the end of the field's name in `Predictions`
    "plain": {
        "label": "(1 + ρλ)² or 1 + ρλ",
        "linestyle": (0, (4, 2)),
    },
    "normalised": {"label": "with ρ/‖g‖ for ρ", "linestyle": (0, (1, 1.5))},
    "second_order": {"label": "second order, vᵀHg", "linestyle": (0, (6, 1.5, 1, 1.5))},
}
_GUIDE: dict[str, Any] = {"color": INK, "linewidth": 0.7}
_BEYOND = 30.0  # a prediction leaves the panel where it is so many times the largest value
_RADIUS = "SAM's radius ρ"


def amplification_panels(
    measured: Amplification | None,
    directions: Sequence[str],
    *,
    title: str = "",
    shown: Sequence[int] | None = None,
    loss: str = "ce",
) -> Figure:
    """Draw R(ρ) above and S(ρ) below, a column for each direction that has a name.

    Args:
        measured: what was measured; None leaves an empty place.
        directions: names of its rows; those called "random" are the controls.
        title: of the figure: what was trained, and how.
        shown: rows that get a column; by default all that have a name, for which four are room.
        loss: whose Hessian the directions are of, "ce" or "trained".
    """
    named, controls = rows_of(directions)
    named = named if shown is None else list(shown)
    with mpl.rc_context(fname=STYLE):
        figure, panels = open_grid(max(1, len(named)), 2, 4.4, title)
        if measured is None:
            leave_empty(*panels[:, 0])
            return figure
        for column, k in enumerate(named):
            above, below = panels[:, column]
            title = plain_text(directions[k])
            draw_amplification(above, measured, k, controls).set_title(title)
            number, of = measured.effective_batches[k], measured.components.shape[1]
            above.set_xlabel(f"effective: {number:.3g} of {of} batches", fontsize=7)
            draw_amplification(below, measured, k, controls, kind="slope").set_xlabel(_RADIUS)
        panels[0, 0].set_ylabel("R = Σb² / Σa²")
        panels[1, 0].set_ylabel("S = Σab / Σa²")
        whose = "plain-CE" if loss == "ce" else "trained-loss"
        plain = _PREDICTED["plain"]
        told = f"{plain['label']}, λ of the class's own {whose} Hessian"
        predicted = _PREDICTED | {"plain": plain | {"label": told}}
        handles: list[Any] = [
            Line2D([], [], label="measured", **_MEASURED),
            Line2D([], [], label="measured, Taylor residual above 1", **_MEASURED | _HOLLOW),
            *_band(measured, named),
            Line2D([], [], label="1, as SGD", **_GUIDE),
            *(Line2D([], [], color=INK, **style) for style in predicted.values()),
        ]
        if controls:
            handles.append(Line2D([], [], color=OUTSIDE, label="random directions"))
        add_legend(figure, handles)
    return figure


def draw_amplification(
    ax: Axes,
    measured: Amplification,
    row: int,
    controls: Sequence[int] = (),
    *,
    kind: Literal["squared", "slope"] = "squared",
) -> Axes:
    """Draw the amplification of one direction against SAM's radius.

    Args:
        ax: empty axes.
        measured: what was measured.
        row: of the direction.
        controls: rows that are drawn in grey.
        kind: the squared one, R, or the signed slope S: below zero the component is reversed.

    Returns:
        The same axes. Markers are hollow where second order leaves more of the gradient's change
        than it explains, in the median over the batches; without an interval there is no band.
    """
    if kind == "slope":
        ax.axhline(0, color=INK, linewidth=1.4)
    found, radii = getattr(measured, kind), measured.radii
    for k in controls:
        ax.plot(radii, found.value[k], color=OUTSIDE, linewidth=0.5, alpha=0.6, label="control")
    ax.axhline(1, **_GUIDE)
    values = np.concatenate(
        [found.value[[row, *controls]].ravel(), found.low[row], found.high[row]]
    )
    values = values[np.isfinite(values)]
    for name, style in _PREDICTED.items():
        expected = getattr(measured.predictions, f"{kind}_{name}")[row]
        shown = np.abs(expected) <= _BEYOND * np.abs(values).max(initial=1.0)
        ax.plot(radii[shown], expected[shown], color=INK, linewidth=0.9, **style)
    ax.fill_between(radii, found.low[row], found.high[row], color=PLAIN, alpha=0.25, linewidth=0)
    ax.plot(radii, found.value[row], label="measured", **_MEASURED)
    lost = measured.taylor_medians > 1
    ax.plot(
        radii[lost], found.value[row][lost], label="unexplained", **_MEASURED | _HOLLOW, ls="none"
    )
    if kind == "squared":
        ax.set_yscale("log")
    elif np.abs(values).max(initial=0.0) > 10:
        ax.set_yscale("symlog", linthresh=1)
    return ax


def _band(measured: Amplification, rows: Sequence[int]) -> list[Patch]:
    """Name the band, if any of some rows has one."""
    lows = [found.low[rows] for found in (measured.squared, measured.slope)]
    if not np.isfinite(lows).any():
        return []
    return [Patch(color=PLAIN, alpha=0.25, label=f"{100 * measured.confidence:g} % over batches")]
