"""Describe a run, and take over what an earlier one of the same description has found."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

import spectra
from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.devices import device_name
from spectra.errors import SpectraError
from spectra.files import plain
from spectra.plan import BEFORE, Plan
from spectra.results import Analysis

_SAMPLES = {  # what makes the inputs of the network
    "draw_sha256": "draw",
    "pixels_sha256": "pixels",
    "mean": "mean",
    "std": "std",
    "augmentation": "augmentation",
}
# What is asked for may grow from run to run; how it is computed may not change, but for the number
# of processes, which changes nothing but the order of the sums.
_MAY_CHANGE = ("overall", "per_class", "classes", "groups", "processes")
_NEW = ("loss_function",)  # what older files do not name, though their checkpoint fixed it


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
    settings = asdict(plan) | dict(chosen or {})
    settings |= {
        "augment": f"frozen:{n}" if (n := plan.frozen_copies) else plan.augment,
        "classes": list(plan.classes),
        "device": device.type,
        "processes": processes,
        # The same weights are another function in another network.
        "network": checkpoint.model_spec.to_dict(),
        "loss_function": plain(checkpoint.criterion(plan.loss).to_dict()),
    }
    del settings["keep"]  # changes no number
    spec = samples.spec
    return Analysis(
        checkpoint=checkpoint.described(),
        data={
            "name": spec.name if spec is not None else "own tensors",
            "spec": spec.to_dict() if spec is not None else None,
            "split": plan.split,
            "draw_sha256": samples.draw_sha256,
            "pixels_sha256": samples.pixels_sha256,
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
            "torch": str(torch.__version__),
            "numpy": np.__version__,
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
    pairs = [
        ("checkpoint", mine.checkpoint["sha256"], held.checkpoint.get("sha256")),
        *(
            (name, mine.data[key], held.data.get(key, mine.data[key]))  # older files name few
            for key, name in _SAMPLES.items()
        ),
        *(
            (key, value, held.settings.get(key, value if key in _NEW else BEFORE.get(key)))
            for key, value in mine.settings.items()
            if key not in _MAY_CHANGE
        ),
    ]
    changed = [f"{key} ({theirs!r}, now {ours!r})" for key, ours, theirs in pairs if ours != theirs]
    if changed:
        raise SpectraError(
            f"got results of other settings to resume: {', '.join(changed)}; expected the "
            "same, for one table must not mix two experiments; choose another --out, or leave "
            "out --resume to start anew"
        )
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
    return replace(mine, spectra=held.spectra, notes=tuple(dict.fromkeys(notes)))
