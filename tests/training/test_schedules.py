"""Learning rate, radius and noise against the published numbers (paper.md 4.3, 4.5, 6.1)."""

import math

import pytest

from spectra.training.schedules import cosine_rate, noise, proportions, radius, stepped_rate


def test_two_hundred_epochs_follow_the_published_learning_rates() -> None:
    warmup, drops = proportions(200)
    assert (warmup, drops) == (5, (160, 180))
    published = {1: 0.02, 4: 0.08, 5: 0.1, 6: 0.1, 160: 0.1, 161: 1e-3, 180: 1e-3, 181: 1e-5}
    for epoch, expected in {**published, 200: 1e-5}.items():
        lr = stepped_rate(epoch, base=0.1, warmup=warmup, drops=drops)
        assert lr == pytest.approx(expected, rel=1e-12)


def test_shorter_runs_keep_the_proportions() -> None:
    assert proportions(40) == (1, (32, 36))
    assert stepped_rate(1, base=0.1, warmup=0, drops=()) == 0.1


def test_the_cosine_starts_at_the_base_and_would_reach_zero_after_the_last_epoch() -> None:
    rates = [cosine_rate(e, base=0.2, warmup=0, epochs=90) for e in range(1, 92)]
    assert rates[0] == 0.2
    assert rates[45] == pytest.approx(0.1)  # half of the epochs are done
    assert rates[30] == pytest.approx(0.15)  # cos(π/3) = 1/2
    assert rates[90] == pytest.approx(0, abs=1e-15)
    assert rates == sorted(rates, reverse=True)
    assert cosine_rate(1, base=0.2, warmup=4, epochs=90) == pytest.approx(0.05)


def test_a_linear_radius_reaches_its_end_in_the_last_epoch() -> None:
    ends = [radius(e, start=0.05, end=0.8, epochs=200) for e in (1, 200)]
    assert ends == pytest.approx([0.05, 0.8])
    middle = radius(101, start=0.05, end=0.8, epochs=201)
    assert middle == pytest.approx(0.425)
    assert radius(1, start=0.3, end=0.8, epochs=1) == 0.3


def test_radius_steps_start_in_the_epoch_that_they_name() -> None:
    steps = ((6, 0.1), (61, 0.5))
    found = [radius(e, start=0.05, steps=steps, epochs=90) for e in (1, 5, 6, 60, 61, 90)]
    assert found == [0.05, 0.05, 0.1, 0.1, 0.5, 0.5]
    assert radius(150, start=0.5) == 0.5


def test_noise_grows_along_a_cosine_to_one_plus_its_growth() -> None:
    grown = [noise(e, start=2e-3, growth=15.0, epochs=200) for e in (0, 100, 200)]
    assert grown == pytest.approx([2e-3, 2e-3 * 8.5, 2e-3 * 16])
    quarter = noise(50, start=1.0, growth=2.0, epochs=200)
    assert quarter == pytest.approx(1 + (1 - math.sqrt(0.5)))
