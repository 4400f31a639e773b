"""What an analysis is asked for: the flags, and the sets of samples that each get a spectrum."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spectra.choices import CHOICES, KeptName, ProductName
from spectra.data import Samples
from spectra.errors import SpectraError
from spectra.hessian.products import PRODUCTS

RELEASED_BATCH = 128  # of the paper's loader


@dataclass(frozen=True)
class Plan:
    """What is to be computed; every field is a flag of `python -m spectra.esd`."""

    overall: bool = False
    per_class: bool = False
    classes: tuple[int, ...] = ()  # one label alone is taken, too
    groups: bool = False
    split: Literal["train", "test"] = "train"
    loss: Literal["ce", "trained"] = "ce"
    parameters: str | None = None  # names or globs, parted by commas, of the rows of H; None: all
    protocol: Literal["exact", "released"] = "exact"
    augment: str = "auto"  # none, frozen, frozen:K, resample; auto: as the protocol has it
    steps: int = 100
    until_converged: float | None = None  # stop a probe's steps by the residuals of both ends
    probes: int = 1
    seed: int = 0
    batch_size: int | Literal["auto"] = "auto"
    max_samples: int | None = None
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    tf32: bool = False
    product: ProductName | Literal["auto"] = "auto"
    keep: float | Literal["auto"] = "auto"  # GB that products may keep of the batches
    basis: Literal["auto", "device", "host", "none"] = "auto"

    def __post_init__(self) -> None:
        named: Any = self.classes
        try:
            labels = map(operator.index, named if isinstance(named, Iterable) else (named,))
            object.__setattr__(self, "classes", tuple(labels))
        except TypeError as error:
            raise SpectraError(
                f"got classes = {named!r}, expected labels: whole numbers, as in classes=(0, 8)"
            ) from error
        globs: Any = self.parameters
        if globs is not None and not isinstance(globs, str):  # a list of them is taken, too
            object.__setattr__(self, "parameters", ",".join(globs))
        for name in ("steps", "probes", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpectraError(f"got {name} = {value}, expected at least 1")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise SpectraError(
                    f"got {name} {getattr(self, name)!r}, expected {' or '.join(known)}"
                )
        if self.keep != "auto" and not 0 <= self.keep < float("inf"):
            raise SpectraError(f"got keep = {self.keep}, expected gigabytes, 0 or more, or 'auto'")
        if not 0 <= self.seed < 2**63:
            raise SpectraError(f"got seed = {self.seed}, expected 0 to 2**63 - 1")
        if self.augment == "auto":  # the released analysis re-draws it, but not for test images
            moving = self.protocol == "released" and self.split == "train"
            object.__setattr__(self, "augment", "resample" if moving else "none")
        kind, _, copies = self.augment.partition(":")
        if kind not in ("none", "frozen", "resample") or (
            copies and (kind != "frozen" or not copies.isdecimal() or int(copies) < 1)
        ):
            raise SpectraError(
                f"got augment {self.augment!r}, expected auto, none, frozen, frozen:K with K ≥ 1, "
                "or resample"
            )
        if (goal := self.until_converged) is not None:
            if not 0 < goal < 1:
                raise SpectraError(
                    f"got until_converged = {goal}, expected a share of the larger modulus, "
                    "between 0 and 1"
                )
            if self.moves:
                raise SpectraError(
                    "got until_converged for products that change from step to step, expected a "
                    "fixed operator: its residuals would mean nothing; give the steps alone"
                )
        if self.protocol == "released" and self.basis in ("host", "none"):
            raise SpectraError(
                f"got basis {self.basis!r} with protocol 'released', expected auto or device: its "
                "recurrence is kept as it was released, on one device"
            )
        if self.product in get_args(KeptName) and self.moves:
            raise SpectraError(
                f"got product {self.product!r} with products that change from step to step, "
                "expected a plain path: nothing may be kept from one to the next; use auto or "
                f"{', '.join(PRODUCTS)}"
            )
        if self.augment == "resample" and self.basis == "none":
            raise SpectraError(
                "got basis 'none' with augment 'resample', expected one that is kept: its Ritz "
                "vectors would be made by the same products again, and here they differ"
            )

    @property
    def moves(self) -> bool:
        """Tell whether this is the released protocol, or an operator that is no fixed matrix."""
        return self.protocol == "released" or self.augment == "resample"

    @property
    def batches(self) -> int | Literal["auto"]:
        """Samples at once; draws follow the batches, so these are the paper's where they move."""
        open_ = self.batch_size == "auto" and self.augment == "resample"
        return RELEASED_BATCH if open_ else self.batch_size

    @property
    def rows(self) -> list[str] | None:
        """Names or globs of the parameters that the rows of H belong to; None: all."""
        return None if self.parameters is None else self.parameters.split(",")

    @property
    def kept_bytes(self) -> int | None:
        """Bytes that products may keep; None: by what is free."""
        return None if self.keep == "auto" else int(self.keep * 1e9)

    @property
    def copies(self) -> int:
        """How often each sample passes through the network in one product."""
        return max(1, self.frozen_copies)

    @property
    def frozen_copies(self) -> int:
        """Stored augmentation draws of each sample; 0 for none."""
        kind, _, copies = self.augment.partition(":")
        return int(copies or 1) if kind == "frozen" else 0


@dataclass(frozen=True)
class Part:
    """One set of samples that gets a spectrum."""

    label: str
    name: str
    classes: tuple[int, ...]  # () for all
    index: Tensor  # (k,) rows of the split
    share: float


def choose_parts(plan: Plan, samples: Samples, train: Samples | None) -> Iterator[Part]:
    """List the sets of samples that a plan asks for: overall, groups, classes.

    Args:
        plan: what is asked for.
        samples: of the split that is analysed.
        train: training samples, whose counts make the groups.

    Raises:
        SpectraError: for a class that the data do not have, a named class without samples (others
            are left out), or a split without any.
    """
    targets = samples.targets.cpu()
    total = sum(samples.counts)
    if total == 0:
        raise SpectraError(
            f"got no sample with a label in the {plan.split} split, expected at least one: every "
            "Hessian would be 0/0; choose other samples"
        )
    present = [c for c, count in enumerate(samples.counts) if count]

    def part(label: str, name: str, classes: tuple[int, ...]) -> Part:
        chosen = torch.isin(targets, torch.tensor(classes)) if classes else targets >= 0
        index = torch.nonzero(chosen)[:, 0]
        if len(index) == 0:
            raise SpectraError(
                f"got no sample of {label} in the {plan.split} split, expected at least one: its "
                "Hessian would be 0/0; leave it out"
            )
        share = len(index) / total
        if plan.max_samples is not None and len(index) > plan.max_samples:
            shuffle = torch.randperm(len(index), generator=torch.Generator().manual_seed(plan.seed))
            index = index[shuffle[: plan.max_samples].sort().values]
        return Part(label, name, classes, index, share)

    for c in plan.classes:
        if not 0 <= c < samples.num_classes:
            raise SpectraError(
                f"got class {c}, expected 0 to {samples.num_classes - 1}: the data have "
                f"{samples.num_classes} classes"
            )
    if plan.overall or not (plan.per_class or plan.classes or plan.groups):
        yield part("overall", "all classes", ())
    if plan.groups:
        for name, members in (train if train is not None else samples).groups().items():
            if set(members).isdisjoint(present):
                continue
            yield part(name, _span(members), members)
    for c in present if plan.per_class else sorted(set(plan.classes)):
        yield part(f"class {c}", samples.class_names[c], (c,))


def _span(members: Sequence[int]) -> str:
    """Name the classes of a group: by the first and the last where none between is another's."""
    first, last = members[0], members[-1]
    if last - first + 1 != len(members):
        return f"{len(members)} classes"
    return f"classes {first}–{last}" if last > first else f"classes {first}"
