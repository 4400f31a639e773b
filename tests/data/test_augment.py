"""Augmentation of the large sets: torchvision's rule in distribution, pillow's pixels, one draw."""

import importlib
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.stats import ks_2samp, kstest

from spectra.data import augment, colour, crops
from spectra.errors import SpectraError

JITTER = "resized-crop-flip-jitter:0.4"
NAMES = ["resized-crop-flip", JITTER]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photographs(n=6, c=3, h=24, w=30, dtype=torch.uint8):
    """Smooth images and noisy ones, as floats in 0..1 or uint8."""
    y, x = torch.meshgrid(torch.linspace(0, 3, h), torch.linspace(0, 5, w), indexing="ij")
    phases = torch.rand((n, c, 1, 1), generator=seeded(1)) * 6
    noise = torch.rand((n, c, h, w), generator=seeded(2))
    values = 0.5 + 0.4 * torch.sin(x + phases) * torch.cos(y - phases) + 0.1 * (noise - 0.5)
    values = values.clamp(0, 1)
    return (values * 255).round().to(dtype) if dtype == torch.uint8 else values.to(dtype)


def slow_box(height, width, generator):
    """Draw one box as torchvision's RandomResizedCrop does, candidate by candidate."""
    for _ in range(10):
        area = height * width * generator.uniform(0.08, 1.0)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
            return top, left, h, w
    if width / height < 3 / 4:
        h, w = round(width / (3 / 4)), width
    elif width / height > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


def features(boxes, height, width):
    top, left, h, w = np.asarray(boxes, dtype=float).T
    jiggle = np.random.default_rng(9).random(len(h))  # ties between whole pixels, broken alike
    return {
        "area": h * w / (height * width),
        "aspect": np.log(w / h),
        "top": (top + jiggle) / (height - h + 1),
        "left": (left + jiggle) / (width - w + 1),
    }


@pytest.mark.parametrize(("height", "width"), [(224, 224), (60, 100), (100, 40)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    n = 12_000
    drawn = features(crops.draw_boxes(n, height, width, seeded()), height, width)
    generator = np.random.default_rng(0)
    slow = features([slow_box(height, width, generator) for _ in range(n)], height, width)
    for key in drawn:
        assert ks_2samp(drawn[key], slow[key]).pvalue > 1e-3, key


def test_the_comparison_of_distributions_sees_a_wrong_rule():
    """The sample is large enough to tell the usual mistakes from the rule."""
    n, right = 12_000, features(crops.draw_boxes(12_000, 224, 224, seeded()), 224, 224)
    generator = np.random.default_rng(0)
    evenly = np.log(generator.uniform(3 / 4, 4 / 3, n))
    assert ks_2samp(right["aspect"], evenly).pvalue < 1e-6
    assert ks_2samp(right["area"], generator.uniform(0.08, 1, n) ** 1.1).pvalue < 1e-6
    assert ks_2samp(right["top"], generator.uniform(0, 1, n) ** 1.1).pvalue < 1e-6


def test_small_boxes_of_a_large_image_have_uniform_area_and_log_aspect():
    """Where every candidate fits, nothing is rejected and the named laws hold as they stand."""
    boxes = crops.draw_boxes(20_000, 4000, 4000, seeded()).double()
    area = boxes[:, 2] * boxes[:, 3] / 4000**2
    aspect = (boxes[:, 3] / boxes[:, 2]).log() / math.log(4 / 3)
    kept = area < 0.7  # √(0.7·4/3) < 1: all of these fit
    assert kstest((area[kept] - 0.08) / 0.62, "uniform").pvalue > 1e-3
    assert kstest((aspect[kept] + 1) / 2, "uniform").pvalue > 1e-3


def test_every_box_lies_inside_and_whole_images_are_among_them():
    for height, width in [(8, 8), (1, 1), (3, 50), (224, 100)]:
        top, left, h, w = crops.draw_boxes(5000, height, width, seeded()).T
        assert min(int(v.min()) for v in (top, left)) >= 0
        assert min(int(v.min()) for v in (h, w)) >= 1
        assert int((top + h).max()) <= height
        assert int((left + w).max()) <= width
    assert bool(((h == 133) & (w == 100)).any())  # the fall-back of a tall image


def test_where_no_candidate_fits_the_centre_is_taken():
    """A strip of one pixel: every candidate is at least four pixels wide and four high."""
    assert crops.draw_boxes(50, 1, 300, seeded()).unique(dim=0).tolist() == [[0, 149, 1, 1]]
    assert crops.draw_boxes(50, 600, 2, seeded()).unique(dim=0).tolist() == [[298, 0, 3, 2]]


def test_resized_pixels_are_those_of_interpolate_on_the_cut_image(device):
    images = photographs(40, dtype=torch.float64)
    boxes = crops.draw_boxes(40, 24, 30, seeded())
    flip = torch.arange(40) % 2 == 1
    out = crops.resized_crops(images.to(device), boxes, flip).cpu()
    for image, (top, left, h, w), mirrored, seen in zip(
        images, boxes.tolist(), flip, out, strict=True
    ):
        cut = image[None, :, top : top + h, left : left + w]
        expected = torch.nn.functional.interpolate(
            cut, (24, 30), mode="bilinear", align_corners=False, antialias=True
        )[0]
        torch.testing.assert_close(seen, expected.flip(2) if mirrored else expected)


def test_resized_pixels_are_those_of_pillow_but_for_its_rounding():
    images = photographs(30)
    boxes = crops.draw_boxes(30, 24, 30, seeded())
    out = crops.resized_crops(images, boxes, torch.zeros(30, dtype=torch.bool)).round()
    for image, (top, left, h, w), seen in zip(images, boxes.tolist(), out, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        cut = picture.crop((left, top, left + w, top + h)).resize(
            (30, 24), Image.Resampling.BILINEAR
        )
        assert np.abs(np.asarray(cut).transpose(2, 0, 1) - seen.numpy()).max() <= 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_box_as_large_as_the_image_changes_nothing(dtype, device):
    images = photographs(dtype=dtype)
    boxes = torch.tensor([[0, 0, 24, 30]]).expand(6, 4)
    flip = torch.tensor([False, True] * 3)
    out = crops.resized_crops(images.to(device), boxes, flip).cpu().to(dtype)
    assert torch.equal(out[::2], images[::2])
    assert torch.equal(out[1::2], images[1::2].flip(3))


def slow_jitter(image, order, factors, white):
    """Move the colours of one image, pixel by pixel, with Python's numbers."""
    red, green, blue = ([[float(v) for v in row] for row in channel] for channel in image.tolist())
    planes = [red, green, blue]
    h, w = len(red), len(red[0])
    for step in order:
        grey = [
            [0.299 * planes[0][y][x] + 0.587 * planes[1][y][x] + 0.114 * planes[2][y][x]
             for x in range(w)]
            for y in range(h)
        ]  # fmt: skip
        mean = sum(map(sum, grey)) / (h * w)
        for plane in planes:
            for y in range(h):
                for x in range(w):
                    other = (0.0, mean, grey[y][x])[step]
                    moved = other + factors[step] * (plane[y][x] - other)
                    plane[y][x] = min(max(moved, 0.0), white)
    return torch.tensor(planes, dtype=torch.float64)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_jitter_equals_a_loop_over_pixels(order, device):
    images = photographs(5, h=6, w=7, dtype=torch.float64)
    factors = 0.2 + 1.6 * torch.rand((3, 5), dtype=torch.float64, generator=seeded())
    out = colour.jitter(images.to(device), order, factors, 1.0).cpu()
    for k, image in enumerate(images):
        expected = slow_jitter(image, order, factors[:, k].tolist(), 1.0)
        torch.testing.assert_close(out[k], expected)


@pytest.mark.parametrize(
    ("step", "enhance"),
    [
        (colour.BRIGHTNESS, ImageEnhance.Brightness),
        (colour.CONTRAST, ImageEnhance.Contrast),
        (colour.SATURATION, ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.6, 0.85, 1.0, 1.4])
def test_each_step_is_pillows_but_for_its_rounding(step, enhance, factor):
    image = photographs(1)
    factors = torch.full((3, 1), factor, dtype=torch.float64)
    out = colour.jitter(image.float(), [step], factors, 255.0)[0].round()
    picture = enhance(Image.fromarray(image[0].permute(1, 2, 0).numpy())).enhance(factor)
    assert np.abs(np.asarray(picture).transpose(2, 0, 1) - out.numpy()).max() <= 1


def test_factors_are_uniform_and_every_order_is_drawn():
    order, factors = colour.draw_jitter(20_000, 0.4, seeded())
    assert sorted(order) == [0, 1, 2]
    for row in factors:
        assert kstest(((row - 0.6) / 0.8).numpy(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(factors) - np.eye(3)).max() < 0.03
    generator = seeded()
    orders = [tuple(colour.draw_jitter(1, 0.4, generator)[0]) for _ in range(600)]
    assert len(set(orders)) == 6
    assert min(orders.count(order) for order in set(orders)) > 60


def test_jitter_of_strength_nothing_leaves_the_crop_alone():
    images = photographs(9)
    plain = augment(images, "resized-crop-flip", seeded())
    assert torch.equal(augment(images, "resized-crop-flip-jitter:0", seeded()), plain)
    assert not torch.equal(augment(images, JITTER, seeded()), plain)


def test_a_uniform_image_stays_so_and_grey_stays_grey():
    black, middle = torch.zeros(4, 3, 9, 9), torch.full((4, 3, 9, 9), 0.5)
    assert torch.equal(augment(black, JITTER, seeded()), black)
    out = augment(middle, JITTER, seeded())
    assert bool((out == out[:, :1, :1, :1]).all())
    # Contrast and saturation have nothing to do there; brightness alone moves it.
    assert bool(((out >= 0.3) & (out <= 0.7)).all())
    assert len(out[:, 0, 0, 0].unique()) == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_shape_dtype_device_and_the_images_themselves_are_kept(name, dtype, device):
    images = photographs(dtype=dtype).to(device)
    kept = images.clone()
    out = augment(images, name, seeded())
    assert (out.shape, out.dtype, out.device) == (images.shape, images.dtype, images.device)
    assert torch.equal(images, kept)
    assert not torch.equal(out, images)
    assert float(out.min()) >= 0
    assert float(out.max()) <= (255 if dtype == torch.uint8 else 1)


@pytest.mark.parametrize("name", NAMES)
def test_uint8_is_the_rounded_draw_of_the_same_values_as_floats(name):
    images = photographs()
    whole = augment(images, name, seeded(3))
    fine = augment(images.double() / 255, name, seeded(3)) * 255
    assert float((whole - fine).abs().max()) <= 0.5 + 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_gives_the_same_draw_and_goes_on(name, device):
    images = photographs(8)
    generator = seeded(5)
    first, second = (augment(images, name, generator) for _ in range(2))
    assert torch.equal(augment(images, name, seeded(5)), first)
    assert not torch.equal(first, second)
    there = augment(images.to(device), name, seeded(5)).cpu()
    # The draw is the same; a value half-way between two whole ones may fall to either side.
    assert int((there.int() - first.int()).abs().max()) <= 1
    assert float((there != first).double().mean()) < 1e-3


@pytest.mark.parametrize("name", [*NAMES, "crop-flip:4"])
def test_augmentation_moves_no_global_random_state(name):
    """P49: all random numbers come from the generator that was given."""
    torch_state, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    augment(photographs(), name, seeded())
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


@pytest.mark.parametrize("name", NAMES)
def test_a_large_batch_is_made_in_parts_with_the_same_pixels(name, monkeypatch):
    images = photographs(11)
    module = importlib.import_module("spectra.data.augment")  # the package has the function there
    whole = augment(images, name, seeded())
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 4 * 3 * 24 * 30)
    assert torch.equal(augment(images, name, seeded()), whole)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 1)
    assert torch.equal(augment(images, name, seeded()), whole)


def test_half_of_the_images_are_mirrored():
    ramp = torch.linspace(0, 1, 16).expand(4000, 3, 16, 16)
    out = augment(ramp, "resized-crop-flip", seeded())
    falling = out[:, 0, 8, 0] > out[:, 0, 8, -1]
    assert abs(float(falling.double().mean()) - 0.5) < 0.03


@pytest.mark.parametrize("name", NAMES)
def test_no_image_gives_no_image(name):
    assert augment(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), name, seeded()).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "name",
    [
        None, "", "crop", "crop:", "crop:-1", "crop-flip:1.5", "flip", "resized-crop",
        "resized-crop-flip:0.4", "resized-crop-flip:", "resized-crop-flip-jitter",
        "resized-crop-flip-jitter:", "resized-crop-flip-jitter:x", "resized-crop-flip-jitter:-0.1",
        "resized-crop-flip-jitter:1.1", "resized-crop-flip-jitter:nan",
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_in_one_line(name):
    with pytest.raises(SpectraError, match="expected crop:P, crop-flip:P, resized") as caught:
        augment(photographs(), name, seeded())
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "name", "complaint"),
    [
        (photographs(c=1), JITTER, "have 1 channels; expected 3"),
        (photographs().long(), "resized-crop-flip", r"images of torch\.int64"),
        (photographs().float(), JITTER, "from 14 to 239; expected 0 to 1"),
        (photographs(dtype=torch.float32) - 0.5, JITTER, "before normalisation"),
        (torch.full((2, 3, 4, 4), float("nan")), JITTER, "nan to nan"),
    ],
)
def test_images_that_cannot_be_drawn_so_are_refused_in_one_line(images, name, complaint):
    with pytest.raises(SpectraError, match=complaint) as caught:
        augment(images, name, seeded())
    assert "\n" not in str(caught.value)


def test_one_channel_can_be_cut_without_jitter():
    assert augment(photographs(c=1), "resized-crop-flip", seeded()).shape == (6, 1, 24, 30)
