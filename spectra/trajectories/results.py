"""What is known of runs at every epoch that they have kept; written, and read back.

Results lie as they do for one checkpoint, one folder an epoch:

    <run>/epoch-<e>/esd.json, esd.npz   an `Analysis` each, see `spectra.results`
    trajectory.csv                      one row a run, epoch, and class or group
    trajectory.json                     the runs, their epochs and recipes: what `load` reads
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectra.errors import SpectraError
from spectra.files import replacing
from spectra.krylov import Estimate
from spectra.results import Analysis, ClassSpectrum

from .published import EPOCHS, NONCONVEXITY, reweighted_after

SCHEMA = 1


@dataclass(frozen=True)
class RunTrajectory:
    """The spectra of one run, from epoch to epoch."""

    name: str  # of its folder
    analyses: tuple[Analysis, ...]  # one a kept epoch, ascending
    recipe: Mapping[str, Any] | None = None  # how it was trained
    published: str | None = None  # key of the published values that may stand beside it

    @property
    def epochs(self) -> tuple[int, ...]:
        """List the epochs, ascending."""
        return tuple(int(analysis.checkpoint["epoch"]) for analysis in self.analyses)

    @property
    def labels(self) -> tuple[str, ...]:
        """List the labels of all epochs, in order."""
        return tuple(dict.fromkeys(label for a in self.analyses for label in a.labels))

    @property
    def reweighted_after(self) -> int | None:
        """Give the last epoch before a deferred re-weighting, None where there is none."""
        return reweighted_after(self.recipe)

    def of(self, label: str) -> list[tuple[int, ClassSpectrum]]:
        """List epoch and spectrum of a class, a group or the whole, epochs ascending."""
        found = zip(self.epochs, (a.get(label) for a in self.analyses), strict=True)
        return [(epoch, spectrum) for epoch, spectrum in found if spectrum is not None]

    def published_of(self, label: str) -> dict[int, float]:
        """Give the published |λmin|/λmax by epoch; none where they are not of this run."""
        values = NONCONVEXITY.get(self.published or "", {})
        found = {f"class {c}": curve for c, curve in values.items()}.get(label, ())
        return dict(zip(EPOCHS, found, strict=False))


@dataclass(frozen=True)
class Trajectory:
    """The spectra of several runs, from epoch to epoch."""

    runs: tuple[RunTrajectory, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Give one row a run, epoch and spectrum: where it stands, the columns of esd.csv, more.

        ``nonconvexity_mean`` and ``_stderr`` are over single probes, ``_published`` is the paper's.
        """
        rows = []
        for run in self.runs:
            for epoch, analysis in zip(run.epochs, run.analyses, strict=True):
                for spectrum, row in zip(analysis.spectra, analysis.rows(), strict=True):
                    scatter = nonconvexity_of_probes(spectrum)
                    rows.append(
                        {"run": run.name, "epoch": epoch, **row}
                        | {
                            "nonconvexity_mean": None if scatter is None else scatter.value,
                            "nonconvexity_stderr": None if scatter is None else scatter.stderr,
                            "nonconvexity_published": run.published_of(spectrum.label).get(epoch),
                            "recipe": (run.recipe or {}).get("name"),
                            "reweighted_after": run.reweighted_after,
                        }
                    )
        return rows

    def save(self, folder: str | Path) -> Path:
        """Write ``trajectory.csv`` and ``trajectory.json``, whole or not at all.

        Args:
            folder: in which the analyses lie, as `follow` saves them.

        Returns:
            The path of ``trajectory.csv``.

        Raises:
            SpectraError: If the disk is full or the folder cannot be written.
        """
        rows, path = self.rows(), Path(folder) / "trajectory.csv"
        runs = [
            {"name": r.name, "epochs": r.epochs, "published": r.published, "recipe": r.recipe}
            for r in self.runs
        ]
        text = json.dumps({"schema": SCHEMA, "runs": runs}, indent=1, ensure_ascii=False)
        with replacing(path) as table, replacing(path.with_suffix(".json")) as index:
            index.write_text(text + "\n", encoding="utf-8")
            with table.open("w", newline="", encoding="utf-8") as file:
                columns = dict.fromkeys(name for row in rows for name in row)
                writer = csv.DictWriter(file, list(columns), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Trajectory:
        """Read a trajectory back, without one product.

        Args:
            folder: that `follow` has written, finished or not.

        Raises:
            SpectraError: If a file is missing, truncated or of another schema.
        """
        path = Path(folder) / "trajectory.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise ValueError(f"schema {document['schema']!r}, expected {SCHEMA}")
            held = [
                (r["name"], r["recipe"], r["published"], [f"epoch-{int(e)}" for e in r["epochs"]])
                for r in document["runs"]
            ]
        except OSError as error:
            raise SpectraError(
                f"no trajectory can be read at {path} ({error.strerror or error}); expected the "
                "folder of one; make it with `python -m spectra.trajectory RUN_DIR`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SpectraError(
                f"{path} is truncated or no trajectory ({error}), and a guess at the rest would be "
                "a wrong result; run the analysis again with --resume"
            ) from error
        return cls(
            tuple(
                RunTrajectory(
                    name,
                    tuple(Analysis.load(path.with_name(name) / epoch) for epoch in epochs),
                    recipe,
                    curve,
                )
                for name, recipe, curve, epochs in held
            )
        )


def nonconvexity_of_probes(spectrum: ClassSpectrum) -> Estimate | None:
    """Average |λmin|/λmax over the probes of a spectrum, with the standard error of the mean.

    The spectrum's own value is that of the outermost ends of all probes.
    """
    known = [ratio for ratio in spectrum.ratios if ratio is not None]
    if not known or len(known) < len(spectrum.ratios):
        return None
    return Estimate.of(np.array(known))
