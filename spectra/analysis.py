"""The hallway: from an opened checkpoint and its data to the spectrum of every class.

Each set of samples that was asked for is studied and saved; nothing is computed twice after an
interruption.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.errors import SpectraError, StorageError
from spectra.files import require_writable
from spectra.plan import Part, Plan
from spectra.results import Analysis, ClassSpectrum
from spectra.study import Progress, Study


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
    folder = Path(folder) if folder is not None else None
    if resume and folder is not None and (folder / "esd.json").exists():
        held = Analysis.load(folder)
        study = Study.prepare(checkpoint, plan.settled(held.settings), train, test)
        analysis = study.resumed(held)
    else:
        study = Study.prepare(checkpoint, plan, train, test)
        analysis = study.blank()
    if folder is not None:
        require_writable(folder)  # before the first product, not after hours of them
    todo = [part for part in study.parts if part.label not in analysis.finished]
    meter = progress or _Silent()
    meter.begin(*study.cost(todo))
    for part in todo:
        for spectrum in _attempt(study, part, analysis.get(part.label), folder, meter):
            analysis = analysis.with_spectrum(spectrum)
            if folder is not None:
                analysis.save(folder)
    order = {part.label: i for i, part in enumerate(study.parts)}
    ordered = sorted(analysis.spectra, key=lambda s: order.get(s.label, len(order)))
    return replace(analysis, spectra=tuple(ordered))


def _attempt(
    study: Study, part: Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
) -> Iterator[ClassSpectrum]:
    try:
        yield from study.spectra(part, held, folder, meter)
    except StorageError:
        raise  # the numbers are right and cannot be kept: nothing to go on for
    except SpectraError as error:
        # One class that fails must not throw away the others' results.
        yield replace(study.outline(part), error=str(error))


class _Silent:
    def begin(self, products: int, work: int) -> None:
        pass

    def tick(self, label: str, products: int, work: int) -> None:
        pass
