"""All views that the augmentation makes of a class's images: 81 crops, mirrored or not."""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectra
from spectra import Samples
from spectra.losses import Loss

PADDING = 4
PLAIN = (2 * PADDING + 1) * PADDING + PADDING  # the view that is the image as it is


def all_views(samples: Samples, label: int) -> tuple[Samples, int]:
    """Give (162 n, ...) views of a class, all images in one view after another, and n."""
    if samples.augmentation != f"crop-flip:{PADDING}":
        sys.exit(f"the data are augmented by {samples.augmentation}, expected crop-flip:{PADDING}")
    part = samples.of_class(label)
    side = part.inputs.shape[-1]
    padded = F.pad(part.inputs, (PADDING,) * 4)
    crops = [
        padded[:, :, y : y + side, x : x + side]
        for y in range(2 * PADDING + 1)
        for x in range(2 * PADDING + 1)
    ]
    inputs = torch.cat([*crops, *(crop.flip(3) for crop in crops)])
    targets = part.targets.repeat(len(inputs) // len(part))
    views = replace(part, inputs=inputs, targets=targets, augmentation=None, positions=None)
    return views, len(part)


def losses_and_hits(network: nn.Module, views: Samples, loss: Loss) -> tuple[Tensor, Tensor]:
    """Give (m,) losses in float64 and whether each view is classified right, in float32."""
    with torch.no_grad():
        logits = torch.cat(
            [
                network(views.select(slice(k, k + 256)).prepared()).double()
                for k in range(0, len(views), 256)
            ]
        )
    return loss.per_sample(logits, views.targets), logits.argmax(1) == views.targets


def opened(file: str, data: str) -> tuple[spectra.Checkpoint, Samples]:
    """Open a checkpoint and its training images."""
    checkpoint = spectra.load_checkpoint(file)
    return checkpoint, spectra.open_data(checkpoint.data, path=data)
