"""Draw |λmin|/λmax of every class against the epoch, one panel a run, as the paper does.

More pages have what the ratio hides: both ends, with their residuals, the trace, and the ends
against the loss.

Hollow markers are the published values; whiskers the 95 % interval (Student's t) of the mean over
single probes, where there are three or more: how start vectors scatter, beside the ratio of the
outermost ends of all probes, which is the marker. Re-weighting starts at the dash-dotted line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from spectra.results import ClassSpectrum
from spectra.trajectories import RunTrajectory, Trajectory, nonconvexity_of_probes
from spectra.trajectories.published import EPOCHS

from .against_loss import loss_panels
from .pages import INK, STYLE
from .runs import finish, handles_of, open_page, styles_of

_Value = tuple[float | None, float | None]  # and what it is uncertain by
_HOLLOW: dict[str, Any] = {"linestyle": "none", "fillstyle": "none", "markersize": 6.5}


def trajectory_pages(trajectory: Trajectory, *, width: float | None = None) -> list[Figure]:
    """Draw the ratio, both ends, the trace where there is one, and the ends against the loss.

    Args:
        trajectory: what was found; a page each, as `trajectory_titles` has them.
        width: as in `trajectory_panels`.
    """
    return [draw(trajectory, width=width) for draw in _pages(trajectory).values()]


def trajectory_titles(trajectory: Trajectory) -> list[str]:
    """Say what each of the pages of a trajectory shows."""
    return list(_pages(trajectory))


def _pages(trajectory: Trajectory) -> dict[str, Callable[..., Figure]]:
    spectra = [s for run in trajectory.runs for a in run.analyses for s in a.spectra]
    pages: dict[str, Callable[..., Figure]] = {
        "|λmin|/λmax against the epoch": trajectory_panels,
        "λmin and λmax against the epoch": ends_panels,
    }
    if any(s.trace is not None for s in spectra):
        pages["Trace against the epoch"] = trace_panels
    if any(s.loss is not None for s in spectra):
        pages["|λmin| and λmax against the loss"] = loss_panels
    return pages


def trajectory_panels(trajectory: Trajectory, *, width: float | None = None) -> Figure:
    """Draw the ratio of all runs side by side, over the same axes.

    Args:
        trajectory: what was found.
        width: of the page in inches; below 7 the runs stand below each other. By default 3.4 for
            a single run, which is one column of print, else 7, which is two.
    """
    handles = handles_of(trajectory.runs) + _marks(trajectory.runs)
    title = "Non-convexity during training"
    figure, panels = open_page(trajectory, title, "|λmin| / λmax", handles, width)
    with mpl.rc_context(fname=STYLE):
        for ax, run in zip(panels, trajectory.runs, strict=True):
            draw_trajectory(ax, run)
        ends = [(ax.get_xlim()[1], ax.get_ylim()[1]) for ax in panels]
        for ax in panels:
            _set_limits(ax, *map(max, zip(*ends, strict=True)))
    return figure


def ends_panels(trajectory: Trajectory, *, width: float | None = None) -> Figure:
    """Draw λmin, below zero, and λmax with ‖Hy − λy‖ of each; as `trajectory_panels`."""

    def ends(spectrum: ClassSpectrum) -> list[_Value]:
        return [
            (spectrum.lambda_min, spectrum.residual_min),
            (spectrum.lambda_max, spectrum.residual_max),
        ]

    return _logarithmic(trajectory, "λmin and λmax during training", "λ", "residual", ends, width)


def trace_panels(trajectory: Trajectory, *, width: float | None = None) -> Figure:
    """Draw the trace with its standard error; as `trajectory_panels`."""

    def trace(spectrum: ClassSpectrum) -> list[_Value]:
        return [(spectrum.trace, spectrum.trace_stderr)]

    title = "Trace during training"
    return _logarithmic(trajectory, title, "tr H", "standard error", trace, width)


def _logarithmic(
    trajectory: Trajectory,
    title: str,
    y: str,
    error: str,
    values_of: Callable[[ClassSpectrum], list[_Value]],
    width: float | None,
) -> Figure:
    """Draw values of either sign with what they are uncertain by, logarithmic but around zero."""
    handles = handles_of(trajectory.runs)
    handles.append(Line2D([], [], label=f"± {error}", color=INK, marker="|", ls="none"))
    figure, panels = open_page(trajectory, title, y, handles, width)
    seen, last = [0.0], 1.0
    with mpl.rc_context(fname=STYLE):
        for ax, run in zip(panels, trajectory.runs, strict=True):
            for label, style in styles_of(run).items():
                points = run.of(label)
                last = max(last, *(epoch for epoch, _ in points))
                for curve in zip(*(values_of(s) for _, s in points), strict=True):
                    values = [math.nan if v is None else v for v, _ in curve]
                    epochs = [epoch for epoch, _ in points]
                    ax.plot(epochs, values, label=label, markersize=4, **style)
                    for epoch, value, (_, by) in zip(epochs, values, curve, strict=True):
                        if by is not None and math.isfinite(value):
                            around = (value - by, value + by)
                            seen += around
                            ax.vlines(epoch, *around, color=style["color"], linewidth=1.2)
                    seen += [value for value in values if math.isfinite(value)]
            ax.axhline(0, color=INK, linewidth=0.5, zorder=1)
            finish(ax, run, last)
        for ax in panels:
            ax.set_xlim(0, 1.04 * last)
            _set_decades(ax, seen)
    return figure


def _set_decades(ax: Axes, values: Sequence[float]) -> None:
    """Count in decades on both sides of zero, around which four decades or more are one."""
    sizes = [abs(value) for value in values if value] or [1.0]
    last = math.ceil(math.log10(max(sizes)))
    first = max(math.floor(math.log10(min(sizes))), last - 4)
    ends = ((min(values), -1.0), (max(values), 1.0))
    floor = 0.5 * 10.0**first
    low, high = (2 * v if 2 * v * sign > floor else floor * sign for v, sign in ends)
    marked = [10.0**k for k in range(last, first - 1, -1 - (last - first) // 4)]
    ax.set_yscale("symlog", linthresh=10.0**first)
    ax.set_yticks([v for v in (*(-m for m in marked), 0.0, *marked) if low <= v <= high])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(low, high)


def draw_trajectory(ax: Axes, run: RunTrajectory) -> Axes:
    """Draw one run: a line a class, group or whole; what is unknown leaves a gap.

    Args:
        ax: empty axes.
        run: what to draw.

    Returns:
        The same axes.
    """
    last, top = 1.0, 0.0
    for label, style in styles_of(run).items():
        points = run.of(label)
        values = [math.nan if s.nonconvexity is None else s.nonconvexity for _, s in points]
        ax.plot([epoch for epoch, _ in points], values, label=label, markersize=4, **style)
        for epoch, spectrum in points:
            scatter = nonconvexity_of_probes(spectrum)
            if scatter is not None and (ends := scatter.interval()) is not None:
                ax.vlines(epoch, *ends, color=style["color"], linewidth=1.2, label="interval")
                values.append(ends[1])
        if paper := run.published_of(label):
            hollow = {key: style[key] for key in ("color", "marker")} | _HOLLOW
            ax.plot(list(paper), list(paper.values()), label=f"published {label}", **hollow)
            values += paper.values()
        last = max(last, *(epoch for epoch, _ in points), *paper)
        top = max(top, *(value for value in values if value == value), 0.0)
    finish(ax, run, last)
    _set_limits(ax, 1.04 * last, 1.06 * top or 1.0)
    return ax


def _set_limits(ax: Axes, right: float, high: float) -> None:
    ax.set_xlim(0, right)
    ax.set_ylim(-0.02 * high, high)  # a marker at zero is seen whole


def _marks(runs: Sequence[RunTrajectory]) -> list[Any]:
    """Say what stands beside the lines of the ratio."""
    handles: list[Any] = []
    drawn = [run for run in runs if any(map(run.published_of, run.labels))]
    if steps := dict.fromkeys(str(run.published).upper() for run in drawn):
        paper = f"published {' and '.join(steps)}, {EPOCHS[-1]} epochs"
        handles.append(Line2D([], [], label=paper, color=INK, marker="o", **_HOLLOW))
    probes = {s.probes for run in runs for a in run.analyses for s in a.spectra}
    if max(probes, default=0) >= 3:
        handles.append(
            Line2D([], [], label="95 %, mean of single probes", color=INK, marker="|", ls="none")
        )
    return handles
