"""What the notebooks show: results that are stored where they fit, and computed where none do.

A stored result fits if it is of the same weights (SHA-256 of the file), the same draw of the data
and the same settings; where it lies under ``reports/`` does not matter. What no file holds is
computed, with a progress bar, into ``reports/notebooks/``. Where even that cannot be done, because
a checkpoint or its images are not at hand, a place stays empty and says so.

Two budgets: ``quick`` takes the embedded digits, offline; ``full`` the paper's CIFAR-10-LT runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spectra import (
    Analysis,
    Checkpoint,
    ClassSpectrum,
    Plan,
    Samples,
    Trajectory,
    analyze,
    follow,
    load_checkpoint,
    open_data,
)
from spectra.comparisons import beside_published
from spectra.errors import SpectraError
from spectra.figures import save
from spectra.landscape import Landscape, Survey, View, explore
from spectra.terminal import Bar
from spectra.training import find_recipe, train
from spectra.trajectories import RunTrajectory
from spectra.writing import Markdown

from .shown import Picture, merged
from .stored import (
    blank,
    deciding,
    digest,
    fits,
    images_of,
    no_landscape,
    same_samples,
    stored_run,
    whole,
)

_EMPTY = "not computed yet"


@dataclass(frozen=True)
class _Means:
    runs: str  # "digits-lt-ce-drw": the checkpoint is <runs>-<step>.pt
    plan: Plan  # of an analysis
    released: Mapping[str, Any]  # what it changes in a plan
    around: Plan  # of a landscape
    survey: Survey
    kept: tuple[int, ...] = (5, 20, 32, 36, 40)  # epochs of a short run that are followed


_QUICK = Plan(overall=True, classes=(0, 8), steps=30, probes=3, max_samples=64)
_FULL = Plan(overall=True, classes=(0, 8, 9), max_samples=500)
_RELEASED = {"protocol": "released", "augment": "resample", "probes": 1}
# The digits' small spectra need float64 under the released recurrence (README).
_RELEASED_QUICK = {**_RELEASED, "dtype": "float64", "steps": 60}
_AROUND_QUICK = Plan(classes=(0, 8), steps=30, max_samples=64)
_SURVEY_QUICK = Survey(points=10, surface=7, amplification=24, minibatch=64, controls=5)
_AROUND = Plan(classes=(0, 8), max_samples=83)  # as many of the head class as the tail class has
_SURVEY = Survey(points=19, surface=13, extent=0.5, amplification=96)
BUDGETS = {
    "quick": _Means("digits-lt-ce-drw", _QUICK, _RELEASED_QUICK, _AROUND_QUICK, _SURVEY_QUICK),
    "full": _Means("cifar10-lt-ce-drw", _FULL, _RELEASED, _AROUND, _SURVEY),
}


@dataclass(frozen=True)
class Budget:
    """The results that a notebook shows, for a name in `BUDGETS`."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in BUDGETS:
            raise SpectraError(f"got the budget {self.name!r}, expected {' or '.join(BUDGETS)}")

    @cached_property
    def root(self) -> Path:
        """Find the folder with ``checkpoints/``, here or above, wherever Jupyter was started."""
        here = Path.cwd()
        for folder in (here, *here.parents, Path(__file__).parents[2]):
            if (folder / "checkpoints").is_dir():
                return folder
        raise SpectraError(
            f"found no checkpoints/ in {here} or above, expected a clone of the repository: the "
            "notebooks load its checkpoints and stored results"
        )

    def checkpoint(self, step: str = "sgd") -> Checkpoint:
        """Open the checkpoint that was trained with a step, ``sgd`` or ``sam``."""
        return load_checkpoint(self._file(step))

    def analysis(self, step: str = "sgd", *, protocol: str = "exact", **changes: Any) -> Analysis:
        """Give the spectra of a checkpoint: stored, computed, or left empty.

        Args:
            step: that it was trained with.
            protocol: ``exact`` or ``released``.
            changes: other fields of the budget's `Plan`.

        Returns:
            One spectrum a label of the plan; an empty one has an ``error`` that says why.
        """
        means = BUDGETS[self.name]
        changes = {**(means.released if protocol == "released" else {}), **changes}
        plan = replace(means.plan, **changes)
        wanted = ["overall"] * plan.overall + [f"class {c}" for c in plan.classes]
        what = f"{means.runs}-{step}, {protocol}"
        if not self._file(step).exists():
            why = f"{_EMPTY}: there is no {self._file(step).name}"
            print(f"{what}: {why}")
            return blank(plan, {"file": self._file(step).name}, wanted, why, self._counts)
        checkpoint = self.checkpoint(step)
        but_samples = {k: v for k, v in deciding(plan).items() if k != "max_samples"}
        paths = sorted((self.root / "reports").rglob("esd.json"))
        fitting = (path for path in paths if fits(path, checkpoint, but_samples))
        held = list(whole(Analysis.load, fitting))
        held.sort(key=lambda pair: -pair[1].settings.get("probes", 1))  # the best first
        found: dict[str, ClassSpectrum] = {}
        used: list[Analysis] = []
        for folder, analysis in held:
            fresh = [s for s in analysis.spectra if same_samples(s, analysis, plan.max_samples)]
            taken = [s for s in fresh if s.label in wanted and s.label not in found]
            found |= {s.label: s for s in taken}
            if taken:
                used.append(analysis)
                place = folder.relative_to(self.root).as_posix()
                print(f"{what}: {', '.join(s.label for s in taken)} stored in {place}")
        missing = [label for label in wanted if label not in found]
        why = _EMPTY
        if missing and (images := images_of(checkpoint)):
            print(f"{what}: computing {', '.join(missing)}")
            made = self._compute(checkpoint, plan, missing, images)
            found |= {s.label: s for s in made.spectra}
            used.append(made)
        elif missing:
            print(f"{what}: {', '.join(missing)} {why}; SPECTRA_DATA names no images for it")
        base = merged(used) if used else blank(plan, checkpoint.described(), (), why)
        counts = base.data.get("counts") or self._counts
        empty = [label for label in wanted if label not in found]
        found |= {s.label: s for s in blank(plan, {}, empty, why, counts).spectra}
        return replace(base, spectra=tuple(found[label] for label in wanted))

    def landscape(self, step: str = "sgd", **changes: Any) -> Landscape:
        """Give what lies around a checkpoint: stored, computed, or left empty.

        Args:
            step: that it was trained with.
            changes: other fields of the budget's `Plan`.

        Returns:
            One view a class of the plan; none, and a line that says why, where they are missing.
        """
        means = BUDGETS[self.name]
        plan, survey = replace(means.around, **changes), means.survey
        settings = deciding(plan, survey)
        what = f"{means.runs}-{step}, landscape"
        if not self._file(step).exists():
            print(f"{what}: {_EMPTY}: there is no {self._file(step).name}")
            return no_landscape({"file": self._file(step).name}, settings)
        checkpoint = self.checkpoint(step)
        wanted = [f"class {c}" for c in plan.classes]
        views: dict[str, View] = {}

        def known(landscape: Landscape) -> int:  # of how many of the views it has the gradients
            named = {name.rpartition(" ")[0] for name in landscape.directions}
            return len(named.intersection(wanted))

        best = no_landscape(checkpoint.described(), settings)
        paths = sorted((self.root / "reports").rglob("landscape.json"))
        fitting = (path for path in paths if fits(path, checkpoint, settings))
        for folder, found in whole(Landscape.load, fitting):
            place = folder.relative_to(self.root).as_posix()
            fresh = {v.label: v for v in found.views if v.label in wanted and v.label not in views}
            print(f"{what}: {', '.join(fresh) or 'no further class'} stored in {place}")
            views |= fresh
            if best.amplification is None or known(found) > known(best):
                best = found
        best = replace(best, views=tuple(views[label] for label in wanted if label in views))
        missing = [label for label in wanted if label not in views]
        if survey.amplification and known(best) < len(wanted):
            missing.append("amplification")
        if not missing:
            return best
        if (images := images_of(checkpoint)) is None:
            print(f"{what}: {', '.join(missing)} {_EMPTY}; SPECTRA_DATA names no images for it")
            return best
        print(f"{what}: computing")
        stem = f"{Path(checkpoint.file).stem}-landscape-{digest(settings)}"
        folder = self.root / "reports" / "notebooks" / f"{stem}-{checkpoint.sha256[:8]}"
        with closing(Bar()) as bar:
            return explore(
                *(checkpoint, plan, survey),
                train=images[0],
                folder=folder,
                overwrite=True,  # its name is that of the question
                progress=bar,
            )

    def trajectory(self, *steps: str, protocol: str = "exact", **changes: Any) -> Trajectory:
        """Give the spectra of runs from epoch to epoch: stored, or of short runs trained here.

        Args:
            steps: that the runs were trained with.
            protocol: ``exact`` or ``released``.
            changes: other fields of the `Plan`. At `full` any number of steps and samples fits
                that is not among them, and of the runs that fit the one with most classes is shown.

        Returns:
            A run a step; one without results has no epochs, and its name says so.
        """
        means = BUDGETS[self.name]
        changes = {**(means.released if protocol == "released" else {}), **changes}
        own = {"overall": False, "classes": (8,), "probes": 1}
        plan = replace(means.plan, **{**own, **changes})
        if self.name == "quick":
            runs = [self._short_run(step) for step in steps]
            weights = digest({run.name: load_checkpoint(run / "last.pt").sha256 for run in runs})
            stem = f"trajectory-{_tail(plan)}-{weights}"
            folder = self.root / "reports" / "notebooks" / stem
            print(f"following {', '.join(run.name for run in runs)}, {protocol}")
            with closing(Bar()) as bar:
                return follow(runs, plan, folder=folder, resume=True, progress=bar)
        return Trajectory(tuple(self._stored_run(step, plan, changes) for step in steps))

    def published(self, **analyses: Analysis) -> Markdown:
        """Set analyses beside what the paper prints of the same ends, at `full`.

        Args:
            analyses: by step, ``sgd`` or ``sam``.
        """
        if self.name != "full":
            return Markdown("Of the embedded digits nothing was published.")
        return Markdown(beside_published(analyses))

    def show(self, figures: Sequence[Any], name: str) -> Picture:
        """Keep a figure as png and pdf in ``reports/figures/`` and show it.

        Args:
            figures: as `spectra.figures` draws them; the first page is shown.
            name: of the files; the budget is put before it.
        """
        paths = save(figures, self.root / "reports" / "figures", f"{self.name}-{name}")
        return Picture(next(path for path in paths if path.suffix == ".png").read_bytes())

    def _file(self, step: str) -> Path:
        return self.root / "checkpoints" / f"{BUDGETS[self.name].runs}-{step}.pt"

    @cached_property
    def _counts(self) -> Sequence[int] | None:
        """Look up how many samples each class has, for places that stay empty."""
        others = [c for c in (self._file("sgd"), self._file("sam")) if c.exists()]
        weights = [load_checkpoint(path).sha256 for path in others]
        paths = sorted((self.root / "reports").rglob("esd.json"))
        for _, held in whole(Analysis.load, paths):
            if held.checkpoint.get("sha256") in weights and held.data.get("counts"):
                return list(held.data["counts"])
        return None

    def _compute(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        labels: Sequence[str],
        images: tuple[Samples, Samples],
    ) -> Analysis:
        asked = replace(
            plan,
            overall="overall" in labels,
            classes=tuple(c for c in plan.classes if f"class {c}" in labels),
        )
        stem = f"{Path(checkpoint.file).stem}-{_tail(plan)}-{checkpoint.sha256[:8]}"
        folder = self.root / "reports" / "notebooks" / stem
        with closing(Bar()) as bar:
            return analyze(
                checkpoint,
                asked,
                train=images[0],
                test=images[1],
                folder=folder,
                resume=True,
                progress=bar,
            )

    def _short_run(self, step: str) -> Path:
        means = BUDGETS[self.name]
        *kept, epochs = means.kept
        recipe = find_recipe(f"{means.runs}-{step}").lasting(epochs)
        folder = self.root / "runs" / "notebooks" / f"digits-{step}"
        held = folder / "run.json"
        asked = json.loads(json.dumps(recipe.to_dict()))
        if not held.exists() or json.loads(held.read_text(encoding="utf-8"))["recipe"] != asked:
            print(f"training {recipe.name} for {recipe.epochs} epochs")
            samples, test = (open_data(recipe.data_spec, split=s) for s in ("train", "test"))
            train(recipe, samples, test, folder=folder, save_at=kept, overwrite=True, quiet=True)
        return folder

    def _stored_run(self, step: str, plan: Plan, asked: Collection[str]) -> RunTrajectory:
        """Find the run that ended at a checkpoint, analysed as a plan says."""
        name, found = f"{BUDGETS[self.name].runs}-{step}", None
        if self._file(step).exists():
            loose = {"steps", "until_converged", "max_samples", "batch_size"}.difference(asked)
            found = stored_run(self.root / "reports", self.checkpoint(step), plan, loose)
        if found is None:
            print(f"{name}, {plan.protocol}: {_EMPTY}")
            return RunTrajectory(f"{name}: {_EMPTY}", ())
        place, run = found
        print(f"{name}, {plan.protocol}: stored in {place.relative_to(self.root).as_posix()}")
        return run


def _tail(plan: Plan) -> str:
    return f"{plan.protocol}-{digest(deciding(plan))}"
