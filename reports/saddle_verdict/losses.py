"""Set the curvature of class 8 against its loss, over the kept epochs of the CIFAR-10-LT networks.

    python reports/saddle_verdict/losses.py

Reads the trajectories of exact analyses, the ends of the shortened runs, and of the other classes
those of the runs of 200 epochs; cross-entropy of the images as they are. Writes `losses.png` beside
this file. Prints a line through SGD's points in class 8, |λmin| = a lossᵇ and λmax likewise, with
what the others, CIFAR-100-LT's ends and the published numbers have beside it; and, for every point
of SAM in class 8, the one of SGD with cross-entropy whose loss is nearest, within a factor of 1.25.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from spectra import Analysis
from spectra.figures.pages import INK, STYLE, shrunk
from spectra.trajectories.published import ENDS as PUBLISHED
from spectra.writing import markdown, number

HERE = Path(__file__).parent
CLASS, FACTOR = "class 8", 1.25  # of losses that are alike
SMALLEST = 1e-6  # loss that is drawn: below it are fitted classes of LDAM and VS
SGD, SAM, VS, LDAM = "SGD, CE+DRW and CE", "SAM, CE+DRW", "SGD, VS", "SGD, LDAM+DRW"
LOOKS = {
    SGD: {"color": "#08306b", "marker": "o"},
    SAM: {"color": "#d99a00", "marker": "s"},
    VS: {"color": "#4d9221", "marker": "^"},
    LDAM: {"color": "#b2182b", "marker": "v"},
}
KEPT, SHORT = "cifar10-lt-trajectories", "cifar10-lt-50"
OVER_TIME = {  # kind of training -> run -> its results
    SGD: {
        "CE+DRW, seed 0": f"{KEPT}/exact/cifar10-lt-ce-drw-sgd/epoch-*",
        "CE+DRW, seed 1": f"{KEPT}/exact-seed1/*/epoch-*",
        "CE+DRW, seed 2": f"{KEPT}/exact-seed2/*/epoch-*",
        "CE": f"{KEPT}/exact-ce/*/epoch-*",
        "CE+DRW, 64 epochs": "cifar10-lt/exact",
        "CE+DRW, 50 epochs, seed 1": f"{SHORT}/ce-drw-sgd-seed1/exact",
        "CE+DRW, 50 epochs, seed 2": f"{SHORT}/ce-drw-sgd-seed2/exact",
        "CE, 50 epochs": f"{SHORT}/ce-sgd/exact",
    },
    SAM: {
        "seed 0": f"{KEPT}/exact/cifar10-lt-ce-drw-sam/epoch-*",
        "seed 1": f"{KEPT}/exact-sam-seed1/*/epoch-*",
        "50 epochs, seed 1": f"{SHORT}/ce-drw-sam-seed1/exact",
    },
    VS: {"": f"{KEPT}/exact-vs/*/epoch-*", "50 epochs": f"{SHORT}/vs-sgd/exact"},
    LDAM: {"": f"{KEPT}/exact-ldam/*/epoch-*", "50 epochs": f"{SHORT}/ldam-drw-sgd/exact"},
}
ENDS = {  # of 200 epochs; head classes over 500 images
    SGD: {
        "CE+DRW, seed 0": "cifar10-lt-ce-drw-sgd/exact*",
        "CE+DRW, seed 0, class 2": "cifar10-lt-ce-drw-sgd/sizes/exact-500",
        "CE+DRW, seed 1": "cifar10-lt-ce-drw-sgd/seed-1/exact*",
        "CE+DRW, seed 2": "cifar10-lt-ce-drw-sgd/seed-2/exact*",
        "CE": "cifar10-lt-ce-sgd/exact*",
    },
    SAM: {
        "seed 0": "cifar10-lt-ce-drw-sam/exact*",
        "seed 1": "cifar10-lt-ce-drw-sam/seed-1/exact*",
    },
    VS: {"": "cifar10-lt-vs-sgd/exact*"},
    LDAM: {"": "cifar10-lt-ldam-drw-sgd/exact*"},
}
ELSEWHERE = {  # not drawn
    "SAM, CE, 50 epochs": {"": f"{SHORT}/ce-sam/exact"},
    "SAM, LDAM+DRW, 50 epochs": {"": f"{SHORT}/ldam-drw-sam/exact"},
    "SGD, CE+DRW, CIFAR-100-LT": {"": "cifar100-lt-ce-drw-sgd/exact"},
    "SAM, CE+DRW, CIFAR-100-LT": {"": "cifar100-lt-ce-drw-sam/exact"},
    "SGD, CE+DRW, class 2, all images": {"": "cifar10-lt-ce-drw-sgd/sizes/exact"},
    "SGD, CE+DRW, whole set, 500": {"": "cifar10-lt-ce-drw-sgd/exact"},
}


class Point(NamedTuple):
    """One class of one network."""

    run: str
    loss: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        return max(0.0, -self.low) / self.high

    @property
    def row(self) -> list[str]:
        return [
            self.run,
            f"{self.loss:.3g}",
            number(self.low),
            number(self.high),
            f"{self.ratio:.3f}",
        ]


VALUES: dict[str, Callable[[Point], float]] = {
    "|λmin|": lambda p: -p.low,
    "λmax": lambda p: p.high,
    "|λmin| / λmax": lambda p: p.ratio,
}


def points(runs: Mapping[str, str], wanted: Callable[[str], bool]) -> list[Point]:
    """Find the results of some runs, one a network and class."""
    found = {}
    for run, place in runs.items():
        for folder in sorted(HERE.parent.glob(place)):
            analysis = Analysis.load(folder)
            if (analysis.settings["loss"], analysis.settings["augment"]) != ("ce", "none"):
                continue
            name = ", ".join(filter(None, (run, f"epoch {analysis.checkpoint['epoch']}")))
            for s in analysis.spectra:
                if wanted(s.label) and s.loss > SMALLEST:
                    key = analysis.checkpoint["sha256"], s.label
                    found.setdefault(key, Point(name, s.loss, s.lambda_min, s.lambda_max))
    return sorted(found.values(), key=lambda point: point.loss)


def scatter(
    ax: mpl.axes.Axes, drawn: Iterable[Point], value: Callable[[Point], float], **look
) -> None:
    """Draw points without a line between them."""
    xy = [(p.loss, value(p)) for p in drawn]
    ax.plot(*zip(*xy, strict=True), linestyle="", markeredgewidth=0.6, **look)


over_time = {kind: points(runs, CLASS.__eq__) for kind, runs in OVER_TIME.items()}
ends = {
    kind: points(runs, lambda label: label not in ("overall", CLASS)) for kind, runs in ENDS.items()
}
elsewhere = {
    kind: points(runs, lambda label, whole="whole" in kind: (label == "overall") == whole)
    for kind, runs in ELSEWHERE.items()
}
published = [
    Point(f"{step.upper()}, {label}", p.loss, p.lambda_min, p.lambda_max)
    for step, panels in PUBLISHED.items()
    for label, p in panels.items()
]
lines = {}
for title, value in VALUES.items():
    x, y = (np.log([f(p) for p in over_time[SGD]]) for f in (lambda p: p.loss, value))
    lines[title] = np.polyfit(x, y, 1)
    off = np.std(y - np.polyval(lines[title], x), ddof=2)
    said = f"{title} = {math.exp(lines[title][1]):.3g} loss^{lines[title][0]:.2f}"
    print(f"SGD, {len(x)} points: {said}, within a factor of {math.exp(off):.2f}; ", end="")
    print(f"correlation of the logarithms {np.corrcoef(x, y)[0, 1]:.3f}")


def beside(point: Point, title: str) -> float:
    """Divide a value by what SGD's line has at the same loss."""
    return VALUES[title](point) / math.exp(np.polyval(lines[title], math.log(point.loss)))


with mpl.rc_context(fname=STYLE):
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    for ax, (title, value) in zip(axes, VALUES.items(), strict=True):
        for kind, look in LOOKS.items():
            scatter(ax, ends[kind], value, fillstyle="none", markersize=3.5, **look)
            scatter(ax, over_time[kind], value, label=kind, markersize=3.5, **look)
        scatter(ax, published, value, label="published", color=INK, marker="*", markersize=6)
        if title == "|λmin|":
            span = np.array([1e-3, 6.0])
            ax.plot(span, np.exp(np.polyval(lines[title], np.log(span))), color="#08306b", lw=0.6)
        ax.set(xscale="log", yscale="log", xlabel="class loss")
        ax.set_title(title, loc="left", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside upper center", ncols=5)
    figure.savefig(HERE / "losses.png", dpi=200)
shrunk(HERE / "losses.png")

for title in VALUES:
    for what, kinds in (("class 8", over_time), ("other classes, 200", ends), ("", elsewhere)):
        for kind, drawn in kinds.items():
            shares = [beside(p, title) for p in drawn]
            told = f"{min(shares):.2f} to {max(shares):.2f}, median {np.median(shares):.2f}"
            print(f"{title} beside SGD's line: {kind}, {what}: {told} ({len(shares)})")

columns = ("loss", "λmin", "λmax", "ratio")
rows = [[*p.row, *(f"{beside(p, title):.2g}" for title in VALUES)] for p in published]
print(markdown(["published", *columns, *(f"{title} beside SGD's line" for title in VALUES)], rows))

pairs = []
for one in over_time[SAM]:
    nearest = min(over_time[SGD], key=lambda p: abs(math.log(p.loss / one.loss)))
    if abs(math.log(nearest.loss / one.loss)) < math.log(FACTOR):
        pairs.append((one, nearest))
rows = [[*sam.row, *sgd.row] for sam, sgd in pairs]
print(markdown(["SAM", *columns, "SGD", *columns], rows, text=(0, 5)))
for title, value in VALUES.items():
    shares = [value(sgd) / value(sam) for sam, sgd in pairs]
    print(
        f"{title}, SGD's beside SAM's: {min(shares):.2f} to {max(shares):.2f} ({len(shares)} pairs)"
    )
