"""Checkpoint and samples as the flags of a command name them."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spectra.command_line import leads
from spectra.errors import SpectraError, TooLarge
from spectra.plan_flags import plan_of
from spectra.terminal import announced

if TYPE_CHECKING:
    from torch import Tensor

    from spectra import Checkpoint, DataSpec, Samples


def open_checkpoint(path: str | Path, options: argparse.Namespace) -> Checkpoint:
    """Open a checkpoint with what the flags say of its network."""
    from spectra import load_checkpoint

    names = ("model", "arch", "num_classes", "weights", "scale")
    return load_checkpoint(path, **{name: getattr(options, name) for name in names})


def open_samples(
    checkpoint: Checkpoint,
    options: argparse.Namespace,
    *,
    accuracies: bool = True,
    trained: bool = False,
) -> tuple[Samples | None, Samples | None]:
    """Open training and test samples of the data that the flags, or else the checkpoint, name.

    Args:
        checkpoint: whose data they are.
        options: the flags.
        accuracies: open the split that is not analysed, too, for the sake of accuracies.
        trained: open the training samples in any case.
    """
    import torch

    from spectra import open_data
    from spectra.data import require_one_size
    from spectra.gathering import needed
    from spectra.plan import choose_parts

    spec = _data_spec(checkpoint.data, options)
    if spec is None and options.data is None and not os.environ.get("SPECTRA_DATA"):
        raise SpectraError(
            f"{checkpoint.file} does not name its data, expected --data PATH and --dataset NAME "
            "(with --imbalance-ratio R for a long-tailed draw)"
        )
    if (options.mean is None) != (options.std is None):
        raise SpectraError(
            "got one of --mean and --std, expected both or neither: the other would be a guess; "
            "--mean 0 and --std 1 leave the pixels as they are"
        )

    plan = plan_of(options)
    said = nullcontext if options.quiet or not leads() else announced
    of_all = plan.overall or plan.per_class or plan.groups or not plan.classes

    def rows_of(samples: Samples, analysed: bool, train: Samples | None) -> tuple[Tensor, Tensor]:
        """Find the images that are analysed, and all that are needed, maybe for every epoch."""
        rows = torch.zeros(0, dtype=torch.long)
        if analysed:
            parts = tuple(choose_parts(plan, samples, samples if train is None else train))
            _, some = needed(parts, len(samples))
            rows = torch.arange(len(samples)) if some is None else some
        if not accuracies or of_all:
            return rows, rows
        named = torch.isin(samples.targets, torch.tensor(plan.classes)).nonzero()[:, 0]
        return rows, torch.unique(torch.cat([rows, named]))

    def opened(split: str, train: Samples | None = None) -> Samples:
        """Read all images where all are needed; else those that are, once."""
        analysed = split == plan.split
        at_once = analysed and of_all and plan.max_samples is None
        at_once |= trained and split == "train"

        def read(whole: bool) -> Samples:
            return open_data(spec, path=options.data, split=split, on_demand=not whole)

        with said(f"reading the {split} images"):
            try:
                samples = read(at_once or (of_all and accuracies))
            except TooLarge as error:
                if analysed and at_once and not trained:
                    raise SpectraError(
                        f"{error}; or, of image files, analyse named classes (--classes) or some "
                        "samples of each (--max-samples): those alone are decoded"
                    ) from error
                if at_once:
                    raise
                samples = read(False)
            if samples.decode is not None:
                analysed_rows, rows = rows_of(samples, analysed, train)
                try:
                    samples = samples.read_ahead(rows)
                except TooLarge:  # what is only classified is then read batch after batch
                    samples = samples.read_ahead(analysed_rows)
        return samples if options.mean is None else samples.normalised_by(options.mean, options.std)

    if plan.split == "test" and not (accuracies or trained or plan.groups):
        return None, opened("test")
    train = opened("train")
    if plan.split == "train" and not accuracies:
        return train, None
    try:
        test = opened("test", train)
        require_one_size(train, test)
    except SpectraError as error:
        if plan.split == "test":
            raise
        test = None  # accuracies on the test set are then unknown, and shown so
        if not options.quiet and leads():
            print(f"without test accuracies: {error}", file=sys.stderr)
    return train, test


def _data_spec(held: DataSpec | None, options: argparse.Namespace) -> DataSpec | None:
    """Describe the data by the flags, or as the checkpoint does with what the flags change."""
    from spectra import DataSpec

    ratio, draw_seed, side = options.imbalance_ratio, options.draw_seed, options.image_size
    shape = options.imbalance or ("exp" if ratio is not None else None)
    if options.dataset is not None:
        return DataSpec(options.dataset, shape, ratio, draw_seed or 0, side)
    flags = ("imbalance_ratio", "imbalance", "draw_seed", "image_size")
    given = [f"--{name.replace('_', '-')}" for name in flags if getattr(options, name) is not None]
    if not given:
        return held
    if held is None:
        raise SpectraError(
            f"got {' and '.join(given)} without a data set, expected --dataset NAME beside it: the "
            "checkpoint does not name its data"
        )
    return replace(
        held,
        imbalance=options.imbalance or held.imbalance or shape,
        ratio=held.ratio if ratio is None else ratio,
        seed=held.seed if draw_seed is None else draw_seed,
        image_size=held.image_size if side is None else side,
    )
