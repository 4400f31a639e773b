"""The CUDA paths on a machine without CUDA: nothing left on the host, no wait inside a recording.

FakeTensorMode cannot do it: torch without CUDA aborts as soon as autograd meets a fake CUDA leaf,
and fake tensors have no values to decide by. So tensors of the CPU are marked, by storage, as lying
on a GPU. One mode answers `.device` and translates devices at the Python surface; the other refuses
operations over both kinds, and, inside a pretended recording, copies from the host and waits.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.overrides import TorchFunctionMode
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectra import amplification, devices, lanczos, random_start
from spectra.data import Samples
from spectra.doctor import certify
from spectra.hessian import (
    HessianOperator,
    KeptProducts,
    Objective,
    Work,
    choose_product,
    choose_way,
    kept,
)
from spectra.krylov import SymmetricOperator
from spectra.losses import LossSpec
from spectra.training import faster
from spectra.training.engine import Engine
from spectra.training.evaluation import evaluate
from spectra.training.loop import run_epoch
from spectra.training.recipes import Recipe

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="here the real one can be had")
GPU = torch.device("cuda", 0)
_GPUS: set[int] = set()  # storages
_NOW = threading.local()  # recording, tracing (by shapes), made_here (factories put on the GPU)
aten = torch.ops.aten
_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
_COPIES = {aten.copy_.default, aten._foreach_copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


def now(what: str) -> bool:
    return getattr(_NOW, what, False)


@contextlib.contextmanager
def setting(**values: bool) -> Iterator[None]:
    before = {name: now(name) for name in values}
    vars(_NOW).update(values)
    try:
        yield
    finally:
        vars(_NOW).update(before)


def storage(t: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        while functorch.is_functorch_wrapped_tensor(t):
            t = functorch.get_unwrapped(t)
        try:
            return t.untyped_storage()
        except (NotImplementedError, RuntimeError):  # symbolic zeros
            return None


def on_gpu(t: object) -> bool:
    return isinstance(t, Tensor) and (s := storage(t)) is not None and s._cdata in _GPUS


def put(made: object) -> Any:
    for t in tree_leaves(made):
        if isinstance(t, Tensor) and (s := storage(t)) is not None and s._cdata not in _GPUS:
            _GPUS.add(s._cdata)
            weakref.finalize(s, _GPUS.discard, s._cdata)
    return made


def moved(t: Tensor, to_gpu: bool) -> Tensor:
    if on_gpu(t) == to_gpu:
        return t
    assert not now("recording"), "copy between host and device inside a recording"
    with setting(tracing=True):
        new = t.clone()
    return put(new) if to_gpu else new


class Devices(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if now("tracing"):
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if on_gpu(args[0]) else func(*args)
        if name == "numpy":
            assert not on_gpu(args[0]), "numpy() of a tensor on the GPU"
        if name == "pin_memory":
            return args[0]
        if name == "cpu":
            return moved(args[0], False)
        if name == "to" and isinstance(args[0], Tensor):
            t, rest = args[0], []
            for a in [*args[1:], kwargs.pop("device", None)]:
                if isinstance(a, Tensor):
                    t, a = moved(t, on_gpu(a)), a.dtype
                if isinstance(a, torch.device | str):
                    t = moved(t, torch.device(a).type == "cuda")
                elif isinstance(a, torch.dtype):
                    rest.append(a)
            kwargs.pop("non_blocking", None)
            return t.to(*rest, **kwargs) if rest or kwargs else t
        given = kwargs.get("device")
        here = now("made_here") or any(map(on_gpu, tree_leaves((args, kwargs))))
        if given is not None and not now("made_here"):
            here = torch.device(given).type == "cuda"
            kwargs["device"] = "cpu"
            assert not (here and kwargs.get("generator")), "a CPU generator draws on the GPU"
            assert not (here and now("recording") and name == "tensor"), "copy inside a recording"
        with setting(made_here=here):
            made = func(*args, **kwargs)
        return put(made) if given is not None and here else made


class Kernels(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if now("tracing"):
            return func(*args, **kwargs)
        there = [on_gpu(t) for t in given]
        host = [t for t, at in zip(given, there, strict=True) if not at and not t._is_zerotensor()]
        if any(there) and host:
            copies = func in _COPIES or (func in _INDEXED and on_gpu(args[0]))
            assert copies or not any(t.dim() for t in host), f"{func} over both devices"
            assert not (copies and now("recording")), f"{func} from the host inside a recording"
        masked = func in _INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        waits = any(there) and (func in _WAITS or masked)
        assert not (waits and now("recording")), f"{func} waits inside a recording"
        made = func(*args, **kwargs)
        gpu = on_gpu(args[0]) if func in _COPIES else any(there) or (not given and now("made_here"))
        return put(made) if gpu else made


class Outside(ThreadPoolExecutor):
    """Modes belong to a thread."""

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        tracing, recording = now("tracing"), now("recording")

        def run() -> Any:
            with Kernels(), Devices(), setting(recording=recording):
                made = fn(*args, **kwargs)
                return put(made) if tracing else made

        return super().submit(run)


RECORDED: list[object] = []


def recorded(
    step: Callable[..., Tensor], example: dict[str, Tensor], *, warmups: int = 3
) -> Callable[..., Tensor]:
    held = {name: value.clone() for name, value in example.items()}
    for _ in range(warmups):
        step(held)
    RECORDED.append(step)

    def replay(batch: dict[str, Tensor]) -> Tensor:
        for name, value in batch.items():
            held[name].copy_(value)
        with setting(recording=True):
            return step(held)

    return replay


def traced(*given: Any) -> kept.Program:
    with setting(tracing=True):
        program = TRACE(*given)

    def half(run: Callable[..., Any]) -> Callable[..., Any]:
        def on_device(*tensors: Tensor) -> Any:
            with setting(made_here=True):
                return run(*tensors)

        return on_device

    return kept.Program(half(program.prepare), half(program.apply))


TRACE = kept.trace


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    RECORDED.clear()
    devices.constant.cache_clear()
    monkeypatch.setattr(devices, "ThreadPoolExecutor", Outside)
    monkeypatch.setattr(kept, "trace", traced)
    for module in (kept, faster):
        monkeypatch.setattr(module, "recorded", recorded)
    for name in ("synchronize", "empty_cache", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    plain = torch.autocast.__init__
    on_cpu = lambda me, _, *a, **k: plain(me, "cpu", *a, **k)  # noqa: E731
    monkeypatch.setattr(torch.autocast, "__init__", on_cpu)
    with Kernels(), Devices():
        yield GPU
    devices.constant.cache_clear()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )


def samples() -> Samples:
    images = torch.arange(12 * 16).reshape(12, 1, 4, 4).mul(37).remainder(251).to(torch.uint8)
    names = ("a", "b", "c")
    return Samples(images, torch.arange(12) % 3, 3, names, (0.5,), (0.25,), "crop-flip:1")


def test_a_product_a_lanczos_run_and_its_certificate_stay_on_the_device(gpu: torch.device) -> None:
    loss = LossSpec("ldam", class_counts=(9, 5, 2), scale=3.0, weights=(1.0, 2.0, 3.0))
    objective = Objective.of(network(), samples(), loss, device=gpu, batch_size=5)
    choice = choose_product(objective)
    way = KeptProducts("linearized", objective, choice.path, sizes=(8,))
    H = HessianOperator.of(objective, choice, kept=way)
    start = random_start(H.dim, seed=0, probe=0, dtype=H.dtype, device=gpu)
    run = lanczos(H, start, steps=3)
    assert (way.note, len(RECORDED)) == ("", 1)
    assert run.basis is not None
    assert run.basis.device == gpu
    assert certify(H, run.vector(0)).noise_floor < 1e-6
    lanczos(H, start, steps=3, basis="none")
    found = amplification(H, run.basis[:1], batches=1, batch_size=4, radii=(0.0, 0.1))
    assert found.gradient_norms[0] > 0


@pytest.mark.parametrize("step", ["sam", "pgd"])
def test_an_epoch_of_recorded_updates_leaves_nothing_on_the_host(
    step: str, gpu: torch.device
) -> None:
    more: dict[str, Any] = {"rho": 0.05} if step == "sam" else {"noise": 0.1}
    recipe = Recipe("name", "digits", "digits", step=step, batch_size=8, **more)
    data, model = samples(), network().to(gpu)
    engine = Engine(recipe, model, data.counts, "graph")
    loss = LossSpec(weights=(1.0, 2.0, 3.0))
    engine.set(lr=0.1, rho=recipe.rho, noise=recipe.noise, loss=loss)
    there = Samples(data.inputs.to(gpu), data.targets.to(gpu), 3, data.class_names, (0.5,), (0.25,),
                    "crop-flip:1")  # fmt: skip
    run_epoch(engine, there, torch.Generator().manual_seed(0), lambda _: None)
    assert (engine.way, engine.note, len(RECORDED)) == ("graph", "", 2)  # two batch sizes
    assert 0 <= evaluate(model, there).accuracy <= 1


def test_a_recording_that_fails_costs_the_recording_and_nothing_else(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the capture was invalidated")

    monkeypatch.setattr(kept, "recorded", fail)
    objective = Objective.of(network(), samples(), device=gpu, batch_size=5)
    choice = choose_product(objective)
    way = choose_way(objective, choice, Work([12], 100), product="linearized")
    assert way.kept is not None
    v = random_start(objective.dim, seed=0, probe=0, dtype=objective.dtype, device=gpu)
    gap = way.kept.product(objective, v) - objective.product(v, choice.path)
    assert float(gap.norm()) < 1e-5
    assert "capture was invalidated" in way.kept.launched
    assert way.kept.note == ""
    monkeypatch.setattr(devices, "_FAILED", "why")  # memory of a failed one is not given back
    with pytest.raises(RuntimeError, match="earlier recording has failed: why"):
        devices.recorded(lambda given: given["v"], {"v": v})


def linearized(gpu: torch.device, **options: Any) -> tuple[Objective, KeptProducts, Tensor]:
    """A small objective, its products with what is kept, and a vector for them."""
    objective = Objective.of(network(), samples(), device=gpu, batch_size=5, **options)
    way = KeptProducts("linearized", objective, "double-backward", sizes=(8,))
    v = random_start(objective.dim, seed=0, probe=0, dtype=objective.dtype, device=gpu)
    return objective, way, v


def test_a_first_product_makes_one_run_that_is_not_used(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, way, v = linearized(gpu)
    sums, real = 0, KeptProducts._sum

    def counted(self: KeptProducts, *given: Any) -> Tensor:
        nonlocal sums
        sums += 1
        return real(self, *given)

    monkeypatch.setattr(KeptProducts, "_sum", counted)
    first = way.product(objective, v)
    assert (len(RECORDED), sums) == (1, 3)  # plain, to warm up, and what the recording gives
    assert torch.equal(way.product(objective, v), first)
    assert sums == 4


def test_a_recording_without_room_leaves_what_is_kept_and_the_next_recording(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, way, v = linearized(gpu)

    def scarce(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(kept, "recorded", scarce)
        product = way.product(objective, v)
    assert float((product - objective.product(v, "double-backward")).norm()) < 1e-5
    assert (way.kept_samples, way.note) == (12, "")
    assert "not recorded as a CUDA graph (out of memory)" in way.launched
    way.product(objective.select(torch.arange(6)), v)
    assert len(RECORDED) == 1


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.1"])
@pytest.mark.parametrize("scarce", [True, False])
def test_only_a_failure_that_gives_back_what_it_held_does_not_end_all_recording(
    scarce: bool, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For lack of memory, and from torch 2.12 on."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    goes_on = scarce and version == "2.12.1"

    class Stream:
        def wait_stream(self, _: object) -> None: ...

    @contextlib.contextmanager
    def graph(_: object) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            raise RuntimeError("the capture was invalidated")  # noqa: B904

    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    for name in ("current_stream", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    left = [torch.OutOfMemoryError("no room") if scarce else RuntimeError("it waits")]

    def step(given: dict[str, Tensor]) -> Tensor:
        if left:
            raise left.pop()
        return given["v"]

    given = {"v": torch.ones(2)}
    with pytest.raises(RuntimeError, match="no room" if scarce else "it waits"):  # the cause
        devices.recorded(step, given, warmups=0)
    with contextlib.nullcontext() if goes_on else pytest.raises(RuntimeError, match="earlier"):
        devices.recorded(step, given, warmups=0)


def test_maps_are_not_compared_in_tf32(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounding is farther from the network's outputs than a wrong map may be."""
    real = kept.logits_of
    rough = iter(range(9))

    def rounded(output: object) -> Tensor:
        tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        return real(output) * (1 + 1e-3 * next(rough) * tf32)

    monkeypatch.setattr(kept, "logits_of", rounded)
    objective, way, v = linearized(gpu, tf32=True)
    way.product(objective, v)
    assert len(way._network(objective)[1].names) == 2
    assert next(rough) == 2


def test_main_memory_that_is_not_locked_holds_a_basis_all_the_same(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        refused = 0

        def cudaHostRegister(self, *_: int) -> int:
            self.refused += 1
            return 2

    library = Library()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: library)
    d = torch.linspace(-1, 2, 30).to(gpu)
    A = SymmetricOperator(lambda v: d * v, 30, torch.float32, gpu)
    start = random_start(30, seed=0, probe=0, dtype=torch.float32, device=gpu)
    moved, beside = (lanczos(A, start, steps=8, basis=place) for place in ("host", "device"))
    assert library.refused == 1
    assert moved.basis is not None
    assert moved.basis.device.type == "cpu"
    assert moved.alphas.tolist() == beside.alphas.tolist()


def test_what_is_wrong_on_a_gpu_is_seen(gpu: torch.device) -> None:
    x, y = torch.ones(3), torch.ones(3).to(gpu)
    assert (x.device.type, (y * 2).device, y.cpu().device.type) == ("cpu", gpu, "cpu")
    with pytest.raises(AssertionError, match="over both devices"):
        _ = x + y
    for step in (
        lambda _: y * float(y.sum()),
        lambda _: y[y > 0],
        lambda _: y * torch.ones(3).to(gpu),
        lambda _: y * torch.tensor([1.0, 2.0, 3.0], device=gpu),
    ):
        with pytest.raises(AssertionError, match=r"recording|waits"):
            recorded(step, {"x": y})({"x": y})
