"""What changes from epoch to epoch: learning rate, radius and class weights.

Epochs count from 1; a drop d takes effect in epoch d + 1. Of E epochs, with a base rate and radius:

    steps    lr(e) = base · min(1, e/warmup) · factor^(number of drops before e)
    cosine   lr(e) = base · min(1, e/warmup) · (1 + cos(π·(e − 1)/E))/2
    radius   constant; or linear from the first epoch's to the last's; or by steps (from epoch, ρ)
    noise    start · (1 + growth·(1 − cos(π·e/E))/2); pgd's is start · lr(e)/base

References:
    Cao et al., LDAM and deferred re-weighting, https://arxiv.org/abs/1906.07413
    Rangwani et al., Escaping saddle points (radii), https://arxiv.org/abs/2212.13827
    Bisla et al., Low-pass filtering SGD (noise), https://arxiv.org/abs/2201.08025
"""

import math
from collections.abc import Sequence


def proportions(epochs: int) -> tuple[int, tuple[int, ...]]:
    """Give warm-up and drops as the reference does for 200 epochs: 5, and 160 and 180.

    In the shortest runs as well the first drop comes before the second. Below 60 epochs the
    warm-up is one epoch, at the full rate: none.
    """
    second = round(epochs * 180 / 200)
    first = max(1, min(round(epochs * 160 / 200), second - 1))
    return max(1, round(epochs * 5 / 200)), (first, second)


def stepped_rate(
    epoch: int, *, base: float, warmup: int, drops: Sequence[int], factor: float = 0.01
) -> float:
    """Give the learning rate of an epoch with drops.

    Args:
        epoch: counted from 1.
        base: learning rate between the warm-up and the first drop.
        warmup: epochs of linear warm-up; 0 for none.
        drops: last epochs before a drop.
        factor: what a drop multiplies by.
    """
    dropped: int = sum(epoch > drop for drop in drops)
    return float(base * _ramp(epoch, warmup) * factor**dropped)


def cosine_rate(epoch: int, *, base: float, warmup: int, epochs: int) -> float:
    """Give the learning rate of an epoch on a cosine that would reach 0 after the last one."""
    return base * _ramp(epoch, warmup) * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def radius(
    epoch: int,
    *,
    start: float,
    end: float | None = None,
    steps: Sequence[tuple[int, float]] = (),
    epochs: int = 1,
) -> float:
    """Give SAM's radius of an epoch.

    Args:
        epoch: counted from 1.
        start: radius of the first epoch.
        end: radius of the last epoch, reached linearly; None: no such change.
        steps: pairs (from epoch, radius), ascending, that replace the radius before them.
        epochs: length of the run.
    """
    if end is not None:
        return start + (end - start) * (epoch - 1) / max(epochs - 1, 1)
    return [start, *(value for first, value in steps if epoch >= first)][-1]


def noise(epoch: int, *, start: float, growth: float, epochs: int) -> float:
    """Give the noise of an epoch, which grows to start · (1 + growth) in the last one."""
    return start * (1 + growth * (1 - math.cos(math.pi * epoch / epochs)) / 2)


def _ramp(epoch: int, warmup: int) -> float:
    return min(1.0, epoch / warmup) if warmup else 1.0
