"""Augmentation as batched tensor code: the random numbers on the CPU, the pixels anywhere.

An image, zero-padded by p pixels, is cut out at a corner (i, j) uniform in {0..2p}², and mirrored
with probability 1/2 if the name says flip. Padding comes before the normalisation, as in the
usual image pipelines, so a padded pixel is black and not the mean.
"""

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..errors import SpectraError


def augment(
    images: Shaped[Tensor, "n c h w"], name: str | None, generator: torch.Generator
) -> Shaped[Tensor, "n c h w"]:
    """Draw one random crop, and mirror image, of every image.

    Args:
        images: Pixels before normalisation, black being 0, on any device.
        name: "crop:P" or "crop-flip:P", with P pixels of padding.
        generator: On the CPU, so that every device sees the same draw.

    Returns:
        A new tensor of the same dtype and device.

    Raises:
        SpectraError: If the name says no such thing.
    """
    kind, _, width = (name or "").partition(":")
    if kind not in ("crop", "crop-flip") or not width.isdecimal():
        raise SpectraError(
            f"an augmented draw was asked for and the samples' augmentation is {name!r}; expected "
            "crop:P or crop-flip:P; use --augment none, or samples whose source has one"
        )
    padding, n, device = int(width), len(images), images.device
    i, j = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(device)
    flip = torch.randint(0, 2, (n, 1, 1, 1), generator=generator).bool().to(device)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    # A view of every crop that there is; indexing copies only the one drawn for each image.
    crops = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    drawn = crops[torch.arange(n, device=device), :, i, j]
    return torch.where(flip, drawn.flip(3), drawn) if kind == "crop-flip" else drawn
