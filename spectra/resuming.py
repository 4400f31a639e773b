"""Describe a run, and take over what an earlier one of the same description has found."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import scipy
import torch

import spectra
from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.devices import device_name
from spectra.errors import SpectraError
from spectra.files import plain
from spectra.plan import Plan
from spectra.results import Analysis

_SAMPLES = {  # what makes the inputs of the network
    "draw_sha256": "draw",
    "pixels_sha256": "pixels",
    "mean": "mean",
    "std": "std",
    "augmentation": "augmentation",
}
_UNREAD = {"files_sha256": "image files", "some_pixels_sha256": "pixels of 64 images"}
# What is asked for may grow from run to run; how it is computed may not change, but for the number
# of processes, which changes nothing but the order of the sums.
_MAY_CHANGE = ("overall", "per_class", "classes", "groups", "processes")
# What older files do not name, though it was the same for them, or their checkpoint fixed it.
_NEW = ("loss_function", "network_mode")
_BEFORE = {"basis": "device"}  # what results of earlier versions do not say of themselves
_LEFT_OPEN = ("product", "batch_size", "basis")  # "auto" takes what an earlier run has chosen


def settled(plan: Plan, settings: Mapping[str, Any]) -> Plan:
    """Take what was chosen by an earlier run wherever a plan leaves it open.

    Memory and speed differ from run to run; the numbers of one result file must not.

    Args:
        plan: of this run.
        settings: of the earlier one's result file.

    Raises:
        SpectraError: if the two ask for different things.
    """
    mine, held = _asked(plan), {**_BEFORE, **settings}
    open_ = [name for name in _LEFT_OPEN if mine[name] == "auto"]
    _require_same(
        (key, value, held[key])
        for key, value in mine.items()
        if key in held and key not in (*open_, *_MAY_CHANGE, "device")
    )
    return replace(plan, **{name: held[name] for name in open_ if name in held})


class Described(Protocol):
    """What tells one experiment from another, of results of any kind."""

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        """Whose results they are."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Of which samples."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """How they were computed."""


def require_replaceable(
    mine: Described,
    held: Described,
    labels: Collection[str],
    *,
    kept: Collection[str],
    finished: Collection[str],
    rest: str = "",
) -> None:
    """Refuse to replace what cost hours and is not made again: other results, or half of these.

    Args:
        mine: this run's description, open settings as "auto".
        held: that of what lies in the folder.
        labels: of all parts that this run asks for.
        kept: of those that the folder holds.
        finished: of those of them that are whole.
        rest: what else to do, for the message.

    Raises:
        SpectraError: if those are results of another question, of more parts, or unfinished ones.
    """
    if not kept:  # failures alone
        return
    free = ["device", *(name for name in _LEFT_OPEN if mine.settings[name] == "auto")]
    what = _changed(_pairs(mine, held, free))
    if not what and (more := [label for label in kept if label not in labels]):
        what = [f"{len(more)} more, as {more[0]}"]
    if not what and set(finished) != set(labels):
        what = ["unfinished ones"]
    if what:
        raise SpectraError(
            f"got a folder that holds other results than this run makes ({', '.join(what)}), "
            "expected an empty one, or results of the same question: nothing was replaced; choose "
            f"another --out{rest}, or replace them with --overwrite"
        )


def unreadable(what: str, error: SpectraError) -> SpectraError:
    """Refuse to replace what cannot be read: it may be whole, and another program's or version's.

    Args:
        what: lies there, and where.
        error: why it cannot be read.
    """
    return SpectraError(
        f"got {what} that cannot be read ({error}), expected an empty folder, or results of the "
        "same question: nothing was replaced; choose another --out, or replace them with "
        "--overwrite"
    )


def describe(
    checkpoint: Checkpoint,
    plan: Plan,
    samples: Samples,
    train: Samples | None,
    device: torch.device,
    *,
    chosen: Mapping[str, Any] | None = None,
    processes: int = 1,
    notes: tuple[str, ...] = (),
) -> Analysis:
    """Describe a run, without a spectrum yet.

    Args:
        checkpoint: whose spectra they are.
        plan: what is asked for.
        samples: of the split that is analysed.
        train: training samples, whose counts make the groups.
        device: where the products run.
        chosen: what became of the settings that the plan leaves open.
        processes: that share the samples.
        notes: lines for the reader.
    """
    settings = _asked(plan) | dict(chosen or {})
    settings |= {
        "device": device.type,
        "processes": processes,
        # The same weights are another function in another network.
        "network": checkpoint.model_spec.to_dict(),
        "network_mode": "evaluation",  # batch norm by its running statistics, no dropout
        "loss_function": plain(checkpoint.criterion(plan.loss).to_dict()),
    }
    spec = samples.spec
    return Analysis(
        checkpoint=checkpoint.described(),
        data={
            "name": spec.name if spec is not None else "own tensors",
            "spec": spec.to_dict() if spec is not None else None,
            "split": plan.split,
            "draw_sha256": samples.draw_sha256,
            "pixels_sha256": samples.pixels_sha256,
            "files_sha256": samples.files_sha256,
            "some_pixels_sha256": samples.some_pixels_sha256,
            "mean": None if samples.mean is None else list(samples.mean),
            "std": None if samples.std is None else list(samples.std),
            "augmentation": samples.augmentation,
            "counts": list(samples.counts),
            "groups": None if train is None else {k: list(v) for k, v in train.groups().items()},
        },
        settings=settings,
        device=device_name(device),
        versions={
            "spectra": spectra.__version__,
            "torch": str(torch.__version__),  # with its CUDA, as 2.11.0+cu130
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        notes=notes,
    )


def take_over(mine: Analysis, held: Analysis) -> Analysis:
    """Take over results of the same checkpoint, draw and settings; else refuse.

    Args:
        mine: this run's description.
        held: what an earlier run has left.

    Raises:
        SpectraError: if they are not of one experiment.
    """
    pairs = [*_pairs(mine, held)]
    groups = held.data.get("groups") or {}
    if set(groups) & set(held.labels):  # which classes they hold the training set has decided
        pairs.append(("groups", mine.data["groups"], groups))
    _require_same(pairs)
    notes = mine.notes + held.notes
    before, now = ({"device": a.device, **a.versions} for a in (held, mine))
    changes = {key: value for key, value in before.items() if value != now.get(key)}
    if changes and held.spectra:
        told = ", ".join(f"{key} {value}" for key, value in changes.items())
        notes += (f"some results were computed with {told}",)
    if mine.settings["processes"] != (others := held.settings.get("processes", 1)):
        which = f"some results were computed by {others} process(es)"
        moves = mine.settings["augment"] == "resample"  # each process draws for itself
        notes += (f"{which}: {'with other draws' if moves else 'equal to rounding'}",)
    data: dict[str, Any] = dict(mine.data)
    for key in ("groups", "pixels_sha256", "files_sha256"):  # what this run has not looked at
        if data[key] is None:
            data[key] = held.data.get(key)
    if held.spectra and held.data.get("pixels_sha256", "") is None:  # or the earlier one had not
        data["pixels_sha256"] = None
    return replace(mine, data=data, spectra=held.spectra, notes=tuple(dict.fromkeys(notes)))


def _pairs(
    mine: Described, held: Described, free: Collection[str] = ()
) -> Iterator[tuple[str, object, object]]:
    """List what makes an experiment, here and there, but for settings that are free."""
    one, other = mine.checkpoint, held.checkpoint
    if one["sha256"] != other.get("sha256"):
        here, there = (f"{c.get('file')}, {str(c.get('sha256'))[:8]}" for c in (one, other))
        yield "checkpoint", here, there
    for key, name in _SAMPLES.items():  # older files name few
        ours, theirs = mine.data[key], held.data.get(key, mine.data[key])
        if key == "pixels_sha256" and key in held.data and None in (ours, theirs):
            for known, called in _UNREAD.items():  # not all of them were read
                yield called, mine.data[known], held.data.get(known)
        else:
            yield name, ours, theirs
    for key, value in mine.settings.items():
        if key not in (*_MAY_CHANGE, *free):
            yield key, value, held.settings.get(key, value if key in _NEW else _BEFORE.get(key))


def _asked(plan: Plan) -> dict[str, Any]:
    """Give the settings that a plan names, as a result file holds them."""
    settings = asdict(plan)
    del settings["keep"]  # changes no number
    copies = plan.frozen_copies
    augment = f"frozen:{copies}" if copies else plan.augment
    return settings | {"augment": augment, "classes": list(plan.classes)}


def _require_same(pairs: Iterable[tuple[str, object, object]]) -> None:
    if changed := _changed(pairs):
        raise SpectraError(
            f"got results of other settings to resume: {', '.join(changed)}; expected the "
            "same, for one table must not mix two experiments; choose another --out, or start anew "
            "with --overwrite in the place of --resume"
        )


def _changed(pairs: Iterable[tuple[str, object, object]]) -> list[str]:
    found = []
    for key, ours, theirs in pairs:
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            names = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
            ours, theirs = ({name: m.get(name) for name in names} for m in (ours, theirs))
        if ours != theirs:
            found.append(f"{key} ({theirs!r}, now {ours!r})")
    return found
