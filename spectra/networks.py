"""Networks, named as the released checkpoints name their parameters.

One residual network gives the CIFAR ResNets of the long-tail literature (parameter-free "option A"
shortcuts, head `linear`), those with 1x1-convolution shortcuts and the head `fc` (`resnet20c` and
so on), the ImageNet ResNets under torchvision's parameter names, and these with the stem of CIFAR
(`resnet18c`, `resnet34c`). Each takes a linear head or a cosine head, cos(x, w_c) in [-1, 1]; the
scale s of a cosine head belongs to the loss. Nothing writes in place, so that every way of
differentiating twice works.

References:
    He et al., Deep residual learning for image recognition, https://arxiv.org/abs/1512.03385
    Cao et al., LDAM (cosine head, s = 30), https://arxiv.org/abs/1906.07413
"""

import copy
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from .errors import SpectraError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
Head = Literal["linear", "cosine"]


class CosineHead(nn.Module):
    """Give the cosine between each feature vector and each class vector.

    `weight` is (features, classes), one column a class.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        columns = torch.empty(features, num_classes).uniform_(-1, 1)
        self.weight = nn.Parameter(columns / columns.norm(dim=0))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        return _unit(x, 1) @ _unit(self.weight, 0)


def _unit(x: Tensor, dim: int) -> Tensor:
    # Clamping the square keeps a zero vector's second derivative finite; a norm's is not.
    return x * x.square().sum(dim, keepdim=True).clamp_min(1e-12).rsqrt()


class PaddedShortcut(nn.Module):
    """Take every second pixel and pad the channels with zeros on both sides (option A)."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Add two 3x3 convolutions, or a 1x1, a 3x3 and a 1x1 (a bottleneck), to the shortcut."""

    def __init__(
        self, inputs: int, width: int, stride: int, shortcut: nn.Module, *, bottleneck: bool
    ) -> None:
        super().__init__()
        basic = [(inputs, width, 3, stride), (width, width, 3, 1)]
        narrow = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        self.depth = 3 if bottleneck else 2
        for i, sizes in enumerate(narrow if bottleneck else basic, start=1):
            self.add_module(f"conv{i}", _conv(*sizes))
            self.add_module(f"bn{i}", nn.BatchNorm2d(sizes[1]))
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y if i < self.depth else y + self.downsample(x))
        return y


@dataclass(frozen=True)
class Layout:
    """What tells one residual network from another."""

    blocks: tuple[int, ...]  # blocks in each stage
    width: int  # channels of the first stage, doubled from stage to stage
    head: Literal["linear", "fc"]  # the head's name
    bottleneck: bool = False
    padded: bool = False  # option-A shortcuts instead of 1x1 convolutions
    large: bool = False  # 224-pixel stem: 7x7 convolution and max-pooling

    @property
    def stem(self) -> tuple[int, int]:
        return (7, 2) if self.large else (3, 1)  # kernel and stride

    @property
    def about(self) -> str:
        """Say what names and shapes may not tell."""
        kernel, stride = self.stem
        pooled = "max-pooling" if self.large else "no max-pooling"
        return f"whose stem is {kernel}×{kernel} with stride {stride} and {pooled}"

    @property
    def features(self) -> int:
        return (self.width << len(self.blocks) - 1) * (4 if self.bottleneck else 1)


DEPTHS = (1, 3, 5, 7, 9, 18)  # blocks in each of three stages, of two convolutions each
LAYOUTS: dict[str, Layout] = {
    **{f"resnet{6 * n + 2}": Layout((n,) * 3, 16, "linear", padded=True) for n in DEPTHS},
    **{f"resnet{6 * n + 2}c": Layout((n,) * 3, 16, "fc") for n in DEPTHS},
    "resnet18c": Layout((2, 2, 2, 2), 64, "fc"),
    "resnet34c": Layout((3, 4, 6, 3), 64, "fc"),
    "resnet18": Layout((2, 2, 2, 2), 64, "fc", large=True),
    "resnet34": Layout((3, 4, 6, 3), 64, "fc", large=True),
    "resnet50": Layout((3, 4, 6, 3), 64, "fc", bottleneck=True, large=True),
}
DIGITS_FEATURES = 32


class ResNet(nn.Module):
    """Classify images with a residual network of the given layout."""

    def __init__(self, layout: Layout, num_classes: int, head: Head, in_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, layout.width, *layout.stem)
        self.bn1 = nn.BatchNorm2d(layout.width)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if layout.large else nn.Identity()
        self.stages = [f"layer{i + 1}" for i in range(len(layout.blocks))]
        channels = layout.width
        for i, stage in enumerate(self.stages):
            blocks: list[nn.Module] = []
            width, outputs = layout.width << i, layout.features >> (len(self.stages) - 1 - i)
            for j in range(layout.blocks[i]):
                stride = 2 if i > 0 and j == 0 else 1
                shortcut = _shortcut(channels, outputs, stride, layout.padded)
                blocks.append(
                    Block(channels, width, stride, shortcut, bottleneck=layout.bottleneck)
                )
                channels = outputs
            self.add_module(stage, nn.Sequential(*blocks))
        self.head = layout.head
        self.add_module(self.head, _head(head, channels, num_classes))
        _initialise(self, "fan_in" if layout.padded else "fan_out", linear=layout.padded)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        logits: Tensor = getattr(self, self.head)(x.mean((2, 3)))
        return logits


class DigitsNet(nn.Module):
    """Classify 8x8 images with three convolutions (14,458 parameters for ten grey digits)."""

    def __init__(self, num_classes: int, head: Head, in_channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, 16, 3), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = _conv(16, 32, 3, stride=2), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = _conv(32, DIGITS_FEATURES, 3), nn.BatchNorm2d(DIGITS_FEATURES)
        self.linear = _head(head, DIGITS_FEATURES, num_classes)
        _initialise(self, "fan_in", linear=True)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(F.relu(self.bn3(self.conv3(x))).mean((2, 3)))
        return logits


def _shortcut(inputs: int, outputs: int, stride: int, padded: bool) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if padded:
        return PaddedShortcut((outputs - inputs) // 2)
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _head(head: Head, features: int, num_classes: int) -> nn.Module:
    return (nn.Linear if head == "linear" else CosineHead)(features, num_classes)


def _initialise(network: nn.Module, mode: Literal["fan_in", "fan_out"], *, linear: bool) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) or (linear and isinstance(module, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")


def unwrapped(model: nn.Module) -> nn.Module:
    """Take the network out of what `torch.compile`, data parallelism and averaging put around it.

    Args:
        model: any module; what is no wrapper is given back as it is.

    Returns:
        The network itself: its parameters have their own names, and it takes tangents, which some
        of the wrappers do not.

    Raises:
        SpectraError: for a script of torch.jit.
    """
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, torch.jit.ScriptModule):
        raise SpectraError(
            "got a model that torch.jit has compiled, expected the nn.Module that it was made of: "
            "its parameters cannot be put in the place of others; build that one and load the "
            "state_dict"
        )
    # Not by attribute: a module of the user's may pass those of its inner one on.
    return model._modules.get("module" if isinstance(model, _WRAPPERS) else "_orig_mod")


def filter_axes(network: nn.Module) -> dict[str, int]:
    """Say along which axis of a parameter its filters lie: each makes one output channel, or unit.

    The first one, but in a cosine head and in transposed convolutions. Of those with groups no axis
    alone does it, and where each group is one channel the first is right.
    """
    axes: dict[str, int] = {}
    for path, module in network.named_modules():
        turned = isinstance(module, CosineHead) or (
            isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1
        )
        for name, parameter in module.named_parameters(path, recurse=False):
            axes[name] = int(turned and parameter.dim() > 1)
    return axes


def filter_norms(value: Tensor, axis: int = 0) -> Tensor:
    """Give the norm of each filter along an axis, (1, out, 1, ...), or of a whole vector, ()."""
    others = tuple(k for k in range(value.dim()) if k != axis)
    norms: Tensor = torch.linalg.vector_norm(value, dim=others or None, keepdim=bool(others))
    return norms


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a network whole.

    Args:
        model: any module.
        memo: what goes into the copy in the place of some of its parts, by their ids.

    Raises:
        SpectraError: if a tensor that it holds was computed, or nothing is held yet.
    """
    held = itertools.chain(model.parameters(), model.buffers())
    if any(map(is_lazy, held)):
        raise SpectraError(
            "got a model with lazy parameters, expected one whose parameters exist: nothing could "
            "be differentiated; pass one batch through it first"
        )
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        if "deepcopy" not in str(error):
            raise
        raise SpectraError(
            "got a model that cannot be copied, expected one whose tensors are parameters or "
            "buffers: a computed weight, as the old torch.nn.utils.weight_norm keeps it, would "
            "not follow its parameters; remove_weight_norm first, and set an activation that is "
            "kept as an attribute to None"
        ) from error
