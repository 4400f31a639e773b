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
from .training import RECIPES, Recipe, find_recipe, train


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="python -m spectra.train RECIPE [--field value ...] | --list | --help",
        description="Train a network by recipe; save the checkpoints that the analysis opens.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a name from --list")
    add("--list", action="store_true", help="print the recipes and stop")
    add("--data", metavar="DIR", help="folder of the data (or $SPECTRA_DATA)")
    help_out = "folder of the run (runs/RECIPE/SEED), or a .pt file for the last checkpoint"
    add("--out", metavar="PATH", type=Path, help=help_out)
    add("--save-at", metavar="E,E", type=_integers, default=(), help="epochs to save on the way")
    add("--eval-every", metavar="N", type=int, default=1, help="epochs between evaluations (1)")
    add("--device", default="auto", help="auto (default), cpu, cuda")
    add("--quiet", action="store_true", help="no progress, no lines per epoch")
    overrides = parser.add_argument_group("fields of the recipe, each of which can be overridden")
    for field in fields(Recipe)[1:]:
        kind = next((k for k in get_args(field.type) if k is not NoneType), field.type)
        how: dict[str, Any] = {"type": _integers if get_origin(kind) is tuple else kind}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        overrides.add_argument(
            f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, **how
        )
    return parser


def parse(arguments: Sequence[str] | None = None) -> tuple[Recipe | None, argparse.Namespace]:
    """Read the command line into the recipe with its overrides (None for --list) and the rest."""
    options = _parser().parse_args(arguments)
    if options.list:
        return None, options
    if options.recipe is None:
        raise SpectraError("no recipe was named; --list prints them, --help the options")
    if options.eval_every < 1:
        raise SpectraError(f"--eval-every is {options.eval_every}; expected at least 1")
    names = {field.name for field in fields(Recipe)}
    overrides = {name: value for name, value in vars(options).items() if name in names}
    return replace(find_recipe(options.recipe), **overrides), options


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).item()  # the meta device has no values to train with
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise SpectraError(f"--device {name} is no device here; use cpu or auto") from error
    return torch.device(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 after an error that the user can mend, or 130 on Ctrl-C."""
    try:
        recipe, options = parse(arguments)
        if recipe is None:
            for r in RECIPES.values():
                radius = f", rho {r.rho:g}" if r.step == "sam" else ""
                print(f"{r.name:24} {r.arch}; {r.data_spec}; {r.epochs} epochs{radius}")
            return 0
        device, folder = _device(options.device), Path("runs") / recipe.name / str(recipe.seed)
        out: Path = options.out or folder
        alone = out.suffix == ".pt"
        run = train(
            recipe,
            *(open_data(recipe.data_spec, path=options.data, split=s) for s in ("train", "test")),
            folder=folder if alone else out,
            result=out if alone else None,
            save_at=options.save_at,
            eval_every=options.eval_every,
            device=device,
            quiet=options.quiet,
        )
        print(
            f"{out if alone else out / 'last.pt'}: {run.test.accuracy:.2%} on the test set after "
            f"the last epoch (highest: {run.best_accuracy:.2%} in epoch {run.best_epoch}, which "
            "is chosen on test data and no result)"
        )
        return 0
    except (SpectraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
