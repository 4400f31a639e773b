"""How many gradients does one Hessian-vector product cost, ours and the peers'?

All multiply the same Hessian (mean cross-entropy, the same batches) with the same vector. `error`
is the relative distance in float64, over a few samples, from plain double backward.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from common import interleaved, options, problem, save, table
from torch import Tensor, nn

from spectra.hessian.objective import Objective
from spectra.hessian.products import PRODUCTS, ProductName

Product = Callable[[Tensor], Tensor]
Batches = list[tuple[Tensor, Tensor]]
# Path, channels-last, batch norm written out: ours is channels-last with torch's batch norm.
VARIANTS: tuple[tuple[ProductName, bool, bool], ...] = (
    ("reverse-over-forward", True, False),
    ("reverse-over-forward", True, True),
    ("reverse-over-forward", False, False),
    ("double-backward", True, True),
    ("double-backward", False, False),
)


def ours(model: nn.Module, batches: Batches) -> dict[str, Product]:
    """Give the library's own paths, and variations of their layout and batch norm."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    dtype, size = inputs.dtype, len(batches[0][0])
    objective = Objective.of(model, (inputs, targets), dtype=dtype, batch_size=size)
    found: dict[str, Product] = {path: partial(objective.product, path=path) for path in PRODUCTS}
    for path, channels_last, affine in VARIANTS:
        network = copy.deepcopy(model)
        if affine:
            write_out_batch_norm(network)
        layout = "" if channels_last else ", contiguous"
        name = path + layout + (", affine norm" if affine else "")
        found[name] = partial(by_hand, path, *laid_out(network, batches, channels_last))
    return found


class Affine(nn.Module):
    """Evaluation-mode batch norm, written out as a multiplication and an addition."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("mean", norm.running_mean)
        self.register_buffer("var", norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(self.var + self.eps) * self.weight
        shift = self.bias - self.mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))


def write_out_batch_norm(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, Affine(child))


def laid_out(network: nn.Module, batches: Batches, last: bool = True) -> tuple[nn.Module, Batches]:
    layout = torch.channels_last if last else torch.contiguous_format
    parts = [(x.contiguous(memory_format=layout), y) for x, y in batches]
    return network.to(memory_format=layout), parts


def by_hand(path: ProductName, network: nn.Module, batches: Batches, vector: Tensor) -> Tensor:
    """Multiply without the library's preparation and bookkeeping."""
    at = {name: value.detach() for name, value in network.named_parameters()}
    pieces = vector.split([value.numel() for value in at.values()])
    pairs = zip(at.items(), pieces, strict=True)
    direction = {name: torch.empty_like(p).copy_(v.view(p.shape)) for (name, p), v in pairs}

    def loss(x: Tensor, y: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(network, parameters, (x,))
        return F.cross_entropy(logits, y, reduction="sum")

    total = torch.zeros_like(vector)
    for x, y in batches:
        parts = PRODUCTS[path](partial(loss, x, y), at, direction)
        total += torch.cat([parts[name].reshape(-1) for name in at])
    return total / sum(len(y) for _, y in batches)


def gradient(model: nn.Module, batches: Batches) -> Callable[[], None]:
    """Differentiate once, as everyone does: eager, channels-last, the model's own batch norm."""
    network, batches = laid_out(copy.deepcopy(model), batches)

    def run() -> None:
        for x, y in batches:
            torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()))

    return run


def curvlinops(model: nn.Module, batches: Batches) -> Product:
    from curvlinops import HessianLinearOperator

    setting = model, nn.CrossEntropyLoss(), list(model.parameters()), batches
    return HessianLinearOperator(*setting, check_deterministic=False).__matmul__


def pyhessian(model: nn.Module, batches: Batches) -> Product:
    from pyhessian import hessian

    H = hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)

    def product(v: Tensor) -> Tensor:
        pieces = zip(v.split([p.numel() for p in H.params]), H.params, strict=True)
        _, parts = H.dataloader_hv_product([piece.view_as(p) for piece, p in pieces])
        return torch.cat([part.reshape(-1) for part in parts])

    return product


def hessian_eigenthings(model: nn.Module, batches: Batches) -> Product:
    from hessian_eigenthings import HessianOperator

    loss = lambda network, batch: F.cross_entropy(network(batch[0]), batch[1])  # noqa: E731
    return HessianOperator(model, batches, loss).matvec


PEERS = (curvlinops, pyhessian, hessian_eigenthings)


def ways(model: nn.Module, batches: Batches) -> dict[str, Product]:
    """Give all ways there are on this machine, each with a model of its own."""
    model = copy.deepcopy(model).to(batches[0][0].dtype)
    found = ours(model, batches)
    for peer in PEERS:
        try:
            found[peer.__name__] = peer(copy.deepcopy(model), batches)
        except ImportError as error:
            print(f"{peer.__name__} is left out: {error}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, help="512, or 256 with --quick")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args(arguments)
    samples = args.samples or (256 if args.quick else 512)
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph")  # PyHessian

    model, x, y = problem(args.arch, samples)
    size = min(args.batch_size, samples)
    batches = list(zip(x.split(size), y.split(size), strict=True))
    dim = sum(p.numel() for p in model.parameters())
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(1))
    few = [(x[:2].double(), y[:2]), (x[2:4].double(), y[2:4])]
    exact = {name: way(vector.double()) for name, way in ways(model, few).items()}
    truth = exact["double-backward, contiguous"]
    errors = {name: float((v - truth).norm() / truth.norm()) for name, v in exact.items()}

    tasks = {"gradient": gradient(model, batches)}
    tasks |= {name: partial(way, vector) for name, way in ways(model, batches).items()}
    seconds = interleaved(tasks, args.repetitions)
    one = seconds["gradient"]
    rows = {
        name: {"seconds": time, "gradients": time / one, "error": errors.get(name)}
        for name, time in seconds.items()
    }
    columns = ["one pass", "seconds", "÷ gradient", "error"]
    table(columns, [[name, *row.values()] for name, row in rows.items()])
    settings = {"arch": args.arch, "parameters": dim, "samples": samples, "dtype": "float32"}
    settings |= {"batch_size": size, "repetitions": args.repetitions}
    print(f"written: {save('product', args.out, settings, rows).name}")


if __name__ == "__main__":
    main()
