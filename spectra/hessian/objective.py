"""The loss of a set of samples as a function of the parameters, and its derivatives.

    L(θ) = (1/W) Σ_i w_i ℓ_i(θ),   H = (1/W) Σ_i w_i ∇²ℓ_i(θ),   W = Σ_i w_i

Sums run over samples and are divided once, so no way of cutting the data into batches changes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectra.choices import PathName
from spectra.data import IGNORED, Samples, as_samples
from spectra.errors import SpectraError, out_of_memory
from spectra.hessian.batching import Batching, automatic_batch
from spectra.hessian.conditions import settled, try_out
from spectra.hessian.network import (
    by_itself,
    calling,
    differentiate,
    exact_arithmetic,
    leftovers,
    logits_of,
    memory_format,
    private_copy,
    recordable,
    untouched,
)
from spectra.hessian.products import PRODUCTS, Function, Parameters, gradient
from spectra.hessian.rows import Rows, select_parameters
from spectra.losses import Loss, LossSpec, as_loss
from spectra.networks import unwrapped

Batch = tuple[Tensor, Tensor, Tensor]  # inputs as the network takes them, targets, weights
Term = Literal["value", "gradient", "kept"] | PathName  # what is summed over the samples


@dataclass(frozen=True, eq=False)
class Objective:
    """A weighted mean of per-sample losses at fixed parameters.

    Build one with `Objective.of`; select, recut and convert it with the other methods.
    """

    network: nn.Module  # a private copy, evaluation mode
    samples: Samples  # on `device`
    loss: Loss
    weights: Float[Tensor, " N"]  # float64, on `device`; 0 masks a sample
    normalizer: float  # W: the sum of the weights, or what the caller divides by instead
    parameters: tuple[str, ...]  # names of the rows of H, in the order of the flat vectors
    frozen: frozenset[str]  # those among them whose rows are zero: requires_grad was off
    dtype: torch.dtype
    device: torch.device
    batching: Batching
    layout: torch.memory_format  # of images and convolutions
    tf32: bool = False
    widens: bool = False  # network or loss names float32 and means the parameters' precision
    backwards: bool = False  # walk the batches from the last sample to the first
    redraw: torch.Generator | None = None  # draw a new augmentation in every pass
    together: Callable[..., Tensor] | None = None  # adds other processes' sums, see `shares`
    elsewhere: int = 0  # samples that they hold

    @staticmethod
    @torch.inference_mode(False)
    def of(
        model: nn.Module,
        source: Samples | object,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        parameters: str | Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        batch_size: int | str = "auto",
        tf32: bool = False,
    ) -> Objective:
        """Gather a model, samples and a loss; the caller's model stays as it is.

        Args:
            model: any classifier, wrapped or not; a private copy in evaluation mode is
                differentiated.
            source: `Samples`, or what `Samples.from_batches` takes.
            loss: per-sample loss, (B, C) logits and (B,) targets to (B,); cross-entropy when None.
            parameters: names or globs ("layer3.*") that the rows of H belong to; all when None.
            dtype: precision of the products.
            device: where they run; where the network is when None.
            batch_size: samples at once, or "auto" for what fits the memory.
            tf32: allow TF32 on CUDA.

        Returns:
            The objective over all samples, weighted as the loss says.

        Raises:
            SpectraError: unknown parameter, no sample, targets that the loss does not know.
        """
        if dtype not in (torch.float32, torch.float64):  # a certificate is of the rounded weights
            raise SpectraError(f"got the dtype {dtype!r}, expected torch.float32 or torch.float64")
        model = unwrapped(model)
        device = torch.device(_place_of(model) if device is None else device)
        samples = as_samples(source).in_memory()
        rule = as_loss(LossSpec() if loss is None else loss)
        weights = rule.sample_weights(samples.targets).to(device=device, dtype=torch.float64)
        inputs, targets = (recordable(t.to(device)) for t in (samples.inputs, samples.targets))
        samples = replace(samples, inputs=inputs, targets=targets)
        weights = torch.where(samples.targets == IGNORED, 0.0, weights)
        network = private_copy(model, dtype=dtype, device=device)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        names = select_parameters([name for name, _ in network.named_parameters()], parameters)
        if frozen >= set(names):
            which = "a network with parameters" if parameters is None else "parameters"
            raise SpectraError(
                f"got {which} that are all frozen, expected one that trains: the Hessian would "
                f"have zero rows alone; requires_grad_(True) for {', '.join(names[:3])}"
                f"{', …' if names[3:] else ''}"
            )
        differentiate(network, set(names) - frozen)
        objective = Objective(
            network,
            samples,
            rule,
            weights,
            float(weights.sum()),
            names,
            frozenset(frozen & set(names)),
            dtype,
            device,
            Batching(1),
            memory_format(network),
            tf32,
        )
        objective._require_samples("the data")
        objective = settled(objective)
        seen = try_out(objective)
        size = automatic_batch(seen, objective.device) if batch_size == "auto" else batch_size
        if not isinstance(size, int) or size < 1:
            raise SpectraError(f"got a batch size of {size!r}, expected at least 1 or 'auto'")
        return replace(objective, batching=Batching(size))

    @property
    def dim(self) -> int:
        """Number of rows of H."""
        return self.rows.dim

    @property
    def widened(self) -> bool:
        """Whether float64 takes the place of the float32 that network and loss name."""
        return self.widens and self.dtype == torch.float64

    @cached_property
    def rows(self) -> Rows:
        """The parameters that flat vectors stand for."""
        return Rows(self.network, self.parameters, self.frozen, self.layout)

    @cached_property
    def _parts(self) -> dict[int, list[tuple[Samples, Tensor | None]]]:
        return {}  # by batch size: views, in order

    @property
    def count(self) -> int:
        """Number of samples that the mean runs over, wherever they are held."""
        return len(self.samples) + self.elsewhere

    @property
    def batch_size(self) -> int:
        """Samples at once, as it stands now."""
        return self.batching.size

    @torch.inference_mode(False)
    def select(
        self,
        index: Int[Tensor, " k"],
        *,
        what: str = "the selection",
        normalizer: float | None = None,
    ) -> Objective:
        """Keep some samples; divide by the sum of their weights unless `normalizer` is given."""
        rows: slice | Tensor = index.to(self.device)
        if len(index) == len(self.samples) and torch.equal(index.cpu(), torch.arange(len(index))):
            rows = slice(None)  # all of them, and no copy
        weights = self.weights[rows]
        total = float(weights.sum()) if normalizer is None else normalizer
        chosen = replace(
            self,
            samples=self.samples.select(rows),
            weights=weights,
            normalizer=total,
        )
        chosen._require_samples(what)
        return chosen

    @torch.inference_mode(False)
    def unweighted(self) -> Objective:
        """Give every sample that is not masked the weight 1."""
        weights = (self.weights > 0).to(torch.float64)
        return replace(self, weights=weights, normalizer=float(weights.sum()))

    @torch.inference_mode(False)
    def recut(
        self,
        *,
        batch_size: int | None = None,
        backwards: bool = True,
        dtype: torch.dtype | None = None,
    ) -> Objective:
        """Prepare another pass over the same samples: other batches, other order, other precision.

        Args:
            batch_size: samples at once; about half of now when None.
            backwards: walk the batches from the last sample to the first.
            dtype: precision; a float64 pass never uses TF32. As now when None.

        Returns:
            The same function of the parameters, summed in another way.
        """
        size = (
            batch_size
            if batch_size is not None
            else (min(self.batch_size, len(self.samples)) + 1) // 2
        )
        changed = replace(self, batching=Batching(max(1, size)), backwards=backwards)
        if dtype is None or dtype == self.dtype:
            return changed
        return changed.copied(dtype)

    def redrawn(self, generator: torch.Generator) -> Objective:
        """Draw a new augmentation in every pass: no longer a fixed function of the parameters."""
        if self.samples.augmentation is None:
            raise SpectraError(
                "got a request to re-draw the augmentation of data that name none, expected images "
                "with an augmentation: nothing would move; use --augment none"
            )
        return replace(self, redraw=generator)

    @by_itself
    def value(self, *, shift: Float[Tensor, " n"] | None = None) -> float:
        """Evaluate L at the parameters, or at a place nearby.

        Args:
            shift: (n,) what is added to the parameters, at no trace; zero where they are frozen.
        """
        return float(self._whole("value", self.rows.here(shift))) / self.normalizer

    def exact_value(self) -> float:
        """Evaluate L in float64, over the same batches and so with the same draws.

        Beside the 1 of float32's softmax the loss of a fitted sample is lost.
        """
        exact = self.recut(batch_size=self.batch_size, backwards=False, dtype=torch.float64)
        return exact.value()

    @by_itself
    def gradient(self, *, shift: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Differentiate L once; accumulated in float64 over the batches.

        Args:
            shift: as in `value`.
        """
        return self.mean("gradient", self.rows.here(shift))

    @by_itself
    def value_and_gradient(
        self, *, shift: Float[Tensor, " n"] | None = None
    ) -> tuple[float, Float[Tensor, " n"]]:
        """Evaluate L and ∇L in one pass over the samples.

        Args:
            shift: as in `value`.
        """
        at = self.rows.here(shift)

        def both(f: Function) -> Tensor:
            values: list[Tensor] = []

            def noted(parameters: Parameters) -> Tensor:
                values.append(f(parameters))
                return values[-1]

            slopes = self.rows.flatten(gradient(noted, at))
            return torch.cat([slopes, values[-1].detach().reshape(1).to(slopes)])

        found = self.mean("gradient", at, own=partial(self._total, both))
        return float(found[-1]), found[:-1]

    @by_itself
    def product(self, vector: Float[Tensor, " n"], path: PathName) -> Float[Tensor, " n"]:
        """Multiply H with a vector, accumulated in float64 over the batches.

        Args:
            vector: (n,) in `dtype` on `device`.
            path: how to differentiate.

        Returns:
            H v, (n,), in `dtype`.
        """
        return self.mean(path, self.rows.here(), vector)

    def mean(
        self,
        term: Term,
        at: Parameters,
        vector: Float[Tensor, " n"] | None = None,
        own: Callable[[], Tensor] | None = None,
    ) -> Float[Tensor, " n"]:
        """Sum a derivative over all samples, wherever they are held, and divide once.

        Args:
            term: what is summed.
            at: the parameters.
            vector: (n,) that the Hessian is multiplied with.
            own: sums over the samples at hand in float64; `own` of this objective when None.

        Returns:
            The mean, (n,), in `dtype`.
        """
        return self._whole(term, at, vector, own).div_(self.normalizer).to(self.dtype)

    def own(self, term: Term, at: Parameters, vector: Float[Tensor, " n"] | None = None) -> Tensor:
        """Sum a term over the samples at hand, in float64; see `mean`."""
        if term == "value":
            return self._total(torch.no_grad()(lambda f: f(at)))
        if term == "gradient":
            return self._total(lambda f: self.rows.flatten(gradient(f, at)))
        assert vector is not None
        vector = recordable(vector)
        direction, differentiate = self.rows.direction(vector), PRODUCTS[cast(PathName, term)]
        return self._total(lambda f: self.rows.flatten(differentiate(f, at, direction)))

    def _whole(
        self,
        term: Term,
        at: Parameters,
        vector: Tensor | None = None,
        own: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        own = own or partial(self.own, term, at, vector)
        return own() if self.together is None else self.together(self, term, at, vector, own)

    def logits(self, inputs: Tensor) -> Tensor:
        """Pass prepared inputs through the network, whose parameters are at their place."""
        with calling(widened=self.widened):
            return logits_of(self.network(inputs))

    def batch(self, rows: slice | Int[Tensor, " k"]) -> Batch:
        """Prepare some samples: inputs laid out on the device, targets, weights in `dtype`."""
        weights = self.weights[rows].to(self.dtype)
        return *self._prepared(self.samples.select(rows)), weights

    def _prepared(self, samples: Samples) -> tuple[Tensor, Tensor]:
        x = samples.prepared(self.dtype, self.device, generator=self.redraw)
        if x.dim() == 4:
            # A copy with its own strides: one channel is channels-last in any layout, and the
            # kernels, and with them the last bits, would follow the layout of the source.
            x = torch.empty_like(x, memory_format=self.rows.layout).copy_(x)
        return x, samples.targets

    def _functions(self) -> Iterator[Function]:
        """Yield the weighted sum of the losses of each batch, as a function of the parameters."""
        parts = self._parts.get(self.batch_size)
        if parts is None:
            size, count = self.batch_size, len(self.samples)
            cuts = [slice(i, i + size) for i in range(0, count, size)]
            parts = [(self.samples.select(cut), _unless_one(self.weights[cut])) for cut in cuts]
            self._parts[size] = parts
        for samples, weights in reversed(parts) if self.backwards else parts:
            weights = None if weights is None else weights.to(self.dtype)
            yield partial(self._weighted_sum, *self._prepared(samples), weights)

    def _weighted_sum(
        self, inputs: Tensor, targets: Tensor, weights: Tensor | None, parameters: Parameters
    ) -> Tensor:
        with calling(widened=self.widened):
            output = self.rows.call(self.network, parameters, inputs)
            losses = self.loss.per_sample(logits_of(output), targets)
        count = len(targets)
        if losses.shape != (count,):
            raise SpectraError(
                f"got a loss of shape {tuple(losses.shape)} for {count} samples, expected "
                f"({count},): a reduced loss cannot be weighted by sample and "
                'the result would depend on the batches; use reduction="none"'
            )
        return (losses if weights is None else losses * weights).sum()

    def _total(self, share: Callable[[Function], Tensor]) -> Tensor:
        """Sum over the batches in float64; halve the batch when memory runs out."""
        while True:
            try:
                total: Tensor | None = None
                with self.arithmetic():
                    for f in self._functions():
                        part = share(f)
                        total = part.double() if total is None else total.add_(part)
                assert total is not None
                return total
            except RuntimeError as error:
                if not out_of_memory(error) or self.batching.size == 1:
                    raise
            # Outside the except clause: the traceback, and the failed batch with it, is gone.
            self.batching.size = min(self.batching.size, len(self.samples)) // 2 or 1
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """Set torch up for a pass, see `network.exact_arithmetic`."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in self.network.modules())
        return exact_arithmetic(
            self.device, tf32=self.tf32, recurrent=recurrent, widened=self.widened
        )

    def _require_samples(self, what: str) -> None:
        if len(self.samples) == 0 or not self.normalizer > 0:
            raise SpectraError(
                f"got no sample with a positive weight in {what}, expected at least one: a mean "
                "over nothing has no Hessian; choose classes that the data hold"
            )

    @untouched
    def copied(self, dtype: torch.dtype) -> Objective:
        """Copy the network, in this precision and the layout as it stands."""
        network = private_copy(
            self.network,
            dtype=dtype,
            device=self.device,
            layout=self.layout,
            memo=leftovers(self.network),
        )
        tf32 = self.tf32 and dtype == torch.float32
        return replace(self, network=network, dtype=dtype, tf32=tf32)


def _unless_one(weights: Tensor) -> Tensor | None:
    """Leave out weights that change nothing.

    A factor without a tangent costs a forward-mode product up to a millisecond for every batch:
    torch carries a symbolic zero along for it, and works out its shapes in Python.
    """
    return None if bool((weights == 1).all()) else weights


def _place_of(model: nn.Module) -> torch.device:
    """Tell where a network is, by the first of its parameters; the CPU where float64 is lacking."""
    first = next(model.parameters(), None)
    return first.device if first is not None and first.is_cuda else torch.device("cpu")
