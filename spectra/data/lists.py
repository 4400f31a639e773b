"""Lists of `path label` lines, as ImageNet-LT and iNaturalist 2018 are published.

Which list. In the folder, or in a folder of it, lies one list whose name ends with train.txt; for
a published set the one that begins with its name comes first. The test list is its namesake that
ends with test.txt, and only where there is none the one that ends with val.txt: ImageNet-LT is
tested on its test list, iNaturalist 2018, which has no other, on its validation list.

Which images. Paths are relative to the folder, to the list's own folder, to a folder of either
(lists without the leading train/), or to the folder above (lists that begin with the folder's
name): the first of these where one of the list's first images lies.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SpectraError

Integers = NDArray[np.int64]
PUBLISHED = {"imagenet-lt": "ImageNet_LT", "inat2018": "iNaturalist18"}
FIRST_LINES = 8  # looked for to find where the images lie


@dataclass(frozen=True)
class Listing:
    """Hold what a list says, line by line."""

    path: Path
    lines: Integers  # (N,) numbers of the lines, from 1
    files: tuple[str, ...]  # (N,) as written
    labels: Integers  # (N,)


def find_train_list(folder: Path, name: str) -> Path | None:
    """Return the training list of a data set in a folder (or the one named itself), if any.

    Raises:
        SpectraError: If there are several.
    """
    if folder.is_file():
        return folder if folder.name.endswith("train.txt") else None
    for pattern in ("*train.txt", "*/*train.txt"):
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        own = [p for p in found if name in PUBLISHED and p.name.startswith(PUBLISHED[name])]
        found = own or found
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise SpectraError(
                f"{folder} holds {len(found)} training lists ({names}); expected one: which of "
                "them is meant would be a guess; give the list itself in place of the folder"
            )
        if found:
            return found[0]
    return None


def find_test_list(train: Path) -> Path:
    """Return the test list that belongs to a training list, or else its validation list.

    Raises:
        SpectraError: If there is neither.
    """
    stem = train.name.removesuffix("train.txt")
    for ending in ("test.txt", "val.txt"):
        if (path := train.with_name(stem + ending)).is_file():
            return path
    raise SpectraError(
        f"{train} has no test list beside it; looked for {stem}test.txt and {stem}val.txt: put one "
        "of them there"
    )


def read_list(path: Path) -> Listing:
    """Read a list; empty lines are passed over.

    Raises:
        SpectraError: If a line is no `path label`, or the list is empty or cannot be read.
    """
    try:
        # File names are bytes: those that are no UTF-8 come through and open all the same.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise SpectraError(f"{path} cannot be read ({error}); mend or replace it") from error
    lines, files, labels = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2 or not parts[1].isdecimal() or len(parts[1]) > 18:
            raise SpectraError(
                f"{path}:{number} is {line!r}; expected `path label`, with labels 0, 1, 2, ...: "
                "mend the line, or take it out"
            )
        lines.append(number)
        files.append(parts[0].strip())
        labels.append(int(parts[1]))
    if not files:
        raise SpectraError(f"{path} is empty; expected `path label` on every line")
    return Listing(
        path, np.array(lines, dtype=np.int64), tuple(files), np.array(labels, dtype=np.int64)
    )


def count_classes(train: Listing) -> int:
    """Return how many classes a training list shows: its largest label plus one.

    Raises:
        SpectraError: If the list is too short to have a line for each of them.
    """
    largest = int(train.labels.max())
    if largest >= len(train.labels):
        line = train.lines[int(train.labels.argmax())]
        raise SpectraError(
            f"{train.path}:{line} has label {largest} in a list of {len(train.labels)} images; "
            f"expected labels 0 to C-1, and images for each: classes without one have no Hessian; "
            "number the classes from 0 without gaps"
        )
    return largest + 1


def check_labels(listing: Listing, num_classes: int, owner: str) -> None:
    """Raise SpectraError, naming the line, if a label is none of the classes of its owner."""
    beyond = np.flatnonzero(listing.labels >= num_classes)
    if len(beyond):
        first = beyond[0]
        raise SpectraError(
            f"{listing.path}:{listing.lines[first]} has label {listing.labels[first]}, one of "
            f"{len(beyond)} such lines; {owner} has the classes 0 to {num_classes - 1}: the list "
            "is of another data set, or counts from 1; name that data set, or count from 0"
        )


def image_paths(listing: Listing, folder: Path, index: Integers) -> list[Path]:
    """Return the paths of some of a list's images, after a look at each of them.

    Args:
        listing: The list.
        folder: The data's folder.
        index: (n,) which images.

    Raises:
        SpectraError: Naming line and file, if an image is missing.
    """
    folder = folder.parent if folder.is_file() else folder
    homes = list(dict.fromkeys((folder, listing.path.parent)))
    homes += [part for home in homes for part in sorted(home.iterdir()) if part.is_dir()]
    homes.append(folder.resolve().parent)
    some = listing.files[:FIRST_LINES]
    home = next((h for h in homes if any((h / file).is_file() for file in some)), None)
    rows = index.tolist()
    paths = [(home or folder) / listing.files[row] for row in rows]
    missing = [k for k, path in enumerate(paths) if not path.is_file()]
    if missing:
        row = rows[missing[0]]
        searched = f"{home}" if home else f"{folder}, the folders in it and the one above it"
        raise SpectraError(
            f"{listing.path}:{listing.lines[row]} names {listing.files[row]}, which is not in "
            f"{searched}; {len(missing)} of {len(rows)} images are missing and the classes would "
            "be others: put the images there, or take their lines out of the list"
        )
    return paths
