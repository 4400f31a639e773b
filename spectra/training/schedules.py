"""What changes from epoch to epoch: the learning rate and the class weights (epochs count from 1).

    lr(e) = base · min(1, e/warmup) · factor^(number of drops before e)

A drop d takes effect in epoch d + 1. The reference schedule has 200 epochs, a warm-up of 5, and two
drops by a hundred after 160 and 180; shorter ones keep its proportions. Deferred re-weighting
(DRW) weighs all classes alike up to the first drop and by effective numbers from then on.

References:
    Cao et al., LDAM and deferred re-weighting, https://arxiv.org/abs/1906.07413
"""

from collections.abc import Sequence

from ..losses import effective_number_weights


def warmup_epochs(epochs: int) -> int:
    """Give the length of the warm-up, 5/200 of the run and at least one epoch."""
    return max(1, round(epochs * 5 / 200))


def drop_epochs(epochs: int) -> tuple[int, ...]:
    """Give the last epochs before the two drops, at 160/200 and 180/200 of the run."""
    return round(epochs * 160 / 200), round(epochs * 180 / 200)


def learning_rate(
    epoch: int, *, base: float, warmup: int, drops: Sequence[int], factor: float = 0.01
) -> float:
    """Give the learning rate of an epoch.

    Args:
        epoch: counted from 1.
        base: learning rate between the warm-up and the first drop.
        warmup: epochs of linear warm-up; 0 for none.
        drops: last epochs before a drop.
        factor: what a drop multiplies by.
    """
    ramp = min(1.0, epoch / warmup) if warmup else 1.0
    dropped: int = sum(epoch > drop for drop in drops)
    return float(base * ramp * factor**dropped)


def deferred_weights(
    epoch: int, *, counts: Sequence[int], start: int, beta: float = 0.9999
) -> tuple[float, ...] | None:
    """Give the class weights of an epoch under DRW.

    Args:
        epoch: counted from 1.
        counts: training samples of each class, (C,).
        start: last epoch with equal weights.
        beta: β of the effective number of samples.

    Returns:
        Class weights that sum to C, or None up to `start`.
    """
    return effective_number_weights(counts, beta) if epoch > start else None
