"""The two files as they lie on disk, looked through before anything is believed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectra.errors import SpectraError

SCHEMA = 1
_NUMBERS = (
    *("count", "share", "loss", "train_accuracy", "test_accuracy", "lambda_min", "lambda_max"),
    *("residual_min", "residual_max", "nonconvexity", "negative_mass", "negative_mass_threshold"),
    *("trace", "trace_stderr", "steps", "probes"),
)
_REQUIRED = ("label", "name", *_NUMBERS, "converged", "doctor", "certificate")


def read_json(path: Path) -> dict[str, Any]:
    """Read ``esd.json``; raise SpectraError, with what is wrong, for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise SpectraError(
            f"no results can be read at {path} ({error.strerror or error}); expected the esd.json "
            "of an analysis, or its folder; make one with `python -m spectra.esd CKPT`"
        ) from error
    except ValueError as error:
        raise SpectraError(
            f"{path} is truncated or no JSON ({error}); expected an esd.json, and a guess at the "
            "rest would be a wrong result; run the analysis again"
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        got = "no result of spectra" if schema is None else f"a result with schema {schema!r}"
        raise SpectraError(
            f"{path} is {got}, expected schema {SCHEMA}: its numbers would be misread; "
            "run the analysis again with this version"
        )
    wrong = _faults(document)
    if wrong:
        raise SpectraError(
            f"{path} does not keep to schema {SCHEMA}: {', '.join(wrong[:5])}"
            f"{', ...' * (len(wrong) > 5)}; it was edited or cut; run the analysis again"
        )
    return dict(document)


def _faults(document: Mapping[str, Any]) -> list[str]:
    keys = {"checkpoint": dict, "data": dict, "settings": dict, "device": str, "versions": dict}
    faults = [
        f"{key} is no {kind.__name__}"
        for key, kind in {**keys, "spectra": list}.items()
        if not isinstance(document.get(key), kind)
    ]
    entries = () if faults else document["spectra"]
    for i, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        faults += [f"spectra[{i}].{key} is missing" for key in _REQUIRED if key not in entry]
        for key in _NUMBERS:
            value, known = entry.get(key), key in ("count", "share", "steps", "probes")
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float | None)
                or (known and key in entry and value is None)
            ):
                faults.append(f"spectra[{i}].{key} = {value!r} is no number")
    return faults


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read ``esd.npz``; raise SpectraError if it is missing or broken."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpectraError(
            f"{path} cannot be read ({reason}); expected the nodes and weights that lie beside "
            "esd.json, without which no density can be drawn; run the analysis again"
        ) from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
