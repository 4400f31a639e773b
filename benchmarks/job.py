"""What does the whole job take, ten classes, beside the released protocol on the same tensors?

Ours is `analyze` with its defaults: for each class the examination, one Lanczos run, residuals,
trace and density with errors, and the certificate in float64. The released protocol is timed with
PyHessian's own product, power iteration and Hutchinson trace; the Lanczos recurrence of its wheel
is broken, so that its 100 steps count as as many of its products, without the Gram-Schmidt passes.
Class counts are CIFAR-10-LT's at ratio 100, scaled unless `--classes` takes some of them whole;
images are random unless `--data` names CIFAR.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import CLOCK, clock, options, save, table, wait
from torch import Tensor, nn

from spectra import Plan, analyze, load_checkpoint
from spectra.data import DataSpec, Samples, open_data
from spectra.data.longtail import long_tail_counts
from spectra.devices import arithmetic, device_name, find_device
from spectra.results import Analysis

COUNTS = long_tail_counts(5000, 10, DataSpec("cifar10", imbalance="exp", ratio=100.0))
CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "cifar10-lt-ce-drw-sgd.pt"


class Counter:
    """Counts products and the samples that they pass over, as a progress bar is told of them."""

    def __init__(self) -> None:
        self.products = self.samples = 0

    def begin(self, products: int, work: int) -> None:
        pass

    def tick(self, label: str, products: int, work: int) -> None:
        self.products += products
        self.samples += work


def samples_of(counts: dict[int, int], data: str | None) -> Samples:
    """Make random images, or take the first of each class of the real ones."""
    if data is not None:
        spec = DataSpec("cifar10", imbalance="exp", ratio=100.0)
        whole = open_data(spec, path=data)
        rows = [torch.nonzero(whole.targets == c)[:n, 0] for c, n in counts.items()]
        return whole.select(torch.cat(rows))
    draw = torch.Generator().manual_seed(0)
    total = sum(counts.values())
    images = torch.randint(256, (total, 3, 32, 32), dtype=torch.uint8, generator=draw)
    each = torch.tensor(list(counts.values()))
    targets = torch.repeat_interleave(torch.tensor(list(counts)), each)
    names, mean, std = tuple("0123456789"), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    return Samples(images, targets, 10, names, mean, std)


def ours(plan: Plan, samples: Samples) -> tuple[float, Counter, Analysis]:
    counter = Counter()
    start = clock()
    analysis = analyze(load_checkpoint(CHECKPOINT), plan, train=samples, progress=counter)
    wait()
    return clock() - start, counter, analysis


def released(samples: Samples, steps: int, device: torch.device) -> tuple[float, dict[str, int]]:
    """Time the three parts of the released analysis, class by class; count their products."""
    from pyhessian import hessian

    counts = {"power": 0, "trace": 0, "lanczos": 0, "samples": 0}
    network: nn.Module = copy.deepcopy(load_checkpoint(CHECKPOINT).model).eval().to(device)
    start = clock()
    for c in samples.targets.unique().tolist():
        part = samples.select(torch.nonzero(samples.targets == c)[:, 0])
        x, y = part.prepared(device=device), part.targets.to(device)
        batches = list(zip(x.split(128), y.split(128), strict=True))
        cuda = device.type == "cuda"
        H = hessian(network, nn.CrossEntropyLoss(), dataloader=batches, cuda=cuda)
        product: Callable[[list[Tensor]], Any] = H.dataloader_hv_product
        now = "power"

        def counted(v: list[Tensor], n: int = len(y), product: Any = product) -> Any:
            counts[now] += 1  # noqa: B023
            counts["samples"] += n
            return product(v)

        H.dataloader_hv_product = counted
        torch.manual_seed(0)
        H.eigenvalues(maxIter=100, tol=1e-3, top_n=1)
        now = "trace"
        H.trace(maxIter=100, tol=1e-3)
        now = "lanczos"
        v = [torch.randn_like(p) for p in H.params]
        for _ in range(steps):
            counted(v)
    wait()
    return clock() - start, counts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, help="of ten scaled classes: 248, --quick 20")
    parser.add_argument("--classes", help="these alone, but whole: 8,9")
    parser.add_argument("--steps", type=int, help="100, or 5 with --quick")
    parser.add_argument("--data", help="folder of CIFAR-10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--product", default="auto")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--alone", action="store_true", help="leave the released protocol out")
    args = parser.parse_args(arguments)
    samples = args.samples or (20 if args.quick else 248)
    steps = args.steps or (5 if args.quick else 100)
    device = find_device(args.device)
    if args.classes:
        counts = {c: COUNTS[c] for c in map(int, args.classes.split(","))}
    else:
        counts = {c: max(1, round(n * samples / sum(COUNTS))) for c, n in enumerate(COUNTS)}
    held = samples_of(counts, args.data)
    plan = Plan(
        per_class=True, steps=steps, device=args.device, product=args.product, tf32=args.tf32
    )
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph")  # PyHessian

    seconds, counter, analysis = ours(plan, held)
    rows: dict[str, dict[str, Any]] = {
        "spectra": {
            "seconds": seconds,
            "products": counter.products,
            "sample_products": counter.samples,
            "product": analysis.settings["product"],
            "classes": len(analysis.spectra),
            "failed": [s.label for s in analysis.spectra if s.error],
            "notes": list(analysis.notes),
        }
    }
    if not args.alone:
        try:
            with arithmetic(device):
                took, found = released(held, steps, device)
        except ImportError as error:
            print(f"the released protocol is left out: {error}")
        else:
            done = sum(found[part] for part in ("power", "trace", "lanczos"))
            rows["released"] = {"seconds": took, "products": done, **found}
            rows["released"]["sample_products"] = found["samples"]
    for row in rows.values():
        row["ratio"] = row["seconds"] / seconds
        row["milliseconds_per_sample_product"] = 1e3 * row["seconds"] / row["sample_products"]
    columns = ["seconds", "ratio", "products", "sample_products", "milliseconds_per_sample_product"]
    table(["job", *columns], [[n, *(row[c] for c in columns)] for n, row in rows.items()])
    settings = {"samples": len(held), "counts": counts, "steps": steps, "clock": CLOCK}
    settings |= {"device": device_name(device), "tf32": args.tf32}
    settings |= {"images": "random" if args.data is None else "CIFAR-10"}
    settings |= {"ended": time.strftime("%Y-%m-%d")}
    print(f"written: {save('job', args.out, settings, rows).name}")


if __name__ == "__main__":
    main()
