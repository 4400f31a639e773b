"""Anyone's batches as samples: read once, kept as tensors, nothing random left in them.

A Lanczos run that goes back to a loader meets new random crops in every product, and so a new
matrix. Here the loader is iterated once; if items read several times give different tensors, or a
transform is random by its name, it is refused, unless a number of draws to keep is given.
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ..errors import SpectraError
from .samples import Samples

PROBED_ITEMS, PROBED_READS = 8, 4  # a flip of probability 1/2 escapes 24 tosses of a coin
RANDOM_NAME = re.compile("Random|Jitter|Noise|Augment|AugMix|Erasing|Dropout|MixUp|CutMix")


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
    """Read batches once into samples; every random state is put back.

    Args:
        source: A DataLoader, an iterable of (inputs, targets) batches, a TensorDataset, or a pair
            of tensors or arrays.
        num_classes: Number of classes C; None: the largest label plus one.
        class_names: C names; None: "0", "1", ...
        mean: (c,) to subtract, if the inputs are images that are not normalised yet; else None.
        std: (c,) to divide by.
        draws: Passes K over a loader with random transforms, kept as K·N samples; None: refuse.
        seed: Seed of those draws.

    Raises:
        SpectraError: If transforms are random and no draws are given, or shapes do not fit.
    """
    loader = source if isinstance(source, DataLoader) else None
    if draws is not None and (loader is None or draws < 1):
        raise SpectraError(f"draws={draws} was given; it counts passes (1 or more) of a DataLoader")
    if isinstance(source, TensorDataset):
        source = source.tensors
    several = isinstance(source, tuple | list) and len(source) > 1
    if several and isinstance(source[0], Tensor | np.ndarray):
        source = [source]
    if not isinstance(source, Iterable):
        raise SpectraError(
            f"samples came as {type(source).__name__}; expected a DataLoader, a list of "
            "(inputs, targets) batches, or a pair of tensors or arrays"
        )
    with _random_states_kept(loader):
        if loader is not None and draws is None:
            _refuse_random(loader)
        pairs = [_pair(batch) for batch in _passes(source, loader, draws, seed)]
    kinds, total = {(x.dtype, x.shape[1:]) for x, _ in pairs}, sum(len(y) for _, y in pairs)
    if total == 0 or len(kinds) > 1:
        raise SpectraError(
            f"the source gave {len(pairs)} batches of {total} samples; expected at least one, and "
            "inputs of one dtype and one shape (pad or resize them first)"
        )
    inputs, targets = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise SpectraError("the inputs hold NaN or Inf; every product with them would be NaN")
    count = num_classes or int(targets.max()) + 1
    names = tuple(class_names or map(str, range(count)))
    mean, std = (None if v is None else tuple(map(float, v)) for v in (mean, std))
    return Samples(inputs, targets, count, names, mean, std)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        parts = f" of {len(batch)}" if isinstance(batch, tuple | list | dict) else ""
        raise SpectraError(
            f"a batch is a {type(batch).__name__}{parts}; expected a pair (inputs, targets)"
        )
    # A copy of an array: torch takes neither negative strides nor, quietly, what is read-only.
    copied = (np.array(part) if isinstance(part, np.ndarray) else part for part in batch)
    x, y = (torch.as_tensor(part).detach().cpu() for part in copied)
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or x.shape[:1] != y.shape:
        raise SpectraError(
            f"a batch has inputs {tuple(x.shape)} and targets {tuple(y.shape)} of {y.dtype}; "
            "expected one integer label for each input: (n, ...) and (n,)"
        )
    return x, y.long()


def _passes(source: Any, loader: Any, draws: int | None, seed: int) -> Iterator[Any]:
    for k in range(draws or 1):
        if draws is not None:  # the CPU's generators alone: transforms run there
            for generator in (torch.default_generator, *_generators(loader)):
                generator.manual_seed(seed + k)
            np.random.seed((seed + k) % 2**32)  # noqa: NPY002
            random.seed(seed + k)
        yield from source


def _refuse_random(loader: DataLoader[Any]) -> None:
    """Raise if an item read again, through the loader's own collate function, differs."""
    data = loader.dataset
    names = list(_transform_names(data))
    culprits = [name for name in names if RANDOM_NAME.search(name)]
    size = 0 if isinstance(data, IterableDataset) else len(data)  # type: ignore[arg-type]
    for i in np.linspace(0, size - 1, 0 if culprits else min(PROBED_ITEMS, size)).astype(int):
        items = (data[int(i)] for _ in range(PROBED_READS))
        batched = loader.batch_size is not None or loader.batch_sampler is not None
        first, *others = (loader.collate_fn([x] if batched else x) for x in items)
        if not all(_equal(first, other) for other in others):
            culprits = names or [f"{type(data).__name__}.__getitem__ or the collate function"]
            break
    if culprits:
        raise SpectraError(
            f"the loader's data set draws anew on every read ({', '.join(culprits)}): each "
            "product would use another matrix; take the transform out, or give draws=K to keep "
            "K draws (draws=1: one)"
        )


def _transform_names(data: Any) -> Iterator[str]:
    """Walk the transforms of a data set, through subsets, concatenations and compositions."""
    for part in (*getattr(data, "datasets", ()), getattr(data, "dataset", None)):
        if part is not None:
            yield from _transform_names(part)
    stack = [getattr(data, name, None) for name in ("transform", "transforms", "target_transform")]
    while stack:
        item = stack.pop(0)
        if isinstance(item, Sequence | torch.nn.Sequential | torch.nn.ModuleList):
            stack[:0] = list(item)
        elif callable(item):
            inner = getattr(item, "transforms", getattr(item, "transform", None))
            name = getattr(item, "__name__", type(item).__name__)
            if inner is None or RANDOM_NAME.search(name):
                yield name
            stack[:0] = [inner]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        a, b = list(a.values()), list(b.values())
    if isinstance(a, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(_equal(p, q) for p, q in zip(a, b, strict=True))
    return bool(np.all(a == b))


def _generators(loader: Any) -> list[torch.Generator]:
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    found = (getattr(place, "generator", None) for place in (loader, sampler, inner))
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def _random_states_kept(loader: Any) -> Iterator[None]:
    """Put back every random state that reading a loader may move, its own generators' too."""
    own = [(g, g.get_state()) for g in (torch.default_generator, *_generators(loader))]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        for generator, state in own:
            generator.set_state(state)
