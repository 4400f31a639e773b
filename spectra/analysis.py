"""The hallway: from an opened checkpoint and its data to the spectrum of every class.

Each set of samples that was asked for is studied, and saved after every probe; a resumed run goes
on after the last one that was finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from spectra.checkpoint import Checkpoint
from spectra.data import Samples, as_samples
from spectra.devices import find_device
from spectra.errors import SpectraError
from spectra.files import Keeping, OneWriter, drawn_pages, require_writable
from spectra.plan import Part, Plan, choose_parts
from spectra.processes import Processes
from spectra.progress import Progress, Silent
from spectra.remarks import UNCLASSIFIED
from spectra.results import Analysis, ClassSpectrum
from spectra.resuming import describe, require_replaceable, settled, take_over, unreadable
from spectra.study import Study
from spectra.together import assist, compute


def analyze(
    checkpoint: Checkpoint | nn.Module,
    plan: Plan,
    *,
    train: Samples | object | None = None,
    test: Samples | object | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    accuracies: bool = True,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> Analysis:
    """Compute the spectra that a plan asks for, saving as they come.

    Args:
        checkpoint: the opened checkpoint, or a network in memory (see `Checkpoint.of`).
        plan: what to compute.
        train: training samples, or what `Samples.from_batches` takes; they also say which classes
            are head, mid and tail. To resume, and in several processes, they have to come in the
            same order again: no shuffling loader.
        test: test samples in the same forms, of the classes of `train`, for accuracies or as the
            split that is analysed.
        folder: where `esd.json` and `esd.npz` go, in the place of the table and figure that a
            command has made of earlier ones; nothing is written when None.
        resume: go on from the results in `folder` when they belong to the same settings; accuracies
            that were left out are added.
        overwrite: replace whatever results lie in `folder`; without it only those of the same
            question, all of which are made again.
        accuracies: pass all images that the parts name through the network, for the shares that it
            classifies right; of large sets on a CPU that takes long.
        progress: is told of every product.
        processes: share classes and samples out among them; each calls this with the same
            checkpoint and samples. The first one's plan holds, and only that one reads and writes
            `folder`.

    Returns:
        The analysis, one spectrum for each part in the order overall, groups, classes; without
        spectra where another process leads.

    Raises:
        SpectraError: data or options that do not fit the checkpoint, results of other settings to
            resume, or results that would be lost.
    """
    train = None if train is None else as_samples(train)
    classes = None if train is None else train.num_classes
    test = None if test is None else as_samples(test, classes)
    if isinstance(checkpoint, nn.Module):
        checkpoint = Checkpoint.of(checkpoint)
    if processes is not None and not processes.leads:
        return _assist(checkpoint, train, test, processes)
    folder = Path(folder) if folder is not None else None
    meter = progress or Silent()
    held: Analysis | None = None
    writer = None if folder is None else OneWriter(folder / "esd.json")
    if resume and folder is not None and (folder / "esd.json").exists():
        held = Analysis.load(folder)
        plan = settled(plan, held.settings)
        done = _nothing_left(checkpoint, plan, train, test, held, processes, accuracies)
        if done is not None:
            meter.begin(0, 0)
            return done
    elif folder is not None and not overwrite:
        spare_others(folder, checkpoint, plan, train, test)
    known = () if held is None else held.spectra
    finished = () if held is None else held.finished
    begun = tuple(s.label for s in known if not s.complete)
    unclassified = [s.label for s in known if accuracies and _unclassified(s, train, test)]
    if processes is not None:
        processes.tell((plan, finished, begun, _fingerprints(checkpoint, train, test)))
    study = Study.prepare(
        *(checkpoint, plan, train, test, processes, finished, begun),
        accuracies=accuracies,
        classified=[label for label in finished if label not in unclassified],
        meter=meter,
    )
    analysis = study.blank()
    if held is not None:
        analysis = take_over(analysis, held)
        if accuracies and set(unclassified) <= {part.label for part in study.parts}:
            told = tuple(note for note in analysis.notes if note != UNCLASSIFIED)
            analysis = replace(analysis, notes=told)
    if folder is not None:
        require_writable(folder)  # before the first product, not after hours of them
    todo = [part for part in study.parts if part.label not in analysis.finished]
    # The vectors on disk are of the part that was interrupted: the next one replaces them.
    todo.sort(key=lambda part: (s := analysis.get(part.label)) is None or s.complete)
    meter.begin(*study.cost(todo))
    stale = []  # what a command has made of the results that these replace
    if folder is not None and held is None:
        stale = [folder / "esd.csv", *drawn_pages(folder, "esd")]

    def save(found: Analysis) -> None:
        if folder is not None and writer is not None:
            writer.require()
            try:
                found.save(folder)
            finally:  # an interrupt may come when the file has its name
                writer.note()

    with Keeping[Analysis](save, stale) as keep:
        for part in study.parts:
            spectrum = analysis.get(part.label)
            if spectrum is not None and spectrum.finished and part.label in unclassified:
                analysis = analysis.with_spectrum(study.with_accuracies(spectrum, part))
                keep(analysis)
        before = {spectrum.label: spectrum for spectrum in analysis.spectra}

        def take(spectrum: ClassSpectrum, notes: tuple[str, ...]) -> None:
            nonlocal analysis
            analysis = analysis.with_spectrum(spectrum).with_notes(notes)
            analysis = _in_order(analysis, study.parts)  # others come when they are done
            # The vectors of an unfinished part lie in a file of their own, already.
            keep(analysis, at_once=not spectrum.complete)

        compute(study, todo, before, folder, meter, take)
    return _in_order(analysis, study.parts)


def spare_others(
    folder: Path, checkpoint: Checkpoint, plan: Plan, train: Samples | None, test: Samples | None
) -> None:
    """Refuse to replace results that a plan would not make again.

    Raises:
        SpectraError: if there are such results in the folder.
    """
    samples = train if plan.split == "train" else test
    if samples is None or not (folder / "esd.json").exists():
        return
    try:
        held = Analysis.load(folder)
    except SpectraError as error:
        raise unreadable(f"results in {folder}", error) from error
    mine = _described(checkpoint, replace(plan, batch_size=plan.batches), samples, train, None)
    require_replaceable(
        mine,
        held,
        [part.label for part in choose_parts(plan, samples, train)],
        kept=[spectrum.label for spectrum in held.spectra if spectrum.runs],
        finished=held.finished,
        rest=", go on with --resume where only parts are missing",
    )


def _nothing_left(
    checkpoint: Checkpoint,
    plan: Plan,
    train: Samples | None,
    test: Samples | None,
    held: Analysis,
    processes: Processes | None,
    accuracies: bool,
) -> Analysis | None:
    """Give the results that are held where nothing is missing; to prepare a study takes long."""
    samples = train if plan.split == "train" else test
    if samples is None:
        return None  # the study says what is missing
    parts = tuple(choose_parts(plan, samples, train))
    mine = _described(checkpoint, plan, samples, train, processes, held.notes)
    done = _in_order(take_over(mine, held), parts)  # refused here, if at all, and not after hours
    labels = {part.label for part in parts}
    if not labels <= set(held.finished):
        return None
    asked = (spectrum for spectrum in held.spectra if spectrum.label in labels)
    if accuracies and any(_unclassified(spectrum, train, test) for spectrum in asked):
        return None
    if processes is not None:
        processes.tell((plan, None, (), _fingerprints(checkpoint, train, test)))
    return done


def _unclassified(spectrum: ClassSpectrum, train: Samples | None, test: Samples | None) -> bool:
    """Tell whether a spectrum lacks an accuracy that these samples can give."""
    return any(
        share is None
        and samples is not None
        and any(
            samples.counts[c]
            for c in spectrum.classes or range(samples.num_classes)
            if c < samples.num_classes
        )
        for share, samples in ((spectrum.train_accuracy, train), (spectrum.test_accuracy, test))
    )


def _described(
    checkpoint: Checkpoint,
    plan: Plan,
    samples: Samples,
    train: Samples | None,
    processes: Processes | None,
    notes: tuple[str, ...] = (),
) -> Analysis:
    """Describe a run that has no study."""
    device = find_device(processes.device(plan.device) if processes else plan.device)
    size = 1 if processes is None else processes.size
    return describe(checkpoint, plan, samples, train, device, processes=size, notes=notes)


def _in_order(analysis: Analysis, parts: Sequence[Part]) -> Analysis:
    order = {part.label: i for i, part in enumerate(parts)}
    ordered = sorted(analysis.spectra, key=lambda s: order.get(s.label, len(order)))
    return replace(analysis, spectra=tuple(ordered))


def _assist(
    checkpoint: Checkpoint, train: Samples | None, test: Samples | None, processes: Processes
) -> Analysis:
    plan, finished, begun, expected = processes.hear()
    mine = _fingerprints(checkpoint, train, test)
    if different := _different(mine, expected):
        raise SpectraError(
            f"got another {', '.join(different)} in process {processes.rank} than in process 0, "
            "expected the same files on every machine: the sums would mix two experiments; copy "
            "them again"
        )
    if finished is None:  # nothing is left to do
        samples = train if plan.split == "train" else test
        assert samples is not None
        return _described(checkpoint, plan, samples, train, processes)
    study = Study.prepare(checkpoint, plan, train, test, processes, finished, begun)
    assist(study, Silent())
    return study.blank()


def _fingerprints(
    checkpoint: Checkpoint, train: Samples | None, test: Samples | None
) -> dict[str, str | None]:
    found: dict[str, str | None] = {"checkpoint": checkpoint.sha256}
    for split, samples in (("train", train), ("test", test)):
        if samples is not None:
            found[f"{split} draw"] = samples.draw_sha256
            found[f"{split} images"] = samples.pixels_sha256
            found[f"{split} image files"] = samples.files_sha256
    return found


def _different(mine: Mapping[str, str | None], theirs: Mapping[str, str | None]) -> list[str]:
    """Name the fingerprints that differ; of images that one process has not read, there is none."""
    names = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    return [
        name
        for name in names
        if not name.endswith(" images") or None not in (mine.get(name, ""), theirs.get(name, ""))
    ]
