"""Command line: stored results of several analyses in one table; no product is computed."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spectra.command_line import Parser, exit_code, integers
from spectra.errors import SpectraError

if TYPE_CHECKING:
    from spectra import Analysis

_EPILOG = """\
examples:
  python -m spectra.compare reports/cifar10-lt-ce-drw-sgd/{exact,resample,released}
  python -m spectra.compare SGD=reports/a/exact SGD=reports/a/released SAM=reports/b/exact
  python -m spectra.compare reports/a/{exact,released} --classes 8 --after 10,30,100

NAME=DIR gives a run its name, else it is that of the checkpoint's file. Folders of one run stand
together, class by class."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return exit_code(parser, lambda: _run(options), lambda: None)


def _run(options: argparse.Namespace) -> None:
    from spectra import Analysis
    from spectra.comparisons import compare, settling
    from spectra.figures import recurrence_panels, save
    from spectra.files import replacing

    held = []
    for folder in options.folders:
        name, path = _named(folder)
        analysis = Analysis.load(path)
        file = str(analysis.checkpoint.get("file"))
        held.append((name or re.sub(r"\.(pt|pth|tar|ckpt)$", "", file), analysis))
    _require_one_run_a_name(held)
    held = _of_classes(held, options.classes)
    text = settling(held, options.after) if options.after else compare(held)
    if options.out is not None:
        out = Path(options.out)
        with replacing(out / ("settling.md" if options.after else "comparison.md")) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        save([recurrence_panels(held)], out, "recurrence")
    print(text)


def _named(folder: str) -> tuple[str, str]:
    """Cut NAME=DIR; a folder that exists as it is given has no name."""
    if Path(folder).exists():
        return "", folder
    name, mark, path = folder.partition("=")
    return (name, path) if mark else ("", folder)


def _of_classes(
    held: Sequence[tuple[str, Analysis]], classes: Sequence[int]
) -> list[tuple[str, Analysis]]:
    """Keep the spectra of these classes alone; all where none is named."""
    if not classes:
        return list(held)
    wanted = [f"class {c}" for c in classes]
    labels = {label for _, analysis in held for label in analysis.labels}
    known = sorted(int(label[6:]) for label in labels if label.startswith("class "))
    if missing := [c for c in classes if c not in known]:
        stored = ", ".join(map(str, known)) or "none"
        raise SpectraError(f"got class {missing[0]}, expected one that is stored: {stored}")
    return [
        (name, replace(analysis, spectra=tuple(s for s in analysis.spectra if s.label in wanted)))
        for name, analysis in held
    ]


def _require_one_run_a_name(held: Sequence[tuple[str, Analysis]]) -> None:
    known: dict[str, object] = {}
    for name, analysis in held:
        weights = analysis.checkpoint.get("sha256")
        if known.setdefault(name, weights) != weights:
            raise SpectraError(
                f"got two checkpoints by the name {name}, expected a name for each run: their rows "
                "and lines could not be told apart; give NAME=DIR"
            )


def _parser() -> Parser:
    parser = Parser(
        "python -m spectra.compare",
        "Put the spectra of several result folders into one table: ends, certificates, and what "
        "Lanczos' T says of the operator it was made with.",
        _EPILOG,
    )
    parser.add_argument(
        "folders", metavar="[NAME=]DIR", nargs="+", help="folder with esd.json and esd.npz"
    )
    parser.add_argument(
        "--classes", type=integers, default=(), metavar="0,8", help="these classes alone"
    )
    parser.add_argument(
        "--after",
        type=integers,
        metavar="10,30,100",
        help="tell instead what the ends were after so many steps: do they settle?",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write comparison.md (settling.md with --after), and recurrence.png and .pdf: the "
        "entries of T step by step",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
