"""What does the time of a product go into: convolutions, or what is beside them?

The profiler's self time of every operation, over one product in each way and over one gradient, as
shares of the whole. "compiled" fuses what is no convolution into kernels that the profiler counts
with their callers. A product at its floor is six convolution passes, a gradient three.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from common import fallen_back, interleaved, options, problem, save, table
from product import gradient
from torch.profiler import ProfilerActivity, profile

from spectra.choices import KeptName
from spectra.devices import arithmetic, device_name, find_device
from spectra.hessian import KeptProducts, Objective

_SHOWN = 8  # operations that are named
_CONVOLUTION = re.compile("conv|fprop|dgrad|wgrad", re.IGNORECASE)  # cuDNN's kernels, too


def parts_of(task: Callable[[], Any], activity: ProfilerActivity) -> dict[str, float]:
    """Give the share of every operation, the longest first, of a task that has run before."""
    with profile(activities=[activity]) as profiler:
        task()
    took: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        on_gpu = activity is ProfilerActivity.CUDA
        took[event.key] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(took.values())
    return {name: took[name] / total for name in sorted(took, key=took.__getitem__, reverse=True)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, help="256, or 32 with --quick")
    parser.add_argument("--batch-size", type=int, help="32; on a GPU 512")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-compile", action="store_true", help="leave out what compiles")
    args = parser.parse_args(arguments)
    device = find_device(args.device)
    samples = args.samples or (32 if args.quick else 256)
    size = min(args.batch_size or (512 if device.type == "cuda" else 32), samples)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU

    model, x, y = problem(args.arch, samples, device)
    objective = Objective.of(model, (x, y), dtype=torch.float32, device=device, batch_size=size)
    vector = torch.randn(objective.dim, generator=torch.Generator().manual_seed(1)).to(device)
    batches = list(zip(x.split(size), y.split(size), strict=True))
    tasks: dict[str, Callable[[], Any]] = {"gradient": gradient(model, batches)}
    names: list[KeptName] = ["linearized"]
    if not (args.no_compile or args.quick):
        names.append("compiled")
    for name in names:
        kept = KeptProducts(name, objective, "double-backward", sizes=[size])
        tasks[name] = partial(kept.product, objective, vector)
    rows: dict[str, Any] = {}
    with arithmetic(device):
        seconds = interleaved(tasks, args.repetitions)
        for name, task in tasks.items():
            shares = parts_of(task, activity)
            convolutions = sum(v for key, v in shares.items() if _CONVOLUTION.search(key))
            named = dict(list(shares.items())[:_SHOWN])
            rows[name] = {"seconds": seconds[name], "convolutions": convolutions, "shares": named}
    for name, row in rows.items():
        row["gradients"] = row["seconds"] / seconds["gradient"]
        if note := fallen_back(tasks[name]):
            row["note"] = note
            print(f"{name}: {note}")
        print(f"{name}: {row['gradients']:.3g} gradients, {row['convolutions']:.0%} convolutions")
        table(["operation", "share"], [[key, f"{v:.1%}"] for key, v in row["shares"].items()])
    settings = {"arch": args.arch, "samples": samples, "dtype": "float32", "batch_size": size}
    settings |= {"repetitions": args.repetitions, "device": device_name(device)}
    print(f"written: {save('parts', args.out, settings, rows).name}")


if __name__ == "__main__":
    main()
