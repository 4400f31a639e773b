"""The command line of the data room: what is known, what lies there, write a drawn set."""

import argparse
import sys
from collections.abc import Sequence

from ..command_line import Parser, exit_code
from ..errors import SpectraError
from . import KNOWN, DataSpec, export, open_data

EXAMPLES = """\
examples:
  python -m spectra.data list
  python -m spectra.data info --dataset digits --imbalance-ratio 20
  python -m spectra.data export --data ~/cifar --dataset cifar10 --imbalance-ratio 100 --out c10-lt
  python -m spectra.data info --data c10-lt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (2 after an error that the user can mend)."""
    parser = _parser()
    args = parser.parse_args(argv)
    return exit_code(parser, lambda: _run(args), lambda: None)


def _run(args: argparse.Namespace) -> None:
    if args.command == "list":
        for name, traits in KNOWN.items():
            print(f"{name:12} {traits.num_classes or 'any':>5} classes   {traits.about}")
        return
    spec = _spec(args)
    for split in ("train", "test"):
        samples = open_data(spec, path=args.data, split=split)
        size = " × ".join(map(str, samples.inputs.shape[1:]))
        print(f"{samples.spec}, {split}: {len(samples)} samples of {size}")
        if args.command == "export":
            path = export(samples, args.out, split)
            print(f"  written to {path} ({path.stat().st_size / 1e6:.1f} MB)")
            continue
        print(f"  counts         {' '.join(map(str, samples.counts))}")
        for group, classes in samples.groups().items():
            share = sum(samples.counts[c] for c in classes) / len(samples)
            print(f"  {group:14} {len(classes)} classes, {share:.1%} of the samples")
        print(f"  draw_sha256    {samples.draw_sha256}")
        print(f"  pixels_sha256  {samples.pixels_sha256}")


def _spec(args: argparse.Namespace) -> DataSpec | None:
    """Describe the draw; None leaves it to what an exported set says of itself."""
    draw = ("imbalance_ratio", "imbalance", "seed", "image_size")
    if args.dataset is None:
        if named := [f"--{k.replace('_', '-')}" for k in draw if getattr(args, k) is not None]:
            raise SpectraError(
                f"got {' and '.join(named)} without a data set, expected --dataset NAME beside it: "
                "an exported set is as it was drawn, and would be shown or written unchanged"
            )
        return None
    shape = args.imbalance or ("exp" if args.imbalance_ratio is not None else None)
    return DataSpec(args.dataset, shape, args.imbalance_ratio, args.seed or 0, args.image_size)


def _parser() -> Parser:
    parser = Parser(
        "python -m spectra.data",
        "Look at a data set as the analysis sees it, or write a drawn set (train and\n"
        "test as lossless parquet with a description of their own) to be opened anywhere.",
        EXAMPLES,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    commands.add_parser("list", help="name the data sets that can be opened")
    options = argparse.ArgumentParser(add_help=False)
    add = options.add_argument
    add("--data", metavar="PATH", help="folder, or exported set (default: $SPECTRA_DATA)")
    add("--dataset", metavar="NAME", help="see `list`; an exported set knows its own name")
    add("--imbalance-ratio", type=float, metavar="R", help="largest over smallest class count")
    add("--imbalance", choices=("exp", "step"), help="shape of the tail (default: exp)")
    add("--seed", type=int, help="seed of the draw (default: 0, the published one)")
    add("--image-size", type=int, metavar="S", help="cut image files to S×S pixels")
    for name, about in (
        ("info", "print counts, groups and fingerprints of both splits"),
        ("export", "write the drawn set as DIR/train.parquet and DIR/test.parquet"),
    ):
        command = commands.add_parser(
            name, help=about, description=about, parents=[options], allow_abbrev=False
        )
        if name == "export":
            command.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
