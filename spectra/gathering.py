"""What the spectra of a run are of, settled before the first product.

The loss, the network and samples gathered for it, how its products are computed and where a Krylov
basis lies; and which samples the network classifies right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.checkpoint import Checkpoint
from spectra.choices import ProductName
from spectra.data import Samples
from spectra.data.memory import free_memory
from spectra.data.samples import spread
from spectra.devices import find_device
from spectra.errors import SpectraError, out_of_memory
from spectra.hessian import (
    HessianOperator,
    Objective,
    ProductChoice,
    Way,
    Work,
    choose_product,
    choose_way,
)
from spectra.hessian.batching import free_bytes
from spectra.hessian.network import by_itself, forked_random_state, require_outputs
from spectra.hessian.products import PRODUCTS
from spectra.krylov import Place, choose_place, random_start
from spectra.lines import attend
from spectra.losses import Loss
from spectra.plan import Part, Plan
from spectra.processes import Processes
from spectra.sharing import share_out

_AT_ONCE = 256  # images to classify, or what fits of them


@dataclass(frozen=True)
class Chosen:
    """How the products of a study are computed, and by whom."""

    choice: ProductChoice  # the plain paths, compared
    way: Way
    basis: Place  # where each Krylov basis is kept
    owners: Mapping[str, int]  # label -> process, of the parts that one of them computes alone


def gather(checkpoint: Checkpoint, plan: Plan, samples: Samples, loss: Loss) -> Objective:
    """Gather network, samples and loss, where and how precise a plan wants them."""
    return Objective.of(
        checkpoint.model,
        samples,
        loss,
        parameters=plan.rows,
        dtype=getattr(torch, plan.dtype),
        device=find_device(plan.device),
        batch_size=plan.batches,
        tf32=plan.tf32,
    )


def needed(parts: Sequence[Part], count: int) -> tuple[tuple[Part, ...], Tensor | None]:
    """Find the samples that parts are of; a class of fifty needs no million others on a GPU.

    Args:
        parts: with rows of a split.
        count: samples of that split.

    Returns:
        The parts with rows among the samples that are needed, and those; None where all are. Some
        from all over the split are among them, over which ways to compute products are compared.
    """
    rows = torch.unique(torch.cat([spread(count), *(part.index for part in parts)]))
    if len(rows) == count:
        return tuple(parts), None
    moved = (replace(part, index=torch.searchsorted(rows, part.index)) for part in parts)
    return tuple(moved), rows


def start_of(subject: HessianOperator | Objective, seed: int, probe: int) -> Tensor:
    """Draw the random start of a probe, beside the operator and in its precision."""
    return random_start(
        subject.dim, seed=seed, probe=probe, dtype=subject.dtype, device=subject.device
    )


def choose_products(
    objective: Objective,
    plan: Plan,
    todo: Sequence[Part],
    processes: Processes | None,
    say: Callable[[object], None],
) -> Chosen:
    """Choose how products are computed, where bases lie and who computes what.

    Args:
        objective: over all samples.
        plan: what is asked for.
        todo: the parts to come.
        processes: that share the work; the choice of the one that leads is everyone's.
        say: tells it to the others, which wait for it here (see `lines.attended`).
    """
    if processes is not None and not processes.leads:
        choice, name, basis, owners = attend(processes)
        way = _way(objective, plan, todo, choice, name, basis, owners, processes)
        return Chosen(choice, way, basis, owners)
    owners = {}
    if processes is not None:
        sizes = {part.label: len(part.index) * plan.copies for part in todo}
        owners = share_out(sizes, objective.device.type, processes.size)
    try:
        bases = processes.local_size if processes is not None and owners else 1
        basis = _place_of_basis(plan, objective, bases)
    except SpectraError:  # one of them may fit
        owners, basis = {}, _place_of_basis(plan, objective, 1)
    asked = None if plan.product == "auto" else plan.product
    choice = choose_product(objective, path=asked if asked in PRODUCTS else None)
    way = _way(objective, plan, todo, choice, asked, basis, owners, processes)
    say((choice, way.name, basis, owners))
    return Chosen(choice, way, basis, owners)


def _way(
    objective: Objective,
    plan: Plan,
    todo: Sequence[Part],
    choice: ProductChoice,
    asked: ProductName | None,
    basis: Place,
    owners: Mapping[str, int],
    processes: Processes | None,
) -> Way:
    size, rank, here = 1, 0, 1
    if processes is not None:
        size, rank, here = processes.size, processes.rank, processes.local_size
    samples = []  # of this process, in each part
    for part in todo:
        count = len(part.index) * plan.copies
        if part.label not in owners:
            samples.append(-(-count // size))
        elif owners[part.label] == rank:
            samples.append(count)
    if not samples:
        return Way(asked or choice.path, None, {}, ())
    if asked is None and plan.moves:  # nothing may be kept from one product to the next
        asked = choice.path
    budget, reserve = plan.kept_bytes, 0
    if budget is None and here > 1 and objective.device.type == "cpu":  # one memory for all
        bases = 0 if plan.basis == "none" else here if owners else 1
        held = bases * _basis_bytes(plan, objective)
        budget = max(0, free_bytes(objective.device) - held) // (2 * here)
    if basis == "device" and (rank == 0 or rank in owners.values()):
        reserve = _basis_bytes(plan, objective)
    work = Work(samples, plan.steps * plan.probes)
    return choose_way(objective, choice, work, product=asked, budget=budget, reserve=reserve)


def _place_of_basis(plan: Plan, objective: Objective, bases: int) -> Place:
    """Choose where as many Krylov bases are kept, by what is free; refuse them if they fit nowhere.

    Those on the host lie in one memory.
    """
    if plan.basis != "auto":
        return plan.basis
    if plan.protocol == "released":
        return "device"
    needed, on, free = _basis_bytes(plan, objective), objective.device, free_memory()
    beside = free_bytes(on) if on.type == "cuda" else None
    return choose_place(needed, on_device=beside, on_host=free and free // bases)


def _basis_bytes(plan: Plan, objective: Objective) -> int:
    return min(plan.steps, objective.dim) * objective.dim * max(4, objective.dtype.itemsize)


@by_itself
def classify(
    objective: Objective, samples: Samples, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    """Tell whether the network's largest logit is the label's, for the samples that parts need.

    Args:
        objective: whose network classifies.
        samples: of a whole split.
        parts: whose accuracies are wanted; one that names no class wants all samples.

    Returns:
        (k,) hits and (k,) targets, of the classes that the parts name.
    """
    rows = torch.arange(len(samples))
    if all(part.classes for part in parts):
        named = torch.tensor([c for part in parts for c in part.classes], dtype=torch.long)
        rows = rows[torch.isin(samples.targets.cpu(), named)]
    device, hits = objective.device, [torch.zeros(0, dtype=torch.bool)]
    # As in the products: plain kernels, and a random layer must not move the caller's state.
    with objective.arithmetic(), torch.no_grad(), forked_random_state(device):
        start, size = 0, _AT_ONCE
        while start < len(rows):
            part = samples.select(rows[start : start + size])
            try:
                logits = objective.logits(part.prepared(objective.dtype, device))
            except RuntimeError as error:
                if not out_of_memory(error) or size == 1:
                    raise
                size //= 2
                continue
            require_outputs(logits, samples.num_classes)
            hits.append(logits.argmax(1).cpu() == part.targets.cpu())
            start += size
    return torch.cat(hits), samples.targets.cpu()[rows]


def accuracy(correct: Tensor, targets: Tensor, classes: tuple[int, ...]) -> float | None:
    """Give the share of hits among the samples of some classes, all when none are named."""
    chosen = torch.isin(targets, torch.tensor(classes)) if classes else targets >= 0
    return float(correct[chosen].double().mean()) if bool(chosen.any()) else None
