"""Read what a run reached on the test set from what the trainer leaves: a checkpoint or a folder.

Only the last epoch of a run that has ended is a result; of anything else it is said why it is none.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_checkpoint
from ..data import DataSpec, Samples
from ..errors import SpectraError
from .published import PARTS
from .recipes import Recipe
from .table import RECIPES


@dataclass(frozen=True)
class Accuracy:
    """What one run reached on the test set after its last epoch."""

    recipe: Recipe  # as it ran; of a lone metrics.csv, what the folder's name says
    parts: Mapping[str, float]  # % for each of `published.PARTS`
    classes: tuple[float, ...]  # (C,) %
    names: tuple[str, ...] = ()  # (C,) where the file has them
    sources: tuple[str, ...] = ()  # files that say so
    recorded: bool = True  # whether the recipe is on file


def places(path: Path) -> list[Path]:
    """List what `read_run` reads: a file, or the runs below a folder, or else its checkpoints.

    Raises:
        SpectraError: if a folder holds neither.
    """
    if path.is_dir():
        runs = [file.parent for file in sorted(path.rglob("metrics.csv"))]
        if held := runs or sorted(path.glob("*.pt")):
            return held
        raise SpectraError(
            f"{path} holds no run: expected metrics.csv as python -m spectra.train leaves it, in "
            "the folder or below, or checkpoints; name the folder of a run"
        )
    return [path]  # a missing one is told by who opens it


def read_run(path: Path) -> Accuracy | str:
    """Read one run, or say why it is no result.

    Args:
        path: a checkpoint; or a folder with run.json beside metrics.csv, or with metrics.csv alone
            and a recipe's name, as NAME, NAME/SEED or NAME-EPOCHS.

    Raises:
        SpectraError: if a file cannot be read, or is none of the trainer's.
    """
    try:
        return (_from_folder if path.is_dir() else _from_checkpoint)(path)
    except _Strange as error:
        return str(error)


class _Strange(SpectraError):
    """A recipe that this version refuses to run."""


def _from_checkpoint(path: Path) -> Accuracy | str:
    held = load_checkpoint(path)
    if held.recipe is None:
        return "it does not say how it was trained"
    recipe = _recipe(held.recipe, path)
    if held.epoch != recipe.epochs:
        return f"it is of epoch {held.epoch}, and its run has {recipe.epochs}"
    found = held.metrics.get("test_class_accuracy")
    counts = getattr(held.loss, "class_counts", None)
    if found is None or counts is None:
        return "it holds no test accuracy of the classes"
    classes = tuple(100 * value for value in found)
    shares = {"overall": 100 * held.metrics["test_accuracy"]}
    for name, members in split(held.data, counts).items():
        mean = sum(classes[c] for c in members) / len(members) if members else math.nan
        shares[name] = mean
    return Accuracy(recipe, shares, classes)


def split(data: DataSpec | None, counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Give head, mid and tail as the trainer does, from the class counts alone."""
    c = len(counts)
    targets = torch.repeat_interleave(torch.arange(c), torch.tensor(counts, dtype=torch.long))
    names = tuple(map(str, range(c)))
    return Samples(torch.empty(len(targets), 1), targets, c, names, spec=data).groups()


def _from_folder(folder: Path) -> Accuracy | str:
    rows = _rows(folder / "metrics.csv")
    last = rows[-1] if rows else {}
    summary = folder / "run.json"
    recipe: Recipe | None
    if summary.exists():
        try:
            recipe = _recipe(json.loads(summary.read_text(encoding="utf-8"))["recipe"], summary)
        except _Strange:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpectraError(
                f"{summary} is no run.json of spectra.train ({type(error).__name__}: {error}); "
                "which protocol its accuracies are of would be a guess: restore it, or leave the "
                "folder out"
            ) from error
        if last.get("epoch") != recipe.epochs:
            return f"metrics.csv ends with epoch {last.get('epoch', 0):.0f} of {recipe.epochs}"
    elif (recipe := _named_by(folder, rows)) is None:
        return (
            "it has no run.json, and metrics.csv is not the whole run of a recipe that the folder "
            "is named after"
        )
    if "test_accuracy" not in last:
        return "its last epoch was not evaluated"
    columns = [name for name in last if name.startswith("class ")]
    classes = tuple(100 * last[name] for name in columns)
    names = tuple(name.removeprefix("class ") for name in columns)
    shares = {part: 100 * last["test_accuracy" if part == "overall" else part] for part in PARTS}
    return Accuracy(recipe, shares, classes, names, recorded=summary.exists())


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        if rows and not {"epoch", "lr"} <= rows[-1].keys():
            raise ValueError("no columns epoch and lr")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SpectraError(
            f"{path} is no metrics.csv of spectra.train ({error}); its accuracies cannot be read: "
            "leave the folder out"
        ) from error
    return rows


def _named_by(folder: Path, rows: Sequence[Mapping[str, float]]) -> Recipe | None:
    """Tell the recipe by the folder's name and the learning rates, if these are a whole run's."""
    name = folder.resolve().name
    name = folder.resolve().parent.name if name.isdecimal() else name
    epochs = len(rows)
    found = RECIPES.get(name) or RECIPES.get(name.removesuffix(f"-{epochs}"))
    if found is None or not rows:
        return None
    try:
        recipe = found.lasting(epochs)
    except SpectraError:  # no whole run is so short
        return None
    rates = ((row["lr"], recipe.lr_of(epoch)) for epoch, row in enumerate(rows, 1))
    return recipe if all(math.isclose(a, b, rel_tol=1e-6) for a, b in rates) else None


def _recipe(values: Mapping[str, Any], path: Path) -> Recipe:
    """Build the recipe that a file holds, of an older trainer as well."""
    values = dict(values)
    if "drw" in values:  # before it became one of several weightings
        values["weighting"] = "deferred" if values.pop("drw") else "none"
    values["rho_steps"] = tuple(tuple(pair) for pair in values.get("rho_steps", ()))
    if values.get("drops") is not None:
        values["drops"] = tuple(values["drops"])
    try:
        return Recipe(**values)
    except SpectraError as error:
        raise _Strange(f"its recipe is none of this version: {error}") from error
    except TypeError as error:
        raise SpectraError(
            f"{path} holds a recipe that this version does not know ({error}); its protocol would "
            "be a guess: update spectra, or leave the file out"
        ) from error
