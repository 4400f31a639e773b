"""Which network a checkpoint holds: a small description, told by the user or by names and shapes.

A description builds its network; `infer_spec` reads it from a bare state dict, and the names that
wrappers and other code bases give to parameters become the ones used here.
"""

import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpectraError
from .networks import DIGITS_FEATURES, LAYOUTS, DigitsNet, Head, ResNet

ARCHITECTURES: tuple[str, ...] = (*LAYOUTS, "digits")


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

    What all names begin with goes; 1x1-convolution shortcuts `shortcut.0`, `shortcut.1` with the
    head `linear`, as some write them, become `downsample.0`, `downsample.1` with the head `fc`.
    """
    *_, names = without_prefixes(state_dict)
    if not any(re.search(r"\.(shortcut|downsample)\.0\.weight$", name) for name in names):
        return names
    return {
        re.sub(r"^linear\.", "fc.", name.replace(".shortcut.", ".downsample.")): value
        for name, value in names.items()
    }


def without_prefixes(state_dict: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Give a state dict as it is, then without each piece that all of its names begin with.

    DataParallel adds `module.`, torch.compile `_orig_mod.`, a LightningModule what it calls the
    network; AveragedModel adds `module.`, and a counter beside it that goes with it.
    """
    names = dict(state_dict)
    while True:
        yield names
        kept = [name for name in names if name != "n_averaged"]
        prefix, *others = {"".join(name.partition(".")[:2]) for name in kept} or {""}
        counted = len(kept) < len(names)
        if others or not prefix.endswith(".") or (counted and prefix != "module."):
            return
        names = {name.removeprefix(prefix): names[name] for name in kept}


def fitting_names(state_dict: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Take off what all names begin with, as far as most of them become those of a network.

    Args:
        state_dict: parameters and buffers by name.
        expected: the network's own names.
    """
    versions = without_prefixes(state_dict)
    return max(versions, key=lambda names: len(names.keys() & set(expected)))


def infer_spec(state_dict: Mapping[str, Tensor]) -> ModelSpec:
    """Tell which network a bare state dict belongs to, from its names and shapes.

    Args:
        state_dict: parameters and buffers by name; all may begin with the same.

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
    seen = ", ".join(f"{k} {tuple(v.shape)}" for k, v in itertools.islice(state_dict.items(), 3))
    raise SpectraError(
        f"cannot tell the network from {len(shapes)} tensors, {blocks or 'no'} blocks per stage, "
        f"names like {seen or 'none'}: name it with --arch ({', '.join(ARCHITECTURES)}) or with "
        "--model PACKAGE.MODULE:FUNCTION"
    )
