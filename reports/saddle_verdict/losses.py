"""Set the curvature of class 8 against its loss, at every kept epoch of every network.

    python reports/saddle_verdict/losses.py

Reads the trajectories of exact analyses and the ends of the shortened runs, cross-entropy of the
images as they are; writes `losses.png` beside this file, and prints, for every point of SAM, the
one of SGD with cross-entropy whose loss is nearest, within a factor of 1.25.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from spectra import Analysis
from spectra.figures.pages import STYLE, shrunk
from spectra.writing import markdown, number

HERE = Path(__file__).parent
LABEL = "class 8"
FACTOR = 1.25  # of losses that are alike
KINDS = {  # of training: the name of its runs; look
    "SGD, CE+DRW and CE": (r"ce(-drw)?-sgd", {"color": "#08306b", "marker": "o"}),
    "SAM, CE+DRW": (r"ce-drw-sam", {"color": "#d99a00", "marker": "s"}),
    "SGD, VS": (r"vs-sgd", {"color": "#4d9221", "marker": "^"}),
    "SGD, LDAM+DRW": (r"ldam-drw-sgd", {"color": "#b2182b", "marker": "v"}),
}
PLACES = ("cifar10-lt-trajectories/exact*/*/epoch-*", "cifar10-lt-50/*/exact")


class Point(NamedTuple):
    """One class of one network."""

    run: str
    loss: float
    lambda_min: float
    lambda_max: float
    ratio: float

    @property
    def row(self) -> list[str]:
        ends = (number(self.lambda_min), number(self.lambda_max))
        return [self.run, f"{self.loss:.3g}", *ends, f"{self.ratio:.3f}"]


def points(kind: str) -> list[Point]:
    """Find the results of one kind of training, one a network."""
    found = {}
    for place in PLACES:
        for folder in sorted(HERE.parent.glob(place)):
            analysis = Analysis.load(folder)
            run = folder.parent.name.removeprefix("cifar10-lt-")
            s, asked = analysis.get(LABEL), analysis.settings
            plain = (asked["loss"], asked["augment"], asked["max_samples"]) == ("ce", "none", None)
            if s is None or not plain or not re.fullmatch(rf"{kind}(-seed\d)?", run):
                continue
            epoch = "end of 50" if "cifar10-lt-50" in str(folder) else folder.name.replace("-", " ")
            seed = re.search(r"-seed(\d)$", run)
            short = re.sub(r"-seed\d$", "", run).upper().replace("-", " ")
            name = f"{short}, seed {seed[1] if seed else 0}, {epoch}"
            ends = (s.lambda_min, s.lambda_max, s.nonconvexity)
            found[analysis.checkpoint["sha256"]] = Point(name, s.loss, *ends)
    return sorted(found.values(), key=lambda point: point.loss)


by_kind = {name: points(kind) for name, (kind, _) in KINDS.items()}
with mpl.rc_context(fname=STYLE):
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    values = {
        "|λmin|": lambda p: -p.lambda_min,
        "λmax": lambda p: p.lambda_max,
        "|λmin| / λmax": lambda p: p.ratio,
    }
    for ax, (title, value) in zip(axes, values.items(), strict=True):
        for name, (_, look) in KINDS.items():
            drawn = [(p.loss, value(p)) for p in by_kind[name]]
            ax.plot(*zip(*drawn, strict=True), label=name, linestyle="", markersize=3.5, **look)
        ax.set(xscale="log", yscale="log", xlabel=f"loss of {LABEL}")
        ax.set_title(title, loc="left", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside upper center", ncols=4)
    figure.savefig(HERE / "losses.png", dpi=200)
shrunk(HERE / "losses.png")

rows, gains = [], []
sgd, sam = by_kind["SGD, CE+DRW and CE"], by_kind["SAM, CE+DRW"]
for one in sam:
    other = min(sgd, key=lambda p: abs(math.log(p.loss / one.loss)))
    if abs(math.log(other.loss / one.loss)) < math.log(FACTOR):
        rows.append([*one.row, *other.row])
        low, high = other.lambda_min / one.lambda_min, other.lambda_max / one.lambda_max
        gains.append((low, high, one.ratio / other.ratio))
columns = ("loss", "λmin", "λmax", "ratio")
print(markdown(["SAM", *columns, "SGD", *columns], rows))
told = ("|λmin|, SGD ÷ SAM", "λmax, SGD ÷ SAM", "ratio, SAM ÷ SGD")
for name, each in zip(told, zip(*gains, strict=True), strict=True):
    print(f"{name}: {min(each):.2f} to {max(each):.2f}")
