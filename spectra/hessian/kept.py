"""Products that keep, batch by batch, all that does not depend on the vector.

    kept-graph   the graph of the gradient is kept, and each product goes through it backwards
    linearized   the product as a program of tensor operations, cut where the vector comes in
    compiled     the same program, what follows the cut compiled by torch.compile

As many batches are kept as the budget allows; for the others the first half runs in every product,
nine convolution passes instead of six. On a GPU a linearized or compiled product over all batches
is recorded as one CUDA graph.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectra.choices import KeptName, PathName
from spectra.devices import Named, recorded
from spectra.errors import first_line, out_of_memory
from spectra.hessian.batching import free_bytes
from spectra.hessian.network import by_itself, calling, logits_of, recordable
from spectra.hessian.norms import NO_MAPS, Maps, written_out
from spectra.hessian.objective import Batch, Objective
from spectra.hessian.products import Function, Parameters, differentiated
from spectra.hessian.tracing import Program, trace

Linear = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # v to H v, both by parameter
_SHARE = 2  # of free memory: the rest is for the basis and for a batch at work
_SAME = {torch.float32: 1e-4, torch.float64: 1e-10}  # relative: outputs in another order
_REPLAYED = {torch.float32: 1e-4, torch.float64: 1e-10}  # relative: sums in another order
_COARSER = 100.0  # times as much where TF32 rounds such sums to 11 bits in the next layer
_FEW = 3  # products after which what they share has paid for itself
_TURNS = 2  # changes of objective after fewer than that, in a row, that are put up with


@dataclass(frozen=True)
class _Piece:
    """Rows of an objective, and as much of what their products share as there is room for."""

    rows: Tensor  # (k,) of the objective
    size: int  # samples that they are filled up to
    batch: Batch | None
    linear: Linear | None


class KeptProducts:
    """Multiply with the Hessians of objectives that share one network.

    What is kept belongs to one objective, the last that was multiplied with; the next one takes its
    place. So a loop over classes keeps one class at a time. Moved parameters, buffers included, are
    noticed by torch's version counters, which assignments to `.data` go past.
    """

    def __init__(
        self,
        name: KeptName,
        objective: Objective,
        path: PathName,
        *,
        sizes: Sequence[int],
        budget: int | None = None,
        reserve: int = 0,
        records: bool = True,
    ) -> None:
        """Prepare a way for all selections of an objective.

        Args:
            name: of the way.
            objective: its network, parameters and precision are those of all selections.
            path: the plain way that takes over when memory runs out.
            sizes: samples at once, descending; a batch is filled up to the next of them with
                samples of weight zero, so that few shapes are traced.
            budget: bytes that may be kept; half of what is free at that time when None.
            reserve: bytes of that time's free ones that others are going to need.
            records: on a GPU, record the product over all batches as a CUDA graph.
        """
        self.name = name
        self.path = path
        self.sizes = tuple(sizes)
        self.budget = budget
        self.reserve = reserve
        self.records = records
        self.note = ""  # what went otherwise than planned, the last time that something did
        self.launched = ""  # why the products are launched one by one, on a GPU
        self.plain = False  # the plain path has taken over for the objective at hand
        self.kept_samples = 0  # of the objective at hand
        self._kept_bytes = 0  # that they take
        self._space = 0  # bytes that could have been kept when they were taken over
        self._programs: dict[int, Program] = {}  # by samples at once
        self._written: tuple[nn.Module, Maps] | None = None  # the network that they were traced of
        self._at: Parameters = {}  # the parameters of the objective at hand, as that one takes them
        self._fixed: list[int] = []  # versions of what the programs hold as constants
        self._room = budget  # for the objective at hand; 0 once memory has run out
        self._made = _FEW  # products since the last one took over
        self._changes = 0  # in a row, after fewer than a few products
        self._owner: weakref.ref[Objective] | None = None
        self._versions: list[int] = []
        self._pieces: list[_Piece] = []
        self._replay: Callable[[Named], Tensor] | None = None

    @by_itself
    def product(self, objective: Objective, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Multiply the Hessian of an objective with a vector, accumulated in float64.

        Args:
            objective: a selection of the samples of the one that this was made for.
            vector: (n,) in its precision, on its device.

        Returns:
            H v, (n,).
        """
        own = partial(self.own, objective, vector)
        return objective.mean("kept", objective.rows.here(), vector, own)

    def own(self, objective: Objective, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Sum the products over the samples at hand, in float64; give up keeping for lack of room.

        Args:
            objective: as in `product`.
            vector: as there.
        """
        vector = recordable(vector)
        owner = self._owner() if self._owner is not None else None
        if owner is not objective:
            self._change(objective)
        self._made += 1
        while not self.plain:
            try:
                with self._setting(objective):
                    return self._product(objective, vector)
            except RuntimeError as error:
                short = out_of_memory(error)
                why = "out of memory" if short else first_line(error)
            # Outside the except clause: the traceback, and what failed with it, is gone.
            self.plain, self._room = not short or self._room == 0, 0
            then = f"{self.path} instead" if self.plain else "nothing is kept"
            self.note = f"{self.name} product of {len(objective.samples)} samples: {why}; {then}"
            self._clear()
        return objective.own(self.path, objective.rows.here(), vector)

    def share(self, selections: Sequence[int]) -> float:
        """Estimate which share of the samples of some objectives would be kept, 0..1.

        Args:
            selections: samples of each; one objective at a time is kept. Each sample is taken to
                need the bytes of one that is kept now.
        """
        if self.kept_samples == 0:
            return 0.0
        fits = self._space * self.kept_samples // self._kept_bytes
        whole = fits // self.sizes[0] * self.sizes[0]
        kept = sum(n if n <= fits else whole for n in selections)
        return kept / max(1, sum(selections))

    def forgo(self) -> None:
        """Keep nothing of the objective at hand."""
        self._clear()
        self._room = 0

    def drop(self) -> None:
        """Give the memory back."""
        self._clear()
        self._owner, self._changes = None, 0

    def _clear(self) -> None:
        self._pieces, self._replay, self._versions, self._at = [], None, [], {}
        self.kept_samples = self._kept_bytes = 0

    def _change(self, objective: Objective) -> None:
        """Start anew for another objective; keep nothing where they change in every turn."""
        self._changes = self._changes + 1 if self._made < _FEW else 0
        self._clear()
        self.plain, self._made = False, 0
        self._room = 0 if self._changes > _TURNS else self.budget
        self._owner = weakref.ref(objective)

    def _setting(self, objective: Objective) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(objective.arithmetic())
        stack.enter_context(torch.set_grad_enabled(self.name == "kept-graph"))
        return stack

    def _product(self, objective: Objective, vector: Tensor) -> Tensor:
        moving = [parameter._version for parameter in objective.rows.here().values()]
        others = [tensor._version for tensor in _tensors(objective)]
        if others != self._fixed:
            self._programs, self._written, self._fixed = {}, None, others
        if not self._pieces or moving + others != self._versions:
            self._take_over(objective)
            self._versions = moving + others
            first = self._sum(objective, vector)
            self._record(objective, vector, first)
            return first
        if self._replay is not None:
            return self._replay({"vector": vector}).clone()
        return self._sum(objective, vector)

    def _sum(self, objective: Objective, vector: Tensor) -> Tensor:
        names, maps = objective.rows.live, self._network(objective)[1]
        direction = list(objective.rows.direction(maps.of(vector)).values())
        total: Tensor | None = None
        for piece in reversed(self._pieces) if objective.backwards else self._pieces:
            linear = piece.linear
            if linear is None:
                batch = piece.batch or self._filled(objective, piece)
                linear = self._linear(objective, batch)[0]
            part = objective.rows.flatten(dict(zip(names, linear(direction), strict=True)))
            total = part.double() if total is None else total.add_(part)
        assert total is not None
        return maps.back(total)

    def _network(self, objective: Objective) -> tuple[nn.Module, Maps]:
        """Write the network out for the programs, once; a kept graph takes it as it is."""
        if self._written is None and self.name == "kept-graph":
            self._written = objective.network, NO_MAPS
        if self._written is None:
            written = written_out(objective.network, objective.rows.places)
            if not self._same(objective, *written):
                written = written_out(objective.network, {})
            self._written = written
        return self._written

    def _same(self, objective: Objective, network: nn.Module, maps: Maps) -> bool:
        """Compare the outputs for one sample: a norm's parameters may be read by others, too."""
        rows, inputs = objective.rows, objective.batch(slice(0, 1))[0]
        plain = replace(objective, tf32=False).arithmetic()  # TF32 alone may be farther off
        with plain, torch.no_grad(), calling(widened=objective.widened):
            ours = logits_of(rows.call(network, _mapped(objective, maps), inputs))
            theirs = logits_of(rows.call(objective.network, rows.here(), inputs))
        return bool((ours - theirs).norm() <= _SAME[objective.dtype] * theirs.norm())

    def _take_over(self, objective: Objective) -> None:
        """Keep as much of an objective as the budget allows."""
        self._clear()
        self._at = _mapped(objective, self._network(objective)[1])
        left = self._room
        if left is None:
            left = (free_bytes(objective.device) - self.reserve) // _SHARE
        self._space = left
        for piece in self._cut(objective):
            if left > 0:
                batch = self._filled(objective, piece)
                left -= _bytes(batch)
                if left >= 0:
                    piece = replace(piece, batch=batch)
            if left > 0:
                linear, size = self._linear(objective, batch)
                left -= size
                if left >= 0:
                    piece = replace(piece, linear=linear)
                    self.kept_samples += len(piece.rows)
                    self._kept_bytes = self._space - left
            self._pieces.append(piece)

    def _cut(self, objective: Objective) -> Iterator[_Piece]:
        """Cut the samples into batches of few sizes."""
        start, count = 0, len(objective.samples)
        while start < count:
            left, size = count - start, self.sizes[0]
            if left < size:
                size = min(self.sizes, key=lambda size: (-(-left // size) * size, -size))
            rows = torch.arange(start, min(start + size, count), device=objective.device)
            yield _Piece(rows, size, None, None)
            start += size

    def _filled(self, objective: Objective, piece: _Piece) -> Batch:
        """Prepare a batch, filled up with samples of weight zero where its shape is traced."""
        rows = piece.rows
        if self.name == "kept-graph":
            return objective.batch(rows)
        lacking = piece.size - len(rows)
        more = rows[torch.arange(lacking, device=rows.device) % len(rows)]
        x, targets, weights = objective.batch(torch.cat([rows, more]))
        weights[len(rows) :] = 0
        return x, targets, weights

    def _linear(self, objective: Objective, batch: Batch) -> tuple[Linear, int]:
        """Compute all that the products with one batch share; count its bytes."""
        at = self._at
        if self.name == "kept-graph":
            known = {_start(p) for p in objective.network.parameters()}
            with _counted_saves() as sizes:
                linear = _through_graph(partial(objective._weighted_sum, *batch), at)
            return linear, sum(size for start, size in sizes.items() if start not in known)
        program = self._program(objective, batch)
        given = (*at.values(), *batch)
        kept = program.prepare(*given)
        return lambda direction: program.apply(*given, *kept, *direction), _bytes(kept)

    def _program(self, objective: Objective, batch: Batch) -> Program:
        size = len(batch[1])
        if size not in self._programs:
            out = replace(objective, network=self._network(objective)[0])

            def bound(inputs: Tensor, targets: Tensor, weights: Tensor) -> Function:
                return partial(out._weighted_sum, inputs, targets, weights)

            program = trace(bound, self._at, batch)
            self._programs[size] = program.compiled() if self.name == "compiled" else program
        return self._programs[size]

    def _record(self, objective: Objective, vector: Tensor, first: Tensor) -> None:
        """On a GPU, record the product over all batches, and compare the recording with it.

        Args:
            objective: what is kept of it is at hand.
            vector: (n,).
            first: the product with it; takes the bits that the recording gives.
        """
        if objective.device.type != "cuda" or self.name == "kept-graph" or not self.records:
            return
        # A host may have to prepare a batch that is not kept; and who takes turns keeps none.
        if any(piece.batch is None for piece in self._pieces):
            return
        try:
            step = recorded(
                lambda given: self._sum(objective, given["vector"]),
                {"vector": torch.zeros_like(vector)},
                warmups=1,
            )
            again = step({"vector": vector})
            size = first.norm().clamp(min=torch.finfo(first.dtype).tiny)  # a product may be zero
            gap = float((again - first).norm() / size)
            why = f"{gap:.1e} from the plain launches"
        except RuntimeError as error:  # a capture may fail in any way; there is room without one
            gap, why = torch.inf, "out of memory" if out_of_memory(error) else first_line(error)
        if gap <= _REPLAYED[objective.dtype] * (_COARSER if objective.tf32 else 1):
            self._replay = step
            first.copy_(again)
        else:
            self.launched = f"{self.name} product not recorded as a CUDA graph ({why})"


def _mapped(objective: Objective, maps: Maps) -> Parameters:
    """Look the parameters up as a written-out network expects them."""
    here = objective.rows.here()
    parts = objective.rows.split(maps.of(objective.rows.joined(here))) if maps.names else here
    # Copies: tracing by shapes fails, from the second time on, with views of one vector.
    return here | {name: parts[name].clone() for name in maps.names}


def _through_graph(f: Function, at: Parameters) -> Linear:
    """Keep the graph of a gradient; a product is its gradient along the vector."""
    leaves, first = (list(p.values()) for p in differentiated(f, at, create_graph=True))
    curved = [k for k, part in enumerate(first) if part.requires_grad]

    def linear(direction: Sequence[Tensor]) -> Sequence[Tensor]:
        if not curved:  # the loss is affine in every parameter
            return [torch.zeros_like(leaf) for leaf in leaves]
        return torch.autograd.grad(
            [first[k] for k in curved],
            leaves,
            [direction[k] for k in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    return linear


@contextlib.contextmanager
def _counted_saves() -> Iterator[dict[int, int]]:
    """Collect the bytes of what autograd saves, by where its storage starts."""
    sizes: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        sizes[_start(saved)] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        yield sizes


def _start(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(objective: Objective) -> Iterator[Tensor]:
    """List what a program holds as constants: buffers, and parameters that are not its rows."""
    live = set(objective.rows.live)
    yield from objective.network.buffers()
    yield from (p for name, p in objective.network.named_parameters() if name not in live)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({_start(t): t.untyped_storage().nbytes() for t in tensors}.values())
