"""What the spectra of one run share, and the way to each of them.

Examine the operator, run Lanczos once per probe, read every answer off T, certify λmin in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.checkpoint import Checkpoint
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
from spectra.gathering import (
    accuracy,
    choose_products,
    classify,
    gather,
    needed,
    start_of,
)
from spectra.hessian import (
    HessianOperator,
    Objective,
    ProductChoice,
    Way,
)
from spectra.hessian.shares import assist, led
from spectra.krylov import (
    TOLERANCE,
    Place,
    SpectralMeasure,
    Tridiagonal,
    known_forms,
    lanczos,
    quadratic_form_probes,
    ritz_vectors,
)
from spectra.lines import attended
from spectra.plan import Part, Plan, choose_parts
from spectra.processes import LostProcess, Processes
from spectra.progress import Progress, stage
from spectra.readings import Form, RitzVectors, assemble
from spectra.released import released_lanczos
from spectra.remarks import about_accuracies, about_parameters, about_products, doubts
from spectra.results import Analysis, ClassSpectrum
from spectra.resuming import describe

_ENDS = 2  # products that measure the residuals of λmin and λmax
LOSS_DRAWS = 5  # of the augmentation, where it is drawn anew
TRACE_PROBES = 10  # one-product probes beside those of Lanczos: the trace always has an error
_FITTED = 1e-4  # a class's loss; below it float32's probabilities may be too coarse for its λmax


@dataclass(frozen=True)
class Study:
    """Everything that the spectra of one run share."""

    checkpoint: Checkpoint
    plan: Plan
    samples: Samples  # of the split, as it is (no augmentation)
    train: Samples | None
    objective: Objective  # over the samples that parts need, or their frozen augmentation draws
    choice: ProductChoice  # the plain paths, compared
    way: Way  # how products are computed
    parts: tuple[Part, ...]  # of rows of the objective
    correct: dict[str, tuple[Tensor, Tensor]]  # split -> (k,) classified right or not, (k,) labels
    notes: tuple[str, ...]
    basis: Place  # where each Krylov basis is kept
    processes: Processes | None  # that share the work; None: this one alone
    owners: Mapping[str, int]  # label -> process, of the parts that one of them computes alone
    first: tuple[str, ...]  # of those that all compute: what was begun, and comes before the rest

    @staticmethod
    def prepare(
        checkpoint: Checkpoint,
        plan: Plan,
        train: Samples | None,
        test: Samples | None,
        processes: Processes | None = None,
        finished: Sequence[str] = (),
        begun: Sequence[str] = (),
        *,
        accuracies: bool = True,
        meter: Progress | None = None,
    ) -> Study:
        samples = train if plan.split == "train" else test
        if samples is None:
            raise SpectraError(
                f"got no {plan.split} samples, expected them: the spectrum is taken over "
                "them; name the data with --data and --dataset"
            )
        loss = checkpoint.criterion(plan.loss)
        if plan.augment == "resample" and samples.augmentation is None:
            raise SpectraError(
                "got --augment resample for data that name no augmentation, expected images with "
                "one: nothing would move, and be called moving; use --augment none"
            )
        parts, rows = needed(tuple(choose_parts(plan, samples, train)), len(samples))
        if copies := plan.frozen_copies:
            held = samples.frozen(copies, plan.seed, rows)
        else:
            held = samples if rows is None else samples.select(rows)
        objective = gather(
            checkpoint,
            replace(plan, device=processes.device(plan.device)) if processes else plan,
            held,
            loss,
        )
        decides = processes is None or processes.leads
        todo = [part for part in parts if part.label not in finished]
        splits = {"train": train, "test": test} if accuracies and decides else {}
        with attended(processes) as say:
            correct = {}
            for name, of_split in splits.items():
                if of_split is not None:
                    with stage(meter, f"classifying the {name} images"):
                        correct[name] = classify(objective, of_split, todo)
            with stage(meter, "comparing ways to compute products"):
                chosen = choose_products(objective, plan, todo, processes, say)
        owners = dict(chosen.owners)
        # What was begun needs the vectors that lie in the leader's folder, before others do.
        owners |= {label: 0 for label in begun if label in owners}
        notes: list[str] = []
        if decides:  # the others' would be read by nobody
            notes += about_products(replace(chosen, owners=owners), plan)
            notes += about_parameters(objective, checkpoint, plan)
            notes += doubts(checkpoint, samples, train)
            notes += about_accuracies(correct, train, asked=accuracies)
        return Study(
            checkpoint,
            plan,
            samples,
            train,
            objective,
            chosen.choice,
            chosen.way,
            parts,
            correct,
            tuple(notes),
            chosen.basis,
            processes,
            owners,
            tuple(part.label for part in todo if part.label in begun and part.label not in owners),
        )

    def blank(self) -> Analysis:
        """Describe the run, without a spectrum yet."""
        return describe(
            self.checkpoint,
            self.plan,
            self.samples,
            self.train,
            self.objective.device,
            chosen={
                "batch_size": self.objective.batch_size,
                "product": self.way.name,
                "basis": self.basis,
            },
            processes=1 if self.processes is None else self.processes.size,
            notes=self.notes,
        )

    def cost(self, parts: list[Part]) -> tuple[int, int]:
        """Count products, and the samples that they pass over."""
        extra = 0 if self.plan.moves else TRACE_PROBES
        each = self._products_per_probe * self.plan.probes
        each += PRODUCTS_PER_EXAMINATION + _ENDS + extra
        work = (each + CERTIFICATE_COST) * sum(self._work(part) for part in parts)
        return (each + PRODUCTS_PER_CERTIFICATE) * len(parts), work

    @property
    def _products_per_probe(self) -> int:
        again = 2 if self.basis == "none" else 1  # for the Ritz vectors
        return again * min(self.plan.steps, self.objective.dim)

    def _work(self, part: Part) -> int:
        return len(part.index) * self.plan.copies

    def notes_of_products(self) -> tuple[str, ...]:
        """Say what products did otherwise than planned: memory ran out, a recording failed."""
        kept = self.way.kept
        return () if kept is None else tuple(n for n in (kept.note, kept.launched) if n)

    def with_accuracies(self, spectrum: ClassSpectrum, part: Part) -> ClassSpectrum:
        """Add the shares that are classified right of all images of a part's classes."""
        shares = {
            split: accuracy(correct, targets, part.classes)
            for split, (correct, targets) in self.correct.items()
        }
        train, test = shares.get("train"), shares.get("test")
        return replace(spectrum, train_accuracy=train, test_accuracy=test)

    def outline(self, part: Part) -> ClassSpectrum:
        """Say what is known of a part before its first product."""
        outline = ClassSpectrum(
            label=part.label,
            name=part.name,
            classes=part.classes,
            count=len(part.index),
            share=part.share,
            protocol=self.plan.protocol,
            operator="resampled" if self._resampled else "fixed",
        )
        return self.with_accuracies(outline, part)

    @property
    def _resampled(self) -> bool:
        return self.plan.augment == "resample"

    def spectra(
        self, part: Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
    ) -> Iterator[ClassSpectrum]:
        """Compute one part; yield it after every probe, the last time complete.

        Raises:
            SpectraError: if it cannot be computed; what was left of it on disk is gone.
        """
        try:
            yield from self._spectra(part, held, folder, meter)
        except (StorageError, LostProcess):
            raise
        except SpectraError:
            _vectors(part, folder).drop()
            raise
        except RuntimeError as error:
            if self._shared(part) or not out_of_memory(error):
                raise  # the other processes wait in the middle of a sum
            _vectors(part, folder).drop()
            raise SpectraError(
                f"got too little memory for {part.label} ({first_line(error)}), expected more: try "
                "--keep 0, which --resume takes, or anew --basis host or none"
            ) from error

    def _spectra(
        self, part: Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
    ) -> Iterator[ClassSpectrum]:
        plan, work = self.plan, self._work(part)

        made = 0  # products of the probe at hand

        def tick(products: int = 1, cost: int | None = None) -> None:
            nonlocal made
            made += products
            meter.tick(part.label, products, (products if cost is None else cost) * work)

        whole = self.objective_of(part)
        fixed = self._operator(whole, tick, shared=self._shared(part))
        redraw = torch.Generator()
        operator = fixed
        if self._resampled:
            moving = fixed.objective.redrawn(redraw)
            operator = HessianOperator.of(moving, self.choice, callback=tick)
        loss, loss_stderr = self._loss(operator.objective, redraw, part.label)
        outline = replace(
            self.outline(part),
            loss=loss,
            loss_stderr=loss_stderr,
            samples_sha256=self._fingerprint(whole.samples),
        )

        vectors = _vectors(part, folder)
        runs: list[Tridiagonal] = []
        same = held is not None and held.samples_sha256 in (None, outline.samples_sha256)
        if held is not None and same and vectors.load(len(held.runs), held.runs):
            runs += held.runs
        tick(len(runs) * self._products_per_probe)
        _seed(redraw, plan.seed, part.label, "doctor")
        examination = examine(operator, seed=plan.seed)
        tick(PRODUCTS_PER_EXAMINATION - 4)  # four of them went through the operator
        for probe in range(len(runs), plan.probes):
            _seed(redraw, plan.seed, part.label, f"probe {probe}")
            made = 0
            run = self._run(operator, probe)
            vectors.take(run, self._second_pass(operator, probe, run))
            if probe == 0 and run.basis is not None and not plan.moves:
                vectors.known_forms = known_forms(run, probes=TRACE_PROBES, seed=plan.seed)
            tick(0, self._products_per_probe - made)  # those that were not needed
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
        if self.way.kept is not None:
            self.way.kept.drop()  # the certificate's passes have their own memory
        name = f"frozen:{copies}" if (copies := plan.frozen_copies) else "none"
        certificate = certify(fixed, vectors.low, name=name)
        tick(PRODUCTS_PER_CERTIFICATE, CERTIFICATE_COST)
        apart = None
        # Of the compiled program only what it was made of was proven in float64.
        doubtful = loss < _FITTED or self.way.name == "compiled"
        if doubtful and not plan.moves and plan.dtype == "float32":
            apart = abs(vectors.values[1] - rayleigh_quotient(fixed, vectors.high))
        vectors.drop()
        found = (outline, runs, ends, forms, examination, certificate)
        yield assemble(
            *found, known_forms=vectors.known_forms, apart=apart, fixed_steps=goal is None
        )

    def _loss(
        self, objective: Objective, redraw: torch.Generator, label: str
    ) -> tuple[float, float | None]:
        """Evaluate the loss; where augmentation moves it, its mean over draws and their error."""
        if not self._resampled:
            value = objective.exact_value()
            if not math.isfinite(value):
                raise SpectraError(_not_finite(objective, value, label))
            return value, None
        values = []
        for draw in range(LOSS_DRAWS):
            _seed(redraw, self.plan.seed, label, f"loss {draw}")
            values.append(objective.exact_value())
        return float(np.mean(values)), float(np.std(values, ddof=1) / LOSS_DRAWS**0.5)

    def _operator(self, objective: Objective, tick: Any, *, shared: bool) -> HessianOperator:
        if self.processes is not None and shared:
            objective = led(objective, self.processes)
        return HessianOperator.of(objective, self.choice, kept=self.way.kept, callback=tick)

    def objective_of(self, part: Part) -> Objective:
        """Select the samples of a part, in all of their draws; classes have weights overall."""
        copies = self.plan.copies
        count = len(self.objective.samples) // copies
        index = torch.cat([part.index + k * count for k in range(copies)])
        whole = self.objective if part.label == "overall" else self.objective.unweighted()
        return whole.select(index, what=part.label)

    def _fingerprint(self, samples: Samples) -> str:
        """Tell the samples of a part from others: generators may change from release to release."""
        drawn = samples.draw_sha256
        return sha256_of([drawn, samples.pixels_sha256]) if self.plan.frozen_copies else drawn

    def _shared(self, part: Part) -> bool:
        return self.processes is not None and part.label not in self.owners

    def sum_own_share(self, part: Part) -> None:
        """Sum over this process's samples of a part until the leader has finished it."""
        assert self.processes is not None
        assist(self.objective_of(part), self.way.kept, self.processes)
        if self.way.kept is not None:
            self.way.kept.drop()

    def _run(self, operator: HessianOperator, probe: int) -> Tridiagonal:
        plan = self.plan
        if plan.protocol == "released":
            return released_lanczos(operator, steps=plan.steps, seed=plan.seed, probe=probe)
        return lanczos(
            operator,
            start_of(operator, plan.seed, probe),
            steps=plan.steps,
            until_converged=plan.until_converged,
            basis=self.basis,
        )

    def _second_pass(self, operator: HessianOperator, probe: int, run: Tridiagonal) -> Form | None:
        if run.basis is not None:
            return None
        start = partial(start_of, operator, self.plan.seed, probe)
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
