"""One update: the same by every path, and from every step of the table."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spectra.data import open_data
from spectra.errors import SpectraError
from spectra.models import ModelSpec
from spectra.training import find_recipe, steps
from spectra.training.engine import Engine
from tests.training.engines import (
    STEPS,
    assert_same_weights,
    batches_of,
    build,
    recipe_of,
    set_epoch,
    trained,
)


@pytest.mark.parametrize("step", STEPS)
def test_channels_last_gives_the_weights_of_the_plain_layout(step: str) -> None:
    recipe = recipe_of(step)
    assert_same_weights(trained(recipe, "plain"), trained(recipe, "plain", contiguous=True))


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


@pytest.mark.parametrize(
    ("step", "both_passes"),
    [*product(STEPS, [False]), *((step, True) for step in STEPS if step not in ("sgd", "pgd"))],
)
def test_every_field_of_a_recipe_reaches_its_step(step: str, both_passes: bool) -> None:
    """Two steps against the step's own function with the fields spelled out, and torch's SGD."""
    recipe = recipe_of(
        step, **UNUSUAL[step], momentum=0.7, weight_decay=0.03, bn_both_passes=both_passes
    )
    found, epoch = build(recipe, "plain"), 150
    set_epoch(found, epoch, lr=0.07)
    network = build(recipe, "plain").network
    weights = steps.Weights(network, still=not both_passes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.07, momentum=0.7, weight_decay=0.03)
    memory = steps.Escape(torch.tensor(torch.inf), torch.tensor(2.0))
    if step == "pgd":
        found.escape.last_norm.fill_(99.0)
        memory.last_norm.fill_(99.0)
    shapes = [p.shape for p in network.parameters()]
    for batch in batches_of(found, 2, ragged=False):
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
        build(recipe_of(), "graph", "cpu")
    with pytest.raises(SpectraError, match="compiled-graph"):
        build(recipe_of(), "quick", "cpu")


def test_an_update_reports_loss_and_hits_at_w() -> None:
    """P48: what is logged is of the weights before the step, not of w + e."""
    found = build(recipe_of("sam", rho=2.0), "plain")
    set_epoch(found, 1)
    batch = batches_of(found, 1)[0]
    with torch.no_grad():
        logits = build(recipe_of(), "plain").network(batch["inputs"])
    loss, hits = found.update(batch).tolist()
    assert loss / 16 == pytest.approx(F.cross_entropy(logits, batch["targets"]).item())
    assert hits == (logits.argmax(1) == batch["targets"]).sum()


def test_the_batch_mean_divides_by_the_sum_of_the_weights() -> None:
    found = build(recipe_of(), "plain")
    set_epoch(found, 200)
    batch = batches_of(found, 1)[0]
    assert found.loss.weights is not None
    with torch.no_grad():
        logits = build(recipe_of(), "plain").network(batch["inputs"])
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
