"""Train by recipe: `python -m spectra.train RECIPE [--field value ...]`."""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import torch

from .checkpoint import load_checkpoint
from .command_line import Parser, exit_code, found_in, integers
from .data import open_data
from .devices import find_device, keep_freed_memory
from .errors import SpectraError, first_line
from .training import ENTRIES, WAYS, Recipe, find_recipe, train


def _integers(text: str) -> tuple[int, ...]:
    return integers(text) if text else ()


def _radii(text: str) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [part.split(":") for part in text.split(",")] if text else []
        return tuple((int(epoch), float(radius)) for epoch, radius in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of EPOCH:RADIUS, expected e.g. 6:0.1,61:0.5"
        ) from None


def _reader(kind: Any) -> Callable[[str], Any]:
    """Find what turns a flag's text into a field's value; of X | None also the word none."""
    if isinstance(kind, UnionType):
        read = _reader(next(k for k in get_args(kind) if k is not NoneType))
        return lambda text: None if text == "none" else read(text)
    if get_origin(kind) is not tuple:
        reader: Callable[[str], Any] = kind
        return reader
    return _radii if get_origin(get_args(kind)[0]) is tuple else _integers


def _parser() -> Parser:
    parser = Parser(
        "python -m spectra.train",
        "Train a network by recipe; save the checkpoints that the analysis opens.",
        "each field of a recipe is a flag; a run goes to runs/RECIPE/SEED/",
    )
    parser.usage = "python -m spectra.train RECIPE [--field value ...] | --list | --help"
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a name from --list")
    add("--list", action="store_true", help="print the recipes and stop")
    add("--data", metavar="DIR", help="folder of the data (or $SPECTRA_DATA)")
    help_out = "folder of the run (runs/RECIPE/SEED); of --seeds, the folder above theirs"
    add("--out", metavar="DIR", type=Path, help=help_out)
    add("--seeds", metavar="S,S", type=_integers, help="repeat the run with each of these seeds")
    add("--jobs", metavar="N", type=int, default=1, help="seeds that run side by side (1)")
    add("--save-at", metavar="E,E", type=_integers, default=(), help="epochs to save on the way")
    add("--eval-every", metavar="N", type=int, default=1, help="epochs between evaluations (1)")
    add("--resume", action="store_true", help="go on from the state that the folder holds")
    add("--overwrite", action="store_true", help="replace the run that the folder holds")
    help_state = "seconds between the states that --resume goes on from (30)"
    add("--state-every", metavar="S", type=float, default=30.0, help=help_state)
    add("--device", default="auto", help="auto (default), cpu, cuda")
    help_update = "how a step is computed: auto (a CUDA graph on a GPU), plain, compiled, ..."
    add("--update", choices=WAYS, default="auto", help=help_update)
    add("--quiet", action="store_true", help="no progress, no lines per epoch")
    overrides = parser.add_argument_group("fields of the recipe, each of which can be overridden")
    texts = dict(re.findall(r"^        (\w+): (.+(?:\n {12}.+)*)", Recipe.__doc__ or "", re.M))
    for field in fields(Recipe)[1:]:
        how: dict[str, Any] = {"type": _reader(field.type), "metavar": "X"}
        if field.type is bool:
            how = {"action": argparse.BooleanOptionalAction}
        how["help"] = " ".join(texts[field.name].split()).replace("%", "%%")
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
    for flag, least in (("eval_every", 1), ("jobs", 1), ("state_every", 0)):
        if (value := getattr(options, flag)) < least:
            raise SpectraError(f"--{flag.replace('_', '-')} is {value}; expected at least {least}")
    if options.resume and options.overwrite:
        raise SpectraError("--resume and --overwrite were both given; expected one of them")
    seeds = options.seeds
    if seeds is not None and not (
        0 < len(seeds) == len(set(seeds)) and not hasattr(options, "seed")
    ):
        raise SpectraError(f"--seeds is {seeds}; expected different seeds, and no --seed beside it")
    if options.jobs > 1 and seeds is None:
        raise SpectraError(f"--jobs is {options.jobs} for one run; expected --seeds S,S beside it")
    names = {field.name for field in fields(Recipe)}
    overrides = {name: value for name, value in vars(options).items() if name in names}
    recipe = find_recipe(options.recipe)
    return recipe.lasting(**{"epochs": recipe.epochs, **overrides}), options


def _recipes() -> str:
    """Write the table of recipes, a block for each data set, network and length."""
    width, before = max(map(len, ENTRIES)), ""
    lines: list[str] = []
    for name, entry in ENTRIES.items():
        r = entry.recipe
        block = f"{r.data_spec}; {r.arch}, {r.epochs} epochs, batch {r.batch_size}, {r.schedule}"
        if block != before:
            lines += ["", block] if lines else [block]
            lines.append(f"  {'recipe':{width}}  loss  weights   step           rho  goal, %")
        before = block
        radii = {r.rho, r.rho_tail or r.rho, *(value for _, value in r.rho_steps)}
        rho = "–".join(f"{x:g}" for x in sorted({min(radii), max(radii)}) if x)
        goal = "" if entry.published is None else f"{entry.published:.1f}"
        lines.append(
            f"  {name:{width}}  {r.loss:4}  {r.weighting:8}  {r.step:7}  {rho:>9}  {goal:>7}  "
            f"{entry.about}"
        )
    return "\n".join(lines)


def _run(recipe: Recipe, options: argparse.Namespace, folder: Path) -> None:
    """Train one recipe with one seed, and say how it did."""
    device = find_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        run = train(
            recipe,
            *(open_data(recipe.data_spec, path=options.data, split=s) for s in ("train", "test")),
            folder=folder,
            save_at=options.save_at,
            eval_every=options.eval_every,
            device=device,
            update=options.update,
            resume=options.resume,
            overwrite=options.overwrite,
            state_every=options.state_every,
            quiet=options.quiet,
        )
    except torch.OutOfMemoryError as error:
        raise SpectraError(
            f"the GPU has too little memory for the network and batches of {recipe.batch_size} "
            f"images ({first_line(error)}); lower --batch-size, or use --device cpu"
        ) from error
    if not options.quiet:  # matplotlib and the analysis take a second to load
        from .figures.learning import learning_curves
        from .figures.pages import save

        save([learning_curves({recipe.name: folder / "metrics.csv"})], folder, "learning")
    print(
        f"{folder / 'last.pt'}: {run.test.accuracy:.2%} on the test set after the last epoch "
        f"(highest: {run.best_accuracy:.2%} in epoch {run.best_epoch}, which is chosen on test "
        "data and no result)"
    )


def _repeat(options: argparse.Namespace, arguments: Sequence[str], home: Path) -> Sequence[float]:
    """Run all seeds, several at a time in processes of their own; give the test accuracies."""
    rest: list[int] = list(options.seeds)
    jobs: list[subprocess.Popen[bytes]] = []
    failed = 0
    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    if options.jobs > 1:
        environment["TQDM_DISABLE"] = "1"  # two bars would fight for one line
    try:
        while rest or jobs:
            while rest and len(jobs) < options.jobs:
                own = ["--seeds", str(rest.pop(0)), "--jobs", "1"]
                command = [sys.executable, "-m", "spectra.train", *arguments, *own]
                jobs.append(subprocess.Popen(command, env=environment))
            ended = [job for job in jobs if job.poll() is not None]
            jobs = [job for job in jobs if job not in ended]
            failed += sum(job.returncode != 0 for job in ended)
            time.sleep(0 if ended else 0.1)
    finally:
        for job in jobs:
            job.terminate()  # which ends it as SIGINT would, but cannot be ignored by inheritance
        for job in jobs:
            job.wait()
    if failed:
        raise SpectraError(f"{failed} of {len(options.seeds)} seeds failed; see their lines above")
    return [
        load_checkpoint(home / str(seed) / "last.pt").metrics["test_accuracy"]
        for seed in options.seeds
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see `command_line.exit_code` for what it returns."""
    arguments = sys.argv[1:] if arguments is None else arguments
    held: list[Callable[[], Path | None]] = []

    def command() -> None:
        recipe, options = parse(arguments)
        if recipe is None:
            try:
                print(_recipes(), flush=True)
            except BrokenPipeError:  # `--list | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        home = options.out or Path("runs") / recipe.name
        seeds = options.seeds or (recipe.seed,)
        alone = len(seeds) == 1
        if alone and (options.seeds is not None or options.out is None):
            home /= str(seeds[0])
        for name in ("state.pt", "run.json"):  # of a run that goes on, and of one that has ended
            pattern = name if alone else f"*/{name}"
            held.append(found_in(home, pattern, resume=options.resume))
        if alone:
            _run(replace(recipe, seed=seeds[0]), options, home)
            return
        found = [100 * x for x in _repeat(options, arguments, home)]
        print(
            f"{recipe.name}: {statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} % on the "
            f"test set after the last epoch (mean and standard deviation of {len(found)} seeds)"
        )

    def interrupted() -> Path | None:
        return next((folder for look in held if (folder := look()) is not None), None)

    return exit_code(_parser(), command, interrupted)


if __name__ == "__main__":
    sys.exit(main())
