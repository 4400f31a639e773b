"""The order of CIFAR-10's official files, on which the long-tail draw rests.

The Hugging Face hub's copy holds the five training files one after the other, but begins with the
fourth. A draw by position would then keep other images, and call them by the same positions.
"""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
# Images of each class, airplane to truck, in data_batch_1 to data_batch_5: no two files agree.
_BATCHES = (
    (1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981),
    (984, 1007, 1010, 995, 1010, 988, 1008, 1026, 987, 985),
    (994, 1042, 965, 997, 990, 1029, 978, 1015, 961, 1029),
    (1003, 963, 1041, 976, 1004, 1021, 1004, 981, 1024, 983),
    (1014, 1014, 952, 1016, 997, 1025, 980, 977, 1003, 1022),
)


def official_order(labels: Integers) -> Integers:
    """Give the rows of a copy of the training set in the order of the official files.

    Args:
        labels: (N,) of the copy.

    Returns:
        (N,) rows; those of the copy as they lie where it is not made of the five files: sorted by
        class, for example, where only the order within a class matters.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    if len(labels) != sum(map(sum, _BATCHES)):
        return rows
    counts = [tuple(np.bincount(part, minlength=10).tolist()) for part in np.split(labels, 5)]
    if sorted(counts) != sorted(_BATCHES):
        return rows
    parts = dict(zip(counts, np.split(rows, 5), strict=True))
    return np.concatenate([parts[batch] for batch in _BATCHES])
