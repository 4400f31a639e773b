"""The training loop, from the seed to the checkpoint.

Per batch the loss is the weighted mean Σ w_i ℓ_i / Σ w_i. The data lie on the device as uint8 and
are augmented and normalised a batch at a time. All random numbers come from one CPU generator (and
the seed of the initial weights), so that two runs with one seed agree bit for bit on the CPU.
The last epoch is the result; the best epoch on the test set is reported, never chosen.
"""

import csv
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoint import COSINE_SCALE, save_checkpoint
from ..data import Samples
from ..errors import SpectraError
from ..losses import LossSpec
from ..models import ModelSpec
from .recipes import Recipe
from .schedules import deferred_weights, learning_rate
from .steps import sam_step, sgd_step

_COLUMNS = ("epoch", "lr", "weighted", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


@dataclass(frozen=True)
class Scores:
    """How a network does on a split: evaluation mode, no augmentation, no class weights.

    Args:
        loss: mean cross-entropy (a cosine head's scale included), comparable between methods.
        accuracy: share of correct samples, 0..1.
        class_loss: mean cross-entropy of each class, (C,).
        class_accuracy: share of correct samples of each class, (C,).
    """

    loss: float
    accuracy: float
    class_loss: tuple[float, ...]
    class_accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """What a run leaves.

    Args:
        network: the weights of the last epoch.
        test: scores of the last epoch.
        best_epoch: evaluated epoch with the highest test accuracy; chosen on test data, no result.
        best_accuracy: that accuracy, 0..1.
    """

    network: nn.Module
    test: Scores
    best_epoch: int
    best_accuracy: float


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
    quiet: bool = False,
) -> Run:
    """Train a network and save it.

    Args:
        recipe: what to run.
        samples: training set, (N, c, h, w).
        test: test set.
        folder: takes metrics.csv and epoch-<e>.pt.
        result: file of the last epoch; None: last.pt in the folder.
        save_at: epochs to save on the way.
        eval_every: epochs between two evaluations on the test set; saved ones are evaluated.
        device: where data and network live.
        quiet: no bar and no lines.

    Raises:
        SpectraError: if the loss stops being finite, or a file cannot be written.
    """
    from tqdm import tqdm

    device = torch.device(device)
    if not all(1 <= epoch <= recipe.epochs for epoch in save_at):
        raise SpectraError(
            f"save_at is {tuple(save_at)}; expected epochs from 1 to {recipe.epochs}"
        )
    samples, test = _on(device, samples), _on(device, test)
    generator = torch.Generator().manual_seed(recipe.seed)
    spec = ModelSpec(recipe.arch, samples.num_classes, recipe.head, samples.inputs.shape[1])
    network = spec.build(recipe.seed).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing stub
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    scale = COSINE_SCALE if recipe.head == "cosine" else 1.0
    loss = LossSpec(recipe.loss, class_counts=samples.counts, scale=scale)
    groups = samples.groups()
    drops, started = recipe.drop_epochs, time.monotonic()
    history: list[tuple[float, int]] = []  # test accuracy, epoch
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file,
        tqdm(
            total=recipe.epochs * len(samples), unit="img", disable=True if quiet else None
        ) as bar,
    ):
        _write(file, [*_COLUMNS, *groups, *(f"class {name}" for name in test.class_names)])
        for epoch in range(1, recipe.epochs + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    epoch, base=recipe.lr, warmup=recipe.warmup_epochs, drops=drops
                )
            if recipe.drw:
                weights = deferred_weights(
                    epoch, counts=samples.counts, start=drops[0], beta=recipe.beta
                )
                loss = replace(loss, weights=weights)

            train_loss, train_accuracy = _one_epoch(
                recipe, network, optimizer, loss, samples, generator, bar.update
            )
            if not math.isfinite(train_loss):
                raise SpectraError(
                    f"the loss is {train_loss} in epoch {epoch}; the weights are lost from there "
                    "on: lower --lr, or lengthen --warmup"
                )

            row = [epoch, lr := optimizer.param_groups[0]["lr"], int(loss.weights is not None)]
            row += [train_loss, train_accuracy]
            last, saved = epoch == recipe.epochs, epoch in save_at
            if last or saved or epoch % eval_every == 0:
                scores = evaluate(network, test, scale=scale)
                history.append((scores.accuracy, epoch))
                by_group = [
                    sum(scores.class_accuracy[c] for c in classes) / max(1, len(classes))
                    for classes in groups.values()
                ]
                row += [scores.loss, scores.accuracy, *by_group, *scores.class_accuracy]
                if not quiet:
                    parts = zip(groups, by_group, strict=True)
                    tqdm.write(
                        f"epoch {epoch}/{recipe.epochs}  lr {lr:.3g}  loss {train_loss:.4f}  test "
                        f"{scores.accuracy:.1%}  "
                        + "  ".join(f"{name} {value:.1%}" for name, value in parts)
                        + f"  ({time.monotonic() - started:.0f} s)"
                    )
            _write(file, row)
            paths = [folder / f"epoch-{epoch}.pt"] if saved else []
            for path in [*paths, result or folder / "last.pt"] if last else paths:
                on_train = evaluate(network, samples, scale=scale)
                save_checkpoint(
                    path,
                    network,
                    model_spec=spec,
                    data=samples.spec,
                    loss=loss,
                    epoch=epoch,
                    metrics={**_plain("train", on_train), **_plain("test", scores)},
                    recipe=recipe.to_dict(),
                    draw_sha256=samples.draw_sha256,
                )
    best_accuracy, best_epoch = max(history, key=lambda pair: pair[0])
    return Run(network.eval(), scores, best_epoch, best_accuracy)


def _one_epoch(
    recipe: Recipe,
    network: nn.Module,
    optimizer: Optimizer,
    loss: LossSpec,
    samples: Samples,
    generator: torch.Generator,
    seen: Callable[[int], object],
) -> tuple[float, float]:
    """Go through the samples once; return mean loss and accuracy at w, augmented, as seen."""
    network.train()
    device = samples.targets.device
    total = torch.zeros(2, device=device)  # loss, correct samples: read once, at the end
    order = torch.randperm(len(samples), generator=generator).to(device)
    for index in torch.split(order, recipe.batch_size):
        batch = samples.select(index)
        x = batch.prepared(device=device, generator=generator if recipe.augment else None)
        forward = partial(_forward, network, loss, x, batch.targets, recipe.precision)
        if recipe.step == "sam":
            value, logits = sam_step(forward, optimizer, network=network, rho=recipe.rho)
        else:
            value, logits = sgd_step(forward, optimizer)
        correct = (logits.argmax(1) == batch.targets).sum()
        total += torch.stack([value * len(index), correct.to(value.dtype)])
        seen(len(index))
    mean_loss, accuracy = (total / len(samples)).tolist()
    return mean_loss, accuracy


def weighted_mean(
    loss: LossSpec, logits: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Average the losses of a batch, divided by the sum of its weights."""
    weights = loss.sample_weights(targets).to(logits.dtype)
    return (weights * loss.per_sample(logits, targets)).sum() / weights.sum()


def _forward(
    network: nn.Module, loss: LossSpec, x: Tensor, targets: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = network(x)
    logits = logits.float()
    return weighted_mean(loss, logits, targets), logits


def evaluate(
    network: nn.Module, samples: Samples, *, scale: float = 1.0, batch_size: int = 500
) -> Scores:
    """Score a network on samples, all of which count alike; its mode is restored.

    Args:
        network: gives logits (n, C); a cosine head's are multiplied by `scale`.
        samples: (N, c, h, w), on the network's device.
        scale: s of a cosine head.
        batch_size: samples at a time.
    """
    was_training, ce = network.training, LossSpec.cross_entropy(scale)
    device, classes = samples.targets.device, samples.num_classes
    # Row 0: losses; row 1: correct samples; float64, so that the cut into batches is lost in it.
    sums = torch.zeros(2, classes, dtype=torch.float64, device=device)
    network.eval()
    with torch.inference_mode():
        for index in torch.split(torch.arange(len(samples), device=device), batch_size):
            batch = samples.select(index)
            logits = network(batch.prepared(device=device))
            losses = ce.per_sample(logits, batch.targets).double()
            right = (logits.argmax(1) == batch.targets).double()
            sums.index_add_(1, batch.targets, torch.stack([losses, right]))
    network.train(was_training)
    counts = torch.tensor(samples.counts, dtype=torch.float64)
    sums = sums.cpu()
    loss, accuracy = (sums.sum(1) / counts.sum()).tolist()
    class_loss, class_accuracy = (sums / counts).tolist()
    return Scores(loss, accuracy, tuple(class_loss), tuple(class_accuracy))


def _plain(split: str, scores: Scores) -> dict[str, Any]:
    return {
        f"{split}_loss": scores.loss,
        f"{split}_accuracy": scores.accuracy,
        f"{split}_class_loss": list(scores.class_loss),
        f"{split}_class_accuracy": list(scores.class_accuracy),
    }


def _on(device: torch.device, samples: Samples) -> Samples:
    return replace(samples, inputs=samples.inputs.to(device), targets=samples.targets.to(device))


def _write(file: TextIO, row: list[Any]) -> None:
    csv.writer(file, lineterminator="\n").writerow(row)
    file.flush()
