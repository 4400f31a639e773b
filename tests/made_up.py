"""What tests of every room can make: small data sets of the published layouts, and a tiny run."""

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from spectra.data import open_data
from spectra.training import find_recipe
from spectra.training import train as run_training


def write_list_set(
    folder: Path, classes: int = 3, per_class: Sequence[int] = (8, 4, 2), side: int = 40
) -> Path:
    """Write a set in ImageNet-LT's layout, with a colour for each class and noise on top.

    Lists ``ImageNet_LT_train.txt`` and ``_test.txt``; images ``train/<class>/*`` and ``val/*``, by
    turns JPEG and PNG, four for the test in each class. Open it with ``DataSpec("list")``
    ("imagenet-lt" wants a thousand classes).

    Args:
        folder: Made where it is missing.
        classes: Number of classes C.
        per_class: (C,) training images of each.
        side: Of the square images, in pixels.

    Returns:
        The folder.
    """
    assert len(per_class) == classes
    random = np.random.default_rng(0)
    for split, counts in (("train", tuple(per_class)), ("test", (4,) * classes)):
        lines = []
        for label, count in enumerate(counts):
            for k in range(count):
                suffix = "png" if k % 2 else "JPEG"
                name = f"val/ILSVRC2012_val_{len(lines) + 1:08d}.{suffix}"
                if split == "train":
                    name = f"train/n{label:08d}/n{label:08d}_{k}.{suffix}"
                colour = colorsys.hsv_to_rgb(label / classes, 0.8, random.uniform(0.6, 0.9))
                pixels = 255 * np.array(colour) + 20 * random.standard_normal((side, side, 3))
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
                lines.append(f"{name} {label}")
        text = "\n".join(lines) + "\n"
        (folder / f"ImageNet_LT_{split}.txt").write_text(text, encoding="utf-8")
    return folder


def train_digits(folder: Path, recipe: str = "digits-lt-ce-drw-sgd") -> Path:
    """Train three epochs on the digits, re-weighted in the last one; keep every epoch."""
    short = replace(find_recipe(recipe), epochs=3, drops=(2,))
    train, test = (open_data(short.data_spec, split=split) for split in ("train", "test"))
    run_training(short, train, test, folder=folder, save_at=(1, 2), eval_every=3, quiet=True)
    return folder
