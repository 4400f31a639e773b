"""Command line: from a checkpoint to what its losses look like along λmin's and λmax's vectors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from spectra.command_line import Parser, exit_code, found_in
from spectra.opening import open_checkpoint, open_samples
from spectra.plan_flags import checkpoint_parser, plan_of, results_folder
from spectra.terminal import shown_bar

if TYPE_CHECKING:
    from spectra.landscape import Survey

_EPILOG = """\
examples:
  python -m spectra.landscape checkpoints/digits-lt-ce-drw-sgd.pt --classes 8
  python -m spectra.landscape ckpt.pt --data DIR --classes 0,8 --max-samples 100 --surface 15
  python -m spectra.landscape ckpt.pt --data DIR --classes 8 --amplification 256

--protocol, --augment and --basis none have no fixed function, or no vectors, and are refused.
The files are described at the head of spectra/landscape/stored.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    folder = Path(options.out or results_folder(options) / "landscape")
    held = found_in(folder, "landscape.json")
    return exit_code(parser, lambda: _run(options, folder), held)


def _run(options: argparse.Namespace, folder: Path) -> None:
    from spectra import figures
    from spectra.landscape import explore, told

    plan, survey = plan_of(options), _survey_of(options)
    checkpoint = open_checkpoint(options.checkpoint, options)
    trained = bool(survey.amplification)  # whose minibatches are of the training samples
    train, test = open_samples(checkpoint, options, accuracies=False, trained=trained)
    with shown_bar(options) as bar:
        found = explore(
            *(checkpoint, plan, survey),
            train=train,
            test=test,
            folder=folder,
            overwrite=options.overwrite,
            progress=bar,
        )
    drawn = []
    for name, pages in figures.landscape_pages(found).items():
        drawn += figures.save(pages, folder, name)
    if not options.quiet:
        print("\n".join(told(found)))
        files = ["landscape.json", "landscape.npz", *(path.name for path in drawn)]
        print(f"\n{folder}{os.sep}: {', '.join(files)}")


def _survey_of(options: argparse.Namespace) -> Survey:
    """Read off the flags what is looked at."""
    from spectra.landscape import Survey

    chosen = {f.name: getattr(options, f.name) for f in fields(Survey) if f.name in options}
    return Survey(**chosen)


def _parser() -> Parser:
    parser = checkpoint_parser(
        "python -m spectra.landscape",
        "Follow the losses of a checkpoint along the vectors of their smallest and largest "
        "eigenvalue, and see what SAM's step does to the gradient along them.",
        _EPILOG,
    )
    add = parser.add_argument_group("what is looked at").add_argument
    add(
        "--points",
        type=int,
        default=28,
        metavar="T",
        help="distances of a slice, in equal ratios (default 28); up to 16 more lie in the last "
        "three decades, which are drawn",
    )
    add("--nearest", type=float, default=1e-9, metavar="t", help="the first one (default 1e-9)")
    add("--farthest", type=float, default=1.0, metavar="t", help="the last one (default 1)")
    add("--surface", type=int, default=0, metavar="P", help="P × P points of the plane, too")
    add("--extent", type=float, default=1.0, metavar="t", help="of that plane (default 1)")
    add(
        "--amplification",
        type=int,
        default=0,
        metavar="M",
        help="draw M minibatches of the trained loss and follow SAM's step",
    )
    add("--minibatch", type=int, default=128, metavar="B", help="samples in each (default 128)")
    add("--controls", type=int, default=20, metavar="K", help="random directions (default 20)")
    add = parser.add_argument_group("results").add_argument
    add("--out", metavar="DIR", help="folder (default reports/<checkpoint stem>/landscape)")
    add("--overwrite", action="store_true", help="replace whatever lies in that folder")
    add("--quiet", action="store_true", help="no progress bar and no summary")
    return parser


if __name__ == "__main__":
    sys.exit(main())
