"""Samples kept as tensors: what a Hessian is taken over, fixed from the first product to the last.

Two fingerprints tell one set from another on any machine:
``draw_sha256`` = SHA-256 of the (n, 2) little-endian int64 rows (label, position within its class
in the source), and ``pixels_sha256`` = SHA-256 of "dtype:shape" in ASCII and the little-endian
bytes of the inputs.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from ..errors import SpectraError
from .augment import augment
from .spec import KNOWN, DataSpec

IGNORED = -100  # a target that no class counts and PyTorch's losses skip by default


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Samples:
    """Hold inputs and targets, and what is needed to turn them into a network's input.

    Args:
        inputs: Images as uint8 (N, c, h, w), or tensors of any other dtype as they are.
        targets: (N,) labels 0..C-1, or -100 for samples that the loss ignores.
        num_classes: Number of classes C.
        class_names: C names.
        mean: (c,) or None; subtracted from pixels scaled to 0..1.
        std: (c,) or None; divides what is left.
        augmentation: "crop-flip:4", "crop:1" or None, if the source has none.
        spec: Where the samples come from, or None.
        positions: (N,) place of each sample within its class in the source; None: as given.

    Raises:
        SpectraError: If lengths, labels or channels disagree.
    """

    inputs: Shaped[Tensor, "n ..."]
    targets: Int64[Tensor, " n"]
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: str | None = None
    spec: DataSpec | None = None
    positions: Int64[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise SpectraError(
                f"{len(self.inputs)} inputs came with {len(self.targets)} targets; expected one "
                "target for each input"
            )
        labels = self.targets[self.targets != IGNORED]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise SpectraError(
                f"labels run from {int(labels.min())} to {int(labels.max())}; expected 0 to "
                f"{self.num_classes - 1} ({self.num_classes} classes), or -100 to ignore a sample"
            )
        if len(self.class_names) != self.num_classes:
            raise SpectraError(f"{len(self.class_names)} names came for {self.num_classes} classes")
        if (self.mean is None) != (self.std is None):
            raise SpectraError("mean and std belong together: one of them is missing")
        for values in (self.mean, self.std):
            if values is not None and self.inputs.shape[1:2] != (len(values),):
                raise SpectraError(
                    f"mean and std have {len(values)} channels and the inputs the shape "
                    f"{tuple(self.inputs.shape)}; expected (n, {len(values)}, height, width)"
                )
        if self.positions is None:
            object.__setattr__(self, "positions", _rank_within_class(self.targets))

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Return the number of samples of each class, in label order."""
        labels = self.targets[self.targets != IGNORED]
        return tuple(torch.bincount(labels, minlength=self.num_classes).tolist())

    def select(self, index: Shaped[Tensor, " m"] | list[int] | slice) -> "Samples":
        """Return the samples at these rows, or where a mask is true."""
        if isinstance(index, list):
            index = torch.tensor(index, dtype=torch.int64)
        assert self.positions is not None
        return replace(
            self,
            inputs=self.inputs[index],
            targets=self.targets[index],
            positions=self.positions[index],
        )

    def of_class(self, label: int) -> "Samples":
        """Return the samples of one class; raise SpectraError if there is none."""
        if not 0 <= label < self.num_classes:
            raise SpectraError(f"class {label} was asked for; expected 0 to {self.num_classes - 1}")
        if self.counts[label] == 0:
            raise SpectraError(
                f"class {label} ({self.class_names[label]}) has no sample here; its Hessian would "
                "be 0/0: leave the class out"
            )
        return self.select(self.targets == label)

    def groups(self) -> dict[str, tuple[int, ...]]:
        """Sort the classes into head, mid and tail.

        Returns:
            The published splits of CIFAR-10 and -100 (by label), of ImageNet-LT and
            iNaturalist 2018 (by count); for others thirds of the classes sorted by count, the
            largest first. Call it on the training samples: a test split is balanced.

        References:
            Zhong et al., 2021, https://arxiv.org/abs/2104.00466 (the index splits)
        """
        traits = KNOWN[self.spec.name] if self.spec else None
        order = sorted(range(self.num_classes), key=lambda c: -self.counts[c])
        if traits is None or traits.sizes is None:
            parts = np.array_split(order, 3)
        else:
            order = order if traits.by_count else list(range(self.num_classes))
            parts = np.split(order, np.cumsum(traits.sizes))
        return {
            name: tuple(sorted(int(c) for c in part))
            for name, part in zip(("head", "mid", "tail"), parts, strict=True)
        }

    def prepared(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "n ..."]:
        """Return the network's input: augmented once if asked, scaled, normalised, on the device.

        Args:
            dtype: Of floating inputs and images; other integers (tokens) keep theirs.
            device: Where the result lives.
            generator: A CPU generator; one augmentation draw is taken from it. None: no draw.

        Raises:
            SpectraError: If a draw is asked of samples that have no augmentation.
        """
        x = self.inputs.to(device)
        if generator is not None:
            x = augment(x, self._augmentation(), generator)
        if x.dtype == torch.uint8:
            x = x.to(dtype).div_(255)
        elif x.is_floating_point():
            x = x.to(dtype)
        if self.mean is not None and self.std is not None:
            shape = (1, -1) + (1,) * (x.dim() - 2)
            mean = torch.tensor(self.mean, dtype=dtype, device=device).reshape(shape)
            std = torch.tensor(self.std, dtype=dtype, device=device).reshape(shape)
            x = (x - mean) / std
        return x

    def frozen(self, copies: int, seed: int) -> "Samples":
        """Store ``copies`` augmentation draws of every sample: a fixed, larger set (copies·N)."""
        if copies < 1:
            raise SpectraError(f"{copies} frozen copies were asked for; expected at least 1")
        name = self._augmentation()
        generator = torch.Generator().manual_seed(seed)
        assert self.positions is not None
        return replace(
            self,
            inputs=torch.cat([augment(self.inputs, name, generator) for _ in range(copies)]),
            targets=self.targets.repeat(copies),
            positions=self.positions.repeat(copies),
            augmentation=None,
        )

    @cached_property
    def draw_sha256(self) -> str:
        """Return the fingerprint of which samples these are: labels and positions, in order."""
        assert self.positions is not None
        rows = torch.stack([self.targets, self.positions], dim=1).cpu().numpy()
        return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()

    @cached_property
    def pixels_sha256(self) -> str:
        """Return the fingerprint of the stored inputs, bit by bit."""
        values = np.ascontiguousarray(self.inputs.detach().cpu().numpy())
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest = hashlib.sha256(f"{values.dtype.name}:{values.shape}".encode())
        digest.update(values.reshape(-1).data)
        return digest.hexdigest()

    @classmethod
    def from_batches(cls, source: Any, num_classes: int | None = None, **options: Any) -> "Samples":
        """Read a DataLoader, a list of batches or a pair of tensors once; see ``read_batches``."""
        from .batches import read_batches

        return read_batches(source, num_classes, **options)

    def _augmentation(self) -> str:
        if self.augmentation is None:
            raise SpectraError(
                "an augmented draw was asked for and these samples have no augmentation; "
                "use --augment none, or samples whose source has one"
            )
        return self.augmentation


def _rank_within_class(targets: Tensor) -> Tensor:
    """Return each sample's place among those of its own label, in the order given."""
    order = torch.argsort(targets, stable=True)
    _, sizes = torch.unique_consecutive(targets[order], return_counts=True)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    ranks = torch.empty_like(targets)
    ranks[order] = torch.arange(len(targets), device=targets.device) - starts
    return ranks
