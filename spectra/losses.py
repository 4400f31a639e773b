"""Losses per sample: nothing here reduces, so that class means and class weights stay outside.

With logits z (a cosine head's cosines times its scale s), label y, class counts n_c, N = Σ n_c:

    ce                −log softmax(z)_y
    ldam              ce on s·(cos − m_y on the true class), m_c = m·n_c^(−1/4) / max_k n_k^(−1/4)
    vs                ce on z_c/Δ_c + τ·log(n_c/N), Δ_c = (n_max/n_c)^γ
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
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .devices import constant
from .errors import SpectraError, first_line
from .fingerprints import name_of, sha256_of

LOSSES = ("ce", "ldam", "vs", "logit-adjustment", "focal")
_GAMMA = {"vs": 0.3, "focal": 2.0}  # the released code's default for vs, the paper's for focal


def effective_number_weights(counts: Sequence[int], beta: float = 0.9999) -> tuple[float, ...]:
    """Weigh the classes by (1 − β)/(1 − β^n_c), scaled to sum to the number of classes.

    Args:
        counts: samples of each class, all positive.
        beta: 0 gives equal weights; towards 1 they approach 1/n_c.

    Raises:
        SpectraError: for an empty class, or a β outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise SpectraError(f"got β = {beta} for the class weights, expected 0 ≤ β < 1")
    _check_counts(counts)
    raw = [1.0 if beta == 0 else -1 / math.expm1(n * math.log(beta)) for n in counts]
    return tuple(len(raw) * weight / math.fsum(raw) for weight in raw)


def ldam_margins(counts: Sequence[int], max_margin: float = 0.5) -> tuple[float, ...]:
    """Give the margins m_c, in units of cosine; the rarest class has `max_margin`.

    Raises:
        SpectraError: for an empty class, whose margin would be infinite.
    """
    _check_counts(counts)
    return tuple(max_margin * (min(counts) / n) ** 0.25 for n in counts)


@dataclass(frozen=True)
class LossSpec:
    """Describe a loss, and evaluate it per sample.

    Args:
        name: one of `LOSSES`.
        class_counts: training samples of each class, (C,); ldam, vs and logit-adjustment need it.
        weights: class weights, (C,); they stay outside the loss, in `sample_weights`.
        scale: s of a cosine head (30 in the LDAM recipe); it multiplies the logits.
        max_margin: largest margin of ldam, in units of cosine.
        gamma: γ of vs (0.3 without it) and of focal (2 without it).
        tau: τ of vs and logit-adjustment.
        label_smoothing: mass spread evenly over the classes; not for focal.
        ignore_index: label of the samples whose loss and weight are zero.

    Raises:
        SpectraError: for an unknown name, missing counts, an empty class, a smoothed focal loss.
    """

    name: str = "ce"
    class_counts: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    scale: float = 1.0
    max_margin: float = 0.5
    gamma: float | None = None
    tau: float = 1.0
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise SpectraError(f"unknown loss {self.name!r}, expected one of {', '.join(LOSSES)}")
        if self.class_counts is not None or self.name in ("ldam", "vs", "logit-adjustment"):
            _check_counts(self.class_counts or ())
        if self.name == "focal" and self.label_smoothing:
            raise SpectraError("the focal loss has no label_smoothing: leave it out, or use 'ce'")
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
            Losses, (n,), of the logits' type and on their device.

        Raises:
            SpectraError: if the counts or weights are not those of as many classes.
        """
        counts = self.class_counts or ()
        for known in (counts, self.weights or ()):
            if known and len(known) != logits.shape[1]:
                raise SpectraError(
                    f"the logits have {logits.shape[1]} classes, the loss has counts or weights of "
                    f"{len(known)}: give the network and the loss of one data set"
                )
        # By a number, not a tensor that holds one: in forward mode that costs a millisecond.
        z = logits if self.scale == 1 else torch.ops.aten.mul.Scalar(logits, self.scale)
        # Comparing, not F.one_hot: no check that waits for the GPU, no write in place.
        true = targets[:, None] == torch.arange(z.shape[1], device=z.device)
        if self.name == "ldam":
            z = z - true * _like(ldam_margins(counts, self.max_margin), z) * self.scale
        if self.name == "vs":
            z = z / _like([(max(counts) / n) ** (self.gamma or 0.0) for n in counts], z)
        if self.name in ("vs", "logit-adjustment"):
            z = z + _like([self.tau * math.log(n / sum(counts)) for n in counts], z)
        losses = F.cross_entropy(
            z,
            targets,
            reduction="none",
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        if self.name == "focal":
            # log(1 − p_y) from the other classes: smooth even where p_y rounds to 1.
            others = z.masked_fill(true, -math.inf).logsumexp(1) - z.logsumexp(1)
            losses = torch.exp((self.gamma or 0.0) * others) * losses
        return losses

    def sample_weights(self, targets: Int[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Look up the class weight of each sample: 1 without weights, 0 for an ignored label.

        Raises:
            SpectraError: for labels that have no weight.
        """
        kept = targets != self.ignore_index
        if self.weights is None:
            return kept.double()
        table = constant(tuple(self.weights), torch.float64, targets.device)
        try:
            return table[torch.where(kept, targets, 0)] * kept
        except IndexError as error:  # on the CPU; a GPU's labels are not read back to be checked
            labels = targets[kept]
            raise SpectraError(
                f"got labels from {int(labels.min())} to {int(labels.max())}, expected 0 to "
                f"{len(self.weights) - 1}, since the loss has {len(self.weights)} class weights: "
                "give it one for each class of the data"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Give the description as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LossSpec":
        """Read what `to_dict` wrote; lists, as JSON gives them, become tuples.

        Raises:
            SpectraError: for an unknown name.
        """
        plain: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**plain)
        except TypeError as error:
            raise SpectraError(
                f"a loss description has the names {sorted(values)}, and not all are known: "
                "another version wrote it"
            ) from error


@dataclass(frozen=True)
class CallableLoss:
    """Carry any function of logits (n, C) and targets (n,) that gives one loss a sample, (n,)."""

    function: Callable[[Tensor, Tensor], Tensor]
    sha256: str = field(init=False, compare=False)  # before its first call, which may change it

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", sha256_of(self.function))

    def to_dict(self) -> dict[str, Any]:
        """Give what a result file can say of it: its name, and what tells it from others.

        That is its code with all that it holds, but for global names, which may change meaning.
        """
        return {"name": name_of(self.function), "sha256": self.sha256}

    def per_sample(
        self, logits: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Evaluate the function.

        Raises:
            SpectraError: if it does not give one loss a sample, or takes no logits of this dtype.
        """
        try:
            losses = self.function(logits, targets)
        except RuntimeError as error:
            if "dtype" not in (told := str(error)) and "scalar type" not in told:
                raise  # memory may have run out
            raise SpectraError(
                f"got logits of {logits.dtype} and targets of {targets.dtype}, which the loss does "
                f"not take ({first_line(error)}), expected a loss for logits of any "
                "floating dtype: products are checked in float64; cast what it holds, as in "
                "weight.to(logits.dtype)"
            ) from error
        if losses.shape != targets.shape:
            raise SpectraError(
                f"the loss returned the shape {tuple(losses.shape)}, expected one value a sample, "
                f"{tuple(targets.shape)}: means of batches do not add up; use reduction='none'"
            )
        return losses

    def sample_weights(self, targets: Int[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Give each sample the weight 1, and 0 where a torch loss ignores its label."""
        ignored = getattr(self.function, "ignore_index", None)
        kept = torch.ones_like(targets) if ignored is None else targets != ignored
        return kept.double()


Loss = LossSpec | CallableLoss


def as_loss(loss: Loss | Callable[..., Any] | object) -> Loss:
    """Accept a described loss, or any function of (logits, targets) with one value a sample.

    Raises:
        SpectraError: for a torch loss that reduces or holds class weights, or what is no function.
    """
    if isinstance(loss, Loss):
        return loss
    if not callable(loss):
        raise SpectraError(
            f"got the loss {loss!r}, expected a description or a function of (logits, targets) of "
            "one value a sample, since a name alone leaves counts and scale open: use "
            f"LossSpec(name), of {', '.join(LOSSES)}"
        )
    reduction = getattr(loss, "reduction", "none")
    if reduction != "none":
        raise SpectraError(
            f"the loss has reduction={reduction!r}, expected one value a sample, since means are "
            "taken outside: use reduction='none'"
        )
    if getattr(loss, "weight", None) is not None:
        raise SpectraError(
            "the loss holds class weights, expected plain values, since weights are taken outside "
            "(Σ w ℓ / Σ w, and none within a class): use LossSpec(weights=...)"
        )
    return CallableLoss(loss)


def _check_counts(counts: Sequence[int]) -> None:
    if min(counts, default=0) < 1:
        raise SpectraError(
            f"got the class counts {tuple(counts)}, expected the training samples of every class, "
            "each at least 1: margins, shifts and weights of an empty class are infinite"
        )


def _like(values: Sequence[float], z: Tensor) -> Tensor:
    return constant(tuple(values), z.dtype, z.device)
