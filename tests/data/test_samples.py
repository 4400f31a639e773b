"""Samples: fixed tensors, fingerprints, groups, augmentation as in the usual image pipeline."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectra.data import DIGITS_LT, DataSpec, Samples, augment, open_data
from spectra.errors import SpectraError


def pictures(n=6, c=3, side=8, classes=3, **options):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, c, side, side), generator=generator, dtype=torch.uint8)
    names = tuple(f"class {k}" for k in range(classes))
    return Samples(pixels, torch.arange(n) % classes, classes, names, **options)


def test_other_constants_of_normalisation_take_the_place_of_those_of_the_name():
    images = pictures(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    pixels = images.inputs.float() / 255
    other = images.normalised_by((0.5, 0.4, 0.3), (0.5,))
    mean = torch.tensor((0.5, 0.4, 0.3)).view(1, 3, 1, 1)
    torch.testing.assert_close(other.prepared(), (pixels - mean) / 0.5)
    torch.testing.assert_close(images.normalised_by((0,), (1,)).prepared(), pixels)
    for wrong in (((0.5, 0.5), (1, 1)), ((0,), (0,)), ((float("nan"),), (1,)), ((125,), (63,))):
        with pytest.raises(SpectraError):
            images.normalised_by(*wrong)
    with pytest.raises(SpectraError, match="as bytes"):
        dataclasses.replace(images, inputs=pixels).normalised_by((0,), (1,))


def by_hand(image, top, left, mirrored, padding):
    """Crop one image as a pipeline does that pads, cuts and mirrors a single picture."""
    _, h, w = image.shape
    out = torch.zeros_like(image)
    for y in range(h):
        for x in range(w):
            source_y = y + top - padding
            source_x = (w - 1 - x if mirrored else x) + left - padding
            if 0 <= source_y < h and 0 <= source_x < w:
                out[:, y, x] = image[:, source_y, source_x]
    return out


@pytest.mark.parametrize("name", ["crop-flip:4", "crop:1", "crop:0"])
def test_batched_augmentation_equals_a_loop_over_images(name):
    images = pictures(n=9).inputs
    kind, padding = name.split(":")
    drawn = augment(images, name, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    corner = torch.randint(0, 2 * int(padding) + 1, (2, 9), generator=generator)
    flip = torch.randint(0, 2, (9,), generator=generator)
    for k in range(9):
        mirrored = bool(flip[k]) and kind == "crop-flip"
        expected = by_hand(images[k], int(corner[0, k]), int(corner[1, k]), mirrored, int(padding))
        assert torch.equal(drawn[k], expected)


def test_every_shift_and_both_sides_are_drawn_equally_often():
    image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    image[0, 0, 1, 0] = 1
    many = augment(
        image.expand(18_000, -1, -1, -1), "crop-flip:1", torch.Generator().manual_seed(1)
    )
    patterns, counts = torch.unique(many.flatten(1), dim=0, return_counts=True)
    # 3 rows by 3 columns, each side: in the middle row 1 of 3 shifts moves the dot out of sight.
    assert counts.sum() == 18_000
    assert len(patterns) == 10
    assert counts.min() > 700


def test_black_is_padded_before_the_normalisation():
    samples = pictures(augmentation="crop:8", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    drawn = samples.prepared(generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn.min(), torch.tensor(-2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepared_equals_the_pipeline_of_one_image_at_a_time(dtype, device):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    samples = pictures(mean=mean, std=std)
    expected = torch.stack(
        [
            (image.to(dtype) / 255 - torch.tensor(mean, dtype=dtype)[:, None, None])
            / torch.tensor(std, dtype=dtype)[:, None, None]
            for image in samples.inputs
        ]
    )
    prepared = samples.prepared(dtype, device)
    assert prepared.dtype == dtype
    if device.type == "cpu":
        assert torch.equal(prepared, expected)
    torch.testing.assert_close(prepared.cpu(), expected)


def test_the_draw_is_the_same_on_every_device(device):
    samples = pictures(augmentation="crop-flip:4")
    here = samples.prepared(generator=torch.Generator().manual_seed(3))
    there = samples.prepared(device=device, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(there.cpu(), here)


def test_preparing_again_gives_the_same_bits_and_moves_no_random_state():
    samples = pictures(mean=(0.1,) * 3, std=(2.0,) * 3, augmentation="crop:1")
    kept, state = samples.inputs.clone(), torch.random.get_rng_state()
    assert torch.equal(samples.prepared(), samples.prepared())
    samples.prepared(generator=torch.Generator().manual_seed(0))
    samples.frozen(2, seed=0)
    assert torch.equal(samples.inputs, kept)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_frozen_copies_are_stored_draws_and_stay_what_they_are():
    """P1: an augmented operator is fixed to K stored draws."""
    samples = pictures(augmentation="crop-flip:4", mean=(0.1,) * 3, std=(2.0,) * 3)
    frozen = samples.frozen(3, seed=7)
    assert frozen.counts == tuple(3 * n for n in samples.counts)
    assert frozen.augmentation is None
    assert frozen.pixels_sha256 == samples.frozen(3, seed=7).pixels_sha256
    assert frozen.pixels_sha256 != samples.frozen(3, seed=8).pixels_sha256
    generator = torch.Generator().manual_seed(7)
    live = torch.cat([samples.prepared(generator=generator) for _ in range(3)])
    assert torch.equal(frozen.prepared(), live)
    with pytest.raises(SpectraError, match="augmentation is None"):
        frozen.prepared(generator=generator)


def test_tokens_keep_their_dtype_and_floats_take_the_one_asked_for():
    targets = torch.tensor([0, 1])
    tokens = Samples(torch.tensor([[1, 2], [3, 4]]), targets, 2, ("a", "b"))
    assert tokens.prepared(torch.float64).dtype == torch.int64
    floats = Samples(torch.randn(2, 5), targets, 2, ("a", "b"))
    assert floats.prepared(torch.float64).dtype == torch.float64


def test_classes_partition_the_samples():
    samples = pictures(n=10)
    parts = [samples.of_class(c) for c in range(3)]
    assert tuple(len(part) for part in parts) == samples.counts
    assert all(set(part.targets.tolist()) == {c} for c, part in enumerate(parts))
    assert torch.equal(samples.select(torch.tensor([4, 1])).inputs, samples.inputs[[4, 1]])
    assert samples.select(torch.tensor([4, 1])).positions.tolist() == [1, 0]


def test_ignored_samples_belong_to_no_class():
    samples = Samples(torch.randn(3, 2), torch.tensor([0, -100, 1]), 2, ("a", "b"))
    assert samples.counts == (1, 1)


def test_an_empty_class_has_no_hessian():
    samples = Samples(torch.randn(2, 2), torch.tensor([0, 0]), 2, ("cat", "dog"))
    with pytest.raises(SpectraError, match=r"class 1 has no sample"):
        samples.of_class(1)
    with pytest.raises(SpectraError, match="0 to 1"):
        samples.of_class(2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_classes": 2, "class_names": ("a", "b")}, "labels run from 0 to 2"),
        ({"class_names": ("a",)}, "3 classes with 1 names"),
        ({"mean": (0.1,) * 3}, "3 and None channels"),
        ({"mean": (0.1,), "std": (0.1,)}, "1 and 1 channels"),
    ],
)
def test_parts_that_disagree_are_refused(options, complaint):
    with pytest.raises(SpectraError, match=complaint):
        dataclasses.replace(pictures(), **options)


def test_fingerprints_are_the_documented_bytes():
    samples = pictures(n=4)
    rows = np.array([[0, 0], [1, 0], [2, 0], [0, 1]], dtype="<i8")
    assert samples.draw_sha256 == hashlib.sha256(rows.tobytes()).hexdigest()
    pixels = b"uint8:(4, 3, 8, 8)" + samples.inputs.numpy().tobytes()
    assert samples.pixels_sha256 == hashlib.sha256(pixels).hexdigest()


def test_fingerprints_tell_a_pixel_and_an_order_apart():
    samples = pictures()
    changed = samples.inputs.clone()
    changed[0, 0, 0, 0] ^= 1
    other = dataclasses.replace(samples, inputs=changed)
    assert other.pixels_sha256 != samples.pixels_sha256
    assert other.draw_sha256 == samples.draw_sha256
    assert samples.select(torch.tensor([1, 0, 2, 3, 4, 5])).draw_sha256 != samples.draw_sha256
    strided = dataclasses.replace(samples, inputs=samples.inputs.flip(3).flip(3))
    assert strided.pixels_sha256 == samples.pixels_sha256


def test_groups_are_the_published_splits():
    def sizes(name, classes):
        samples = Samples(
            torch.zeros(classes, 1),
            torch.arange(classes),
            classes,
            ("",) * classes,
            spec=DataSpec(name),
        )
        groups = samples.groups()
        assert sorted(c for part in groups.values() for c in part) == list(range(classes))
        return [len(part) for part in groups.values()]

    assert sizes("cifar10", 10) == [3, 4, 3]
    assert sizes("cifar100", 100) == [36, 35, 29]
    assert sizes("imagenet-lt", 1000) == [390, 445, 165]
    assert sizes("inat2018", 8142) == [842, 3701, 3599]


def test_other_groups_are_thirds_sorted_by_count():
    targets = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 9, 4, 5]))
    samples = Samples(torch.zeros(19, 1), targets, 4, ("a", "b", "c", "d"))
    assert samples.groups() == {"head": (1, 3), "mid": (2,), "tail": (0,)}


def test_digits_are_long_tailed_in_training_and_balanced_in_the_test():
    train, test = open_data(DIGITS_LT), open_data(DIGITS_LT, split="test")
    assert train.counts == (134, 96, 68, 49, 35, 25, 18, 13, 9, 6)
    assert test.counts == (40,) * 10
    assert train.inputs.shape == (453, 1, 8, 8)
    assert train.inputs.max() == 255
    assert train.groups() == {"head": (0, 1, 2, 3), "mid": (4, 5, 6), "tail": (7, 8, 9)}
    assert abs(float(open_data(DataSpec("digits")).prepared().mean())) < 1e-3


def test_the_digits_stay_what_they_were():
    train, test = open_data(DIGITS_LT), open_data(DIGITS_LT, split="test")
    assert train.draw_sha256.startswith("8dc2dab4")
    assert train.pixels_sha256.startswith("4591dd3b")
    assert test.draw_sha256.startswith("285ffc1b")
    assert test.pixels_sha256.startswith("7c6a9363")


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_positions_count_up_within_each_class(labels):
    samples = Samples(torch.zeros(len(labels), 1), torch.tensor(labels), 5, tuple("abcde"))
    expected = [labels[:i].count(label) for i, label in enumerate(labels)]
    assert samples.positions.tolist() == expected
