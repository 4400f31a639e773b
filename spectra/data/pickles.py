"""CIFAR in its layout for Python, which torchvision keeps: pickles, opened without running code.

Images and labels lie in the order of the official files, as in the binary layout.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpectraError

# Folder, files of each split, file and key of the names, key of the labels.
LAYOUTS = {
    "cifar10": (
        "cifar-10-batches-py",
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        ("batches.meta", "label_names"),
        "labels",
    ),
    "cifar100": (
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        ("meta", "fine_label_names"),
        "fine_labels",
    ),
}


class _Arrays(pickle.Unpickler):
    """Takes lists, numbers, words and arrays; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        array = np.zeros(0)
        rebuild = array.__reduce__()[0]
        known = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return known[module, name]


def read_pickles(
    name: str, folder: Path, split: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]] | None:
    """Read the images of a split, if the layout for Python lies in a folder.

    Args:
        name: "cifar10" or "cifar100".
        folder: that holds the layout's own folder, or is it.
        split: "train" or "test".

    Returns:
        (N, 3072) pixels, (N,) labels and the (C,) names of the classes; None where a file is
        missing.

    Raises:
        SpectraError: If a file is damaged, names what could run code, or lacks a key.
    """
    inner, members, (names_file, names_key), label_key = LAYOUTS[name]
    home = find_home(folder, name, inner, [*members["train"], *members["test"], names_file])
    if home is None:
        return None
    parts = [_read(home / file, "data", label_key) for file in members[split]]
    names = _read(home / names_file, names_key)[names_key]
    pixels = np.concatenate([np.asarray(part["data"], dtype=np.uint8) for part in parts])
    labels = np.concatenate([np.asarray(part[label_key], dtype=np.int64) for part in parts])
    if pixels.shape != (len(labels), 3072):
        raise SpectraError(
            f"{home} holds pixels of the shape {pixels.shape} for {len(labels)} labels; expected "
            "3072 for each: the files are damaged, unpack them again"
        )
    return pixels, labels, tuple(names)


def find_home(folder: Path, name: str, inner: str, files: Sequence[str]) -> Path | None:
    """Find the files of one of CIFAR's layouts.

    Args:
        folder: that holds the layout's own folder, or is it, or holds one for the data set.
        name: of the data set.
        inner: the layout's own folder.
        files: all of which have to be there.
    """
    homes = [folder / inner, folder, folder / name / inner, folder / name]
    return next((h for h in homes if all((h / file).is_file() for file in files)), None)


def _read(path: Path, *keys: str) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:  # Python 2 wrote them; its strings hold the arrays' bytes
            held = _Arrays(file, encoding="latin1").load()
        return {key: held[key] for key in keys}
    except Exception as error:  # whatever a damaged pickle raises
        raise SpectraError(
            f"{path} cannot be read as a dictionary with {' and '.join(keys)} "
            f"({type(error).__name__}: {error}); unpack it again"
        ) from error
