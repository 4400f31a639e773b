"""The way to one spectrum of a study.

Examine the operator, run Lanczos once per probe, read every answer off T, certify λmin in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from spectra.data import Samples
from spectra.doctor import (
    CERTIFICATE_COST,
    PRODUCTS_PER_CERTIFICATE,
    PRODUCTS_PER_EXAMINATION,
    certify,
    examine,
    rayleigh_quotient,
)
from spectra.errors import SpectraError, StorageError, first_line, out_of_memory
from spectra.fingerprints import sha256_of
from spectra.gathering import start_of
from spectra.hessian import HessianOperator, Objective
from spectra.hessian.shares import led
from spectra.krylov import (
    TOLERANCE,
    SpectralMeasure,
    Tridiagonal,
    known_forms,
    lanczos,
    quadratic_form_probes,
    ritz_vectors,
)
from spectra.plan import Part
from spectra.processes import LostProcess
from spectra.progress import Progress
from spectra.readings import Form, RitzVectors, assemble
from spectra.released import released_lanczos
from spectra.results import ClassSpectrum
from spectra.study import TRACE_PROBES, Study

LOSS_DRAWS = 5  # of the augmentation, where it is drawn anew
_FITTED = 1e-4  # a class's loss; below it float32's probabilities may be too coarse for its λmax


def spectra_of(
    study: Study, part: Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
) -> Iterator[ClassSpectrum]:
    """Compute one part; yield it after every probe, the last time complete.

    Raises:
        SpectraError: if it cannot be computed; what was left of it on disk is gone.
    """
    try:
        yield from _spectra(study, part, held, folder, meter)
    except (StorageError, LostProcess):
        raise
    except SpectraError:
        _vectors(part, folder).drop()
        raise
    except RuntimeError as error:
        if study.shared(part) or not out_of_memory(error):
            raise  # the other processes wait in the middle of a sum
        _vectors(part, folder).drop()
        raise SpectraError(
            f"got too little memory for {part.label} ({first_line(error)}), expected more: try "
            "--keep 0, which --resume takes, or anew --basis host or none"
        ) from error


def _spectra(
    study: Study, part: Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
) -> Iterator[ClassSpectrum]:
    plan, work = study.plan, study.work(part)

    made = 0  # products of the probe at hand

    def tick(products: int = 1, cost: int | None = None) -> None:
        nonlocal made
        made += products
        meter.tick(part.label, products, (products if cost is None else cost) * work)

    whole = study.objective_of(part)
    ours = whole
    if study.processes is not None and study.shared(part):
        ours = led(whole, study.processes)
    fixed = HessianOperator.of(ours, study.choice, kept=study.way.kept, callback=tick)
    redraw = torch.Generator()
    operator = fixed
    if study.resampled:
        moving = fixed.objective.redrawn(redraw)
        operator = HessianOperator.of(moving, study.choice, callback=tick)
    loss, loss_stderr = _loss(study, operator.objective, redraw, part.label)
    outline = replace(
        study.outline(part),
        loss=loss,
        loss_stderr=loss_stderr,
        samples_sha256=_fingerprint(study, whole.samples),
    )

    vectors = _vectors(part, folder)
    runs: list[Tridiagonal] = []
    same = held is not None and held.samples_sha256 in (None, outline.samples_sha256)
    if held is not None and same and vectors.load(len(held.runs), held.runs):
        runs += held.runs
    tick(len(runs) * study.products_per_probe)
    _seed(redraw, plan.seed, part.label, "doctor")
    examination = examine(operator, seed=plan.seed)
    tick(PRODUCTS_PER_EXAMINATION - 4)  # four of them went through the operator
    for probe in range(len(runs), plan.probes):
        _seed(redraw, plan.seed, part.label, f"probe {probe}")
        made = 0
        run = _run(study, operator, probe)
        vectors.take(run, _second_pass(study, operator, probe, run))
        if probe == 0 and run.basis is not None and not plan.moves:
            vectors.known_forms = known_forms(run, probes=TRACE_PROBES, seed=plan.seed)
        tick(0, study.products_per_probe - made)  # those that were not needed
        runs.append(run.without_basis())
        del run  # the basis must be gone before the next one is made
        if probe + 1 < plan.probes:
            vectors.save(len(runs))
            yield replace(
                outline,
                complete=False,
                probes=len(runs),
                steps=max(r.steps for r in runs),
                runs=tuple(runs),
                measure=SpectralMeasure.from_tridiagonals(runs, operator.dim),
            )
    _seed(redraw, plan.seed, part.label, "ends")
    goal = plan.until_converged
    tolerance = TOLERANCE if goal is None else min(goal, TOLERANCE)
    ends = vectors.measured(operator, max(run.steps for run in runs), tolerance)
    forms = np.zeros(0)
    if not plan.moves:
        forms = quadratic_form_probes(operator, probes=TRACE_PROBES, seed=plan.seed)
    assert vectors.low is not None
    assert vectors.high is not None
    if study.way.kept is not None:
        study.way.kept.drop()  # the certificate's passes have their own memory
    name = f"frozen:{copies}" if (copies := plan.frozen_copies) else "none"
    certificate = certify(fixed, vectors.low, name=name)
    tick(PRODUCTS_PER_CERTIFICATE, CERTIFICATE_COST)
    apart = None
    # Of the compiled program only what it was made of was proven in float64.
    doubtful = loss < _FITTED or study.way.name == "compiled"
    if doubtful and not plan.moves and plan.dtype == "float32":
        apart = abs(vectors.values[1] - rayleigh_quotient(fixed, vectors.high))
    vectors.drop()
    found = (outline, runs, ends, forms, examination, certificate)
    yield assemble(*found, known_forms=vectors.known_forms, apart=apart, fixed_steps=goal is None)


def _loss(
    study: Study, objective: Objective, redraw: torch.Generator, label: str
) -> tuple[float, float | None]:
    """Evaluate the loss; where augmentation moves it, its mean over draws and their error."""
    if not study.resampled:
        value = objective.exact_value()
        if not math.isfinite(value):
            raise SpectraError(_not_finite(objective, value, label))
        return value, None
    values = []
    for draw in range(LOSS_DRAWS):
        _seed(redraw, study.plan.seed, label, f"loss {draw}")
        values.append(objective.exact_value())
    return float(np.mean(values)), float(np.std(values, ddof=1) / LOSS_DRAWS**0.5)


def _fingerprint(study: Study, samples: Samples) -> str:
    """Tell the samples of a part from others: generators may change from release to release."""
    drawn = samples.draw_sha256
    return sha256_of([drawn, samples.pixels_sha256]) if study.plan.frozen_copies else drawn


def _run(study: Study, operator: HessianOperator, probe: int) -> Tridiagonal:
    plan = study.plan
    if plan.protocol == "released":
        return released_lanczos(operator, steps=plan.steps, seed=plan.seed, probe=probe)
    return lanczos(
        operator,
        start_of(operator, plan.seed, probe),
        steps=plan.steps,
        until_converged=plan.until_converged,
        basis=study.basis,
    )


def _second_pass(
    study: Study, operator: HessianOperator, probe: int, run: Tridiagonal
) -> Form | None:
    if run.basis is not None:
        return None
    start = partial(start_of, operator, study.plan.seed, probe)
    return lambda ends: ritz_vectors(operator, start(), run, ends=ends)


def _vectors(part: Part, folder: Path | None) -> RitzVectors:
    return RitzVectors(None if folder is None else folder / "ritz-vectors.pt", part.label)


def _not_finite(objective: Objective, value: float, label: str) -> str:
    """Say which sample has a loss that is no number."""
    told = f"got a loss of {value} in {label}"
    if objective.together is None:
        low, high = 0, len(objective.samples)
        while high - low > 1:  # a sum shows what is in it
            middle = (low + high) // 2
            part = objective.select(torch.arange(low, middle)).exact_value()
            low, high = (middle, high) if math.isfinite(part) else (low, middle)
        samples = objective.samples
        assert samples.positions is not None
        told += (
            f", from sample {low + 1} of its {len(samples)} on (label {int(samples.targets[low])}, "
            f"number {int(samples.positions[low])} of that class in the source)"
        )
    return (
        f"{told}; expected a finite one: every eigenvalue would be meaningless; look for NaN or "
        "huge values in that input and in the weights"
    )


def _seed(generator: torch.Generator, seed: int, *names: str) -> None:
    """Start the augmentation draws of one part and probe, whatever ran before."""
    words = np.frombuffer("/".join(names).encode(), dtype=np.uint8).tolist()
    generator.manual_seed(int(np.random.SeedSequence([seed, *words]).generate_state(1)[0]))
