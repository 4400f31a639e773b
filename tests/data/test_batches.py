"""Anyone's batches: read once, kept, random transforms refused by name or stored."""

import itertools
import random
import subprocess
import sys
from collections import UserDict

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
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
    if draws is None:  # the check of the sampler comes before, and leaves its order
        again = torch.cat([x for x, _ in loader])
        own.set_state(before[1])
        assert torch.equal(again, Samples.from_batches(loader).inputs)
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


def test_classes_are_those_that_the_dataset_names():
    """As torchvision's name them, in a subset or not, where there are as many."""
    pictures = Pictures()
    pictures.classes = [f"kind {c}" for c in range(int(Y.max()) + 1)]
    for dataset in (pictures, Subset(pictures, range(len(X)))):
        samples = Samples.from_batches(DataLoader(dataset, batch_size=7))
        assert samples.class_names == tuple(pictures.classes)
    more = Samples.from_batches(DataLoader(pictures, batch_size=7), int(Y.max()) + 2)
    assert more.class_names[0] == "0"  # another number was asked for
    for others in (7, [*pictures.classes, "of the labels as they were"]):
        pictures.classes = others
        samples = Samples.from_batches(DataLoader(pictures, batch_size=7))
        assert samples.num_classes == len(samples.class_names) == int(Y.max()) + 1
        assert samples.class_names[0] == "0"


@pytest.mark.parametrize("names", [("pixel_values", "labels"), ("x", "y"), ("label", "image")])
def test_batches_with_names_are_read(names):
    """Hugging Face's collators give mappings, and not all of them are dictionaries."""
    values = (Y, X) if names[0] == "label" else (X, Y)
    items = [dict(zip(names, pair, strict=True)) for pair in zip(*values, strict=True)]
    named = [dict(zip(names, values, strict=True)), UserDict(zip(names, values, strict=True))]
    for source in (DataLoader(items, batch_size=5), named[:1], named[1:], *named):
        samples = Samples.from_batches(source)
        assert torch.equal(samples.inputs, X)
        assert torch.equal(samples.targets, Y)


class Balanced(Sampler):
    """Draws with replacement, and says so nowhere."""

    def __len__(self):
        return 22

    def __iter__(self):
        return iter(torch.arange(22) // 2)


class Endless(Balanced):
    def __iter__(self):
        for i in itertools.count():
            assert i < 1000, "read without end"
            yield i % 3


TWICE = [[*range(20)], [20, 21, 0]]


@pytest.mark.parametrize("draws", [None, 1])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": WeightedRandomSampler([1.0] * 22, 22)}, "replacement .WeightedRandomSampler"),
        ({"sampler": RandomSampler(range(22), replacement=True)}, "replacement .RandomSampler"),
        ({"sampler": RandomSampler(range(22), num_samples=9)}, "out 13 of 22 .*RandomSampler"),
        ({"sampler": Balanced()}, "replacement .Balanced"),
        ({"sampler": DistributedSampler(range(22), 3, 0)}, "one of 3 shards .DistributedSampler"),
        ({"sampler": Endless()}, "replacement .Endless"),
        ({"batch_size": 5, "drop_last": True}, "leaves out 2 of 22 samples .drop_last=True"),
        ({"sampler": SubsetRandomSampler(range(9)), "batch_size": 5, "drop_last": True}, "4 of 9"),
        ({"batch_sampler": TWICE}, "replacement .list"),
    ],
)
def test_a_loader_that_changes_the_class_counts_is_refused(options, words, draws):
    loader = DataLoader(Pictures(), **options)
    with pytest.raises(SpectraError, match=rf"{words}.* expected each sample once.*list\(loader"):
        Samples.from_batches(loader, draws=draws)


def test_a_pass_of_an_uneven_loader_may_be_given_as_a_list():
    loader = DataLoader(Pictures(), batch_size=5, drop_last=True)
    assert len(Samples.from_batches(list(loader))) == 20
    with pytest.raises(SpectraError, match="last samples of a stream"):
        Samples.from_batches(DataLoader(Stream(), batch_size=5, drop_last=True))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"batch_size": 11, "drop_last": True}, 22),
        ({"sampler": torch.randperm(22), "batch_size": 5}, 22),
        ({"sampler": SubsetRandomSampler([3, 5, 8]), "batch_size": 2}, 3),
        ({"sampler": SubsetRandomSampler(torch.tensor([3, 5, 8]))}, 3),
        ({"batch_sampler": [[*range(20)], (20, 21)]}, 22),
        ({"batch_sampler": [[*range(20)]]}, 20),
        ({"sampler": [1, 2, 3]}, 3),
        ({"batch_sampler": iter([[*range(20)], [20]])}, 21),
    ],
)
def test_a_loader_that_gives_what_was_chosen_once_is_read(options, count):
    assert len(Samples.from_batches(DataLoader(Pictures(), **options))) == count


def test_bytes_are_what_the_network_takes_unless_it_is_told_otherwise():
    """A network that scales its bytes by itself would scale them twice."""
    pixels = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    samples = Samples.from_batches((pixels, torch.tensor([0, 1])))
    assert torch.equal(samples.prepared(torch.float64), pixels.double())


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
        ([{"x": X}], {}, "the keys x; expected one for the inputs .*one for the labels"),
        (DataLoader([{"x": x} for x in X]), {}, "the keys x; expected"),
        ([{"x": X, "image": X, "y": Y}], {}, "the keys x, image, y; expected one"),
        ([{"x": X, "y": Y, "attention_mask": Y}], {}, "x, y, attention_mask; .*no other: a mask"),
        ({"train": 1, "test": 2}, {}, "the keys train, test; expected"),
        ([((X, X), Y)], {}, "inputs of type tuple and targets of type Tensor; expected one tensor"),
        ([({"input_ids": X}, Y)], {}, "inputs of type dict"),
        ([(X, ["cat"] * 22)], {}, "targets of type list"),
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
