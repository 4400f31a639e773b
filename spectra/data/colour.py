"""Colour jitter of a batch: brightness, contrast and saturation.

    x  <-  clamp(other + f·(x - other)),   f uniform in [1 - s, 1 + s]

with ``other`` black (brightness), the mean of the image's grey picture (contrast), or that grey
picture (saturation), grey = 0.299 R + 0.587 G + 0.114 B. Every image has its own three factors.
Two deviations from the pipelines that treat one image at a time: the order of the three steps is
drawn once for the batch, and values are rounded once at the end, not after each step.

References:
    ITU-R BT.601, https://www.itu.int/rec/R-REC-BT.601 (the weights of grey)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..devices import at_once, constant

GREY = (0.299, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION = range(3)


def draw_jitter(
    n: int, strength: float, generator: torch.Generator
) -> tuple[list[int], Float[Tensor, "3 n"]]:
    """Draw the order of the three steps, and each image's factors in 1 ± ``strength``.

    Args:
        n: Number of images.
        strength: s, from 0 to 1.
        generator: On the CPU.

    Returns:
        The order, and factors of brightness, contrast and saturation.
    """
    order = torch.randperm(3, generator=generator).tolist()
    factors = torch.rand((3, n), dtype=torch.float64, generator=generator)
    return order, 1 + strength * (2 * factors - 1)


def jitter(
    images: Float[Tensor, "n 3 h w"], order: list[int], factors: Float[Tensor, "3 n"], white: float
) -> Float[Tensor, "n 3 h w"]:
    """Move the colours of every image by its own factors; values stay within 0 and ``white``.

    Args:
        images: Red, green and blue, on any device.
        order: A permutation of 0 (brightness), 1 (contrast), 2 (saturation).
        factors: Of the three, for every image.
        white: The largest value there is.
    """
    for step in order:
        factor = at_once(factors[step].to(images.dtype), images.device)[:, None, None, None]
        other = torch.zeros_like(images[:, :1]) if step == BRIGHTNESS else _grey(images)
        if step == CONTRAST:
            other = other.mean((2, 3), keepdim=True)
        images = torch.lerp(other, images, factor).clamp_(0, white)
    return images


def _grey(images: Tensor) -> Tensor:
    return (images * constant(GREY, images.dtype, images.device)[:, None, None]).sum(
        1, keepdim=True
    )
