"""The hallway: from an opened checkpoint and its data to the spectrum of every class.

For each set of samples asked for: examine the operator, run Lanczos once per probe, read every
answer off T, certify λmin in float64, and save. Nothing is computed twice after an interruption.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

import spectra
from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.doctor import PRODUCTS_PER_EXAMINATION, Examination, certify, examine
from spectra.errors import SpectraError
from spectra.hessian import HessianOperator, Objective, ProductName, choose_product
from spectra.krylov import (
    Extremes,
    SpectralMeasure,
    Tridiagonal,
    best_extremes,
    extremes_of,
    lanczos,
    lower_bound,
    posterior_lower_bound,
    quadratic_form_probes,
    random_start,
    trace_estimate,
)
from spectra.losses import LossSpec
from spectra.released import released_lanczos
from spectra.results import Analysis, ClassSpectrum, replacing

TRACE_PROBES = 10  # one-product probes beside those of Lanczos: the trace always has an error
_CERTIFICATE_COST = 6  # in products of the fast path: two float64 passes, one by double backward


@dataclass(frozen=True)
class Plan:
    """What is to be computed; every field is a flag of `python -m spectra.esd`."""

    overall: bool = False
    per_class: bool = False
    classes: tuple[int, ...] = ()
    groups: bool = False
    split: Literal["train", "test"] = "train"
    loss: Literal["ce", "trained"] = "ce"
    protocol: Literal["exact", "released"] = "exact"
    augment: str = "none"  # none, frozen, frozen:K, resample
    steps: int = 100
    probes: int = 1
    seed: int = 0
    batch_size: int | Literal["auto"] = "auto"
    max_samples: int | None = None
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    tf32: bool = False
    product: ProductName | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "probes", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpectraError(f"got {name} = {value}, expected at least 1")
        kind, _, copies = self.augment.partition(":")
        if kind not in ("none", "frozen", "resample") or (
            copies and (kind != "frozen" or not copies.isdecimal() or int(copies) < 1)
        ):
            raise SpectraError(
                f"got augment {self.augment!r}, expected none, frozen, frozen:K with K ≥ 1, or "
                "resample"
            )

    @property
    def frozen_copies(self) -> int:
        """Stored augmentation draws of each sample; 0 for none."""
        kind, _, copies = self.augment.partition(":")
        return int(copies or 1) if kind == "frozen" else 0


@runtime_checkable
class Progress(Protocol):
    """What a progress bar has to understand."""

    def begin(self, products: int, work: int) -> None:
        """Say how many products there will be, and how many samples they pass over."""

    def tick(self, label: str, products: int, work: int) -> None:
        """Say that so many products over so many samples are done."""


@dataclass(frozen=True)
class _Part:
    """One set of samples that gets a spectrum."""

    label: str
    name: str
    classes: tuple[int, ...]  # () for all
    index: Tensor  # (k,) rows of the split
    share: float


def analyze(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    train: Samples | None = None,
    test: Samples | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Analysis:
    """Compute the spectra that a plan asks for, saving after every one.

    Args:
        checkpoint: the opened checkpoint.
        plan: what to compute.
        train: training samples; they also say which classes are head, mid and tail.
        test: test samples, for accuracies or as the split that is analysed.
        folder: where `esd.json` and `esd.npz` go; nothing is written when None.
        resume: go on from the results in `folder` when they belong to the same settings.
        progress: is told of every product.

    Returns:
        The analysis, one spectrum for each part in the order overall, groups, classes.

    Raises:
        SpectraError: data or options that do not fit the checkpoint, or results of other settings.
    """
    study = _Study.prepare(checkpoint, plan, train, test)
    analysis = study.blank()
    folder = Path(folder) if folder is not None else None
    if resume and folder is not None and (folder / "esd.json").exists():
        analysis, study = study.resumed(Analysis.load(folder))
    todo = [part for part in study.parts if part.label not in analysis.finished]
    meter = progress or _Silent()
    meter.begin(*study.cost(todo))
    for part in todo:
        try:
            for spectrum in study.spectra(part, analysis.get(part.label), folder, meter):
                analysis = analysis.with_spectrum(spectrum)
                if folder is not None:
                    analysis.save(folder)
        except SpectraError as error:
            # One class that fails must not throw away the others' results.
            failed = replace(study.outline(part), error=str(error))
            analysis = analysis.with_spectrum(failed)
            if folder is not None:
                analysis.save(folder)
    order = {part.label: i for i, part in enumerate(study.parts)}
    return replace(analysis, spectra=tuple(sorted(analysis.spectra, key=lambda s: order[s.label])))


@dataclass(frozen=True)
class _Study:
    """Everything that the spectra of one run share."""

    checkpoint: Checkpoint
    plan: Plan
    samples: Samples  # of the split, as it is (no augmentation)
    train: Samples | None
    objective: Objective  # over the split, or over its frozen augmentation draws
    path: HessianOperator  # of the whole split: the verified choice of product
    parts: tuple[_Part, ...]
    correct: dict[str, Tensor]  # split -> (N,) whether each sample is classified right
    targets: dict[str, Tensor]
    notes: tuple[str, ...]

    @staticmethod
    def prepare(
        checkpoint: Checkpoint, plan: Plan, train: Samples | None, test: Samples | None
    ) -> _Study:
        samples = train if plan.split == "train" else test
        if samples is None:
            raise SpectraError(
                f"got no {plan.split} samples, expected them: the spectrum is taken over "
                "them; name the data with --data and --dataset"
            )
        if plan.loss == "trained" and checkpoint.loss is None:
            raise SpectraError(
                "got a checkpoint that does not say which loss it was trained with, expected one "
                "that does: --loss trained would be a guess; use --loss ce"
            )
        plain = LossSpec.cross_entropy(scale=checkpoint.head_scale)
        loss = checkpoint.loss if plan.loss == "trained" and checkpoint.loss else plain
        copies = plan.frozen_copies
        objective = Objective.of(
            checkpoint.model,
            samples.frozen(copies, plan.seed) if copies else samples,
            loss,
            dtype=getattr(torch, plan.dtype),
            device=_device(plan.device),
            batch_size=plan.batch_size,
            tf32=plan.tf32,
        )
        correct, targets = {}, {}
        for split, held in (("train", train), ("test", test)):
            if held is not None:
                correct[split], targets[split] = _classify(objective, held), held.targets
        choice = choose_product(objective, path=None if plan.product == "auto" else plan.product)
        notes = [
            f"product: {choice.path}, {choice.disagreement:.1e} (relative, float64) from "
            f"{choice.reference}, which is {choice.finite_difference_error:.1e} from finite "
            "differences"
        ]
        notes += [f"refused for this model: {name}, {why}" for name, why in choice.refused.items()]
        if objective.frozen:
            notes.append(f"zero rows for frozen parameters: {', '.join(sorted(objective.frozen))}")
        if train is not None and checkpoint.draw_sha256 not in (None, train.draw_sha256):
            notes.append("the checkpoint was trained on another draw of the data than this one")
        parts = tuple(_parts(plan, samples, train))
        return _Study(
            checkpoint,
            plan,
            samples,
            train,
            objective,
            HessianOperator.of(objective, choice),
            parts,
            correct,
            targets,
            tuple(notes),
        )

    def blank(self) -> Analysis:
        """Describe the run, without a spectrum yet."""
        settings = asdict(self.plan) | {
            "augment": f"frozen:{n}" if (n := self.plan.frozen_copies) else self.plan.augment,
            "classes": list(self.plan.classes),
            "batch_size": self.objective.batch_size,
            "device": self.objective.device.type,
            "product": self.path.choice.path,
        }
        spec, train = self.samples.spec, self.train
        return Analysis(
            checkpoint={
                "file": self.checkpoint.file,
                "sha256": self.checkpoint.sha256,
                "arch": self.checkpoint.model_spec.arch,
                "epoch": self.checkpoint.epoch,
            },
            data={
                "name": spec.name if spec is not None else "own tensors",
                "spec": spec.to_dict() if spec is not None else None,
                "split": self.plan.split,
                "draw_sha256": self.samples.draw_sha256,
                "pixels_sha256": self.samples.pixels_sha256,
                "counts": list(self.samples.counts),
                "groups": None
                if train is None
                else {k: list(v) for k, v in train.groups().items()},
            },
            settings=settings,
            device=_device_name(self.objective.device),
            versions={
                "spectra": spectra.__version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            notes=self.notes,
        )

    def resumed(self, held: Analysis) -> tuple[Analysis, _Study]:
        """Take over results of the same checkpoint, draw and settings; else refuse."""
        mine = self.blank()
        study = self
        if self.plan.batch_size == "auto":  # memory may differ from run to run, the sums must not
            size = int(held.settings.get("batch_size", self.objective.batch_size))
            objective = self.objective.recut(batch_size=size, backwards=False)
            choice = self.path.choice
            study = replace(self, objective=objective, path=HessianOperator.of(objective, choice))
            mine = study.blank()
        # What is asked for may grow from run to run; how it is computed may not change.
        asked = ("overall", "per_class", "classes", "groups")
        pairs = [
            ("checkpoint", mine.checkpoint["sha256"], held.checkpoint.get("sha256")),
            ("draw", mine.data["draw_sha256"], held.data.get("draw_sha256")),
            *(
                (key, value, held.settings.get(key))
                for key, value in mine.settings.items()
                if key not in asked
            ),
        ]
        changed = [
            f"{key} ({theirs!r}, now {ours!r})" for key, ours, theirs in pairs if ours != theirs
        ]
        if changed:
            raise SpectraError(
                f"got results of other settings to resume: {', '.join(changed)}; expected the "
                "same, for one table must not mix two experiments; choose another --out, or leave "
                "out --resume to start anew"
            )
        notes = mine.notes
        if mine.data["pixels_sha256"] != held.data.get("pixels_sha256"):
            notes += ("some results were computed on the same draw with other pixels",)
        wanted = {part.label for part in study.parts}
        kept = tuple(s for s in held.spectra if s.label in wanted)
        return replace(mine, spectra=kept, notes=notes), study

    def cost(self, parts: list[_Part]) -> tuple[int, int]:
        """Count products, and the samples that they pass over."""
        steps = min(self.plan.steps, self.objective.dim) * self.plan.probes
        extra = TRACE_PROBES if self.plan.protocol == "exact" else 0
        each = PRODUCTS_PER_EXAMINATION + steps + extra + _CERTIFICATE_COST
        return each * len(parts), each * sum(self._work(part) for part in parts)

    def _work(self, part: _Part) -> int:
        return len(part.index) * max(1, self.plan.frozen_copies)

    def outline(self, part: _Part) -> ClassSpectrum:
        """Say what is known of a part before its first product."""
        accuracy = {
            split: _mean(self.correct[split], self.targets[split], part.classes)
            for split in self.correct
        }
        return ClassSpectrum(
            label=part.label,
            name=part.name,
            classes=part.classes,
            count=len(part.index),
            share=part.share,
            train_accuracy=accuracy.get("train"),
            test_accuracy=accuracy.get("test"),
            protocol=self.plan.protocol,
            operator="resampled" if self._resampled else "fixed",
        )

    @property
    def _resampled(self) -> bool:
        return self.plan.augment == "resample"

    def spectra(
        self, part: _Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
    ) -> Iterator[ClassSpectrum]:
        """Compute one part; yield it after every probe, the last time complete."""
        plan, work = self.plan, self._work(part)

        def tick(products: int = 1) -> None:
            meter.tick(part.label, products, products * work)

        fixed = self._operator(part, tick)
        redraw = torch.Generator()
        operator = fixed
        if self._resampled:
            moving = fixed.objective.redrawn(redraw)
            operator = HessianOperator.of(moving, fixed.choice, callback=tick)
        outline = replace(self.outline(part), loss=operator.objective.value())

        vectors = _Vectors(None if folder is None else folder / "ritz-vectors.pt", part.label)
        runs = list(held.runs) if held is not None and vectors.load(len(held.runs)) else []
        tick(len(runs) * min(plan.steps, operator.dim))
        _seed(redraw, plan.seed, part.label, "doctor")
        examination = examine(operator, seed=plan.seed)
        tick(PRODUCTS_PER_EXAMINATION - 4)  # four of them went through the operator
        for probe in range(len(runs), plan.probes):
            _seed(redraw, plan.seed, part.label, f"probe {probe}")
            run = self._run(operator, probe)
            vectors.take(run)
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
        assert vectors.low is not None
        assert vectors.high is not None
        _seed(redraw, plan.seed, part.label, "trace")
        forms = np.zeros(0)
        if plan.protocol == "exact":
            forms = quadratic_form_probes(operator, probes=TRACE_PROBES, seed=plan.seed)
        ends = best_extremes([extremes_of(run, vectors=False) for run in runs])
        certificate = certify(
            fixed,
            vectors.low,
            name=f"frozen:{n}" if (n := plan.frozen_copies) else "none",
        )
        tick(_CERTIFICATE_COST)
        if operator.objective.redraw is not None or plan.protocol == "released":
            ends = _recomputed(operator, ends, vectors)
        vectors.drop()
        yield _assemble(outline, operator, runs, ends, examination, asdict(certificate), forms)

    def _operator(self, part: _Part, tick: Any) -> HessianOperator:
        count = len(self.samples)
        copies = max(1, self.plan.frozen_copies)
        index = torch.cat([part.index + k * count for k in range(copies)])
        whole = self.objective if part.label == "overall" else self.objective.unweighted()
        objective = whole.select(index, what=part.label)
        return HessianOperator.of(objective, self.path.choice, callback=tick)

    def _run(self, operator: HessianOperator, probe: int) -> Tridiagonal:
        plan = self.plan
        if plan.protocol == "released":
            return released_lanczos(operator, steps=plan.steps, seed=plan.seed, probe=probe)
        start = random_start(
            operator.dim,
            seed=plan.seed,
            probe=probe,
            dtype=operator.dtype,
            device=operator.device,
        )
        return lanczos(operator, start, steps=plan.steps)


class _Vectors:
    """The Ritz vectors of the outermost values so far, kept on disk between probes."""

    def __init__(self, path: Path | None, label: str) -> None:
        self.path, self.label = path, label
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.values = (float("inf"), -float("inf"))

    def take(self, run: Tridiagonal) -> None:
        values = run.ritz().values
        low, high = float(values[0]), float(values[-1])
        if low < self.values[0]:
            self.low, self.values = run.vector(0), (low, self.values[1])
        if high > self.values[1]:
            self.high, self.values = run.vector(-1), (self.values[0], high)

    def save(self, probes: int) -> None:
        if self.path is not None:
            state = {"label": self.label, "probes": probes, "values": list(self.values)}
            with replacing(self.path) as path:
                torch.save(state | {"low": self.low, "high": self.high}, path)

    def load(self, probes: int) -> bool:
        """Read what `save` left; False if it belongs to other runs, which then are made anew."""
        if self.path is None or not self.path.exists():
            return False
        state = torch.load(self.path, weights_only=True)
        if (state["label"], state["probes"]) != (self.label, probes):
            return False
        self.low, self.high = state["low"], state["high"]
        self.values = (state["values"][0], state["values"][1])
        return True

    def drop(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class _Silent:
    def begin(self, products: int, work: int) -> None:
        pass

    def tick(self, label: str, products: int, work: int) -> None:
        pass


def _assemble(
    outline: ClassSpectrum,
    operator: HessianOperator,
    runs: list[Tridiagonal],
    ends: Extremes,
    examination: Examination,
    certificate: dict[str, Any],
    forms: np.ndarray[Any, Any],
) -> ClassSpectrum:
    """Read every answer off the runs; what a moving operator cannot say stays unknown."""
    measure = SpectralMeasure.from_tridiagonals(runs, operator.dim)
    low, high = ends.lambda_min, ends.lambda_max
    floor = max(
        examination.noise_floor(max(abs(low), abs(high))), max(run.asymmetry for run in runs)
    )
    exact = outline.caveat is None and examination.fixed_operator
    steps = min(run.steps for run in runs)
    threshold = max(floor, 1e-6 * max(high, 0.0))
    mass = measure.mass_below(-threshold) if exact else None
    trace = None
    if len(forms):
        trace = trace_estimate(np.concatenate([measure.probe_moments(1), forms]), operator.dim)
    if exact:
        # Two bounds that hold with 97.5 % each: the better one holds with 95 %.
        prior = lower_bound(
            low, high, dim=operator.dim, steps=steps, probes=len(runs), confidence=0.975
        )
        bounds = [posterior_lower_bound(runs, confidence=0.975), prior]
        known = [b for b in bounds if b is not None and np.isfinite(b)]
        certificate = certificate | {"lower_bound_95": max(known) - floor if known else None}
    notes = outline.notes
    if examination.culprit is not None:
        notes += (f"the operator moves: {examination.culprit}",)
    return replace(
        outline,
        lambda_min=low,
        lambda_max=high,
        residual_min=ends.residual_min,
        residual_max=ends.residual_max,
        nonconvexity=max(0.0, -low) / high if high > 0 else None,
        negative_mass=None if mass is None else mass.value,
        negative_mass_stderr=None if mass is None else mass.stderr,
        negative_mass_threshold=None if mass is None else threshold,
        trace=None if trace is None else trace.value,
        trace_stderr=None if trace is None else trace.stderr,
        steps=max(run.steps for run in runs),
        probes=len(runs),
        converged=ends.converged,
        doctor={
            "fixed_operator": examination.fixed_operator,
            "repeatability": examination.repeatability,
            "asymmetry": examination.asymmetry,
            "noise_floor": floor,
            "nonlinearity": examination.nonlinearity,
            "culprit": examination.culprit,
        },
        certificate=certificate,
        notes=notes,
        runs=tuple(runs),
        quadratic_forms=tuple(forms.tolist()),
        measure=measure,
    )


def _recomputed(operator: HessianOperator, ends: Extremes, vectors: _Vectors) -> Extremes:
    """Spend two products on the residuals, where T does not tell them."""
    residuals = []
    for value, vector in ((ends.lambda_min, vectors.low), (ends.lambda_max, vectors.high)):
        assert vector is not None
        y = vector.to(operator.dtype) / vector.norm()
        residuals.append(float(((operator @ y).double() - value * y.double()).norm()))
    size = max(abs(ends.lambda_min), abs(ends.lambda_max))
    return replace(
        ends,
        residual_min=residuals[0],
        residual_max=residuals[1],
        converged=max(residuals) <= 1e-3 * size,
    )


def _parts(plan: Plan, samples: Samples, train: Samples | None) -> Iterator[_Part]:
    targets = samples.targets.cpu()
    total = sum(samples.counts)

    def part(label: str, name: str, classes: tuple[int, ...]) -> _Part:
        chosen = torch.isin(targets, torch.tensor(classes)) if classes else targets >= 0
        index = torch.nonzero(chosen)[:, 0]
        share = len(index) / total
        if plan.max_samples is not None and len(index) > plan.max_samples:
            shuffle = torch.randperm(len(index), generator=torch.Generator().manual_seed(plan.seed))
            index = index[shuffle[: plan.max_samples].sort().values]
        if len(index) == 0:
            raise SpectraError(
                f"got no sample of {label} in the {plan.split} split, expected at least one: its "
                "Hessian would be 0/0; leave it out"
            )
        return _Part(label, name, classes, index, share)

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
            span = f"{members[0]}–{members[-1]}" if len(members) > 1 else str(members[0])
            yield part(name, f"classes {span}", members)
    present = [c for c, count in enumerate(samples.counts) if count]
    for c in present if plan.per_class else sorted(set(plan.classes)):
        yield part(f"class {c}", samples.class_names[c], (c,))


def _classify(objective: Objective, samples: Samples) -> Tensor:
    """Tell for each sample whether the network's largest logit is its label's."""
    device, hits = objective.device, []
    with torch.no_grad():
        for start in range(0, len(samples), 256):
            part = samples.select(slice(start, start + 256))
            output = objective.network(part.prepared(objective.dtype, device))
            logits = getattr(output, "logits", output)
            if logits.shape[1] < samples.num_classes:
                raise SpectraError(
                    f"got a network with {logits.shape[1]} outputs for data of "
                    f"{samples.num_classes} classes, expected at least as many: its loss would be "
                    "undefined; check --dataset and --num-classes"
                )
            hits.append(logits.argmax(1).cpu() == part.targets.cpu())
    return torch.cat(hits)


def _mean(correct: Tensor, targets: Tensor, classes: tuple[int, ...]) -> float | None:
    targets = targets.cpu()
    chosen = torch.isin(targets, torch.tensor(classes)) if classes else targets >= 0
    return float(correct[chosen].double().mean()) if bool(chosen.any()) else None


def _seed(generator: torch.Generator, seed: int, *names: str) -> None:
    """Start the augmentation draws of one part and probe, whatever ran before."""
    words = np.frombuffer("/".join(names).encode(), dtype=np.uint8).tolist()
    generator.manual_seed(int(np.random.SeedSequence([seed, *words]).generate_state(1)[0]))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SpectraError(
            f"got the device {name!r}, which this machine cannot use "
            f"({str(error).splitlines()[0]}); use --device cpu or auto"
        ) from error
    return device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
