"""The runs that have a name: data set × {ce, ce-drw, ldam-drw} × {sgd, sam}.

The CIFAR recipes are those of the reference paper, radii included. The digits are ours and have no
published target: small, and long enough that the head is fitted and the tail is not.

References:
    Rangwani et al., Escaping saddle points, https://arxiv.org/abs/2212.13827
"""

import difflib
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..data.spec import DataSpec
from ..errors import SpectraError
from ..models import Head
from .schedules import drop_epochs, warmup_epochs

STEPS, LOSSES, PRECISIONS = ("sgd", "sam"), ("ce", "ldam"), ("float32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """Hold everything that decides the weights, but the data's folder and the device.

    Args:
        name: of the recipe, as the command line takes it.
        dataset: a name that `DataSpec` knows.
        imbalance: "exp", "step" or "none".
        ratio: largest over smallest class count; without meaning where the imbalance is "none".
        arch: network, as `ModelSpec` names it.
        loss: "ce", or "ldam" (cosine head, s = 30).
        drw: weigh the classes by effective numbers after the first drop.
        beta: β of the effective numbers.
        step: "sgd" or "sam".
        rho: SAM's radius.
        epochs: length of the run.
        warmup: epochs of linear warm-up; None: 5/200 of the run.
        drops: last epochs before the learning rate drops by a hundred; None: 160/200, 180/200.
        batch_size: samples; a last partial batch is kept.
        lr: learning rate after the warm-up.
        momentum: of SGD, not Nesterov's.
        weight_decay: on every parameter.
        augment: draw the data set's augmentation anew for each batch.
        precision: "float32", or "bf16" (autocast; the weights stay float32).
        seed: of the initial weights, the order of the samples and the augmentation.

    Raises:
        SpectraError: for a value that no run can have.
    """

    name: str
    dataset: str
    arch: str
    imbalance: str = "exp"
    ratio: float = 100.0
    loss: str = "ce"
    drw: bool = False
    beta: float = 0.9999
    step: str = "sgd"
    rho: float = 0.0
    epochs: int = 200
    warmup: int | None = None
    drops: tuple[int, ...] | None = None
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-4
    augment: bool = True
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, known in (("step", STEPS), ("loss", LOSSES), ("precision", PRECISIONS)):
            if getattr(self, field) not in known:
                raise SpectraError(
                    f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}"
                )
        for field, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0), ("rho", 0)):
            if (getattr(self, field) or 0) < least and getattr(self, field) is not None:
                raise SpectraError(f"{field} is {getattr(self, field)}; expected at least {least}")
        if not self.lr > 0:
            raise SpectraError(f"lr is {self.lr}; expected a positive learning rate")
        if list(self.drop_epochs) != sorted(self.drop_epochs):
            raise SpectraError(f"drops are {self.drop_epochs}; expected ascending epochs")
        if self.drw and not self.drop_epochs:
            raise SpectraError("drw starts at the first drop and drops is empty; name one")

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
    def warmup_epochs(self) -> int:
        """Give the epochs of warm-up, by proportion where they are not named."""
        return warmup_epochs(self.epochs) if self.warmup is None else self.warmup

    @property
    def drop_epochs(self) -> tuple[int, ...]:
        """Give the last epochs before a drop, by proportion where they are not named."""
        return drop_epochs(self.epochs) if self.drops is None else self.drops

    def to_dict(self) -> dict[str, Any]:
        """Give what runs as plain values, the schedule's numbers included."""
        return {**asdict(self), "warmup": self.warmup_epochs, "drops": list(self.drop_epochs)}


_DATASETS: dict[str, dict[str, Any]] = {
    "digits-lt": {
        "dataset": "digits", "arch": "digits", "ratio": 20.0, "epochs": 100, "batch_size": 32,
    },
    "cifar10-lt": {"dataset": "cifar10", "arch": "resnet32"},
    "cifar100-lt": {"dataset": "cifar100", "arch": "resnet32"},
}  # fmt: skip
_METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "ce-drw": {"drw": True},
    "ldam-drw": {"loss": "ldam", "drw": True},
}
_RADII = {  # CIFAR: the paper's; digits: ours
    "digits-lt": {"ce": 0.1, "ce-drw": 0.1, "ldam-drw": 0.1},
    "cifar10-lt": {"ce": 0.1, "ce-drw": 0.5, "ldam-drw": 0.8},
    "cifar100-lt": {"ce": 0.2, "ce-drw": 0.8, "ldam-drw": 0.8},
}


def _table() -> dict[str, Recipe]:
    table: dict[str, Recipe] = {}
    for data, options in _DATASETS.items():
        for method, choice in _METHODS.items():
            plain = Recipe(f"{data}-{method}-sgd", **options, **choice)
            sam = replace(plain, name=f"{data}-{method}-sam", step="sam", rho=_RADII[data][method])
            table |= {plain.name: plain, sam.name: sam}
    return table


RECIPES: dict[str, Recipe] = _table()


def find_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        SpectraError: for an unknown name; the message lists near ones.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--list prints all of them"
        raise SpectraError(f"no recipe is named {name!r}; {hint}")
    return RECIPES[name]
