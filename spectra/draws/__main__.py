"""Command line: the Hessians of several augmentation draws, see `spectra.draws.drawing`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra.command_line import Parser, exit_code
from spectra.errors import SpectraError
from spectra.opening import open_checkpoint, open_samples
from spectra.plan_flags import checkpoint_parser, plan_of, results_folder
from spectra.terminal import shown_bar

if TYPE_CHECKING:
    from spectra import Checkpoint, Plan, Samples
    from spectra.draws import Draws

SCHEMA = 1
NAME = "draws.json"


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
    from spectra.remarks import doubts
    from spectra.resuming import describe

    plan = plan_of(options)
    checkpoint = open_checkpoint(options.checkpoint, options)
    train, _ = open_samples(checkpoint, options, accuracies=False)
    if train is None:
        raise SpectraError(
            "got no training samples, expected them: test images are not augmented; name the data "
            "with --data and --dataset"
        )
    _spare_others(folder, checkpoint, plan, train, options)
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
        write_json(folder / NAME, document)

    with shown_bar(options) as bar, Keeping(write) as keep:
        for one in over_draws(checkpoint, plan, train, draws=options.draws, progress=bar):
            found.append(one)
            keep(found)
    if not options.quiet:
        print("\n".join([table(found), *(f"\n{note}" for note in notes)]))
        print(f"\n{folder / NAME}")


def _spare_others(
    folder: Path, checkpoint: Checkpoint, plan: Plan, train: Samples, options: argparse.Namespace
) -> None:
    """Refuse to replace draws that are not made again."""
    from dataclasses import replace

    from spectra.devices import find_device
    from spectra.plan import choose_parts
    from spectra.resuming import describe, require_replaceable

    if options.overwrite or not (folder / NAME).exists():
        return
    said = describe(checkpoint, plan, train, train, find_device(plan.device))
    try:
        held = json.loads((folder / NAME).read_text(encoding="utf-8"))
        kept = {one["label"]: len(one["seeds"]) for one in held["draws"]}
        before = replace(said, **{key: held[key] for key in ("checkpoint", "data", "settings")})
    except (ValueError, KeyError, TypeError) as error:
        raise SpectraError(
            f"{folder / NAME} is truncated or holds no draws ({error}), expected an empty folder, "
            "or draws of the same question: nothing was replaced; choose another --out, or replace "
            "them with --overwrite"
        ) from error
    require_replaceable(
        replace(said, settings={**said.settings, "augment": "frozen:1", "draws": options.draws}),
        replace(before, settings={**before.settings, "draws": max(kept.values(), default=0)}),
        [part.label for part in choose_parts(plan, train, train)],
        kept=kept,
        finished=kept,
    )


def _parser() -> Parser:
    parser = checkpoint_parser(
        "python -m spectra.draws",
        "Compare the Hessians of several draws of the augmentation, each of them frozen: their "
        "ends, and whether they agree on the direction of the largest curvature.",
        "examples:\n"
        "  python -m spectra.draws ckpt.pt --data DIR --classes 8,9 --draws 8 --steps 40",
    )
    add = parser.add_argument_group("draws and results").add_argument
    add(
        "--draws",
        type=int,
        default=8,
        metavar="K",
        help="how many, with the seeds S, S + 1, ... from --seed on (default 8): repetitions need "
        "seeds that are K apart",
    )
    add("--out", metavar="DIR", help="folder (default reports/<checkpoint stem>/draws)")
    add("--overwrite", action="store_true", help="replace whatever lies in that folder")
    add("--quiet", action="store_true", help="no progress bar and no table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
