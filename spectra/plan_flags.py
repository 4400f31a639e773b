"""The flags of a plan, and of what a checkpoint may not say, for the commands that analyse one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from spectra.choices import CHOICES
from spectra.command_line import Parser, integers, listed

if TYPE_CHECKING:
    from spectra import Plan

_EVERY_RUNS = re.compile(
    r"(last|latest|best|final|model|weights|checkpoint|ckpt|model[-_]?best|epoch)([-_=]?v?\d+)?"
    r"(-step=\d+)?(-v\d+)?(\.pth)?"
)


def checkpoint_parser(prog: str, description: str, epilog: str) -> Parser:
    """Make a parser for a checkpoint and the flags of a plan."""
    parser = Parser(prog, description, epilog)
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="checkpoint file, of spectra or of another project"
    )
    add_plan_flags(parser)
    return parser


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of a plan, and those for what a checkpoint may not say."""
    group = parser.add_argument_group("whose spectrum (combinable; --overall when none is given)")
    add = group.add_argument
    add("--overall", action="store_true", help="all samples together")
    add("--per-class", action="store_true", help="every class that has samples")
    add("--classes", type=integers, default=(), metavar="0,8", help="these classes")
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
        "--parameters",
        metavar="GLOB,GLOB",
        help="the block of H of these parameters alone, as 'layer3.*,fc.weight' (default all)",
    )
    add(
        "--protocol",
        choices=CHOICES["protocol"],
        default="exact",
        help="released: the paper's own analysis, which is not the spectrum of a matrix",
    )
    add(
        "--augment",
        default="auto",
        metavar="none|frozen[:K]|resample",
        help="none, K stored draws, or a new draw in every product, which is no fixed matrix "
        "(default: none; resample under --protocol released)",
    )
    add(
        "--max-samples",
        type=int,
        metavar="N",
        help="a random subset of each, at most N, fixed by --seed",
    )

    group = parser.add_argument_group("how")
    add = group.add_argument
    add("--steps", type=int, default=100, help="Krylov steps per probe (default 100)")
    add(
        "--until-converged",
        type=float,
        metavar="TOL",
        help="end a probe once both ends' residuals are below TOL times the larger modulus; "
        "--steps is then the most it may take",
    )
    add("--probes", type=int, default=1, help="random starts; bands need 3 (default 1)")
    add("--seed", type=int, default=0, help="of probes, draws and subsets (default 0)")
    add(
        "--batch-size",
        type=_batch,
        default="auto",
        metavar="N|auto",
        help="samples at once; the draws of resample follow them: 128 there, as released",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    add("--dtype", choices=CHOICES["dtype"], default="float32", help="of the products")
    add("--tf32", action=argparse.BooleanOptionalAction, default=False, help="allow TF32 on CUDA")
    add(
        "--product",
        choices=CHOICES["product"],
        default="auto",
        help="insist on one way of computing products (default auto: the fastest that is right, "
        "measured where the work is worth it)",
    )
    add(
        "--keep",
        type=_gigabytes,
        default="auto",
        metavar="GB|auto",
        help="memory for what the products with one class share (default auto: half of what is "
        "free; 0: nothing)",
    )
    add(
        "--basis",
        choices=CHOICES["basis"],
        default="auto",
        help="where the Krylov basis is kept (default auto: on the device if it fits, else on the "
        "host); none: nowhere, for twice the products at most",
    )

    group = parser.add_argument_group("what the checkpoint may not say")
    add = group.add_argument
    add("--data", metavar="PATH", help="folder of the data (default: $SPECTRA_DATA)")
    add("--dataset", metavar="NAME", help="digits, cifar10, cifar100, folder, list, ...")
    add("--imbalance-ratio", type=float, metavar="R", help="largest over smallest class count")
    add(
        "--imbalance",
        choices=("exp", "step"),
        help="how the counts fall from head to tail (default exp)",
    )
    add("--draw-seed", type=int, metavar="S", help="of the draw of the long tail (default 0)")
    add(
        "--image-size",
        type=int,
        metavar="SIDE",
        help="resize and cut image files to it (default: as they are; 224 where sizes differ)",
    )
    add(
        "--mean",
        type=_numbers,
        metavar="R,G,B",
        help="what its training took from the pixels, scaled to 0..1 (default: the usual constants "
        "of the data set); one number is meant for all channels",
    )
    add("--std", type=_numbers, metavar="R,G,B", help="what it divided them by; 1 with --mean 0")
    add("--model", metavar="PACKAGE.MODULE:FACTORY", help="function that builds the network")
    add("--arch", metavar="NAME", help="architecture, e.g. resnet32")
    add("--num-classes", type=int, metavar="N", help="number of classes")
    add(
        "--scale",
        type=float,
        metavar="S",
        help="s by which the loss multiplies the logits, of a cosine head for example (default: "
        "what the file says, else 30 for a cosine head and 1)",
    )
    add(
        "--weights",
        metavar="KEY",
        help="which of the file's state dicts, e.g. state_dict_ema, or ema.module for one in a "
        "dictionary (default: state_dict or another of the usual names)",
    )


def add_result_flags(
    parser: argparse.ArgumentParser, where: str, finished: str
) -> Callable[..., object]:
    """Add the flags that say where results go, and what becomes of those that are there.

    Args:
        parser: of the command.
        where: the default folder.
        finished: after which an interrupted run goes on.

    Returns:
        What adds a flag beside them.
    """
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="DIR", help=f"folder (default {where})")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--resume",
        action="store_true",
        help=f"go on after the last finished {finished}, try again what failed, and add accuracies "
        "that were left out",
    )
    either.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what lies there; without it only finished results of the same question are",
    )
    group.add_argument(
        "--no-accuracies",
        dest="accuracies",
        action="store_false",
        help="do not classify the images; the other split is not opened then",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    return group.add_argument


def plan_of(options: argparse.Namespace) -> Plan:
    """Read the plan off the flags."""
    from spectra import Plan

    return Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})


def results_folder(options: argparse.Namespace) -> Path:
    """Name the default folder after the checkpoint and the weights that were chosen in it.

    Where the file is named as every run's are, ``last.pt`` or ``epoch-7.pt``, the folder of the run
    comes first: the one it lies in, or above those that are called ``checkpoints``.
    """
    path = Path(options.checkpoint)
    above = (parent.name for parent in path.resolve().parents)
    said = next((name for name in above if name not in ("checkpoints", "ckpts", "weights")), "")
    run = f"{said}-" if said and _EVERY_RUNS.fullmatch(path.stem) else ""
    chosen = "" if options.weights is None else f"-{options.weights}"
    return Path("reports") / f"{run}{path.stem}{chosen}"


def _numbers(text: str) -> tuple[float, ...]:
    return listed(text, float, "numbers, expected e.g. 0.5,0.5,0.5")


def _gigabytes(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither gigabytes nor auto") from None


def _batch(text: str) -> int | str:
    if text == "auto" or (text.isdecimal() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor auto")
