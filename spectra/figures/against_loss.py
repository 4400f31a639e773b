"""Draw both ends of the spectrum against the loss that they belong to, one panel a run.

The negative part of a cross-entropy's Hessian vanishes with p − y, as the loss does: networks are
better compared at like losses than at like epochs.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectra.results import ClassSpectrum
from spectra.trajectories import RunTrajectory, Trajectory

from .pages import INK, STYLE
from .runs import handles_of, name_panel, open_page, styles_of

_MARGIN = 1.7
_LOOK: dict[str, Any] = {"markersize": 4, "linewidth": 0.8}
_HOLLOW: dict[str, Any] = {"fillstyle": "none", "linestyle": ":"}


def loss_panels(trajectory: Trajectory, *, width: float | None = None) -> Figure:
    """Draw |λmin|, hollow, and λmax of all runs against their losses, over the same axes.

    Args:
        trajectory: what was found; an end of the other sign, or of a loss of zero, is left out.
        width: as in `trajectory_panels`.
    """
    runs = trajectory.runs
    handles = handles_of(runs, over_time=False)
    handles += [Line2D([], [], label="λmax", color=INK, marker="o", **_LOOK)]
    handles += [Line2D([], [], label="|λmin|", color=INK, marker="o", **_LOOK | _HOLLOW)]
    title = "Curvature against the loss"
    figure, panels = open_page(trajectory, title, "|λ|", handles, width, x="Loss")
    with mpl.rc_context(fname=STYLE):
        for ax, run in zip(panels, runs, strict=True):
            draw_against_loss(ax, run)
        for limits in ("xlim", "ylim"):
            ends = [getattr(ax, f"get_{limits}")() for ax in panels if ax.lines]
            for ax in panels if ends else ():
                getattr(ax, f"set_{limits}")(min(e[0] for e in ends), max(e[1] for e in ends))
    return figure


def draw_against_loss(ax: Axes, run: RunTrajectory) -> Axes:
    """Draw one run: a line through the epochs of each class, group or whole, for each end.

    Args:
        ax: empty axes.
        run: what to draw.

    Returns:
        The same axes.
    """
    seen: list[tuple[float, float]] = []
    for label, style in styles_of(run).items():
        for sign, look in ((1.0, {}), (-1.0, _HOLLOW)):
            points = [_point(spectrum, sign) for _, spectrum in run.of(label)]
            known = [point for point in points if point is not None]
            if known:
                ax.plot(*zip(*known, strict=True), label=label, **_LOOK | style | look)
            seen += known
    if seen:
        ax.set(xscale="log", yscale="log")
        for axis, values in zip(("x", "y"), zip(*seen, strict=True), strict=True):
            # A decade at least, and no tick at an edge, where the next panel has one of its own.
            low, high = min(values) / _MARGIN, max(values) * _MARGIN
            wider = max(1.0, 10 * low / high) ** 0.5
            getattr(ax, f"set_{axis}lim")(low / wider, high * wider)
    name_panel(ax, run)
    return ax


def _point(spectrum: ClassSpectrum, sign: float) -> tuple[float, float] | None:
    end = spectrum.lambda_max if sign > 0 else spectrum.lambda_min
    if end is None or spectrum.loss is None or not (sign * end > 0 and spectrum.loss > 0):
        return None
    return spectrum.loss, sign * end
