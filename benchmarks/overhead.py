"""What share of a ten-class run is not a Hessian-vector product?

All that one class costs beside its products (random starts, Gram-Schmidt, Ritz vectors, bounds,
density, trace) is timed in full at the network's size, with a diagonal operator whose own time is
taken off; products with the class counts of CIFAR-10-LT. A class above `--cap` samples is timed on
so many and extrapolated in proportion, as batches of at most 128 cost.
"""

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from common import clock, interleaved, options, problem, save, table
from torch import Tensor

from spectra import krylov
from spectra.choices import KeptName
from spectra.data import DataSpec
from spectra.data.longtail import long_tail_counts
from spectra.hessian import KeptProducts, Objective

COUNTS = long_tail_counts(5000, 10, DataSpec("cifar10", imbalance="exp", ratio=100.0))
PRODUCT: KeptName = "linearized"
TRACE_PROBES = 10  # as in the analysis: these products cost, and their probes are drawn


def rest_of_a_run(dim: int, steps: int) -> float:
    """Time all that one class costs beside its products, in seconds."""
    diagonal, inside = torch.linspace(-1, 10, dim), 0.0

    def matvec(v: Tensor) -> Tensor:
        nonlocal inside
        begin = clock()
        product = diagonal * v
        inside += clock() - begin
        return product

    A = krylov.SymmetricOperator(matvec, dim, torch.float32)
    begin = clock()
    start = krylov.random_start(dim, seed=0, probe=0, dtype=torch.float32)
    run = krylov.lanczos(A, start, steps=steps)
    ends = krylov.extremes_of(run)
    measure = krylov.SpectralMeasure.from_tridiagonals([run], dim)
    measure.density(measure.symlog_grid())
    measure.mass_below(0.0)
    krylov.lower_bound(ends.lambda_min, ends.lambda_max, dim=dim, steps=steps)
    krylov.posterior_lower_bound([run])
    known = krylov.known_forms(run, probes=TRACE_PROBES, seed=0)
    forms = krylov.quadratic_form_probes(A, probes=TRACE_PROBES, seed=0)
    krylov.trace_estimate(forms, dim, known=known, known_trace=float(run.alphas.sum()))
    return clock() - begin - inside


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cap", type=int, help="largest class timed: 512, or 128 with --quick")
    args = parser.parse_args(arguments)
    cap = args.cap or (128 if args.quick else 512)
    model, x, y = problem(args.arch, cap)
    timed = sorted({min(count, cap) for count in COUNTS})
    whole = Objective.of(model, (x, y))
    dim = whole.dim
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(1))
    kept = KeptProducts(PRODUCT, whole, "double-backward", sizes=(min(32, cap),))
    seconds = {}
    for n in timed:  # one after the other, for one class is kept at a time
        product = partial(kept.product, whole.select(torch.arange(n)), vector)
        seconds |= interleaved({str(n): product}, args.repetitions)
    beside = statistics.median(rest_of_a_run(dim, args.steps) for _ in range(args.repetitions))

    rows = []
    for count in COUNTS:
        n = min(count, cap)
        products = (args.steps + TRACE_PROBES) * seconds[str(n)] * count / n
        rows.append([count, n, products, beside, beside / (beside + products)])
    products, others = (sum(row[i] for row in rows) for i in (2, 3))
    rows.append([sum(COUNTS), "", products, others, others / (others + products)])
    columns, share = ["samples", "timed", "products (s)", "rest (s)", "share of rest"], rows[-1][-1]
    table(columns, rows)
    print(f"beside the products: {share:.2%} of the ten classes' run (goal: under 3 %)")
    settings = {"arch": args.arch, "parameters": dim, "steps": args.steps, "counts": COUNTS}
    settings |= {"batch_size": kept.sizes[0], "trace_probes": TRACE_PROBES}
    settings |= {"extrapolated_above": cap, "repetitions": args.repetitions, "product": PRODUCT}
    classes = [dict(zip(columns, row, strict=True)) for row in rows[:-1]]
    results = {"share": share, "share_of_the_smallest_class": rows[-2][-1], "classes": classes}
    print(f"written: {save('overhead', args.out, settings, results).name}")


if __name__ == "__main__":
    main()
