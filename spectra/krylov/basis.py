"""Where the basis of a Krylov space lives, and how a vector is made orthogonal to it.

The rows q_1, ..., q_j of Qᵀ take m · n numbers. They are kept beside the operator ("device"), in
main memory ("host": 10 GB for 100 steps of 25 million parameters, too much beside a network on many
a GPU), or not at all ("none": the last two, which the three-term recurrence needs). From main
memory they come in blocks B of rows, so that each row is moved once a pass:

    w ← w - Bᵀ (B w)   for each block

With orthonormal rows the order of the blocks makes no difference but rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spectra.errors import SpectraError
from spectra.krylov.operator import CPU

Place = Literal["device", "host", "none"]

MOVED = 2**28  # bytes of a basis in main memory that are on the device at once
# Entries that one sum in the basis' own precision runs over. A GPU adds in trees, which lose
# little, and every piece costs it a launch: 10^8 parameters would have 12,200 of them a step.
PIECE, PIECE_ON_GPU = 2**14, 2**20


@dataclass
class Basis:
    """Hold the rows of Qᵀ that are known so far, all of them or the last two."""

    rows: Float[Tensor, "k n"]  # room for them; row j lies at j mod k
    place: Place
    device: torch.device  # of the operator
    count: int = 0  # rows that were added
    locked: bool = False  # in main memory, and no copy of a row has to be awaited

    @staticmethod
    def empty(
        place: Place, *, steps: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> Basis:
        """Make room for so many rows of n numbers.

        Raises:
            SpectraError: if the memory does not suffice.
        """
        kept = min(steps, 2) if place == "none" else steps
        home = CPU if place == "host" else device
        try:
            return Basis(torch.empty((kept, dim), dtype=dtype, device=home), place, device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU's has no name
            raise SpectraError(
                f"got no memory for a Krylov basis of {kept} x {dim} numbers on {home} "
                f"({kept * dim * dtype.itemsize / 1e9:.1f} GB), expected room for it; make fewer "
                "steps, or keep it elsewhere with basis host or none"
            ) from error

    def add(self, vector: Float64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Keep one more row; give it back in the precision of the basis, beside the operator."""
        room = self.rows[self.count % len(self.rows)]
        self.count += 1
        if room.device.type == self.device.type:
            return room.copy_(vector)
        row = vector.to(room.dtype)
        room.copy_(row, non_blocking=self.locked)
        return row

    def remove_from(self, w: Float64[Tensor, " n"]) -> Float64[Tensor, " k"]:
        """Subtract from w, in place, what lies along the rows that are kept; give Q w."""
        overlaps = []
        for rows in self._blocks():
            overlap = _overlaps(rows, w)
            w.sub_(rows.T @ overlap.to(rows.dtype))
            overlaps.append(overlap)
        return torch.cat(overlaps)

    def first(self, steps: int) -> Float[Tensor, "m n"] | None:
        """Give the first rows, None where they are not kept."""
        return None if self.place == "none" else self.rows[:steps]

    def _blocks(self) -> Iterator[Float[Tensor, "b n"]]:
        known = self.rows[: self.count]
        if self.place != "host":
            yield known
            return
        size = max(1, MOVED // (known.shape[1] * known.element_size()))
        for rows in torch.split(known, size):
            yield rows.to(self.device, non_blocking=self.locked)

    @contextlib.contextmanager
    def page_locked(self) -> Iterator[None]:
        """Lock rows in main memory while a GPU works with them: copies are fast and unawaited.

        torch's own pinned memory would round 10 GB up to 16, to a power of two. Where the system
        does not lock so much the GPU waits for every copy, and the numbers are the same.
        """
        if self.place != "host" or self.device.type != "cuda":
            yield
            return
        library = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address = self.rows.data_ptr()
        self.locked = int(library.cudaHostRegister(address, self.rows.nbytes, 1)) == 0  # everywhere
        if not self.locked:
            _take_up_error(self.device)
        try:
            yield
        finally:
            if self.locked:
                torch.cuda.synchronize(self.device)  # no copy may be under way
                library.cudaHostUnregister(address)
                self.locked = False


def _take_up_error(device: torch.device) -> None:
    """Launch a kernel for the sake of the error that a refused call leaves to the next one."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device=device)


def choose_place(needed: int, *, on_device: int | None, on_host: int | None) -> Place:
    """Choose where a basis is kept: beside the operator if it fits, else in main memory.

    Args:
        needed: bytes of the basis.
        on_device: bytes free beside the operator, of which a batch of samples needs a quarter; None
            if that is main memory.
        on_host: bytes free in main memory; None where the system does not tell.

    Raises:
        SpectraError: if it fits neither.
    """
    if on_device is not None and needed <= on_device - on_device // 4:
        return "device"
    if on_host is None or needed <= on_host:
        return "device" if on_device is None else "host"
    raise SpectraError(
        f"got a Krylov basis of {needed / 1e9:.1f} GB, expected it to fit the {on_host / 1e9:.1f} "
        "GB of main memory that are free: the system would end the process; make fewer steps, or "
        "keep no basis (--basis none)"
    )


def _overlaps(known: Float[Tensor, "k n"], w: Float64[Tensor, " n"]) -> Float64[Tensor, " k"]:
    # A float32 product with rows of 10^6 numbers loses four digits on a CPU (naive sums), and a
    # float64 copy of the basis would be twice the basis: so float32 pieces, added up in float64.
    size = PIECE if known.device.type == "cpu" else PIECE_ON_GPU
    parts = zip(torch.split(known, size, 1), torch.split(w.to(known.dtype), size), strict=True)
    return torch.stack([q @ x for q, x in parts]).sum(0, dtype=torch.float64)
