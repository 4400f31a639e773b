"""Anyone's batches as samples: read once, kept as tensors, nothing random left in them.

A Lanczos run that goes back to a loader meets new random crops in every product, and so a new
matrix. Here the loader is iterated once; if items read several times give different tensors, or a
transform is random by its name, it is refused, unless a number of draws to keep is given. So is one
whose sampler repeats samples or leaves some out: the class counts would be those of the sampler.
"""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Subset, TensorDataset

from ..errors import SpectraError
from .samples import Samples

INPUTS = ("pixel_values", "inputs", "input", "image", "images", "img", "x", "input_ids")
LABELS = ("labels", "label", "targets", "target", "y")
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
            of tensors or arrays. A pair may be a mapping, with one of `INPUTS` and one of `LABELS`.
        num_classes: Number of classes C; None: the largest label plus one.
        class_names: C names; None: those in ``classes`` of the loader's dataset, as torchvision's
            have it, where they are C, else "0", "1", ...
        mean: (c,) to subtract, if the inputs are images that are not normalised yet; bytes are
            scaled to 0..1 before it. None: the network takes the inputs as they are, bytes, too.
        std: (c,) to divide by.
        draws: Passes K over a loader with random transforms, kept as K·N samples; None: refuse.
        seed: Seed of those draws.

    Raises:
        SpectraError: If transforms are random and no draws are given, if a loader does not give
            each sample once, or shapes do not fit.
    """
    loader = source if isinstance(source, DataLoader) else None
    if draws is not None and (loader is None or draws < 1):
        raise SpectraError(f"draws={draws} was given; it counts passes (1 or more) of a DataLoader")
    if isinstance(source, TensorDataset):
        source = source.tensors
    several = isinstance(source, tuple | list) and len(source) > 1
    if isinstance(source, Mapping) or (several and isinstance(source[0], Tensor | np.ndarray)):
        source = [source]
    if not isinstance(source, Iterable):
        raise SpectraError(
            f"samples came as {type(source).__name__}; expected a DataLoader, a list of "
            "(inputs, targets) batches, or a pair of tensors or arrays"
        )
    if loader is not None:
        with _random_states_kept(loader):
            _refuse_uneven(loader)
            if draws is None:
                _refuse_random(loader)
    with _random_states_kept(loader):
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
    if inputs.dtype == torch.uint8 and mean is None:
        inputs = inputs.float()  # as the network takes them; samples scale bytes to 0..1
    count = num_classes or int(targets.max()) + 1
    if class_names is None and len(told := _told_classes(loader)) == count:
        class_names = told
    names = tuple(class_names or map(str, range(count)))
    mean, std = (None if v is None else tuple(map(float, v)) for v in (mean, std))
    return Samples(inputs, targets, count, names, mean, std)


def _told_classes(loader: DataLoader[Any] | None) -> tuple[str, ...]:
    """Take the names of the classes from a dataset that has them, or is a subset of such a one."""
    dataset: Any = None if loader is None else loader.dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    named = getattr(dataset, "classes", None)
    if isinstance(named, list | tuple) and all(isinstance(name, str) for name in named):
        return tuple(named)
    return ()


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    pair = _named(batch) if isinstance(batch, Mapping) else batch
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        parts = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
        raise SpectraError(
            f"a batch is a {type(pair).__name__}{parts}; expected a pair (inputs, targets)"
        )
    # A copy of an array: torch takes neither negative strides nor, quietly, what is read-only.
    copied = (np.array(part) if isinstance(part, np.ndarray) else part for part in pair)
    try:
        x, y = (torch.as_tensor(part) for part in copied)
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = [type(part).__name__ for part in pair]
        raise SpectraError(
            f"a batch has inputs of type {kinds[0]} and targets of type {kinds[1]}; expected one "
            "tensor or array of each, since the network is called with one: stack what belongs "
            "together, and let its forward take it apart"
        ) from error
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or x.shape[:1] != y.shape:
        raise SpectraError(
            f"a batch has inputs {tuple(x.shape)} and targets {tuple(y.shape)} of {y.dtype}; "
            "expected one integer label for each input: (n, ...) and (n,)"
        )
    return x.detach().cpu(), y.detach().cpu().long()


def _named(batch: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Take inputs and labels out of a batch with names, as Hugging Face's collators make them."""
    inputs, labels = ([k for k in batch if k in known] for known in (INPUTS, LABELS))
    if len(inputs) != 1 or len(labels) != 1 or len(batch) != 2:
        raise SpectraError(
            f"a batch has the keys {', '.join(map(str, batch))}; expected one for the inputs "
            f"({', '.join(INPUTS)}), one for the labels ({', '.join(LABELS)}) and no other: a mask "
            "or a second input changes the function; stack them, torch.stack([input_ids, "
            "attention_mask], 1), and give a network whose forward takes them apart"
        )
    return batch[inputs[0]], batch[labels[0]]


def _passes(source: Any, loader: Any, draws: int | None, seed: int) -> Iterator[Any]:
    for k in range(draws or 1):
        if draws is not None:  # the CPU's generators alone: transforms run there
            for generator in (torch.default_generator, *_generators(loader)):
                generator.manual_seed(seed + k)
            np.random.seed((seed + k) % 2**32)  # noqa: NPY002
            random.seed(seed + k)
        yield from source


def _refuse_uneven(loader: DataLoader[Any]) -> None:
    """Raise if the sampler repeats samples of the data set, or leaves some out by chance.

    What another sampler than torch's random one leaves out was chosen by whoever made it.
    """
    order: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    sampler, drops = getattr(order, "sampler", order), getattr(order, "drop_last", False)
    told, name = "", type(sampler).__name__
    shards = getattr(sampler, "num_replicas", 1)  # of torch's DistributedSampler, and of its like
    if isinstance(shards, int) and shards > 1:
        told = f"holds one of {shards} shards ({name})"
    elif isinstance(loader.dataset, IterableDataset):
        told = "leaves out the last samples of a stream (drop_last=True)" if drops else ""
    elif isinstance(loader.dataset, Sized) and not any(
        isinstance(place, Iterator)
        for place in (order, sampler)  # reading one would use it up
    ):
        count = len(loader.dataset)
        read = list(itertools.islice(_indices(order), count + 1))
        chosen = list(itertools.islice(_indices(sampler), count + 1)) if drops else read
        whole = count if isinstance(sampler, RandomSampler) else len(set(chosen))
        if getattr(sampler, "replacement", False) or len(set(read)) < len(read):
            told = f"draws with replacement ({name})"
        elif left_out := whole - len(read):
            cause = "drop_last=True" if drops else name
            told = f"leaves out {left_out} of {whole} samples ({cause})"
    if told:
        raise SpectraError(
            f"got a loader that {told}, expected each sample once: the class counts would be those "
            "of the sampler; give DataLoader(data_set, batch_size=...), or list(loader) if one "
            "such pass is what is wanted"
        )


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


def _indices(order: Any) -> Iterator[Any]:
    for entry in order:
        several = isinstance(entry, list | tuple) or getattr(entry, "ndim", 0) > 0
        for index in entry if several else (entry,):
            yield index.item() if isinstance(index, Tensor | np.generic) else index


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
