"""Data sets as tensors: sources, the long-tail draw, augmentation, fingerprints, export."""

import os
from pathlib import Path

import numpy as np
import torch

from ..errors import SpectraError
from .augment import augment as augment
from .export import export as export
from .export import find_exported, open_exported
from .longtail import draw
from .longtail import long_tail_counts as long_tail_counts
from .samples import IGNORED as IGNORED
from .samples import Samples as Samples
from .sources import open_source
from .spec import DIGITS_LT as DIGITS_LT
from .spec import KNOWN as KNOWN
from .spec import DataSpec as DataSpec


def open_data(
    spec: DataSpec | None = None, *, path: str | Path | None = None, split: str = "train"
) -> Samples:
    """Open one split of a data set; the training split is drawn as its description says.

    Samples come class after class, each class in the order of its draw, so that every layout of
    the same data gives the same rows.

    Args:
        spec: Name and draw; None takes what an exported set at ``path`` says of itself.
        path: Folder of the data, or an exported file; None: the variable SPECTRA_DATA.
        split: "train", or "test", which is never long-tailed.

    Raises:
        SpectraError: If the data are missing, damaged, or other than described.
    """
    if split not in ("train", "test"):
        raise SpectraError(f"the split is {split!r}; expected train or test")
    place = path if path is not None else os.environ.get("SPECTRA_DATA") or None
    folder = Path(place).expanduser() if place is not None else None
    embedded = spec is not None and spec.name == "digits"
    if folder is not None and not folder.exists() and not (embedded and path is None):
        origin = "" if path is not None else " (from SPECTRA_DATA)"
        raise SpectraError(f"{folder}{origin} does not exist; name or make a folder of data")
    exported = find_exported(folder, split) if folder is not None else None
    if exported is not None:
        held = exported[1]["spec"]
        if spec is None or held == spec.to_dict():
            return open_exported(*exported)
        if held and held["name"] == spec.name:
            raise SpectraError(
                f"{folder} holds an exported set ({DataSpec.from_dict(held)}) and {spec} was "
                "asked for; the results would be of other images: name the full data, or ask for "
                "the set that lies there"
            )
    if spec is None:
        raise SpectraError(
            f"no data set was named and {folder or 'no folder'} holds an exported one; looked for "
            f"{split}.parquet; give --dataset NAME ({', '.join(KNOWN)})"
        )
    source = open_source(spec, folder, split)
    traits = KNOWN[spec.name]
    if split == "train":
        rows, positions = draw(source.labels, len(source.class_names), spec)
    else:
        rows = np.argsort(source.labels, kind="stable").astype(np.int64)
        positions = None
    return Samples(
        torch.from_numpy(np.ascontiguousarray(source.decode(rows))),
        torch.from_numpy(source.labels[rows]),
        len(source.class_names),
        source.class_names,
        traits.mean,
        traits.std,
        traits.augmentation,
        spec,
        None if positions is None else torch.from_numpy(positions),
    )
