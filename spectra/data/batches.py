"""Anyone's batches as samples: read once, kept as tensors, nothing random left in them.

A Lanczos run that goes back to a loader meets new random crops in every product, and so a new
matrix. Here the loader is iterated once; if reading one item several times gives different tensors
it is refused, unless a number of draws to keep is given. All random states are put back.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..errors import SpectraError
from .samples import Samples

PROBED_ITEMS, PROBED_READS = 8, 4  # a flip of probability 1/2 escapes 24 coin throws
RANDOM_NAME = re.compile("Random|Jitter|Noise|Auto?Augment|AugMix|Erasing|Dropout|MixUp|CutMix")


def read_batches(
    source: Any,
    num_classes: int | None = None,
    *,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    draws: int | None = None,
    seed: int = 0,
) -> Samples:
    """Read batches once into samples.

    Args:
        source: A DataLoader, an iterable of (inputs, targets) batches, or a pair of tensors.
        num_classes: Number of classes C; None: the largest label plus one.
        class_names: C names; None: "0", "1", ...
        mean: (c,) to subtract, if the inputs are images that are not normalised yet; else None.
        std: (c,) to divide by.
        draws: Passes over a loader with random transforms to keep as K·N samples; None: refuse it.
        seed: Seed of those draws.

    Raises:
        SpectraError: If transforms are random and no draws are given, or shapes do not fit.
    """
    if isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[0], Tensor):
        batches: list[Any] = [source]
    elif isinstance(source, DataLoader):
        with _random_states_kept(source):
            if draws is None:
                _refuse_random(source)
            batches = []
            for k in range(draws or 1):
                if draws is not None:
                    _seed_all(source, seed + k)
                batches.extend(source)
    elif isinstance(source, Iterable):
        batches = list(source)
    else:
        raise SpectraError(
            f"samples came as {type(source).__name__}; expected a DataLoader, a list of "
            "(inputs, targets) batches or a pair of tensors"
        )
    if draws is not None and not (isinstance(source, DataLoader) and draws >= 1):
        raise SpectraError(f"draws={draws} was given; it counts passes (1 or more) of a DataLoader")
    for batch in batches:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise SpectraError(f"a batch is a {type(batch).__name__}; expected (inputs, targets)")
    if not batches:
        raise SpectraError("the source gave no batch; expected at least one (inputs, targets)")
    inputs = torch.cat([torch.as_tensor(x).detach().cpu() for x, _ in batches])
    targets = torch.cat([torch.as_tensor(y).detach().cpu() for _, y in batches])
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex():
        raise SpectraError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; expected one integer "
            "label for each input (n,)"
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise SpectraError("the inputs hold NaN or Inf; every product with them would be NaN")
    targets = targets.long()
    count = num_classes or int(targets.max()) + 1
    return Samples(
        inputs,
        targets,
        count,
        tuple(class_names or map(str, range(count))),
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
    )


def _refuse_random(loader: DataLoader[Any]) -> None:
    """Raise if an item read again, through the loader's own collate function, differs."""
    names = [type(t).__name__ for t in _transforms(loader.dataset)]
    culprits = [name for name in names if RANDOM_NAME.search(name)]
    data = loader.dataset
    if not culprits and not isinstance(data, IterableDataset):
        size = len(data)  # type: ignore[arg-type]
        for i in np.linspace(0, size - 1, min(PROBED_ITEMS, size), dtype=int).tolist():
            reads = [loader.collate_fn([data[i]]) for _ in range(PROBED_READS)]
            if loader.batch_size is None:
                reads = [loader.collate_fn(data[i]) for _ in range(PROBED_READS)]
            if any(not _equal(reads[0], again) for again in reads[1:]):
                culprits = names or [f"{type(data).__name__}.__getitem__ or the collate function"]
                break
    if culprits:
        raise SpectraError(
            f"the loader's data set draws anew on every read ({', '.join(culprits)}): each "
            "product would use another matrix; take the transform out, or give draws=K to keep "
            "K draws (draws=1: one)"
        )


def _transforms(data: Any) -> Iterator[Any]:
    """Walk the transforms of a data set, through subsets, concatenations and compositions."""
    for part in getattr(data, "datasets", ()):
        yield from _transforms(part)
    if hasattr(data, "dataset"):
        yield from _transforms(data.dataset)
    stack = [getattr(data, name, None) for name in ("transform", "transforms", "target_transform")]
    while stack:
        item = stack.pop(0)
        if isinstance(item, Sequence | torch.nn.ModuleList):
            stack[:0] = list(item)
        elif (inner := getattr(item, "transforms", getattr(item, "transform", None))) is not None:
            if not hasattr(item, "transforms") or RANDOM_NAME.search(type(item).__name__):
                yield item
            stack[:0] = [inner]
        elif callable(item):
            yield item


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(_equal(p, q) for p, q in zip(a, b, strict=True))
    return bool(np.all(a == b))


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    places = (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    found = (getattr(place, "generator", None) for place in places)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _seed_all(loader: DataLoader[Any], seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # the CPU alone: transforms run there
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what a user's transforms may draw from
    random.seed(seed)
    for generator in _generators(loader):
        generator.manual_seed(seed)


@contextmanager
def _random_states_kept(loader: DataLoader[Any]) -> Iterator[None]:
    """Put back every random state that reading a loader may move, its own generators' too."""
    own = [(g, g.get_state()) for g in _generators(loader)]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            for generator, state in own:
                generator.set_state(state)
