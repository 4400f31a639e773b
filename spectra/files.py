"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from time import monotonic
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from .errors import StorageError

Held = TypeVar("Held")


@contextlib.contextmanager
def replacing(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name once the block has ended well.

    Args:
        path: the file; its folder is made where it is missing.
        size: bytes that will be written, for the message.

    Raises:
        StorageError: If the disk is full or the folder cannot be written; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _to_disk(partial)
        partial.replace(path)
    except OSError as error:
        amount = "" if size is None else f" ({size / 1e6:.1f} MB)"
        raise StorageError(
            f"{path}{amount} was not written ({error.strerror or error}); what lay there before is "
            "unchanged; free some space or choose another folder with --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _to_disk(path: Path) -> None:
    """Have the content written: else a power cut could leave the name without it."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def require_writable(folder: Path) -> None:
    """Make a folder and try it out; raise StorageError if nothing can be written there."""
    probe = folder / f".writable.{secrets.token_hex(4)}"  # no file of the user's
    with replacing(probe) as partial:
        partial.touch()
    probe.unlink()


def drawn_pages(folder: Path, stem: str) -> list[Path]:
    """List the pages of a figure that lie in a folder: stem.png and .pdf, stem-2.png, ..."""
    page = re.compile(rf"{re.escape(stem)}(-\d+)?\.(png|pdf)")
    return [path for path in sorted(folder.glob(f"{stem}*")) if page.fullmatch(path.name)]


def write_pair(path: Path, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a json file and the npz file of its name beside it, both or neither.

    Args:
        path: of the json file.
        document: what goes into it.
        arrays: what goes into the other, compressed: many are short, and their heads alike.

    Raises:
        StorageError: If the disk is full or the folder cannot be written.
    """
    text = _text(document)
    # Both are whole before either gets its name, the arrays first: they cover an older json.
    with replacing(path) as readable, replacing(path.with_suffix(".npz")) as binary:
        readable.write_text(text, encoding="utf-8")
        with binary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        for partial in (readable, binary):
            _to_disk(partial)


class OneWriter:
    """Notice when somebody else writes a file that a run writes again and again.

    What lies there is told by its content: times differ from machine to machine on a shared disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = self._seen()

    def require(self) -> None:
        """Raise StorageError if the file is not as this run has found or left it."""
        if self._seen() != self._content:
            raise StorageError(
                f"another run has written {self._path} meanwhile, expected no other writer: the "
                "results of one of them would be lost; this one stops, and the other goes on; give "
                "each its own --out, or run one after the other with --resume"
            )

    def note(self) -> None:
        """Take the file as it is for this run's."""
        self._content = self._seen()

    def _seen(self) -> str | None:
        try:
            return hashlib.sha256(self._path.read_bytes()).hexdigest()
        except OSError:
            return None


class Keeping(Generic[Held]):
    """Write a growing whole again and again, for about a twentieth of the time.

    The whole is written when twenty times the duration of the last write has passed, and always on
    leaving, by an error, too (which a failing write then takes the place of). So a hundred classes
    cost no more to save than ten, and a process that is killed loses what came within that time.

    Args:
        write: takes the whole.
        stale: files made of the results that the first write replaces; they go with it.
    """

    def __init__(self, write: Callable[[Held], object], stale: Iterable[Path] = ()) -> None:
        self._write, self._stale = write, list(stale)
        self._waiting: list[Held] = []
        self._due = -math.inf

    def __enter__(self) -> "Keeping[Held]":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def __call__(self, whole: Held, *, at_once: bool = False) -> None:
        """Take the whole as it is now in the place of what it was."""
        self._waiting = [whole]
        if at_once or monotonic() >= self._due:
            self._flush()

    def _flush(self) -> None:
        start = monotonic()
        try:
            for whole in self._waiting:
                self._write(whole)
                while self._stale:
                    self._stale.pop().unlink(missing_ok=True)
        except Exception:
            self._waiting = []  # what cannot be written is not tried again on the way out
            raise
        self._waiting = []
        now = monotonic()
        self._due = now + 20 * (now - start)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a json file alone, as `write_pair` does."""
    text = _text(document)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; what is not finite is unknown."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
