"""Which parts of a study single processes compute, and which all of them together.

A class of five images costs eight processes as much as one: each passes a batch that is not full,
and all wait for their sum. So parts that would leave the batches of a share unfilled are given to
one process each, to be computed side by side.
"""

from __future__ import annotations

from collections.abc import Mapping

# Samples of a full batch; and in samples, too, what a product costs beside its own (launches), and
# what its sum over processes costs. Guesses, on which nothing but time depends.
_FULL = {"cpu": 32, "cuda": 512}
_PER_PRODUCT = {"cpu": 4, "cuda": 64}
_PER_SUM = {"cpu": 2, "cuda": 32}


def share_out(sizes: Mapping[str, int], device: str, processes: int) -> dict[str, int]:
    """Give to single processes the parts that are too small to be shared by all.

    Args:
        sizes: samples of each part, by its label.
        device: type of device that products run on.
        processes: how many there are; 0 leads.

    Returns:
        The process for each such part; the largest that are small are shared where that ends
        sooner.
    """
    kind = device if device in _FULL else "cpu"
    full, extra = _FULL[kind], _PER_PRODUCT[kind]
    small = [label for label, size in sizes.items() if size < full * processes]
    small.sort(key=lambda label: -sizes[label])
    best: tuple[float, dict[str, int]] = float("inf"), {}
    for shared in range(len(small) + 1):
        shares = (-(-sizes[label] // processes) for label in small[:shared])
        together = sum(share + extra + _PER_SUM[kind] for share in shares)
        if together >= best[0]:
            break
        loads, owners = [0] * processes, {}
        for label in small[shared:]:
            owners[label] = loads.index(min(loads))
            loads[owners[label]] += sizes[label] + extra
        best = min(best, (together + max(loads), owners), key=lambda found: found[0])
    return best[1]
