"""Draw what one Hessian-vector product costs, in gradients, from a result file of `product.py`."""

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
    """Draw horizontal bars: ours dark, peers light, the floor of six convolution passes a line."""
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
    ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.axvline(2, color="0.25", linestyle=":", linewidth=1)
    ax.set_xlabel("one Hessian-vector product, in gradients of the same run")
    ax.set_xlim(0, 1.12 * max(rows.values()))
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    figure.savefig(path, dpi=160)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, help="of product.py (the newest)")
    parser.add_argument("--out", type=Path, default=RESULTS.parent.parent / "docs" / "speed.png")
    args = parser.parse_args(arguments)
    newest = args.results or max(RESULTS.glob("product-*.json"), key=lambda p: p.stat().st_mtime)
    draw(json.loads(newest.read_text()), args.out)
    print(f"written: {args.out.name}")


if __name__ == "__main__":
    main()
