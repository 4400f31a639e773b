"""The device: found by name or refused in one line; its arithmetic set and put back."""

import contextlib
import platform
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from spectra import devices
from spectra.devices import arithmetic, bf16_cost, device_name, find_device
from spectra.errors import SpectraError

BACKENDS = torch.backends


def settings() -> tuple[object, ...]:
    conv, matmul = BACKENDS.cudnn.conv, BACKENDS.cuda.matmul
    return conv.fp32_precision, matmul.fp32_precision, BACKENDS.cudnn.deterministic


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "cuda:99", "nonsense", "", "cuda:x", "mps:7", "hpu"])
def test_a_device_that_can_hold_no_value_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(SpectraError, match=r"got the device .* use --device cpu or auto") as caught:
        find_device(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_device_is_named_for_the_reader(device: torch.device) -> None:
    threads = f", {torch.get_num_threads()} threads)"
    cuda = device.type == "cuda"
    assert device_name(device).endswith(torch.cuda.get_device_name(device) if cuda else threads)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_arithmetic_is_set_on_cuda_and_put_back(precision: str) -> None:
    """The flags are there without a GPU, too."""
    before = settings()
    with arithmetic(torch.device("cuda"), precision=precision):
        assert settings() == (precision, precision, True)
    assert settings() == before
    with arithmetic(torch.device("cpu"), precision=precision):
        assert settings() == before


def test_a_cpu_that_was_told_to_round_does_not_and_is_left_as_it_was() -> None:
    """Products in bfloat16 would be called float32; what was inherited is inherited again."""
    conv, matmul = BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    assert not {*before} & {"bf16", "tf32"}
    try:
        conv.fp32_precision = "bf16"
        BACKENDS.fp32_precision = "tf32"
        matmul.fp32_precision = "none"
        assert (conv.fp32_precision, matmul.fp32_precision) == ("bf16", "tf32")
        with arithmetic(torch.device("cpu")):
            assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        assert (conv.fp32_precision, matmul.fp32_precision) == ("bf16", "tf32")
        BACKENDS.fp32_precision = "none"
        assert matmul.fp32_precision == "none"
    finally:
        BACKENDS.fp32_precision = "none"
        conv.fp32_precision, matmul.fp32_precision = before


def test_bf16_costs_what_its_convolution_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its quickest turn: the machine may be busy in the others."""
    now, turns = 0.0, {torch.float32: 0, torch.bfloat16: 0}

    def convolve(image: torch.Tensor, weight: torch.Tensor, padding: int) -> None:
        nonlocal now
        assert image.dtype == weight.dtype
        turns[image.dtype] += 1
        now += 0.02 if image.dtype == torch.bfloat16 else 0.005
        now += 0.0 if turns[image.dtype] == 4 else 1.0

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=lambda: now))
    assert bf16_cost() == pytest.approx(4)
    assert min(turns.values()) >= 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_was_freed_is_used_again() -> None:
    """Pages that the system must hand out anew, for four blocks of 64 MB again and again.

    Above 32 MB glibc by itself gives every block back; below, that depends on what lies on top
    of the heap. With the setting the first rounds still find their places.
    """
    ask = "import ctypes; print(ctypes.CDLL(None).mallopt(-3, 2**30))"
    if subprocess.run([sys.executable, "-c", ask], capture_output=True).stdout.strip() != b"1":
        pytest.skip("this glibc keeps blocks up to 32 MiB only")
    count = """
        import resource, sys, torch
        from spectra.devices import keep_freed_memory
        if sys.argv[1] == "keep":
            keep_freed_memory()
        def use(times):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(times):
                blocks = [torch.ones(1 << 24) for _ in range(4)]
                del blocks
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        use(4)
        print(use(3))
    """
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", textwrap.dedent(count), how],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for how in ("keep", "give back")
    }  # fmt: skip
    assert 10 * faults["keep"] < faults["give back"], faults


def test_a_recording_that_failed_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def wait_stream(self, _: object) -> None:
            pass

    @contextlib.contextmanager
    def graph(_: object) -> Iterator[None]:
        try:
            yield
        finally:
            if calls.count("fail"):  # as torch ends a capture, whatever went wrong in it
                raise RuntimeError("the capture was invalidated")

    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    calls: list[str] = []

    def step(given: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append("step")
        if calls.count("fail") and calls.count("step") == 12:
            raise RuntimeError("a copy from the host")
        return given["x"]

    given = {"x": torch.ones(2)}
    for _ in range(2):
        devices.recorded(step, given)
    calls.append("fail")
    with pytest.raises(RuntimeError, match="a copy from the host"):  # the cause
        devices.recorded(step, given)
    assert calls.count("step") == 12  # three to warm up, and the recording
    with pytest.raises(RuntimeError, match="earlier recording has failed: a copy from the host"):
        devices.recorded(step, given)
    assert calls.count("step") == 12
