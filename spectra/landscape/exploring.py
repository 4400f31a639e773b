"""From an opened checkpoint to what its losses look like along the vectors of λmin and λmax.

For each class: Lanczos on its fixed Hessian, the certificates of both Ritz vectors y, the loss
along w ± ty, and if asked for the plane of the two and one of filter-normalised random directions.
Then, if asked for, what SAM's step on minibatches of the trained loss does to the gradient along
each y.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.devices import find_device
from spectra.doctor import (
    CERTIFICATE_COST,
    PRODUCTS_PER_EXAMINATION,
    Certificate,
    certify,
    examine,
)
from spectra.errors import SpectraError
from spectra.files import Keeping, drawn_pages, require_writable
from spectra.gathering import gather, start_of
from spectra.hessian import HessianOperator, Objective
from spectra.krylov import lanczos
from spectra.landscape.amplification import RADII, amplification, checked_radii
from spectra.landscape.slices import Slice, loss_slice
from spectra.landscape.statistics import Amplification
from spectra.landscape.stored import CONTROL, STEM, Landscape, View
from spectra.landscape.surfaces import Surface, filter_normalised, surface
from spectra.plan import Part, Plan, choose_parts
from spectra.progress import Progress
from spectra.readings import RitzVectors
from spectra.resuming import describe, require_replaceable, unreadable
from spectra.study import Study

FIGURES = ("slices", "surfaces", "amplification")  # whose pages the command draws
_FAR = 1e-3, 16  # from this share of the farthest on, so many more distances: they are drawn
_VALUE, _GRADIENT, _DOUBLE = 0.125, 0.375, 2.0  # cost in products; of float64 in float32


@dataclass(frozen=True)
class Survey:
    """What is looked at; every field but the radii is a flag of `python -m spectra.landscape`."""

    points: int = 28  # of a slice, logarithmic from the nearest to the farthest; more are drawn
    nearest: float = 1e-9  # in units of a Ritz vector, which has norm 1
    farthest: float = 1.0
    surface: int = 0  # points along each side of a surface; 0: none
    extent: float = 1.0  # of the plane of the Ritz vectors, to each side
    amplification: int = 0  # minibatches; 0: none
    minibatch: int = 128  # samples in each
    controls: int = 20  # random directions beside the Ritz vectors
    radii: tuple[float, ...] = RADII  # ρ of SAM

    def __post_init__(self) -> None:
        least = {"points": 2, "amplification": 0, "minibatch": 1, "controls": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise SpectraError(f"got {name} = {getattr(self, name)}, expected at least {low}")
        if self.surface != 0 and self.surface < 2:
            raise SpectraError(f"got surface = {self.surface}, expected 0 (none) or at least 2")
        checked_radii(self.radii)
        inf = float("inf")
        if not (0 < self.nearest < self.farthest < inf and 0 < self.extent < inf):
            raise SpectraError(
                f"got distances from {self.nearest} to {self.farthest} and the extent "
                f"{self.extent}, expected 0 < nearest < farthest, extent above 0, all finite: "
                "the parameters there would be no numbers"
            )

    @property
    def distances(self) -> Float64[np.ndarray, " t"]:
        """List the distances of a slice, ascending."""
        near, far = self.nearest, self.farthest
        drawn = np.geomspace(max(near, _FAR[0] * far), far, _FAR[1])
        return np.unique(np.concatenate([np.geomspace(near, far, self.points), drawn]))


def explore(
    checkpoint: Checkpoint,
    plan: Plan,
    survey: Survey,
    *,
    train: Samples | None,
    test: Samples | None = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Landscape:
    """Look around a checkpoint, class by class, saving after every one.

    Args:
        checkpoint: the opened checkpoint.
        plan: whose losses, and how their Ritz vectors are found.
        survey: what is looked at.
        train: training samples; minibatches are drawn from them.
        test: test samples, where the plan asks for that split.
        folder: where `landscape.json` and `landscape.npz` go; nothing is written when None.
        overwrite: replace whatever lies in `folder`; without it only a landscape of the same
            question.
        progress: is told of every product.

    Returns:
        One view for each part of the plan.

    Raises:
        SpectraError: data or options that do not fit the checkpoint, or that have no fixed Hessian;
            results that would be lost.
    """
    _require_fixed(plan)
    if folder is not None and not overwrite:
        _spare_others(Path(folder), checkpoint, plan, survey, train, test)
    trained = _trained(checkpoint, plan, survey, train) if survey.amplification else None
    if folder is not None:
        require_writable(Path(folder))
    test = test if plan.split == "test" else None
    study = Study.prepare(checkpoint, plan, train, test, accuracies=False, meter=progress)
    about = study.blank()
    settings = {**about.settings, **asdict(survey), "radii": list(survey.radii)}
    if trained is not None:  # SAM's step is one of that loss
        settings["amplified_loss"] = trained.loss.to_dict()
    found = Landscape(
        checkpoint=about.checkpoint,
        data=about.data,
        settings=settings,
        device=about.device,
        versions=about.versions,
        notes=about.notes,
    )
    meter = _Meter(study, survey, progress)
    vectors: list[Tensor] = []
    place = None if folder is None else Path(folder)
    stale = [] if place is None else [p for name in FIGURES for p in drawn_pages(place, name)]
    with Keeping[Landscape](lambda whole: place and whole.save(place), stale) as keep:
        for part in study.parts:
            view, ends = _look(study, part, survey, meter)
            vectors += ends
            about = about.with_notes(study.notes_of_products())
            found = replace(found, views=(*found.views, view), notes=about.notes)
            keep(found)
        if trained is not None:
            thetas = [c.rayleigh_quotient for view in found.views for c in (view.low, view.high)]
            names = [f"{view.label} {end}" for view in found.views for end in ("λmin", "λmax")]
            found = replace(
                found,
                amplification=_amplify(trained, vectors, thetas, plan, survey, meter),
                directions=(*names, *[CONTROL] * survey.controls),
            )
            keep(found)
    return found


def _spare_others(
    folder: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    survey: Survey,
    train: Samples | None,
    test: Samples | None,
) -> None:
    """Refuse to replace a landscape that this survey would not make again."""
    samples = train if plan.split == "train" else test
    if samples is None or not (folder / f"{STEM}.json").exists():
        return
    try:
        held = Landscape.load(folder)
    except SpectraError as error:
        raise unreadable(f"a landscape in {folder}", error) from error
    said = describe(checkpoint, plan, samples, train, find_device(plan.device))
    asked = {**said.settings, **asdict(survey), "radii": list(survey.radii)}
    labels = [part.label for part in choose_parts(plan, samples, train)]
    whole = bool(survey.amplification) == (held.amplification is not None)
    require_replaceable(
        replace(said, settings=asked),
        replace(held, settings={k: v for k, v in held.settings.items() if k != "amplified_loss"}),
        labels,
        kept=held.labels,
        finished=held.labels if whole else (),
    )


def _require_fixed(plan: Plan) -> None:
    if plan.moves or plan.augment != "none" or plan.basis == "none":
        raise SpectraError(
            f"got protocol {plan.protocol!r}, augment {plan.augment!r} and basis {plan.basis!r}, "
            "expected exact, none and a basis that is kept: a slice belongs to one fixed function, "
            "and its direction is a vector of that basis; leave these options out"
        )


def _trained(
    checkpoint: Checkpoint, plan: Plan, survey: Survey, train: Samples | None
) -> Objective:
    """Gather the loss that was trained, with its class weights, over all training samples."""
    if plan.parameters is not None:
        raise SpectraError(
            f"got the parameters {plan.parameters} for SAM's step, expected all: it is one of the "
            "whole gradient; leave out --parameters or --amplification"
        )
    if checkpoint.loss is None:
        raise SpectraError(
            "got a checkpoint that does not say which loss it was trained with, expected one that "
            "does: SAM's step is one of that loss; leave out --amplification"
        )
    if train is None or len(train) < survey.minibatch:
        raise SpectraError(
            f"got {0 if train is None else len(train)} training samples for minibatches of "
            f"{survey.minibatch}, expected as many or more: each is drawn without replacement; "
            "lower --minibatch"
        )
    return gather(checkpoint, plan, train, checkpoint.loss)


def _look(
    study: Study, part: Part, survey: Survey, meter: _Meter
) -> tuple[View, tuple[Tensor, Tensor]]:
    """Find the Ritz vectors of one part and look along them."""
    objective = study.objective_of(part)
    operator = HessianOperator.of(objective, study.choice)
    count = len(part.index)
    low, high = _ends(study, part.label, objective, partial(meter.tick, part.label, count))
    certificates: list[Certificate] = []
    slices: list[Slice] = []
    for y in (low, high):
        certificates.append(known := certify(operator, y))
        meter.tick(part.label, count, 0, CERTIFICATE_COST)
        slices.append(loss_slice(operator, y, survey.distances, slopes=True, certificate=known))
        meter.tick(part.label, count, 0, meter.slice_cost)
    plane: Surface | None = None
    random: Surface | None = None
    if survey.surface:
        grid = (survey.surface, survey.surface)
        point = partial(meter.tick, part.label, count, 0, _VALUE)
        extents = (survey.extent, survey.extent)
        plane = surface(objective, low, high, extents=extents, points=grid, callback=point)
        first = study.plan.probes  # those below it have started Lanczos
        u, v = (
            filter_normalised(objective, seed=study.plan.seed, probe=first + k) for k in range(2)
        )
        random = surface(objective, u, v, points=grid, callback=point)
    view = View(
        label=part.label,
        name=part.name,
        classes=part.classes,
        count=count,
        low=certificates[0],
        high=certificates[1],
        along_low=slices[0],
        along_high=slices[1],
        plane=plane,
        random=random,
    )
    return view, (low.cpu(), high.cpu())


def _ends(
    study: Study, label: str, objective: Objective, tick: partial[None]
) -> tuple[Tensor, Tensor]:
    """Run Lanczos from every probe; give the Ritz vectors of the outermost values."""
    plan, kept = study.plan, study.way.kept
    operator = HessianOperator.of(objective, study.choice, kept=kept, callback=tick)
    examination = examine(operator, seed=plan.seed)
    further = PRODUCTS_PER_EXAMINATION - 4  # four of them went through the operator
    tick(further, float(further))
    if not examination.fixed_operator:
        raise SpectraError(
            f"got an operator of {label} that is {examination}; expected a fixed one: a slice "
            "belongs to one function"
        )
    vectors = RitzVectors(None, label)
    for probe in range(plan.probes):
        run = lanczos(
            operator,
            start_of(operator, plan.seed, probe),
            steps=plan.steps,
            until_converged=plan.until_converged,
            basis=study.basis,
        )
        vectors.take(run)
        del run  # the basis must be gone before the next one is made
    if kept is not None:
        kept.drop()
    assert vectors.low is not None
    assert vectors.high is not None
    return vectors.low, vectors.high


def _amplify(
    trained: Objective,
    vectors: list[Tensor],
    thetas: list[float],
    plan: Plan,
    survey: Survey,
    meter: _Meter,
) -> Amplification:
    further = range(plan.probes, plan.probes + survey.controls)
    starts = (start_of(trained, plan.seed, probe) for probe in further)
    # No gradient has a component along the rows that never move.
    controls = (trained.rows.flatten(trained.rows.split(start)) for start in starts)
    rows = [*vectors, *(control.cpu() for control in controls)]  # the device holds its own copy
    return amplification(
        trained,
        torch.stack(rows),
        eigenvalues=[*thetas, *[float("nan")] * survey.controls],
        radii=survey.radii,
        batches=survey.amplification,
        batch_size=survey.minibatch,
        seed=plan.seed,
        callback=lambda _: meter.tick("batches", survey.minibatch, 0, meter.batch_cost),
    )


class _Meter:
    """Tell how much is done, in samples times products."""

    def __init__(self, study: Study, survey: Survey, progress: Progress | None) -> None:
        self.progress = progress
        steps = min(study.plan.steps, study.objective.dim) * study.plan.probes
        steps += PRODUCTS_PER_EXAMINATION
        evaluations = 2 * len(survey.distances) + 23  # with those that measure the noise
        self.slice_cost = _DOUBLE * evaluations * _GRADIENT  # the loss comes with the gradient
        self.batch_cost = 1 + _GRADIENT * len(survey.radii)
        each = steps + 2 * (CERTIFICATE_COST + self.slice_cost) + 2 * survey.surface**2 * _VALUE
        work = each * sum(len(part.index) for part in study.parts)
        work += survey.amplification * survey.minibatch * self.batch_cost
        if progress is not None:
            progress.begin(steps * len(study.parts), round(work))
        self._left = 0.0

    def tick(self, label: str, count: int, products: int = 1, cost: float = 1.0) -> None:
        self._left += cost * count
        if self.progress is not None:
            self.progress.tick(label, products, int(self._left))
        self._left %= 1.0
