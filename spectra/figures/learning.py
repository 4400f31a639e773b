"""Draw what a run's metrics.csv says: test accuracy of head, mid and tail, and the training loss.

The dotted lines are drops of the learning rate, the dash-dotted one is where re-weighting starts.
The last epoch is the result; nothing here marks a best one, which would be chosen on test data.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spectra.errors import SpectraError

from .pages import COLOURS, INK, PLAIN, STYLE, add_legend, plain_text, width_of

_GROUPS = ("head", "mid", "tail")
_MARKERS = dict(zip(_GROUPS, "o^s", strict=True))
_SCHEDULE = {"re-weighting starts": "-.", "learning rate drops": ":"}


def learning_curves(runs: Mapping[str, Path], *, width: float | None = None) -> Figure:
    """Draw accuracy above and loss below, a column for each run.

    Args:
        runs: title of each run, and its metrics.csv.
        width: of the figure in inches; by default one column of print for a run, else both.

    Raises:
        SpectraError: for a file that is no metrics.csv of the trainer.
    """
    with mpl.rc_context(fname=STYLE):
        figure = Figure(figsize=(width or width_of(len(runs)), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(
            2, len(runs), sharex=True, sharey="row", squeeze=False, height_ratios=(1.5, 1)
        )
        for column, (title, path) in enumerate(runs.items()):
            above, below = panels[:, column]
            rows = _read(path)
            draw_accuracies(above, rows)
            draw_loss(below, rows)
            above.set_title(plain_text(title))
            below.set_xlabel("Epoch")
            above.label_outer()
            below.label_outer()
        lines = (line for ax in panels[1] for line in ax.lines)
        marks = {line.get_label(): line for line in lines if line.get_label() in _SCHEDULE}
        if marks:
            add_legend(figure, [marks[label] for label in _SCHEDULE if label in marks])
        return figure


def draw_accuracies(ax: Axes, rows: Sequence[Mapping[str, float]]) -> Axes:
    """Draw the test accuracies in %: over all classes, and the means of head, mid and tail."""
    found = [row for row in rows if "test_accuracy" in row]
    epochs = [row["epoch"] for row in found]
    every = max(1, len(found) // 10)
    for name in _GROUPS:
        values = [100 * row[name] for row in found]
        ax.plot(
            epochs, values, _MARKERS[name], linestyle="-", color=COLOURS[name],
            markeredgecolor=INK, markeredgewidth=0.4, label=f"{name} ({values[-1]:.1f})",
            markevery=every, markersize=4,
        )  # fmt: skip
    values = [100 * row["test_accuracy"] for row in found]
    ax.plot(epochs, values, color=INK, linewidth=1.6, label=f"all ({values[-1]:.1f})")
    ax.set_ylim(0, 100)
    ax.set_ylabel("Test accuracy, %")
    # Below the panel: in it there is no place that no curve comes through.
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.03), ncols=2, title="in the last epoch, %"
    )
    _mark_schedule(ax, rows)
    return ax


def draw_loss(ax: Axes, rows: Sequence[Mapping[str, float]]) -> Axes:
    """Draw the training loss as trained: augmented, and from the line on with class weights."""
    ax.semilogy([row["epoch"] for row in rows], [row["train_loss"] for row in rows], color=PLAIN)
    _mark_schedule(ax, rows)
    ax.set_ylabel("Training loss")
    return ax


def _mark_schedule(ax: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    weighted, dropped = _SCHEDULE
    for before, after in pairwise(rows):
        if after["weighted"] > before["weighted"]:
            label = weighted
        elif after["lr"] < 0.1 * before["lr"]:
            label = dropped
        else:
            continue
        style = _SCHEDULE[label]
        ax.axvline(before["epoch"], color=INK, linewidth=0.9, linestyle=style, label=label)


def _read(path: Path) -> list[dict[str, float]]:
    """Read a table of epochs; a cell that is empty is left out."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise SpectraError(f"{path} is no metrics.csv of spectra.train ({error})") from error
    if not any("test_accuracy" in row for row in rows):
        raise SpectraError(
            f"{path} holds {len(rows)} epochs and no test accuracy; expected the metrics.csv of a "
            "run of spectra.train that was evaluated"
        )
    return rows
