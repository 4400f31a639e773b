"""The training loop, from the seed to the checkpoint.

The data lie on the device as uint8 and are augmented and normalised a batch at a time. All random
numbers come from one CPU generator (and the seed of the initial weights), so that two runs with one
seed agree bit for bit on the CPU, and so does a run that was killed and resumed.
The last epoch is the result; the best epoch on the test set is reported, never chosen.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import save_checkpoint
from ..data import Samples
from ..devices import arithmetic, device_name
from ..errors import SpectraError
from ..models import ModelSpec
from .engine import Batch, Engine
from .evaluation import Scores, evaluate
from .recipes import Recipe
from .records import Records

DTYPES = {"float64": torch.float64}  # of weights and inputs; float32 otherwise


@dataclass(frozen=True)
class Run:
    """What a run leaves."""

    network: nn.Module  # weights of the last epoch, evaluation mode
    test: Scores  # of the last epoch
    best_epoch: int  # highest test accuracy among the evaluated epochs: chosen on test data
    best_accuracy: float  # that accuracy, 0..1


def train(
    recipe: Recipe,
    samples: Samples,
    test: Samples,
    *,
    folder: Path,
    result: Path | None = None,
    save_at: Collection[int] = (),
    eval_every: int = 1,
    device: torch.device | str = "cpu",
    path: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    state_every: float = 30.0,
    quiet: bool = False,
) -> Run:
    """Train a network and save it.

    Args:
        recipe: what to run.
        samples: training set, images (N, c, h, w).
        test: test set.
        folder: takes metrics.csv, run.json, epoch-<e>.pt, and state.pt until the run has ended.
        result: file of the last epoch; None: last.pt in the folder.
        save_at: epochs to save on the way.
        eval_every: epochs between two evaluations on the test set; saved ones are evaluated.
        device: where data and network live.
        path: how the update is computed, one of `engine.PATHS`.
        resume: go on from the folder's state, if it has one.
        overwrite: replace the run that the folder holds.
        state_every: seconds between two states that a killed run can go on from.
        quiet: no bar and no lines.

    Raises:
        SpectraError: if the loss stops being finite, the folder holds another run, or a file
            cannot be written.
    """
    from tqdm import tqdm

    device = torch.device(device)
    if not all(1 <= epoch <= recipe.epochs for epoch in save_at):
        raise SpectraError(
            f"save_at is {tuple(save_at)}; expected epochs from 1 to {recipe.epochs}"
        )
    if recipe.precision == "tf32" and device.type != "cuda":
        raise SpectraError("precision is tf32, which CPUs do not have; use float32 or bf16")
    records = Records(folder, result or folder / "last.pt", recipe, samples)
    done = records.open(resume=resume, overwrite=overwrite)
    if done is not None and done.epoch == recipe.epochs:
        return Run(done.model, records.scores(done), *records.best)

    samples, test = (
        replace(part, inputs=part.inputs.to(device), targets=part.targets.to(device))
        for part in (samples, test)
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    spec = ModelSpec(recipe.arch, samples.num_classes, recipe.head, samples.inputs.shape[1])
    network = spec.build(recipe.seed).to(device, DTYPES.get(recipe.precision, torch.float32))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing stub
    engine = Engine(recipe, network, samples.counts, path)
    first, best = 1, (0.0, 0)  # best: test accuracy, epoch
    if done is not None and done.training is not None:
        first, best = (done.epoch or 0) + 1, tuple(done.training["best"])
        network.load_state_dict(done.training["network"])
        engine.load_state_dict(done.training["engine"])
        generator.set_state(done.training["generator"])

    groups = samples.groups()
    save = partial(
        save_checkpoint, model=network, model_spec=spec, data=samples.spec,
        recipe=recipe.to_dict(), draw_sha256=samples.draw_sha256,
    )  # fmt: skip
    started = saved_at = time.monotonic()
    with (
        records.table([*groups, *(f"class {name}" for name in test.class_names)]) as add_row,
        tqdm(
            total=recipe.epochs * len(samples), initial=(first - 1) * len(samples),
            unit="img", unit_scale=True, disable=quiet or None,
        ) as bar,
        arithmetic(
            device,
            precision="tf32" if recipe.precision == "tf32" else "ieee",
            deterministic=engine.path == "plain",
        ),
    ):  # fmt: skip
        for epoch in range(first, recipe.epochs + 1):
            bar.set_description(f"epoch {epoch}/{recipe.epochs}", refresh=False)
            engine.set_epoch(epoch)
            mean_loss, accuracy = run_epoch(engine, samples, generator, bar.update)
            if not math.isfinite(mean_loss):
                raise SpectraError(
                    f"the loss is {mean_loss} in epoch {epoch}; the weights are lost from there "
                    "on: lower --lr, or lengthen --warmup"
                )
            row = [epoch, recipe.lr_of(epoch), recipe.rho_of(epoch)]
            row += [int(engine.loss.weights is not None), mean_loss, accuracy]
            last, kept = epoch == recipe.epochs, epoch in save_at
            if last or kept or epoch % eval_every == 0:
                scores = evaluate(network, test, scale=recipe.scale, flip=recipe.flip_test)
                best = max(best, (scores.accuracy, epoch), key=lambda pair: pair[0])
                shares = {name: scores.of(classes) for name, classes in groups.items()}
                row += [scores.loss, scores.accuracy, *shares.values(), *scores.class_accuracy]
                parts = {name: f"{share:.1%}" for name, share in shares.items()}
                bar.set_postfix({"loss": f"{mean_loss:.4f}", **parts}, refresh=False)
                if not quiet:
                    rate = (epoch - first + 1) * len(samples) / (time.monotonic() - started)
                    left = (recipe.epochs - epoch) * len(samples) / rate / 60
                    tqdm.write(
                        f"seed {recipe.seed}  epoch {epoch}/{recipe.epochs}  "
                        f"lr {recipe.lr_of(epoch):.3g}  loss {mean_loss:.4f}  "
                        f"test {scores.accuracy:.1%}  "
                        + "  ".join(f"{name} {part}" for name, part in parts.items())
                        + f"  {rate:,.0f} img/s, {left:.0f} min left"
                    )
            add_row(row)
            ran_on = {"device": device_name(device), "torch": str(torch.__version__)}
            ran_on["path"] = engine.path + (f": {engine.note}" if engine.note else "")

            paths = [folder / f"epoch-{epoch}.pt"] if kept else []
            if paths or last:
                on_train = evaluate(network, samples, scale=recipe.scale)
                metrics = {**on_train.named("train"), **scores.named("test")}
                for file in [*paths, records.result] if last else paths:
                    save(
                        file, epoch=epoch, loss=engine.loss, metrics=metrics,
                        training={"ran_on": ran_on},
                    )  # fmt: skip
            if last:
                records.close(best, ran_on, seconds=time.monotonic() - started)
            elif kept or time.monotonic() - saved_at >= state_every:
                state = {
                    "network": network.state_dict(),
                    "engine": engine.state_dict(),
                    "generator": generator.get_state(),
                    "best": list(best),
                }
                save(records.state, epoch=epoch, loss=engine.loss, training=state)
                saved_at = time.monotonic()
    return Run(network.eval(), scores, best[1], best[0])


def run_epoch(
    engine: Engine,
    samples: Samples,
    generator: torch.Generator,
    seen: Callable[[int], object],
) -> tuple[float, float]:
    """Go through the samples once; return mean loss and accuracy at w, augmented, as seen."""
    recipe, device, dtype = engine.recipe, engine.device, engine.dtype
    engine.network.train()
    total = torch.zeros(2, device=device, dtype=dtype)  # loss, correct: read once, at the end
    order = _order(recipe, samples, generator).to(device)
    for index in torch.split(order, recipe.batch_size):
        drawn = samples.select(index)
        inputs = drawn.prepared(dtype, device, generator=generator if recipe.augment else None)
        batch: Batch = {"inputs": inputs, "targets": drawn.targets}
        if engine.draws:
            batch["noise"] = _noise(engine, generator).to(device, dtype)
        total += engine.update(batch)
        seen(len(index))
    mean_loss, accuracy = (total / len(samples)).tolist()
    return mean_loss, accuracy


def _order(recipe: Recipe, samples: Samples, generator: torch.Generator) -> Tensor:
    """Draw the order of an epoch: every sample once, or N of them with the classes even."""
    if recipe.weighting != "resample":
        return torch.randperm(len(samples), generator=generator)
    shares = 1 / torch.tensor(samples.counts, dtype=torch.float64)
    chances = shares[samples.targets.cpu()]
    return torch.multinomial(chances, len(samples), replacement=True, generator=generator)


def _noise(engine: Engine, generator: torch.Generator) -> Tensor:
    """Draw flat noise (draws, parameters): normal, for pgd a point of the unit ball."""
    n = sum(p.numel() for p in engine.weights.parameters)
    noise = torch.randn(engine.draws, n, generator=generator)
    if engine.recipe.step == "pgd":
        noise *= torch.rand(1, generator=generator) ** (1 / n) / noise.norm()
    return noise
