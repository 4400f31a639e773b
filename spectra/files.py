"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import StorageError


@contextlib.contextmanager
def replacing(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name once the block has ended well.

    Args:
        path: the file; its folder is made where it is missing.
        size: bytes that will be written, for the message.

    Raises:
        StorageError: If the disk is full or the folder cannot be written; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())  # else a power cut could leave the name without the content
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


def require_writable(folder: Path) -> None:
    """Make a folder and try it out; raise StorageError if nothing can be written there."""
    probe = folder / "writable"
    with replacing(probe) as partial:
        partial.touch()
    probe.unlink()
