"""How much faster is a product that several processes share?

In one run of N processes the first one multiplies alone over all samples, while the others wait,
and then all of them over their shares: `alone / shared` is the gain, N at best.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from common import interleaved, options, problem, save, table

from spectra.devices import device_name, find_device
from spectra.hessian import HessianOperator, Objective, choose_product
from spectra.hessian.shares import assist, led
from spectra.krylov import random_start
from spectra.processes import Processes


def share(args: argparse.Namespace) -> None:
    """Take part in the products, as one of the processes that torchrun has started."""
    processes = Processes.start()
    assert processes is not None
    device = find_device(processes.device(args.device))
    model, x, y = problem(args.arch, args.samples)
    objective = Objective.of(model, (x, y), device=device, batch_size=args.batch_size)
    if not processes.leads:
        assist(objective, None, processes)
        processes.close(0)
    choice = choose_product(objective, path="reverse-over-forward")
    vector = random_start(objective.dim, seed=0, probe=0, dtype=torch.float32, device=device)
    tasks = {
        "alone": partial(HessianOperator.of(objective, choice).matvec, vector),
        "shared": partial(HessianOperator.of(led(objective, processes), choice).matvec, vector),
    }
    products = {name: task() for name, task in tasks.items()}
    # By the wall: the others' work counts, too.
    seconds = interleaved(tasks, args.repetitions, time.perf_counter)
    apart = float((products["shared"] - products["alone"]).norm() / products["alone"].norm())
    found = {"relative_difference": apart, "device": device_name(device)}
    print(json.dumps(seconds | found))
    processes.tell(None)
    processes.close(0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--samples", type=int, default=512, help="in all (512)")
    parser.add_argument("--batch-size", type=int, default=32, help="of each process (32)")
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="numbers to try (2)")
    args = parser.parse_args(arguments)
    if "RANK" in os.environ:
        share(args)
        return
    given = list(arguments if arguments is not None else sys.argv[1:])
    runs = {}
    for count in args.processes:
        run = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command = [sys.executable, "-m", *run, str(Path(__file__)), *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs[str(count)] = json.loads(done.stdout.splitlines()[-1])
        runs[str(count)]["gain"] = runs[str(count)]["alone"] / runs[str(count)]["shared"]
    columns = ["alone", "shared", "gain", "relative_difference"]
    table(["processes", *columns], [[n, *(r[c] for c in columns)] for n, r in runs.items()])
    settings = {"arch": args.arch, "samples": args.samples, "batch_size": args.batch_size}
    settings["repetitions"] = args.repetitions
    settings["device"] = next(iter(runs.values()))["device"]
    path = save("processes", args.out, settings, runs, clock_name="perf_counter")
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
