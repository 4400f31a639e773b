"""A file that may come from anyone, read without running its code.

All load with `weights_only=True`, which takes tensors and plain values; beside them NumPy's
scalars, and the `argparse.Namespace` and the paths in which training scripts keep their options. A
file of safetensors holds nothing but tensors. What our own files hold is also checked against their
checksums.

References:
    torch.load and weights_only, https://docs.pytorch.org/docs/stable/notes/serialization.html
    The format of safetensors, https://huggingface.co/docs/safetensors
"""

import argparse
import hashlib
import io
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import SpectraError

FORMAT = "spectra-checkpoint"
_OPTIONS: tuple[Any, ...] = (  # they run nothing; Python 3.13 has its own name for paths
    argparse.Namespace,
    *(
        (kind, f"{module}.{kind.__name__}")
        for kind in (pathlib.PosixPath, pathlib.PurePosixPath)
        for module in ("pathlib", "pathlib._local")
    ),
)
WAY_OUT = "name the network with --arch, --num-classes or --model PACKAGE.MODULE:FUNCTION"


def read(path: Path) -> tuple[object, str]:
    """Read what torch.save wrote, and the SHA-256 of its bytes.

    Raises:
        SpectraError: if the file is missing, damaged, or holds what only code can make.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise SpectraError(
            f"there is no checkpoint file {str(path)!r} to read ({error.strerror}); nothing was "
            "analysed: check the path"
        ) from error
    # One handle for both, so that the fingerprint is of the bytes that were loaded.
    with file:
        start = file.peek(6)[:6]
        try:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if path.suffix == ".safetensors":
                return _tensors(file), sha256
            return unpickle(file), sha256
        except ImportError as error:
            raise SpectraError(
                f"got {path.name}, expected a file that torch.save wrote, or the package that "
                "opens this one: pip install safetensors"
            ) from error
        except Exception as error:
            if what := refused(error):
                raise SpectraError(
                    f"{path.name} was refused: it holds {what}, and loading that can run code; "
                    "expected tensors and plain values: where it was made, save the weights alone "
                    f"(torch.save(model.state_dict(), ...)), and {WAY_OUT}"
                ) from error
            torch_wrote = start.startswith((b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc"))
            harm = "no PyTorch checkpoint" if start else "empty"
            raise SpectraError(
                f"{path.name} is {'truncated or damaged' if torch_wrote else harm}, expected a "
                "whole file that torch.save wrote: copy or save it again"
            ) from error


def unpickle(file: io.BytesIO | io.BufferedReader) -> object:
    """Load an open file; whatever is wrong with it raises an error of torch's or zipfile's own."""
    file.seek(0)
    theirs = torch.serialization.get_safe_globals()
    ours = [entry for entry in (*_numpy_scalars(), *_OPTIONS) if entry not in theirs]
    with warnings.catch_warnings(), torch.serialization.safe_globals(ours):
        warnings.simplefilter("ignore")  # what torch warns of here ends in one of our errors
        payload = torch.load(file, map_location="cpu", weights_only=True)
    # torch does not look at the checksums; a flipped bit would pass as another weight.
    if is_own(payload) and (damaged := zipfile.ZipFile(file).testzip()):
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return payload


def _tensors(file: io.BufferedReader) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    file.seek(0)
    return load(file.read())


def is_own(payload: object) -> bool:
    """Tell whether a checkpoint says that it is one of ours."""
    return isinstance(payload, dict) and payload.get("format") == FORMAT


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """List what a pickled NumPy number names, under NumPy 1's and NumPy 2's module names."""
    scalar = np.float64(0).__reduce__()[0]
    assert callable(scalar)
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
    return [
        np.dtype,
        *{type(np.dtype(code)) for code in codes},
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
    ]


def refused(error: Exception) -> str | None:
    """Name the object for which the safe unpickler refused a file."""
    if "TorchScript" in str(error):
        return "a TorchScript program"
    found = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", str(error))
    return f"a pickled {found.group(1)}" if found else None
