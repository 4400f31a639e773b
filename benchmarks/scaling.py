"""How do time and memory grow with samples, parameters and Krylov steps?

    samples     seconds of one product, a small network, 10³ to 10⁵ random images
    parameters  a Lanczos run over a few samples, perceptrons of 10⁴ to 10⁸ parameters and ResNet-50
                (25 million), in a process each: seconds a step and peak memory, the basis of more
                than 4 GB dropped
    steps       seconds of Lanczos beside its products, at the size of ResNet-32

A slope of 1 in the log-log fit is linear growth.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CLOCK, clock, interleaved, options, save, status, table, wait
from torch import nn

from spectra.devices import device_name, find_device
from spectra.doctor import certify
from spectra.hessian import Objective, hessian_operator
from spectra.krylov import Place, SymmetricOperator, lanczos, random_start, ritz_vectors
from spectra.models import ModelSpec

INPUTS, CLASSES, FEW = 256, 10, 8
STEPS = 10  # of the runs over parameters
MOST = 4e9  # bytes of a basis that is kept


def perceptron(parameters: int) -> nn.Module:
    """Build two hidden layers of the width that comes nearest to a number of parameters."""
    linear = INPUTS + CLASSES
    width = round((-linear + (linear**2 + 4 * parameters) ** 0.5) / 2)
    return nn.Sequential(
        nn.Linear(INPUTS, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, CLASSES),
    )


def run(size: str, device: torch.device) -> dict[str, Any]:
    """Take ten steps of Lanczos with one network and certify λmin, in this process."""
    torch.manual_seed(0)
    if size == "resnet50":
        model = ModelSpec("resnet50", CLASSES).build(seed=0)
        x = torch.randn(FEW, 3, 224, 224)
    else:
        model, x = perceptron(int(size)), torch.randn(FEW, INPUTS)
    before = status("VmRSS")
    H = hessian_operator(model.eval(), (x, torch.arange(FEW)), device=device, products=STEPS)
    place: Place = "none" if 400 * H.dim > MOST else "device"  # bytes of a basis of 100 steps
    start = random_start(H.dim, seed=0, probe=0, dtype=H.dtype, device=H.device)
    H @ start
    wait()
    begin = clock()
    found = lanczos(H, start, steps=STEPS, basis=place)
    wait()
    seconds = (clock() - begin) / STEPS
    if found.basis is None:
        (low,) = ritz_vectors(H, start, found, ends=(0,))
    else:
        low = found.vector(0)
    certificate = certify(H, low)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else status("VmHWM") - before
    return {
        "parameters": H.dim,
        "seconds_per_step": seconds,
        "peak_gb": peak / 1e9,
        "basis_for_100_steps": place,
        "rayleigh_quotient": certificate.rayleigh_quotient,
        "negative_curvature": certificate.negative_curvature,
    }


def over_samples(counts: Sequence[int], device: torch.device, repetitions: int) -> dict[str, Any]:
    """Time one product of a small network over more and more images."""
    count, draw = max(counts), torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 1, 8, 8, generator=draw), torch.arange(count) % CLASSES
    objective = Objective.of(ModelSpec("digits", CLASSES).build(seed=0), (x, y), device=device)
    vector = random_start(objective.dim, seed=0, probe=0, dtype=torch.float32, device=device)
    tasks = {}
    for n in counts:
        part = objective.select(torch.arange(n))
        tasks[str(n)] = partial(part.product, vector, "reverse-over-forward")
    seconds = interleaved(tasks, repetitions)
    return {"parameters": objective.dim, "seconds": seconds, "slope": slope(seconds)}


def over_steps(
    counts: Sequence[int], dim: int, device: torch.device, repetitions: int
) -> dict[str, Any]:
    """Time Lanczos alone, with a diagonal matrix, over more and more steps."""
    diagonal = torch.linspace(-1, 10, dim, device=device)
    A = SymmetricOperator(lambda v: diagonal * v, dim, torch.float32, device)
    start = random_start(dim, seed=0, probe=0, dtype=torch.float32, device=device)
    tasks = {str(m): partial(lanczos, A, start, steps=m) for m in counts}
    seconds = interleaved(tasks, repetitions)
    return {"dim": dim, "seconds": seconds, "slope": slope(seconds)}


def slope(seconds: dict[str, float]) -> float:
    """Fit log time against log size."""
    sizes = np.log([float(size) for size in seconds])
    return float(np.polyfit(sizes, np.log(list(seconds.values())), 1)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one size, in a process of its own
    args = parser.parse_args(arguments)
    device = find_device(args.device)
    if args.run:
        print(json.dumps(run(args.run, device)))
        return
    samples = [30, 100] if args.quick else [10**3, 10**4, 10**5]
    sizes = ["10000", "100000"] if args.quick else ["1e4", "1e5", "1e6", "1e7", "1e8", "resnet50"]
    steps = [5, 10] if args.quick else [25, 50, 100, 200]
    results: dict[str, Any] = {
        "samples": over_samples(samples, device, args.repetitions),
        "steps": over_steps(steps, 10_000 if args.quick else 464_154, device, args.repetitions),
        "parameters": {},
    }
    for size in sizes:
        name = size if size == "resnet50" else str(int(float(size)))
        command = [sys.executable, str(Path(__file__)), "--device", args.device, "--run", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results["parameters"][name] = json.loads(done.stdout.splitlines()[-1])
    perceptrons = {
        str(row["parameters"]): row["seconds_per_step"]
        for name, row in results["parameters"].items()
        if name != "resnet50"
    }
    results["slope_over_parameters"] = slope(perceptrons)

    for what in ("samples", "steps"):
        rows = results[what]["seconds"].items()
        table([what, "seconds"], [[n, t] for n, t in rows])
        print(f"slope {results[what]['slope']:.2f}")
    columns = ["parameters", "seconds_per_step", "peak_gb", "basis_for_100_steps"]
    rows = results["parameters"].items()
    table(["network", *columns], [[n, *(row[c] for c in columns)] for n, row in rows])
    print(f"slope {results['slope_over_parameters']:.2f}")
    settings = {"few": FEW, "steps": STEPS, "device": device_name(device), "clock": CLOCK}
    print(f"written: {save('scaling', args.out, settings, results).name}")


if __name__ == "__main__":
    main()
