"""Test accuracies of runs, read from the files that the trainer leaves.

An accuracy is that of the last epoch of a run that has ended, in %. Runs are sorted by method and
by protocol, which is what a recipe changes beside the named one of its method: only runs of the
unchanged recipe fill the cell of a published table, and shorter ones, other batches or radii keep
to themselves. Seeds of one protocol are averaged; precisions are not mixed.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SpectraError
from . import published
from .finished import Accuracy, places, read_run
from .published import Row, Score
from .recipes import Recipe
from .table import ENTRIES, RECIPES, method_name

_NO_CHANGE = ("name", "seed", "precision")  # fields that are no part of a protocol
_SAID = {"epochs": "{} epochs", "rho": "ρ {}", "batch_size": "batch {}"}


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seeds alone."""

    runs: tuple[Accuracy, ...]

    @property
    def recipe(self) -> Recipe:
        """Give the recipe of the first run."""
        return self.runs[0].recipe

    @property
    def changes(self) -> tuple[tuple[str, str], ...]:
        """List what differs from the method's named recipe: field, and how a label says it."""
        lost = () if self.runs[0].recorded else (("recipe", "recipe not on file"),)
        return (*_changes(self.recipe), *lost)

    @property
    def label(self) -> str:
        """Name the method as the paper does, followed by what differs."""
        recipe, base, parts = self.recipe, _base(self.recipe), [text for _, text in self.changes]
        if base and not ENTRIES[base].by_paper and recipe.arch == RECIPES[base].arch:
            parts.insert(0, recipe.arch)
        return ", ".join([method_name(recipe), *parts])

    @property
    def seeds(self) -> str:
        """Say which seed or how many there are, and the precision."""
        if not self.runs[0].recorded:
            return "seed and precision unknown"
        many = len(self.runs) > 1
        count = f"{len(self.runs)} seeds" if many else f"seed {self.recipe.seed}"
        return f"{count}, {self.recipe.precision}"

    def of(self, part: str) -> Score:
        """Average over the seeds, in %, one of `published.PARTS`."""
        return _score([run.parts[part] for run in self.runs])

    @property
    def classwise(self) -> tuple[Score, ...]:
        """Average over the seeds, in %, class by class (C,)."""
        columns = zip(*(run.classes for run in self.runs), strict=True)
        return tuple(_score(values) for values in columns)

    @property
    def source(self) -> str:
        """Say where the named recipe and its published accuracy come from."""
        base = _base(self.recipe)
        return "" if base is None else ENTRIES[base].about

    @property
    def published(self) -> Row | None:
        """Look up what was published of this very protocol."""
        recipe = self.recipe
        fields = [field for field, _ in self.changes if field != "bn_both_passes"]  # released: on
        data, method, base = recipe.dataset, method_name(recipe), _base(recipe)
        if base is None or not ENTRIES[base].by_paper:
            goal = None if base is None or fields else ENTRIES[base].published
            return None if goal is None else Row(Score(goal))
        if not fields:
            return published_of(data, method)
        if fields == ["ratio"]:
            return published.FURTHER.get((data, recipe.ratio, method))
        swept = (data, method, fields) == ("cifar10", "CE+DRW+SAM", ["rho"])
        return published.SWEEP.get(recipe.rho) if swept else None


@dataclass(frozen=True)
class Accuracies:
    """All runs that were found, each once, and what is to be known about the others."""

    runs: tuple[Accuracy, ...]
    notes: tuple[str, ...]

    def groups(self, dataset: str) -> tuple[Group, ...]:
        """Sort the runs of a data set by method, protocol and precision, in the order found."""
        held: dict[object, list[Accuracy]] = {}
        for run in self.runs:
            if run.recipe.dataset == dataset:
                key = replace(run.recipe, name="", seed=0), run.recorded
                held.setdefault(key, []).append(run)
        return tuple(Group(tuple(runs)) for runs in held.values())

    def names(self, dataset: str) -> tuple[str, ...]:
        """Give the names of the classes (C,), where a run has them; else their numbers."""
        runs = [run for run in self.runs if run.recipe.dataset == dataset]
        numbers = tuple(map(str, range(max((len(run.classes) for run in runs), default=0))))
        return next((run.names for run in runs if run.names), numbers)

    def cell(self, dataset: str, method: str, **changes: Any) -> Group | None:
        """Find the runs of a method's named recipe; float32 before others, then most seeds.

        Args:
            dataset: as DataSpec names it.
            method: as the paper names it.
            changes: fields of the recipe that shall differ, as `rho=0.1`.
        """
        base = named(dataset, method)
        if base is None:
            return None
        wanted = _protocol(replace(RECIPES[base], **changes))
        fit = [
            group
            for group in self.groups(dataset)
            if group.runs[0].recorded and _protocol(group.recipe) == wanted
        ]
        exact = [group for group in fit if group.recipe.precision == "float32"]
        return max(exact or fit, key=lambda group: len(group.runs), default=None)


def named(dataset: str, method: str) -> str | None:
    """Name the recipe that is the paper's protocol of a method; None where no table has it."""
    recipes = {name: entry.recipe for name, entry in ENTRIES.items() if entry.by_paper}
    fit = (n for n, r in recipes.items() if (r.dataset, method_name(r)) == (dataset, method))
    return next(fit, None)


def published_of(dataset: str, method: str) -> Row | None:
    """Look up what was published of a method by the paper's protocol."""
    tables = (published.MAIN, published.OPTIMISERS)
    rows = (table.get(dataset, {}).get(method) for table in tables)
    return next((row for row in rows if row is not None), None)


def default_paths(root: Path) -> list[Path]:
    """List the committed checkpoints and run folders of a clone."""
    folder = root / "reports" / "training"
    held = [folder] if any(folder.rglob("metrics.csv")) else []
    return [*sorted(root.glob("checkpoints/*.pt")), *held]


def read(paths: Iterable[str | Path], *, root: str | Path = ".") -> Accuracies:
    """Read what runs reached; a run that is found twice counts once.

    Args:
        paths: checkpoint files, and folders with runs in them, at any depth: run.json beside
            metrics.csv, or metrics.csv alone in a folder with a recipe's name, which says neither
            batch nor seed and fills no cell of the paper's protocol.
        root: folder that the names of files are told relative to.

    Returns:
        The runs that have ended; a note for each file that is none.

    Raises:
        SpectraError: if a path does not exist, cannot be read, or holds no run.
    """
    found: list[Accuracy] = []
    notes: list[str] = []
    for path in map(Path, paths):
        for place in places(path):
            one = read_run(place)
            name = _relative(place, Path(root))
            if isinstance(one, str):
                notes.append(f"{name} is not counted: {one}")
            else:
                found.append(replace(one, sources=(name,)))
    runs, twice = _merge(found)
    return Accuracies(runs, (*notes, *twice))


def _merge(found: Sequence[Accuracy]) -> tuple[tuple[Accuracy, ...], list[str]]:
    """Count each run once: told by its recipe, a lone metrics.csv by its accuracies."""
    runs: list[Accuracy] = []
    notes = []
    for one in sorted(found, key=lambda run: not run.recorded):
        for i, run in enumerate(runs):
            equal = len(one.classes) == len(run.classes) and all(
                math.isclose(a, b, abs_tol=1e-6)
                for a, b in zip(one.classes, run.classes, strict=True)
            )
            same = _protocol(one.recipe) == _protocol(run.recipe)
            if one.recorded:
                mine, other = (replace(x.recipe, name="").to_dict() for x in (one, run))
                same = mine == other
            if same and (equal or one.recorded):
                sources = (*run.sources, *one.sources)
                runs[i] = replace(run, sources=sources, names=run.names or one.names)
                if not equal:
                    notes.append(
                        f"seed {one.recipe.seed} of {one.recipe.name} ended differently in "
                        f"{run.sources[0]} ({run.parts['overall']:.1f} %) and {one.sources[0]} "
                        f"({one.parts['overall']:.1f} %); the first counts"
                    )
                break
        else:
            runs.append(one)
    return tuple(runs), notes


def _base(recipe: Recipe) -> str | None:
    """Name the recipe that a run is a variation of."""
    mine = recipe.dataset, recipe.loss, recipe.weighting, recipe.step
    fit = [n for n, r in RECIPES.items() if (r.dataset, r.loss, r.weighting, r.step) == mine]
    same_network = [name for name in fit if RECIPES[name].arch == recipe.arch]
    return next(iter(same_network or fit), None)


def _changes(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    base = _base(recipe)
    if base is None:
        return (("recipe", "no named recipe"),)
    mine = recipe.to_dict()
    try:
        theirs = RECIPES[base].lasting(recipe.epochs).to_dict()
    except SpectraError:  # a length that the named recipe cannot have
        theirs = RECIPES[base].to_dict() | {"epochs": recipe.epochs}
    fields = [f for f in mine if f not in _NO_CHANGE and mine[f] != theirs[f]]
    fields = ["epochs"] * (recipe.epochs != RECIPES[base].epochs) + fields
    return tuple((field, _say(field, mine[field])) for field in fields)


def _say(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{field.replace('_', ' ')}"
    if isinstance(value, list):
        return f"{field.replace('_', ' ')} {' and '.join(map(str, value))}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return _SAID.get(field, f"{field.replace('_', ' ')} {{}}").format(text)


def _relative(path: Path, root: Path) -> str:
    """Name a file without the place of this machine."""
    path, root = path.resolve(), root.resolve()
    return (path.relative_to(root) if path.is_relative_to(root) else Path(path.name)).as_posix()


def _protocol(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in recipe.to_dict().items() if k not in _NO_CHANGE}


def _score(values: Sequence[float]) -> Score:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Score(statistics.mean(values), spread)
