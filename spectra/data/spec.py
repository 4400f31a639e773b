"""Which data a number belongs to: the description that checkpoints and result files carry."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SpectraError

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Traits:
    """Hold what a data set's name fixes, whichever layout its files lie in."""

    mean: tuple[float, ...]  # (c,) of pixels scaled to 0..1
    std: tuple[float, ...]  # (c,)
    augmentation: str | None = None
    num_classes: int | None = None  # None: as many as the files show
    sizes: tuple[int, int] | None = None  # classes in head and mid; None: thirds
    by_count: bool = False  # whether the groups count classes from the largest on
    about: str = ""


# Normalisation and augmentation: the reference recipe, also for CIFAR-100 (paper.md 4.2, 4.5);
# head, mid and tail: paper.md 4.4. The digits' constants are those of their training part.
KNOWN: dict[str, Traits] = {
    "digits": Traits((0.3055,), (0.3754,), "crop:1", 10, about="embedded, nothing to download"),
    "cifar10": Traits(
        CIFAR_MEAN, CIFAR_STD, "crop-flip:4", 10, (3, 4), about="binary archive or parquet"
    ),
    "cifar100": Traits(
        CIFAR_MEAN, CIFAR_STD, "crop-flip:4", 100, (36, 35), about="binary archive or parquet"
    ),
    "folder": Traits(IMAGENET_MEAN, IMAGENET_STD, about="train/<class>/*.png and test/ or val/"),
    "list": Traits(IMAGENET_MEAN, IMAGENET_STD, about="train.txt, test.txt: `path label` a line"),
    "imagenet-lt": Traits(
        IMAGENET_MEAN, IMAGENET_STD, None, 1000, (390, 445), True, "ImageNet_LT_train.txt, ..."
    ),
    "inat2018": Traits(
        (0.466, 0.471, 0.380),
        (0.195, 0.194, 0.192),
        None,
        8142,
        (842, 3701),
        True,
        "iNaturalist18_train.txt, ...",
    ),
}


@dataclass(frozen=True)
class DataSpec:
    """Name a data set and its long-tail draw; folders are no part of it.

    Args:
        name: One of ``KNOWN`` ("digits", "cifar10", "cifar100", "folder", "list", ...).
        imbalance: "exp", "step", or None for all samples.
        ratio: Largest over smallest class count, at least 1; None without imbalance.
        seed: Seed of the draw; the published draws use 0.
        image_size: Side in pixels that image files are cut to (see ``sources``); None: their own.
    """

    name: str
    imbalance: str | None = None
    ratio: float | None = None
    seed: int = 0
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.name not in KNOWN:
            raise SpectraError(f"no data set is named {self.name!r}; known: {', '.join(KNOWN)}")
        if self.imbalance not in (None, "exp", "step"):
            raise SpectraError(f"imbalance is {self.imbalance!r}; expected exp, step or None")
        if (self.imbalance is None) != (self.ratio is None):
            raise SpectraError(
                f"imbalance is {self.imbalance!r} and its ratio {self.ratio!r}: which samples are "
                "drawn would be a guess; give both or neither"
            )
        if self.ratio is not None and not 1 <= self.ratio < float("inf"):
            raise SpectraError(
                f"the imbalance ratio is {self.ratio}; expected largest over smallest class "
                "count, which is at least 1 (100, not 0.01)"
            )
        if not 0 <= self.seed < 2**32:
            raise SpectraError(f"the draw's seed is {self.seed}; expected 0 to 2**32 - 1")

    def __str__(self) -> str:
        draw = f", {self.imbalance}, ratio {self.ratio:g}, seed {self.seed}" if self.ratio else ""
        return self.name + draw + (f", {self.image_size} px" if self.image_size else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataSpec":
        """Rebuild a description from ``to_dict``, refusing keys that it does not know."""
        try:
            return cls(**values)
        except TypeError as error:
            raise SpectraError(
                f"the data description has keys {sorted(values)}; expected name, imbalance, "
                "ratio, seed, image_size: another version wrote it, give the data by flags"
            ) from error


DIGITS_LT = DataSpec("digits", "exp", 20.0)
"""The embedded long-tailed digits: 134 to 6 samples a class, 400 for the test."""
