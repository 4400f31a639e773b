"""The checkpoints that a run has kept, in the order of their epochs.

A folder that `python -m spectra.train ... --save-at ...` leaves holds ``epoch-<e>.pt`` and, of the
last epoch, ``last.pt``; one of another project files that end in the epoch, ``checkpoint_10.pth``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from spectra.checkpoint import Checkpoint, load_checkpoint
from spectra.errors import SpectraError

_OURS = re.compile(r"epoch-(\d+)\.pt")
_THEIRS = re.compile(  # Lightning's "epoch=9-step=3910.ckpt", else the last number
    r"(?!(?:.*[-_.])?(?:optim(?:izer)?|sched(?:uler)?|scaler)[-_.\d])"
    r"(?:.*epoch[-_=]?(\d+).*|(?:.*\D)?(\d+))"
    r"\.(?:pt|pth|ckpt|pth\.tar|safetensors)"
)
Kept = tuple[Path, Checkpoint]


def run_name(folder: str | Path) -> str:
    """Name a run by its folder; by the one above, too, where that is only the number of a seed."""
    place = Path(folder).resolve()
    if place.name == "checkpoints":  # Lightning's, of every run
        place = place.parent
    return f"{place.parent.name}-{place.name}" if place.name.isdecimal() else place.name


def kept_checkpoints(
    folder: Path, load: Callable[[Path], Checkpoint] = load_checkpoint
) -> list[Checkpoint]:
    """Open the checkpoints that a run has kept, each epoch once, in ascending order.

    Args:
        folder: of the run.
        load: opens a checkpoint file.

    Raises:
        SpectraError: if there is none, if one cannot be opened, does not say its epoch, or is of
            another run than the first.
    """
    return [checkpoint for _, checkpoint in kept_in(folder, load)]


def kept_in(
    folder: Path,
    load: Callable[[Path], Checkpoint],
    hold: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint,
) -> list[Kept]:
    """List the files that a run has kept, each with what is held of it."""
    if not folder.is_dir():
        raise SpectraError(
            f"there is no run folder {str(folder)!r}; expected one with epoch-<e>.pt, as `python "
            "-m spectra.train RECIPE --save-at E,E --out DIR` leaves it (for one file: spectra.esd)"
        )
    files: list[tuple[int | None, Path]] = [*_numbered(folder, _OURS)]
    last = folder / "last.pt"
    theirs = [] if files or _is_ours(last, load) else _numbered(folder, _THEIRS)
    if last.exists() and not theirs:
        files.append((None, last))
    files += theirs
    kept: dict[int, Kept] = {}
    for number, path in files:
        try:
            checkpoint = load(path)
        except SpectraError as error:
            raise SpectraError(f"{folder.name}: {error}") from error
        said, close = checkpoint.epoch, False
        if theirs and said is not None and number is not None:
            # Other projects count from 0 or from 1 in the file; its name is what they go by. But
            # "last-v1.ckpt" and "resnet50.pth" end in a number that is no epoch.
            close = abs(said - number) <= 1
            number = number if close or "epoch" in path.name else None
        epoch = number if said is None or close else said
        if epoch is None or number not in (None, epoch):
            says = "does not say its epoch" if epoch is None else f"says that its epoch is {epoch}"
            raise SpectraError(
                f"{path} {says}, expected a file named epoch-<e>.pt after the epoch that it is of: "
                "its point would be drawn at a wrong place; rename it"
            )
        if kept:
            _require_same_run(next(iter(kept.values()))[1], checkpoint, folder)
        kept.setdefault(epoch, (path, replace(hold(checkpoint), epoch=epoch)))
    if not kept:
        raise SpectraError(
            f"{folder} holds no epoch-<e>.pt and no last.pt, nor files that end in a number as "
            "checkpoint_10.pth, expected the checkpoints of a run: there is nothing to follow; "
            "train with --save-at E,E, or name another folder"
        )
    return [kept[epoch] for epoch in sorted(kept)]


def without_network(checkpoint: Checkpoint) -> Checkpoint:
    """Hold what a file says, without its weights: ninety large networks would fill the memory."""
    return replace(checkpoint, model=nn.Identity())


def opened_again(path: Path, known: Checkpoint, load: Callable[[Path], Checkpoint]) -> Checkpoint:
    """Open a file with its weights; raise SpectraError if it is another one by now."""
    opened = load(path)
    if opened.sha256 != known.sha256:
        raise SpectraError(
            f"{path.name} was written anew since this command began, expected a run that has "
            "ended, or files that stay: its epoch would be a guess; start again"
        )
    return replace(opened, epoch=known.epoch)


def _numbered(folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    """List the files of a folder whose names give an epoch, ascending.

    Raises:
        SpectraError: if two of them give the same.
    """
    found = ((name.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    named = ((match.groups(), path) for match, path in found if match)
    files = sorted((int(next(filter(None, groups))), path) for groups, path in named)
    for (epoch, one), (other, two) in itertools.pairwise(files):
        if epoch == other:
            raise SpectraError(
                f"{folder} holds two checkpoints of epoch {epoch}, {one.name} and {two.name}, "
                "expected one of each: which is meant would be a guess; keep one of them there"
            )
    return files


def _is_ours(path: Path, load: Callable[[Path], Checkpoint]) -> bool:
    """Tell whether a file is a checkpoint of this trainer's, which knows its recipe."""
    try:
        return path.exists() and load(path).recipe is not None
    except SpectraError:
        return False


def _require_same_run(first: Checkpoint, other: Checkpoint, folder: Path) -> None:
    one, two = (
        {
            "network": c.model_spec.to_dict(),
            "data": c.data,
            "training samples": c.draw_sha256,
            **(c.recipe or {}),
        }
        for c in (first, other)
    )
    different = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    if different:
        parts = [f"{key} {two.get(key)!s:.60}, not {one.get(key)!s:.60}" for key in different[:3]]
        raise SpectraError(
            f"{folder / other.file} is of another run than {first.file} ({'; '.join(parts)}): one "
            "curve would join two experiments; keep each run in a folder of its own"
        )
