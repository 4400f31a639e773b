"""Command line: from stored results to one page, as markdown and html; no product is computed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectra.command_line import Parser, exit_code
from spectra.errors import SpectraError

_EPILOG = """\
examples:
  python -m spectra.report reports/digits-lt-ce-drw-sgd
  python -m spectra.report reports/cifar10-lt-ce-drw-sgd/{exact,released}  (a page each)
  python -m spectra.report reports/digits --out appendix

Each folder holds what `python -m spectra.esd` or `python -m spectra.trajectory` left there; the
page is report.md and report.html with report.png and report.pdf beside them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return exit_code(parser, lambda: _run(options), lambda: None)


def _run(options: argparse.Namespace) -> None:
    from spectra import pages

    if options.out is not None and len(options.folders) > 1:
        raise SpectraError(
            f"got --out with {len(options.folders)} folders, expected one: the pages would replace "
            "each other; leave --out away, and each page goes into its own folder"
        )
    # All are read before the first page is written.
    held = [(Path(folder), pages.read(folder)) for folder in options.folders]
    for folder, results in held:
        for path in pages.write(results, Path(options.out or folder)):
            if not options.quiet:
                print(path)


def _parser() -> Parser:
    parser = Parser(
        "python -m spectra.report",
        "Write one page for each folder of results: the table, the densities, what the doctor "
        "found, and a methods paragraph for a paper's appendix.",
        _EPILOG,
    )
    parser.add_argument(
        "folders",
        metavar="RUN_OR_REPORT_DIR",
        nargs="+",
        help="folder with esd.json and esd.npz, or with trajectory.json",
    )
    add = parser.add_argument
    add("--out", metavar="DIR", help="folder of the page (default: beside the results)")
    add("--quiet", action="store_true", help="do not print the files' names")
    return parser


if __name__ == "__main__":
    sys.exit(main())
