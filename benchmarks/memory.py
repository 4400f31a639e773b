"""How much memory does a Lanczos run take, and what happens when there is too little?

Resident peaks (VmHWM), a process for each batch size, of one product (the activations of a batch)
and of a run, against the basis' m · n · bytes. Then a batch that does not fit a limited address
space (RLIMIT_AS): it must be halved, and the process live. Linux only.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import options, problem, save, status, table

from spectra.hessian import HessianOperator, Objective, choose_product
from spectra.krylov import extremes_of, lanczos, random_start

MB = 2**20


def lanczos_run(arch: str, batch: int, steps: int) -> dict[str, Any]:
    """Measure one run over two batches, in this process."""
    model, x, y = problem(arch, 2 * batch)
    objective = Objective.of(model, (x, y), batch_size=batch)
    H = HessianOperator.of(objective, choose_product(objective, path="reverse-over-forward"))
    start = random_start(H.dim, seed=0, probe=0, dtype=H.dtype)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    H @ start
    product = status("VmHWM") - before
    run = lanczos(H, start, steps=steps)
    extremes_of(run)
    peak = status("VmHWM") - before
    formula = run.steps * H.dim * H.dtype.itemsize
    found = {"batch_size": batch, "steps": run.steps, "basis_formula_mb": formula / MB}
    found |= {"one_product_mb": product / MB, "run_mb": peak / MB}
    return found | {"run_over_basis_and_product": peak / (formula + product)}


def starved(arch: str, batch: int, room: int) -> dict[str, Any]:
    """Multiply with a batch that needs more than the room that is left, in this process."""
    model, x, y = problem(arch, batch)
    objective = Objective.of(model, (x, y), batch_size="auto")
    vector = random_start(objective.dim, seed=0, probe=0, dtype=torch.float32)
    truth = objective.recut(batch_size=2).product(vector, "reverse-over-forward")
    before = objective.batch_size
    limit = status("VmSize") + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        product = objective.product(vector, "reverse-over-forward")
        found = {"error": float((product - truth).norm() / truth.norm()), "died": None}
    except (RuntimeError, MemoryError) as reason:
        found = {"error": None, "died": str(reason).splitlines()[0]}
    sizes = {"batch_size_before": before, "batch_size_after": objective.batch_size}
    return {"room_mb": room / MB} | sizes | found


def apart(function: str, *values: object) -> dict[str, Any]:
    """Call a function of this file in a fresh process."""
    command = [sys.executable, __file__, "--child", json.dumps([function, *values])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{function}{values} died:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, help="100, or 20 with --quick")
    parser.add_argument("--batch-sizes", help="8,32, or 8 with --quick")
    parser.add_argument("--samples", type=int, default=128, help="of the batch that does not fit")
    parser.add_argument("--room", type=int, default=300, help="MB that are left for it")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        name, *values = args.child
        print(json.dumps(globals()[name](*values)))
        return
    steps = args.steps or (20 if args.quick else 100)
    sizes = [int(s) for s in (args.batch_sizes or ("8" if args.quick else "8,32")).split(",")]
    runs = [apart("lanczos_run", args.arch, size, steps) for size in sizes]
    backoff = apart("starved", args.arch, args.samples, args.room * MB)
    for rows in (runs, [backoff]):
        table([key.replace("_", " ") for key in rows[0]], [list(row.values()) for row in rows])
    settings = {"arch": args.arch, "dtype": "float32", "product": "reverse-over-forward"}
    results = {"runs": runs, "too_little_memory": backoff}
    print(f"written: {save('memory', args.out, settings, results).name}")


if __name__ == "__main__":
    main()
