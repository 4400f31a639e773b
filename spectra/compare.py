"""Command line: stored results of several analyses in one table; no product is computed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectra.command_line import Parser, exit_code

_EPILOG = """\
examples:
  python -m spectra.compare reports/cifar10-lt-ce-drw-sgd/{exact,resample,released}
  python -m spectra.compare SGD=reports/a/exact SGD=reports/a/released SAM=reports/b/exact

NAME=DIR gives a run its name, else it is that of the checkpoint's file. Folders of one run stand
together, class by class."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return exit_code(parser, lambda: _run(options), lambda: None)


def _run(options: argparse.Namespace) -> None:
    from spectra import Analysis
    from spectra.comparisons import compare
    from spectra.figures import recurrence_panels, save
    from spectra.files import replacing

    held = []
    for folder in options.folders:
        name, _, path = folder.rpartition("=")
        analysis = Analysis.load(path)
        held.append((name or Path(str(analysis.checkpoint.get("file"))).stem, analysis))
    print(text := compare(held))
    if options.out is not None:
        out = Path(options.out)
        with replacing(out / "comparison.md") as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        save([recurrence_panels(held)], out, "recurrence")


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
        "--out",
        metavar="DIR",
        help="write comparison.md, and recurrence.png and .pdf: the entries of T step by step",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
