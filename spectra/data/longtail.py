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


def long_tail_counts(
    n_max: int, num_classes: int, imbalance: str, ratio: float | int
) -> tuple[int, ...]:
    """Return how many samples each class keeps, in label order.

    Args:
        n_max: Samples of the largest class.
        num_classes: Number of classes C.
        imbalance: "exp" or "step".
        ratio: Largest over smallest class count.
    """
    factor = 1.0 / ratio
    if imbalance == "step":
        head = num_classes // 2
        return (n_max,) * head + (int(n_max * factor),) * (num_classes - head)
    last = max(num_classes - 1.0, 1.0)
    return tuple(int(n_max * factor ** (c / last)) for c in range(num_classes))


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
    by_class = np.argsort(labels, kind="stable").astype(np.int64)
    full = np.bincount(labels, minlength=num_classes)
    if not full.all():
        raise SpectraError(
            f"{spec.name}: no training sample has class {int(full.argmin())} of {num_classes}; "
            "its Hessian would be 0/0: complete the data"
        )
    kept = tuple(full.tolist())
    if spec.imbalance is not None and spec.ratio is not None:
        kept = long_tail_counts(int(full.min()), num_classes, spec.imbalance, spec.ratio)
        if min(kept) == 0:
            raise SpectraError(
                f"{spec}: class {kept.index(0)} would keep none of its "
                f"{int(full[kept.index(0)])} samples; choose a ratio of at most {int(full.min())}"
            )
    generator = np.random.RandomState(spec.seed)
    positions = []
    for size, keep in zip(full, kept, strict=True):
        order = np.arange(size, dtype=np.int64)
        if spec.imbalance is not None:
            generator.shuffle(order)
        positions.append(order[:keep])
    starts = np.cumsum(full) - full
    rows = [by_class[start + p] for start, p in zip(starts, positions, strict=True)]
    return np.concatenate(rows), np.concatenate(positions)
