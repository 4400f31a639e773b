"""Anyone's batches: read once, kept, random transforms refused by name or stored."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from spectra.data import Samples
from spectra.errors import SpectraError

X = torch.randn(22, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(22) % 3


class RandomHorizontalFlip:
    def __call__(self, x):
        return x.flip(-1) if torch.rand(()) < 0.5 else x


class Shaky:
    """A random transform whose name does not say so, drawing from NumPy and Python."""

    def __call__(self, x):
        return x + np.random.rand() + random.random()  # noqa: NPY002


class Halve:
    def __call__(self, x):
        return x / 2


class Compose:
    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, x):
        for transform in self.transforms:
            x = transform(x)
        return x


class Pictures(Dataset):
    def __init__(self, transform=None):
        self.transform, self.reads = transform, 0

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        self.reads += 1
        return (X[i] if self.transform is None else self.transform(X[i])), int(Y[i])


class Stream(IterableDataset):
    passes = 0

    def __iter__(self):
        Stream.passes += 1
        return iter([(X[i], int(Y[i])) for i in range(22)])


def rows(samples):
    """Return the samples as a sorted list, to compare sets whatever their order."""
    pairs = zip(samples.inputs, samples.targets, strict=True)
    return sorted((int(y), *x.flatten().tolist()) for x, y in pairs)


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        [(X[:5], Y[:5]), (X[5:], Y[5:])],
        (X.numpy(), Y.numpy()),
        TensorDataset(X, Y),
        ([X[:1], Y[:1]] for _ in range(0)),
    ],
    ids=["pair", "list", "arrays", "data set", "empty"],
)
def test_tensors_and_lists_are_kept_as_they_are(source):
    if not isinstance(source, tuple | list | TensorDataset):
        with pytest.raises(SpectraError, match="gave 0 batches"):
            Samples.from_batches(source)
        return
    samples = Samples.from_batches(source)
    assert torch.equal(samples.inputs, X)
    assert torch.equal(samples.targets, Y)
    assert samples.counts == (8, 7, 7)
    assert torch.equal(samples.prepared(), X)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((X, Y, Y), "a tuple of 3; expected a pair"),
        ([X], "a batch is a Tensor"),
        ([], "gave 0 batches"),
    ],
)
def test_what_is_no_pair_is_told_by_its_size(source, words):
    with pytest.raises(SpectraError, match=words):
        Samples.from_batches(source)


def test_a_generator_of_batches_is_read_once():
    """P2, P44: a one-shot iterator is as good as a list, and products never go back to it."""
    samples = Samples.from_batches((X[i : i + 5], Y[i : i + 5]) for i in range(0, 22, 5))
    assert torch.equal(samples.inputs, X)
    assert torch.equal(samples.prepared(), samples.prepared())


def test_a_shuffling_loader_gives_every_sample_once():
    plain = Samples.from_batches(DataLoader(Pictures(), batch_size=5))
    shuffled = Samples.from_batches(DataLoader(Pictures(), batch_size=5, shuffle=True))
    assert rows(plain) == rows(shuffled)
    assert torch.equal(plain.inputs, X)


def test_a_loader_is_iterated_once():
    """P44: one pass of the loader (and the few items read again to see that they stand still)."""
    Stream.passes = 0
    samples = Samples.from_batches(DataLoader(Stream(), batch_size=4))
    assert Stream.passes == 1
    samples.prepared()
    assert Stream.passes == 1
    data = Pictures()
    Samples.from_batches(DataLoader(data, batch_size=4))
    assert data.reads <= len(X) + 32


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (RandomHorizontalFlip(), "RandomHorizontalFlip"),
        (Compose(Halve(), Compose(RandomHorizontalFlip())), "RandomHorizontalFlip"),
        (Compose(Halve(), Shaky()), "Shaky"),
        (lambda x: x + torch.rand(()), "<lambda>"),
    ],
)
def test_random_transforms_are_refused_by_name(transform, name):
    """P1: such a loader would give each product another matrix."""
    for data in (
        Pictures(transform),
        Subset(Pictures(transform), range(9)),
        ConcatDataset([Pictures(), Pictures(transform)]),
    ):
        with pytest.raises(SpectraError, match=rf"{name}.*draws=K"):
            Samples.from_batches(DataLoader(data, batch_size=4))


def test_randomness_without_a_transform_is_refused_too():
    """P1: a collate function may draw as well."""

    def noisy(items):
        return torch.stack([x + torch.rand(()) for x, _ in items]), torch.tensor(
            [y for _, y in items]
        )

    with pytest.raises(SpectraError, match="collate"):
        Samples.from_batches(DataLoader(Pictures(), batch_size=4, collate_fn=noisy))


def test_draws_freeze_a_random_loader():
    """P1: K stored draws are one fixed set, the same for the same seed."""
    loader = DataLoader(Pictures(Compose(RandomHorizontalFlip(), Shaky())), 5, shuffle=True)
    first, again = (Samples.from_batches(loader, draws=3, seed=1) for _ in range(2))
    other = Samples.from_batches(loader, draws=3, seed=2)
    assert first.counts == (24, 21, 21)
    assert first.pixels_sha256 == again.pixels_sha256
    assert rows(first) != rows(other)


@pytest.mark.parametrize("draws", [None, 2])
def test_reading_a_loader_moves_no_random_state(draws):
    own = torch.Generator().manual_seed(4)
    loader = DataLoader(Pictures(), batch_size=5, shuffle=True, generator=own)
    # Python's own generator is left out: beartype, on in the tests, draws from it.
    before = torch.random.get_rng_state(), own.get_state()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    Samples.from_batches(loader, draws=draws)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert torch.equal(before[1], own.get_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


def test_a_data_set_that_draws_from_python_leaves_its_state():
    code = (
        "import random, torch; from spectra.data import Samples\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return torch.tensor([random.random()]), i\n"
        "before = random.getstate()\n"
        "Samples.from_batches(torch.utils.data.DataLoader(Data()), draws=2)\n"
        "assert random.getstate() == before\n"
    )
    # A process of its own: beartype, on in the tests, draws from the same generator.
    subprocess.run([sys.executable, "-c", code], check=True)


def test_worker_processes_draw_the_same_again():
    """P44: workers are started once, and a seed fixes what they draw."""
    loader = DataLoader(Pictures(RandomHorizontalFlip()), batch_size=8, num_workers=1)
    first, again = (Samples.from_batches(loader, draws=1, seed=3) for _ in range(2))
    assert first.pixels_sha256 == again.pixels_sha256


def test_unbatched_loaders_and_tensor_data_sets_are_read():
    unbatched = DataLoader([(X[:5], Y[:5]), (X[5:], Y[5:])], batch_size=None)
    assert rows(Samples.from_batches(unbatched)) == rows(Samples.from_batches((X, Y)))
    assert rows(Samples.from_batches(DataLoader(TensorDataset(X, Y), batch_size=7))) == rows(
        Samples.from_batches((X, Y))
    )


def test_uint8_images_are_normalised_as_told():
    pixels = torch.full((2, 3, 2, 2), 255, dtype=torch.uint8)
    samples = Samples.from_batches((pixels, torch.tensor([0, 1])), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(samples.prepared(), torch.ones(2, 3, 2, 2))


@pytest.mark.parametrize(
    ("source", "options", "complaint"),
    [
        (7, {}, "came as int"),
        ([], {}, "gave 0 batches"),
        ([X], {}, "a batch is a Tensor"),
        ([{"x": X}], {}, "a batch is a dict"),
        (DataLoader([{"x": x} for x in X]), {}, "a batch is a dict"),
        ((X, Y[:3]), {}, r"inputs \(22, 3, 4, 4\) and targets \(3,\)"),
        ((X, Y.double()), {}, "one integer label"),
        ((X, Y[:, None]), {}, "one integer label"),
        ((X * float("nan"), Y), {}, "NaN or Inf"),
        ((X, Y), {"num_classes": 2}, "labels run from 0 to 2"),
        ((X, Y), {"draws": 2}, "DataLoader"),
        ((X[:0], Y[:0]), {}, "0 samples"),
        ([(X, Y), (X[:, :1], Y)], {}, "shape"),
    ],
)
def test_what_is_no_batch_is_refused_in_one_line(source, options, complaint):
    with pytest.raises(SpectraError, match=complaint) as caught:
        Samples.from_batches(source, **options)
    assert "\n" not in str(caught.value)
