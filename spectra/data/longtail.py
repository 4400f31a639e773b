"""The long-tail draw of the class-imbalance literature.

    n_c = floor(n_max · f^(c/(C-1)))   (exp),   f = 1 / ratio, n_max = the smallest full class
    n_c = n_max for c < C/2, floor(n_max · f) for the others   (step)

For c = 0..C-1 the samples of class c, in the order of the source, are shuffled by NumPy's legacy
generator and the first n_c are kept. A private ``RandomState`` gives the stream of the released
code's ``np.random.seed`` and leaves the global generator alone.

References:
    Cao et al., 2019, https://arxiv.org/abs/1906.07413
"""

import numpy as np
from numpy.typing import NDArray

from ..errors import SpectraError
from .spec import DataSpec

Integers = NDArray[np.int64]


def long_tail_counts(n_max: int, num_classes: int, spec: DataSpec) -> tuple[int, ...]:
    """Return how many of at most ``n_max`` samples each class keeps, in label order."""
    factor, last = 1.0 / (spec.ratio or 1.0), max(num_classes - 1.0, 1.0)
    if spec.imbalance == "step":
        shares = [1.0 if c < num_classes // 2 else factor for c in range(num_classes)]
    else:
        shares = [factor ** (c / last) for c in range(num_classes)]
    return tuple(int(n_max * share + 1e-9) for share in shares)  # 49 · (1/49) rounds to below 1


def draw(labels: Integers, num_classes: int, spec: DataSpec) -> tuple[Integers, Integers]:
    """Choose the samples of a training set, class after class.

    Args:
        labels: (N,) labels in the order of the source.
        num_classes: Number of classes C.
        spec: Imbalance, ratio and seed; without imbalance all samples are kept, unshuffled.

    Returns:
        Rows of the source (n,), and each one's position within its class (n,). The latter is the
        same however the classes of a source are interleaved.

    Raises:
        SpectraError: If a class is empty or would keep no sample.
    """
    full = np.bincount(labels, minlength=num_classes)
    tailed = spec.imbalance is not None
    kept = long_tail_counts(int(full.min()), num_classes, spec) if tailed else tuple(full.tolist())
    if min(kept) == 0:
        empty = int(full.argmin()) if full.min() == 0 else kept.index(0)
        remedy = f"ask for a ratio up to {full.min()}" if full.min() else "complete the data"
        raise SpectraError(
            f"{spec}: class {empty} of {num_classes} keeps none of its {full[empty]} samples and "
            f"its Hessian would be 0/0; {remedy}"
        )
    generator = np.random.RandomState(spec.seed)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(full)[:-1])
    positions = [np.arange(size, dtype=np.int64) for size in full]
    if tailed:
        for order in positions:
            generator.shuffle(order)
    positions = [order[:keep] for order, keep in zip(positions, kept, strict=True)]
    rows = [rows[order] for rows, order in zip(by_class, positions, strict=True)]
    return np.concatenate(rows).astype(np.int64), np.concatenate(positions)
