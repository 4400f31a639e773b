"""Show results as tables: on the screen, as markdown, as csv; the only module that knows pandas."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectra.files import replacing
from spectra.results import CAVEAT, OPEN_MASS, Analysis, ClassSpectrum
from spectra.trajectories import RunTrajectory, Trajectory
from spectra.writing import at_least, at_most, markdown, number, with_error

if TYPE_CHECKING:
    import pandas as pd

MARKS = {  # what stands before a row, and what the footer says about it
    "▼": "negative curvature is proven: yᵀHy + noise floor < 0, recomputed in float64 by another "
    "path on the fixed operator; yᵀHy is an upper bound of λmin",
    "!": f"{CAVEAT}: augmentation re-drawn in every product, the released recurrence, products of "
    "rounding alone, or an operator that the doctor found to move",
    "~": "not converged: the residual is large (of a fixed matrix, some eigenvalue lies within it)",
    "…": "interrupted; --resume goes on from here",
    "✗": "no numbers, see below",
}
_HEADER = (
    *(("", ""), ("", "class"), ("", "name"), ("", "samples"), ("share", "%"), ("", "loss")),
    *(("acc. %", "train"), ("acc. %", "test"), ("", "λmin"), ("", "λmax")),
    *(("residuals", "of both"), ("|λmin|", "/ λmax"), ("density", "< −τ, %"), ("", "trace ± s.e.")),
)
_TAU = "τ = max(noise floor, 1e−6 λmax); a range of the density is what the Krylov steps leave open"
_TEXT = (0, 1, 2)  # columns aligned to the left
_CELL = 12  # columns of an epoch: a number and three marks
_DROPPED_FIRST = (2, 4, 10, 6, 3)  # what a narrow screen goes without, in this order


def marks(spectrum: ClassSpectrum) -> str:
    """List the keys of `MARKS` that hold for a spectrum."""
    known = spectrum.error is None and spectrum.lambda_min is not None
    holds = {
        "▼": spectrum.proven,
        "!": spectrum.caveat is not None,
        "~": known and not spectrum.converged,
        "…": not spectrum.complete,
        "✗": spectrum.error is not None,
    }
    return "".join(mark for mark in MARKS if holds[mark])


def render(analysis: Analysis, width: int = 120) -> str:
    """Set the table that ends a run, with a footer that explains its marks.

    Args:
        analysis: what was found.
        width: of the screen in columns; a narrow one loses names first and never an eigenvalue.
    """
    table = [*map(list, zip(*_HEADER, strict=True)), *map(_cells, analysis.spectra)]
    columns = list(range(len(_HEADER)))
    if all(s.name in ("", s.label) for s in analysis.spectra):
        columns.remove(2)
    sizes = [max(len(line[i]) for line in table) for i in columns]
    for victim in _DROPPED_FIRST:
        if sum(sizes) + len(columns) - 1 > width and victim in columns:
            columns.remove(victim)
            sizes = [max(len(line[i]) for line in table) for i in columns]
    gap = "  " if sum(sizes) + 2 * (len(columns) - 1) <= width else " "
    lines = [
        gap.join(
            line[i].ljust(size) if i in _TEXT else line[i].rjust(size)
            for i, size in zip(columns, sizes, strict=True)
        ).rstrip()
        for line in table
    ]
    rule = "─" * (sum(sizes) + len(gap) * (len(columns) - 1))
    body = [rule, *lines[:2], rule, *lines[2:], rule]
    wrapped = (textwrap.wrap(line, width, subsequent_indent="  ") for line in _footer(analysis))
    return "\n".join([*body, *(line for lines in wrapped for line in lines)])


def render_trajectory(trajectory: Trajectory, width: int = 120) -> str:
    """Set |λmin|/λmax of every class against the epoch, published values below where they belong.

    Args:
        trajectory: what was found.
        width: of the screen in columns; epochs that have no room go into further blocks.
    """
    lines = []
    for run in trajectory.runs:
        labels = {label: f"{label} {_name(run, label)}".rstrip() for label in run.labels}
        first = max(map(len, (*labels.values(), "  published"))) + 1
        room = max(1, (width - first) // _CELL)
        for start in range(0, len(run.epochs), room):
            epochs = run.epochs[start : start + room]
            head = f"{'epoch':<{first}}" + "".join(f"{e:>{_CELL - 3}}   " for e in epochs)
            lines += ["", f"{run.name}: |λmin| / λmax", "─" * len(head), head.rstrip()]
            for label, name in labels.items():
                found, paper = dict(run.of(label)), run.published_of(label)
                cells = [_marked(found[e]) if e in found else "" for e in epochs]
                lines.append((name.ljust(first) + "".join(cells)).rstrip())
                if any(epoch in paper for epoch in epochs):
                    values = (f"{number(paper.get(e)):>{_CELL - 3}}   " for e in epochs)
                    lines.append(("  published".ljust(first) + "".join(values)).rstrip())
    spectra = [s for run in trajectory.runs for a in run.analyses for s in a.spectra]
    used = set("".join(map(marks, spectra)))
    foot = [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used]
    for run in trajectory.runs:
        failed = [(e, s) for label in run.labels for e, s in run.of(label) if s.error is not None]
        foot += [f"✗ {run.name}, epoch {e}, {s.label}: {s.error}" for e, s in failed]
    wrapped = (textwrap.wrap(line, width, subsequent_indent="  ") for line in foot)
    return "\n".join([*lines[1:], "", *(line for part in wrapped for line in part)])


def to_markdown(analysis: Analysis) -> str:
    """Set the same table as GitHub markdown, with the footer as lines below."""
    header = [" ".join(parts).strip() for parts in _HEADER]
    table = markdown(header, [_cells(s) for s in analysis.spectra], _TEXT)
    return "\n".join([table, "", *(f"{line}  " for line in _footer(analysis))])


def frame(results: Analysis | Trajectory) -> pd.DataFrame:
    """Give one row a spectrum: the fields of ``esd.json``, nested ones as ``doctor_asymmetry``."""
    import pandas as pd

    return pd.DataFrame(results.rows())


def to_csv(analysis: Analysis, path: str | Path) -> Path:
    """Write the frame, every digit of it; unknown is empty.

    Raises:
        SpectraError: If the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with replacing(path) as partial:
        frame(analysis).to_csv(partial, index=False, encoding="utf-8", lineterminator="\n")
    return path


def _name(run: RunTrajectory, label: str) -> str:
    name = run.of(label)[0][1].name
    return "" if name in ("", label, label.removeprefix("class ")) else _cut(name)


def _marked(s: ClassSpectrum) -> str:
    return f"{number(s.nonconvexity):>{_CELL - 3}}{marks(s):<3}"


def _cut(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "…"


def _cells(s: ClassSpectrum) -> list[str]:
    accuracies = (
        "–" if value is None else f"{100 * value:.1f}"
        for value in (s.train_accuracy, s.test_accuracy)
    )
    residuals = f"{number(s.residual_min, 1)} {number(s.residual_max, 1)}"
    return [
        *(marks(s), s.label, _cut(s.name), str(s.count), number(100 * s.share)),
        with_error(s.loss, s.loss_stderr),
        *(*accuracies, number(s.lambda_min), number(s.lambda_max), residuals),
        *(number(s.nonconvexity), _mass(s), with_error(s.trace, s.trace_stderr)),
    ]


def _mass(s: ClassSpectrum) -> str:
    """Write the share as a range where the quadrature leaves more open than the probes do."""
    known = s.negative_mass, s.negative_mass_scatter
    mass, stderr = (None if x is None else 100 * x for x in known)
    if mass is None or s.negative_mass_bounds is None:
        return with_error(mass, stderr)
    low, high = (100 * end for end in s.negative_mass_bounds)
    if stderr and high - low <= 2 * stderr:
        return with_error(mass, stderr)
    if high - low > 100 * OPEN_MASS:
        return f"{math.floor(round(low, 9))}–{math.ceil(round(high, 9))}"
    if number(low) == number(high):  # three digits agree
        return number(mass)
    return f"{at_most(low)}–{at_least(high)}"


def _footer(analysis: Analysis) -> Sequence[str]:
    used = set("".join(map(marks, analysis.spectra)))
    lines = [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used]
    lines += [f"✗ {s.label}: {s.error}" for s in analysis.spectra if s.error is not None]
    lines += [_TAU] * any(s.negative_mass is not None for s in analysis.spectra)
    lines += [f"{s.label}: {note}" for s in analysis.spectra for note in s.notes]
    facts = {"data": analysis.data.get("name"), "split": analysis.data.get("split")}
    keys = ("loss", "parameters", "protocol", "augment", "steps", "probes", "seed", "dtype")
    facts |= {key: analysis.settings.get(key) for key in keys} | {"on": analysis.device}
    operator = ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
    return [*lines, *analysis.notes, f"H: mean over a class's samples; {operator}"]
