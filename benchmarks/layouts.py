"""Which layout of images makes products fast: channels-last or contiguous, tried kernels or not?

A linearized product over one kept batch, of each size that is asked for, with the network in either
layout; on a GPU also with cuDNN trying its kernels (`benchmark`) before it settles on one. In units
of the gradient of the same samples, channels-last, and in sample-products a second.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from common import fallen_back, interleaved, options, problem, save, table
from product import gradient
from torch import Tensor, nn

from spectra.devices import device_name, find_device
from spectra.hessian import KeptProducts, Objective

LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def laid_out(
    layout: torch.memory_format,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    size: int,
    tf32: bool,
) -> Objective:
    """Make an objective whose images and filters lie as they are told to."""
    with ExitStack() as stack:
        for room in ("objective", "network"):  # of the images, and of the filters
            name = f"spectra.hessian.{room}.memory_format"
            stack.enter_context(patch(name, lambda _: layout))
        device = data[0].device
        return Objective.of(model, data, dtype=dtype, device=device, batch_size=size, tf32=tf32)


def filters(objective: Objective) -> str:
    """Tell how the filters lie, of those that have two layouts."""
    weights = (p for p in objective.network.parameters() if p.dim() == 4 and p.shape[1] > 1)
    layouts = {
        name for p in weights for name, way in LAYOUTS.items() if p.is_contiguous(memory_format=way)
    }
    return " and ".join(sorted(layouts))


def trying(tries: bool, way: Callable[[], Tensor]) -> Tensor:
    """Run with cuDNN trying its kernels, or not."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, tries
    try:
        return way()
    finally:
        torch.backends.cudnn.benchmark = before


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--batch-sizes", default="", help="32; on a GPU 512,64; 4 with --quick")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    device = find_device(args.device)
    usual = "4" if args.quick else "512,64" if device.type == "cuda" else "32"
    sizes = [int(size) for size in (args.batch_sizes or usual).split(",")]
    dtype = getattr(torch, args.dtype)
    tried = (False, True) if device.type == "cuda" else (False,)
    rows: dict[str, Any] = {}
    for size in sizes:
        model, x, y = problem(args.arch, size, device)
        model, x = model.to(dtype), x.to(dtype)
        tasks: dict[str, Callable[[], Any]] = {"gradient": gradient(model, [(x, y)])}
        products: dict[str, Tensor] = {}
        for (name, layout), tries in product(LAYOUTS.items(), tried):
            objective = laid_out(layout, model, (x, y), dtype, size, args.tf32)
            vector = torch.randn(objective.dim, generator=torch.Generator().manual_seed(1))
            kept = KeptProducts("linearized", objective, "double-backward", sizes=[size])
            way = partial(kept.product, objective, vector.to(device, dtype))
            title = f"{name}, kernels tried" if tries else name
            tasks[title] = partial(trying, tries, way)
            products[title] = tasks[title]()  # kernels are chosen, the graph is recorded
            row = rows[f"{size}, {title}"] = {"filters": filters(objective)}
            if note := fallen_back(way):
                row["note"] = note
        seconds = interleaved(tasks, args.repetitions)
        first = products["channels-last"]
        for title, found in products.items():
            rows[f"{size}, {title}"] |= {
                "seconds": seconds[title],
                "gradients": seconds[title] / seconds["gradient"],
                "samples_per_second": size / seconds[title],
                "relative_difference": float((found - first).norm() / first.norm()),
            }
    columns = ["seconds", "gradients", "samples_per_second", "relative_difference", "note"]
    table(["batch", *columns], [[n, *(row.get(c, "") for c in columns)] for n, row in rows.items()])
    settings = {"arch": args.arch, "dtype": args.dtype, "tf32": args.tf32, "batch_sizes": sizes}
    settings |= {"repetitions": args.repetitions, "device": device_name(device)}
    print(f"written: {save('layouts', args.out, settings, rows).name}")


if __name__ == "__main__":
    main()
