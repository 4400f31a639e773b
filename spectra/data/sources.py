"""Where images come from: each source knows its labels first and decodes only the rows asked for.

Every source lists its samples in a fixed order; ``open_data`` draws from the labels and then lets
the source decode what was kept.
"""

import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SpectraError
from .files import replacing
from .images import SUFFIXES, Pixels, decode_images
from .spec import KNOWN, DataSpec

Integers = NDArray[np.int64]
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
# The published MD5 sums of the binary archives: https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR_ARCHIVES = {
    "cifar10": (
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        "batches.meta.txt",
    ),
    "cifar100": (
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        {"train": ["train.bin"], "test": ["test.bin"]},
        "fine_label_names.txt",
    ),
}


@dataclass(frozen=True)
class Source:
    """Hold all labels of one split and the way to its pixels."""

    labels: Integers  # (N,) in the order of the source
    class_names: tuple[str, ...]  # (C,)
    decode: Callable[[Integers], Pixels]  # rows (n,) -> images (n, c, h, w)


def open_source(spec: DataSpec, folder: Path | None, split: str) -> Source:
    """Find the files of a data set below a folder.

    Raises:
        SpectraError: If no folder is given, or nothing in it has a layout that fits the name.
    """
    if spec.name == "digits":
        return digits(split)
    if folder is None:
        raise SpectraError(
            f"no folder was named for {spec.name}; give --data FOLDER or set SPECTRA_DATA"
            + (" (the archive is downloaded there)" if spec.name in CIFAR_ARCHIVES else "")
        )
    roots = [folder, *(folder / part for part in (spec.name, "data", "plain_text"))]
    if spec.name in CIFAR_ARCHIVES:
        for root in (*roots, folder / spec.name / "data", folder / spec.name / "plain_text"):
            shards = sorted(root.glob(f"{split}-*.parquet"))
            if shards:
                return hub_parquet(shards, KNOWN[spec.name].num_classes)
        return cifar_binary(spec.name, folder, split)
    for root in roots[:2]:
        if spec.name != "list" and (root / "train").is_dir() and not _lists(root, "train"):
            return image_folder(root, split, spec.image_size)
        if spec.name != "folder" and _lists(root, "train"):
            return list_file(root, split, spec)
    wanted = "train/<class>/*.png|jpg|jpeg|webp" if spec.name == "folder" else "*train.txt"
    raise SpectraError(f"{folder} holds no {spec.name} data; looked for {wanted} in it")


def digits(split: str) -> Source:
    """Open scikit-learn's 1,797 digits: of each class the last 40 are the test, the rest train.

    The values 0..16 become round(v·255/16), so that the images are ordinary uint8 ones.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    labels = raw.target.astype(np.int64)
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    parts = [np.flatnonzero(labels == c) for c in range(10)]
    cut = slice(-40, None) if split == "test" else slice(None, -40)
    rows = np.sort(np.concatenate([part[cut] for part in parts]))
    return Source(labels[rows], tuple("0123456789"), lambda index: images[rows[index]])


def cifar_binary(name: str, folder: Path, split: str) -> Source:
    """Open the official binary archive; download, check and unpack it once where it is missing."""
    archive, md5, inner, members, names_file = CIFAR_ARCHIVES[name]
    files = [*members["train"], *members["test"], names_file]
    homes = [folder, folder / inner, folder / name / inner]
    home = next((h for h in homes if all((h / file).is_file() for file in files)), None)
    if home is None:
        home = folder / inner
        path = _fetch(CIFAR_URL + archive, md5, folder)
        _unpack(path, inner, files, home)
    prefix = 1 if name == "cifar10" else 2  # CIFAR-100 puts the coarse label before the fine one
    records = []
    for file in members[split]:
        raw = np.fromfile(home / file, dtype=np.uint8)
        if raw.size == 0 or raw.size % (prefix + 3072):
            raise SpectraError(
                f"{home / file} has {raw.size} bytes; expected a multiple of {prefix + 3072}: "
                "the file is cut short, delete it to unpack it again"
            )
        records.append(raw.reshape(-1, prefix + 3072))
    rows = np.concatenate(records)
    names = (home / names_file).read_text(encoding="utf-8").split()
    return Source(
        rows[:, prefix - 1].astype(np.int64),
        tuple(names),
        lambda index: rows[index, prefix:].reshape(-1, 3, 32, 32),
    )


def hub_parquet(
    shards: Sequence[Path], num_classes: int | None = None, mode: str = "RGB"
) -> Source:
    """Open the Hugging Face hub's layout: ``img`` {bytes, path} and ``label`` or ``fine_label``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(shards[0])
        label = next((n for n in ("fine_label", "label") if n in schema.names), None)
        image = next((n for n in ("img", "image") if n in schema.names), None)
        if label is None or image is None:
            raise SpectraError(
                f"{shards[0]} has the columns {schema.names}; expected img {{bytes, path}} and "
                "label or fine_label"
            )
        labels = np.concatenate(
            [pq.read_table(s, columns=[label])[label].to_numpy().astype(np.int64) for s in shards]
        )
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = features.get("info", {}).get("features", {}).get(label, {}).get("names")
        groups = [(s, g) for s in shards for g in range(pq.read_metadata(s).num_row_groups)]
        sizes = [pq.read_metadata(s).row_group(g).num_rows for s, g in groups]
    except (OSError, pa.ArrowException) as error:
        raise SpectraError(f"{shards[0].parent} holds no readable parquet: {error}") from error

    def decode(index: Integers) -> Pixels:
        wanted: list[bytes] = [b""] * len(index)
        start = 0
        for (shard, group), size in zip(groups, sizes, strict=True):
            here = np.flatnonzero((index >= start) & (index < start + size))
            if len(here):
                column = pq.ParquetFile(shard).read_row_group(group, columns=[image])[image]
                part = column.combine_chunks().field("bytes").take(pa.array(index[here] - start))
                for place, value in zip(here, part.to_pylist(), strict=True):
                    wanted[place] = value
            start += size
        return decode_images(wanted, mode=mode)

    count = num_classes or (len(names) if names else int(labels.max()) + 1)
    _check_labels(labels, count, str(shards[0].parent))
    return Source(labels, tuple(names or map(str, range(count))), decode)


def image_folder(root: Path, split: str, image_size: int | None = None) -> Source:
    """Open ``train/<class>/*.png``; the test images lie in ``test/`` or ``val/``."""
    names = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))
    parts = ("train",) if split == "train" else ("test", "val")
    home = next((root / part for part in parts if (root / part).is_dir()), None)
    if home is None:
        raise SpectraError(f"{root} has no test images; looked for test/ and val/ beside train/")
    strange = sorted({p.name for p in home.iterdir() if p.is_dir()} - set(names))
    if strange:
        raise SpectraError(f"{home} has the class {strange[0]!r}, which train/ does not have")
    files = [
        sorted(p for p in (home / name).glob("*") if p.suffix.lower() in SUFFIXES) for name in names
    ]
    labels = np.repeat(np.arange(len(names)), [len(part) for part in files]).astype(np.int64)
    flat = [path for part in files for path in part]
    if not flat:
        raise SpectraError(f"{home} holds no image; looked for <class>/*{'|'.join(SUFFIXES)}")
    return Source(labels, names, lambda index: decode_images([flat[i] for i in index], image_size))


def list_file(root: Path, split: str, spec: DataSpec) -> Source:
    """Open lists of `path label` lines, as ImageNet-LT and iNaturalist 2018 are published."""
    if not _lists(root, split):
        raise SpectraError(f"{root} has no {split} list; looked for *test.txt and *val.txt in it")
    path = _lists(root, split)[0]
    files, labels = _read_list(path)
    count = KNOWN[spec.name].num_classes or 1 + int(_read_list(_lists(root, "train")[0])[1].max())
    _check_labels(labels, count, str(path))
    return Source(
        labels,
        tuple(map(str, range(count))),
        lambda index: decode_images([root / files[i] for i in index], spec.image_size),
    )


def _lists(root: Path, split: str) -> list[Path]:
    endings = ("train",) if split == "train" else ("test", "val")
    return [path for ending in endings for path in sorted(root.glob(f"*{ending}.txt"))]


def _read_list(path: Path) -> tuple[list[str], Integers]:
    names, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, label = line.strip().rpartition(" ")
        if line.strip() and not (name and label.isdecimal()):
            raise SpectraError(f"{path}:{number} is {line!r}; expected `path label`")
        if name:
            names.append(name.strip())
            labels.append(int(label))
    if not names:
        raise SpectraError(f"{path} is empty; expected `path label` on every line")
    return names, np.array(labels, dtype=np.int64)


def _check_labels(labels: Integers, count: int, where: str) -> None:
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= count:
        span = f"from {labels.min()} to {labels.max()}" if len(labels) else "of no sample"
        raise SpectraError(f"{where} has labels {span}; expected 0 to {count - 1}")


def _fetch(url: str, md5: str, folder: Path) -> Path:
    """Download a file into a folder, or take the one that lies there, if its MD5 sum is right."""
    import pooch

    try:
        return Path(
            pooch.retrieve(
                url, f"md5:{md5}", fname=url.rsplit("/", 1)[1], path=folder, progressbar=True
            )
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: wrong sum
        raise SpectraError(
            f"{folder} holds neither the binary nor the parquet layout, and {url} could not be "
            f"fetched ({error}); put the archive or train-*.parquet there"
        ) from error


def _unpack(archive: Path, inner: str, files: Sequence[str], home: Path) -> None:
    """Copy the named regular files out of an archive, and nothing else that may be in it."""
    home.mkdir(exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            for file in files:
                stream = tar.extractfile(f"{inner}/{file}")
                if stream is None:
                    raise KeyError(file)
                with replacing(home / file) as partial, partial.open("wb") as target:
                    shutil.copyfileobj(stream, target)
    except (KeyError, tarfile.TarError) as error:
        raise SpectraError(f"{archive} lacks {error}; delete it to fetch it again") from error
