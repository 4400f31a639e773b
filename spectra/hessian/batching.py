"""How many samples pass through the network at once, and what to call out of memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spectra.data.memory import free_memory

# Bytes that a product holds per byte of layer outputs: primals, tangents, and what reverse mode
# saves of both. A guess is enough, for running out of memory halves the batch.
_ACTIVATION_FACTOR = 8
_LARGEST_BATCH = {"cpu": 32, "cuda": 2048}  # on a CPU more than fits the caches is slower
_UNKNOWN = 4 * 2**30  # bytes taken to be free where the system does not tell


@dataclass
class Batching:
    """How many samples pass through the network at once; shrinks when memory runs out.

    All selections of one objective share it, so that none learns anew what fits.
    """

    size: int


def automatic_batch(seen: int, device: torch.device) -> int:
    """Guess how many samples that put out `seen` bytes each fit into a quarter of free memory."""
    fits = free_bytes(device) // 4 // max(1, seen * _ACTIVATION_FACTOR)
    return int(max(1, min(fits, _LARGEST_BATCH.get(device.type, 32))))


def free_bytes(device: torch.device) -> int:
    """Count the bytes that tensors on a device can still take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    free = free_memory()
    return _UNKNOWN if free is None else free
