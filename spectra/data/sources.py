"""Where images come from: each source knows its labels first and decodes only the rows asked for.

Every source lists its samples in a fixed order; ``open_data`` draws from the labels and then lets
the source decode what was kept.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SpectraError, StorageError
from ..files import replacing
from .images import SUFFIXES, Pixels, decode_images
from .lists import (
    check_labels,
    count_classes,
    find_test_list,
    find_train_list,
    image_paths,
    read_list,
)
from .official import official_order
from .pickles import find_home, read_pickles
from .spec import KNOWN, ONE_SIZE, DataSpec

Integers = NDArray[np.int64]
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
# Archive, its MD5 sum (published beside it), folder in it, files of each split, names, label byte.
CIFAR_ARCHIVES = {
    "cifar10": (
        ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        ("batches.meta.txt", 0),
    ),
    "cifar100": (
        ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
        {"train": ["train.bin"], "test": ["test.bin"]},
        ("fine_label_names.txt", 1),  # the coarse label comes before the fine one
    ),
}


@dataclass(frozen=True)
class Source:
    """Hold all labels of one split and the way to its pixels."""

    labels: Integers  # (N,) in the order of the source
    class_names: tuple[str, ...]  # (C,)
    decode: Callable[[Integers], Pixels]  # rows (n,) -> images (n, c, h, w)
    files: Callable[[Integers], list[Path]] | None = None  # of rows, if each image is a file

    def __post_init__(self) -> None:
        low, high = (self.labels.min(), self.labels.max()) if len(self.labels) else (-1, -1)
        if low < 0 or high >= len(self.class_names):
            raise SpectraError(
                f"{len(self.labels)} samples have labels from {low} to {high}; expected 0 to "
                f"{len(self.class_names) - 1}: the files are incomplete or of another data set"
            )


def open_source(
    spec: DataSpec, folder: Path | None, split: str, *, download: bool = True
) -> Source:
    """Find the files of a data set below a folder; raise SpectraError if no layout fits."""
    if spec.image_size is not None and spec.name in ONE_SIZE:
        raise SpectraError(
            f"the image size is {spec.image_size} for {spec.name}, whose images have one size and "
            "stay as they are; leave it out: results would be named for what was not done"
        )
    if spec.name == "digits":
        return digits(split)
    if folder is None:
        raise SpectraError(
            f"no folder was named for {spec.name}; give --data FOLDER or set SPECTRA_DATA"
            + (" (the archive is downloaded there)" if spec.name in CIFAR_ARCHIVES else "")
        )
    roots = [folder, folder / spec.name]
    if spec.name in CIFAR_ARCHIVES:
        for part in ("", "data", "plain_text", spec.name):  # as the hub's repositories lie
            for root in roots:
                if shards := sorted((root / part).glob(f"{split}-*.parquet")):
                    source = hub_parquet(shards, KNOWN[spec.name].num_classes)
                    return in_order(source, official_order(source.labels))
        return cifar_binary(spec.name, folder, split, download=download)
    if spec.name == "folder":  # and no other: a folder of all images is no long-tailed set
        for root in roots:
            if (root / "train").is_dir():
                return image_folder(root, split, spec)
    elif (train := find_train_list(folder, spec.name)) is not None:
        return list_file(train, folder, split, spec)
    raise SpectraError(f"{folder} holds no {spec.name} data; looked for {KNOWN[spec.name].about}")


def in_order(source: Source, rows: Integers) -> Source:
    """List the samples of a source in another order."""
    return Source(source.labels[rows], source.class_names, lambda index: source.decode(rows[index]))


def digits(split: str) -> Source:
    """Open scikit-learn's 1,797 digits: of each class the last 40 are the test, the rest train.

    The values 0..16 become round(v·255/16), so that the images are ordinary uint8 ones.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    cut = slice(-40, None) if split == "test" else slice(None, -40)
    rows = np.sort(np.concatenate([np.flatnonzero(raw.target == c)[cut] for c in range(10)]))
    labels = raw.target[rows].astype(np.int64)
    return Source(labels, tuple("0123456789"), lambda index: images[rows[index]])


def cifar_binary(name: str, folder: Path, split: str, *, download: bool = True) -> Source:
    """Open the official binary files, else those for Python, else download the former once."""
    (archive, md5, inner), members, (names_file, label_byte) = CIFAR_ARCHIVES[name]
    files = [*members["train"], *members["test"], names_file]
    home = find_home(folder, name, inner, files)
    if home is None:
        if (pickled := read_pickles(name, folder, split)) is not None:
            pixels, labels, names = pickled
            return Source(labels, names, lambda index: pixels[index].reshape(-1, 3, 32, 32))
        home = folder / inner
        if not (download or (folder / archive).is_file()):
            raise SpectraError(
                f"{folder} holds neither the binary nor the Python nor the parquet layout of "
                f"{name}; put one of them there"
            )
        _unpack(_fetch(CIFAR_URL + archive, md5, folder), inner, files, home)
    size = label_byte + 1 + 3072
    raw = [np.fromfile(home / file, dtype=np.uint8) for file in members[split]]
    for file, part in zip(members[split], raw, strict=True):
        if part.size % size:
            raise SpectraError(
                f"{home / file} has {part.size} bytes; expected a multiple of {size}: the file "
                "is cut short, delete it to unpack it again"
            )
    rows = np.concatenate(raw).reshape(-1, size)
    return Source(
        rows[:, label_byte].astype(np.int64),
        tuple((home / names_file).read_text(encoding="utf-8").split()),
        lambda index: rows[index, label_byte + 1 :].reshape(-1, 3, 32, 32),
    )


def hub_parquet(shards: Sequence[Path], num_classes: int | None, mode: str = "RGB") -> Source:
    """Open the Hugging Face hub's layout: ``img`` {bytes, path}, ``label`` or ``fine_label``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        files = [pq.ParquetFile(shard) for shard in shards]
        schema = files[0].schema_arrow
        label = "fine_label" if "fine_label" in schema.names else "label"
        schema.field("img")  # a KeyError now, not when the images are read
        labels = np.concatenate([file.read([label])[label].to_numpy() for file in files])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SpectraError(
            f"{shards[0]} cannot be read as img {{bytes, path}} and label or fine_label ({error}); "
            "fetch it again"
        ) from error
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = features.get("info", {}).get("features", {}).get(label, {}).get("names")
    parts = [(file, g) for file in files for g in range(file.num_row_groups)]
    ends = np.cumsum([file.metadata.row_group(g).num_rows for file, g in parts])

    def decode(index: Integers) -> Pixels:
        wanted = [b""] * len(index)
        owner = np.searchsorted(ends, index, side="right")
        for part in np.unique(owner):
            file, group = parts[part]
            places = np.flatnonzero(owner == part)
            column = file.read_row_group(group, ["img"])["img"].combine_chunks().field("bytes")
            local = index[places] - (ends[part - 1] if part else 0)
            for place, value in zip(places, column.take(pa.array(local)).to_pylist(), strict=True):
                wanted[place] = value or b""
        return decode_images(wanted, mode=mode)

    return Source(
        labels.astype(np.int64),
        tuple(names or map(str, range(num_classes or int(labels.max()) + 1))),
        decode,
    )


def image_folder(root: Path, split: str, spec: DataSpec) -> Source:
    """Open ``train/<class>/*.png``; the test images lie in ``test/`` or ``val/``."""
    names = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))
    homes = [root / part for part in (("train",) if split == "train" else ("test", "val"))]
    home = next((home for home in homes if home.is_dir()), None)
    if home is None:
        raise SpectraError(f"{root} has no test images; looked for test/ and val/ beside train/")
    for path in sorted(home.iterdir()):
        if path.is_dir() and path.name not in names:
            raise SpectraError(f"{path} is a class that train/ does not have; remove or rename it")
    found = [(c, p) for c, name in enumerate(names) for p in _below(home / name)]
    found = [(c, p) for c, p in found if p.suffix.lower() in SUFFIXES]
    if not found:
        raise SpectraError(f"{home} holds no image; looked for <class>/*{'|'.join(SUFFIXES)}")
    labels = np.array([c for c, _ in found], dtype=np.int64)

    def files(index: Integers) -> list[Path]:
        return [found[i][1] for i in index]

    return Source(labels, names, lambda index: decode_images(files(index), spec.image_size), files)


def _below(folder: Path) -> list[Path]:
    """List files in the order of torchvision's ImageFolder: folder by folder, links followed."""
    walked = sorted(os.walk(folder, followlinks=True))
    return [Path(root) / name for root, _, names in walked for name in sorted(names)]


def list_file(train: Path, folder: Path, split: str, spec: DataSpec) -> Source:
    """Open lists of `path label` lines, as ImageNet-LT and iNaturalist 2018 are published."""
    listing = read_list(train if split == "train" else find_test_list(train))
    count, owner = KNOWN[spec.name].num_classes, spec.name
    if count is None:
        count = count_classes(listing if split == "train" else read_list(train))
        owner = train.name
    check_labels(listing, count, owner)
    names = tuple(map(str, range(count)))
    files = partial(image_paths, listing, folder)
    return Source(
        listing.labels, names, lambda index: decode_images(files(index), spec.image_size), files
    )


def _fetch(url: str, md5: str, folder: Path) -> Path:
    """Return the file in the folder, downloaded unless it lies there with the right MD5 sum."""
    import pooch

    name = url.rsplit("/", 1)[1]
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=folder, progressbar=True))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: wrong sum
        raise SpectraError(
            f"{folder} holds neither the binary nor the Python nor the parquet layout (looked for "
            f"{name}, its folder, torchvision's and train-*.parquet), and {url} could not be "
            f"fetched ({type(error).__name__}: {str(error)[:200]}); put one of them there"
        ) from error


def _unpack(archive: Path, inner: str, files: Sequence[str], home: Path) -> None:
    """Copy the named regular files out of an archive, and nothing else that may be in it."""
    try:
        with tarfile.open(archive) as tar:
            for file in files:
                member = tar.getmember(f"{inner}/{file}")
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise KeyError(f"{file} is no regular file")
                # Another process may be unpacking the same.
                with replacing(home / file) as partial, partial.open("wb") as target:
                    shutil.copyfileobj(stream, target)
    except (OSError, EOFError, KeyError, tarfile.TarError, StorageError) as error:
        raise SpectraError(
            f"{archive} cannot be unpacked into {home} ({error.__cause__ or error}); free some "
            "space, or delete the archive to fetch it again"
        ) from error
