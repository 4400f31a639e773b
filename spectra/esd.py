"""Command line: from a checkpoint to the spectrum of every class, as table, files and figure."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from spectra.errors import SpectraError
from spectra.plan import CHOICES

if TYPE_CHECKING:
    from spectra import Analysis, Checkpoint, Samples

_EPILOG = """\
examples:
  python -m spectra.esd checkpoints/digits-lt-ce-drw-sgd.pt --overall --per-class
  python -m spectra.esd ckpt.pt --data DIR --dataset cifar10 --imbalance-ratio 100 --classes 0,8
  python -m spectra.esd ckpt.pt --classes 8 --protocol released   (the paper's own analysis)

The files are described in the README and at the head of spectra/results.py.
exit codes: 0 done, 2 an input cannot be used, 130 interrupted (go on with --resume)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except SpectraError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        folder = _folder(options)
        held = (folder / "esd.json").exists()
        rest = f"what is finished lies in {folder}; the same command with --resume goes on there"
        print(f"\ninterrupted: {rest if held else 'nothing was finished yet'}", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from spectra import Plan, analyze, load_checkpoint

    checkpoint = load_checkpoint(
        options.checkpoint,
        model=options.model,
        arch=options.arch,
        num_classes=options.num_classes,
    )
    train, test = _open(options, checkpoint)
    names = {field.name for field in fields(Plan)}
    if options.augment is None:  # the released analysis re-draws it, but not for test images
        moving = options.protocol == "released" and options.split == "train"
        options.augment = "resample" if moving else "none"
    plan = Plan(**{key: value for key, value in vars(options).items() if key in names})
    folder = _folder(options)
    bar = None if options.quiet else _Bar()
    try:
        analysis = analyze(
            checkpoint,
            plan,
            train=train,
            test=test,
            folder=folder,
            resume=options.resume,
            progress=bar,
        )
    finally:
        if bar is not None:
            bar.close()
    return _show(analysis, checkpoint, folder, options)


def _show(
    analysis: Analysis, checkpoint: Checkpoint, folder: Path, options: argparse.Namespace
) -> int:
    from spectra import figures, tables

    spec = analysis.data.get("spec") or {}
    rest = {  # the flags that are not the plan's: smoothing, data and network
        "kernel": _kernel(options),
        "data": None if options.data is None else Path(options.data).name,
        "dataset": spec.get("name"),
        "imbalance_ratio": spec.get("ratio"),
        "model": options.model,
        "arch": checkpoint.model_spec.arch,
        "num_classes": checkpoint.model_spec.num_classes,
    }
    analysis = replace(analysis, settings={**analysis.settings, **rest})
    analysis.save(folder)
    tables.to_csv(analysis, folder / "esd.csv")
    drawn = figures.save(figures.density_grid(analysis, kernel=_kernel(options)), folder)
    for page in set(folder.glob("esd-*.png")) | set(folder.glob("esd-*.pdf")):
        if page not in drawn:  # a page of an earlier run, which had more of them
            page.unlink()
    if not options.quiet:
        print(tables.render(analysis, width=_width()))
        files = ["esd.json", "esd.npz", "esd.csv", *(path.name for path in drawn)]
        print(f"\n{folder}{os.sep}: {', '.join(files)}")
    errors = [spectrum.error for spectrum in analysis.spectra if spectrum.error is not None]
    if not errors or len(errors) < len(analysis.spectra):
        return 0
    raise SpectraError(f"every spectrum failed, the first because: {errors[0]}")


def _open(
    options: argparse.Namespace, checkpoint: Checkpoint
) -> tuple[Samples | None, Samples | None]:
    """Open the data that the flags, or else the checkpoint, name."""
    from spectra import DataSpec, open_data

    spec = checkpoint.data
    if options.dataset is not None:
        ratio = options.imbalance_ratio
        spec = DataSpec(options.dataset, "exp" if ratio else None, ratio)
    elif options.imbalance_ratio is not None:
        if spec is None:
            raise SpectraError(
                "got --imbalance-ratio without a data set, expected --dataset NAME beside it: the "
                "checkpoint does not name its data"
            )
        spec = replace(spec, imbalance=spec.imbalance or "exp", ratio=options.imbalance_ratio)
    if spec is None and options.data is None and not os.environ.get("SPECTRA_DATA"):
        raise SpectraError(
            f"{checkpoint.file} does not name its data, expected --data PATH and --dataset NAME "
            "(with --imbalance-ratio R for a long-tailed draw)"
        )
    train = open_data(spec, path=options.data, split="train")
    try:
        test = open_data(spec, path=options.data, split="test")
    except SpectraError:
        if options.split == "test":
            raise
        test = None  # accuracies on the test set are then unknown, and shown so
    return train, test


class _Bar:
    """A progress bar of samples passed over, which tells products; quick for tail classes, too."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.done = self.total = 0

    def begin(self, products: int, work: int) -> None:
        """Open the bar."""
        from tqdm import tqdm

        self.total = products
        self.bar = tqdm(
            total=work,
            unit="sample",
            unit_scale=True,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {postfix} [{elapsed}<{remaining}, "
            "{rate_fmt}]",
        )

    def tick(self, label: str, products: int, work: int) -> None:
        """Count products; the label says where."""
        self.done += products
        self.bar.set_description_str(f"{label:>9}", refresh=False)
        self.bar.set_postfix_str(f"{self.done}/{self.total} products", refresh=False)
        self.bar.update(work)

    def close(self) -> None:
        """Leave the line as it stands."""
        if self.bar is not None:
            self.bar.close()


def _folder(options: argparse.Namespace) -> Path:
    if options.out is not None:
        return Path(options.out)
    return Path("reports") / Path(options.checkpoint).stem


def _kernel(options: argparse.Namespace) -> Any:
    if options.kernel is not None:
        return options.kernel
    return "paper" if options.protocol == "released" else "default"


def _width() -> int:
    import shutil

    return max(80, min(160, shutil.get_terminal_size((120, 40)).columns))


def _classes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of class indices, expected e.g. 0,8"
        ) from None


def _batch(text: str) -> int | str:
    if text == "auto" or (text.isdecimal() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor auto")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it in one line: the usage of thirty flags would bury it."""
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m spectra.esd",
        description="Compute the Hessian eigenvalue density of a checkpoint's loss, class by "
        "class, with certified extreme eigenvalues.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="checkpoint file, of spectra or of another project")

    group = parser.add_argument_group("whose spectrum (combinable; --overall when none is given)")
    add = group.add_argument
    add("--overall", action="store_true", help="all samples together")
    add("--per-class", action="store_true", help="every class that has samples")
    add("--classes", type=_classes, default=(), metavar="0,8", help="these classes")
    add("--groups", action="store_true", help="head, mid and tail")

    group = parser.add_argument_group("of which loss")
    add = group.add_argument
    add("--split", choices=CHOICES["split"], default="train", help="samples (default train)")
    add(
        "--loss",
        choices=CHOICES["loss"],
        default="ce",
        help="plain cross-entropy (default), or the loss that the checkpoint was trained with",
    )
    add(
        "--protocol",
        choices=CHOICES["protocol"],
        default="exact",
        help="released: the paper's own analysis, which is not the spectrum of a matrix",
    )
    add(
        "--augment",
        metavar="none|frozen[:K]|resample",
        help="none (default), K stored draws, or a new draw in every product (no fixed matrix)",
    )
    add("--max-samples", type=int, metavar="N", help="a fixed random subset of each, at most N")

    group = parser.add_argument_group("how")
    add = group.add_argument
    add("--steps", type=int, default=100, help="Krylov steps per probe (default 100)")
    add("--probes", type=int, default=1, help="random starts; bands need 3 (default 1)")
    add("--seed", type=int, default=0, help="of the probes and draws (default 0)")
    add("--batch-size", type=_batch, default="auto", metavar="N|auto", help="samples at once")
    add("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    add("--dtype", choices=CHOICES["dtype"], default="float32", help="of the products")
    add("--tf32", action=argparse.BooleanOptionalAction, default=False, help="allow TF32 on CUDA")
    add(
        "--product",
        choices=CHOICES["product"],
        default="auto",
        help="insist on one way of differentiating (default auto: the fastest that is right)",
    )
    add(
        "--kernel",
        choices=("default", "paper"),
        help="smoothing of the density (default; paper under --protocol released)",
    )

    group = parser.add_argument_group("what the checkpoint may not say")
    add = group.add_argument
    add("--data", metavar="PATH", help="folder of the data (default: $SPECTRA_DATA)")
    add("--dataset", metavar="NAME", help="digits, cifar10, cifar100, folder, list, ...")
    add("--imbalance-ratio", type=float, metavar="R", help="largest over smallest class count")
    add("--model", metavar="PACKAGE.MODULE:FACTORY", help="function that builds the network")
    add("--arch", metavar="NAME", help="architecture, e.g. resnet32")
    add("--num-classes", type=int, metavar="N", help="number of classes")

    group = parser.add_argument_group("results")
    add = group.add_argument
    add("--out", metavar="DIR", help="folder (default reports/<checkpoint stem>)")
    add("--resume", action="store_true", help="go on after the last finished class and probe")
    add("--quiet", action="store_true", help="no progress bar and no table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
