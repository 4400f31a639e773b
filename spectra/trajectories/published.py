"""What was published of curvature: |λmin|/λmax of a class's loss over the epochs, ends at the end.

CIFAR-10-LT (exponential, ratio 100), ResNet-32, CE+DRW, 200 epochs, with SGD and with SAM (radius
0.5, of the released run script). Ratios are read off the figure to about ±0.003, ends are printed
in another; the released code computes such values with augmentation re-drawn in every product. They
belong to that run and to no other.

References:
    Rangwani et al., Escaping saddle points, the dynamics figure and that of the densities,
    https://arxiv.org/abs/2212.13827
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spectra.data import DataSpec
from spectra.errors import SpectraError

REWEIGHTED_AFTER = 160  # last epoch before the deferred re-weighting of that run
EPOCHS = (10, 50, 100, 160, 170, 190, 200)
NONCONVEXITY = {  # step -> class -> values at EPOCHS
    "sgd": {
        0: (0.143, 0.053, 0.053, 0.040, 0.080, 0.083, 0.077),
        2: (0.132, 0.061, 0.058, 0.146, 0.094, 0.112, 0.104),
        5: (0.261, 0.089, 0.082, 0.094, 0.480, 0.780, 0.955),
        7: (0.285, 0.140, 0.110, 0.106, 0.977, 0.980, 0.983),
        8: (0.469, 0.185, 0.953, 0.989, 0.991, 0.996, 0.992),
    },
    "sam": {
        0: (0.180, 0.095, 0.058, 0.051, 0.060, 0.059, 0.060),
        2: (0.230, 0.140, 0.101, 0.070, 0.083, 0.078, 0.078),
        5: (0.169, 0.203, 0.167, 0.159, 0.125, 0.139, 0.135),
        7: (0.119, 0.271, 0.152, 0.128, 0.140, 0.130, 0.135),
        8: (0.203, 0.366, 0.165, 0.134, 0.199, 0.184, 0.153),
    },
}


@dataclass(frozen=True)
class Ends:
    """What one panel of the densities prints."""

    lambda_min: float
    lambda_max: float
    test_accuracy: float  # %
    loss: float  # in training


ENDS = {  # step -> label of a spectrum -> its panel
    "sgd": {
        "overall": Ends(-0.98, 13.42, 75.81, 2.9e-2),
        "class 0": Ends(-1.72, 23.63, 95.8, 2.9e-2),
        "class 8": Ends(-22.95, 23.11, 52.1, 2.3e-3),
    },
    "sam": {"class 8": Ends(-2.28, 14.58, 72.8, 7.0e-2)},
}
CHOICES = ("auto", "none", *NONCONVEXITY)
_SAME = {"loss": "ce", "arch": "resnet32", "epochs": 200}  # of a recipe; so is the re-weighting
_USUAL = {  # and these, where a recipe names them
    "schedule": "steps", "drops": [160, 180], "warmup": 5, "batch_size": 128, "lr": 0.1,
    "momentum": 0.9, "weight_decay": 2e-4, "beta": 0.9999, "augment": True,
}  # fmt: skip


def reweighted_after(recipe: Mapping[str, Any] | None) -> int | None:
    """Give the last epoch before a recipe's deferred re-weighting, None where there is none."""
    recipe = recipe or {}
    deferred = recipe.get("weighting") == "deferred" or recipe.get("drw")  # drw: older files
    drops = recipe.get("drops") or ()
    return int(drops[0]) if deferred and drops else None


def curve_for(
    choice: str, data: DataSpec | None, recipe: Mapping[str, Any] | None, what: str
) -> str | None:
    """Choose the published values that may stand beside a run.

    Args:
        choice: "auto", those of the same run, if it is one; "none"; or "sgd", "sam", for a run of
            another length or radius as well.
        data: training set of the run.
        recipe: how it was trained, if that is known.
        what: name of the run, for the message.

    Returns:
        The key in `NONCONVEXITY`, or None.

    Raises:
        SpectraError: if values are asked for that are of other data or another loss.
    """
    if choice not in CHOICES:
        raise SpectraError(
            f"got published values {choice!r} for {what}, expected one of {', '.join(CHOICES)}"
        )
    if choice == "none":
        return None
    known, after = recipe or {}, reweighted_after(recipe)
    drawn = None if data is None else (data.name, data.imbalance, data.ratio)
    fits = drawn == ("cifar10", "exp", 100.0)
    if choice != "auto":
        if not fits or (recipe is not None and (known.get("loss") != "ce" or after is None)):
            how = f"{known.get('name', 'an unknown recipe')} on {data or 'unnamed data'}"
            raise SpectraError(
                f"got --published {choice} for {what}, trained by {how}; expected CE+DRW on "
                "cifar10, exp, ratio 100: the values are of it alone and would mislead beside "
                "anything else; leave them out with --published none"
            )
        return choice
    fits = fits and all(known.get(key) == value for key, value in _SAME.items())
    fits = fits and all(known.get(key, value) == value for key, value in _USUAL.items())
    if not fits or after != REWEIGHTED_AFTER:
        return None
    varied = known.get("rho_end") is not None or known.get("rho_steps") or known.get("adaptive")
    if known.get("step") == "sam" and known.get("rho") == 0.5 and not varied:
        return "sam"
    return "sgd" if known.get("step") == "sgd" else None
