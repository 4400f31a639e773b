"""Random crops of a batch: where each image is cut, and the pixels of the cut.

Padded: an image, zero-padded by p pixels, is cut out at a corner (i, j) uniform in {0..2p}².

Resized: a box of area a·H·W and aspect r, with a uniform in [0.08, 1] and log r uniform in
[log 3/4, log 4/3], is

    width = round(√(a H W r)),   height = round(√(a H W / r)),

at a corner uniform among those where it fits; of ten candidates the first that fits is taken, and
if none does, the largest centred box whose aspect lies within [3/4, 4/3] (torchvision's rule). It
is resized to H × W bilinearly: the centre of output pixel k lies at (k + 1/2)·length/size - 1/2 of
the box, and the box's own border pixels go on beyond its edge. A box is never larger than what it
is resized to, so that antialiasing has nothing to do.

Stated deviation: stored images are already cut to the network's size, so boxes lie within that
cut. What a resized original has outside its centre cut is never seen, as it would be if the boxes
were taken from the original.

References:
    Szegedy et al., 2015, https://arxiv.org/abs/1409.4842 (the areas and aspects)
"""

import math

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from ..devices import at_once

TRIES = 10
SMALLEST_AREA = 0.08
WIDEST = 4 / 3  # aspect; the narrowest is its inverse


def padded_crops(
    images: Shaped[Tensor, "n c h w"],
    padding: int,
    mirrored: bool,
    generator: torch.Generator,
    among: tuple[Int64[Tensor, " n"], int] | None = None,
) -> Shaped[Tensor, "n c h w"]:
    """Cut a window of the old size out of each zero-padded image, half of them mirrored if asked.

    Args:
        images: On any device.
        padding: Pixels on every side.
        mirrored: Whether to mirror with probability 1/2; the draw is the same without.
        generator: On the CPU.
        among: Rows of the images in a larger set, and its size, as in ``augment``.
    """
    device = images.device
    rows, n = (slice(None), len(images)) if among is None else among
    corners = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    mirrors = torch.randint(0, 2, (1, n), generator=generator)
    i, j, flip = at_once(torch.cat([corners, mirrors])[:, rows], device)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    # A view of every crop that there is; indexing copies only the one drawn for each image.
    crops = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    drawn = crops[torch.arange(len(images), device=device), :, i, j]
    flipped = flip.bool()[:, None, None, None]
    return torch.where(flipped, drawn.flip(3), drawn) if mirrored else drawn


def draw_boxes(n: int, height: int, width: int, generator: torch.Generator) -> Int64[Tensor, "n 4"]:
    """Draw a box for each of n images, always with 22·n numbers, whichever candidates fit.

    Args:
        n: Number of images.
        height: Of every image, in pixels.
        width: Of every image, in pixels.
        generator: On the CPU.

    Returns:
        Rows (top, left, height, width), on the CPU.
    """
    areas, aspects = torch.rand((2, TRIES, n), dtype=torch.float64, generator=generator)
    corners = torch.rand((2, n), dtype=torch.float64, generator=generator)
    areas = (SMALLEST_AREA + (1 - SMALLEST_AREA) * areas) * (height * width)
    aspects = torch.exp(math.log(WIDEST) * (2 * aspects - 1))
    # (2, tries, n): height and width of every candidate.
    candidates = torch.stack([areas / aspects, areas * aspects]).sqrt().round().long()
    whole = torch.tensor([height, width])[:, None]
    fits = ((candidates > 0) & (candidates <= whole[:, None])).all(0)
    first = fits.int().argmax(0)  # of equal ones argmax takes the first
    drawn = candidates.gather(1, first.expand(2, 1, n))[:, 0]
    fallback = torch.tensor(
        [min(height, round(width * WIDEST)), min(width, round(height * WIDEST))]
    )[:, None]
    found = fits.any(0)
    sides = torch.where(found, drawn, fallback)
    starts = torch.where(found, (corners * (whole - sides + 1)).long(), (whole - fallback) // 2)
    return torch.cat([starts, sides]).T.contiguous()


def resized_crops(
    images: Shaped[Tensor, "n c h w"], boxes: Int64[Tensor, "n 4"], flip: Bool[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Resize a box of each image to the image's own size, mirrored where asked.

    Args:
        images: uint8 or floats, on any device.
        boxes: Rows (top, left, height, width), on the CPU.
        flip: On the CPU.

    Returns:
        Unrounded values on the images' device: float64 for float64 images, else float32.
    """
    top, left, height, width = boxes.T
    x = images.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
    # Columns first: the rows' pass then reads along memory.
    x = _resampled(x, 3, *_taps(left, width, images.shape[3], flip))
    return _resampled(x, 2, *_taps(top, height, images.shape[2], torch.zeros_like(flip)))


def _taps(start: Tensor, length: Tensor, size: int, flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source pixels of each output pixel along an axis, and the second's weight.

    In float64 on the CPU, so that a box as large as the image gives weights of exactly zero, and
    every device the same ones.
    """
    start, last = start[:, None], (start + length - 1)[:, None]
    at = (torch.arange(size, dtype=torch.float64) + 0.5) * (length[:, None] / size) - 0.5
    at = torch.where(flip[:, None], at.flip(1), at)
    at = (start + at.clamp(min=0)).minimum(last.to(at.dtype))
    low = at.long()
    return low, (low + 1).minimum(last), at - low


def _resampled(x: Tensor, dim: int, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    shape = [len(x), 1, 1, 1]
    shape[dim] = x.shape[dim]
    low, high = (at_once(tap, x.device).reshape(shape).expand(x.shape) for tap in (low, high))
    return x.gather(dim, low).lerp_(
        x.gather(dim, high), at_once(weight.to(x.dtype), x.device).reshape(shape)
    )
