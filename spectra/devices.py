"""Where the numbers are computed, and in which arithmetic."""

import contextlib
import ctypes
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import SpectraError, first_line, out_of_memory

Named = dict[str, Tensor]
Result = TypeVar("Result")
_FAILED = ""  # why a recording of a CUDA graph has failed in this process


def find_device(name: str) -> torch.device:
    """Find the device of a name, and try whether it can hold a value.

    Args:
        name: "auto" (CUDA where there is a GPU, else the CPU), or what `torch.device` takes.

    Returns:
        The device.

    Raises:
        SpectraError: for no device, one that this machine lacks, or "meta", which holds no values.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA asserts
        raise SpectraError(
            f"got the device {name!r}, expected one of this machine that can hold a value "
            f"({first_line(error)}): nothing could be computed; use "
            "--device cpu or auto"
        ) from error
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Name a device for the reader of a result: the GPU's own name, or the CPU's kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def at_once(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor of the CPU; to a GPU without waiting for what that is doing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for good, where the C library is glibc.

    Each update of a training run on a CPU asks for the activations' hundreds of megabytes again.
    glibc gives them back to the system in between, and every page that comes anew is a fault and
    is zeroed.

    References:
        mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        # Older ones take 32 MiB at most. Where none is taken the others are not set either: any
        # of them ends glibc's own choice of the threshold, which would stay at its smallest.
        if mallopt(-3, 2**30) or mallopt(-3, 2**25):
            mallopt(-1, -1)
            mallopt(-2, 2**28)


def give_back_memory() -> None:
    """Give the system what is free now, after an exceptional peak; see `keep_freed_memory`."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def bf16_cost() -> float:
    """Time a small convolution on this processor; without AVX-512 nobody tuned the one in bf16.

    Returns:
        Its time in bf16 by that in float32, the shortest of ten turns of each.
    """
    best = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    image, weight = torch.ones(8, 32, 16, 16), torch.ones(32, 32, 3, 3)
    for _ in range(10):
        for dtype in best:
            x, w = (t.to(dtype, memory_format=torch.channels_last) for t in (image, weight))
            start = time.perf_counter()
            torch.nn.functional.conv2d(x, w, padding=1)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.bfloat16] / best[torch.float32]


@contextlib.contextmanager
def arithmetic(device: torch.device, *, precision: str = "ieee") -> Iterator[None]:
    """Say how float32 numbers are multiplied, whatever the program around has asked for.

    cuDNN's convolutions round to TF32 unless they are told not to, and add in another order from
    call to call unless they are told not to; a CPU's round to bfloat16 where they are told to.
    Every setting is put back on the way out.

    Args:
        device: where the block computes.
        precision: "ieee" (float32), or "tf32" (10 bits of mantissa), of convolutions and matrices
            on CUDA.
    """
    wanted: list[tuple[Any, str, object]] = []
    if device.type == "cuda":
        conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
        wanted = [(owner, "fp32_precision", precision) for owner in (conv, matmul)]
        wanted.append((torch.backends.cudnn, "deterministic", True))
    elif device.type == "cpu":
        of_cpu = (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        rounding = [owner for owner in of_cpu if owner.fp32_precision not in ("none", "ieee")]
        wanted = [(owner, "fp32_precision", "ieee") for owner in rounding]
    with contextlib.ExitStack() as stack:
        for owner, name, value in wanted:
            held = getattr(owner, name)
            if name == "fp32_precision":  # what is inherited is read as if it were its own
                owner.fp32_precision = "none"
                held = "none" if owner.fp32_precision == held else held
            stack.callback(setattr, owner, name, held)
            setattr(owner, name, value)
        yield


def compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """Compile a function for fixed shapes, without the advice to round to TF32."""
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", category=UserWarning)
    made: Callable[..., Result] = torch.compile(function, dynamic=False)
    return made


@cache  # a CUDA graph may read one for as long as it lives
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Put numbers on a device once: a copy from the host has no place in a CUDA graph.

    A thread of its own makes them, because inference mode and the levels of torch.func are a
    thread's: a tensor made inside would be bound to them, and outlive them here.
    """
    with ThreadPoolExecutor(1) as outside:
        return outside.submit(torch.tensor, values, dtype=dtype, device=device).result()


def recorded(
    step: Callable[[Named], Tensor], example: Named, *, warmups: int = 3
) -> Callable[[Named], Tensor]:
    """Record a step as one CUDA graph; warming up moves whatever the step moves.

    Args:
        step: uses the tensors that it is given and a fixed set of others, and never waits for the
            device.
        example: tensors of the shapes to come, on the device.
        warmups: runs before the recording: as many as torch advises where autograd takes part; one
            for a program that has run already.

    Returns:
        The step for tensors of these shapes; its result is overwritten by the next call.

    References:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    Raises:
        RuntimeError: the recording fails, or one has failed before in this process: torch below
            2.12 does not give back what such a one held, and the next would hold more. From 2.12 on
            one that failed for lack of memory does not count.
    """
    global _FAILED
    if _FAILED:
        raise RuntimeError(f"an earlier recording has failed: {_FAILED}")
    held = {name: value.clone() for name, value in example.items()}
    device = next(iter(held.values())).device
    # The stream is put back here because a capture that fails leaves its own one current.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warmups):  # lazy initialisation, the choice of algorithms stay outside
                step(held)
        torch.cuda.current_stream().wait_stream(side)
        graph, _FAILED = torch.cuda.CUDAGraph(), "it was interrupted"
        cause: RuntimeError | None = None
        try:
            with torch.cuda.graph(graph):
                try:
                    result = step(held)
                except RuntimeError as error:
                    cause = error
                    raise
        except RuntimeError as error:
            # The end of a capture that has failed raises an error of its own, which says nothing.
            cause = cause or error
            # Less may fit, where what this one held is given back.
            again = out_of_memory(cause) and torch.__version__ >= "2.12"
            _FAILED = "" if again else first_line(cause) or type(cause).__name__
            raise cause from None
        _FAILED = ""

    def replay(batch: Named) -> Tensor:
        for name, value in batch.items():
            held[name].copy_(value)
        graph.replay()
        return result

    return replay
