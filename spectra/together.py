"""The parts of a study, computed by however many processes there are.

What was begun before, and is shared, comes first: its vectors lie in the folder. Then each process
computes the parts that are its own (`sharing`), as if it were alone; then all of them pass through
the samples of the others together, each through its share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spectra.errors import SpectraError, StorageError
from spectra.lines import PATIENCE, Line, opened
from spectra.plan import Part
from spectra.probing import spectra_of
from spectra.processes import LostProcess, Processes
from spectra.progress import Progress
from spectra.results import ClassSpectrum
from spectra.study import Study

# Takes a spectrum, and what its products did otherwise than planned.
Take = Callable[[ClassSpectrum, tuple[str, ...]], object]


def compute(
    study: Study,
    parts: Sequence[Part],
    held: Mapping[str, ClassSpectrum],
    folder: Path | None,
    meter: Progress,
    take: Take,
) -> None:
    """Compute parts, with the other processes where there are any.

    Args:
        study: what the parts share, of the process that leads.
        parts: in the order of computation.
        held: by label, what an interrupted run has left of them.
        folder: where Ritz vectors are kept between probes.
        meter: is told of every product.
        take: takes each result as it comes.

    Raises:
        LostProcess: another process has ended; what had come was taken.
        StorageError: something could not be kept.
    """

    def alone(part: Part, progress: Progress) -> None:
        for spectrum in _attempt(study, part, held.get(part.label), folder, progress):
            take(spectrum, study.notes_of_products())

    processes, owners = study.processes, study.owners
    if processes is None:
        for part in parts:
            alone(part, meter)
        return

    def together(shared: Sequence[Part]) -> None:
        for part in shared:
            processes.tell(part.label)
            alone(part, meter)
            processes.tell(None)
        processes.tell(None)

    if study.first:
        together([part for part in parts if part.label in study.first])
    if owners:
        elsewhere = {part.label: part for part in parts if owners.get(part.label, 0) > 0}
        lines = [Line(processes, other) for other in range(1, processes.size)]

        def arrive() -> None:
            _arrive(study, lines, elsewhere, meter, take)

        with opened(lines):
            for part in parts:
                if owners.get(part.label) == 0:
                    alone(part, _Watched(meter, arrive))
            while elsewhere:
                arrive()
                time.sleep(PATIENCE)
    rest = [part for part in parts if part.label not in (*owners, *study.first)]
    together(rest)


def assist(study: Study, meter: Progress) -> None:
    """Take part in what the process that leads does in `compute`.

    Args:
        study: what the parts share, of a process that does not lead.
        meter: is told of every product of its own parts.
    """
    processes, parts = study.processes, {part.label: part for part in study.parts}
    assert processes is not None
    if study.first:
        _sum_shares(study, parts, processes)
    if study.owners:
        line = Line(processes, 0)
        with opened([line]):
            for part in parts.values():
                if study.owners.get(part.label) == processes.rank:
                    watched = _Watched(meter, line.require)
                    for spectrum in _attempt(study, part, None, None, watched):
                        if spectrum.complete:  # done, or failed
                            line.say((spectrum, study.notes_of_products()))
    _sum_shares(study, parts, processes)


def _sum_shares(study: Study, parts: Mapping[str, Part], processes: Processes) -> None:
    while (label := processes.hear()) is not None:
        study.sum_own_share(parts[label])


def _arrive(
    study: Study,
    lines: Sequence[Line],
    elsewhere: dict[str, Part],
    meter: Progress,
    take: Take,
) -> None:
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
            take(study.with_accuracies(spectrum, part), notes)
    if lost is not None:
        raise lost


@dataclass(frozen=True)
class _Watched:
    """Look after something with every product."""

    progress: Progress
    look: Callable[[], None]

    def begin(self, products: int, work: int) -> None:
        self.progress.begin(products, work)

    def tick(self, label: str, products: int, work: int) -> None:
        self.progress.tick(label, products, work)
        self.look()


def _attempt(
    study: Study, part: Part, held: ClassSpectrum | None, folder: Path | None, meter: Progress
) -> Iterator[ClassSpectrum]:
    """Compute one part; one that fails must not throw away the others' results."""
    try:
        yield from spectra_of(study, part, held, folder, meter)
    except (StorageError, LostProcess):
        raise  # the numbers cannot be kept, or not be summed: nothing to go on for
    except SpectraError as error:
        yield replace(study.outline(part), error=str(error))
