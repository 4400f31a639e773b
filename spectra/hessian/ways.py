"""Choose how products are computed: measured on this machine, for the work that is to come.

`choice` finds the plain paths that are right for a model. Where the work is worth it, the kept ways
of `kept` are built on top, proven in float64 over a few samples, compared with the plain path in
the precision at hand (without TF32), and timed against it; the fastest stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast, get_args

import torch
from torch import Tensor

from spectra.choices import KeptName, PathName, ProductName
from spectra.errors import SpectraError, first_line
from spectra.hessian.choice import ProductChoice, relative
from spectra.hessian.kept import KeptProducts
from spectra.hessian.objective import Objective
from spectra.hessian.products import PRODUCTS

# Samples at once: on a GPU enough for its kernels, and few for a class of 50 images; on a CPU what
# stays in the caches, cut so that little is filled up.
_SIZES = {"cuda": (512, 64)}
_MOST_ON_CPU = 40
# Samples that each batch costs beside its own: launches, and what is done on weights. 1.2 and 4.4
# were measured, on an AMD EPYC before norms were drawn into weights and on an Intel Xeon after it.
_PER_BATCH = 2.0
_WORTH_TRACING = 30.0  # seconds of plain products to come
# Seconds of linearized products to come: a tenth (AMD EPYC) to a quarter (Intel Xeon) of it is
# saved, and the compiler takes half a minute to one (39 s of one thread of a Xeon).
_WORTH_COMPILING = 500.0
_FASTER = 0.95  # of the time of the other way: timings scatter
_PROVEN = 1e-10  # relative, in float64
# Where samples are fitted to the last bits, p - 1 of the softmax is rounding, and two plain paths
# say different things: so many times what they differ by is put up with, up to a bound.
_SCATTER, _STILL_PROVEN = 10.0, 1e-6
# Relative, in the precision at hand: another rounding turns single ReLUs whose input is nearly
# zero, and each moves the product by its share: up to 5e-4 on ResNet-32.
_CLOSE = {torch.float32: 2e-3, torch.float64: _PROVEN}
_AS_FAR = 2.0  # times the plain path's distance from float64 that are put up with beyond that


@dataclass(frozen=True)
class Work:
    """The products to come."""

    selections: Sequence[int]  # samples of each operator
    products: int  # with each of them

    @property
    def samples(self) -> int:
        """Count the samples that all products pass over."""
        return self.products * sum(self.selections)

    def batches(self, size: int) -> int:
        """Count the batches that one product with each takes."""
        return sum(-(-n // size) for n in self.selections)


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
    reserve: int = 0,
) -> Way:
    """Choose the fastest way for some work, or build the one that is asked for.

    Args:
        objective: over all samples.
        choice: the plain paths that are right for its network.
        work: the products to come.
        product: insist on this way.
        budget: bytes that may be kept; half of what is free when None.
        reserve: bytes of the free ones that others are going to need.

    Returns:
        The way. Where nothing faster is worth its preparation it is the plain path.

    Raises:
        SpectraError: the way that is asked for is not to be had for this network.
    """
    trial = _Trial(objective, choice, work, budget, reserve)
    if objective.tf32 and objective.device.type == "cuda":
        trial.notes.append(f"tf32: a product is {trial.tf32_error():.1e} from the one in float32")
    if product is not None and product not in get_args(KeptName):
        return trial.way(product, None)
    if product is not None:
        kept = trial.build(cast(KeptName, product))
        if kept is None:
            raise SpectraError(
                f"got product {product!r}, which cannot be had here ({trial.notes[-1]}), expected "
                f"auto or one of {', '.join(PRODUCTS)}: its products would be wrong or missing; a "
                "resumed run insists on the product of its results"
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
        self,
        objective: Objective,
        choice: ProductChoice,
        work: Work,
        budget: int | None,
        reserve: int,
    ) -> None:
        self.objective, self.choice, self.work = objective, choice, work
        self.budget, self.reserve = budget, reserve
        self.sizes = _sizes(objective, work)
        filled = self.sizes[-1] * work.batches(self.sizes[-1])
        self.padding = filled / max(1, sum(work.selections))
        # Traced with the first samples, compared over others, from all over the set.
        seen = torch.nonzero(objective.weights)[:, 0]
        self._first = seen[: self.sizes[0]]
        spread = torch.linspace(len(seen) - 1, 0, min(self.sizes[0], len(seen)))
        self._spread = seen[spread.round().long().to(seen.device)]
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self._proven: set[KeptName] = set()

    @cached_property
    def few(self) -> Objective:
        """The samples over which ways are timed and compared."""
        return self.objective.select(self._spread)

    @cached_property
    def vector(self) -> Tensor:
        """What is multiplied, (n,); drawn where a product is made, for it may be large."""
        draw = torch.Generator().manual_seed(1)
        vector = torch.randn(self.objective.dim, generator=draw, dtype=torch.float64)
        return vector.to(self.objective.device, self.objective.dtype)

    def way(self, name: ProductName, kept: KeptProducts | None) -> Way:
        if self.seconds:
            each = ", ".join(f"{way} {1e3 * took:.2g}" for way, took in self.seconds.items())
            size = f", {'/'.join(map(str, self.sizes))} at once" if kept is not None else ""
            self.notes.append(f"milliseconds a sample, measured: {each}{size}")
        return Way(name, kept, self.seconds, tuple(self.notes))

    def tf32_error(self) -> float:
        """Measure the relative distance of a product in TF32 from the one in float32."""
        exact = replace(self.few, tf32=False).product(self.vector, self.choice.path)
        return relative(self.few.product(self.vector, self.choice.path), exact)

    def better(self, name: KeptName, than: ProductName) -> KeptProducts | None:
        """Build a way and keep it if it is faster."""
        kept = self.build(name)
        if kept is None:
            return None
        seconds, share = self.time(kept.product), kept.share(self.work.selections)
        if share < 1:  # of the others the first half runs every time
            kept.forgo()
            seconds = share * seconds + (1 - share) * self.time(kept.product)
        self.seconds[name] = seconds * self.padding
        kept.drop()
        if self.seconds[name] < _FASTER * self.seconds[than]:
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
            if self.objective.dtype not in _CLOSE:
                raise SpectraError(f"only in float32 and float64, not {self.objective.dtype}")
            self._prove("linearized" if name == "compiled" else name)
            kept = KeptProducts(
                name,
                self.objective,
                self.choice.path,
                sizes=self.sizes,
                budget=self.budget,
                reserve=self.reserve,
                records=False,  # of few samples, to be compared: that of a class comes later
            )
            against, bound = self.choice.path, _CLOSE[self.objective.dtype]
            whole = replace(self.objective, tf32=False)  # whose rounding would hide what is wrong
            gap = 0.0
            for size in self.sizes:
                gap = max(gap, self._gap(kept, whole, size, against, bound))
                kept.drop()  # each size is tried with what it keeps
            kept.records = True
        except Exception as error:  # tracers and compilers fail in any way; the plain path is there
            why = f"{type(error).__name__}: {first_line(error)}"
            self.notes.append(f"no {name} product: {why}")
            return None
        took = time.perf_counter() - start
        self.notes.append(
            f"{name}: {gap:.1e} from {against} over {len(self.few.samples)} samples in "
            f"{str(self.objective.dtype).removeprefix('torch.')}"
            + (", the program proven before it was compiled" if name == "compiled" else "")
            + f"; {took:.0f} s of preparation"
        )
        return kept

    def _prove(self, name: KeptName) -> None:
        """Compare a way with a plain path in float64; once."""
        if name not in self._proven:
            exact = self.objective.recut(dtype=torch.float64, backwards=False, batch_size=2)
            kept = KeptProducts(name, exact, self.choice.path, sizes=(2,), records=False)
            self._gap(kept, exact, 2, self.choice.reference, _PROVEN)
            self._proven.add(name)

    def _gap(
        self, kept: KeptProducts, whole: Objective, size: int, path: PathName, bound: float
    ) -> float:
        """Measure the distance from a plain path over other samples than a way was traced with.

        Raises:
            SpectraError: if it is above the bound, and where that is one of float64 also above what
                two plain paths scatter by, in float32 the way also more than twice as far as the
                plain path from the product in float64; or if the way has given up.
        """
        vector = self.vector.to(whole.dtype)
        kept.product(whole.select(self._first[:size]), vector)
        other = whole.select(self._spread[:size])
        expected = other.product(vector, path)
        found = kept.product(other, vector)
        gap = relative(found, expected)
        if kept.note:
            raise SpectraError(kept.note)
        exactly = whole.dtype == torch.float64
        if exactly and bound < gap <= _STILL_PROVEN:
            second = self.choice.path if path != self.choice.path else self.choice.reference
            scatter = relative(other.product(vector, second), expected)
            bound = max(bound, _SCATTER * scatter)
            self.notes.append(
                f"{kept.name}: {gap:.1e} from {path} in float64, where {second} is {scatter:.1e} "
                "from it: the samples are fitted to the last bits"
            )
        if not exactly and bound < gap < 1:  # other kernels round otherwise
            exact = other.recut(dtype=torch.float64).product(vector.double(), path)
            ours, plain = (relative(p.double(), exact) for p in (found, expected))
            bound = gap if ours <= _AS_FAR * plain else bound
            self.notes.append(
                f"{kept.name}: {ours:.1e} from the product in float64, {path} {plain:.1e}"
            )
        if not gap <= bound:
            precision = str(whole.dtype).removeprefix("torch.")
            raise SpectraError(f"{gap:.1e} away from {path} in {precision}")
        return gap

    def time(self, product: Callable[[Objective, Tensor], Tensor]) -> float:
        """Measure seconds per sample of the second of two products."""
        product(self.few, self.vector)
        _wait(self.objective.device)
        start = time.perf_counter()
        product(self.few, self.vector)
        _wait(self.objective.device)
        return (time.perf_counter() - start) / len(self.few.samples)


def _sizes(objective: Objective, work: Work) -> tuple[int, ...]:
    """Choose the samples at once: two sizes on a GPU; on a CPU the one that costs least.

    No more than the objective takes, where memory or the caller has made that few.
    """
    fits = objective.batch_size
    if objective.device.type in _SIZES:
        return tuple(dict.fromkeys(min(size, fits) for size in _SIZES[objective.device.type]))
    most = min(_MOST_ON_CPU, fits)

    def cost(size: int) -> float:
        return work.batches(size) * (size + _PER_BATCH)

    return (min(range(1, most + 1), key=cost),)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
