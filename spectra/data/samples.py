"""Samples kept as tensors: what a Hessian is taken over, fixed from the first product to the last.

Two fingerprints tell one set from another on any machine:
``draw_sha256`` = SHA-256 of the (n, 2) little-endian int64 rows (label, position within its class
in the source), and ``pixels_sha256`` = SHA-256 of "dtype:shape" in ASCII and the little-endian
bytes of the inputs, None where some are not read. Image files have ``files_sha256``, too.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ..devices import constant
from ..errors import SpectraError
from .augment import augment
from .images import Pixels
from .memory import free_memory, refuse_what_does_not_fit
from .spec import KNOWN, DataSpec

Integers = NDArray[np.int64]
SPREAD = 64  # samples from all over a set
IGNORED = -100  # a target that no class counts and PyTorch's losses skip by default


@runtime_checkable
class Decoder(Protocol):
    """The way to inputs that are not read: (m,) rows of n to (m, c, h, w)."""

    def __len__(self) -> int:
        """Return n."""
        ...

    def __call__(self, index: Integers) -> Pixels:
        """Read some of them."""
        ...


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Samples:
    """Hold inputs and targets, and what is needed to turn them into a network's input.

    Inputs on the device "meta" have a shape and no values: images that `decode` reads when they
    are selected, as they lie in their files, whatever was done to the inputs.

    Raises:
        SpectraError: If lengths, labels or channels disagree.
    """

    inputs: Shaped[Tensor, "n ..."]  # images as uint8 (n, c, h, w), or any other tensor
    targets: Int64[Tensor, " n"]  # labels 0..C-1, or -100 for samples that the loss ignores
    num_classes: int  # C
    class_names: tuple[str, ...]  # (C,)
    mean: tuple[float, ...] | None = None  # (c,) of uint8 pixels scaled to 0..1, or of the inputs
    std: tuple[float, ...] | None = None  # (c,)
    augmentation: str | None = None  # a name that ``augment`` knows; None: no augmentation
    spec: DataSpec | None = None  # where the samples come from
    positions: Int64[Tensor, " n"] | None = None  # within the class in the source; None: as given
    decode: Decoder | None = None  # of inputs without values; None: all of them are read
    files_sha256: str | None = None  # of all samples of image files, see `images.ImageFiles`

    def __post_init__(self) -> None:
        c, shape = self.num_classes, tuple(self.inputs.shape)
        if shape[0] != len(self.targets) or len(self.class_names) != c:
            raise SpectraError(
                f"{shape[0]} inputs came with {len(self.targets)} targets, and {c} classes with "
                f"{len(self.class_names)} names; expected one for each"
            )
        readable = None if self.decode is None else len(self.decode)
        if readable != (len(self.targets) if self.inputs.is_meta else None):
            raise SpectraError(
                "got inputs without values and no way to read just them, or a way to read inputs "
                "that have them; expected both or neither: read the samples first, with in_memory()"
            )
        if self.targets.device.type == "cpu":  # elsewhere they were checked before they moved
            labels = self.targets[self.targets != IGNORED]
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < c:
                raise SpectraError(
                    f"labels run from {int(labels.min())} to {int(labels.max())}; expected 0 to "
                    f"{c - 1} ({c} classes), or -100 to ignore a sample"
                )
        channels = [None if v is None else len(v) for v in (self.mean, self.std)]
        if channels != [None, None] and channels != [*shape[1:2]] * 2:
            raise SpectraError(
                f"mean and std have {channels[0]} and {channels[1]} channels and the inputs the "
                f"shape {shape}; expected neither, or as many as the inputs have"
            )
        positions = _rank_in_class(self.targets) if self.positions is None else self.positions
        object.__setattr__(self, "positions", positions.to(self.targets.device))

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Return the number of samples of each class, in label order."""
        labels = self.targets[self.targets != IGNORED]
        return tuple(torch.bincount(labels, minlength=self.num_classes).tolist())

    def select(self, index: Shaped[Tensor, " m"] | slice) -> "Samples":
        """Return the samples at these rows, or where a mask is true."""
        assert self.positions is not None
        kept = {k: getattr(self, k)[index] for k in ("targets", "positions")}
        if self.decode is None:
            inputs = self.inputs[index]
        else:
            inputs = torch.from_numpy(self.decode(torch.arange(len(self))[index].numpy()))
        return replace(self, inputs=inputs, decode=None, files_sha256=None, **kept)

    def in_memory(self) -> "Samples":
        """Return the samples with all of their inputs read."""
        if self.decode is None:
            return self
        return replace(self.select(slice(None)), files_sha256=self.files_sha256)

    def read_ahead(self, rows: Shaped[Tensor, " m"]) -> "Samples":
        """Return the samples with the inputs of these rows read, and kept for all that is to come.

        Args:
            rows: Of images that will be selected again and again; those of others still decode
                when they are selected.
        """
        if self.decode is None or len(rows) == 0:
            return self
        chosen = np.unique(rows.numpy())
        return replace(self, decode=_Ahead(chosen, self.decode(chosen), self.decode))

    def of_class(self, label: int) -> "Samples":
        """Return the samples of one class; raise SpectraError if there is none."""
        if not 0 <= label < self.num_classes or self.counts[label] == 0:
            raise SpectraError(
                f"class {label} has no sample here (classes are 0 to {self.num_classes - 1}); its "
                "Hessian would be 0/0: leave the class out"
            )
        return self.select(self.targets == label)

    def normalised_by(self, mean: Sequence[float | int], std: Sequence[float | int]) -> "Samples":
        """Return the samples with other constants of normalisation, those of a foreign training.

        Args:
            mean: (c,) to subtract from pixels scaled to 0..1, or one for all channels.
            std: (c,) to divide by, or one for all channels.

        Raises:
            SpectraError: If the inputs are no images, the constants not as many as their channels,
                or not those of pixels scaled to 0..1.
        """
        if self.inputs.dtype != torch.uint8 or self.inputs.dim() != 4:
            raise SpectraError(
                f"got a mean and a std for inputs of {self.inputs.dtype} and the shape "
                f"{tuple(self.inputs.shape)}; expected images as bytes: give the network's inputs "
                "normalised"
            )
        if not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
            raise SpectraError(
                f"got the mean {tuple(mean)} and the std {tuple(std)} of pixels scaled to 0..1; "
                "expected numbers from 0 to 1, and a positive std: divide those of 0..255 by 255"
            )
        count = self.inputs.shape[1]
        shift, scale = (tuple(map(float, v)) * (count if len(v) == 1 else 1) for v in (mean, std))
        return replace(self, mean=shift, std=scale)

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
        order = np.arange(self.num_classes)
        if traits is None or traits.sizes is None or traits.by_count:
            order = np.argsort(-np.array(self.counts), kind="stable")
        sizes = traits.sizes if traits else None
        parts = np.array_split(order, 3) if sizes is None else np.split(order, np.cumsum(sizes))
        head, mid, tail = (tuple(sorted(part.tolist())) for part in parts)
        return {"head": head, "mid": mid, "tail": tail}

    def prepared(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "n ..."]:
        """Return the network's input: augmented once if asked, scaled, normalised, on the device.

        Args:
            dtype: Of images and floating inputs; other integers (tokens) keep theirs.
            device: Where the result lives.
            generator: A CPU generator; one augmentation draw is taken from it. None: no draw.

        Raises:
            SpectraError: If a draw is asked of samples that have no augmentation.
        """
        x = self.in_memory().inputs.to(device)
        if generator is not None:
            x = augment(x, self.augmentation, generator)
        if x.dtype == torch.uint8:
            x = x.to(dtype).div_(255)
        elif x.is_floating_point():
            x = x.to(dtype)
        if self.mean is not None and self.std is not None:
            shape = (-1,) + (1,) * (x.dim() - 2)
            mean, std = (constant(v, x.dtype, x.device) for v in (self.mean, self.std))
            x = (x - mean.reshape(shape)).div_(std.reshape(shape))
        return x

    def frozen(self, copies: int, seed: int, rows: Shaped[Tensor, " m"] | None = None) -> "Samples":
        """Store ``copies`` augmentation draws of every sample: a fixed, larger set (copies·N).

        Args:
            copies: How many.
            seed: Of the draws.
            rows: Keep these samples alone, with the draws that they have among all; None: all.
        """
        if copies < 1:
            raise SpectraError(f"{copies} frozen copies were asked for; expected at least 1")
        generator, name = torch.Generator().manual_seed(seed), self.augmentation
        kept = self.in_memory() if rows is None else self.select(rows)
        among = None if rows is None else (rows, len(self))
        draws = [augment(kept.inputs, name, generator, among) for _ in range(copies)]
        assert kept.positions is not None
        return replace(
            kept,
            inputs=torch.cat(draws),
            targets=kept.targets.repeat(copies),
            positions=kept.positions.repeat(copies),
            augmentation=None,
            files_sha256=None,
        )

    @cached_property
    def draw_sha256(self) -> str:
        """Return the fingerprint of which samples these are: labels and positions, in order."""
        assert self.positions is not None
        rows = torch.stack([self.targets, self.positions], dim=1).cpu().numpy()
        return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").data).hexdigest()

    @cached_property
    def pixels_sha256(self) -> str | None:
        """Return the fingerprint of the stored inputs, bit by bit; None if some are not read."""
        if self.decode is not None:
            return None
        values = np.ascontiguousarray(self.inputs.detach().cpu().numpy())
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest = hashlib.sha256(f"{values.dtype.name}:{values.shape}".encode())
        digest.update(values.reshape(-1).data)
        return digest.hexdigest()

    @cached_property
    def some_pixels_sha256(self) -> str | None:
        """Return the fingerprint of up to 64 inputs from all over, which are read for it."""
        return self.select(spread(len(self))).pixels_sha256

    @classmethod
    def from_batches(cls, source: Any, num_classes: int | None = None, **options: Any) -> "Samples":
        """Read a DataLoader, a list of batches or a pair of tensors once; see ``read_batches``."""
        from .batches import read_batches

        return read_batches(source, num_classes, **options)


@dataclass(frozen=True, eq=False)
class _Ahead:
    """Decode rows, but for those that were read before."""

    rows: Integers  # (m,) ascending
    pixels: Pixels  # (m, c, h, w)
    decode: Decoder

    def __len__(self) -> int:
        return len(self.decode)

    def __call__(self, index: Integers) -> Pixels:
        if np.array_equal(index, self.rows):
            return self.pixels  # no copy: nobody writes into inputs
        refuse_what_does_not_fit((len(index), *self.pixels.shape[1:]), free_memory())
        place = np.searchsorted(self.rows, index).clip(max=len(self.rows) - 1)
        known = self.rows[place] == index
        out: Pixels = self.pixels[place]
        if not known.all():
            out[~known] = self.decode(index[~known])
        return out


def spread(count: int) -> Int64[Tensor, " m"]:
    """Choose up to 64 rows from all over a set, the first and the last among them."""
    return torch.linspace(0, count - 1, min(SPREAD, count)).round().long()


def as_samples(source: Any, num_classes: int | None = None) -> Samples:
    """Give samples as they are, and read what ``Samples.from_batches`` takes."""
    return source if isinstance(source, Samples) else Samples.from_batches(source, num_classes)


def require_one_size(train: Samples, test: Samples) -> None:
    """Refuse images of two sizes: accuracies on the test set would be of another scale."""
    sizes = [part.inputs.shape[1:] for part in (train, test)]
    if sizes[0] != sizes[1] and train.inputs.dim() == test.inputs.dim() == 4:
        mine, other = (" × ".join(map(str, size)) for size in sizes)
        raise SpectraError(
            f"the training images are {mine} and the test images {other}; expected one size: a "
            "network that pools takes both, and its test accuracy would be of another scale; cut "
            "both to one by the --image-size of spectra.train and of `spectra.data export`"
        )


def _rank_in_class(targets: Tensor) -> Tensor:
    """Return each sample's place among those of its own label, in the order given."""
    order = torch.argsort(targets, stable=True)
    _, sizes = torch.unique_consecutive(targets[order], return_counts=True)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    ranks = torch.empty_like(targets)
    ranks[order] = torch.arange(len(targets), device=targets.device) - starts
    return ranks
