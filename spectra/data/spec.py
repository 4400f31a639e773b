"""Which data a number belongs to: the description that checkpoints and result files carry."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SpectraError


@dataclass(frozen=True)
class Traits:
    """Hold what a data set's name fixes, whichever layout its files lie in."""

    about: str
    mean: tuple[float, ...]  # (c,) of pixels scaled to 0..1
    std: tuple[float, ...]  # (c,)
    augmentation: str | None = None  # a name that ``augment`` knows
    num_classes: int | None = None  # None: as many as the files show
    sizes: tuple[int, int] | None = None  # classes in head and mid; None: thirds
    by_count: bool = False  # whether head, mid and tail are cut from the classes sorted by count


# Normalisation and augmentation: the reference recipe, also for CIFAR-100 (paper.md 4.2, 4.5);
# head, mid and tail: paper.md 4.4. The digits' constants are those of their training part.
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "crop-flip:4"
LARGE = "resized-crop-flip-jitter:0.4"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), LARGE
INATURALIST = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192), LARGE
KNOWN: dict[str, Traits] = {
    "digits": Traits("embedded, nothing to download", (0.3055,), (0.3754,), "crop:1", 10),
    "cifar10": Traits("binary archive, Python's or hub parquet", *CIFAR, 10, (3, 4)),
    "cifar100": Traits("binary archive, Python's or hub parquet", *CIFAR, 100, (36, 35)),
    "folder": Traits("train/<class>/*.png|jpg|webp, test/ or val/", *IMAGENET),
    "list": Traits("one *train.txt, *test.txt: `path label` lines", *IMAGENET),
    "imagenet-lt": Traits("ImageNet_LT_train.txt, ..._test.txt", *IMAGENET, 1000, (390, 445), True),
    "inat2018": Traits(
        "iNaturalist18_train.txt, ..._val.txt", *INATURALIST, 8142, (842, 3701), True
    ),
}


ONE_SIZE = ("digits", "cifar10", "cifar100")  # whose images stay as they are


def usually_normalised(name: str, said: Mapping[str, Any]) -> bool:
    """Tell whether a result's ``mean`` and ``std`` are those of a data set's name.

    True also where the result does not tell them, or the name none.
    """
    traits = KNOWN.get(name)
    return traits is None or all(
        said.get(key) in (None, list(getattr(traits, key))) for key in ("mean", "std")
    )


@dataclass(frozen=True)
class DataSpec:
    """Name a data set and its long-tail draw; folders are no part of it.

    Args:
        name: One of ``KNOWN`` ("digits", "cifar10", "cifar100", "folder", "list", ...).
        imbalance: "exp", "step", or None for all samples.
        ratio: Largest over smallest class count, at least 1; None without imbalance.
        seed: Seed of the draw; the published draws use 0.
        image_size: Side S in pixels that image files are cut to: the shorter side is resized to
            S·256/224 and the centre cut out. None: their own, or 224 where they differ in size.
    """

    name: str
    imbalance: str | None = None
    ratio: float | int | None = None
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
        ratio = 1.0 if self.ratio is None else float(self.ratio)
        size = 1 if self.image_size is None else self.image_size
        if not (1 <= ratio < float("inf") and 0 <= self.seed < 2**32 and size >= 1):
            raise SpectraError(
                f"ratio {self.ratio}, seed {self.seed}, image size {self.image_size}; expected a "
                "ratio of at least 1 (100, not 0.01), a seed of 32 bits, and at least 1 pixel"
            )
        if self.ratio is not None:
            object.__setattr__(self, "ratio", ratio)  # an integer would be written differently

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
