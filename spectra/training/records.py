"""The folder of a run: its table of epochs, its state while it runs, its summary when it has ended.

metrics.csv  a row per epoch; numbers of the test set only where it was evaluated
state.pt     a checkpoint with momentum and random state, to go on from; goes with the run's end;
             never ahead of metrics.csv
run.json     what ran, where, how long, and the best epoch on the test set
"""

import csv
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, load_checkpoint
from ..data import Samples
from ..errors import SpectraError, StorageError
from ..files import drawn_pages, replacing, require_writable
from .evaluation import Scores
from .recipes import Recipe

COLUMNS = (
    "epoch", "lr", "rho", "weighted", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
)  # fmt: skip


class Records:
    """What a run writes beside the checkpoints that it keeps.

    Args:
        folder: of the run.
        recipe: what runs.
        samples: the training set.
    """

    def __init__(self, folder: Path, recipe: Recipe, samples: Samples) -> None:
        self.folder, self.recipe, self.samples = folder, recipe, samples
        self.state, self.metrics = folder / "state.pt", folder / "metrics.csv"
        self.summary, self.result = folder / "run.json", folder / "last.pt"
        self.best = (0, 0.0)  # epoch and accuracy of a run that had ended before
        self._done = 0  # epochs that are done when this run starts
        self._replaced: list[Path] = []  # files of another run, until the first epoch is done
        self._head: list[Sequence[Any]] = []  # of the table: names, and rows of before

    def open(self, *, resume: bool, overwrite: bool) -> Checkpoint | None:
        """Look at what the folder holds; nothing is changed yet.

        Args:
            resume: take it over, if it is this run.
            overwrite: replace it.

        Returns:
            The state to go on from, or the last epoch's checkpoint if the run has ended, or None.

        Raises:
            SpectraError: if it holds another run, or one that nobody said what to do with.
        """
        held = [path for path in (self.state, self.summary, self.metrics) if path.exists()]
        if held and overwrite:
            drawn = drawn_pages(self.folder, "learning")
            self._replaced = [*self.folder.glob("epoch-*.pt"), self.result, *drawn]
            self._replaced += [self.state, self.summary]  # last: without them it is no run
        elif held and not resume:
            how = "a finished" if self.summary.exists() else "an unfinished"
            raise SpectraError(
                f"{self.folder} holds {how} run, which a new one would replace: go on with "
                "--resume, start anew with --overwrite, or name another folder with --out"
            )
        elif self.state.exists():
            return self._mine(load_checkpoint(self.state))
        elif self.summary.exists():
            return self._ended()
        return None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Say what the run is trained on, as its checkpoints do."""
        return {name: getattr(self.samples, name) for name in ("draw_sha256", "pixels_sha256")}

    def scores(self, checkpoint: Checkpoint) -> Scores:
        """Read the scores on the test set that a checkpoint of this run holds."""
        return Scores(*(checkpoint.metrics[f"test_{field.name}"] for field in fields(Scores)))

    def begin(self, classes: Sequence[str]) -> None:
        """Begin metrics.csv; rows of epochs that will be run again go.

        A run that is to be replaced stays as it is, until `add` has a row to replace it with.

        Raises:
            SpectraError: if rows of epochs that are done are missing.
            StorageError: if nothing can be written to the folder.
        """
        self._head = [[*COLUMNS, *classes], *self._rows()]
        if self._replaced:
            require_writable(self.folder)
        else:
            self._start([])

    def add(self, row: Sequence[Any]) -> None:
        """Append the row of an epoch; it is on disk before a state counts on it.

        Raises:
            StorageError: if it cannot be written.
        """
        if self._replaced:
            self._start([row])
            return
        try:
            with open(self.metrics, "a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(row)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"{self.metrics} did not take the row of epoch {row[0]} "
                f"({error.strerror or error}), without which no later epoch can be kept; free some "
                "space, then go on with --resume"
            ) from error

    def _start(self, rows: Sequence[Sequence[Any]]) -> None:
        with replacing(self.metrics) as partial:
            _write(partial, [*self._head, *rows])
            for path in self._replaced:
                path.unlink(missing_ok=True)
        self._replaced = []

    def close(
        self,
        best: tuple[float, int],
        *,
        seconds: float,
        preparing: float,
        ran_on: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write the summary of a run that has ended; its state has no use any more.

        Args:
            best: accuracy on the test set, 0..1, and its epoch.
            seconds: that all sessions took.
            preparing: those of them that compiling, recording and checking took.
            ran_on: device, torch and update of the sessions, each once, the last one last.
        """
        values = {
            "recipe": self.recipe.to_dict(),
            **self.fingerprints,
            "counts": self.samples.counts,
            "best_on_test": {"epoch": best[1], "accuracy": best[0]},
            "ran_on": {**ran_on[-1], "python": platform.python_version()},
            **({"ran_before_on": ran_on[:-1]} if ran_on[1:] else {}),
            "seconds": round(seconds, 2),
            "of_these_compiling": round(preparing, 2),
            "last_resumed_after_epoch": self._done or None,
        }
        with replacing(self.summary) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        self.state.unlink(missing_ok=True)

    def _rows(self) -> list[list[str]]:
        """Read the rows of the epochs that are done."""
        rows: list[list[str]] = []
        if self._done and self.metrics.exists():
            with open(self.metrics, newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1 : self._done + 1]
        if [row[0] for row in rows if row] != [str(e) for e in range(1, self._done + 1)]:
            raise SpectraError(
                f"{self.metrics} does not hold the epochs 1 to {self._done} that {self.state.name} "
                "goes on from; the table of the run would have gaps: start anew with --overwrite"
            )
        return rows

    def _ended(self) -> Checkpoint:
        try:
            values = json.loads(self.summary.read_text(encoding="utf-8"))
            recipe, best = dict(values["recipe"]), values["best_on_test"]
            self.best = int(best["epoch"]), float(best["accuracy"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpectraError(
                f"{self.summary} is no run.json of spectra.train ({type(error).__name__}: "
                f"{error}); whether this run has ended there would be a guess: restore it, start "
                "anew with --overwrite, or name another folder with --out"
            ) from error
        self._compare(recipe, values, self.summary)
        return self._mine(load_checkpoint(self.result))

    def _mine(self, held: Checkpoint) -> Checkpoint:
        prints = {name: getattr(held, name) for name in self.fingerprints}
        self._compare(held.recipe or {}, prints, Path(held.file))
        self._done = held.epoch or 0
        return held

    def _compare(self, recipe: Mapping[str, Any], prints: Mapping[str, Any], file: Path) -> None:
        mine = self.recipe.to_dict()
        other = {
            name: (recipe.get(name), mine.get(name))
            for name in sorted({*mine, *recipe})
            if recipe.get(name) != mine.get(name)
        }
        for name, kind in (("draw_sha256", "another draw"), ("pixels_sha256", "other images")):
            # Older files do not tell the images.
            if not other and prints.get(name) not in (None, self.fingerprints[name]):
                other = {"training samples": (kind, "these")}
        if other:
            parts = [f"{k} {theirs!r}, not {ours!r}" for k, (theirs, ours) in other.items()]
            raise SpectraError(
                f"{self.folder / file.name} is of another run ({'; '.join(parts[:4])}) and cannot "
                "be resumed as this one: repeat its fields, or use --overwrite or another --out"
            )


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
