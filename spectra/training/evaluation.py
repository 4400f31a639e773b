"""How a network does on a split: evaluation mode, no augmentation, every sample alike."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Samples
from ..devices import arithmetic
from ..errors import out_of_memory
from ..losses import LossSpec


@dataclass(frozen=True)
class Scores:
    """Loss and accuracy of a split, and of each of its classes; NaN for a class without samples."""

    loss: float  # mean cross-entropy, a cosine head's scale included: comparable between methods
    accuracy: float  # 0..1
    class_loss: tuple[float, ...]  # (C,)
    class_accuracy: tuple[float, ...]  # (C,)

    def of(self, classes: tuple[int, ...]) -> float:
        """Average the accuracies of some classes."""
        values = [self.class_accuracy[c] for c in classes]
        return sum(values) / len(values) if values else math.nan

    def named(self, split: str) -> dict[str, Any]:
        """Give the numbers under the names that a checkpoint's metrics have."""
        return {f"{split}_{name}": value for name, value in asdict(self).items()}


def evaluate(
    network: nn.Module,
    samples: Samples,
    *,
    scale: float = 1.0,
    batch_size: int = 500,
    flip: bool = False,
) -> Scores:
    """Score a network on samples; its mode is restored.

    Args:
        network: gives logits (n, C).
        samples: on the network's device or on the host.
        scale: s of a cosine head, multiplies the logits.
        batch_size: samples at a time; half as many, and so on, where memory runs out.
        flip: take the mean logits of each image and its mirror image.
    """
    was_training, ce = network.training, LossSpec.cross_entropy(scale)
    weight = next(network.parameters(), samples.targets.float())
    device, dtype = weight.device, weight.dtype

    def scored(index: Tensor) -> Tensor:
        """Give losses and hits, (2, n)."""
        batch = samples.select(index.to(samples.targets.device))
        x, targets = batch.prepared(dtype, device), batch.targets.to(device)
        logits = (network(x) + network(x.flip(-1))) / 2 if flip else network(x)
        losses = ce.per_sample(logits, targets).double()
        return torch.stack([losses, (logits.argmax(1) == targets).double()]).cpu()

    parts, rest = [], [*torch.split(torch.arange(len(samples)), batch_size)]
    network.eval()
    with torch.inference_mode(), arithmetic(device):
        while rest:
            try:
                parts.append(scored(rest[0]))
                del rest[0]
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(rest[0]) < 2:
                    raise
            # Outside the except clause: the traceback, and the failed batch with it, is gone.
            rest = [*torch.split(torch.cat(rest), len(rest[0]) // 2)]
            if device.type == "cuda":
                torch.cuda.empty_cache()
    network.train(was_training)
    each, labels = torch.cat(parts, 1), samples.targets.cpu()
    by_class = torch.stack([each[:, labels == c].mean(1) for c in range(samples.num_classes)])
    return Scores(*each.mean(1).tolist(), *(tuple(values) for values in by_class.T.tolist()))
