"""Draw |λmin|/λmax of a head class against the number of its images that the analysis is given.

    python reports/saddle_verdict/sizes.py

Reads `sizes/*` of both runs on CIFAR-10-LT, and the folders of class 0 of CIFAR-100-LT; writes
`sizes.png` beside this file.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from spectra import Analysis
from spectra.figures.pages import INK, STYLE, shrunk
from spectra.trajectories.published import NONCONVEXITY

HERE = Path(__file__).parent
SGD, SAM = (f"cifar10-lt-ce-drw-{run}/sizes" for run in ("sgd", "sam"))
LINES = {  # name: of both panels the folders; look
    "SGD, released protocol": (
        (f"{SGD}/released*", "cifar100-lt-50/ce-drw-sgd/**/released*"),
        {"color": "#b2182b", "marker": "o"},
    ),
    "SAM, released protocol": ((f"{SAM}/released*", None), {"color": "#d99a00", "marker": "s"}),
    "SGD, fixed operator": (
        (f"{SGD}/exact*", "cifar100-lt-50/ce-drw-sgd/**/exact*"),
        {"color": "#08306b", "marker": "^"},
    ),
}
PANELS = (("class 2", "CIFAR-10-LT, 200 epochs"), ("class 0", "CIFAR-100-LT, 50 epochs"))

with mpl.rc_context(fname=STYLE):
    figure = Figure(figsize=(6.2, 2.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for k, (ax, (label, title)) in enumerate(zip(axes, PANELS, strict=True)):
        seen = set()
        for name, (folders, look) in LINES.items():
            if folders[k] is None:
                continue
            found = [Analysis.load(folder).get(label) for folder in HERE.parent.glob(folders[k])]
            points = sorted((s.count, s.nonconvexity) for s in found)
            seen |= {count for count, _ in points}
            ax.plot(*zip(*points, strict=True), label=name, markersize=4, **look)
        ax.set(xscale="log", yscale="log", xlabel=f"images of {label}")
        ax.set_title(title, loc="left", fontsize=8)
        ax.set_xticks(sorted(seen), [f"{count:,}" for count in sorted(seen)])
        ax.minorticks_off()
    value = NONCONVEXITY["sgd"][2][-1]  # SGD, epoch 200
    axes[0].axhline(value, color=INK, linewidth=0.7, linestyle=(0, (3, 2)))
    axes[0].text(80, 0.95 * value, f"SGD, published, all images: {value:g}", fontsize=7, va="top")
    axes[0].set_ylabel("|λmin| / λmax")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside upper center", ncols=3)
    figure.savefig(HERE / "sizes.png", dpi=200)
shrunk(HERE / "sizes.png")
