"""Engines on the digits' network and made-up batches, for the tests of updates."""

from dataclasses import replace
from typing import Any

import torch

from spectra.models import ModelSpec
from spectra.training import Recipe, find_recipe
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


def recipe_of(step: str = "sgd", **changes: Any) -> Recipe:
    base = replace(find_recipe("digits-lt-ce-drw-sgd"), batch_size=16, precision="float64")
    return replace(base, step=step, **{**STEPS[step], **changes})


def build(
    recipe: Recipe, way: str, device: torch.device | str = "cpu", contiguous: bool = False
) -> Engine:
    network = ModelSpec(recipe.arch, len(COUNTS), recipe.head, 1).build(0)
    dtype = torch.float64 if recipe.precision == "float64" else torch.float32
    network = network.to(device, dtype).train()
    if not contiguous:
        network = network.to(memory_format=torch.channels_last)
    return Engine(recipe, network, COUNTS, way)


def batches_of(engine: Engine, number: int, ragged: bool = True) -> list[Batch]:
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


def set_epoch(engine: Engine, epoch: int, lr: float = 0.05) -> None:
    recipe = engine.recipe
    rho, noise = recipe.rho_of(epoch), recipe.noise_of(epoch)
    engine.set(lr=lr, rho=rho, noise=noise, loss=recipe.loss_of(epoch, COUNTS))


def train(engine: Engine) -> Engine:
    """Take twenty steps, the deferred weights starting half-way, some batches ragged."""
    batches = batches_of(engine, 20)
    for step, batch in enumerate(batches):
        if step % 10 == 0:
            set_epoch(engine, 1 if step == 0 else 161)
        engine.update(batch)
    return engine


def trained(
    recipe: Recipe, way: str, device: torch.device | str = "cpu", contiguous: bool = False
) -> Engine:
    return train(build(recipe, way, device, contiguous))


def assert_same_weights(one: Engine, other: Engine, tolerance: float = 1e-8) -> None:
    for (name, a), b in zip(
        one.network.state_dict().items(), other.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            a.cpu(), b.cpu(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
