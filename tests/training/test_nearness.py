"""Two updates: how far apart they are, and what is near enough."""

import math

import pytest
import torch

from spectra.training.nearness import as_near, difference


def test_rounding_alone_is_no_difference() -> None:
    values = [torch.randn(1000, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    moved = [v + 0.1 for v in values]
    rounded = [m * (1 + 1e-7) for m in moved]
    assert difference(rounded, moved, values) == 0
    assert difference([m + 1e-3 for m in moved], moved, values) == pytest.approx(0.01, rel=0.01)
    infinite = [torch.tensor([torch.inf])]
    assert difference(infinite, infinite, infinite) == 0
    assert difference([torch.tensor([torch.nan])], values[:1], values[:1]) == torch.inf


@pytest.mark.parametrize(
    ("seen", "found", "plain", "near"),
    [
        ((0.03, 1e-6), (0.11, 1e-3), (0.14, 1e-3), True),
        ((0.0, 0.0), (0.20, 1e-3), (0.14, 1e-3), True),
        ((0.03, 1e-6), (0.30, 1e-3), (0.14, 1e-3), False),  # more than twice as far
        ((0.12, 1e-6), (0.18, 1e-3), (0.14, 1e-3), False),  # a fault that bf16 hides
        ((0.03, 0.02), (0.11, 1e-3), (0.14, 1e-3), False),  # of another kind of value
        ((0.03, 1e-6), (0.11, 0.05), (0.14, 1e-3), False),
        ((0.0, 0.0), (0.4, 0.0), (0.4, 0.0), False),  # bf16 itself is no update
        ((0.0, 0.0), (math.inf, 0.0), (math.inf, 0.0), False),
        ((math.inf, 0.0), (0.1, 0.0), (0.1, 0.0), False),
    ],
)
def test_a_compiled_update_in_bf16_is_as_near_float32_as_the_plain_one(
    seen: tuple[float, ...], found: tuple[float, ...], plain: tuple[float, ...], near: bool
) -> None:
    assert as_near(seen, found, plain) is near
