"""The learning rate and the class weights against the published numbers (paper.md 4.2, 4.3)."""

import pytest

from spectra.training.schedules import (
    deferred_weights,
    drop_epochs,
    learning_rate,
    warmup_epochs,
)

CIFAR10_LT = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)


def test_two_hundred_epochs_follow_the_published_learning_rates() -> None:
    warmup, drops = warmup_epochs(200), drop_epochs(200)
    assert (warmup, drops) == (5, (160, 180))
    published = {1: 0.02, 4: 0.08, 5: 0.1, 6: 0.1, 160: 0.1, 161: 1e-3, 180: 1e-3, 181: 1e-5}
    for epoch, expected in {**published, 200: 1e-5}.items():
        lr = learning_rate(epoch, base=0.1, warmup=warmup, drops=drops)
        assert lr == pytest.approx(expected, rel=1e-12)


def test_shorter_runs_keep_the_proportions() -> None:
    assert (warmup_epochs(40), drop_epochs(40)) == (1, (32, 36))
    assert learning_rate(1, base=0.1, warmup=0, drops=()) == 0.1


def test_reweighting_starts_after_the_first_drop_with_the_published_weights() -> None:
    assert deferred_weights(160, counts=CIFAR10_LT, start=160) is None
    weights = deferred_weights(161, counts=CIFAR10_LT, start=160)
    published = (0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993)
    assert weights == pytest.approx(published, abs=6e-4)
    assert sum(weights or ()) == pytest.approx(10)
