"""Losses per sample: nothing here reduces, so that class means and class weights stay outside.

With logits z (a cosine head's cosines times its scale s), label y, class counts n_c, N = Σ n_c:

    ce                −log softmax(z)_y, with optional label smoothing and ignored labels
    ldam              ce on s·(cos − m_y on the true class), m_c = n_c^(−1/4)·m / max_k n_k^(−1/4)
    vs                ce on z_c/Δ_c + τ·log(n_c/N),  Δ_c = (n_max/n_c)^γ
    logit-adjustment  ce on z_c + τ·log(n_c/N)
    focal             (1 − p_y)^γ · ce

References:
    Cao et al., LDAM and deferred re-weighting, https://arxiv.org/abs/1906.07413
    Kini et al., VS loss, https://arxiv.org/abs/2103.01550
    Menon et al., logit adjustment, https://arxiv.org/abs/2007.07314
    Lin et al., focal loss, https://arxiv.org/abs/1708.02002
    Cui et al., effective number of samples, https://arxiv.org/abs/1901.05555
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from spectra.errors import SpectraError

LOSSES = ("ce", "ldam", "vs", "logit-adjustment", "focal")
_GAMMA = {"vs": 0.3, "focal": 2.0}  # the released code's VS default; the focal paper's choice


def effective_number_weights(counts: Sequence[int], beta: float = 0.9999) -> tuple[float, ...]:
    """Weigh the classes by (1 − β)/(1 − β^n_c), scaled to sum to the number of classes.

    Args:
        counts: samples of each class, all positive.
        beta: 0 gives equal weights; towards 1 they approach 1/n_c.

    Raises:
        SpectraError: for an empty class or a β outside [0, 1).
    """
    if not 0 <= beta < 1 or min(counts, default=0) < 1:
        raise SpectraError(f"got β = {beta}, counts {tuple(counts)}: 0 ≤ β < 1, counts ≥ 1 needed")
    raw = [1.0 if beta == 0 else -1 / math.expm1(n * math.log(beta)) for n in counts]
    return tuple(len(raw) * weight / math.fsum(raw) for weight in raw)


def ldam_margins(counts: Sequence[int], max_margin: float = 0.5) -> tuple[float, ...]:
    """Give the margins m_c = n_c^(−1/4)·max_margin / max_k n_k^(−1/4), in units of cosine.

    Raises:
        SpectraError: for an empty class, whose margin would be infinite.
    """
    if min(counts, default=0) < 1:
        raise SpectraError(f"got counts {tuple(counts)}, every class needs at least one sample")
    return tuple(max_margin * (min(counts) / n) ** 0.25 for n in counts)


@dataclass(frozen=True)
class LossSpec:
    """Describe a loss; evaluate it per sample.

    Args:
        name: one of `LOSSES`.
        class_counts: samples of each class in the training set, (C,); all but ce and focal need it.
        weights: class weights, (C,); they stay outside the loss, in `sample_weights`.
        scale: s of a cosine head (30 in the LDAM recipe), multiplies the logits first.
        max_margin: largest margin of LDAM, in units of cosine.
        gamma: γ of vs (default 0.3) and focal (default 2).
        tau: τ of vs and logit adjustment.
        label_smoothing: mass spread evenly over the classes (ce only).
        ignore_index: label whose samples have loss and weight zero (ce only).

    Raises:
        SpectraError: for an unknown name, missing or empty classes, or an option of another loss.
    """

    name: str = "ce"
    class_counts: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    scale: float = 1.0
    max_margin: float = 0.5
    gamma: float | None = None
    tau: float = 1.0
    label_smoothing: float = 0.0
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise SpectraError(f"unknown loss {self.name!r}: use one of {', '.join(LOSSES)}")
        if self.name in ("ldam", "vs", "logit-adjustment") and not self.class_counts:
            raise SpectraError(f"the loss {self.name!r} needs class_counts, the training counts")
        if min(self.class_counts or (1,)) < 1:
            raise SpectraError(f"got class_counts {self.class_counts}: every class needs a sample")
        if self.name != "ce" and (self.label_smoothing or self.ignore_index is not None):
            raise SpectraError(f"label_smoothing and ignore_index are for 'ce', not {self.name!r}")
        if self.gamma is None and self.name in _GAMMA:
            object.__setattr__(self, "gamma", _GAMMA[self.name])

    @classmethod
    def cross_entropy(cls, scale: float = 1.0, **options: Any) -> "LossSpec":
        """Describe the plain cross-entropy; on a cosine head it must include the head's scale."""
        return cls("ce", scale=scale, **options)

    def per_sample(
        self, logits: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Evaluate the loss of each sample, without class weights.

        Args:
            logits: the network's outputs, (n, C).
            targets: labels, (n,).

        Returns:
            Losses, (n,), in the type and on the device of the logits.

        Raises:
            SpectraError: if the logits have another number of classes than the counts.
        """
        z = self.scale * logits
        if self.class_counts is not None and len(self.class_counts) != logits.shape[1]:
            raise SpectraError(
                f"the network has {logits.shape[1]} classes, the loss {len(self.class_counts)} "
                "class counts: give the network and the counts of one data set"
            )
        counts = self.class_counts or ()
        if self.name == "ce":
            ignored = -100 if self.ignore_index is None else self.ignore_index
            return F.cross_entropy(
                z,
                targets,
                reduction="none",
                label_smoothing=self.label_smoothing,
                ignore_index=ignored,
            )
        if self.name == "focal":
            return self._focal(z, targets)
        if self.name == "ldam":
            margins = _like(ldam_margins(counts, self.max_margin), z)
            z = z - self.scale * margins * _one_hot(z, targets)
        else:
            if self.name == "vs":
                assert self.gamma is not None
                z = z / _like([(max(counts) / n) ** self.gamma for n in counts], z)
            z = z + _like([self.tau * math.log(n / sum(counts)) for n in counts], z)
        return F.cross_entropy(z, targets, reduction="none")

    def _focal(self, z: Tensor, targets: Tensor) -> Tensor:
        # log(1 − p_y) from the other classes: smooth even where p_y rounds to 1.
        others = z.masked_fill(_one_hot(z, targets), -math.inf).logsumexp(1) - z.logsumexp(1)
        assert self.gamma is not None
        return torch.exp(self.gamma * others) * F.cross_entropy(z, targets, reduction="none")

    def sample_weights(self, targets: Int[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Look up the class weight of each sample: 1 without weights, 0 for an ignored label."""
        kept = torch.ones_like(targets, dtype=torch.bool)
        if self.name == "ce":
            kept = targets != (-100 if self.ignore_index is None else self.ignore_index)
        if self.weights is None:
            return kept.double()
        table = torch.tensor(self.weights, dtype=torch.float64, device=targets.device)
        return torch.where(kept, table[torch.where(kept, targets, 0)], 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Give the description as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LossSpec":
        """Read what `to_dict` wrote; lists (from JSON) become tuples.

        Raises:
            SpectraError: for an unknown name.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise SpectraError(f"a loss description has the unknown names {unknown}")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**plain)


@dataclass(frozen=True)
class CallableLoss:
    """Carry any function of (logits (n, C), targets (n,)) that gives one loss a sample, (n,)."""

    function: Callable[[Tensor, Tensor], Tensor]

    def per_sample(
        self, logits: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Evaluate the function.

        Raises:
            SpectraError: if it does not give one loss a sample.
        """
        losses = self.function(logits, targets)
        if losses.shape != targets.shape:
            raise SpectraError(
                f"the loss returned shape {tuple(losses.shape)}, expected one value a sample, "
                f"{tuple(targets.shape)}: means over batches cannot be added up exactly; "
                'use reduction="none"'
            )
        return losses

    def sample_weights(self, targets: Int[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Give every sample the weight 1, and 0 to the labels that a torch loss ignores."""
        ignored = getattr(self.function, "ignore_index", None)
        return (
            torch.ones_like(targets, dtype=torch.float64)
            if ignored is None
            else ((targets != ignored).double())
        )


def as_loss(
    loss: LossSpec | CallableLoss | Callable[[Tensor, Tensor], Tensor],
) -> "LossSpec | CallableLoss":
    """Accept a described loss or any plain function of (logits, targets).

    Raises:
        SpectraError: for a torch loss that reduces, or for something that cannot be called.
    """
    if isinstance(loss, LossSpec | CallableLoss):
        return loss
    reduction = getattr(loss, "reduction", "none")
    if reduction != "none":
        raise SpectraError(
            f"the loss has reduction={reduction!r}, expected one value a sample: class means and "
            'weighted sums are taken outside; use reduction="none"'
        )
    if not callable(loss):
        raise SpectraError(f"got {loss!r}, expected a LossSpec or a function (logits, targets)")
    return CallableLoss(loss)


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    return targets[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _like(values: Sequence[float], z: Tensor) -> Tensor:
    return torch.tensor(values, dtype=z.dtype, device=z.device)
