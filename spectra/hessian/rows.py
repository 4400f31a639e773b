"""The rows of H: which entry of a flat vector belongs to which parameter of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from spectra.errors import SpectraError
from spectra.hessian.products import Parameters


@dataclass(frozen=True, eq=False)
class Rows:
    """A flat vector of length n beside the network's parameters, in both directions."""

    network: nn.Module
    names: tuple[str, ...]  # of the parameters, in the order of the flat vectors
    frozen: frozenset[str]  # those among them whose rows are zero: requires_grad was off
    layout: torch.memory_format  # of what the convolutions take

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the parameters, in the order of the flat vectors."""
        # By attribute: another thread may have put tensors in the parameters' place.
        return {name: attrgetter(name)(self.network).shape for name in self.names}

    @property
    def dim(self) -> int:
        """Number of rows, those of frozen parameters included."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def moving(self) -> int:
        """Number of rows that may be other than zero: neither frozen nor an embedding's padding."""
        still = (self.shapes[name][1:].numel() for name in self.still if name in self.live)
        return sum(self.shapes[name].numel() for name in self.live) - sum(still)

    @property
    def live(self) -> list[str]:
        """Names of the parameters that are not frozen."""
        return [name for name in self.names if name not in self.frozen]

    @property
    def places(self) -> dict[str, slice]:
        """Say where in a flat vector the parameters lie that are not frozen."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + shape.numel()
            if name not in self.frozen:
                found[name] = slice(start, end)
            start = end
        return found

    @cached_property
    def ties(self) -> dict[str, str]:
        """Say by which name a parameter goes where another module, or attribute, holds it, too."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        found: dict[str, str] = {}
        for path, module in self.network.named_modules():  # each module by its first name
            held = module.named_parameters(path, recurse=False, remove_duplicate=False)
            found |= {own: names[id(p)] for own, p in held if own != names[id(p)]}
        return found

    @cached_property
    def still(self) -> dict[str, int]:
        """Say which row of an embedding never moves: the padding's, which gradients leave out."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        tables = (m for m in self.network.modules() if isinstance(m, nn.Embedding))
        rows = ((names.get(id(m.weight)), m.padding_idx) for m in tables)
        return {name: row for name, row in rows if name is not None and row is not None}

    def call(self, network: nn.Module, parameters: Parameters, inputs: Tensor) -> Any:
        """Call the network, or a copy with the same names, with some parameters in their place.

        A module that goes by two names takes them once: torch's own way of tying leaves it with
        what it was called with.
        """
        tied = {own: parameters[name] for own, name in self.ties.items() if name in parameters}
        return functional_call(network, parameters | tied, (inputs,), tie_weights=False)

    def here(self, shift: Float[Tensor, " n"] | None = None) -> Parameters:
        """Look up the parameters that are not frozen, or a place nearby.

        Args:
            shift: (n,) what is added to them, at no trace.
        """
        values = {name: self.network.get_parameter(name).detach() for name in self.live}
        if shift is None:
            return values
        like = next(iter(values.values()), shift)
        pieces = self.direction(shift.to(like.device, like.dtype))
        return {name: value + pieces[name] for name, value in values.items()}

    def split(self, vector: Float[Tensor, " n"]) -> Parameters:
        """Cut a flat vector into pieces of the parameters' shapes, but for the frozen ones."""
        pieces: Parameters = {}
        for name, place in self.places.items():
            piece = vector[place].view(self.shapes[name])
            if piece.dim() == 4:
                piece = piece.contiguous(memory_format=self.layout)
            pieces[name] = piece
        return pieces

    def direction(self, vector: Float[Tensor, " n"]) -> Parameters:
        """Cut a flat vector that parameters move along, with zeros where they never do."""
        return self._stilled(self.split(vector))

    def _stilled(self, pieces: Parameters) -> Parameters:
        for name, row in self.still.items():
            if name in pieces:
                pieces = pieces | {name: pieces[name].clone()}
                pieces[name][row].zero_()
        return pieces

    def flatten(self, pieces: Parameters) -> Float[Tensor, " n"]:
        """Join derivatives to a flat vector, with zeros where the parameters never move."""
        return self.joined(self._stilled(pieces))

    def joined(self, pieces: Parameters) -> Float[Tensor, " n"]:
        """Join parameters to a flat vector, with zeros in place of the frozen ones."""
        like = next(iter(pieces.values()))
        rows = [
            like.new_zeros(shape.numel()) if name in self.frozen else pieces[name].reshape(-1)
            for name, shape in self.shapes.items()
        ]
        return torch.cat(rows).detach()


def select_parameters(names: list[str], wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """Choose parameters by names or globs, in the network's order.

    Raises:
        SpectraError: a pattern that no name fits.
    """
    if wanted is None:
        return tuple(names)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpectraError(
                f"got the parameter name {pattern!r}, expected names or globs among "
                f"{', '.join(names[:4])}, … ({len(names)} in all)"
            )
    return tuple(name for name in names if any(fnmatchcase(name, p) for p in patterns))
