"""Draw |λmin|/λmax of a head class against the number of its images that the analysis is given.

    python reports/saddle_verdict/sizes.py

Reads `sizes/*` of both runs; writes `sizes.png` beside this file.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from spectra import Analysis
from spectra.figures.pages import INK, STYLE
from spectra.trajectories.published import NONCONVEXITY

HERE = Path(__file__).parent
COUNTS = (83, 250, 500, 1796)
LINES = (  # run, folders, name, look
    ("sgd", "released", "SGD, released protocol", {"color": "#b2182b", "marker": "o"}),
    ("sam", "released", "SAM, released protocol", {"color": "#d99a00", "marker": "s"}),
    ("sgd", "exact", "SGD, fixed operator", {"color": "#08306b", "marker": "^"}),
)

with mpl.rc_context(fname=STYLE):
    figure = Figure(figsize=(3.4, 2.9), layout="constrained")
    ax = figure.subplots()
    for run, kind, name, look in LINES:
        folders = (HERE.parent / f"cifar10-lt-ce-drw-{run}" / "sizes").glob(f"{kind}*")
        found = [Analysis.load(folder).get("class 2") for folder in folders]
        points = sorted((s.count, s.nonconvexity) for s in found)
        ax.plot(*zip(*points, strict=True), label=name, markersize=4, **look)
    value = NONCONVEXITY["sgd"][2][-1]  # SGD, epoch 200
    ax.axhline(value, color=INK, linewidth=0.7, linestyle=(0, (3, 2)))
    ax.text(80, 0.95 * value, f"SGD, published, all images: {value:g}", fontsize=7, va="top")
    ax.set(xscale="log", yscale="log", xlabel="images of class 2", ylabel="|λmin| / λmax")
    ax.set_xticks(COUNTS, [f"{count:,}" for count in COUNTS])
    ax.minorticks_off()
    figure.legend(fontsize=7, loc="outside upper left")
    figure.savefig(HERE / "sizes.png", dpi=200)
