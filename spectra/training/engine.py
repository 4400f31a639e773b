"""One update of the weights from one batch, and its faster forms.

    plain     eager PyTorch: the reference that the others are compared with
    compiled  the network compiled by torch.compile, the rest as it is
    graph     the whole update recorded once as a CUDA graph and replayed
    compiled-graph   both

The faster forms are checked before they are used: from the same weights and batch they must give
the plain update up to rounding, else the run goes on with the plain one and says so in one line.
That is no idle fear: imbsam and sse-sam take two gradients of one pass, a compiled backward frees
its buffers in the first, and told to keep them (torch 2.13) it took a cached program that does not:
12 % of the update was wrong, silently. They run plain or as a graph.
A batch of another size than the usual one, the last of an epoch, takes the plain way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpectraError
from ..losses import LossSpec
from .recipes import Recipe
from .steps import Escape, Gradient, Pass, Weights, descend, imbsam, lpf_sgd, pgd, sam, sgd, sse_sam

PATHS = ("auto", "plain", "compiled", "graph", "compiled-graph")
# Largest relative difference between a faster update and the plain one, by the arithmetic.
ROUNDING = {"float64": 1e-9, "float32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}
Batch = dict[str, Tensor]  # inputs (n, ...), targets (n,), and noise (draws, parameters) if used


class Engine:
    """Hold a network with its momentum, and move it a batch at a time.

    Args:
        recipe: what to do.
        network: in training mode, on its device; its weights change.
        counts: training samples of each class, (C,).
        path: one of `PATHS`; auto is graph on a GPU and plain elsewhere.
    """

    def __init__(
        self, recipe: Recipe, network: nn.Module, counts: tuple[int, ...], path: str = "plain"
    ) -> None:
        self.recipe, self.network, self.counts = recipe, network, counts
        self.weights = Weights(network, still=not recipe.bn_both_passes)
        parameters = self.weights.parameters
        self.device, self.dtype = parameters[0].device, parameters[0].dtype
        if path == "auto":
            path = "graph" if self.device.type == "cuda" else "plain"
        if path not in PATHS or (path.endswith("graph") and self.device.type != "cuda"):
            raise SpectraError(
                f"the update is {path!r} on {self.device.type}; expected one of {', '.join(PATHS)}"
                ", with CUDA for the graphs"
            )
        self.path, self.note = path, ""
        self.momenta = [torch.zeros_like(p) for p in parameters]
        # A graph reads the rate from memory, where each epoch writes it.
        self.lr: float | Tensor = self._number(recipe.lr) if path.endswith("graph") else recipe.lr
        self.escape = Escape(self._number(torch.inf), self._number(float(recipe.noise_interval)))
        self.radius, self.noise = self._number(0.0), self._number(0.0)
        self.rare = torch.tensor([n < recipe.rare_below for n in counts], device=self.device)
        self._replay: Callable[[Batch], Tensor] | None = None
        self.set_epoch(1)

    @property
    def draws(self) -> int:
        """Count the noise draws that a batch needs."""
        return {"pgd": 1, "lpf-sgd": self.recipe.noise_parts}.get(self.recipe.step, 0)

    def set_epoch(self, epoch: int) -> None:
        """Take learning rate, radius, noise and class weights from the schedules."""
        recipe, lr = self.recipe, self.recipe.lr_of(epoch)
        self.lr = self.lr.fill_(lr) if isinstance(self.lr, Tensor) else lr
        self.radius.fill_(recipe.rho_of(epoch))
        self.noise.fill_(recipe.noise_of(epoch))
        phase = recipe.loss_of(epoch, self.counts), recipe.rho_of(epoch) > 0
        if phase != getattr(self, "_phase", None):
            self._phase: tuple[LossSpec, bool] = phase
            self._replay = None  # what was recorded belongs to another loss

    @property
    def loss(self) -> LossSpec:
        """Describe the training loss of the current epoch."""
        return self._phase[0]

    def update(self, batch: Batch) -> Tensor:
        """Move the weights by one step.

        Args:
            batch: inputs (n, ...), targets (n,), noise (draws, parameters).

        Returns:
            (2,): the batch's loss at w times n, and how many samples were classified correctly
            there; on the device, valid until the next update.
        """
        if self.path == "plain" or len(batch["targets"]) != self.recipe.batch_size:
            return self._step(self.network, batch)
        if self._replay is None:
            self._replay = self._checked(batch)
        return self._replay(batch)

    def _step(self, network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        slope, here = self._direction(network, batch)
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
                    climb_head=self._phase[1],
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
        """Make the faster update; give the plain one if it fails or differs from it."""
        before = self._clones()
        plain = partial(self._step, self.network)
        try:
            plain(batch)
            expected = self._clones()
            self._restore(before)
            network: Callable[[Tensor], Tensor] = self.network
            if self.path.startswith("compiled"):
                network = torch.compile(self.network, dynamic=False)
            fast: Callable[[Batch], Tensor] = partial(self._step, network)
            if self.path.endswith("graph"):
                fast = recorded(fast, batch, self._state())
                self._restore(before)
            fast(batch)
            moved = _distance(expected, before)
            difference = _distance(self._clones(), expected) / max(moved, 1e-30)
        except Exception as error:  # a compiler may fail in any way, and the plain path is there
            difference, why = torch.inf, f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            why = f"its update is {difference:.1e} from the plain one"
        self._restore(before)
        if difference <= ROUNDING[self.recipe.precision]:
            return fast
        self.note = f"the {self.path} path is not used ({why[:200]}); the plain one is"
        self.path = "plain"
        return plain

    def _state(self) -> list[Tensor]:
        """List all that an update changes."""
        moving = [*self.momenta, self.escape.last_norm, self.escape.since]
        return [*self.weights.parameters, *self.network.buffers(), *moving]

    def _clones(self) -> list[Tensor]:
        return [value.detach().clone() for value in self._state()]

    def _restore(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for value, old in zip(self._state(), values, strict=True):
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


def recorded(
    step: Callable[[Batch], Tensor], example: Batch, state: Sequence[Tensor]
) -> Callable[[Batch], Tensor]:
    """Record a step on the current CUDA device; the state is moved by warming up.

    Args:
        step: uses the batch's tensors and a fixed set of others, and never waits for the device.
        example: a batch of the shapes to come.
        state: tensors that the step changes in place.

    Returns:
        The step for batches of these shapes; its result is overwritten by the next call.

    References:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    held = {name: value.clone() for name, value in example.items()}
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # lazy initialisation and the choice of algorithms stay outside
            step(held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(held)

    def replay(batch: Batch) -> Tensor:
        for name, value in batch.items():
            held[name].copy_(value)
        graph.replay()
        return result

    return replay


def _cut(n: int, parts: int) -> list[slice]:
    """Cut n samples into at most so many parts of nearly equal size, none of them empty."""
    edges = sorted({n * i // parts for i in range(parts + 1)})
    return [slice(a, b) for a, b in pairwise(edges)]


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    squares = [
        (a - b).double().square().sum()
        for a, b in zip(one, other, strict=True)
        if a.is_floating_point() and bool(torch.isfinite(a - b).all())
    ]
    return float(torch.stack(squares).sum().sqrt())
