"""Put the spectra of several analyses side by side, one row a class and analysis.

Beside the ends of each spectrum stands what tells curvature from estimator:

    ratio       max(0, −λmin)/λmax of every probe by itself: how start vectors, or draws, scatter
    residual    ‖Hy − λmin y‖ by one more product: of the size of λmin itself, nothing shows that
                an eigenvalue is near
    yᵀHy        curvature of the *fixed* Hessian along the vector that was called λmin's
    2β/λmax     of every probe; β is the mean of the last ten off-diagonals of its T

A T with a constant diagonal α and off-diagonal β has the eigenvalues α + 2β cos(kπ/(m+1)), so where
2β/λmax is near 1 its ends are those of a bulk that has been found no end to. A matrix without
outliers looks like that as well; beside a large residual it is the trace of an operator that moves.

References:
    Golub, Meurant, Matrices, moments and quadrature with applications, 2010, on T
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from spectra.data import usually_normalised
from spectra.krylov import nonconvexity
from spectra.results import Analysis, ClassSpectrum
from spectra.tables import MARKS, marks
from spectra.trajectories.published import ENDS, Ends
from spectra.writing import markdown, number, with_error

Row: TypeAlias = tuple[str, Analysis, ClassSpectrum]  # the name of a run, and what is of it
HEADER = (
    *("", "run", "class", "samples", "loss", "analysis", "λmin", "λmax", "ratio", "residual"),
    *("yᵀHy, fixed H", "2β/λmax", "trace ± s.e."),
)
_TEXT = (0, 1, 2, 5)  # columns aligned to the left
_SETTLED = (
    "Each cell: |λmin|/λmax of each probe, and λmax itself, as T had them after so many steps; – "
    "where a run had ended before. The ends of a fixed matrix grow from step to step, too, but "
    "towards its own, and stay there."
)
_APART = {  # settings, as they are said where two analyses differ by them alone
    "dtype": "{}",
    "steps": "{} steps",
    "until_converged": "until {:g}",
    "seed": "seed {}",
    "batch_size": "batches of {}",
}
_BOTH = "Residuals: ‖Hy − λy‖ of λmin and of λmax, by one more product; none are published."
_LATE = 10  # off-diagonals at the end of T that are averaged
_NOTES = (
    "λmin, λmax: the outermost Ritz values of all probes. Ratio: |λmin|/λmax of each probe by "
    "itself, 0 where λmin is not negative. Residual: ‖Hy − λmin y‖, by one more product.",
    "yᵀHy: recomputed in float64 on the fixed Hessian, without augmentation unless it is frozen, "
    "along the vector y that the analysis called λmin's. A true λmin has yᵀHy = λmin.",
    "2β/λmax of each probe: β is the mean of the last ten off-diagonals of T. Near 1, the ends are "
    "those of a T with constant entries.",
    "trace: where T's part could be taken out of its samples; else their own scatter, which is all "
    "that is known of their error, says little beside an outlier.",
)


def names_of(rows: Sequence[Row]) -> list[str]:
    """Name the analyses of some rows; of two alike, the settings that set them apart are said, too.

    But for samples and probes, which the tables show.

    Args:
        rows: the name of a run, an analysis of it and a spectrum each.
    """
    names, alike = [named(analysis, s) for _, analysis, s in rows], defaultdict(list)
    for i, (run, _, s) in enumerate(rows):
        alike[run, s.label, names[i]].append(i)
    for same in alike.values():
        moves = rows[same[0]][1].settings.get("augment") == "resample"
        for key, words in _APART.items():
            values = [rows[i][1].settings.get(key) for i in same]
            if len(set(values)) == 1 or (key == "batch_size" and not moves):
                continue
            for i, value in zip(same, values, strict=True):
                names[i] += "" if value is None else f", {words.format(value)}"
    return names


def named(analysis: Analysis, spectrum: ClassSpectrum) -> str:
    """Say how a spectrum was computed: the recurrence, what the samples went through, the rest."""
    settings = analysis.settings
    augment = str(settings.get("augment") or "none")
    if spectrum.protocol == "released":
        moved = "augmentation stored" if augment.startswith("frozen") else "no augmentation"
        name = "released" if augment == "resample" else f"released, {moved}"
    else:
        name = "exact" if augment == "none" else augment
    said = ["test split"] if settings.get("split") == "test" else []
    if settings.get("parameters") is not None:
        said.append(f"block of {settings['parameters']}")
    if settings.get("loss") == "trained":
        loss = settings.get("loss_function") or {}
        own = "sha256" in loss  # a function of the caller's
        said.append(f"trained loss {loss['name']}" if own else "trained loss")
    data = analysis.data
    if not usually_normalised(str(data.get("name")), data):
        mean, std = (",".join(f"{v:g}" for v in data[key]) for key in ("mean", "std"))
        said.append(f"normalised by {mean} and {std}")
    return ", ".join([name, *said])


def signatures(spectrum: ClassSpectrum) -> list[float | None]:
    """Give 2β/λmax of every probe's T; None where λmax is not positive, or T has one row."""
    found: list[float | None] = []
    for run in spectrum.runs:
        top = run.ritz().values[-1]
        known = top > 0 and len(run.betas) > 0
        found.append(float(2 * np.mean(run.betas[-_LATE:]) / top) if known else None)
    return found


def compare(analyses: Sequence[tuple[str, Analysis]]) -> str:
    """Set a table of all spectra of several analyses, as GitHub markdown.

    Args:
        analyses: each with the name of the run that it is of; the analyses of one run get the same.

    Returns:
        The table, by run, then by class, then by analysis, each in the order given, and below it
        what its columns and marks mean.
    """
    rows = _rows(analyses)
    cells = [_cells(row, name) for row, name in zip(rows, names_of(rows), strict=True)]
    return _with_notes(markdown(HEADER, cells, _TEXT), _NOTES, rows)


def settling(analyses: Sequence[tuple[str, Analysis]], steps: Sequence[int]) -> str:
    """Set a table of what every analysis would have told after fewer steps, as GitHub markdown.

    Args:
        analyses: as in `compare`.
        steps: Krylov steps, a column each, 1 or more.

    Returns:
        The table of |λmin|/λmax and λmax, in the order of `compare`.

    Raises:
        SpectraError: for a number of steps below 1.
    """
    header = ("", "run", "class", "samples", "analysis", *(f"after {count}" for count in steps))
    rows = _rows(analyses)
    cells = [
        [marks(s), run, s.label, str(s.count), name] + [_after(s, count) for count in steps]
        for (run, _, s), name in zip(rows, names_of(rows), strict=True)
    ]
    return _with_notes(markdown(header, cells, (0, 1, 2, 4)), [_SETTLED], rows)


def _after(s: ClassSpectrum, steps: int) -> str:
    told = []
    for run in s.runs:
        if steps > run.steps:
            told.append("–")
            continue
        low, high = run.after(steps).ritz().values[[0, -1]].tolist()
        told.append(f"{number(nonconvexity(low, high))} of {number(high)}")
    return " · ".join(told) or "–"


def beside_published(analyses: Mapping[str, Analysis]) -> str:
    """Set our numbers beside those that the published densities print, as GitHub markdown.

    Args:
        analyses: by the step of the paper's run that each is of, ``sgd`` or ``sam``.
    """
    header = (
        *("", "run", "spectrum", "samples", "", "λmin", "λmax", "residuals of both", "ratio"),
        *("test acc. %", "loss"),
    )
    lines, rows = [], []
    for step, analysis in analyses.items():
        for s in analysis.spectra:
            if (panel := ENDS[step].get(s.label)) is None:
                continue
            accuracy = None if s.test_accuracy is None else 100 * s.test_accuracy
            about = marks(s), step.upper(), s.label, str(s.count), "ours"
            residuals = f"{number(s.residual_min, 1)} {number(s.residual_max, 1)}"
            ends, rest = (s.lambda_min, s.lambda_max), (s.nonconvexity, accuracy, s.loss)
            lines.append((*about, *map(number, ends), residuals, *map(number, rest)))
            lines.append(("", "", "", "", "published", *_told(panel)))
            rows.append((step.upper(), analysis, s))
    return _with_notes(markdown(header, lines, (0, 1, 2, 4)), [_BOTH], rows)


def _told(panel: Ends) -> list[str]:
    ratio = nonconvexity(panel.lambda_min, panel.lambda_max)
    low, high, accuracy = (  # to the digits that were printed, as the loss
        f"{value:g}".replace("-", "−")
        for value in (panel.lambda_min, panel.lambda_max, panel.test_accuracy)
    )
    return [low, high, "–", number(ratio), accuracy, number(panel.loss, 2)]


def _with_notes(table: str, notes: Sequence[str], rows: Sequence[Row]) -> str:
    """Say below a table what its columns and marks mean, and what failed."""
    used = {mark for _, _, s in rows for mark in marks(s)}
    told = [*notes, *(f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used)]
    told += [f"{run}, {s.label}: {s.error}" for run, _, s in rows if s.error is not None]
    return "\n".join([table, "", *(f"- {note}" for note in told)])


def _rows(analyses: Sequence[tuple[str, Analysis]]) -> list[Row]:
    """Order the spectra by run, then by class, then by analysis."""
    rows = [(run, analysis, s) for run, analysis in analyses for s in analysis.spectra]
    runs = list(dict.fromkeys(run for run, _, _ in rows))
    labels = list(dict.fromkeys(s.label for _, _, s in rows))
    return sorted(rows, key=lambda row: (runs.index(row[0]), labels.index(row[2].label)))


def _cells(row: Row, name: str) -> list[str]:
    """Write one row."""
    run, _, s = row
    theta = s.certificate.get("rayleigh_quotient")
    known = s.trace if s.known_forms else None
    trace = "–" if known is None else with_error(known, s.trace_stderr)
    return [
        *(marks(s), run, s.label, str(s.count)),
        *(with_error(s.loss, s.loss_stderr), name),
        *(number(s.lambda_min), number(s.lambda_max)),
        " · ".join(map(number, s.ratios)) or number(s.nonconvexity),
        *(number(s.residual_min, 2), number(theta)),
        *(" · ".join(number(value, 2) for value in signatures(s)) or "–", trace),
    ]
