"""Describe a network in a few words that a file can hold, and build it from them."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .errors import SpectraError
from .networks import LAYOUTS, DigitsNet, Head, ResNet

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
            `num_classes=` where it takes that argument (or any, as `**kwargs`), and without
            arguments otherwise.

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
        network = _called(make, num_classes)
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


def _called(make: Callable[..., object], num_classes: int) -> object:
    """Call a factory with the number of classes where it takes that."""
    parameters = inspect.signature(make).parameters
    if "num_classes" in parameters:
        return make(num_classes=num_classes)
    # torchvision's and timm's builders hand on to the network what they do not name themselves.
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        with contextlib.suppress(TypeError):
            return make(num_classes=num_classes)
    return make()
