"""The learning rate of an epoch; epochs count from 1, a drop d takes effect in epoch d + 1.

    lr(e) = base · min(1, e/warmup) · factor^(number of drops before e)

References:
    Cao et al., LDAM and deferred re-weighting, https://arxiv.org/abs/1906.07413
"""

from collections.abc import Sequence


def proportions(epochs: int) -> tuple[int, tuple[int, ...]]:
    """Give warm-up and drops as the reference does for 200 epochs: 5, and 160 and 180."""
    drops = round(epochs * 160 / 200), round(epochs * 180 / 200)
    return max(1, round(epochs * 5 / 200)), drops


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
