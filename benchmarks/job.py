"""What does the whole job take, ten classes, beside the released protocol on the same tensors?

Ours is `analyze` with its defaults: for each class the examination, one Lanczos run, residuals,
trace and density with errors, and the certificate in float64. The released protocol is timed with
PyHessian's own product, power iteration and Hutchinson trace; the Lanczos recurrence of its wheel
is broken, so that its 100 steps count as as many of its products, without the Gram-Schmidt passes.
The two take turns, class by class: a busy minute hits both. Class counts are CIFAR-10-LT's at ratio
100, scaled unless `--classes` takes some of them whole, or `--cap` the first images of each; images
are random unless `--data` names CIFAR. The goal is 2.2 times the ratio of the sample-products,
PyHessian's in all beside ours. `beside_products` is the share of ours that lies outside of
products, in whose first tracer and compiler run; on a GPU each product is waited for, to know it.
"""

import copy
import gc
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import CLOCK, clock, options, save, table, wait
from torch import Tensor, nn

from spectra import Checkpoint, Plan, analyze, load_checkpoint
from spectra.data import DataSpec, Samples, open_data
from spectra.data.longtail import long_tail_counts
from spectra.devices import arithmetic, device_name, find_device
from spectra.hessian import KeptProducts, Objective
from spectra.results import Analysis

COUNTS = long_tail_counts(5000, 10, DataSpec("cifar10", imbalance="exp", ratio=100.0))
CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "cifar10-lt-ce-drw-sgd.pt"


class Turns:
    """Counts products and the samples that they pass over; lets another have its turn before each.

    `analyze` tells it of both, as it would a progress bar.
    """

    def __init__(self, sizes: dict[int, int], other: "Released | None") -> None:
        self.sizes = sizes  # of the classes
        self.other = other  # what is done first with a class
        self.products = self.samples = 0
        self.seconds = self.between = 0.0  # that the other took, that nobody is charged for
        self._seen: set[int] = set()

    def begin(self, products: int, work: int) -> None:
        pass

    def tick(self, label: str, products: int, work: int) -> None:
        c = int(label.removeprefix("class "))
        self.products += products
        self.samples += products * self.sizes[c]
        if self.other is not None and c not in self._seen:
            wait()
            start = clock()
            self.other(c)
            wait()
            done = clock()
            self.other.tidy()
            self.seconds += done - start
            self.between += clock() - done
        self._seen.add(c)


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


class Inside:
    """Counts the seconds that pass inside products, wherever in the run they are made."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def timed(self, product: Callable[..., Any]) -> Callable[..., Any]:
        def within(*given: Any, **named: Any) -> Any:
            if self._depth:  # a product within a product
                return product(*given, **named)
            wait()
            self._depth, start = 1, clock()
            try:
                return product(*given, **named)
            finally:
                wait()
                self._depth = 0
                self.seconds += clock() - start

        return within


def ours(
    checkpoint: Checkpoint, plan: Plan, samples: Samples, turns: Turns
) -> tuple[float, float, Analysis]:
    """Give the seconds of the whole, those beside its products, and what was found."""
    inside = Inside()
    with (
        patch.object(Objective, "product", inside.timed(Objective.product)),
        patch.object(KeptProducts, "product", inside.timed(KeptProducts.product)),
    ):
        start = clock()
        analysis = analyze(checkpoint, plan, train=samples, progress=turns)
        wait()
    seconds = clock() - start - turns.seconds - turns.between
    return seconds, seconds - inside.seconds, analysis


class Released:
    """The three parts of the released analysis, class by class; their products are counted."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        steps: int,
        device: torch.device,
        precision: str = "ieee",
    ) -> None:
        from pyhessian import hessian

        self.hessian, self.samples, self.steps, self.device = hessian, samples, steps, device
        self.precision = precision
        self.network: nn.Module = copy.deepcopy(model).eval().to(device)
        self.counts = {"power": 0, "trace": 0, "lanczos": 0, "samples": 0}

    def tidy(self) -> None:
        """Let go of the graphs that `create_graph` leaves behind."""
        self.network.zero_grad(set_to_none=True)
        gc.collect()

    def __call__(self, c: int) -> None:
        part = self.samples.select(torch.nonzero(self.samples.targets == c)[:, 0])
        x, y = part.prepared(device=self.device), part.targets.to(self.device)
        batches = list(zip(x.split(128), y.split(128), strict=True))
        with arithmetic(self.device, precision=self.precision):
            H = self.hessian(
                self.network,
                nn.CrossEntropyLoss(),
                dataloader=batches,
                cuda=self.device.type == "cuda",
            )
            product: Callable[[list[Tensor]], Any] = H.dataloader_hv_product
            now = "power"

            def counted(v: list[Tensor]) -> Any:
                self.counts[now] += 1
                self.counts["samples"] += len(y)
                return product(v)

            H.dataloader_hv_product = counted
            torch.manual_seed(0)
            H.eigenvalues(maxIter=100, tol=1e-3, top_n=1)
            now = "trace"
            H.trace(maxIter=100, tol=1e-3)
            now = "lanczos"
            v = [torch.randn_like(p) for p in H.params]
            for _ in range(self.steps):
                counted(v)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="of colour images of 32x32")
    parser.add_argument("--samples", type=int, help="of ten scaled classes: 248, --quick 20")
    parser.add_argument("--classes", help="these alone, unscaled: 8,9")
    parser.add_argument("--cap", type=int, help="so many of each class at most, unscaled")
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
    if args.classes or args.cap:
        chosen = map(int, args.classes.split(",")) if args.classes else range(len(COUNTS))
        counts = {c: min(COUNTS[c], args.cap or COUNTS[c]) for c in chosen}
    else:
        counts = {c: max(1, round(n * samples / sum(COUNTS))) for c, n in enumerate(COUNTS)}
    held, checkpoint = samples_of(counts, args.data), load_checkpoint(args.checkpoint)
    plan = Plan(
        per_class=True, steps=steps, device=args.device, product=args.product, tf32=args.tf32
    )
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph")  # PyHessian

    other: Released | None = None
    if not args.alone:
        try:
            precision = "tf32" if args.tf32 else "ieee"  # alike on both sides
            other = Released(checkpoint.model, held, steps, device, precision)
        except ImportError as error:
            print(f"the released protocol is left out: {error}")
    turns = Turns(counts, other)
    seconds, beside, analysis = ours(checkpoint, plan, held, turns)
    rows: dict[str, dict[str, Any]] = {
        "spectra": {
            "seconds": seconds,
            "beside_products": beside / seconds,
            "products": turns.products,
            "sample_products": turns.samples,
            "product": analysis.settings["product"],
            "classes": len(analysis.spectra),
            "failed": [s.label for s in analysis.spectra if s.error],
            "notes": list(analysis.notes),
        }
    }
    if other is not None:
        found = other.counts
        done = sum(found[part] for part in ("power", "trace", "lanczos"))
        rows["released"] = {"seconds": turns.seconds, "products": done, **found}
        rows["released"]["sample_products"] = found["samples"]
        rows["released"]["goal"] = 2.2 * found["samples"] / turns.samples
    for row in rows.values():
        row["ratio"] = row["seconds"] / seconds
        row["milliseconds_per_sample_product"] = 1e3 * row["seconds"] / row["sample_products"]
    columns = ["seconds", "ratio", "products", "sample_products", "milliseconds_per_sample_product"]
    table(["job", *columns], [[n, *(row[c] for c in columns)] for n, row in rows.items()])
    settings = {"samples": len(held), "counts": counts, "steps": steps, "clock": CLOCK}
    settings |= {"device": device_name(device), "tf32": args.tf32}
    settings |= {"checkpoint": Path(args.checkpoint).name}
    settings |= {"images": "random" if args.data is None else "CIFAR-10"}
    settings |= {"ended": time.strftime("%Y-%m-%d")}
    print(f"written: {save('job', args.out, settings, rows).name}")


if __name__ == "__main__":
    main()
