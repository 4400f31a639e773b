"""How many gradients does one Hessian-vector product cost, ours and the peers'?

All multiply the same Hessian (mean cross-entropy) with the same vector, channels-last where a
peer keeps the layout. Plain paths and peers take batches of `--batch-size`; linearized and compiled
products their own, smaller ones, "nothing kept" with all that they could keep computed again.
`error` is the relative distance in float64, over a few samples, from double backward (where a plain
path is compiled as a whole, in float32 and over all); `peak` what a product takes beside model and
data, with what it keeps.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from common import fallen_back, interleaved, options, peak_bytes, problem, save, table
from torch import Tensor, nn

from spectra.choices import KeptName, PathName
from spectra.devices import arithmetic, device_name, find_device
from spectra.hessian import KeptProducts, Objective
from spectra.hessian.products import PRODUCTS, Parameters

Product = Callable[[Tensor], Tensor]
Batches = list[tuple[Tensor, Tensor]]
KEPT: tuple[tuple[str, KeptName, int | None], ...] = (  # title, name, bytes that may be kept
    ("kept-graph", "kept-graph", None),
    ("linearized", "linearized", None),
    ("linearized, nothing kept", "linearized", 0),
    ("compiled", "compiled", None),
    ("compiled, nothing kept", "compiled", 0),
)


def laid_out(model: nn.Module, batches: Batches) -> tuple[nn.Module, Batches]:
    """Copy a model and its batches as channels-last."""
    layout = torch.channels_last
    network = copy.deepcopy(model).to(batches[0][0].dtype).to(memory_format=layout)
    return network, [(x.contiguous(memory_format=layout), y) for x, y in batches]


def ours(
    model: nn.Module, batches: Batches, sizes: Sequence[int], plain: bool
) -> dict[str, Product]:
    """Give the library's own ways."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    objective = Objective.of(
        model,
        (inputs, targets),
        dtype=inputs.dtype,
        device=inputs.device,
        batch_size=len(batches[0][0]),
    )
    found: dict[str, Product] = {path: partial(objective.product, path=path) for path in PRODUCTS}
    for title, name, budget in KEPT:
        if plain and name == "compiled":  # the compiler takes a minute
            continue
        kept = KeptProducts(name, objective, "double-backward", sizes=sizes, budget=budget)
        found[title] = kept.product
    return {
        title: way if title in PRODUCTS else partial(way, objective) for title, way in found.items()
    }


def gradient(model: nn.Module, batches: Batches, compiled: bool = False) -> Callable[[], None]:
    """Differentiate once, as everyone does: channels-last, the model's own batch norm."""
    network, batches = laid_out(model, batches)
    forward = torch.compile(network, dynamic=False) if compiled else network

    def run() -> None:
        for x, y in batches:
            torch.autograd.grad(F.cross_entropy(forward(x), y), list(network.parameters()))

    return run


def whole(model: nn.Module, batches: Batches, path: PathName) -> Product:
    """Compile a plain path as one function of parameters, vector and batch.

    Forward over reverse is the formula of curvlinops 3.0.1, whose own product torch 2.13 does not
    compile: tracing ends where it splits lists by the entries of a tensor, at `no_grad` within
    `vmap`, and at `jacrev` of a partial function.
    """
    network, batches = laid_out(model, batches)
    at = {name: p.detach() for name, p in network.named_parameters()}

    def multiply(at: Parameters, vector: Parameters, x: Tensor, y: Tensor) -> Parameters:
        def loss(parameters: Parameters) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(network, parameters, (x,)), y)

        return PRODUCTS[path](loss, at, vector)

    compiled = torch.compile(multiply, dynamic=False, fullgraph=True)
    total = sum(len(y) for _, y in batches)

    def product(v: Tensor) -> Tensor:
        pieces = v.split([p.numel() for p in at.values()])
        vector = {n: w.view_as(p) for (n, p), w in zip(at.items(), pieces, strict=True)}
        parts = (
            torch.cat([h.reshape(-1) for h in compiled(at, vector, x, y).values()]) * len(y)
            for x, y in batches
        )
        return sum(parts, torch.zeros_like(v)) / total

    return product


def curvlinops(model: nn.Module, batches: Batches) -> Product:
    from curvlinops import HessianLinearOperator

    model, batches = laid_out(model, batches)
    setting = model, nn.CrossEntropyLoss(), list(model.parameters()), batches
    return HessianLinearOperator(*setting, check_deterministic=False).__matmul__


def pyhessian(model: nn.Module, batches: Batches) -> Product:
    from pyhessian import hessian

    model, batches = laid_out(model, batches)
    cuda = batches[0][0].is_cuda
    H = hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=cuda)

    def product(v: Tensor) -> Tensor:
        pieces = zip(v.split([p.numel() for p in H.params]), H.params, strict=True)
        _, parts = H.dataloader_hv_product([piece.view_as(p) for piece, p in pieces])
        return torch.cat([part.reshape(-1) for part in parts])

    return product


def hessian_eigenthings(model: nn.Module, batches: Batches) -> Product:
    from hessian_eigenthings import HessianOperator

    model, batches = laid_out(model, batches)
    loss = lambda network, batch: F.cross_entropy(network(batch[0]), batch[1])  # noqa: E731
    return HessianOperator(model, batches, loss).matvec


PEERS: dict[str, Callable[[nn.Module, Batches], Product]] = {
    "curvlinops": curvlinops,
    "pyhessian": pyhessian,
    "hessian_eigenthings": hessian_eigenthings,
}
WHOLE: tuple[PathName, ...] = ("forward-over-reverse", "reverse-over-forward")


def theirs(model: nn.Module, batches: Batches) -> dict[str, Product]:
    """Give the peers that are installed."""
    found = {}
    for name, peer in PEERS.items():
        try:
            found[name] = peer(model, batches)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, help="512, or 64 with --quick")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--kept-batch-size", type=int, help="of ours (32; on a GPU 512)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-compile", action="store_true", help="leave out what compiles")
    args = parser.parse_args(arguments)
    device = find_device(args.device)
    samples = args.samples or (64 if args.quick else 512)
    plain = args.no_compile or args.quick
    size = min(args.batch_size, samples)
    own = min(args.kept_batch_size or (512 if device.type == "cuda" else 32), samples)
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph")  # PyHessian

    model, x, y = problem(args.arch, samples, device)
    batches = list(zip(x.split(size), y.split(size), strict=True))
    dim = sum(p.numel() for p in model.parameters())
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(1)).to(device)
    few = [(x[:2].double(), y[:2]), (x[2:4].double(), y[2:4])]
    with arithmetic(device):
        exact = ours(model, few, [2], plain) | theirs(model.double(), few)
        results = {name: way(vector.double()) for name, way in exact.items()}
        truth = results["double-backward"]
        errors = {name: float((v - truth).norm() / truth.norm()) for name, v in results.items()}

        model = model.float()
        ways = ours(model, batches, [own], plain) | theirs(model, batches)
        if not plain:
            ways |= {f"{path}, whole compiled": whole(model, batches, path) for path in WHOLE}
        tasks = {"gradient": gradient(model, batches)}
        if not plain:
            tasks["gradient, compiled"] = gradient(model, batches, compiled=True)
        tasks |= {name: partial(way, vector) for name, way in ways.items()}
        whole_ones = [name for name in ways if "whole" in name]
        if whole_ones:
            truth = ways["double-backward"](vector)
        for name in whole_ones:
            errors[name] = float((ways[name](vector) - truth).norm() / truth.norm())
        rows = {}
        for name, task in tasks.items():
            start = time.perf_counter()
            peak = peak_bytes(task)
            first = time.perf_counter() - start
            rows[name] = {"error": errors.get(name), "peak": peak, "first": first}
        seconds = interleaved(tasks, args.repetitions)
    one = seconds["gradient"]
    for name, row in rows.items():
        row |= {"seconds": seconds[name], "gradients": seconds[name] / one}
        row["peak_mb"], row["first_seconds"] = row.pop("peak") / 1e6, row.pop("first")
    columns = ["seconds", "gradients", "peak_mb", "first_seconds", "error"]
    table(["one pass", *columns], [[n, *(row[c] for c in columns)] for n, row in rows.items()])
    for name, way in ways.items():
        if note := fallen_back(way):
            rows[name]["note"] = note
            print(f"{name}: {note}")
    settings = {"arch": args.arch, "parameters": dim, "samples": samples, "dtype": "float32"}
    settings |= {"batch_size": size, "kept_batch_size": own, "repetitions": args.repetitions}
    settings["device"] = device_name(device)
    print(f"written: {save('product', args.out, settings, rows).name}")


if __name__ == "__main__":
    main()
