"""From a model and samples to Hessians, overall and class by class.

    H_c = (1/N_c) Σ_{i∈c} ∇²ℓ_i(θ),   Σ_c (N_c/N) H_c = H

Class weights stay outside H_c: in a mean over one class they cancel. Where a loss has them, the
whole is H = Σ_c (w_c N_c/Σ_i w_i) H_c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spectra.choices import PRODUCT_NAMES, ProductName
from spectra.data import Samples
from spectra.errors import SpectraError
from spectra.hessian.choice import ProductChoice, choose_product
from spectra.hessian.kept import KeptProducts
from spectra.hessian.objective import Objective
from spectra.hessian.products import PRODUCTS
from spectra.hessian.ways import Work, choose_way
from spectra.krylov import SymmetricOperator
from spectra.losses import Loss


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HessianOperator(SymmetricOperator):
    """A Hessian as a linear operator that remembers what it is the Hessian of."""

    objective: Objective
    choice: ProductChoice
    kept: KeptProducts | None = None  # multiplies in place of the plain path

    @staticmethod
    def of(
        objective: Objective,
        choice: ProductChoice,
        *,
        kept: KeptProducts | None = None,
        callback: Callable[[], None] | None = None,
    ) -> HessianOperator:
        """Bind an objective to a verified way of multiplying with its Hessian.

        Args:
            objective: what to differentiate.
            choice: the plain path.
            kept: a faster way; not for an objective that draws its augmentation anew.
            callback: called after every product.
        """
        if objective.redraw is not None:
            kept = None

        def multiply(vector: Tensor) -> Tensor:
            if kept is None:
                product = objective.product(vector, choice.path)
            else:
                product = kept.product(objective, vector)
            if callback is not None:
                callback()
            return product

        return HessianOperator(
            multiply,
            objective.dim,
            objective.dtype,
            objective.device,
            objective=objective,
            choice=choice,
            kept=kept,
        )


def hessian_operator(
    model: nn.Module,
    source: Samples | object,
    loss: Loss | Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    parameters: str | Sequence[str] | None = None,
    product: ProductName | Literal["auto"] = "auto",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    batch_size: int | str = "auto",
    tf32: bool = False,
    products: int = 100,
) -> HessianOperator:
    """Build the Hessian of the weighted mean loss over all samples.

    Args:
        model: any classifier; it is not touched, and evaluation mode is used.
        source: `Samples`, or what `Samples.from_batches` takes: a DataLoader, a list of (inputs,
            targets) batches, a TensorDataset, a pair of tensors or arrays.
        loss: per-sample loss, (B, C) logits and (B,) targets to (B,); cross-entropy when None.
        parameters: names or globs that the rows belong to; all when None. Parameters that are
            frozen (requires_grad off) or unused have zero rows.
        product: insist on one way of computing products; "auto" takes the fastest that agrees with
            double backward and with finite differences, compared here once in float64.
        dtype: precision of the products; sums over batches are float64.
        device: where the products run; where the network is when None.
        batch_size: samples at once, or "auto".
        tf32: allow TF32 on CUDA.
        products: how many are to come with each operator; "auto" prepares a faster way, which takes
            seconds to minutes, where that pays.

    Returns:
        The operator: `H @ v`, `H.dim`, `H.to_scipy()`, `H.dense()`.

    Raises:
        SpectraError: no path is right for this model, unknown parameter, no sample.

    References:
        B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994),
        https://doi.org/10.1162/neco.1994.6.1.147
    """
    objective = Objective.of(
        model,
        source,
        loss,
        parameters=parameters,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        tf32=tf32,
    )
    return _operators([objective], objective, product, products)[0]


def class_operators(
    model: nn.Module,
    source: Samples | object,
    loss: Loss | Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    classes: Iterable[int] | None = None,
    normalization: Literal["mean", "contribution"] = "mean",
    parameters: str | Sequence[str] | None = None,
    product: ProductName | Literal["auto"] = "auto",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    batch_size: int | str = "auto",
    tf32: bool = False,
    products: int = 100,
) -> dict[int, HessianOperator]:
    """Build the Hessian of each class; all share one copy of the network and of the data.

    Args:
        classes: which ones; all that have samples when None.
        normalization: "mean" divides by the number of samples of the class, so class weights have
            no effect; "contribution" keeps the weights and divides by their sum over the whole
            set, so that the operators add up to the overall one.
        (the others): as for `hessian_operator`.

    Returns:
        Class index to operator, in ascending order.

    Raises:
        SpectraError: as `hessian_operator`; a class that was asked for has no sample.
    """
    objective = Objective.of(
        model,
        source,
        loss,
        parameters=parameters,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        tf32=tf32,
    )
    targets = objective.samples.targets
    if normalization not in ("mean", "contribution"):
        raise SpectraError(
            f"got normalization {normalization!r}, expected 'mean' or 'contribution'"
        )
    present = torch.unique(targets[objective.weights > 0]).tolist()
    parts = objective if normalization == "contribution" else objective.unweighted()
    total = objective.normalizer if normalization == "contribution" else None
    wanted = present if classes is None else sorted(classes)
    chosen = [
        parts.select(torch.nonzero(targets == c)[:, 0], what=f"class {c}", normalizer=total)
        for c in wanted
    ]
    if not chosen:
        return {}
    together = torch.isin(targets, torch.tensor(wanted, device=targets.device))
    whole = parts.select(torch.nonzero(together)[:, 0])
    return dict(zip(wanted, _operators(chosen, whole, product, products), strict=True))


def _operators(
    objectives: Sequence[Objective],
    whole: Objective,
    product: ProductName | Literal["auto"],
    products: int,
) -> list[HessianOperator]:
    """Choose one way for objectives of one network, by the samples of all of them."""
    if product not in (names := ("auto", *PRODUCT_NAMES)):
        raise SpectraError(f"got product {product!r}, expected one of {', '.join(names)}")
    asked = None if product == "auto" else product
    choice = choose_product(whole, path=asked if asked in PRODUCTS else None)
    work = Work([len(objective.samples) for objective in objectives], products)
    kept = choose_way(whole, choice, work, product=asked).kept
    return [HessianOperator.of(objective, choice, kept=kept) for objective in objectives]
