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
    begun = [torch.tensor([torch.inf, 2.0])]  # and then became finite
    assert difference([torch.tensor([1.0, 5.0])], [torch.tensor([2.0, 0.0])], begun) > 1
    assert difference([torch.tensor([torch.nan])], values[:1], values[:1]) == torch.inf


@pytest.mark.parametrize(
    ("seen", "found", "plain", "near"),
    [
        ((1e-12, 0.0), (0.11, 1e-3), (0.14, 1e-3), True),
        ((1e-12, 0.0), (0.20, 1e-3), (0.14, 1e-3), True),
        ((1e-12, 0.0), (0.30, 1e-3), (0.14, 1e-3), False),  # more than twice as far
        ((1e-5, 0.0), (0.11, 1e-3), (0.14, 1e-3), False),  # a fault that bf16 hides
        ((0.0, 1e-5), (0.11, 1e-3), (0.14, 1e-3), False),  # of another kind of value
        ((1e-12, 0.0), (0.11, 0.05), (0.14, 1e-3), False),
        ((0.0, 0.0), (0.5, 0.0), (0.45, 0.0), True),  # whether that hides a fault, others judge
        ((0.0, 0.0), (math.inf, 0.0), (math.inf, 0.0), False),
        ((math.inf, 0.0), (0.1, 0.0), (0.1, 0.0), False),
    ],
)
def test_a_compiled_update_in_bf16_is_as_near_float64_as_the_plain_one(
    seen: tuple[float, ...], found: tuple[float, ...], plain: tuple[float, ...], near: bool
) -> None:
    assert as_near(seen, found, plain, precision="bf16") is near


@pytest.mark.parametrize(
    ("seen", "found", "plain", "near"),
    [
        (0.0, 0.03, 0.02, True),
        (1e-10, 9e-4, 1e-5, True),
        (1e-10, 2e-3, 1e-5, False),  # neither near nor where rounding takes the plain one
        (1e-5, 9e-4, 1e-5, False),  # a fault that float32 hides
        (0.0, 0.05, 0.02, False),
    ],
)
def test_one_in_float32_is_as_near_float64_as_the_plain_one(
    seen: float, found: float, plain: float, near: bool
) -> None:
    for precision in ("float32", "tf32"):
        ten = 10 if precision == "tf32" else 1  # its bound is so many times as wide
        each = ([ten * value] for value in (seen, found, plain))
        assert as_near(*each, precision=precision) is near
