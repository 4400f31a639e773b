"""Writing without half-written files: under a temporary name first, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SpectraError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name if the block ends well.

    Raises:
        SpectraError: If the disk is full or the folder cannot be written; nothing is left then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise SpectraError(
            f"{path} cannot be written ({error.strerror or error}); nothing was left behind, "
            "free some space or choose another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
