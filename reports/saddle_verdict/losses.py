"""Set the curvature of class 8 against its loss, at every kept epoch of every network.

    python reports/saddle_verdict/losses.py

Reads the trajectories of exact analyses, the ends of the shortened runs, and of the other classes
those of the runs of 200 epochs; cross-entropy of the images as they are. Writes `losses.png` beside
this file. Prints, for every point of SAM in class 8, the one of SGD with cross-entropy whose loss
is nearest, within a factor of 1.25; and a line through SGD's points in class 8, |λmin| = a lossᵇ
and λmax likewise, with what the others, and the published numbers, have beside it.
"""

import math
import re
from collections.abc import Callable
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
SGD, SAM = "SGD, CE+DRW and CE", "SAM, CE+DRW"
KINDS = {  # of training: the name of its runs; look
    SGD: (r"ce(-drw)?-sgd", {"color": "#08306b", "marker": "o"}),
    SAM: (r"ce-drw-sam", {"color": "#d99a00", "marker": "s"}),
    "SGD, VS": (r"vs-sgd", {"color": "#4d9221", "marker": "^"}),
    "SGD, LDAM+DRW": (r"ldam-drw-sgd", {"color": "#b2182b", "marker": "v"}),
}
OVER_TIME = ("cifar10-lt-trajectories/exact*/*/epoch-*", "cifar10-lt-50/*/exact")
ENDS = ("cifar10-lt-*/exact*", "cifar10-lt-*/seed-*/exact*")


class Point(NamedTuple):
    """One class of one network."""

    run: str
    loss: float
    low: float
    high: float
    ratio: float

    @property
    def row(self) -> list[str]:
        ends = (number(self.low), number(self.high))
        return [self.run, f"{self.loss:.3g}", *ends, f"{self.ratio:.3f}"]


VALUES: dict[str, Callable[[Point], float]] = {
    "|λmin|": lambda p: -p.low,
    "λmax": lambda p: p.high,
    "|λmin| / λmax": lambda p: p.ratio,
}


def points(kind: str, places: tuple[str, ...], wanted: Callable[[str], bool]) -> list[Point]:
    """Find the results of one kind of training, one a network and class."""
    found = {}
    for folder in sorted(folder for place in places for folder in HERE.parent.glob(place)):
        named = re.search(
            r"cifar10-lt(?:-50)?[-/]((?:ce|vs|ldam)[^/]*)(?:/seed-(\d))?", str(folder)
        )
        if "/cifar10-lt-trajectories/" in str(folder):
            named = re.search(
                r"/cifar10-lt-((?:ce|vs|ldam)[^/]*?)(?:-seed(\d))?/epoch", str(folder)
            )
        if named is None or not re.fullmatch(kind, re.sub(r"-seed\d$", "", named[1])):
            continue
        analysis = Analysis.load(folder)
        if (analysis.settings["loss"], analysis.settings["augment"]) != ("ce", "none"):
            continue
        seed = re.search(r"-seed(\d)$", named[1]) or re.search(r"(\d)$", named[2] or "0")
        epoch = f"epoch {analysis.checkpoint['epoch']}" + " of 50" * ("lt-50/" in str(folder))
        run = (
            f"{re.sub(r'-seed.$', '', named[1]).upper().replace('-', ' ')}, seed {seed[1]}, {epoch}"
        )
        for s in analysis.spectra:
            if wanted(s.label) and s.loss > SMALLEST and s.count > 1:
                point = Point(run, s.loss, s.lambda_min, s.lambda_max, s.nonconvexity)
                found[analysis.checkpoint["sha256"], s.label] = point
    return sorted(found.values(), key=lambda point: point.loss)


over_time = {name: points(kind, OVER_TIME, CLASS.__eq__) for name, (kind, _) in KINDS.items()}
others = {
    name: points(kind, ENDS, lambda label: label.startswith("class") and label != CLASS)
    for name, (kind, _) in KINDS.items()
}
published = [
    Point(
        f"{step.upper()}, {label}", p.loss, p.lambda_min, p.lambda_max, -p.lambda_min / p.lambda_max
    )
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

with mpl.rc_context(fname=STYLE):
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    for ax, (title, value) in zip(axes, VALUES.items(), strict=True):
        for name, (_, look) in KINDS.items():
            for drawn, fill in ((others[name], "none"), (over_time[name], "full")):
                xy = [(p.loss, value(p)) for p in drawn]
                about = {"label": name if fill == "full" else None, "fillstyle": fill}
                about |= {"linestyle": "", "markersize": 3.5, "markeredgewidth": 0.6}
                ax.plot(*zip(*xy, strict=True), **about, **look)
        xy = [(p.loss, value(p)) for p in published]
        about = {"color": INK, "marker": "*", "linestyle": "", "markersize": 6}
        ax.plot(*zip(*xy, strict=True), label="published", **about)
        if title == "|λmin|":
            ends = np.array([1e-3, 6.0])
            drawn = np.exp(np.polyval(lines[title], np.log(ends)))
            ax.plot(ends, drawn, color=KINDS[SGD][1]["color"], linewidth=0.6)
        ax.set(xscale="log", yscale="log", xlabel="class loss")
        ax.set_title(title, loc="left", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside upper center", ncols=5)
    figure.savefig(HERE / "losses.png", dpi=200)
shrunk(HERE / "losses.png")

for title, value in VALUES.items():
    for name in KINDS:
        for what, drawn in (("class 8", over_time[name]), ("other classes, 200", others[name])):
            beside = [
                value(p) / math.exp(np.polyval(lines[title], math.log(p.loss))) for p in drawn
            ]
            told = f"{min(beside):.2f} to {max(beside):.2f}, median {np.median(beside):.2f}"
            print(f"{title} beside SGD's line: {name}, {what}: {told} ({len(beside)})")

rows = []
for p in published:
    beside = [
        value(p) / math.exp(np.polyval(lines[t], math.log(p.loss))) for t, value in VALUES.items()
    ]
    rows.append([*p.row, *(f"{x:.2g}" for x in beside[:2])])
columns = ("loss", "λmin", "λmax", "ratio")
print(markdown(["published", *columns, "|λmin| beside SGD's line", "λmax beside it"], rows))
rows, gains = [], []
for one in over_time[SAM]:
    other = min(over_time[SGD], key=lambda p: abs(math.log(p.loss / one.loss)))
    if abs(math.log(other.loss / one.loss)) < math.log(FACTOR):
        rows.append([*one.row, *other.row])
        gains.append((other.low / one.low, other.high / one.high, one.ratio / other.ratio))
print(markdown(["SAM", *columns, "SGD", *columns], rows, text=(0, 5)))
told = ("|λmin|, SGD ÷ SAM", "λmax, SGD ÷ SAM", "ratio, SAM ÷ SGD")
for name, each in zip(told, zip(*gains, strict=True), strict=True):
    print(f"{name}: {min(each):.2f} to {max(each):.2f}")
