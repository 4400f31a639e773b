"""Analyse the checkpoints of runs, in the order of their epochs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from spectra.analysis import analyze, spare_others
from spectra.checkpoint import Checkpoint, load_checkpoint
from spectra.data import DataSpec, Samples, open_data
from spectra.errors import SpectraError, StorageError
from spectra.files import Keeping, drawn_pages
from spectra.plan import Plan
from spectra.processes import LostProcess, Processes
from spectra.progress import Progress, stage
from spectra.results import Analysis
from spectra.resuming import settled

from .kept import Kept, kept_in, opened_again, run_name, without_network
from .published import curve_for
from .results import RunTrajectory, Trajectory

Splits = tuple[Samples | None, Samples | None]  # training, test


def named_samples(checkpoint: Checkpoint) -> Splits:
    """Open the training and the test samples of the data that a checkpoint names."""
    if checkpoint.data is None:
        raise SpectraError(
            f"{checkpoint.file} does not name its data, expected a checkpoint that does, or a "
            "function that opens them"
        )
    return open_data(checkpoint.data, split="train"), open_data(checkpoint.data, split="test")


def follow(
    run_dirs: Sequence[str | Path],
    plan: Plan,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    accuracies: bool = True,
    published: Sequence[str] = ("auto",),
    load: Callable[[Path], Checkpoint] = load_checkpoint,
    samples: Callable[[Checkpoint], Splits] = named_samples,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> Trajectory:
    """Analyse every checkpoint that runs have kept, each run's in the order of their epochs.

    Args:
        run_dirs: folders of runs; all are looked through before the first product.
        plan: what to compute at every epoch.
        folder: where the results go, saved as they come; nothing is written when None.
        resume: take over what `folder` holds of the same checkpoints and settings; of other runs
            and of epochs that are kept no longer, too.
        overwrite: replace whatever it holds, as in `analyze`.
        accuracies: as in `analyze`.
        published: which published values stand beside each run, as in `published.curve_for`; one
            for all, or one a run.
        load: opens a checkpoint file.
        samples: opens training and test samples; asked once for each data set, with a checkpoint
            whose network is not held.
        progress: is told of every product; begins anew with every epoch.
        processes: share the samples of every epoch, as in `analyze`; each opens the same runs.

    Returns:
        The trajectory; without spectra where another process leads.

    Raises:
        SpectraError: runs, data or options that do not fit, or results of other settings.
    """
    if plan.split == "test":
        published = ("none",)  # theirs are of training samples
    leads = processes is None or processes.leads
    done: list[RunTrajectory] = []
    place = None if folder is None else Path(folder)
    gathered = _gather(run_dirs, published, load, samples)
    gone: dict[str, RunTrajectory] = {}
    if place is not None and leads and not overwrite:
        made = {(run.name, known.epoch) for run, kept, _ in gathered for _, known in kept}
        more = [one for one in _listed(place, resume=resume) if one[1:] not in made]
        if resume:
            gone = _taken_over(place, more, plan)
        elif more:
            _refuse(more)
        for run, kept, (train, test) in [] if resume else gathered:
            for _, checkpoint in kept:  # all of them before the first product
                held = place / run.name / f"epoch-{checkpoint.epoch}"
                spare_others(held, checkpoint, plan, train, test)
    stale = [] if place is None or resume or not leads else _made_before(place)
    with Keeping[Trajectory](lambda whole: leads and place and whole.save(place)) as keep:
        names = {run.name for run, _, _ in gathered}
        done += [run for name, run in gone.items() if name not in names]
        for run, kept, (train, test) in gathered:
            for k, (path, known) in enumerate(kept, start=1):
                epoch = f"epoch-{known.epoch}"
                where = f"{run.name} {epoch} ({k} of {len(kept)})"
                try:
                    analysis = analyze(
                        opened_again(path, known, load),
                        plan,
                        train=train,
                        test=test,
                        folder=place and place / run.name / epoch,
                        resume=resume,
                        overwrite=True,  # looked at above
                        accuracies=accuracies,
                        progress=_Placed(progress, where, stale),
                        processes=processes,
                    )
                except (StorageError, LostProcess):
                    raise
                except SpectraError as error:
                    raise SpectraError(f"{run.name}, {epoch}: {error}") from error
                run = replace(run, analyses=(*run.analyses, analysis))
                keep(Trajectory((*done, _joined(run, gone))))
            done.append(_joined(run, gone))
    return Trajectory(tuple(done))


def _listed(place: Path, *, resume: bool) -> list[tuple[dict[str, Any], str, int]]:
    """List what the trajectory in a folder holds: of each run what is known, its name, an epoch."""
    index = place / "trajectory.json"
    if not index.exists():
        return []
    try:
        runs = json.loads(index.read_text(encoding="utf-8"))["runs"]
        return [(run, run["name"], int(epoch)) for run in runs for epoch in run["epochs"]]
    except (ValueError, KeyError, TypeError) as error:
        if resume:  # made again from the epochs' own results
            return []
        raise SpectraError(
            f"{index} is truncated or no trajectory ({error}), expected an empty folder, or the "
            "trajectory of the same runs: nothing was replaced; choose another --out, go on with "
            "--resume, or replace it with --overwrite"
        ) from error


def _refuse(more: Sequence[tuple[dict[str, Any], str, int]]) -> NoReturn:
    """Say that table and figures would lose other runs, or epochs that are kept no longer."""
    _, name, epoch = more[0]
    raise SpectraError(
        f"got a folder with the trajectory of {len(more)} epochs more than this command makes (as "
        f"{name}, epoch {epoch}), expected an empty one, or that of the same runs: nothing was "
        "replaced; add to it with --resume, choose another --out, or replace it with --overwrite"
    )


def _taken_over(
    place: Path, more: Sequence[tuple[dict[str, Any], str, int]], plan: Plan
) -> dict[str, RunTrajectory]:
    """Load epochs that a resumed trajectory holds and whose checkpoints are not here any more.

    Raises:
        SpectraError: they are results of other settings.
    """
    found: dict[str, RunTrajectory] = {}
    for about, name, epoch in more:
        try:
            analysis = Analysis.load(place / name / f"epoch-{epoch}")
        except SpectraError:  # removed, or damaged: there is nothing to take over
            continue
        settled(plan, analysis.settings)
        empty = RunTrajectory(name, (), about.get("recipe"), about.get("published"))
        run = found.get(name, empty)
        found[name] = replace(run, analyses=(*run.analyses, analysis))
    return found


def _joined(run: RunTrajectory, gone: Mapping[str, RunTrajectory]) -> RunTrajectory:
    """Add what was taken over, in the order of the epochs."""
    more = gone[run.name].analyses if run.name in gone else ()
    ordered = sorted((*run.analyses, *more), key=lambda a: int(a.checkpoint["epoch"]))
    return replace(run, analyses=tuple(ordered))


def _gather(
    run_dirs: Sequence[str | Path],
    published: Sequence[str],
    load: Callable[[Path], Checkpoint],
    samples: Callable[[Checkpoint], Splits],
) -> list[tuple[RunTrajectory, list[Kept], Splits]]:
    """Open all that is to be analysed, so that nothing unfit is found after hours of products."""
    names = [run_name(folder) for folder in run_dirs]
    if not names or len(set(names)) < len(names):
        raise SpectraError(
            f"got the runs {', '.join(names) or '(none)'}, expected one or more of different "
            "names: the results of one would replace the other's; rename a folder, or give each "
            "its own --out"
        )
    choices = list(published) * len(names) if len(published) == 1 else list(published)
    if len(choices) != len(names):
        raise SpectraError(
            f"got {len(choices)} choices of published values for {len(names)} run(s), expected "
            "one for all, or one for each"
        )
    kept = [kept_in(Path(folder), load, without_network) for folder in run_dirs]
    opened: dict[DataSpec | None, Splits] = {}
    gathered = []
    for name, files, choice in zip(names, kept, choices, strict=True):
        _, first = files[0]
        if first.data not in opened:
            opened[first.data] = samples(first)
        train, _ = opened[first.data]
        spec = first.data if train is None else train.spec
        run = RunTrajectory(name, (), first.recipe, curve_for(choice, spec, first.recipe, name))
        gathered.append((run, files, opened[first.data]))
    return gathered


@dataclass(frozen=True)
class _Placed:
    """Progress of one epoch, which says where in the run it is."""

    progress: Progress | None
    where: str
    stale: list[Path]  # tables of results that the first products are about to replace

    def begin(self, products: int, work: int) -> None:
        while self.stale:
            self.stale.pop().unlink(missing_ok=True)
        if self.progress is not None:
            self.progress.begin(products, work)

    def tick(self, label: str, products: int, work: int) -> None:
        if self.progress is not None:
            self.progress.tick(f"{self.where} {label}", products, work)

    def stage(self, what: str) -> AbstractContextManager[object]:
        return stage(self.progress, f"{self.where}: {what}")


def _made_before(folder: Path) -> list[Path]:
    tables = [path for kind in ("json", "csv") for path in folder.glob(f"trajectory.{kind}")]
    return [*tables, *drawn_pages(folder, "trajectory")]
