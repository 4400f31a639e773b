"""Draw eigenvalue densities, one panel a class.

A panel shows one class's eigenvalue density φ(λ), logarithmic over a symlog eigenvalue axis. All
panels of an analysis share both axes, over all pages.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from spectra.krylov.measure import Density, Kernel, SpectralMeasure, symlog_grid
from spectra.results import Analysis, ClassSpectrum
from spectra.writing import number

from .pages import (
    ALARM,
    COLOURS,
    INK,
    OUTSIDE,
    PLAIN,
    STYLE,
    TEXT,
    Head,
    add_ribbon,
    columns_on,
    facts_of,
    lay_out,
    panel_width,
    plain_text,
    size_of,
    width_of,
    wrapped,
)

PANELS_PER_PAGE = 15  # five rows: a page of print
_DASHES: dict[str, Any] = {"color": INK, "linewidth": 0.7, "linestyle": (0, (3, 2))}
_TRIANGLE: dict[str, Any] = {"marker": "v", "color": INK, "markersize": 6.5, "linestyle": "none"}
_TRIANGLE |= {"markeredgecolor": "white", "markeredgewidth": 0.6}
_BOX = {"boxstyle": "round,pad=0.3", "facecolor": "white", "alpha": 0.92, "linewidth": 0}


@dataclass(frozen=True)
class Scale:
    """The axes that panels share, in the units of the eigenvalues and of their density."""

    low: float  # ends of the eigenvalue axis
    high: float
    linear: float  # it is linear between ± this, a power of ten, and logarithmic outside
    floor: float  # densities below it are drawn as it; a power of ten
    ceiling: float

    @classmethod
    def of(cls, spectra: Sequence[ClassSpectrum], kernel: Kernel = "default") -> Scale:
        """Choose axes that hold every spectrum, from the spectra alone: nothing has a unit.

        The linear zone ends a decade below the usual |λmin|, so that negative outliers stand
        apart from zero; the floor lies a decade below the kernel of a single eigenvalue.
        """
        measures = [s.measure for s in spectra if s.measure is not None]
        if not measures:
            return cls(-1.0, 1.0, 0.1, 1e-7, 1e2)
        low = min(0.0, *(m.support[0] for m in measures))
        high = max(0.0, *(m.support[1] for m in measures))
        top = max(-low, high) or 1.0
        usual = np.median([-m.support[0] for m in measures if m.support[0] < 0] or [top / 100])
        linear = 10.0 ** math.floor(math.log10(np.clip(usual, top / 1e4, top / 10) / 3))
        heights = np.concatenate([_heights(m, kernel) for m in measures])
        ceiling = 2 * float(heights.max())
        floor = 10.0 ** math.floor(math.log10(max(heights.min() / 10, ceiling / 1e15)))
        ends = np.arcsinh(np.array([low, high]) / linear)
        low, high = linear * np.sinh(ends + (0.05 * np.ptp(ends) + 0.2) * np.array([-1, 1]))
        return cls(float(low), float(high), linear, floor, ceiling)

    def ticks(self, most: int) -> list[float]:
        """List zero and powers of ten on the axis, thinned out to a number that has room."""
        first, ticks = round(math.log10(self.linear)), [0.0]
        for stride in range(1, 20):
            powers = [10.0 ** (first + stride * k) for k in range(20)]
            # A label at the very left would run into the panel beside.
            ticks = [-p for p in reversed(powers) if -p > 0.7 * self.low]
            ticks += [0.0, *(p for p in powers if p < self.high)]
            if len(ticks) <= most:
                break
        return ticks


def density_grid(
    analysis: Analysis,
    *,
    kernel: Kernel | None = None,
    page: int = PANELS_PER_PAGE,
    width: float | None = None,
) -> list[Figure]:
    """Draw small multiples, one panel a spectrum, in the order of the analysis.

    Args:
        analysis: what was found; spectra without numbers get a panel that says why.
        kernel: smoothing of the densities; None: the analysis's own setting, or the released one
            for the released protocol.
        page: most panels on one figure.
        width: of the page in inches; below 7 the panels stand in one column, five at most. By
            default 3.4 for a single panel, which is one column of print, else 7, which is two.

    Returns:
        One figure a page; all panels of all pages share their axes.
    """
    usual: Kernel = "paper" if analysis.settings.get("protocol") == "released" else "default"
    kernel = kernel or analysis.settings.get("kernel") or usual
    spectra = analysis.spectra
    scale = Scale.of(spectra, kernel)
    width = width or width_of(len(spectra))
    page = page if width >= TEXT else min(page, 5)
    pages = max(1, math.ceil(len(spectra) / page))
    room = max(1, math.ceil(len(spectra) / pages))
    columns = columns_on(room, width)
    ribbon = any(s.caveat and s.measure is not None for s in spectra)
    wide = panel_width(columns, width)
    names = max((len(_heading(s, wide)) for s in spectra), default=1)
    groups = [analysis.group_of(s) for s in spectra]
    colours = [COLOURS.get(g or "", OUTSIDE if any(groups) else PLAIN) for g in groups]
    figures = []
    with mpl.rc_context(fname=STYLE):
        for i in range(pages):
            part = range(len(spectra))[i * room : (i + 1) * room]
            number = {"page": f"{i + 1} of {pages}"} if pages > 1 else {}
            facts = facts_of(analysis, kernel=kernel, **number)
            figure, panels = lay_out(
                *(len(part), columns, Head(_name(analysis), facts, _handles(analysis), width)),
                ribbon=ribbon, x="Eigenvalues", y="Density", names=names,
            )  # fmt: skip
            for ax, k in zip(panels, part, strict=True):
                draw_density(ax, spectra[k], None, kernel, scale=scale, colour=colours[k])
            figures.append(figure)
        _make_room([ax for figure in figures for ax in figure.axes], scale)
    return figures


def draw_density(
    ax: Axes,
    spectrum: ClassSpectrum,
    grid: Float64[np.ndarray, " g"] | None = None,
    kernel: Kernel = "default",
    *,
    scale: Scale | None = None,
    colour: str = PLAIN,
) -> Axes:
    """Draw one density, λmin and λmax marked, and its numbers in a box.

    Three probes or more are drawn as thin lines under their mean, with one standard error of its
    logarithm as a band.

    Args:
        ax: empty axes.
        spectrum: what to draw; one without nodes gets its error as text.
        grid: (g,) eigenvalues; by default fine enough for every kernel on the axis.
        kernel: smoothing.
        scale: axes to share with other panels; the spectrum's own if None.
        colour: of the area; the line is a darker shade.

    Returns:
        The same axes.
    """
    scale = scale or Scale.of([spectrum], kernel)
    _set_axes(ax, scale)
    _title(ax, spectrum)
    measure = spectrum.measure
    if measure is None:
        reason = plain_text(textwrap.fill(spectrum.error or "no spectrum", 34))
        ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color=ALARM)
        return ax
    density = _curve(measure, scale, kernel) if grid is None else measure.density(grid, kernel)
    grid, mean = density.grid, np.maximum(density.mean, scale.floor)
    line = tuple(0.62 * part for part in to_rgb(colour))
    ax.fill_between(grid, scale.floor, mean, color=colour, alpha=0.45, linewidth=0)
    if len(measure.nodes) >= 3:
        _draw_probes(ax, measure, density, kernel, scale.floor, line)
    ax.plot(grid, mean, color=line, label="density")
    for name, value in (("λmin", spectrum.lambda_min), ("λmax", spectrum.lambda_max)):
        if value is not None:
            ax.axvline(value, label=name, **_DASHES)
    if spectrum.proven:
        # θ is what is proven; λmin of a moving operator may lie far from it.
        theta = spectrum.certificate.get("rayleigh_quotient", spectrum.lambda_min)
        ax.plot(theta, 0.07, transform=ax.get_xaxis_transform(), label="proven", **_TRIANGLE)
    box = ax.text(0.97, 0.95, _numbers(spectrum), transform=ax.transAxes, ha="right", va="top")
    box.set(fontsize=7, family="DejaVu Sans Mono", linespacing=1.25, zorder=5, gid="numbers")
    box.set_bbox(_BOX)
    return ax


def _draw_probes(
    ax: Axes,
    measure: SpectralMeasure,
    mean: Density,
    kernel: Kernel,
    floor: float,
    colour: tuple[float, ...],
) -> None:
    """Draw the probes, and mean · exp(± s.e. / mean).

    An interval on the axis of the density itself ends below zero wherever the probes' nodes lie
    apart, and hangs in stripes on a logarithmic one. s.e. / mean is 1 at most, so that this band is
    0.43 decades wide to each side at most.
    """
    low, high = measure.support
    lines = []
    for nodes, weights in zip(measure.nodes, measure.weights, strict=True):
        # The ends of all probes, without weight: a probe is smoothed as in the mean.
        held = np.concatenate(([low], nodes, [high])), np.concatenate(([0.0], weights, [0.0]))
        alone = SpectralMeasure((held[0],), (held[1],), measure.dim)
        lines.append(alone.density(mean.grid, kernel).mean)
        ax.plot(
            mean.grid, np.maximum(lines[-1], floor),
            color=colour, linewidth=0.4, alpha=0.6, label="probe",
        )  # fmt: skip
    error = np.std(lines, axis=0, ddof=1) / math.sqrt(len(lines))
    spread = np.exp(np.divide(error, mean.mean, out=np.zeros_like(error), where=mean.mean > 0))
    ends = (np.maximum(end, floor) for end in (mean.mean / spread, mean.mean * spread))
    ax.fill_between(mean.grid, *ends, color=colour, alpha=0.3, linewidth=0, label="band")


def _set_axes(ax: Axes, scale: Scale) -> None:
    width, height = size_of(ax)
    ax.set_xscale("symlog", linthresh=scale.linear)
    ax.set_yscale("log")
    ax.set_xlim(scale.low, scale.high)
    ax.set_ylim(scale.floor, scale.ceiling)
    ax.xaxis.set_major_locator(FixedLocator(scale.ticks(max(3, int(width / 0.34)))))
    first, last = (math.log10(end) for end in (scale.floor, scale.ceiling))
    stride = max(1, math.ceil((last - first) / max(2, height / 0.28)))
    powers = range(round(first), math.floor(last) + 1, stride)
    ax.yaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(_power))
        axis.set_minor_locator(NullLocator())


def _title(ax: Axes, spectrum: ClassSpectrum) -> None:
    drawn = spectrum.measure is not None  # between probes, too
    top = add_ribbon(ax, shown=drawn and spectrum.caveat is not None)
    ax.set_title(plain_text("\n".join(_heading(spectrum, size_of(ax)[0]))), y=top)
    ax.set_title(f"n = {spectrum.count}", loc="right", y=top, fontweight="normal", fontsize=7)


def _heading(spectrum: ClassSpectrum, width: float) -> list[str]:
    """Give the lines of a panel's title: the label whole, the name behind or below it."""
    counted = 0.1 + 0.055 * len(f"n = {spectrum.count}")  # inches
    beside = int((width - counted) / 0.075)  # letters
    name = spectrum.name if spectrum.name != spectrum.label else ""
    together = f"{spectrum.label} · {name}" if name else spectrum.label
    if len(together) <= beside:
        return [together]
    label = wrapped(spectrum.label, width)
    if not name and len(label[-1]) <= beside:
        return label
    return [*label, textwrap.shorten(name, beside, placeholder="…")]


def _numbers(s: ClassSpectrum) -> str:
    accuracy = "–" if s.test_accuracy is None else f"{100 * s.test_accuracy:.1f}%"
    values = {"λmax": number(s.lambda_max), "λmin": number(s.lambda_min)}
    values |= {"test acc": accuracy, "loss": number(s.loss)}
    widest = max(7, *map(len, values.values()))
    lines = [f"{name:<9}{value:>{widest}}" for name, value in values.items()]
    known = s.lambda_min is not None  # else no residual has been measured
    return "\n".join(lines + ["not converged"] * (known and not s.converged))


def _name(analysis: Analysis) -> str:
    epoch = analysis.checkpoint.get("epoch")
    return f"{analysis.checkpoint.get('file', '')}{'' if epoch is None else f', epoch {epoch}'}"


def _handles(analysis: Analysis) -> list[Any]:
    """List what the marks mean."""
    groups = {analysis.group_of(s) for s in analysis.spectra}
    handles: list[Any] = [
        Patch(color=colour, alpha=0.6, label=f"{name} classes")
        for name, colour in COLOURS.items()
        if name in groups
    ]
    handles.append(Line2D([], [], label="λmin, λmax", **_DASHES))
    if any(s.measure is not None and len(s.measure.nodes) >= 3 for s in analysis.spectra):
        handles.append(Line2D([], [], color=INK, alpha=0.6, linewidth=0.4, label="single probes"))
        handles.append(Patch(color=INK, alpha=0.3, label="mean ± s.e., of the logarithm"))
    if any(s.proven for s in analysis.spectra):
        handles.append(Line2D([], [], label="negative curvature proven", **_TRIANGLE))
    return handles


def _make_room(panels: Sequence[Axes], scale: Scale) -> None:
    """Raise the common ceiling until no curve meets the box of numbers above it."""
    need = 1.0
    for ax in panels:
        lines = [line for line in ax.lines if line.get_label() == "density"]
        boxes = [text for text in ax.texts if text.get_gid() == "numbers"]
        for line, text in zip(lines, boxes, strict=True):
            box = text.get_window_extent().padded(6).transformed(ax.transAxes.inverted())
            place = (line.get_transform() - ax.transAxes).transform(line.get_xydata())
            under = place[(place[:, 0] >= box.x0) & (place[:, 0] <= box.x1), 1]
            need = max(need, under.max(initial=0.0) / max(box.y0, 0.1))
    ceiling = scale.floor * (scale.ceiling / scale.floor) ** need
    for ax in panels:
        _set_axes(ax, replace(scale, ceiling=ceiling))


def _curve(measure: SpectralMeasure, scale: Scale, kernel: Kernel) -> Density:
    """Smooth over the whole axis, at every node and closely around it, and keep what is seen."""
    near = measure.around_nodes(kernel)
    ends = np.array([scale.low, scale.high])
    # Of panels that share an axis, it may reach far beyond this spectrum.
    axis = symlog_grid(scale.low, scale.high, scale.linear, 600)
    grid = np.unique(np.concatenate((ends, axis, near, measure.symlog_grid())))
    density = measure.density(grid[(grid >= ends[0]) & (grid <= ends[1])], kernel)
    # Of all the points in one pixel only the highest shows: no kernel is lost.
    left, right = np.arcsinh(ends / scale.linear)
    pixel = np.digitize(np.arcsinh(density.grid / scale.linear), np.linspace(left, right, 1200))
    order = np.lexsort((density.mean, pixel))
    seen = np.sort(order[np.flatnonzero(np.diff(pixel[order], append=-1))])
    band = (None if curve is None else curve[seen] for curve in (density.low, density.high))
    return Density(density.grid[seen], density.mean[seen], *band)


def _heights(measure: SpectralMeasure, kernel: Kernel) -> Float64[np.ndarray, " _"]:
    """Give the density at the nodes that weigh at least a tenth of one eigenvalue."""
    nodes, weights = np.concatenate(measure.nodes), np.concatenate(measure.weights)
    return measure.density(nodes[weights >= 0.1 / measure.dim], kernel).mean


def _power(value: float, _: int | None = None) -> str:
    power = round(math.log10(abs(value))) if value else 0
    return rf"${'-' if value < 0 else ''}10^{{{power}}}$" if value else "0"
