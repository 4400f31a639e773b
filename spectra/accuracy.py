"""Command line: the test accuracies of checkpoints and run folders beside the published ones."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .command_line import Parser, exit_code
from .errors import SpectraError
from .files import replacing
from .training.accuracies import default_paths, read
from .training.accuracy_tables import TITLES, page

_EPILOG = """\
examples:
  python -m spectra.accuracy
  python -m spectra.accuracy runs --dataset digits
  python -m spectra.accuracy --dataset cifar100 --out reports/accuracy_cifar100_lt.md

A run counts once its last epoch is done. What differs from the paper's protocol gets a row of its
own. Nothing is trained and no image is read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return exit_code(parser, lambda: _run(options), lambda: None)


def _run(options: argparse.Namespace) -> None:
    paths = options.paths or default_paths(Path())
    if not paths:
        raise SpectraError(
            "got no path, and here is neither checkpoints/*.pt nor a run in reports/training; "
            "the table would be empty: name checkpoints or run folders, or go to a clone of the "
            "repository"
        )
    text = page(read(paths), options.dataset, _command(options))
    if options.out is None:
        print(text, end="")
        return
    with replacing(options.out) as partial:
        partial.write_text(text, encoding="utf-8")
    print(options.out)


def _command(options: argparse.Namespace) -> str:
    """Write what was asked for, without the place of this machine."""
    parts = ["python", "-m", "spectra.accuracy"]
    parts += [path if not Path(path).is_absolute() else Path(path).name for path in options.paths]
    parts += ["--dataset", options.dataset]
    if (out := options.out) is not None:
        parts += ["--out", out.name if out.is_absolute() else str(out)]
    return shlex.join(parts)


def _parser() -> Parser:
    parser = Parser(
        "python -m spectra.accuracy",
        "Set the test accuracies of runs beside the published ones, as a markdown table.",
        _EPILOG,
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="checkpoint, or folder with runs (default: checkpoints/*.pt and reports/training)",
    )
    add = parser.add_argument
    add("--dataset", choices=TITLES, default="cifar10", help="whose table (cifar10)")
    add("--out", metavar="FILE", type=Path, help="markdown file (default: print the table)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
