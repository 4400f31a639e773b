"""Claims about memory, measured where tensors are made (tracemalloc sees none of them)."""

import importlib
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectra.krylov import (
    SymmetricOperator,
    lanczos,
    quadratic_form_probes,
    random_start,
    spectral_measure,
)

N = 20_000


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensor storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.watch(leaf.untyped_storage())
        return result

    def watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> int:
    if device.type == "cuda":
        torch.ones(2, 2, device=device) @ torch.ones(2, device=device)  # cuBLAS takes its workspace
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as counter:
        work()
    return counter.peak


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def operator(request: pytest.FixtureRequest, device: torch.device) -> SymmetricOperator:
    d = torch.linspace(-1, 1, N, dtype=request.param, device=device)
    return SymmetricOperator(lambda v: d * v, N, request.param, device)


@pytest.mark.parametrize("steps", [10, 50])
def test_a_run_holds_its_basis_and_a_few_vectors(operator, steps):
    """P43: the basis is steps · n · itemsize"""
    start = random_start(N, seed=0, probe=0, dtype=operator.dtype, device=operator.device)
    peak = peak_bytes(operator.device, lambda: lanczos(operator, start, steps=steps))
    basis = steps * N * operator.dtype.itemsize
    assert basis <= peak <= basis + 5 * N * 8 + 50_000


def test_peak_memory_does_not_grow_with_the_number_of_probes(operator):
    """P43"""
    one, six = (
        peak_bytes(operator.device, lambda p=p: spectral_measure(operator, steps=10, probes=p))
        for p in (1, 6)
    )
    assert abs(six - one) <= N * 8


def test_one_product_probes_are_drawn_one_at_a_time(operator):
    """P43"""
    device = operator.device
    peak = peak_bytes(device, lambda: quadratic_form_probes(operator, probes=50, seed=0))
    assert peak <= 8 * N * 8


def test_the_same_counter_catches_a_measure_that_hoards_its_bases(operator):
    """P42: a memory test that cannot fail would be worth nothing"""

    def hoard(probes: int) -> None:
        starts = (random_start(N, seed=0, probe=p, device=operator.device) for p in range(probes))
        _ = [lanczos(operator, start, steps=10) for start in starts]  # bases kept

    one, six = (peak_bytes(operator.device, lambda p=p: hoard(p)) for p in (1, 6))
    assert six - one >= 5 * 10 * N * operator.dtype.itemsize


def test_dropping_the_basis_frees_it(operator):
    """P42, P43"""
    start = random_start(N, seed=0, probe=0, dtype=operator.dtype, device=operator.device)
    run = lanczos(operator, start, steps=10)
    watch = weakref.ref(run.basis)
    run = run.without_basis()
    assert watch() is None
    assert run.ritz().values.shape == (10,)


def test_without_a_basis_memory_does_not_grow_with_the_steps(operator):
    """P43"""
    start = random_start(N, seed=0, probe=0, dtype=operator.dtype, device=operator.device)
    few, many = (
        peak_bytes(operator.device, lambda m=m: lanczos(operator, start, steps=m, basis="none"))
        for m in (10, 60)
    )
    assert many <= few + 10_000
    assert many <= 2 * N * operator.dtype.itemsize + 5 * N * 8 + 50_000


def test_a_basis_in_main_memory_takes_none_of_the_devices(operator, monkeypatch):
    if operator.device.type == "cpu":
        pytest.skip("a CPU has one memory; python -m pytest --device cuda")
    monkeypatch.setattr(importlib.import_module("spectra.krylov.basis"), "MOVED", 4 * N * 8)
    start = random_start(N, seed=0, probe=0, dtype=operator.dtype, device=operator.device)
    work = partial(lanczos, operator, start, steps=60, basis="host")
    assert peak_bytes(operator.device, work) <= 12 * N * 8 + 50_000
