"""The learning rate against the published numbers (paper.md 4.3)."""

import pytest

from spectra.training.schedules import learning_rate, proportions


def test_two_hundred_epochs_follow_the_published_learning_rates() -> None:
    warmup, drops = proportions(200)
    assert (warmup, drops) == (5, (160, 180))
    published = {1: 0.02, 4: 0.08, 5: 0.1, 6: 0.1, 160: 0.1, 161: 1e-3, 180: 1e-3, 181: 1e-5}
    for epoch, expected in {**published, 200: 1e-5}.items():
        lr = learning_rate(epoch, base=0.1, warmup=warmup, drops=drops)
        assert lr == pytest.approx(expected, rel=1e-12)


def test_shorter_runs_keep_the_proportions() -> None:
    assert proportions(40) == (1, (32, 36))
    assert learning_rate(1, base=0.1, warmup=0, drops=()) == 0.1
