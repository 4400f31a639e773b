"""The training loop, from the seed to the checkpoint.

The data lie on the device as uint8, on the host if they do not fit; they are augmented and
normalised a batch at a time. All random numbers come from one CPU generator (and the seed of the
initial weights), so that two runs with one seed agree bit for bit on the CPU, with the plain update
and as many threads, and so does a run that was killed and resumed.
The last epoch is the result; the best epoch on the test set is reported, never chosen.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import save_checkpoint
from ..data import Samples, require_one_size
from ..devices import arithmetic, at_once, bf16_cost, device_name
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
    save_at: Collection[int] = (),
    eval_every: int = 1,
    device: torch.device | str = "cpu",
    update: str = "auto",
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
        folder: takes last.pt, metrics.csv, run.json, epoch-<e>.pt, and state.pt while it runs.
        save_at: epochs to save on the way.
        eval_every: epochs between two evaluations on the test set; saved ones are evaluated.
        device: where the network lives, and the data as well if they fit.
        update: how a step is computed, one of `engine.WAYS`.
        resume: go on from the folder's state, if it has one.
        overwrite: replace the run that the folder holds.
        state_every: seconds between two states that a killed run can go on from; an epoch is the
            least.
        quiet: no bar and no lines.

    Raises:
        SpectraError: if the run cannot be started, its numbers stop being finite, the folder holds
            another run, or a file cannot be written.
    """
    from tqdm import tqdm

    device = torch.device(device)
    if not all(1 <= epoch <= recipe.epochs for epoch in save_at):
        raise SpectraError(
            f"save_at is {tuple(save_at)}; expected epochs from 1 to {recipe.epochs}"
        )
    if recipe.precision == "tf32" and device.type != "cuda":
        raise SpectraError("precision is tf32, which CPUs do not have; use float32 or bf16")
    require_one_size(samples, test)
    samples, test = samples.in_memory(), test.in_memory()
    records = Records(folder, recipe, samples)
    home = _home(device, samples, test)
    samples, test = (
        replace(part, inputs=part.inputs.to(home), targets=part.targets.to(home))
        for part in (samples, test)
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    channels = samples.inputs.shape[1]
    spec = ModelSpec(recipe.arch, samples.num_classes, recipe.head, channels)
    if spec.in_channels != channels:
        raise SpectraError(
            f"the network {recipe.arch} takes images of {spec.in_channels} channels and the data "
            f"have {channels}; choose another --arch"
        )
    network = spec.build(recipe.seed).to(device, DTYPES.get(recipe.precision, torch.float32))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing stub
    engine = Engine(recipe, network, samples.counts, update)
    done = records.open(resume=resume, overwrite=overwrite)
    if resume and done is None and records.metrics.exists() and not quiet:
        tqdm.write(
            f"{folder} holds no state to go on from yet: the run begins with epoch 1",
            file=sys.stderr,
        )
    _require_ahead(save_at, 0 if done is None else done.epoch or 0, folder)
    first, best = 1, (0.0, 0)  # best: test accuracy, epoch
    threads = torch.get_num_threads()
    before: dict[str, Any] = {"seconds": 0.0, "preparing": 0.0, "ran_on": []}  # earlier sessions
    if done is not None and done.epoch == recipe.epochs:
        return Run(done.model, records.scores(done), *records.best)
    if done is not None and done.training is not None:
        first, best = (done.epoch or 0) + 1, tuple(done.training["best"])
        before |= {key: done.training[key] for key in before if key in done.training}
        network.load_state_dict(done.training["network"])
        engine.load_state_dict(done.training["engine"])
        generator.set_state(done.training["generator"])
        now = {"update": engine.way} | ({"threads": threads} if device.type == "cpu" else {})
        if (other := _changed(done.training, now)) and not quiet:
            tqdm.write(
                f"{folder} goes on otherwise than it was left ({other}): the weights may differ in "
                "the last bits from those of a run in one piece",
                file=sys.stderr,
            )

    groups = samples.groups()
    save = partial(
        save_checkpoint, model=network, model_spec=spec, data=samples.spec,
        recipe=recipe.to_dict(), draw_sha256=records.samples.draw_sha256,
        pixels_sha256=records.samples.pixels_sha256,
    )  # fmt: skip
    started = saved_at = time.monotonic()
    silent = quiet or bool(os.environ.get("TQDM_DISABLE"))  # runs side by side have no bar
    records.begin([*groups, *(f"class {name}" for name in test.class_names)])
    with (
        tqdm(
            total=recipe.epochs * len(samples), initial=(first - 1) * len(samples),
            unit="img", unit_scale=True, disable=silent or None,
        ) as bar,
        arithmetic(
            device,
            precision="tf32" if recipe.precision == "tf32" else "ieee",
        ),
    ):  # fmt: skip
        slow = recipe.precision == "bf16" and device.type == "cpu" and not quiet
        if slow and (cost := bf16_cost()) > 1.5:
            tqdm.write(
                f"bf16 is slow on this processor: a convolution takes about {cost:.0f} times as "
                "long as in float32, the default precision",
                file=sys.stderr,
            )
        shown: dict[str, str] = {}
        fallen = ""
        for epoch in range(first, recipe.epochs + 1):
            bar.set_description(f"epoch {epoch}/{recipe.epochs}", refresh=False)
            lr, rho, noise = recipe.lr_of(epoch), recipe.rho_of(epoch), recipe.noise_of(epoch)
            loss = recipe.loss_of(epoch, samples.counts)
            engine.set(lr=lr, rho=rho, noise=noise, loss=loss)
            way = engine.way
            mean_loss, accuracy = run_epoch(engine, samples, generator, bar.update)
            if engine.way != way:
                tqdm.write(engine.note, file=sys.stderr)
                fallen = _fallen(engine, way, epoch)
            row = [epoch, lr, rho, int(loss.weights is not None), mean_loss, accuracy]
            last, kept = epoch == recipe.epochs, epoch in save_at
            if last or kept or epoch % eval_every == 0:
                scores = evaluate(network, test, scale=recipe.scale, flip=recipe.flip_test)
                best = max(best, (scores.accuracy, epoch), key=lambda pair: pair[0])
                shares = {name: scores.of(classes) for name, classes in groups.items()}
                row += [scores.loss, scores.accuracy, *shares.values(), *scores.class_accuracy]
                shown = {name: f"{share:.1%}" for name, share in shares.items()}
            if not math.isfinite(mean_loss + (scores.loss if len(row) > 6 else 0.0)):
                raise SpectraError(
                    f"the loss is not finite in epoch {epoch} (training {mean_loss}); the weights "
                    "are lost from there on: lower --lr, or lengthen --warmup"
                )
            bar.set_postfix({"loss": f"{mean_loss:.4f}", **shown}, refresh=False)
            if len(row) > 6 and not quiet:
                rate = (epoch - first + 1) * len(samples) / (time.monotonic() - started)
                left = tqdm.format_interval((recipe.epochs - epoch) * len(samples) / rate)
                parts = "  ".join(f"{name} {part}" for name, part in shown.items())
                tqdm.write(
                    f"seed {recipe.seed}  epoch {epoch}/{recipe.epochs}  lr {lr:.3g}  loss "
                    f"{mean_loss:.4f}  test {scores.accuracy:.1%}  {parts}  "
                    f"{rate:,.0f} img/s, {left} left"
                )
            records.add(row)
            ran_on = {"device": device_name(device), "torch": str(torch.__version__)}
            ran_on["update"] = fallen or engine.way + engine.about
            spent = {
                "seconds": before["seconds"] + time.monotonic() - started,
                "preparing": before["preparing"] + engine.seconds,
                "ran_on": [*(other for other in before["ran_on"] if other != ran_on), ran_on],
            }
            if kept or last:
                on_train = evaluate(network, samples, scale=recipe.scale)
                metrics = {**on_train.named("train"), **scores.named("test")}
                for name in [f"epoch-{epoch}.pt"] * kept + ["last.pt"] * last:
                    save(
                        folder / name, epoch=epoch, loss=loss, metrics=metrics,
                        training={"ran_on": ran_on},
                    )  # fmt: skip
            if last:
                records.close(best, **spent)
            elif kept or time.monotonic() - saved_at >= state_every:
                state = {
                    "network": network.state_dict(),
                    "engine": engine.state_dict(),
                    "generator": generator.get_state(),
                    "best": list(best),
                    "update": engine.way,
                    "threads": threads,
                    **spent,
                }
                save(records.state, epoch=epoch, loss=loss, training=state)
                saved_at = time.monotonic()
    return Run(network.eval(), scores, best[1], best[0])


def _home(device: torch.device, *parts: Samples) -> torch.device:
    """Choose where the images lie: on the device, unless they would take half of what is free."""
    if device.type != "cuda":
        return device
    needed = sum(part.inputs.numel() * part.inputs.element_size() for part in parts)
    return device if 2 * needed < torch.cuda.mem_get_info(device)[0] else torch.device("cpu")


def _require_ahead(save_at: Collection[int], done: int, folder: Path) -> None:
    """Refuse to keep epochs that are over and were not kept."""
    gone = [e for e in save_at if e <= done and not (folder / f"epoch-{e}.pt").exists()]
    if gone:
        raise SpectraError(
            f"save_at is {tuple(save_at)}, this run has passed epoch {done}, and its folder does "
            f"not hold {', '.join(f'epoch-{e}.pt' for e in gone)}; leave those epochs out, or "
            "start anew with --overwrite"
        )


def _changed(state: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what is not as a state tells; older states tell nothing."""
    then = {name: state.get(name, value) for name, value in now.items()}
    return "; ".join(
        f"{name} {then[name]}, now {value}" for name, value in now.items() if then[name] != value
    )


def _fallen(engine: Engine, way: str, epoch: int) -> str:
    """Say how far a session came with a faster update that it has left, if it came anywhere."""
    if not engine.sound:
        return engine.note
    return f"{way}{engine.about}, up to a step of epoch {epoch}; then plain: {engine.note}"


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
    order = _order(recipe, samples, generator).to(samples.targets.device)
    for index in _batches(order, recipe.batch_size):
        drawn = samples.select(index)
        inputs = drawn.prepared(dtype, device, generator=generator if recipe.augment else None)
        batch: Batch = {"inputs": inputs, "targets": drawn.targets.to(device)}
        if engine.draws:
            batch["noise"] = at_once(_noise(engine, generator).to(dtype), device)
        total += engine.update(batch)
        seen(len(index))
    mean_loss, accuracy = (total / len(samples)).tolist()
    return mean_loss, accuracy


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Cut an order into batches; a single sample at the end, which has no variance, joins one."""
    lone = len(order) % size == 1 and len(order) > size
    sizes = [size] * (len(order) // size)
    rest = len(order) - sum(sizes)
    if lone:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return list(torch.split(order, sizes))


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
