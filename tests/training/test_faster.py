"""The faster ways of an update: the plain one's weights, or the plain one and a line."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectra.training import Recipe, faster, nearness
from spectra.training.engine import Batch, Engine
from tests.training.engines import (
    COUNTS,
    STEPS,
    assert_same_weights,
    batches_of,
    build,
    recipe_of,
    set_epoch,
    train,
    trained,
)

TWICE = ("imbsam", "sse-sam")  # two gradients of one pass, which a compiled one does not allow


def _small_network(device: str) -> torch.nn.Module:
    """One convolution and one norm: compiling takes longer than twenty steps, layer by layer."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(16, len(COUNTS)),
    )
    return layers.to(device, torch.float64, memory_format=torch.channels_last).train()


def compare_in_float32(way: str, device: str) -> None:
    """Let float64 decide, whatever the two in float32 differ by: with real compilers."""
    faster.COMPILED = {**nearness.COMPILED, "float32": -1.0}  # of the first comparison alone
    recipe = recipe_of("sam", precision="float32")
    network = _small_network(device).float()
    found = train(Engine(recipe, network, COUNTS, way))
    assert (found.way, found.note) == (way, ""), found.note
    assert "from float64's" in found.about


def compare_compiled_paths(way: str, device: str, steps: Sequence[str]) -> None:
    for step in steps:
        torch.compiler.reset()  # each engine compiles its own
        fast, plain = (
            train(Engine(recipe_of(step), _small_network(device), COUNTS, name))
            for name in (way, "plain")
        )
        if step in TWICE:
            assert fast.way == "plain"
            assert fast.note.startswith(f"the {way} update is not used"), fast.note
        else:
            assert (fast.way, fast.note) == (way, ""), fast.note
        assert_same_weights(fast, plain)


@pytest.mark.parametrize("way", ["compiled", "compiled-graph"])
def test_the_compiled_paths_give_the_plain_weights_after_twenty_steps(
    way: str, device: torch.device, repository: Path
) -> None:
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    if way == "compiled-graph" and device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU (--device cuda)")
    steps = [*STEPS] if way == "compiled-graph" else ["sam", "imbsam"]
    calls = f"""
from tests.training import test_faster
test_faster.compare_compiled_paths({way!r}, {device.type!r}, {steps!r})
test_faster.compare_in_float32({way!r}, {device.type!r})
"""
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", calls],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("step", STEPS)
def test_the_recorded_path_gives_the_plain_weights_after_twenty_steps(
    step: str, device: torch.device
) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU (--device cuda)")
    fast, plain = (trained(recipe_of(step), way, device) for way in ("graph", "plain"))
    assert (fast.way, fast.note) == ("graph", "")
    assert_same_weights(fast, plain)


Step = Callable[[Batch], Tensor]


def _pretended(run: Step, example: Batch) -> Step:
    """Do all that recording does, but for the recording, on a CPU."""
    held = {name: value.clone() for name, value in example.items()}
    for _ in range(4):  # moves the weights, as warming up and recording do
        run(held)

    def replay(batch: Batch) -> Tensor:
        for name, value in batch.items():
            held[name].copy_(value)
        return run(held)

    return replay


def _as_on_a_gpu(recipe: Recipe) -> Engine:
    found = build(recipe, "plain")
    found.way, found.lr = "graph", torch.tensor(recipe.lr, dtype=found.dtype)
    return found


@pytest.mark.parametrize("step", STEPS)
def test_replaying_keeps_its_books(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed inputs, state put back, one recording for each batch size and loss."""
    recordings = []

    def pretended(run: Step, example: Batch) -> Step:
        recordings.append(len(example["targets"]))
        return _pretended(run, example)

    recipe = recipe_of(step)
    monkeypatch.setattr(faster, "recorded", pretended)
    fast = train(_as_on_a_gpu(recipe))
    assert (fast.way, fast.note) == ("graph", "")
    assert recordings == [16, 7, 16, 7]  # the deferred weights are another loss
    assert_same_weights(fast, trained(recipe, "plain"))


def _baked(run: Step, example: Batch) -> Step:
    return lambda _: run(example)


def _changed(change: Callable[[Engine], None], found: Engine) -> Callable[[Step, Batch], Step]:
    def record(run: Step, _: Batch) -> Step:
        def replay(batch: Batch) -> Tensor:
            result = run(batch)
            with torch.no_grad():
                change(found)
            return result

        return replay

    return record


def _counters(found: Engine) -> None:
    for name, buffer in found.network.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer += 5


def _one_weight(found: Engine) -> None:
    found.weights.parameters[0].flatten()[0] = torch.nan


def _still(found: Engine) -> None:
    for parameter, velocity in zip(found.weights.parameters, found.momenta, strict=True):
        parameter += found.lr * velocity  # type: ignore[operator]


def _scaled_momentum(found: Engine) -> None:
    found.momenta[0].mul_(1.001)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("epoch", [1, 161, 200])
@pytest.mark.parametrize("fault", [_baked, _counters, _one_weight, _still, _scaled_momentum])
def test_a_fast_update_that_differs_anywhere_is_not_used(
    fault: Callable[..., Any], epoch: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong, and however small the learning rate: the run goes on with the plain."""
    recipe = recipe_of("sam", precision=precision)
    found, plain = _as_on_a_gpu(recipe), build(recipe, "plain")
    faulty = fault if fault is _baked else _changed(fault, found)
    monkeypatch.setattr(faster, "recorded", faulty)
    for each in (found, plain):
        set_epoch(each, epoch, lr=recipe.lr_of(epoch))
    batch = batches_of(found, 1)[0]
    found.update(batch)
    assert found.way == "plain"
    assert "from the plain one" in found.note
    plain.lr = torch.tensor(plain.lr, dtype=plain.dtype)
    plain.update(batch)
    assert_same_weights(found, plain, 0.0)


ROUGH = {"bf16": 2**-5, "float32": 2**-12}  # by how much rounding puts the logits off


def _coarse(x: Tensor, precision: str) -> bool:
    """Tell whether an engine of this precision calls, and not its twin in float64."""
    if precision == "bf16":
        return torch.is_autocast_enabled("cpu")
    return x.dtype == torch.float32


def _rough(precision: str, _: Any, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
    return logits * (1 + ROUGH[precision]) if _coarse(inputs[0], precision) else logits


def _rounded(network: Any, precision: str, x: Tensor) -> Any:
    """Be off by as much as the plain network is, to the other side."""
    return network(x) * (1 - 2 * ROUGH[precision] if _coarse(x, precision) else 1)


def _lost(network: Any, precision: str, x: Tensor) -> Any:
    return network(x) * (torch.nan if _coarse(x, precision) else 1)


def _wrong(network: Any, precision: str, x: Tensor) -> Any:
    """Be off by far more than the plain network is, in this precision alone."""
    return network(x) * (1 + 100 * ROUGH[precision] if _coarse(x, precision) else 1)


def _hidden(network: Any, precision: str, x: Tensor) -> Any:
    """Be off in every precision, by what the roughness of this one hides."""
    return network(x) * (1 + 0.5 * ROUGH[precision])


@pytest.mark.parametrize("step", ["sgd", "sam", "lpf-sgd"])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize(
    ("program", "way"),
    [(_rounded, "compiled"), (_lost, "plain"), (_wrong, "plain"), (_hidden, "plain")],
)
def test_where_two_roundings_differ_float64_decides(
    step: str,
    precision: str,
    program: Callable[..., Any],
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small network, whose update rounding hardly moves, is made rough; the bound is lowered.

    In the middle of a training, with momenta and re-weighting.
    """
    monkeypatch.setitem(nearness.COMPILED, precision, 0.1 * ROUGH[precision])
    monkeypatch.setattr(torch, "compile", lambda network, **_: partial(program, network, precision))
    recipe = recipe_of(step, precision=precision)
    found, plain = build(recipe, "compiled"), build(recipe, "plain")
    for each in (found, plain):
        set_epoch(each, 161)
        each.network.register_forward_hook(partial(_rough, precision))
        generator = torch.Generator().manual_seed(2)
        for momentum in each.momenta:
            momentum.normal_(std=0.01, generator=generator)
    batch = batches_of(found, 1)[0]
    found.update(batch)
    plain.update(batch)
    assert found.way == way, found.note
    if way == "plain":
        assert "from float64's" in found.note
        assert_same_weights(found, plain, 0.0)
    else:
        assert (found.note, "from float64's" in found.about) == ("", True)


def _place(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def _rough_from(far: float, network: Any, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
    """Be half off in bf16 where the weights are farther than that from where they began."""
    coarse = _coarse(inputs[0], "bf16") and float((_place(network) - network.began).norm()) > far
    return logits * 1.5 if coarse else logits


def _slightly_wrong(network: Any, x: Tensor) -> Any:
    """Give gradients that are off in bf16 alone, by what roughness after a long climb hides."""
    logits = network(x)
    return logits + 0.2 * (logits - logits.detach()) if _coarse(x, "bf16") else logits


@pytest.mark.parametrize(
    ("far", "program", "way"),
    [
        (0.3, lambda network, x: _rounded(network, "bf16", x), "compiled"),
        (0.3, _slightly_wrong, "plain"),
        (-1.0, lambda network, x: _rounded(network, "bf16", x), "plain"),
    ],
    ids=["rough-after-the-climb", "a-fault-hides", "rough-everywhere"],
)
def test_where_a_long_climb_is_too_rough_a_shorter_one_decides(
    far: float, program: Callable[..., Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: partial(program, network))
    found = build(recipe_of("sam", precision="bf16", rho=1.0), "compiled")
    set_epoch(found, 1)
    found.network.register_buffer("began", _place(found.network))
    found.network.register_forward_hook(partial(_rough_from, far))
    found.update(batches_of(found, 1)[0])
    assert found.way == way, found.note
    told = found.about or found.note
    rough = float(re.findall(r"the plain one ([\de.+-]+)|$", told)[0] or "nan")
    assert rough > nearness.ROUGH or way == "plain", told
    assert "from float64's" in told
    assert float(found.radius) == 1.0


def test_a_network_that_cannot_run_in_float64_keeps_the_plain_update_and_both_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda x: 1.1 * network(x))
    found = build(recipe_of(precision="float32"), "compiled")
    found.network.register_forward_pre_hook(lambda _, x: (x[0].float(),))
    set_epoch(found, 1)
    found.update(batches_of(found, 1)[0])
    assert found.way == "plain"
    assert re.search(
        r"is .* from the plain one, and in float64 neither can be had: RuntimeError", found.note
    )


@pytest.mark.parametrize("fault", [_one_weight, _scaled_momentum])
def test_a_compiled_update_that_is_recorded_wrongly_is_not_used(
    fault: Callable[[Engine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far rounding takes the compiled one from the plain one."""
    monkeypatch.setitem(nearness.COMPILED, "float32", 1e-6)
    monkeypatch.setattr(
        torch, "compile", lambda network, **_: partial(_rounded, network, "float32")
    )
    found = _as_on_a_gpu(recipe_of("sam", precision="float32"))
    found.way = "compiled-graph"
    found.network.register_forward_hook(partial(_rough, "float32"))
    monkeypatch.setattr(faster, "recorded", _changed(fault, found))
    set_epoch(found, 1)
    found.update(batches_of(found, 1)[0])
    assert found.way == "plain"
    assert "its recording is" in found.note
    assert "from the compiled one" in found.note


def test_a_recording_that_fails_leaves_the_plain_path_and_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(run: Step, example: Batch) -> Step:
        run(example)  # as warming up does
        raise RuntimeError("no graphs here\nand more")

    monkeypatch.setattr(faster, "recorded", broken)
    found, plain = _as_on_a_gpu(recipe_of("pgd")), build(recipe_of("pgd"), "plain")
    plain.lr = torch.tensor(plain.lr, dtype=plain.dtype)
    for each in (found, plain):
        set_epoch(each, 1)
        each.update(batches_of(found, 1)[0])
    assert found.note == (
        "the graph update is not used (RuntimeError: no graphs here); the plain one is"
    )
    assert_same_weights(found, plain, 0.0)


def test_a_trial_that_runs_out_of_memory_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = _as_on_a_gpu(recipe_of("pgd")), build(recipe_of("pgd"), "plain")
    plain.lr = torch.tensor(plain.lr, dtype=plain.dtype)
    step, calls = found.step, []

    def moving_then_failing(batch: Batch, network: Any = None) -> Tensor:
        result = step(batch, network)
        calls.append(result)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return result

    monkeypatch.setattr(found, "step", moving_then_failing)
    for each in (found, plain):
        set_epoch(each, 1)
        each.update(batches_of(found, 1)[0])
    assert "out of memory" in found.note
    assert_same_weights(found, plain, 0.0)
    for mine, theirs in zip(found.momenta, plain.momenta, strict=True):
        assert torch.equal(mine, theirs)


def test_what_pgd_remembers_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _as_on_a_gpu(recipe_of("pgd"))

    def forget(engine: Engine) -> None:
        engine.escape.last_norm.mul_(1.001)

    monkeypatch.setattr(faster, "recorded", _changed(forget, found))
    set_epoch(found, 1)
    found.update(batches_of(found, 1)[0])
    assert found.way == "plain"
