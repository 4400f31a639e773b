"""Train by recipe: `python -m spectra.train RECIPE [--field value ...]`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import torch

from .data import open_data
from .errors import SpectraError
from .training.loop import train
from .training.recipes import RECIPES, Recipe, find_recipe


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m spectra.train",
        usage="python -m spectra.train RECIPE [--field value ...] | --list | --help",
        description="Train a network by recipe and save the checkpoints that the analysis opens.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a name from --list")
    parser.add_argument("--list", action="store_true", help="print the recipes and stop")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (or $SPECTRA_DATA)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        help="folder of the run (runs/RECIPE/SEED), or a .pt file for the last checkpoint",
    )
    parser.add_argument(
        "--save-at", metavar="E,E", type=_integers, default=(), help="epochs to save on the way"
    )
    parser.add_argument(
        "--eval-every", metavar="N", type=int, default=1, help="epochs between evaluations (1)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--quiet", action="store_true", help="no progress, no lines per epoch")
    overrides = parser.add_argument_group("fields of the recipe, each of which can be overridden")
    for field in fields(Recipe)[1:]:
        flag, kind = "--" + field.name.replace("_", "-"), field.type
        kind = next((part for part in get_args(kind) if part is not NoneType), kind)
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": _integers if get_origin(kind) is tuple else kind, "metavar": "X"}
        overrides.add_argument(flag, **options)
    return parser


def parse(arguments: Sequence[str] | None = None) -> tuple[Recipe | None, argparse.Namespace]:
    """Read the command line.

    Returns:
        The recipe with its overrides (None under --list), and the other options.

    Raises:
        SpectraError: for an unknown recipe or a value that no run can have.
    """
    options = _parser().parse_args(arguments)
    if options.list:
        return None, options
    if options.recipe is None:
        raise SpectraError("no recipe was named; --list prints them, --help the options")
    if options.eval_every < 1:
        raise SpectraError(f"--eval-every is {options.eval_every}; expected at least 1")
    named = {field.name for field in fields(Recipe)}
    overrides = {name: value for name, value in vars(options).items() if name in named}
    return replace(find_recipe(options.recipe), **overrides), options


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).item()  # the meta device has no values to train with
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0].partition(" device type")[0]
        raise SpectraError(f"--device is {name!r} and cannot be used here ({reason})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, 2 after an error that the user can mend, or 130 after Ctrl-C.
    """
    try:
        recipe, options = parse(arguments)
        if recipe is None:
            for known in RECIPES.values():
                radius = f" rho {known.rho:g}" if known.step == "sam" else ""
                print(
                    f"{known.name:26}{known.arch}, {known.data_spec}, {known.epochs} epochs", end=""
                )
                print(radius)
            return 0
        spec, device = recipe.data_spec, _device(options.device)
        out: Path = options.out or Path("runs") / recipe.name / str(recipe.seed)
        result = out if out.suffix == ".pt" else out / "last.pt"
        if out.suffix == ".pt":
            out = Path("runs") / recipe.name / str(recipe.seed)
        run = train(
            recipe,
            open_data(spec, path=options.data, split="train"),
            open_data(spec, path=options.data, split="test"),
            folder=out,
            result=result,
            save_at=options.save_at,
            eval_every=options.eval_every,
            device=device,
            quiet=options.quiet,
        )
        print(f"{result}: {run.test.accuracy:.2%} on the test set after the last epoch")
        print(f"best on the test set {run.best_accuracy:.2%} in epoch {run.best_epoch}, no result")
        return 0
    except (SpectraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
