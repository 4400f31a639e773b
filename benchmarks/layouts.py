"""Which layout of images makes products fast: channels-last or contiguous, tried kernels or not?

A linearized product over one kept batch, of each size that is asked for, with the network in either
layout; on a GPU also with cuDNN trying its kernels (`benchmark`) before it settles on one. In units
of the gradient of the same samples, channels-last, and in sample-products a second.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from common import fallen_back, interleaved, options, problem, save, table
from product import gradient
from torch import Tensor

from spectra.devices import device_name, find_device
from spectra.hessian import KeptProducts, Objective

LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


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
            with patch("spectra.hessian.objective.memory_format", lambda _, to=layout: to):
                objective = Objective.of(
                    *(model, (x, y)), dtype=dtype, device=device, batch_size=size, tf32=args.tf32
                )
            vector = torch.randn(objective.dim, generator=torch.Generator().manual_seed(1))
            kept = KeptProducts("linearized", objective, "double-backward", sizes=[size])
            way = partial(kept.product, objective, vector.to(device, dtype))
            title = f"{name}, kernels tried" if tries else name
            before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, tries
            products[title] = way()  # kernels are chosen, the graph is recorded
            torch.backends.cudnn.benchmark = before
            tasks[title] = way
            rows[f"{size}, {title}"] = {"note": note} if (note := fallen_back(way)) else {}
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
