"""One objective over the samples of several processes.

    Σ_i w_i ∇²ℓ_i v = Σ_r Σ_(i ∈ r) w_i ∇²ℓ_i v

Process r holds every R-th sample from the r-th on. The leader works with its objective as if it
were alone. Behind each value, gradient and product it tells the others what to sum, and adds their
float64 sums to its own before it divides, once: shares of any size, none among them, give the same
mean. Sums are taken outside of the transforms of torch.func, which a collective would break.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.hessian.choice import LOGITS, of_logits
from spectra.hessian.kept import KeptProducts
from spectra.hessian.objective import Objective, Term
from spectra.hessian.products import Parameters


@runtime_checkable
class Together(Protocol):
    """What processes have to understand that share an objective; see `processes.Processes`."""

    @property
    def rank(self) -> int:
        """Number of this process; 0 leads."""

    @property
    def size(self) -> int:
        """Number of all processes."""

    def tell(self, message: object) -> None:
        """Send a small object from the leader to all others, which `hear` it."""

    def hear(self) -> Any:
        """Receive what the leader tells."""

    def share(self, tensor: Tensor) -> Tensor:
        """Give all processes the leader's values, in place."""

    def add(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; the sum is the leader's alone."""


@dataclass(frozen=True)
class Order:
    """What every process is asked to sum over its own samples."""

    term: Term
    dtype: torch.dtype
    batch_size: int
    backwards: bool
    seed: int | None  # of the augmentation, where it is drawn anew
    moved: bool  # the parameters follow
    given: bool  # a vector follows
    logits: bool  # of their function in the loss's place, see `of_logits`


def led(objective: Objective, processes: Together) -> Objective:
    """Keep the leader's share of the samples; add the others' to every sum.

    Args:
        objective: over all samples of a part; the others `assist` with the same one.
        processes: of which this one leads.
    """
    mine = share_of(objective, 0, processes.size)
    elsewhere = len(objective.samples) - len(mine.samples)
    return replace(mine, together=_Leader(processes), elsewhere=elsewhere)


def assist(objective: Objective, kept: KeptProducts | None, processes: Together) -> None:
    """Sum over this process's share whatever the leader asks for, until it has finished a part.

    Args:
        objective: over all samples of the part.
        kept: the leader's way of computing products, prepared here as well.
        processes: of which this one does not lead.
    """
    mine = share_of(objective, processes.rank, processes.size)
    variants: dict[tuple[torch.dtype, int, bool], Objective] = {}
    precisions = {mine.dtype: mine}
    draws, seed = torch.Generator(), None
    while (order := processes.hear()) is not None:
        if order.dtype not in precisions:
            precisions[order.dtype] = mine.recut(dtype=order.dtype)
        here = precisions[order.dtype]
        key = (order.dtype, order.batch_size, order.backwards)
        if key not in variants:
            variants[key] = here.recut(batch_size=order.batch_size, backwards=order.backwards)
        variant = variants[key]
        if order.logits:
            variant = of_logits(variant)
        if order.moved:
            _move(here, processes.share(_empty(here)))
        vector = processes.share(_empty(here)) if order.given else None
        if order.seed is not None:
            if order.seed != seed:
                seed = order.seed
                draws.manual_seed(_seed_of(seed, processes.rank))
            variant = variant.redrawn(draws)
        if order.term == "kept":
            assert kept is not None
            assert vector is not None
            processes.add(kept.own(mine, vector))
        else:
            processes.add(variant.own(order.term, variant.rows.here(), vector))


def share_of(objective: Objective, rank: int, size: int) -> Objective:
    """Keep every `size`-th sample from the `rank`-th on; what is divided by stays that of all."""
    count = len(objective.samples)
    rows = torch.arange(rank, count, size) if rank < count else torch.zeros(1, dtype=torch.long)
    mine = objective.select(rows, normalizer=objective.normalizer)
    if rank < count:
        return mine
    # More processes than samples: this one passes a sample of weight zero, and needs no exception.
    return replace(mine, weights=torch.zeros_like(mine.weights))


@dataclass
class _Leader:
    """Add the others' sums to the leader's own."""

    processes: Together
    known: tuple[weakref.ref[nn.Module], list[int]] | None = field(default=None)

    def __call__(
        self,
        objective: Objective,
        term: Term,
        at: Parameters,
        vector: Tensor | None,
        own: Callable[[], Tensor],
    ) -> Tensor:
        moved = self._moved(objective.network, term)
        draws = objective.redraw
        self.processes.tell(
            Order(
                term,
                objective.dtype,
                objective.batch_size,
                objective.backwards,
                None if draws is None else draws.initial_seed(),
                moved,
                vector is not None,
                objective.loss is LOGITS,
            )
        )
        if moved:
            self.processes.share(objective.rows.joined(at))
        if vector is not None:
            self.processes.share(vector.contiguous())
        try:
            total = own()
        except SpectraError:  # the others wait to be heard
            shape = () if term == "value" else (objective.dim,)
            self.processes.add(torch.zeros(shape, dtype=torch.float64, device=objective.device))
            raise
        return self.processes.add(total)

    def _moved(self, network: nn.Module, term: Term) -> bool:
        """Tell whether the others have to be given the parameters; note that they will have them.

        Values and gradients may be taken beside the network's own.
        """
        versions = [parameter._version for parameter in network.parameters()]
        before, self.known = self.known, None
        if term in ("value", "gradient"):
            return True
        self.known = weakref.ref(network), versions
        return before is None or before[0]() is not network or before[1] != versions


def _empty(objective: Objective) -> Tensor:
    return torch.empty(objective.dim, dtype=objective.dtype, device=objective.device)


def _move(objective: Objective, theta: Tensor) -> None:
    with torch.no_grad():
        for name, piece in objective.rows.split(theta).items():
            objective.network.get_parameter(name).copy_(piece)


def _seed_of(seed: int, rank: int) -> int:
    """Give each process draws of its own: no two samples are to move alike."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
