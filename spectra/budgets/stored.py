"""Which stored results fit what a notebook asks for, and what stands where none does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spectra import Analysis, Checkpoint, ClassSpectrum, Plan
from spectra.landscape import Landscape, Survey

_DECIDING = (  # settings that numbers depend on; speed and memory do not count
    *("split", "loss", "protocol", "augment", "steps", "until_converged", "probes", "seed"),
    *("max_samples", "dtype", "tf32"),
)


def deciding(plan: Plan, survey: Survey | None = None) -> dict[str, Any]:
    """List the settings that numbers depend on, as a result file holds them."""
    asked = asdict(plan)
    chosen = {key: asked[key] for key in _DECIDING}
    if survey is not None:  # surfaces and minibatches are shown where they were looked at
        chosen |= {name: getattr(survey, name) for name in ("points", "nearest", "farthest")}
    return chosen


def fits(path: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> bool:
    """Tell whether a result file is of these weights, this draw and these settings.

    More probes than asked for tell the same, better.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        held, data = document["settings"], document["data"]
        same = document["checkpoint"]["sha256"] == checkpoint.sha256
    except (OSError, ValueError, KeyError, TypeError):  # of something else, or half-written
        return False
    network = held.get("network")
    return bool(
        same
        and checkpoint.draw_sha256 in (None, data.get("draw_sha256"))
        and network in (None, checkpoint.model_spec.to_dict())
        and all(held.get(key) == value for key, value in settings.items() if key != "probes")
        and held.get("probes", 1) >= settings["probes"]
    )


def same_samples(spectrum: ClassSpectrum, analysis: Analysis, most: int | None) -> bool:
    """Tell whether a finished spectrum is over the samples that `max_samples` leaves of its class.

    A class that is no larger is whole under any limit, and the larger ones are drawn by the seed.
    """
    counts = analysis.data.get("counts") or ()
    whole = sum(counts[c] for c in spectrum.classes or range(len(counts)))
    wanted = whole if most is None else min(whole, most)
    return spectrum.complete and spectrum.error is None and spectrum.count == wanted


def digest(settings: Mapping[str, Any]) -> str:
    """Make the end of a folder's name from the settings that decide."""
    text = json.dumps(list(settings.values()))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def has_images(checkpoint: Checkpoint) -> bool:
    """Tell whether the data are at hand; nothing is downloaded because a notebook was opened."""
    data = checkpoint.data
    return data is not None and (data.name == "digits" or bool(os.environ.get("SPECTRA_DATA")))


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
