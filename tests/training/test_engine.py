"""One update: the same by every path, and from every step of the table."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.data import open_data
from spectra.errors import SpectraError
from spectra.models import ModelSpec
from spectra.training import Recipe, engine, find_recipe
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


def _recipe(step: str = "sgd", **changes: Any) -> Recipe:
    base = replace(find_recipe("digits-lt-ce-drw-sgd"), batch_size=16, precision="float64")
    return replace(base, step=step, **{**STEPS[step], **changes})


def _build(
    recipe: Recipe, path: str, device: torch.device | str = "cpu", contiguous: bool = False
) -> Engine:
    network = ModelSpec(recipe.arch, len(COUNTS), recipe.head, 1).build(0)
    dtype = torch.float64 if recipe.precision == "float64" else torch.float32
    network = network.to(device, dtype).train()
    if not contiguous:
        network = network.to(memory_format=torch.channels_last)
    return Engine(recipe, network, COUNTS, path)


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


def _trained(recipe: Recipe, path: str, device: torch.device | str = "cpu", **how: Any) -> Engine:
    """Take twenty steps, the deferred weights starting half-way, some batches ragged."""
    found = _build(recipe, path, device, **how)
    for epoch, batches in enumerate(torch.arange(20).split(10)):
        found.set_epoch(1 if epoch == 0 else 161)
        found.lr = found.lr.fill_(0.05) if isinstance(found.lr, Tensor) else 0.05
        for batch in [_batches(found, 20)[i] for i in batches]:
            found.update(batch)
    return found


def _assert_same_weights(one: Engine, other: Engine, tolerance: float = 1e-8) -> None:
    for (name, a), b in zip(
        one.network.state_dict().items(), other.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            a.cpu(), b.cpu(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def compare_the_compiled_path() -> None:
    recipe = _recipe("sam")  # two passes, with and without moving statistics
    fast = _trained(recipe, "compiled")
    assert (fast.path, fast.note) == ("compiled", ""), fast.note
    _assert_same_weights(fast, _trained(recipe, "plain"))
    recipe = _recipe("imbsam")  # needs a graph twice, which compiled ones do not allow
    fast = _trained(recipe, "compiled")
    assert (fast.path, fast.note[:29]) == ("plain", "the compiled path is not used"), fast.note
    _assert_same_weights(fast, _trained(recipe, "plain"))


def test_the_compiled_path_gives_the_plain_weights_after_twenty_steps() -> None:
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    code = "import test_engine; test_engine.compare_the_compiled_path()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("path", ["graph", "compiled-graph"])
def test_the_recorded_paths_give_the_plain_weights_after_twenty_steps(
    step: str, path: str, device: torch.device
) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU (--device cuda)")
    recipe = _recipe(step)
    fast = _trained(recipe, path, device)
    assert (fast.path, fast.note) == (path, "")
    _assert_same_weights(fast, _trained(recipe, "plain", device))


@pytest.mark.parametrize("step", STEPS)
def test_channels_last_gives_the_weights_of_the_plain_layout(step: str) -> None:
    recipe = _recipe(step)
    _assert_same_weights(_trained(recipe, "plain"), _trained(recipe, "plain", contiguous=True))


@pytest.mark.parametrize("step", STEPS)
def test_replaying_keeps_its_books(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the recording itself, on a CPU: fixed inputs, state put back, a new loss recorded."""
    recordings = []

    def pretended(
        run: Callable[[Batch], Tensor], example: Batch, state: list[Tensor]
    ) -> Callable[[Batch], Tensor]:
        held = {name: value.clone() for name, value in example.items()}
        for _ in range(4):  # moves the weights, as warming up and recording do
            run(held)
        recordings.append(state)

        def replay(batch: Batch) -> Tensor:
            for name, value in batch.items():
                held[name].copy_(value)
            return run(held)

        return replay

    recipe = _recipe(step)
    monkeypatch.setattr(engine, "recorded", pretended)
    fast = _build(recipe, "plain")
    fast.path, fast.lr = "graph", torch.tensor(recipe.lr, dtype=torch.float64)
    for epoch, batches in enumerate(torch.arange(20).split(10)):
        fast.set_epoch(1 if epoch == 0 else 161)
        assert isinstance(fast.lr, Tensor)
        fast.lr.fill_(0.05)
        for batch in [_batches(fast, 20)[i] for i in batches]:
            fast.update(batch)
    assert (fast.path, fast.note) == ("graph", "")
    assert len(recordings) == 2  # the deferred weights are another loss
    _assert_same_weights(fast, _trained(recipe, "plain"))


def test_a_fast_update_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe()

    def wrong(run: Callable[[Batch], Tensor], *_: object) -> Callable[[Batch], Tensor]:
        def replay(batch: Batch) -> Tensor:
            return run({**batch, "inputs": 1.01 * batch["inputs"]})

        return replay

    monkeypatch.setattr(engine, "recorded", wrong)
    found = _build(recipe, "plain")
    found.path = "graph"
    batch = _batches(found, 1)[0]
    found.update(batch)
    assert found.path == "plain"
    assert "from the plain one" in found.note
    plain = _build(recipe, "plain")
    plain.update(batch)
    _assert_same_weights(found, plain, 0.0)


def test_a_compiler_that_fails_leaves_the_plain_path_and_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(engine, "recorded", broken)
    found = _build(_recipe(), "plain")
    found.path = "graph"
    found.update(_batches(found, 1)[0])
    assert found.note == (
        "the graph path is not used (RuntimeError: no compiler here); the plain one is"
    )


def test_graphs_need_cuda() -> None:
    with pytest.raises(SpectraError, match="CUDA"):
        _build(_recipe(), "graph", "cpu")
    with pytest.raises(SpectraError, match="compiled-graph"):
        _build(_recipe(), "quick", "cpu")


def test_an_update_reports_loss_and_hits_at_w() -> None:
    """P48: what is logged is of the weights before the step, not of w + e."""
    found = _build(_recipe("sam", rho=2.0), "plain")
    batch = _batches(found, 1)[0]
    with torch.no_grad():
        logits = _build(_recipe(), "plain").network(batch["inputs"])
    loss, hits = found.update(batch).tolist()
    assert loss / 16 == pytest.approx(F.cross_entropy(logits, batch["targets"]).item())
    assert hits == (logits.argmax(1) == batch["targets"]).sum()


def test_the_batch_mean_divides_by_the_sum_of_the_weights() -> None:
    found = _build(_recipe(), "plain")
    found.set_epoch(200)
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
