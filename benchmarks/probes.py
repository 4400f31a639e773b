"""Are products with several vectors faster at once than one after the other?

Several probes of one class share what does not depend on the vector. At once they are a batch of
vectors (`torch.vmap`) of a plain path, or of a linearisation (`torch.func.linearize` of the
gradient); one after the other they are products by these, or by the kept linearisation that
`spectra` computes with. All over the same batch of samples, in units of as many gradients.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from common import interleaved, options, peak_bytes, problem, save, table
from product import gradient

from spectra.devices import device_name, find_device
from spectra.hessian import KeptProducts, Objective
from spectra.hessian.products import Parameters, reverse_over_forward


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--probes", type=int, default=3, help="vectors (3)")
    parser.add_argument("--batch-size", type=int, help="samples (32, or 8 with --quick)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    device = find_device(args.device)
    size = args.batch_size or (8 if args.quick else 32)
    model, x, y = problem(args.arch, size, device)
    objective = Objective.of(model, (x, y), dtype=torch.float32, device=device, batch_size=size)
    draw = torch.Generator().manual_seed(1)
    vectors = [torch.randn(objective.dim, generator=draw).to(device) for _ in range(args.probes)]
    rows, at = objective.rows, objective.rows.here()
    (f,) = objective._functions()
    stacked = {name: torch.stack([rows.split(v)[name] for v in vectors]) for name in at}
    kept = KeptProducts("linearized", objective, "double-backward", sizes=[size])

    with warnings.catch_warnings(action="ignore"):  # of torch.fx, about its own constants
        _, push = torch.func.linearize(torch.func.grad(f), at)

    def single(product: Callable[[Parameters], Parameters]) -> torch.Tensor:
        pieces = [{n: s[i] for n, s in stacked.items()} for i in range(args.probes)]
        return torch.stack([rows.flatten(product(v)) / objective.normalizer for v in pieces])

    def at_once(product: Callable[[Parameters], Parameters]) -> torch.Tensor:
        products = torch.vmap(product)(stacked)
        pieces = [{n: p[i] for n, p in products.items()} for i in range(args.probes)]
        return torch.stack([rows.flatten(v) / objective.normalizer for v in pieces])

    plain = partial(reverse_over_forward, f, at)
    tasks: dict[str, Callable[[], torch.Tensor]] = {
        "reverse-over-forward": partial(single, plain),
        "reverse-over-forward, at once": partial(at_once, plain),
        "linearized": lambda: torch.stack([kept.product(objective, v) for v in vectors]),
        "torch.func.linearize": partial(single, push),
        "torch.func.linearize, at once": partial(at_once, push),
    }
    found: dict[str, Any] = {}
    with objective.arithmetic():
        expected = tasks["reverse-over-forward"]()
        runnable = {"gradients": gradient(model, [(x, y)])}
        for name, task in tasks.items():
            try:
                gap = float((task() - expected).norm() / expected.norm())
            except (RuntimeError, NotImplementedError) as error:
                found[name] = {"error": str(error).splitlines()[0]}
                continue
            found[name] = {"relative_difference": gap, "peak_bytes": peak_bytes(task)}
            runnable[name] = task
        seconds = interleaved(runnable, args.repetitions)
    one = seconds.pop("gradients")
    for name, took in seconds.items():
        found[name] |= {"seconds": took, "of_gradients": took / (args.probes * one)}
    columns = ["of_gradients", "relative_difference", "peak_bytes"]
    table(
        [f"{args.probes} products", *columns],
        [[name, *(row.get(c) for c in columns)] for name, row in found.items()],
    )
    settings = {"arch": args.arch, "samples": size, "probes": args.probes}
    settings |= {"repetitions": args.repetitions, "device": device_name(device)}
    print(f"written: {save('probes', args.out, settings, found).name}")


if __name__ == "__main__":
    main()
