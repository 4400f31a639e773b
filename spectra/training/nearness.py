"""How far two updates of the same weights are apart, and how far they may be."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Largest relative difference from the plain update, by the arithmetic: of the same kernels
# replayed, which may add in another order, and of compiled ones.
REPLAYED = {"float64": 1e-9, "float32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}
COMPILED = {"float64": 1e-9, "float32": 1e-3, "tf32": 1e-2, "bf16": 3e-2}
# Of `as_near`: how many times as far from float64's the compiled update may be as the plain one,
# and by how much the two may differ there; and how far the plain one hides no fault.
AS_NEAR, UNSEEN, ROUGH = 2, 1e-6, 0.3


def difference(
    found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]
) -> float:
    """Measure how far some tensors ended from where they should have.

    Args:
        found: where they are.
        expected: where they should be.
        before: where they were.

    Returns:
        ‖found − expected‖ / ‖expected − before‖ of the floating ones (‖expected‖ where it was
        infinite before), less what rounding at the size of those that differ explains; infinite for
        a NaN, or for integers or infinities that differ.
    """
    gap = step = size = 0.0
    eps = 0.0
    for a, b, old in zip(found, expected, before, strict=True):
        if torch.equal(a, b):
            counts = b.is_floating_point() and bool(torch.isfinite(b - old).all())
            step = math.hypot(step, float((b - old).double().norm()) if counts else 0.0)
            continue
        if not a.is_floating_point() or not bool(torch.isfinite(a - b).all()):
            return math.inf
        gap = math.hypot(gap, float((a - b).double().norm()))
        moved = torch.where(torch.isfinite(old), b - old, b)  # pgd's last norm begins at infinity
        step = math.hypot(step, float(moved.double().norm()))
        size, eps = math.hypot(size, float(b.double().norm())), torch.finfo(a.dtype).eps
    excess = max(gap - 4 * eps * size, 0.0)
    if excess == 0.0:
        return 0.0
    return excess / step if step > 0 else math.inf


def as_near(
    seen: Sequence[float], found: Sequence[float], plain: Sequence[float], *, precision: str
) -> bool:
    """Tell whether a compiled update is about as good as the plain one of its precision.

    Rounding carries some activations over the kinks of a network, which moves its gradient by far
    more than rounding does, and by how much depends on the batch: 2 to 15 % in bf16, and up to 5 %
    between two sound ways in float32 (ResNet-32 in its first steps). So both are measured from the
    plain update in float64, where two sound ways agree, and the compiled one may be at most twice
    as far. A fault that all precisions have shows in float64; one of the program for this precision
    alone has to be larger than its rounding, which is for the caller to judge by `ROUGH`: a climb
    by SAM's radius multiplies it (ResNet-32 on CIFAR-100-LT in bf16, last batch of the first epoch:
    40 % of the momenta's step at a radius of 0.8, 22 to 34 % at 0.08, 15 % at 0.008).

    Args:
        seen: distances from the plain update in float64, one for each kind of value that an update
            moves: of the compiled one in float64.
        found: of the compiled one in its own precision.
        plain: of the plain one in that precision.
        precision: as a recipe names it.
    """
    return all(
        near <= max(COMPILED[precision], AS_NEAR * rough) < math.inf and same <= UNSEEN
        for same, near, rough in zip(seen, found, plain, strict=True)
    )


def gaps(
    found: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[Tensor]],
    before: Sequence[Sequence[Tensor]],
) -> list[float]:
    """Measure the difference of each kind of value that an update moves: weights, momenta, ..."""
    return [difference(*kinds) for kinds in zip(found, expected, before, strict=True)]
