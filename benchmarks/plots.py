"""Draw the README's plots from result files: the cost of a product, and how cost grows."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from common import RESULTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = ("linearized", "compiled", "kept-graph", "reverse-over-forward")
PEERS = ("pyhessian", "hessian_eigenthings", "curvlinops")


def draw(record: dict, path: Path) -> None:
    """Draw bars, ours dark, peers light, and a line at two gradients: six convolution passes."""
    rows = {
        name: min(
            row["gradients"] for key, row in record["results"].items() if key in (name, other)
        )
        for name in (*OURS, *PEERS)
        for other in [f"{name}, compiled"]
        if name in record["results"]
    }
    names = sorted(rows, key=rows.__getitem__, reverse=True)
    figure, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
    colors = ["0.25" if name in OURS else "0.7" for name in names]
    bars = ax.barh(
        [name.replace("_", "-") for name in names], [rows[n] for n in names], color=colors
    )
    ax.axvline(2, color="0.25", linestyle=":", linewidth=1, zorder=0)
    free = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # of the line behind
    ax.bar_label(bars, fmt="%.2f", padding=4, bbox=free)
    ax.set_xlabel("one Hessian-vector product, in gradients of the same run")
    ax.set_xlim(0, 1.12 * max(rows.values()))
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    figure.savefig(path, dpi=160)


def draw_scaling(record: dict, path: Path) -> None:
    """Draw seconds against samples and against parameters, with a line of slope 1 in each."""
    results = record["results"]
    samples = {float(n): t for n, t in results["samples"]["seconds"].items()}
    rows = {name: row for name, row in results["parameters"].items() if name != "resnet50"}
    sizes = {row["parameters"]: row["seconds_per_step"] for row in rows.values()}
    figure, axes = plt.subplots(1, 2, figsize=(6, 2.6), layout="constrained")
    for ax, points, title, unit in (
        (axes[0], samples, "samples", "seconds a product"),
        (axes[1], sizes, "parameters", "seconds a Lanczos step"),
    ):
        n, t = list(points), list(points.values())
        ax.loglog(n, t, "o-", color="0.25", markersize=4)
        ax.loglog(n, [t[-1] * k / n[-1] for k in n], ":", color="0.5", linewidth=1)
        ax.set_xlabel(title)
        ax.set_ylabel(unit)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    found = results["parameters"]["resnet50"]
    axes[1].loglog(found["parameters"], found["seconds_per_step"], "s", color="0.6", markersize=5)
    where = (found["parameters"], found["seconds_per_step"])
    axes[1].annotate("ResNet-50", where, xytext=(-6, 4), textcoords="offset points", ha="right")
    figure.savefig(path, dpi=160)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--out", type=Path, default=RESULTS.parent.parent / "docs")
    parser.add_argument("--machine", default="", help="part of its name; else the newest")
    args = parser.parse_args(arguments)
    for name, plot, file in (
        ("product", draw, "speed.png"),
        ("scaling", draw_scaling, "scaling.png"),
    ):
        files = args.results.glob(f"{name}-*{args.machine}*.json")
        # The older ones have no date.
        held = {path: json.loads(path.read_text()) for path in files}
        found = sorted(held, key=lambda path: (held[path].get("date", ""), path.name))
        if not found:
            print(f"no such result of {name}.py: {file} is left as it is")
            continue
        plot(held[found[-1]], args.out / file)
        print(f"written: {file}, from {found[-1].name}")


if __name__ == "__main__":
    main()
