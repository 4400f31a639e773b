"""Which stored results fit what a notebook asks for, and what stands where none does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from spectra import Analysis, Checkpoint, ClassSpectrum, Plan, Samples, Trajectory, open_data
from spectra.data import usually_normalised
from spectra.errors import SpectraError
from spectra.landscape import Landscape, Survey
from spectra.trajectories import RunTrajectory

Held = TypeVar("Held")
_DECIDING = (  # settings that numbers depend on; speed and memory do not count
    *("split", "loss", "protocol", "augment", "steps", "until_converged", "probes", "seed"),
    *("max_samples", "dtype", "tf32"),
)


def deciding(plan: Plan, survey: Survey | None = None) -> dict[str, Any]:
    """List the settings that numbers depend on, as a result file holds them."""
    asked = asdict(plan)
    chosen = {key: asked[key] for key in _DECIDING}
    if plan.parameters is not None:
        chosen["parameters"] = plan.parameters
    if plan.augment == "resample":
        chosen["batch_size"] = plan.batches  # the draws follow the batches
    if survey is not None:  # surfaces and minibatches are shown where they were looked at
        chosen |= {name: getattr(survey, name) for name in ("points", "nearest", "farthest")}
    return chosen


def fits(path: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> bool:
    """Tell whether a result file is of these weights, this draw and these settings."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        about = {key: dict(document[key]) for key in ("checkpoint", "data", "settings")}
    except (OSError, ValueError, KeyError, TypeError):  # of something else, or half-written
        return False
    return _agree(about["checkpoint"], about["data"], about["settings"], checkpoint, settings)


def whole(load: Callable[[Path], Held], paths: Iterable[Path]) -> Iterator[tuple[Path, Held]]:
    """Load the folders of some files; one that is damaged gets a line instead.

    Args:
        load: reads a folder.
        paths: a file in each.

    Yields:
        A folder, and what it holds.
    """
    for path in paths:
        try:
            held = load(path.parent)
        except SpectraError as error:
            print(f"left out: {error}")
            continue
        yield path.parent, held


def stored_run(
    reports: Path, checkpoint: Checkpoint, plan: Plan, loose: Collection[str]
) -> tuple[Path, RunTrajectory] | None:
    """Find the trajectory of a run that ended at these weights, that with most classes.

    Args:
        reports: folder to look through.
        checkpoint: the run's last one.
        plan: whose classes and settings it must have.
        loose: settings that may be others.

    Returns:
        Its folder, and the run.
    """
    settings = {key: value for key, value in deciding(plan).items() if key not in loose}
    wanted = {f"class {c}" for c in plan.classes}
    found = [
        (folder, run)
        for folder, held in whole(Trajectory.load, sorted(reports.rglob("trajectory.json")))
        for run in held.runs
        if run.analyses and wanted <= set(run.labels)
        for last in run.analyses[-1:]
        if _agree(last.checkpoint, last.data, last.settings, checkpoint, settings)
    ]
    return max(found, key=lambda pair: len(pair[1].labels), default=None)


def _agree(
    weights: Mapping[str, Any],
    data: Mapping[str, Any],
    held: Mapping[str, Any],
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
) -> bool:
    """Compare what is held with what is wanted; of a matrix more probes tell the same, better."""
    network = held.get("network")
    probes, wanted = held.get("probes", 1), settings["probes"]
    return bool(
        weights.get("sha256") == checkpoint.sha256
        and checkpoint.draw_sha256 in (None, data.get("draw_sha256"))
        and (checkpoint.data is None or usually_normalised(checkpoint.data.name, data))
        and network in (None, checkpoint.model_spec.to_dict())
        and held.get("parameters") == settings.get("parameters")
        and all(held.get(key) == value for key, value in settings.items() if key != "probes")
        and (probes == wanted if settings.get("augment") == "resample" else probes >= wanted)
    )


def same_samples(spectrum: ClassSpectrum, analysis: Analysis, most: int | None) -> bool:
    """Tell whether a finished spectrum is over the samples that `max_samples` leaves of its class.

    A class that is no larger is whole under any limit, and the larger ones are drawn by the seed.
    """
    counts = analysis.data.get("counts") or ()
    whole = sum(counts[c] for c in spectrum.classes or range(len(counts)))
    wanted = whole if most is None else min(whole, most)
    return spectrum.finished and spectrum.count == wanted


def digest(settings: Mapping[str, Any]) -> str:
    """Make the end of a folder's name from the settings that decide."""
    text = json.dumps(list(settings.values()))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def images_of(checkpoint: Checkpoint) -> tuple[Samples, Samples] | None:
    """Open training and test samples that are at hand; no notebook downloads any."""
    if checkpoint.data is None:
        return None
    try:
        train, test = (
            open_data(checkpoint.data, split=split, download=False) for split in ("train", "test")
        )
    except SpectraError:
        return None
    return train, test


def no_landscape(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> Landscape:
    """Make a landscape in which nothing has been seen yet."""
    return Landscape(checkpoint=checkpoint, data={}, settings=settings, device="", versions={})


def blank(
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
        whole = 0 if not counts else total if c is None else counts[c]
        spectra.append(
            ClassSpectrum(
                label=label,
                name="",
                classes=() if c is None else (c,),
                count=min(whole, plan.max_samples or whole),
                share=whole / total if total else 0.0,
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
