"""Command line: from the checkpoints that runs have kept to their spectra against the epoch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spectra.command_line import Parser, found_in, require_done, shared_exit_code
from spectra.opening import open_checkpoint, open_samples
from spectra.plan_flags import add_plan_flags, add_result_flags, plan_of
from spectra.terminal import screen_width, shown_bar

if TYPE_CHECKING:
    from spectra import Trajectory
    from spectra.processes import Processes

_EPILOG = """\
examples:
  python -m spectra.trajectory runs/sgd --classes 0,2,5,7,8
  python -m spectra.trajectory runs/sgd runs/sam --data DIR --classes 0,8 --out reports/exact
  python -m spectra.trajectory runs/sgd runs/sam --data DIR --classes 0,8 --protocol released \\
      --published sgd,sam --probes 3 --out reports/released
  torchrun --nproc-per-node 2 -m spectra.trajectory runs/sgd --per-class  (by two processes)

The files are described in the README and at the head of spectra/trajectories/results.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    from spectra.trajectories import run_name

    names = "+".join(run_name(run) for run in options.runs)
    folder = Path(options.out or Path("reports") / names)
    held = found_in(folder, "*/epoch-*/esd.json", resume=options.resume)
    return shared_exit_code(parser, partial(_run, options, folder), held)


def _run(options: argparse.Namespace, folder: Path, processes: Processes | None) -> None:
    from spectra import follow

    with shown_bar(options, processes) as bar:
        trajectory = follow(
            options.runs,
            plan_of(options),
            folder=folder,
            resume=options.resume,
            overwrite=options.overwrite,
            accuracies=options.accuracies,
            published=options.published,
            load=partial(open_checkpoint, options=options),
            samples=partial(open_samples, options=options, accuracies=options.accuracies),
            progress=bar,
            processes=processes,
        )
    if processes is None or processes.leads:
        _show(trajectory, folder, options)


def _show(trajectory: Trajectory, folder: Path, options: argparse.Namespace) -> None:
    from spectra import figures, tables

    drawn = figures.save(figures.trajectory_pages(trajectory), folder, "trajectory")
    if not options.quiet:
        print(tables.render_trajectory(trajectory, width=screen_width()))
        files = [
            "trajectory.csv",
            "trajectory.json",
            *(path.name for path in drawn),
            "<run>/epoch-<e>/esd.json",
        ]
        print(f"\n{folder}{os.sep}: {', '.join(files)}")
    require_done([s.error for r in trajectory.runs for a in r.analyses for s in a.spectra])


def _choices(text: str) -> tuple[str, ...]:
    from spectra.trajectories import CHOICES

    choices = tuple(text.split(","))
    if wrong := [choice for choice in choices if choice not in CHOICES]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(CHOICES)}")
    return choices


def _parser() -> Parser:
    parser = Parser(
        "python -m spectra.trajectory",
        "Compute the spectra of every checkpoint that a training run has kept, class by class, and "
        "draw how they move.",
        _EPILOG,
    )
    parser.add_argument(
        "runs",
        metavar="RUN_DIR",
        nargs="+",
        help="folder with epoch-<e>.pt and last.pt, as spectra.train --save-at leaves it, or with "
        "another project's checkpoint_10.pth",
    )
    add_plan_flags(parser)
    add = add_result_flags(parser, "reports/<run>+<run>", "epoch and class")
    add(
        "--published",
        type=_choices,
        default=("auto",),
        metavar="auto|none|sgd|sam",
        help="the paper's values beside ours, one choice for all or one a run (sgd,sam); only for "
        "CE+DRW on CIFAR-10-LT, ratio 100 (default auto: where the run is the paper's)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
