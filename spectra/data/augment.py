"""Augmentation by name, as batched tensor code: random numbers on the CPU, pixels anywhere.

    crop:P                      zero padding of P pixels, a random cut of the old size
    crop-flip:P                 the same, mirrored with probability 1/2
    resized-crop-flip           a random part, resized to the old size, mirrored
    resized-crop-flip-jitter:S  the same, and colours moved by factors within 1 ± S

It comes before the normalisation, as in the usual image pipelines, so a padded pixel is black and
not the mean. ``crops`` has the geometry, ``colour`` the jitter.
"""

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from ..errors import SpectraError
from .colour import draw_jitter, jitter
from .crops import draw_boxes, padded_crops, resized_crops

VALUES_AT_ONCE = 2**24  # pixel values resampled at a time: 64 MB as float32


def augment(
    images: Shaped[Tensor, "n c h w"],
    name: str | None,
    generator: torch.Generator,
    among: tuple[Int64[Tensor, " n"], int] | None = None,
) -> Shaped[Tensor, "n c h w"]:
    """Draw one augmented copy of every image.

    Args:
        images: Pixels before normalisation, black being 0, on any device: uint8, or floats (for
            the resized crops and their jitter 0..1).
        name: "crop:P", "crop-flip:P", "resized-crop-flip", "resized-crop-flip-jitter:S", with P
            pixels of padding and a strength S from 0 to 1.
        generator: On the CPU, so that every device sees the same draw.
        among: Of images that are some of a larger set, their rows in it and its size: they get
            the draws that they have among all of it.

    Returns:
        A new tensor, of the same dtype and device.

    Raises:
        SpectraError: If the name says no such thing, or the images cannot be drawn so.
    """
    kind, _, value = (name or "").partition(":")
    if kind in ("crop", "crop-flip") and value.isdecimal():
        return padded_crops(images, int(value), kind == "crop-flip", generator, among)
    strength = _strength(value) if kind == "resized-crop-flip-jitter" else None
    if name != "resized-crop-flip" and strength is None:
        raise SpectraError(
            f"an augmented draw was asked for and the samples' augmentation is {name!r}; expected "
            "crop:P, crop-flip:P, resized-crop-flip or resized-crop-flip-jitter:S with P pixels "
            "and S from 0 to 1; use --augment none, or samples whose source has one"
        )
    return _resized(images, strength, generator, among)


def _resized(
    images: Tensor,
    strength: float | None,
    generator: torch.Generator,
    among: tuple[Tensor, int] | None,
) -> Tensor:
    """Draw for all images first, then make the pixels, a part of the batch at a time."""
    count, channels, height, width = images.shape
    rows, n = (slice(None), count) if among is None else among
    whole = images.dtype == torch.uint8
    if not (whole or images.is_floating_point()):
        raise SpectraError(
            f"images of {images.dtype} were to be resized; expected uint8 (0..255) or floats "
            "(0..1): interpolated values would be cut off; convert them first"
        )
    if strength is not None and channels != 3:
        raise SpectraError(
            f"colour jitter was asked for and the images have {channels} channels; expected 3 "
            "(red, green, blue), there is no saturation otherwise: use resized-crop-flip"
        )
    if strength is not None and not whole and count > 0:
        low, high = (float(v) for v in images.aminmax())
        if not 0 <= low <= high <= 1:
            raise SpectraError(
                f"float images for colour jitter run from {low:g} to {high:g}; expected 0 to 1, "
                "before normalisation: jitter would clip them; scale them, or give uint8"
            )
    boxes = draw_boxes(n, height, width, generator)
    flip = torch.randint(0, 2, (n,), generator=generator).bool()
    drawn = None if strength is None else draw_jitter(n, strength, generator)
    boxes, flip = boxes[rows], flip[rows]
    drawn = drawn and (drawn[0], drawn[1][:, rows])
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    size = max(1, VALUES_AT_ONCE // max(1, channels * height * width))
    for part in (slice(start, start + size) for start in range(0, len(images), size)):
        x = resized_crops(images[part], boxes[part], flip[part])
        if drawn is not None:
            order, factors = drawn
            x = jitter(x, order, factors[:, part], white=255.0 if whole else 1.0)
        out[part] = x.round_() if whole else x
    return out


def _strength(value: str) -> float | None:
    """Read a number from 0 to 1; None if it is no such thing."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None
