"""What the notebooks show: results that are stored where they fit, and computed where none do.

A stored result fits if it is of the same weights (SHA-256 of the file), the same draw of the data
and the same settings; where it lies under ``reports/`` does not matter. What no file holds is
computed, with a progress bar, into ``reports/notebooks/``. Where even that cannot be done, because
a checkpoint or its images are not at hand, a place stays empty and says so.

Two budgets: ``quick`` takes the embedded digits, offline; ``full`` the paper's CIFAR-10-LT runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spectra import (
    Analysis,
    Checkpoint,
    ClassSpectrum,
    Plan,
    Trajectory,
    analyze,
    follow,
    load_checkpoint,
    open_data,
)
from spectra.command_line import Bar
from spectra.errors import SpectraError
from spectra.figures import save
from spectra.tables import to_markdown
from spectra.training import find_recipe, train
from spectra.trajectories import RunTrajectory

_DECIDING = (  # settings that numbers depend on; speed and memory do not count
    *("split", "loss", "protocol", "augment", "steps", "until_converged", "probes", "seed"),
    *("max_samples", "dtype", "tf32"),
)
_KEPT = (5, 20, 32, 36)  # epochs of the short runs that `quick` follows
_EMPTY = "not computed yet"


@dataclass(frozen=True)
class _Means:
    runs: str  # "digits-lt-ce-drw": the checkpoint is <runs>-<step>.pt
    plan: Plan  # of an analysis
    released: Mapping[str, Any]  # what it changes in a plan


_QUICK = Plan(overall=True, classes=(0, 8), steps=30, probes=3, max_samples=64)
_FULL = Plan(overall=True, classes=(0, 8, 9))
_RELEASED = {"protocol": "released", "augment": "resample", "probes": 1}
# The digits' small spectra need float64 under the released recurrence (README).
_RELEASED_QUICK = {**_RELEASED, "dtype": "float64", "steps": 60}
BUDGETS = {
    "quick": _Means("digits-lt-ce-drw", _QUICK, _RELEASED_QUICK),
    "full": _Means("cifar10-lt-ce-drw", _FULL, _RELEASED),
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
        for folder in (here, *here.parents, Path(__file__).parents[1]):
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
            return _blank(plan, {"file": self._file(step).name}, wanted, why, self._counts)
        checkpoint = self.checkpoint(step)
        held = [
            (path.parent, Analysis.load(path))
            for path in sorted((self.root / "reports").rglob("esd.json"))
            if _fits(path, checkpoint, plan)
        ]
        found: dict[str, ClassSpectrum] = {}
        for folder, analysis in held:
            fresh = [s for s in analysis.spectra if s.complete and s.error is None]
            taken = [s for s in fresh if s.label in wanted and s.label not in found]
            found |= {s.label: s for s in taken}
            if taken:
                place = folder.relative_to(self.root).as_posix()
                print(f"{what}: {', '.join(s.label for s in taken)} stored in {place}")
        missing = [label for label in wanted if label not in found]
        why = _EMPTY
        if missing and _has_images(checkpoint):
            print(f"{what}: computing {', '.join(missing)}")
            made = self._compute(checkpoint, plan, missing)
            found |= {s.label: s for s in made.spectra}
            held.append((self.root, made))
        elif missing:
            print(f"{what}: {', '.join(missing)} {why}; SPECTRA_DATA names no images for it")
        base = held[0][1] if held else _blank(plan, checkpoint.described(), (), why)
        rest = _blank(plan, base.checkpoint, missing, why, base.data.get("counts"))
        found = {s.label: s for s in rest.spectra} | found
        return replace(base, spectra=tuple(found[label] for label in wanted))

    def trajectory(self, *steps: str, protocol: str = "exact", **changes: Any) -> Trajectory:
        """Give the spectra of runs from epoch to epoch: stored, or of short runs trained here.

        Args:
            steps: that the runs were trained with.
            protocol: ``exact`` or ``released``.
            changes: other fields of the `Plan`, where they are computed.

        Returns:
            A run a step; one without results has no epochs, and its name says so.
        """
        means = BUDGETS[self.name]
        if self.name == "quick":
            plan = replace(means.plan, overall=False, classes=(8,), probes=1)
            changes = {**(means.released if protocol == "released" else {}), **changes}
            plan = replace(plan, **changes)
            folder = self.root / "reports" / "notebooks" / f"trajectory-{_digest(plan)}"
            runs = [self._short_run(step) for step in steps]
            print(f"following {', '.join(run.name for run in runs)}, {protocol}")
            with closing(Bar()) as bar:
                return follow(runs, plan, folder=folder, resume=True, progress=bar)
        return Trajectory(tuple(self._stored_run(step, protocol) for step in steps))

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
        for path in sorted((self.root / "reports").rglob("esd.json")):
            held = Analysis.load(path)
            if held.checkpoint.get("sha256") in weights and held.data.get("counts"):
                return list(held.data["counts"])
        return None

    def _compute(self, checkpoint: Checkpoint, plan: Plan, labels: Sequence[str]) -> Analysis:
        asked = replace(
            plan,
            overall="overall" in labels,
            classes=tuple(c for c in plan.classes if f"class {c}" in labels),
        )
        stem = f"{Path(checkpoint.file).stem}-{_digest(plan)}-{checkpoint.sha256[:8]}"
        folder = self.root / "reports" / "notebooks" / stem
        train_set, test_set = (open_data(checkpoint.data, split=s) for s in ("train", "test"))
        with closing(Bar()) as bar:
            return analyze(
                checkpoint,
                asked,
                train=train_set,
                test=test_set,
                folder=folder,
                resume=True,
                progress=bar,
            )

    def _short_run(self, step: str) -> Path:
        recipe = find_recipe(f"{BUDGETS[self.name].runs}-{step}")
        recipe = replace(recipe, epochs=40)
        folder = self.root / "runs" / "notebooks" / f"digits-{step}"
        if not (folder / "last.pt").exists():
            print(f"training {recipe.name} for {recipe.epochs} epochs")
            samples, test = (open_data(recipe.data_spec, split=s) for s in ("train", "test"))
            train(recipe, samples, test, folder=folder, save_at=_KEPT, overwrite=True, quiet=True)
        return folder

    def _stored_run(self, step: str, protocol: str) -> RunTrajectory:
        """Find the run that ended at a checkpoint, analysed by a protocol."""
        name = f"{BUDGETS[self.name].runs}-{step}"
        for path in sorted((self.root / "reports").rglob("trajectory.json")):
            for run in Trajectory.load(path.parent).runs if self._file(step).exists() else ():
                last = run.analyses[-1] if run.analyses else None
                if (
                    last is not None
                    and last.checkpoint.get("sha256") == self.checkpoint(step).sha256
                    and last.settings.get("protocol") == protocol
                ):
                    place = path.parent.relative_to(self.root).as_posix()
                    print(f"{name}, {protocol}: stored in {place}")
                    return run
        print(f"{name}, {protocol}: {_EMPTY}")
        return RunTrajectory(f"{name}: {_EMPTY}", ())


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True)
class Table:
    """A table as a notebook shows it."""

    text: str = field(repr=False)

    def _repr_markdown_(self) -> str:
        return self.text


def table(analysis: Analysis) -> Table:
    """Set the table of an analysis, with the footer that explains its marks."""
    return Table(to_markdown(analysis))


def beside(**analyses: Analysis) -> Analysis:
    """Put analyses together, to be drawn over the same axes; each label gets its analysis's name.

    Args:
        analyses: by what is said of them, as ``exact`` and ``released``.

    Returns:
        All spectra, one analysis after the other. Settings that differ hold all their values.
    """
    parts = list(analyses.values())
    spectra = [
        replace(spectrum, label=f"{spectrum.label}, {name}")
        for name, analysis in analyses.items()
        for spectrum in analysis.spectra
    ]

    def joined(section: str) -> dict[str, Any]:
        keys = dict.fromkeys(key for part in parts for key in getattr(part, section))
        together: dict[str, Any] = {}
        for key in keys:
            values = [getattr(p, section)[key] for p in parts if key in getattr(p, section)]
            different = [v for i, v in enumerate(values) if v not in values[:i]]
            together[key] = (
                different[0] if len(different) == 1 else " and ".join(map(str, different))
            )
        return together

    return replace(
        parts[0],
        checkpoint=joined("checkpoint"),
        settings=joined("settings") | {"kernel": "default"},
        spectra=tuple(spectra),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _fits(path: Path, checkpoint: Checkpoint, plan: Plan) -> bool:
    """Tell whether a result file is of these weights, this draw and these settings."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        settings, data = document["settings"], document["data"]
        same = document["checkpoint"]["sha256"] == checkpoint.sha256
    except (OSError, ValueError, KeyError, TypeError):  # of something else, or half-written
        return False
    asked = asdict(plan)
    network = settings.get("network")
    return bool(
        same
        and checkpoint.draw_sha256 in (None, data.get("draw_sha256"))
        and network in (None, checkpoint.model_spec.to_dict())
        and all(settings.get(key) == asked[key] for key in _DECIDING)
    )


def _has_images(checkpoint: Checkpoint) -> bool:
    """Tell whether the data are at hand; nothing is downloaded because a notebook was opened."""
    data = checkpoint.data
    return data is not None and (data.name == "digits" or bool(os.environ.get("SPECTRA_DATA")))


def _blank(
    plan: Plan,
    checkpoint: Mapping[str, Any],
    labels: Iterable[str],
    why: str,
    counts: Sequence[int] | None = None,
) -> Analysis:
    """Make an analysis of empty places, each with the reason."""
    spectra = []
    for label in labels:
        c = None if label == "overall" else int(label.removeprefix("class "))
        total = sum(counts) if counts else 0
        count = 0 if not counts else total if c is None else counts[c]
        spectra.append(
            ClassSpectrum(
                label=label,
                name="",
                classes=() if c is None else (c,),
                count=count,
                share=count / total if total else 0.0,
                error=why,
                protocol=plan.protocol,
            )
        )
    return Analysis(
        checkpoint=checkpoint,
        data={"split": plan.split},
        settings=asdict(plan),
        device="",
        versions={},
        spectra=tuple(spectra),
    )


def _digest(plan: Plan) -> str:
    asked = asdict(plan)
    text = json.dumps([asked[key] for key in _DECIDING])
    return f"{plan.protocol}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
