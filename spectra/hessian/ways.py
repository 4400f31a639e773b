"""Choose how products are computed: measured on this machine, for the work that is to come.

`choice` finds the plain paths that are right for a model. Where the work is worth it, the kept ways
of `kept` are built on top, proven in float64 over a few samples, compared with the plain path in
the precision at hand, and timed against it; the fastest stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.hessian.choice import ProductChoice
from spectra.hessian.kept import KeptProducts
from spectra.hessian.objective import Objective
from spectra.hessian.products import PRODUCTS, KeptName, PathName, ProductName

# Samples at once, large enough for the kernels and small enough to fit a class of 50 images.
_SIZES = {"cuda": (512, 64)}
_CPU_SIZES = (32, 16, 8)
_PADDING = 1.15  # of the samples of all selections, at most, where smaller batches are to be had
_WORTH_TRACING = 30.0  # seconds of plain products to come
_WORTH_COMPILING = 600.0  # seconds of linearized products to come
_PROVEN = 1e-10  # relative, in float64
# Relative, in the precision at hand: another rounding turns single ReLUs whose input is nearly
# zero, and each moves the product by its share. An error of the program would be of order one.
_CLOSE = {torch.float32: 1e-2, torch.float64: _PROVEN}


@dataclass(frozen=True)
class Work:
    """The products to come."""

    selections: Sequence[int]  # samples of each operator
    products: int  # with each of them

    @property
    def samples(self) -> int:
        """Count the samples that all products pass over."""
        return self.products * sum(self.selections)


@dataclass(frozen=True)
class Way:
    """How products are computed, and what was measured before."""

    name: ProductName
    kept: KeptProducts | None  # None: the plain path of the choice
    seconds: dict[str, float]  # per sample, by name; of those that were measured
    notes: tuple[str, ...]


def choose_way(
    objective: Objective,
    choice: ProductChoice,
    work: Work,
    *,
    product: ProductName | None = None,
    budget: int | None = None,
) -> Way:
    """Choose the fastest way for some work, or build the one that is asked for.

    Args:
        objective: over all samples.
        choice: the plain paths that are right for its network.
        work: the products to come.
        product: insist on this way.
        budget: bytes that may be kept; half of what is free when None.

    Returns:
        The way. Where nothing faster is worth its preparation it is the plain path.

    Raises:
        SpectraError: the way that is asked for is not to be had for this network.
    """
    if product is not None and product not in get_args(KeptName):
        return Way(product, None, {}, ())
    trial = _Trial(objective, choice, work, budget)
    if product is not None:
        kept = trial.build(cast(KeptName, product))
        if kept is None:
            raise SpectraError(
                f"got product {product!r} for a network that does not allow it "
                f"({trial.notes[-1]}), expected auto or one of {', '.join(PRODUCTS)}: its products "
                "would be wrong or missing"
            )
        return trial.way(product, kept)
    best: KeptProducts | None = None
    name: ProductName = choice.path
    if choice.seconds * work.samples < _WORTH_TRACING:
        return trial.way(name, None)
    plain = trial.seconds[name] = trial.time(lambda few, v: few.product(v, choice.path))
    if plain * work.samples > _WORTH_TRACING:
        for candidate in ("linearized", "kept-graph"):
            best = trial.better(candidate, name)
            name = candidate if best is not None else name
            if best is not None:
                break
    if name == "linearized" and trial.seconds[name] * work.samples > _WORTH_COMPILING:
        compiled = trial.better("compiled", name)
        if compiled is not None:
            name, best = "compiled", compiled
    return trial.way(name, best)


class _Trial:
    """Builds, proves and times ways over one full batch."""

    def __init__(
        self, objective: Objective, choice: ProductChoice, work: Work, budget: int | None
    ) -> None:
        self.objective, self.choice, self.budget = objective, choice, budget
        self.sizes = _sizes(objective, work)
        seen = torch.nonzero(objective.weights)[:, 0][: self.sizes[0]]
        self.few = objective.select(seen)
        draw = torch.Generator().manual_seed(1)
        vector = torch.randn(objective.dim, generator=draw, dtype=torch.float64)
        self.vector = vector.to(objective.device, objective.dtype)
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self._proven: set[KeptName] = set()

    def way(self, name: ProductName, kept: KeptProducts | None) -> Way:
        return Way(name, kept, self.seconds, tuple(self.notes))

    def better(self, name: KeptName, than: ProductName) -> KeptProducts | None:
        """Build a way and keep it if it is faster."""
        kept = self.build(name)
        if kept is None:
            return None
        self.seconds[name] = self.time(kept.product)
        kept.drop()
        if self.seconds[name] < self.seconds[than]:
            return kept
        self.notes.append(f"{name} is not faster here than {than}")
        return None

    def build(self, name: KeptName) -> KeptProducts | None:
        """Build a way, or note why it is not to be had."""
        start = time.perf_counter()
        needed: PathName = "double-backward" if name == "kept-graph" else "forward-over-reverse"
        if needed in self.choice.refused:
            self.notes.append(f"{name} stands on {needed}, which is refused for this model")
            return None
        try:
            self._prove("linearized" if name == "compiled" else name)
            kept = KeptProducts(
                name, self.objective, self.choice.path, sizes=self.sizes, budget=self.budget
            )
            product = kept.product(self.few, self.vector)
        except Exception as error:  # tracers and compilers fail in any way; the plain path is there
            line = (str(error).splitlines() or [""])[0][:160]
            self.notes.append(f"no {name} product: {type(error).__name__}: {line}")
            return None
        plain = self.few.product(self.vector, self.choice.path)
        gap = _relative(product, plain)
        if not gap <= _CLOSE[self.objective.dtype]:
            self.notes.append(f"no {name} product: {gap:.1e} away from {self.choice.path}")
            return None
        took = time.perf_counter() - start
        self.notes.append(
            f"{name}: {gap:.1e} from {self.choice.path} over {len(self.few.samples)} samples in "
            f"{str(self.objective.dtype).removeprefix('torch.')}; {took:.0f} s of preparation"
        )
        return kept

    def _prove(self, name: KeptName) -> None:
        """Compare a way with a plain path in float64, over two samples; once."""
        if name in self._proven:
            return
        two = self.few.select(torch.arange(min(2, len(self.few.samples))))
        two = replace(two.recut(dtype=torch.float64, backwards=False, batch_size=2), redraw=None)
        kept = KeptProducts(name, two, self.choice.path, sizes=(2,), budget=self.budget)
        vector = self.vector.double()
        reference = self.choice.reference
        gap = _relative(kept.product(two, vector), two.product(vector, reference))
        if not gap <= _PROVEN:
            raise SpectraError(f"{gap:.1e} away from {reference} in float64")
        self._proven.add(name)

    def time(self, product: Callable[[Objective, Tensor], Tensor]) -> float:
        """Measure seconds per sample of the second of two products."""
        product(self.few, self.vector)
        _wait(self.objective.device)
        start = time.perf_counter()
        product(self.few, self.vector)
        _wait(self.objective.device)
        return (time.perf_counter() - start) / len(self.few.samples)


def _sizes(objective: Objective, work: Work) -> tuple[int, ...]:
    """Choose the samples at once: one size on a CPU, two on a GPU."""
    if objective.device.type in _SIZES:
        return _SIZES[objective.device.type]
    samples = sum(work.selections)
    for size in _CPU_SIZES:
        if sum(-(-n // size) * size for n in work.selections) <= _PADDING * samples:
            break
    return (size,)


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
