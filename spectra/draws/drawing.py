"""How far the Hessian of a class moves from one augmentation draw to the next.

Each draw k is frozen and makes a matrix H_k, that of ``--augment frozen:1 --seed SEED+k``. Its ends
say what a single draw looks like; the angles between the vectors y_k of the largest eigenvalues
say whether the draws agree on where the curvature is. With cos² = ⟨y_j, y_k⟩² near 1 for all pairs,
an analysis that draws anew in every product sees nearly one matrix. Every draw's operator is
examined first (five products); one that is no fixed matrix is used, and marked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.doctor import PRODUCTS_PER_EXAMINATION, Examination, examine
from spectra.errors import SpectraError
from spectra.gathering import gather, start_of
from spectra.hessian import HessianOperator, choose_product
from spectra.krylov import TOLERANCE, lanczos, nonconvexity
from spectra.plan import Plan, choose_parts
from spectra.progress import Progress
from spectra.readings import RitzVectors
from spectra.writing import markdown, number

_ENDS = 2  # products that measure the residuals
_OBEYED = (  # fields of a plan that mean something here
    *("overall", "per_class", "classes", "groups", "loss", "steps", "seed", "batch_size"),
    *("parameters", "max_samples", "device", "dtype", "tf32"),
)
_HEADER = ("class", "samples", "draws", "loss", "λmin", "λmax", "ratio", "cos² of λmax's vectors")


@dataclass(frozen=True)
class Draws:
    """What is known of the matrices of several draws, one entry a draw."""

    label: str
    count: int  # samples
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    lambda_min: tuple[float, ...]
    lambda_max: tuple[float, ...]
    residual_min: tuple[float, ...]  # ‖Hy − λmin y‖, by one more product: some eigenvalue is
    residual_max: tuple[float, ...]  # within it
    examinations: tuple[Examination, ...]  # is it a fixed symmetric matrix?
    cosines_squared: tuple[float, ...]  # of every pair of λmax's vectors
    product: str  # the way of computing them
    batch_size: int

    @property
    def ratios(self) -> tuple[float, ...]:
        """Give max(0, −λmin)/λmax of each draw, infinite where λmax is not positive."""
        found = map(nonconvexity, self.lambda_min, self.lambda_max)
        return tuple(math.inf if ratio is None else ratio for ratio in found)

    @property
    def fixed(self) -> bool:
        """Tell whether every draw's operator acts as a fixed symmetric matrix."""
        return all(seen.fixed_operator for seen in self.examinations)

    @property
    def converged(self) -> bool:
        """Tell whether the residuals of all ends are small, as in an analysis."""
        ends = zip(self.lambda_min, self.lambda_max, strict=True)
        sizes = [max(map(abs, pair)) for pair in ends]
        found = zip(self.residual_min, self.residual_max, strict=True)
        return all(max(r) <= TOLERANCE * s for r, s in zip(found, sizes, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Give what a file holds; ``doctor`` has an analysis's keys, one of them for each draw."""
        entry = asdict(self)
        del entry["examinations"]
        ends = zip(self.examinations, self.lambda_min, self.lambda_max, strict=True)
        entry["doctor"] = [
            asdict(seen) | {"noise_floor": seen.noise_floor(max(abs(low), abs(high)))}
            for seen, low, high in ends
        ]
        return entry


def over_draws(
    checkpoint: Checkpoint,
    plan: Plan,
    train: Samples,
    *,
    draws: int = 8,
    progress: Progress | None = None,
) -> Iterator[Draws]:
    """Freeze draws one by one, and run Lanczos on the Hessian of each.

    Args:
        checkpoint: whose network and loss.
        plan: classes, steps, seed and precision.
        train: the training samples, with their augmentation.
        draws: K, at least 2.
        progress: told of every product.

    Raises:
        SpectraError: fewer than two draws, samples that name no augmentation, a plan with fields
            that would be ignored.
    """
    if draws < 2 or train.augmentation is None:
        raise SpectraError(
            f"got {draws} draws of data with the augmentation {train.augmentation}, expected two "
            "draws or more and images with an augmentation: there would be nothing to compare"
        )
    plain_plan = asdict(Plan())
    unused = [k for k, v in asdict(plan).items() if v != plain_plan[k] and k not in _OBEYED]
    if unused:
        raise SpectraError(
            f"got {', '.join(unused)} for draws of the training set, expected "
            f"{', '.join(_OBEYED)} alone: the others would be ignored, and stand in the result; "
            "leave them out"
        )
    parts = list(choose_parts(plan, train, train))
    if progress is not None:
        products = draws * (PRODUCTS_PER_EXAMINATION + plan.steps + _ENDS)
        progress.begin(products * len(parts), products * sum(len(p.index) for p in parts))
    loss, choice = checkpoint.criterion(plan.loss), None
    for part in parts:

        def tick(products: int = 1, label: str = part.label, work: int = len(part.index)) -> None:
            if progress is not None:
                progress.tick(label, products, products * work)

        seeds = tuple(plan.seed + k for k in range(draws))
        found, losses, tops, examinations = [], [], [], []
        for seed in seeds:
            drawn = train.frozen(1, seed, part.index)
            objective = gather(checkpoint, plan, drawn, loss)
            choice = choice or choose_product(objective)
            if part.classes:  # of one class the weights are no part of H_c
                objective = objective.unweighted()
            operator = HessianOperator.of(objective, choice, callback=tick)
            examinations.append(examine(operator, seed=plan.seed))
            tick(PRODUCTS_PER_EXAMINATION - 4)  # four of them went through the operator
            start, vectors = start_of(operator, plan.seed, 0), RitzVectors(None, part.label)
            run = lanczos(operator, start, steps=plan.steps)
            vectors.take(run)
            steps = run.steps
            del run  # the basis must be gone before the next one is made
            ends = vectors.measured(operator, steps)
            losses.append(objective.exact_value())
            assert ends.vector_max is not None
            tops.append(ends.vector_max.double().cpu())
            found.append(replace(ends, vector_min=None, vector_max=None))
        assert choice is not None
        inner = torch.stack(tops) @ torch.stack(tops).T
        above = torch.triu_indices(draws, draws, offset=1)
        yield Draws(
            label=part.label,
            count=len(part.index),
            seeds=seeds,
            losses=tuple(losses),
            lambda_min=tuple(e.lambda_min for e in found),
            lambda_max=tuple(e.lambda_max for e in found),
            residual_min=tuple(e.residual_min for e in found),
            residual_max=tuple(e.residual_max for e in found),
            examinations=tuple(examinations),
            cosines_squared=tuple((inner[above[0], above[1]] ** 2).tolist()),
            product=choice.path,
            batch_size=objective.batch_size,
        )


def table(found: Sequence[Draws]) -> str:
    """Set smallest, median and largest value over the draws, as GitHub markdown."""

    def span(values: Sequence[float]) -> str:
        return " · ".join(map(number, (min(values), median(values), max(values))))

    rows = [
        [
            f"{one.label} {'!' * (not one.fixed)}{'~' * (not one.converged)}".rstrip(),
            *(str(one.count), str(len(one.seeds)), span(one.losses)),
            *(span(one.lambda_min), span(one.lambda_max), span(one.ratios)),
            span(one.cosines_squared),
        ]
        for one in found
    ]
    return "\n".join(
        [
            markdown(_HEADER, rows),
            "",
            "Smallest · median · largest over the draws, or over their pairs; ratio: |λmin|/λmax."
            + " !: the operator of some draw is no fixed matrix." * any(not o.fixed for o in found)
            + " ~: not converged, more steps are needed." * any(not o.converged for o in found),
        ]
    )
