"""Data sets as tensors: sources, the long-tail draw, augmentation, fingerprints, export."""

import os
from pathlib import Path

import numpy as np
import torch

from ..errors import SpectraError
from .augment import augment as augment
from .export import export as export
from .export import find_exported, open_exported
from .images import ImageFiles
from .longtail import draw
from .longtail import long_tail_counts as long_tail_counts
from .samples import IGNORED as IGNORED
from .samples import Samples as Samples
from .samples import as_samples as as_samples
from .samples import require_one_size as require_one_size
from .sources import open_source
from .spec import DIGITS_LT as DIGITS_LT
from .spec import KNOWN as KNOWN
from .spec import DataSpec as DataSpec
from .spec import usually_normalised as usually_normalised


def open_data(
    spec: DataSpec | None = None,
    *,
    path: str | Path | None = None,
    split: str = "train",
    download: bool = True,
    on_demand: bool = False,
) -> Samples:
    """Open one split of a data set; the training split is drawn as its description says.

    Samples come class after class, each class in the order of its draw, so that every layout of
    the same data gives the same rows.

    Args:
        spec: Name and draw; None takes what an exported set at ``path`` says of itself.
        path: Folder of the data, or an exported file; None: the variable SPECTRA_DATA.
        split: "train", or "test", which is never long-tailed.
        download: Fetch the CIFAR archives into the folder where it holds neither layout.
        on_demand: Of image files look at the sizes alone, and decode those that are selected, each
            time again; the files have to stay. The fingerprint of all pixels is then None. Other
            layouts are read as ever.

    Raises:
        SpectraError: If the data are missing, damaged, or other than described.
    """
    if split not in ("train", "test"):
        raise SpectraError(f"the split is {split!r}; expected train or test")
    place = path if path is not None else os.environ.get("SPECTRA_DATA") or None
    if path is None and spec is not None and spec.name == "digits":
        place = None  # embedded: whatever the variable names for other data sets
    folder = None if place is None else Path(place).expanduser()
    if folder is not None and not folder.exists():
        origin = "" if path is not None else " (from SPECTRA_DATA)"
        raise SpectraError(f"{folder}{origin} does not exist; name or make a folder of data")
    if folder is not None and (exported := find_exported(folder, split)) is not None:
        held = exported[1]["spec"]
        if spec is None or held == spec.to_dict():
            return open_exported(*exported)
        if held and held["name"] == spec.name:
            raise SpectraError(
                f"{folder} holds the exported set {DataSpec.from_dict(held)} and {spec} was asked "
                "for; the results would be of other images: ask for what lies there, or name "
                "the folder of the full data"
            )
    if spec is None:
        raise SpectraError(
            f"no data set was named, and {folder or 'no folder was given that'} does not hold an "
            f"exported one ({split}.parquet); give --dataset NAME ({', '.join(KNOWN)})"
        )
    source = open_source(spec, folder, split, download=download)
    traits, num_classes = KNOWN[spec.name], len(source.class_names)
    if num_classes != (traits.num_classes or num_classes):
        raise SpectraError(
            f"{folder} holds data of {num_classes} classes; {spec.name} has {traits.num_classes}: "
            "name another folder or data set"
        )
    rows = np.argsort(source.labels, kind="stable").astype(np.int64)
    positions = None
    if split == "train":
        rows, positions = draw(source.labels, num_classes, spec)
    files, decode = None, None
    if source.files is None:
        inputs = torch.from_numpy(np.ascontiguousarray(source.decode(rows)))
    elif on_demand:
        decode = files = ImageFiles.of(source.files(rows), spec.image_size)
        inputs = torch.empty((len(rows), 3, *files.size), dtype=torch.uint8, device="meta")
    else:
        files, pixels = ImageFiles.read(source.files(rows), spec.image_size)
        inputs = torch.from_numpy(pixels)
    return Samples(
        inputs,
        torch.from_numpy(source.labels[rows]),
        num_classes,
        source.class_names,
        traits.mean,
        traits.std,
        traits.augmentation,
        spec,
        None if positions is None else torch.from_numpy(positions),
        decode,
        None if files is None else files.sha256,
    )
