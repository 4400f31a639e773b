"""Networks, built from a small description and named as the released checkpoints name them.

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

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .errors import SpectraError

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
    def features(self) -> int:
        return (self.width << len(self.blocks) - 1) * (4 if self.bottleneck else 1)


LAYOUTS: dict[str, Layout] = {
    **{f"resnet{6 * n + 2}": Layout((n,) * 3, 16, "linear", padded=True) for n in (3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}c": Layout((n,) * 3, 16, "fc") for n in (3, 5, 7, 9, 18)},
    "resnet18c": Layout((2, 2, 2, 2), 64, "fc"),
    "resnet34c": Layout((3, 4, 6, 3), 64, "fc"),
    "resnet18": Layout((2, 2, 2, 2), 64, "fc", large=True),
    "resnet34": Layout((3, 4, 6, 3), 64, "fc", large=True),
    "resnet50": Layout((3, 4, 6, 3), 64, "fc", bottleneck=True, large=True),
}
ARCHITECTURES: tuple[str, ...] = (*LAYOUTS, "digits")
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


@dataclass(frozen=True)
class ModelSpec:
    """Describe a network well enough to build it again.

    Args:
        arch: one of `ARCHITECTURES`, or any name where `factory` builds the network.
        num_classes: number of classes C, the width of the logits.
        head: "linear" or "cosine" (logits in [-1, 1], to be scaled by the loss).
        in_channels: channels of the images; the digits are grey, theirs is always 1.
        factory: "package.module:function" that returns the network instead; it is called with
            `num_classes=` where it takes that argument, and without arguments otherwise.

    Raises:
        SpectraError: for an unknown architecture or head, or a class count below two.
    """

    arch: str
    num_classes: int
    head: Head = "linear"
    in_channels: int = 3
    factory: str | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise SpectraError(f"got {self.num_classes} classes, expected 2 or more: --num-classes")
        if self.head not in ("linear", "cosine"):
            raise SpectraError(f"unknown head {self.head!r}: use 'linear' or 'cosine'")
        if self.arch == "digits":
            object.__setattr__(self, "in_channels", 1)

    def build(self, seed: int = 0) -> nn.Module:
        """Build the network with random weights from `seed`; the global random state stays.

        Args:
            seed: seed of the initial weights.

        Returns:
            The network in training mode, float32, on the CPU.

        Raises:
            SpectraError: for an unknown architecture, or a factory that cannot be used.
        """
        with torch.random.fork_rng(devices=[]):
            # The default generator alone: torch.manual_seed would seed the GPUs as well.
            torch.default_generator.manual_seed(seed)
            return self._make()

    def _make(self) -> nn.Module:
        if self.factory is not None:
            return _from_factory(self.factory, self.num_classes)
        if self.arch == "digits":
            return DigitsNet(self.num_classes, self.head, self.in_channels)
        if self.arch not in LAYOUTS:
            raise SpectraError(
                f"unknown architecture {self.arch!r}: use one of {', '.join(ARCHITECTURES)}, or "
                "name a function that builds the network (--model PACKAGE.MODULE:FUNCTION)"
            )
        return ResNet(LAYOUTS[self.arch], self.num_classes, self.head, self.in_channels)

    def to_dict(self) -> dict[str, Any]:
        """Give the description as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Read what `to_dict` wrote.

        Raises:
            SpectraError: for names that are missing or unknown.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise SpectraError(
                f"a model description has the names {sorted(values)}, expected arch, num_classes, "
                "head, in_channels, factory: another version wrote it, give --arch or --model"
            ) from error


def _from_factory(name: str, num_classes: int) -> nn.Module:
    module, _, function = name.partition(":")
    if not module or not function:
        raise SpectraError(f"got the model factory {name!r}, expected PACKAGE.MODULE:FUNCTION")
    try:  # a user's module may fail in any way
        make: Callable[..., object] = getattr(importlib.import_module(module), function)
        takes_classes = "num_classes" in inspect.signature(make).parameters
        network = make(num_classes=num_classes) if takes_classes else make()
    except Exception as error:
        raise SpectraError(
            f"the model factory {name!r} failed ({type(error).__name__}: {error}): it must be "
            "importable from here (PYTHONPATH), and callable with num_classes= or with nothing"
        ) from error
    if not isinstance(network, nn.Module):
        raise SpectraError(
            f"the model factory {name!r} returned {type(network).__name__}, expected a Module"
        )
    return network


def canonical_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a foreign residual network to the names used here.

    Wrappers' prefixes go; 1x1-convolution shortcuts `shortcut.0`, `shortcut.1` with the head
    `linear`, as some write them, become `downsample.0`, `downsample.1` with the head `fc`.
    """
    names = strip_wrappers(state_dict)
    if not any(re.search(r"\.(shortcut|downsample)\.0\.weight$", name) for name in names):
        return names
    return {
        re.sub(r"^linear\.", "fc.", name.replace(".shortcut.", ".downsample.")): value
        for name, value in names.items()
    }


def strip_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that DataParallel (`module.`) and torch.compile (`_orig_mod.`) add."""
    names = dict(state_dict)
    for prefix in ("module.", "_orig_mod.", "module."):
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def infer_spec(state_dict: Mapping[str, Tensor]) -> ModelSpec:
    """Tell which network a bare state dict belongs to, from its names and shapes.

    Args:
        state_dict: parameters and buffers by name, wrappers' prefixes allowed.

    Returns:
        Architecture, classes, head and input channels.

    Raises:
        SpectraError: if no network known here has such names; it lists what was seen.
    """
    shapes = {name: tuple(value.shape) for name, value in canonical_names(state_dict).items()}
    stages = [re.match(r"layer(\d+)\.\d+\.conv1\.weight$", name) for name in shapes]
    counts = [match.group(1) for match in stages if match]
    blocks = tuple(counts.count(stage) for stage in sorted(set(counts)))
    bottleneck = "layer1.0.conv3.weight" in shapes
    padded = not any(".downsample.0." in name for name in shapes)
    stem = shapes.get("conv1.weight", ())
    candidates = [
        (arch, layout.head, layout.features)
        for arch, layout in LAYOUTS.items()
        if (layout.blocks, layout.bottleneck, layout.padded, layout.stem[0])
        == (blocks, bottleneck, padded, *stem[3:])
    ]
    if not blocks and "conv3.weight" in shapes:
        candidates.append(("digits", "linear", DIGITS_FEATURES))
    for arch, name, features in candidates:
        shape = shapes.get(f"{name}.weight", ())
        if len(shape) != 2 or len(stem) != 4:
            continue
        # A head without bias is the cosine one: (features, classes), not (classes, features).
        cosine = f"{name}.bias" not in shapes and shape[0] == features
        return ModelSpec(arch, shape[int(cosine)], "cosine" if cosine else "linear", stem[1])
    seen = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:3])
    raise SpectraError(
        f"cannot tell the network from {len(shapes)} tensors, {blocks or 'no'} blocks per stage, "
        f"names like {seen or 'none'}: name it with --arch ({', '.join(ARCHITECTURES)}) or with "
        "--model PACKAGE.MODULE:FUNCTION"
    )
