"""Command line: the Hessians of several augmentation draws, see `spectra.draws.drawing`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra.command_line import Parser, exit_code
from spectra.errors import SpectraError
from spectra.plan_flags import (
    checkpoint_parser,
    open_checkpoint,
    open_samples,
    plan_of,
    results_folder,
)
from spectra.terminal import shown_bar

if TYPE_CHECKING:
    from spectra.draws import Draws

SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    folder = Path(options.out or results_folder(options) / "draws")
    found: list[Draws] = []
    return exit_code(
        parser, lambda: _run(options, folder, found), lambda: folder if found else None
    )


def _run(options: argparse.Namespace, folder: Path, found: list[Draws]) -> None:
    from spectra.devices import find_device
    from spectra.draws import over_draws, table
    from spectra.files import Keeping, require_writable, write_json
    from spectra.gathering import doubts
    from spectra.resuming import describe

    plan = plan_of(options)
    checkpoint = open_checkpoint(options.checkpoint, options)
    train, _ = open_samples(checkpoint, options)
    if train is None:
        raise SpectraError(
            "got no training samples, expected them: test images are not augmented; name the data "
            "with --data and --dataset"
        )
    require_writable(folder)
    notes = tuple(doubts(checkpoint, train, train))

    def write(found: list[Draws]) -> None:
        chosen = {"product": found[0].product, "batch_size": found[0].batch_size, "basis": "device"}
        said = describe(
            *(checkpoint, plan, train, train, find_device(plan.device)), chosen=chosen, notes=notes
        )
        document: dict[str, Any] = {k: v for k, v in said.to_dict().items() if k != "spectra"}
        document["settings"]["augment"] = "frozen:1"  # one draw for each seed
        document |= {"schema": SCHEMA, "draws": [one.to_dict() for one in found]}
        write_json(folder / "draws.json", document)

    with shown_bar(options) as bar, Keeping(write) as keep:
        for one in over_draws(checkpoint, plan, train, draws=options.draws, progress=bar):
            found.append(one)
            keep(found)
    if not options.quiet:
        print("\n".join([table(found), *(f"\n{note}" for note in notes)]))
        print(f"\n{folder / 'draws.json'}")


def _parser() -> Parser:
    parser = checkpoint_parser(
        "python -m spectra.draws",
        "Compare the Hessians of several draws of the augmentation, each of them frozen: their "
        "ends, and whether they agree on the direction of the largest curvature.",
        "examples:\n"
        "  python -m spectra.draws ckpt.pt --data DIR --classes 8,9 --draws 8 --steps 40",
    )
    add = parser.add_argument_group("draws and results").add_argument
    add("--draws", type=int, default=8, metavar="K", help="how many (default 8)")
    add("--out", metavar="DIR", help="folder (default reports/<checkpoint stem>/draws)")
    add("--quiet", action="store_true", help="no progress bar and no table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
