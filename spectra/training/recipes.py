"""The runs that have a name: data set × {ce, ce-drw, ldam-drw} × {sgd, sam}.

The CIFAR recipes are the reference paper's, radii included. The digits' are ours, without a
published target: long enough that the head is fitted and the tail is not.

References:
    Rangwani et al., Escaping saddle points, https://arxiv.org/abs/2212.13827
"""

import difflib
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..data.spec import DataSpec
from ..errors import SpectraError
from ..models import Head
from .schedules import proportions


@dataclass(frozen=True)
class Recipe:
    """Hold everything that decides the weights, but the data's folder and the device.

    Raises:
        SpectraError: for a value that no run can have.
    """

    name: str
    dataset: str  # as DataSpec names it
    arch: str  # as ModelSpec names it
    imbalance: str = "exp"  # exp, step or none
    ratio: float = 100.0  # largest over smallest class count; unused where the imbalance is none
    loss: str = "ce"  # ce, or ldam with its cosine head, s = 30
    drw: bool = False  # deferred re-weighting: by effective numbers after the first drop
    beta: float = 0.9999  # β of the effective numbers
    step: str = "sgd"  # sgd or sam
    rho: float = 0.0  # SAM's radius
    epochs: int = 200
    warmup: int | None = None  # epochs; None: 5/200 of the run
    drops: tuple[int, ...] | None = None  # last epochs before lr/100; None: 160/200 and 180/200
    batch_size: int = 128  # a last partial batch is kept
    lr: float = 0.1
    momentum: float = 0.9  # not Nesterov's
    weight_decay: float = 2e-4  # on every parameter
    augment: bool = True  # draw the data set's augmentation anew for each batch
    precision: str = "float32"  # or bf16: autocast, the weights stay float32
    seed: int = 0  # of the initial weights, the order of the samples and the augmentation

    def __post_init__(self) -> None:
        warmup, drops = self.schedule
        rules = {
            "step": (self.step in ("sgd", "sam"), "sgd or sam"),
            "loss": (self.loss in ("ce", "ldam"), "ce or ldam"),
            "precision": (self.precision in ("float32", "bf16"), "float32 or bf16"),
            "rho": (self.rho >= 0, "a radius of at least 0"),
            "lr": (self.lr > 0, "a positive learning rate"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "warmup": (warmup >= 0, "at least 0 epochs"),
            "drops": (list(drops) == sorted(drops), "ascending epochs"),
            "drw": (bool(drops) or not self.drw, "a first drop to start at: name one in drops"),
        }
        for field, (holds, expected) in rules.items():
            if not holds:
                raise SpectraError(f"{field} is {getattr(self, field)!r}; expected {expected}")

    @property
    def data_spec(self) -> DataSpec:
        """Describe the training set."""
        if self.imbalance == "none":
            return DataSpec(self.dataset)
        return DataSpec(self.dataset, self.imbalance, self.ratio)

    @property
    def head(self) -> Head:
        """Name the head that the loss needs."""
        return "cosine" if self.loss == "ldam" else "linear"

    @property
    def schedule(self) -> tuple[int, tuple[int, ...]]:
        """Give warm-up and drops in epochs, by proportion where they are not named."""
        warmup, drops = proportions(self.epochs)
        return (
            warmup if self.warmup is None else self.warmup,
            drops if self.drops is None else self.drops,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give what runs as plain values, the schedule's numbers included."""
        warmup, drops = self.schedule
        return {**asdict(self), "warmup": warmup, "drops": list(drops)}


_DATASETS: dict[str, dict[str, Any]] = {
    "digits-lt": {"dataset": "digits", "arch": "digits", "ratio": 20.0, "batch_size": 32},
    "cifar10-lt": {"dataset": "cifar10", "arch": "resnet32"},
    "cifar100-lt": {"dataset": "cifar100", "arch": "resnet32"},
}
_METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "ce-drw": {"drw": True},
    "ldam-drw": {"loss": "ldam", "drw": True},
}
_RADII = {  # SAM's ρ for the three methods
    "digits-lt": (0.2, 0.2, 0.2),
    "cifar10-lt": (0.1, 0.5, 0.8),
    "cifar100-lt": (0.2, 0.8, 0.8),
}


def _table() -> dict[str, Recipe]:
    table: dict[str, Recipe] = {}
    for data, options in _DATASETS.items():
        for (method, choice), rho in zip(_METHODS.items(), _RADII[data], strict=True):
            sgd = Recipe(f"{data}-{method}-sgd", **options, **choice)
            sam = replace(sgd, name=f"{data}-{method}-sam", step="sam", rho=rho)
            table |= {sgd.name: sgd, sam.name: sam}
    return table


RECIPES = _table()


def find_recipe(name: str) -> Recipe:
    """Look a recipe up; an unknown name is a SpectraError that lists near ones."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--list prints all of them"
        raise SpectraError(f"no recipe is named {name!r}; {hint}")
    return RECIPES[name]
