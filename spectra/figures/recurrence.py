"""Draw the off-diagonals of Lanczos' T against the step, one panel a run and class.

In units of each probe's λmax. A T with a constant β and nothing on its diagonal has its ends at
±2β and stays at the dashed line, 1/2. On a fixed matrix with outliers β falls, within a few dozen
steps, from their scale to that of the bulk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectra.comparisons import names_of
from spectra.results import Analysis, ClassSpectrum

from .pages import (
    INK,
    OUTSIDE,
    STYLE,
    Head,
    columns_on,
    facts_of,
    lay_out,
    panel_width,
    plain_text,
    width_of,
    wrapped,
)

# Dark to light and dash by dash: told apart in grey as well. Seven dashes go round beside five
# colours, and 35 looks are distinct, for neither number divides the other.
_COLOURS = ("#08306b", "#2b7bba", "#b2182b", "#7f7f7f", "#d99a00")
_DASHES: tuple[Any, ...] = (
    *("-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))),
    *((0, (7, 2)), (0, (6, 1, 1, 1, 1, 1)), (0, (2, 2))),
)
_HALF: dict[str, Any] = {"color": INK, "linewidth": 0.7, "linestyle": (0, (3, 2))}


def recurrence_panels(analyses: Sequence[tuple[str, Analysis]]) -> Figure:
    """Draw β/λmax of every spectrum; the analyses of one run and class share a panel.

    Where some of them have several, the others are left out.

    Args:
        analyses: each with the name of the run that it is of.

    Returns:
        One figure; all panels share their axes.
    """
    panels: dict[str, list[tuple[str, ClassSpectrum]]] = {}
    rows = [(run, a, s) for run, a in analyses for s in a.spectra if s.runs and s.lambda_max]
    for (run, _, s), name in zip(rows, names_of(rows), strict=True):
        panels.setdefault(f"{run}, {s.label}", []).append((name, s))
    panels = {title: _told_apart(held) for title, held in panels.items()}
    compared = {title: held for title, held in panels.items() if len({n for n, _ in held}) > 1}
    panels = compared or panels  # one line alone says little beside those
    names = list(dict.fromkeys(name for held in panels.values() for name, _ in held))
    looks = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i % len(_DASHES)]}
        for i, name in enumerate(names)
    }
    width = width_of(len(panels))
    columns = columns_on(len(panels), width)
    titles = [wrapped(title, panel_width(columns, width)) for title in panels]
    facts = facts_of(*(analysis for _, analysis in analyses))
    moving = {n: s.caveat for held in panels.values() for n, s in held if s.caveat is not None}
    told = {n: f"{n} ({moving[n]})" if n in moving else n for n in names}
    handles = [Line2D([], [], label=plain_text(told[n]), **look) for n, look in looks.items()]
    handles.append(Line2D([], [], label="constant T: 1/2", **_HALF))
    head = Head("What the recurrence sees", facts, handles, width)
    with mpl.rc_context(fname=STYLE):
        figure, axes = lay_out(
            *(len(panels), columns, head), ribbon=False,
            x="Lanczos step", y="β / λmax", names=max(map(len, titles), default=1),
        )  # fmt: skip
        for ax, title, held in zip(axes, titles, panels.values(), strict=True):
            for name, s in held:
                draw_recurrence(ax, s, **looks[name])
            ax.set_title(plain_text("\n".join(title)))
        ends = np.array([ax.get_ylim() for ax in axes])
        for ax in axes:
            ax.set_ylim(ends[:, 0].min(), max(1.0, ends[:, 1].max()))
    return figure


def _told_apart(held: Sequence[tuple[str, ClassSpectrum]]) -> list[tuple[str, ClassSpectrum]]:
    """Add the samples to a name that analyses over several numbers of them have in common."""
    counts: dict[str, set[int]] = {}
    for name, s in held:
        counts.setdefault(name, set()).add(s.count)
    return [
        (f"{name}, {s.count} samples" if len(counts[name]) > 1 else name, s) for name, s in held
    ]


def draw_recurrence(ax: Axes, spectrum: ClassSpectrum, **look: Any) -> Axes:
    """Draw β/λmax of every probe of one spectrum against the step, logarithmic.

    Args:
        ax: axes that may hold others' lines.
        spectrum: with runs and a λmax.
        look: of the lines.

    Returns:
        The same axes.
    """
    for run in spectrum.runs:
        top = run.ritz().values[-1]
        beta = run.betas / (top if top > 0 else np.nan)
        ax.semilogy(np.arange(2, len(beta) + 2), beta, **{"linewidth": 1.0, **look})
    ax.axhline(0.5, **_HALF)
    ax.grid(visible=True, axis="y", color=OUTSIDE, alpha=0.2)
    return ax
