"""What the spectra of one run share: network, samples, parts, and how products are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.doctor import CERTIFICATE_COST, PRODUCTS_PER_CERTIFICATE, PRODUCTS_PER_EXAMINATION
from spectra.errors import SpectraError
from spectra.gathering import accuracy, choose_products, classify, gather, needed
from spectra.hessian import Objective, ProductChoice, Way
from spectra.hessian.shares import assist
from spectra.krylov import Place
from spectra.lines import attended
from spectra.plan import Part, Plan, choose_parts
from spectra.processes import Processes
from spectra.progress import Progress, stage
from spectra.remarks import about_accuracies, about_parameters, about_products, doubts
from spectra.results import Analysis, ClassSpectrum
from spectra.resuming import describe

_ENDS = 2  # products that measure the residuals of λmin and λmax
TRACE_PROBES = 10  # one-product probes beside those of Lanczos: the trace always has an error


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
        classified: Sequence[str] = (),
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
        with stage(meter, "gathering the samples"):
            if rows is None:
                samples = samples.in_memory()
                train, test = (samples, test) if plan.split == "train" else (train, samples)
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
        unknown = [part for part in parts if part.label not in classified]
        splits = {"train": train, "test": test} if accuracies and decides else {}
        with attended(processes) as say:
            correct = {}
            for name, of_split in splits.items():
                if of_split is not None:
                    with stage(meter, f"classifying the {name} images"):
                        correct[name] = classify(objective, of_split, unknown)
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
        each = self.products_per_probe * self.plan.probes
        each += PRODUCTS_PER_EXAMINATION + _ENDS + extra
        work = (each + CERTIFICATE_COST) * sum(self.work(part) for part in parts)
        return (each + PRODUCTS_PER_CERTIFICATE) * len(parts), work

    @property
    def products_per_probe(self) -> int:
        """Products of one probe's steps, and of its Ritz vectors where no basis is kept."""
        again = 2 if self.basis == "none" else 1
        return again * min(self.plan.steps, self.objective.dim)

    def work(self, part: Part) -> int:
        """Samples that one product of a part passes over."""
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
            operator="resampled" if self.resampled else "fixed",
        )
        return self.with_accuracies(outline, part)

    @property
    def resampled(self) -> bool:
        """Whether the augmentation is drawn anew in every product."""
        return self.plan.augment == "resample"

    def objective_of(self, part: Part) -> Objective:
        """Select the samples of a part, in all of their draws; classes have weights overall."""
        copies = self.plan.copies
        count = len(self.objective.samples) // copies
        index = torch.cat([part.index + k * count for k in range(copies)])
        whole = self.objective if part.label == "overall" else self.objective.unweighted()
        return whole.select(index, what=part.label)

    def shared(self, part: Part) -> bool:
        """Whether all processes compute a part together."""
        return self.processes is not None and part.label not in self.owners

    def sum_own_share(self, part: Part) -> None:
        """Sum over this process's samples of a part until the leader has finished it."""
        assert self.processes is not None
        assist(self.objective_of(part), self.way.kept, self.processes)
        if self.way.kept is not None:
            self.way.kept.drop()
