"""Command line: from a checkpoint to the spectrum of every class, as table, files and figure."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra.command_line import Parser, found_in, require_done, shared_exit_code
from spectra.opening import open_checkpoint, open_samples
from spectra.plan_flags import add_result_flags, checkpoint_parser, plan_of, results_folder
from spectra.terminal import screen_width, shown_bar

if TYPE_CHECKING:
    from spectra import Analysis, Checkpoint
    from spectra.processes import Processes

_EPILOG = """\
examples:
  python -m spectra.esd checkpoints/digits-lt-ce-drw-sgd.pt --overall --per-class
  python -m spectra.esd ckpt.pt --data DIR --dataset cifar10 --imbalance-ratio 100 --classes 0,8
  python -m spectra.esd ckpt.pt --classes 8 --protocol released --out reports/released
  torchrun --nproc-per-node 2 -m spectra.esd ckpt.pt --per-class  (shared by two processes)

The files are described in the README and at the head of spectra/results/__init__.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    folder = Path(options.out or results_folder(options))
    return shared_exit_code(
        parser, partial(_run, options, folder), found_in(folder, "esd.json", resume=options.resume)
    )


def _run(options: argparse.Namespace, folder: Path, processes: Processes | None) -> None:
    from spectra import analyze

    checkpoint = open_checkpoint(options.checkpoint, options)
    train, test = open_samples(checkpoint, options, accuracies=options.accuracies)
    replaced = not options.resume and (folder / "esd.json").exists()
    with shown_bar(options, processes) as bar:
        analysis = analyze(
            checkpoint,
            plan_of(options),
            train=train,
            test=test,
            folder=folder,
            resume=options.resume,
            overwrite=options.overwrite,
            accuracies=options.accuracies,
            progress=bar,
            processes=processes,
        )
    if processes is None or processes.leads:
        _show(analysis, checkpoint, folder, options)
        if replaced and not options.quiet:
            print("These replace the results that were there; --resume goes on with them.")


def _show(
    analysis: Analysis, checkpoint: Checkpoint, folder: Path, options: argparse.Namespace
) -> None:
    from spectra import figures, tables
    from spectra.files import drawn_pages

    spec = analysis.data.get("spec") or {}
    rest = {  # the flags that are not the plan's: smoothing, data and network
        "kernel": _kernel(options),
        "data": None if options.data is None else Path(options.data).name,
        "dataset": spec.get("name"),
        "imbalance_ratio": spec.get("ratio"),
        "model": options.model,
        "arch": checkpoint.model_spec.arch,
        "num_classes": checkpoint.model_spec.num_classes,
        "weights": options.weights,
    }
    analysis = replace(analysis, settings={**analysis.settings, **rest})
    analysis.save(folder)
    tables.to_csv(analysis, folder / "esd.csv")
    drawn = figures.save(figures.density_grid(analysis, kernel=_kernel(options)), folder)
    for page in set(drawn_pages(folder, "esd")) - set(drawn):  # of a run that had more of them
        page.unlink()
    if not options.quiet:
        print(tables.render(analysis, width=screen_width()))
        files = ["esd.json", "esd.npz", "esd.csv", *(path.name for path in drawn)]
        print(f"\n{folder}{os.sep}: {', '.join(files)}")
    require_done([spectrum.error for spectrum in analysis.spectra])


def _kernel(options: argparse.Namespace) -> Any:
    if options.kernel is not None:
        return options.kernel
    return "paper" if options.protocol == "released" else "default"


def _parser() -> Parser:
    parser = checkpoint_parser(
        "python -m spectra.esd",
        "Compute the Hessian eigenvalue density of a checkpoint's loss, class by class, with "
        "certified extreme eigenvalues.",
        _EPILOG,
    )
    add = add_result_flags(
        parser,
        "reports/<checkpoint stem>, or <folder>-<stem> for a last.pt or an epoch-7.pt",
        "class and probe",
    )
    add(
        "--kernel",
        choices=("default", "paper"),
        help="smoothing of the density (default; paper under --protocol released)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
