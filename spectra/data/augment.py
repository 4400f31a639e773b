"""Augmentation as batched tensor code: the random numbers on the CPU, the pixels anywhere.

An image x, zero-padded by p pixels, is read from a corner (i, j) uniform in {0..2p}², and mirrored
with probability 1/2 if the name says flip. Padding comes before the normalisation, as in the
usual image pipelines, so a padded pixel is black and not the mean.
"""

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..errors import SpectraError


def parse_augmentation(name: str) -> tuple[int, bool]:
    """Return padding in pixels and whether images are mirrored, for "crop:1", "crop-flip:4"."""
    kind, _, padding = name.partition(":")
    if kind not in ("crop", "crop-flip") or not padding.isdecimal():
        raise SpectraError(
            f"the augmentation is {name!r}; expected crop:P or crop-flip:P with P pixels of padding"
        )
    return int(padding), kind == "crop-flip"


def augment(
    images: Shaped[Tensor, "n c h w"], name: str, generator: torch.Generator
) -> Shaped[Tensor, "n c h w"]:
    """Draw one random crop, and mirror image, of every image.

    Args:
        images: Pixels before normalisation, black being 0, on any device.
        name: "crop:P" or "crop-flip:P".
        generator: On the CPU, so that every device sees the same draw.

    Returns:
        A new tensor of the same dtype and device.
    """
    padding, mirrored = parse_augmentation(name)
    n, _, height, width = images.shape
    corner = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    flip = torch.randint(0, 2, (n,), generator=generator).bool()
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    # A view of every crop that there is; indexing copies only the one drawn for each image.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    i, j = corner.to(images.device)
    drawn = crops[torch.arange(n, device=images.device), :, i, j]
    if mirrored:
        drawn = torch.where(flip.to(images.device)[:, None, None, None], drawn.flip(3), drawn)
    return drawn
