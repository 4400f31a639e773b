"""One update of the weights from one batch, and its faster ways.

    plain     eager PyTorch: the reference that the others are compared with
    compiled  the network compiled by torch.compile, the rest as it is
    graph     the whole update recorded once as a CUDA graph and replayed
    compiled-graph   both

The faster ways are compared with the plain one before they are used (`faster`); one that is not as
good, or cannot be had, is left, and a line says so.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import Named
from ..errors import SpectraError
from ..losses import LossSpec
from ..networks import copied
from .faster import faster, line_of
from .recipes import Recipe
from .steps import Escape, Gradient, Pass, Weights, descend, imbsam, lpf_sgd, pgd, sam, sgd, sse_sam

WAYS = ("auto", "plain", "compiled", "graph", "compiled-graph")
Batch = Named  # inputs (n, ...), targets (n,), and noise (draws, parameters) if used


class Engine:
    """Hold a network with its momentum, and move it a batch at a time.

    Args:
        recipe: what to do.
        network: in training mode, on its device; its weights change.
        counts: training samples of each class, (C,).
        way: one of `WAYS`; auto is graph on a GPU and plain elsewhere.

    Raises:
        SpectraError: if the device lacks the way, or a class-aware step finds no head or no tail.
    """

    def __init__(
        self, recipe: Recipe, network: nn.Module, counts: tuple[int, ...], way: str = "plain"
    ) -> None:
        self.recipe, self.network, self.counts = recipe, network, counts
        self.weights = Weights(network, still=not recipe.bn_both_passes)
        parameters = self.weights.parameters
        self.device, self.dtype = parameters[0].device, parameters[0].dtype
        if way == "auto":
            way = "graph" if self.device.type == "cuda" else "plain"
        if way not in WAYS or (way.endswith("graph") and self.device.type != "cuda"):
            raise SpectraError(
                f"the update is {way!r} on {self.device.type}; expected one of {', '.join(WAYS)}"
                ", with CUDA for the graphs"
            )
        rare = [n < recipe.rare_below for n in counts]
        if recipe.step in ("imbsam", "sse-sam") and len(set(rare)) == 1:
            raise SpectraError(
                f"rare_below is {recipe.rare_below} and the classes have {min(counts)} to "
                f"{max(counts)} samples; expected some on either side, or {recipe.step} is another "
                "step: choose a size between"
            )
        self.way, self.note = way, ""
        self.sound = False  # whether a faster update has been used
        self._rounding: tuple[float, float] | None = None  # the largest, see `Fast`
        self.seconds = 0.0  # spent on compiling, recording and checking
        self.rare = torch.tensor(rare, device=self.device)
        self.momenta = [torch.zeros_like(p) for p in parameters]
        self.escape = Escape(self._number(torch.inf), self._number(float(recipe.noise_interval)))
        # A graph reads these from memory, where each epoch writes them.
        self.lr: float | Tensor = self._number(recipe.lr) if way.endswith("graph") else recipe.lr
        self.radius, self.noise = self._number(0.0), self._number(0.0)
        self._fast: dict[int, Callable[[Batch], Tensor]] = {}  # by batch size
        self.loss, self._climbs = LossSpec(), False

    @property
    def draws(self) -> int:
        """Count the noise draws that a batch needs."""
        return {"pgd": 1, "lpf-sgd": self.recipe.noise_parts}.get(self.recipe.step, 0)

    @property
    def about(self) -> str:
        """Say how far a compiled update is from float64's, where that had to decide."""
        if self._rounding is None:
            return ""
        mine, own = self._rounding
        return f": {mine:.1e} from float64's, the plain one {own:.1e}"

    def set(self, *, lr: float, rho: float, noise: float, loss: LossSpec) -> None:
        """Take over what changes from epoch to epoch.

        Args:
            lr: learning rate.
            rho: radius; the head's in sse-sam.
            noise: in units of the weights' norms.
            loss: the training loss, class weights included.
        """
        self.lr = self.lr.fill_(lr) if isinstance(self.lr, Tensor) else lr
        self.radius.fill_(rho)
        self.noise.fill_(noise)
        if (loss, rho > 0) != (self.loss, self._climbs):
            self.loss, self._climbs = loss, rho > 0
            self._fast.clear()  # what was recorded belongs to another loss

    def update(self, batch: Batch) -> Tensor:
        """Move the weights by one step.

        Args:
            batch: inputs (n, ...), targets (n,), noise (draws, parameters).

        Returns:
            (2,): the batch's loss at w times n, and how many samples were classified correctly
            there; on the device, valid until the next update.
        """
        if self.way == "plain":
            return self.step(batch)
        n = len(batch["targets"])
        if n not in self._fast:
            start = time.monotonic()
            self._fast[n] = self._checked(batch)
            self.seconds += time.monotonic() - start
        return self._fast[n](batch)

    def step(self, batch: Batch, network: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Move the weights in the plain way, or with a compiled network; as `update`."""
        slope, here = self._direction(self.network if network is None else network, batch)
        descend(
            self.weights.parameters, self.momenta, slope, lr=self.lr,
            momentum=self.recipe.momentum, weight_decay=self.recipe.weight_decay,
        )  # fmt: skip
        with torch.no_grad():
            loss, n = here.loss(), len(here.shares)
            correct = (here.logits.argmax(1) == batch["targets"]).sum()
            return torch.stack([loss * n, correct.to(loss.dtype)])

    def _direction(
        self, network: Callable[[Tensor], Tensor], batch: Batch
    ) -> tuple[Gradient, Pass]:
        recipe, weights = self.recipe, self.weights
        forward = partial(self._forward, network, batch)
        match recipe.step:
            case "sam":
                return sam(weights, forward, radius=self.radius, adaptive=recipe.adaptive)
            case "pgd":
                limit = recipe.noise_threshold
                return pgd(
                    weights, forward, noise=self._shaped(batch["noise"][0]), radius=self.noise,
                    threshold=torch.inf if limit is None else limit,
                    interval=recipe.noise_interval, memory=self.escape,
                )  # fmt: skip
            case "lpf-sgd":
                parts = _cut(len(batch["targets"]), recipe.noise_parts)
                noise = [self._shaped(draw) for draw in batch["noise"][: len(parts)]]
                return lpf_sgd(weights, forward, noise=noise, deviation=self.noise, parts=parts)
            case "imbsam":
                return imbsam(weights, forward, self.rare[batch["targets"]], radius=self.radius)
            case "sse-sam":
                rare, tail = self.rare[batch["targets"]], recipe.rho_tail
                return sse_sam(
                    weights, forward, rare, radius=self.radius, tail_radius=tail,
                    climb_head=self._climbs,
                )  # fmt: skip
            case _:
                return sgd(weights, forward)

    def _forward(self, network: Callable[[Tensor], Tensor], batch: Batch, part: slice) -> Pass:
        inputs, targets = batch["inputs"][part], batch["targets"][part]
        bf16 = self.recipe.precision == "bf16"
        # Without the cache a recorded graph never holds a stale copy of the weights.
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            logits = network(inputs)
        scores = logits.to(self.dtype)
        sizes = self.loss.sample_weights(targets).to(self.dtype)
        return Pass(sizes * self.loss.per_sample(scores, targets), sizes.sum(), logits)

    def _shaped(self, noise: Tensor) -> list[Tensor]:
        """Cut a flat draw (n,) into the shapes of the parameters."""
        shapes = [p.shape for p in self.weights.parameters]
        pieces = torch.split(noise, [shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _checked(self, batch: Batch) -> Callable[[Batch], Tensor]:
        """Make the faster update; give the plain one if it fails or is not as good."""
        try:
            fast = faster(self, batch)
        except Exception as error:  # a compiler may fail in any way, and the plain one is there
            why = line_of(error)[:200]
            self.note = f"the {self.way} update is not used ({why}); the plain one is"
            self.way = "plain"
            return self.step
        self.sound = True
        if fast.rounding is not None:
            self._rounding = max(self._rounding or fast.rounding, fast.rounding)
        return fast.step

    def in_float64(self) -> "Engine":
        """Make a plain engine of a copy of the network, at the same place; this one stays."""
        network = copied(self.network).double()
        double = Engine(replace(self.recipe, precision="float64"), network, self.counts)
        radius, noise = float(self.radius), float(self.noise)
        double.set(lr=float(self.lr), rho=radius, noise=noise, loss=self.loss)
        double.load_state_dict(self.state_dict())
        return double

    def state(self) -> list[list[Tensor]]:
        """List all that an update changes, kind by kind."""
        moving = [self.escape.last_norm, self.escape.since]
        return [self.weights.parameters, self.momenta, list(self.network.buffers()), moving]

    def restore(self, values: Sequence[Sequence[Tensor]]) -> None:
        """Put back the values that `state` listed."""
        with torch.no_grad():
            for kind, held in zip(self.state(), values, strict=True):
                for value, old in zip(kind, held, strict=True):
                    value.copy_(old)

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs beside the weights."""
        escape = {"last_norm": self.escape.last_norm, "since": self.escape.since}
        return {"momenta": [v.cpu().clone() for v in self.momenta], **escape}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        for mine, value in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(value)
        self.escape.last_norm.copy_(state["last_norm"])
        self.escape.since.copy_(state["since"])


def _cut(n: int, parts: int) -> list[slice]:
    """Cut n samples into at most so many parts of nearly equal size, none of them empty."""
    edges = sorted({n * i // parts for i in range(parts + 1)})
    return [slice(a, b) for a, b in pairwise(edges)]
