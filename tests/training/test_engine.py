"""One update: the same by every path, and from every step of the table."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.data import open_data
from spectra.errors import SpectraError
from spectra.models import ModelSpec
from spectra.training import Recipe, engine, find_recipe, nearness, steps
from spectra.training.engine import Batch, Engine

COUNTS = (40, 30, 20, 10)
STEPS = {
    "sgd": {},
    "sam": {"rho": 0.1},
    "pgd": {"noise": 1e-3, "noise_interval": 2},
    "lpf-sgd": {"noise": 2e-3, "noise_parts": 2},
    "imbsam": {"rare_below": 25, "rho": 0.1},
    "sse-sam": {"rare_below": 25, "rho": 0.05, "rho_tail": 0.1},
}
TWICE = ("imbsam", "sse-sam")  # two gradients of one pass, which a compiled one does not allow


def _recipe(step: str = "sgd", **changes: Any) -> Recipe:
    base = replace(find_recipe("digits-lt-ce-drw-sgd"), batch_size=16, precision="float64")
    return replace(base, step=step, **{**STEPS[step], **changes})


def _build(
    recipe: Recipe, way: str, device: torch.device | str = "cpu", contiguous: bool = False
) -> Engine:
    network = ModelSpec(recipe.arch, len(COUNTS), recipe.head, 1).build(0)
    dtype = torch.float64 if recipe.precision == "float64" else torch.float32
    network = network.to(device, dtype).train()
    if not contiguous:
        network = network.to(memory_format=torch.channels_last)
    return Engine(recipe, network, COUNTS, way)


def _batches(engine: Engine, number: int, ragged: bool = True) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    size = sum(p.numel() for p in engine.weights.parameters)
    batches = []
    for i in range(number):
        n = 7 if ragged and i % 5 == 4 else engine.recipe.batch_size
        batch = {
            "inputs": torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64),
            "targets": torch.randint(len(COUNTS), (n,), generator=generator),
        }
        if engine.draws:
            noise = torch.randn(engine.draws, size, generator=generator, dtype=torch.float64)
            batch["noise"] = noise / noise.norm() if engine.recipe.step == "pgd" else noise
        batches.append(
            {k: v.to(engine.device, v.dtype if v.dtype == torch.int64 else engine.dtype)
             for k, v in batch.items()}
        )  # fmt: skip
    return batches


def _set(engine: Engine, epoch: int, lr: float = 0.05) -> None:
    recipe = engine.recipe
    rho, noise = recipe.rho_of(epoch), recipe.noise_of(epoch)
    engine.set(lr=lr, rho=rho, noise=noise, loss=recipe.loss_of(epoch, COUNTS))


def _train(engine: Engine) -> Engine:
    """Take twenty steps, the deferred weights starting half-way, some batches ragged."""
    batches = _batches(engine, 20)
    for step, batch in enumerate(batches):
        if step % 10 == 0:
            _set(engine, 1 if step == 0 else 161)
        engine.update(batch)
    return engine


def _trained(
    recipe: Recipe, way: str, device: torch.device | str = "cpu", contiguous: bool = False
) -> Engine:
    return _train(_build(recipe, way, device, contiguous))


def _assert_same_weights(one: Engine, other: Engine, tolerance: float = 1e-8) -> None:
    for (name, a), b in zip(
        one.network.state_dict().items(), other.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            a.cpu(), b.cpu(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


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


def compare_compiled_paths(way: str, device: str, steps: Sequence[str]) -> None:
    for step in steps:
        torch.compiler.reset()  # each engine compiles its own; at the eighth dynamo gives up
        fast, plain = (
            _train(Engine(_recipe(step), _small_network(device), COUNTS, name))
            for name in (way, "plain")
        )
        if step in TWICE:
            assert fast.way == "plain"
            assert fast.note.startswith(f"the {way} update is not used"), fast.note
        else:
            assert (fast.way, fast.note) == (way, ""), fast.note
        _assert_same_weights(fast, plain)


@pytest.mark.parametrize("way", ["compiled", "compiled-graph"])
def test_the_compiled_paths_give_the_plain_weights_after_twenty_steps(
    way: str, device: torch.device, repository: Path
) -> None:
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    if way == "compiled-graph" and device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU (--device cuda)")
    steps = [*STEPS] if way == "compiled-graph" else ["sam", "imbsam"]
    call = f"compare_compiled_paths({way!r}, {device.type!r}, {steps!r})"
    paths = [str(repository), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", f"import test_engine; test_engine.{call}"],
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
    fast, plain = (_trained(_recipe(step), way, device) for way in ("graph", "plain"))
    assert (fast.way, fast.note) == ("graph", "")
    _assert_same_weights(fast, plain)


@pytest.mark.parametrize("step", STEPS)
def test_channels_last_gives_the_weights_of_the_plain_layout(step: str) -> None:
    recipe = _recipe(step)
    _assert_same_weights(_trained(recipe, "plain"), _trained(recipe, "plain", contiguous=True))


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
    found = _build(recipe, "plain")
    found.way, found.lr = "graph", torch.tensor(recipe.lr, dtype=found.dtype)
    return found


@pytest.mark.parametrize("step", STEPS)
def test_replaying_keeps_its_books(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed inputs, state put back, one recording for each batch size and loss."""
    recordings = []

    def pretended(run: Step, example: Batch) -> Step:
        recordings.append(len(example["targets"]))
        return _pretended(run, example)

    recipe = _recipe(step)
    monkeypatch.setattr(engine, "recorded", pretended)
    fast = _train(_as_on_a_gpu(recipe))
    assert (fast.way, fast.note) == ("graph", "")
    assert recordings == [16, 7, 16, 7]  # the deferred weights are another loss
    _assert_same_weights(fast, _trained(recipe, "plain"))


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
    recipe = _recipe("sam", precision=precision)
    found, plain = _as_on_a_gpu(recipe), _build(recipe, "plain")
    faulty = fault if fault is _baked else _changed(fault, found)
    monkeypatch.setattr(engine, "recorded", faulty)
    for each in (found, plain):
        _set(each, epoch, lr=recipe.lr_of(epoch))
    batch = _batches(found, 1)[0]
    found.update(batch)
    assert found.way == "plain"
    assert "from the plain one" in found.note
    plain.lr = torch.tensor(plain.lr, dtype=plain.dtype)
    plain.update(batch)
    _assert_same_weights(found, plain, 0.0)


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


def _far(network: Any, _: str, x: Tensor) -> Any:
    """Be off in every precision."""
    return network(x) * 1.2


@pytest.mark.parametrize("step", ["sgd", "sam", "lpf-sgd"])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize(
    ("program", "way"),
    [(_rounded, "compiled"), (_lost, "plain"), (_wrong, "plain"), (_far, "plain")],
)
def test_where_two_roundings_differ_float64_decides(
    step: str,
    precision: str,
    program: Callable[..., Any],
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small network, whose update rounding hardly moves, is made rough; the bound is lowered."""
    monkeypatch.setitem(nearness.COMPILED, precision, 0.1 * ROUGH[precision])
    monkeypatch.setattr(torch, "compile", lambda network, **_: partial(program, network, precision))
    recipe = _recipe(step, precision=precision)
    found, plain = _build(recipe, "compiled"), _build(recipe, "plain")
    for each in (found, plain):
        _set(each, 1)
        each.network.register_forward_hook(partial(_rough, precision))
    batch = _batches(found, 1)[0]
    found.update(batch)
    plain.update(batch)
    assert found.way == way, found.note
    assert "from float64's" in found.about
    if way == "plain":
        assert found.about in found.note
        _assert_same_weights(found, plain, 0.0)
    else:
        assert found.note == ""


def test_a_compiler_that_fails_leaves_the_plain_path_and_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(engine, "recorded", broken)
    found = _as_on_a_gpu(_recipe())
    _set(found, 1)
    found.update(_batches(found, 1)[0])
    assert found.note == (
        "the graph update is not used (RuntimeError: no compiler here); the plain one is"
    )


UNUSUAL: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sam": {"rho": 0.3, "adaptive": True},
    "pgd": {"noise": 0.02, "noise_threshold": 100.0, "noise_interval": 2},
    "lpf-sgd": {"noise": 0.05, "noise_growth": 3.0, "noise_parts": 3},
    "imbsam": {"rare_below": 25, "rho": 0.3},
    "sse-sam": {"rare_below": 25, "rho": 0.05, "rho_tail": 0.4, "stage_two": 0.9},
}


def _spelled_out(
    step: str, weights: steps.Weights, forward: steps.Forward, rare: Tensor, draws: list[Any],
    memory: steps.Escape,
) -> tuple[steps.Gradient, steps.Pass]:  # fmt: skip
    """Call a step with the values of UNUSUAL in epoch 150 of 200."""
    match step:
        case "sgd":
            return steps.sgd(weights, forward)
        case "sam":
            return steps.sam(weights, forward, radius=0.3, adaptive=True)
        case "pgd":
            return steps.pgd(
                weights, forward, noise=draws[0], radius=0.02, threshold=100.0, interval=2,
                memory=memory,
            )  # fmt: skip
        case "lpf-sgd":
            grown = 0.05 * (1 + 3.0 * (1 - math.cos(math.pi * 150 / 200)) / 2)
            parts = [slice(0, 5), slice(5, 10), slice(10, 16)]
            return steps.lpf_sgd(weights, forward, noise=draws, deviation=grown, parts=parts)
        case "imbsam":
            return steps.imbsam(weights, forward, rare, radius=0.3)
        case _:
            return steps.sse_sam(
                weights, forward, rare, radius=0.05, tail_radius=0.4, climb_head=True
            )


@pytest.mark.parametrize("both_passes", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_every_field_of_a_recipe_reaches_its_step(step: str, both_passes: bool) -> None:
    """Two steps against the step's own function with the fields spelled out, and torch's SGD."""
    recipe = _recipe(
        step, **UNUSUAL[step], momentum=0.7, weight_decay=0.03, bn_both_passes=both_passes
    )
    found, epoch = _build(recipe, "plain"), 150
    _set(found, epoch, lr=0.07)
    network = _build(recipe, "plain").network
    weights = steps.Weights(network, still=not both_passes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.07, momentum=0.7, weight_decay=0.03)
    memory = steps.Escape(torch.tensor(torch.inf), torch.tensor(2.0))
    if step == "pgd":
        found.escape.last_norm.fill_(99.0)
        memory.last_norm.fill_(99.0)
    shapes = [p.shape for p in network.parameters()]
    for batch in _batches(found, 2, ragged=False):
        x, y = batch["inputs"], batch["targets"]

        def forward(part: slice, x: Tensor = x, y: Tensor = y) -> steps.Pass:
            logits = network(x[part])
            losses = F.cross_entropy(logits, y[part], reduction="none")
            return steps.Pass(losses, torch.tensor(float(len(losses))).double(), logits)

        cuts = [shape.numel() for shape in shapes]
        draws = [
            [piece.view(s) for piece, s in zip(d.split(cuts), shapes, strict=True)]
            for d in batch.get("noise", [])
        ]
        # The classes of 20 and 10 samples are rare.
        slope, here = _spelled_out(step, weights, forward, y >= 2, draws, memory)
        for parameter, gradient in zip(network.parameters(), slope, strict=True):
            parameter.grad = gradient
        optimizer.step()
        assert found.update(batch)[0].item() == pytest.approx(16 * here.loss().item())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_graphs_need_cuda() -> None:
    with pytest.raises(SpectraError, match="CUDA"):
        _build(_recipe(), "graph", "cpu")
    with pytest.raises(SpectraError, match="compiled-graph"):
        _build(_recipe(), "quick", "cpu")


def test_an_update_reports_loss_and_hits_at_w() -> None:
    """P48: what is logged is of the weights before the step, not of w + e."""
    found = _build(_recipe("sam", rho=2.0), "plain")
    _set(found, 1)
    batch = _batches(found, 1)[0]
    with torch.no_grad():
        logits = _build(_recipe(), "plain").network(batch["inputs"])
    loss, hits = found.update(batch).tolist()
    assert loss / 16 == pytest.approx(F.cross_entropy(logits, batch["targets"]).item())
    assert hits == (logits.argmax(1) == batch["targets"]).sum()


def test_the_batch_mean_divides_by_the_sum_of_the_weights() -> None:
    found = _build(_recipe(), "plain")
    _set(found, 200)
    batch = _batches(found, 1)[0]
    assert found.loss.weights is not None
    with torch.no_grad():
        logits = _build(_recipe(), "plain").network(batch["inputs"])
    weights = torch.tensor(found.loss.weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, batch["targets"], weight=weights)
    assert found.update(batch)[0].item() / 16 == pytest.approx(expected.item(), rel=1e-12)


def test_ratios_of_real_samples_decide_which_classes_are_rare() -> None:
    recipe = find_recipe("digits-lt-ce-drw-imbsam")
    samples = open_data(recipe.data_spec)
    network = ModelSpec("digits", 10).build()
    found = Engine(recipe, network, samples.counts).rare.tolist()
    assert found == [n < 20 for n in samples.counts]
    assert any(found)
    assert not all(found)
    for size in (1, 1000):  # no tail, no head
        with pytest.raises(SpectraError, match="rare_below"):
            Engine(replace(recipe, rare_below=size), network, samples.counts)
