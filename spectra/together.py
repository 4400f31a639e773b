"""The parts of a study, computed by however many processes there are.

First each process computes the parts that are its own (`sharing`), as if it were alone; then all of
them pass through the samples of the others together, each through its share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from spectra.errors import SpectraError, StorageError
from spectra.lines import PATIENCE, Line
from spectra.plan import Part
from spectra.processes import LostProcess
from spectra.results import ClassSpectrum
from spectra.study import Progress, Study

Found = tuple[ClassSpectrum, tuple[str, ...]]  # and what its products did otherwise than planned


def spectra_of(
    study: Study,
    parts: Sequence[Part],
    held: Mapping[str, ClassSpectrum],
    folder: Path | None,
    meter: Progress,
) -> Iterator[Found]:
    """Compute parts, with the other processes where there are any; give each result as it comes.

    Args:
        study: what the parts share, of the process that leads.
        parts: in the order of computation.
        held: by label, what an interrupted run has left of them.
        folder: where Ritz vectors are kept between probes.
        meter: is told of every product.

    Raises:
        LostProcess: another process has ended; what the others had found was given before.
        StorageError: something could not be kept.
    """

    def compute(part: Part) -> Iterator[Found]:
        for spectrum in _attempt(study, part, held.get(part.label), folder, meter):
            yield spectrum, study.notes_of_products()

    processes, owners = study.processes, study.owners
    if processes is not None and owners:
        elsewhere = {part.label: part for part in parts if owners.get(part.label, 0) > 0}
        lines = [Line(processes, other) for other in range(1, processes.size)]
        for part in parts:
            if owners.get(part.label) == 0:
                for found in compute(part):
                    yield found
                    yield from _arrived(study, lines, elsewhere, meter)
        while elsewhere:
            yield from _arrived(study, lines, elsewhere, meter)
            time.sleep(PATIENCE)
        for line in lines:
            line.close()
    for part in parts:
        if part.label not in owners:
            if processes is not None:
                processes.tell(part.label)
            yield from compute(part)
            if processes is not None:
                processes.tell(None)
    if processes is not None:
        processes.tell(None)


def _arrived(
    study: Study, lines: Sequence[Line], elsewhere: dict[str, Part], meter: Progress
) -> Iterator[Found]:
    """Take what other processes have found since the last time out of what is elsewhere."""
    lost = None
    for line in lines:
        try:
            arrived = line.heard()
        except LostProcess as error:
            lost = error  # after what the others have sent
            continue
        for spectrum, notes in arrived:
            part = elsewhere.pop(spectrum.label)
            meter.tick(part.label, *study.cost([part]))
            yield study.with_accuracies(spectrum, part), notes
    if lost is not None:
        raise lost


def assist(study: Study, meter: Progress) -> None:
    """Compute the parts that are this process's own, then sum over its share of all others.

    Args:
        study: what the parts share, of a process that does not lead.
        meter: is told of every product of its own parts.
    """
    processes = study.processes
    assert processes is not None
    parts = {part.label: part for part in study.parts}
    if study.owners:
        line = Line(processes, 0)
        for part in parts.values():
            if study.owners.get(part.label) == processes.rank:
                for spectrum in _attempt(study, part, None, None, meter):
                    if spectrum.complete:  # done, or failed
                        line.say((spectrum, study.notes_of_products()))
        line.close()
    while (label := processes.hear()) is not None:
        study.sum_own_share(parts[label])


def _attempt(
    study: Study, part: Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
) -> Iterator[ClassSpectrum]:
    """Compute one part; one that fails must not throw away the others' results."""
    try:
        yield from study.spectra(part, held, folder, meter)
    except (StorageError, LostProcess):
        raise  # the numbers cannot be kept, or not be summed: nothing to go on for
    except SpectraError as error:
        yield replace(study.outline(part), error=str(error))
