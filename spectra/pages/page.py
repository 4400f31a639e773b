"""Lay out a page: the order of its sections, its tables and its files."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from markdown_it import MarkdownIt

from spectra.errors import SpectraError
from spectra.figures import density_grid, save, trajectory_pages, trajectory_titles
from spectra.files import drawn_pages, replacing
from spectra.results import CAVEAT, Analysis, ClassSpectrum
from spectra.tables import MARKS, marks, to_markdown
from spectra.trajectories import RunTrajectory, Trajectory
from spectra.writing import number, with_error

from .methods import distinct, methods, references
from .words import escaped, findings, over_epochs, some, unescaped

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #262626; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
table { border-collapse: collapse; font-size: 0.8rem; display: block; overflow-x: auto }
th, td { padding: 0.2rem 0.55rem; border-bottom: 1px solid #ddd; white-space: nowrap }
img { max-width: 100% } code { background: #f3f3f6; overflow-wrap: anywhere }
"""


def read(folder: str | Path) -> Analysis | Trajectory:
    """Read what a folder holds, an analysis or a trajectory.

    Args:
        folder: as `python -m spectra.esd` or `python -m spectra.trajectory` has left it.

    Raises:
        SpectraError: if it holds neither, or files that are not whole.
    """
    place = Path(folder)
    if (place / "esd.json").exists():
        return Analysis.load(place)
    if (place / "trajectory.json").exists():
        return Trajectory.load(place)
    kept = next((name for name in ("last.pt", "run.json") if (place / name).exists()), None)
    what = "no such folder" if not place.is_dir() else "a folder without results"
    if kept is not None:
        what = f"a folder with {kept}, which is of a training"
    raise SpectraError(
        f"{place} is {what}, expected one with esd.json or trajectory.json: a page says only what "
        "was computed; make them with `python -m spectra.esd CKPT` or `python -m "
        "spectra.trajectory RUN_DIR`"
    )


def write(results: Analysis | Trajectory, folder: str | Path) -> list[Path]:
    """Write ``report.md`` and ``report.html``, with ``report.png`` and ``report.pdf``.

    Args:
        results: what was found.
        folder: made if absent; a page that lies there is replaced.

    Returns:
        The paths, the page first.

    Raises:
        SpectraError: if the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    drawn = trajectory_pages(results) if isinstance(results, Trajectory) else density_grid(results)
    images = save(drawn, folder, "report")
    text = markdown(results, [path.name for path in images if path.suffix == ".png"])
    page, web = folder / "report.md", folder / "report.html"
    with replacing(page) as plain, replacing(web) as rich:
        plain.write_text(text, encoding="utf-8")
        rich.write_text(to_html(text, folder), encoding="utf-8")
    for old in set(drawn_pages(folder, "report")) - set(images):
        old.unlink()  # of an earlier page, whose figure had more of them
    return [page, web, *images]


def markdown(results: Analysis | Trajectory, images: Sequence[str] = ()) -> str:
    """Set the page.

    Args:
        results: what was found.
        images: names of the figure's pages, which lie beside it.
    """
    sections = (
        _of_runs(results, images)
        if isinstance(results, Trajectory)
        else _of_checkpoint(results, images)
    )
    return "\n\n".join(part for part in sections if part) + "\n"


def to_html(text: str, folder: Path) -> str:
    """Turn a page into one html file that needs no other: its figures are inside.

    Args:
        text: markdown; html in it is shown as text.
        folder: in which its figures lie.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for path in folder.glob("report*.png"):
        image = base64.b64encode(path.read_bytes()).decode()
        body = body.replace(f'src="{path.name}"', f'src="data:image/png;base64,{image}"')
    title = html.escape(unescaped(text.partition("\n")[0].removeprefix("# ")))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>'
        f"\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _of_checkpoint(analysis: Analysis, images: Sequence[str]) -> Iterable[str]:
    epoch = analysis.checkpoint.get("epoch")
    yield f"# Hessian spectra of {escaped(analysis.checkpoint.get('file') or 'a network')}" + (
        "" if epoch is None else f", epoch {epoch}"
    )
    yield _warning(analysis.spectra)
    table, _, foot = to_markdown(_on_one_line(analysis)).partition("\n\n")
    lines = [line.strip() for line in foot.splitlines() if line.strip()]
    yield _with_escaped_cells(table)
    yield _list(escaped(line) for line in lines if line[0] in MARKS)
    yield "## Densities"
    yield "\n\n".join(f"![Eigenvalue density of each row of the table]({name})" for name in images)
    yield "## What the doctor found"
    yield _list(f"**{escaped(s.label)}**: {escaped(findings(s))}" for s in analysis.spectra)
    yield "## Notes"
    yield _list(escaped(line) for line in lines if line[0] not in MARKS)
    yield "## Methods"
    yield escaped(methods([analysis]))
    yield references([analysis])
    yield "## Settings and fingerprints"
    yield _facts([analysis])


def _of_runs(trajectory: Trajectory, images: Sequence[str]) -> Iterable[str]:
    analyses = [analysis for run in trajectory.runs for analysis in run.analyses]
    spectra = [s for analysis in analyses for s in analysis.spectra]
    names = [escaped(run.name) for run in trajectory.runs]
    yield f"# Hessian spectra during training: {', '.join(names)}"
    yield _warning(spectra)
    for run in trajectory.runs:
        yield f"## {escaped(run.name)}"
        yield _epochs(run)
    used = set("".join(map(marks, spectra)))
    yield _list(escaped(f"{mark} {meaning}") for mark, meaning in MARKS.items() if mark in used)
    yield "## Over the epochs"
    pages = zip(trajectory_titles(trajectory), images, strict=False)
    yield "\n\n".join(f"![{what}]({name})" for what, name in pages)
    yield "## What the doctor found"
    for run in trajectory.runs:
        yield _list(
            f"**{escaped(f'{run.name}, {label}')}**: {over_epochs(run, label)}"
            for label in run.labels
        )
    yield "## Notes"
    for run in trajectory.runs:
        yield _list(map(escaped, _notes(run)))
    yield "## Methods"
    for run in trajectory.runs:
        whose = f"**{escaped(run.name)}.** " * (len(names) > 1)
        yield whose + escaped(methods(run.analyses, run.recipe))
    yield references(analyses)
    yield "## Settings and fingerprints"
    yield _facts(analyses)


def _warning(spectra: Iterable[ClassSpectrum]) -> str:
    moved = [s for s in spectra if s.caveat or s.doctor.get("fixed_operator") is False]
    if not moved:
        return ""
    labels = escaped(some(dict.fromkeys(s.label for s in moved)))
    return (
        f"> **{CAVEAT.capitalize()}**: {labels}. Either the operator changed "
        "from product to product, or its products were of rounding alone, or the recurrence was "
        "the released one; the numbers below are Ritz values of no Hessian."
    )


def _epochs(run: RunTrajectory) -> str:
    header = ["epoch", "class", "samples", "loss", "test, %", "λmin", "λmax", "residuals of both"]
    header.append(escaped("|λmin| / λmax"))
    header += ["published"] * (run.published is not None) + ["yᵀHy on the fixed H"]
    traces = any(s.trace is not None for analysis in run.analyses for s in analysis.spectra)
    header += ["trace ± s.e."] * traces + ["marks"]
    rows = []
    for label in run.labels:
        paper = run.published_of(label)
        for epoch, s in run.of(label):
            test = None if s.test_accuracy is None else 100 * s.test_accuracy
            known = s.loss, test, s.lambda_min, s.lambda_max
            cells = [str(epoch), label, str(s.count), *map(number, known)]
            cells += [f"{number(s.residual_min, 1)} {number(s.residual_max, 1)}"]
            cells += [number(s.nonconvexity)]
            cells += [number(paper.get(epoch))] * (run.published is not None)
            cells += [number(s.certificate.get("rayleigh_quotient"))]
            cells += [with_error(s.trace, s.trace_stderr)] * traces + [marks(s)]
            rows.append(list(map(escaped, cells)))
    table = _table(header, rows)
    if run.published is not None:
        table += (
            "\n\nPublished: read off the figure of the paper, whose released analysis draws the "
            "augmentation again in every product."
        )
    return table


def _notes(run: RunTrajectory) -> list[str]:
    """List what the analyses say, with the epochs where not all of them do."""
    epochs: dict[str, list[int]] = {}
    for epoch, analysis in zip(run.epochs, run.analyses, strict=True):
        own = [f"{s.label}: {note}" for s in analysis.spectra for note in s.notes]
        own += [f"{s.label}: {s.error}" for s in analysis.spectra if s.error is not None]
        for note in dict.fromkeys([*own, *analysis.notes]):
            epochs.setdefault(note, []).append(epoch)
    return [
        f"{run.name}{'' if len(at) == len(run.epochs) else f', epoch {some(at)}'}: {note}"
        for note, at in epochs.items()
    ]


def _facts(analyses: Sequence[Analysis]) -> str:
    """List every setting and fingerprint in full."""
    rows = []
    for section in ("checkpoint", "data", "settings"):
        keys = dict.fromkeys(key for a in analyses for key in getattr(a, section))
        for key in keys:
            values = distinct(analyses, section, key)
            if values:
                told = "; ".join(map(_code, values))
                rows.append([escaped(f"{section}: {key}"), told])
    return _table(("what", "value"), rows)


def _code(value: object) -> str:
    """Set a value as code in a table's cell, with a fence that it does not hold."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * text.startswith("`") or " " * text.endswith("`")
    return f"{fence}{space}{text}{space}{fence}"


def _on_one_line(analysis: Analysis) -> Analysis:
    """Take the line breaks out of what the files say; one would end a row of the table."""

    def line(text: str) -> str:
        return " ".join(text.split())

    spectra = tuple(
        replace(
            s,
            name=line(s.name),
            error=None if s.error is None else line(s.error),
            notes=tuple(map(line, s.notes)),
        )
        for s in analysis.spectra
    )
    return replace(analysis, spectra=spectra, notes=tuple(map(line, analysis.notes)))


def _with_escaped_cells(table: str) -> str:
    """Write the cells of a markdown table, in which only the bars are escaped, to be shown."""
    head, rule, *rows = table.splitlines()
    lines = []
    for row in (head, *rows):
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        lines.append(f"| {' | '.join(escaped(c.replace(chr(92) + '|', '|')) for c in cells)} |")
    return "\n".join([lines[0], rule, *lines[1:]])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Set a table; the bars in its cells are escaped."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return "\n".join([line(header), line([":--"] * len(header)), *map(line, rows)])
