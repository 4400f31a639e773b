"""Command line: from a checkpoint to what its losses look like along λmin's and λmax's vectors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from spectra.command_line import (
    Parser,
    checkpoint_parser,
    exit_code,
    open_checkpoint,
    open_samples,
    plan_of,
    shown_bar,
)

if TYPE_CHECKING:
    from spectra.landscape import Amplification, Landscape, Survey

_EPILOG = """\
examples:
  python -m spectra.landscape checkpoints/digits-lt-ce-drw-sgd.pt --classes 8
  python -m spectra.landscape ckpt.pt --data DIR --classes 0,8 --max-samples 100 --surface 15
  python -m spectra.landscape ckpt.pt --data DIR --classes 8 --amplification 256

--protocol, --augment and --basis none have no fixed function, or no vectors, and are refused.
The files are described at the head of spectra/landscape/stored.py."""

_FIGURES = ("slices", "surfaces", "amplification")
_WITHIN = 0.05  # of |vᵀHv|: what agreement is, and what an error may be for it to count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    folder = Path(options.out or Path("reports") / Path(options.checkpoint).stem / "landscape")
    before = _written(folder)
    return exit_code(
        parser,
        lambda: _run(options, folder),
        lambda: folder if _written(folder) != before else None,  # an earlier run's is not held
    )


def _written(folder: Path) -> tuple[int, int] | None:
    """Tell one writing of the results from the next; None where there are none."""
    try:
        stat = (folder / "landscape.json").stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _run(options: argparse.Namespace, folder: Path) -> None:
    from spectra import figures
    from spectra.landscape import explore

    plan, survey = plan_of(options), _survey_of(options)
    checkpoint = open_checkpoint(options.checkpoint, options)
    train, test = open_samples(checkpoint, options)
    with shown_bar(options) as bar:
        found = explore(
            checkpoint, plan, survey, train=train, test=test, folder=folder, progress=bar
        )
    drawn = []
    for name, pages in figures.landscape_pages(found).items():
        drawn += figures.save(pages, folder, name)
    for old in {folder / f"{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")}:
        if old not in drawn:  # of an earlier run, which looked at more
            old.unlink(missing_ok=True)
    if not options.quiet:
        print("\n".join(_lines(found)))
        files = ["landscape.json", "landscape.npz", *(path.name for path in drawn)]
        print(f"\n{folder}{os.sep}: {', '.join(files)}")


def _lines(found: Landscape) -> list[str]:
    """Say of each slice how far the line bends as the Hessian says."""
    lines = []
    for view in found.views:
        lines.append(f"{view.label} {view.name}: {view.count} samples, loss {view.loss:.3g}")
        for end, certificate, cut in (
            ("λmin", view.low, view.along_low),
            ("λmax", view.high, view.along_high),
        ):
            line = f"  {end}: yᵀHy = {certificate.rayleigh_quotient:.6g}"
            line += f" ± {certificate.noise_floor:.1e}, residual {certificate.residual:.1e}"
            for name, seen in (
                ("second differences", cut.second_difference),
                ("slopes", cut.slope_difference),
            ):
                if seen is not None:
                    reach = seen.agreement(tolerance=_WITHIN, resolution=_WITHIN)
                    span = "nowhere" if reach is None else f"{reach[0]:.1e} to {reach[1]:.1e}"
                    line += f"; {name} agree to {100 * _WITHIN:g} %: {span}"
            lines.append(line)
    if found.amplification is not None:
        lines += _amplified(found.amplification, found.directions)
    return lines


def _amplified(measured: Amplification, directions: Sequence[str]) -> list[str]:
    """Say how many batches bear each direction, and how far second order reaches."""
    import numpy as np

    count = measured.components.shape[1]
    lines = [f"SAM's step: {count} batches of {measured.batch_size}"]
    known = {
        rho: r for rho, r in zip(measured.radii, measured.taylor_residuals, strict=True) if rho
    }
    middles = [
        f"{np.median(held):.2g} at ρ = {rho:g}"
        for rho, r in known.items()
        if len(held := r[np.isfinite(r)])
    ]
    told = f"  Taylor residual, median: {', '.join(middles) or 'none'}"
    lines.append(f"{told}; near 1 or above, second order says nothing")
    borne = measured.effective_batches
    for name, number in zip(directions, borne, strict=True):
        if name != "random":
            lines.append(f"  {name}: {number:.1f} effective batches of {count}")
    controls = [x for name, x in zip(directions, borne, strict=True) if name == "random"]
    if controls:
        span = f"{min(controls):.1f} to {max(controls):.1f}"
        lines.append(f"  {len(controls)} random directions: {span} effective batches of {count}")
    return lines


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
    add("--quiet", action="store_true", help="no progress bar and no summary")
    return parser


if __name__ == "__main__":
    sys.exit(main())
