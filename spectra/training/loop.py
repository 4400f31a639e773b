"""The training loop, from the seed to the checkpoint.

Per batch the loss is the weighted mean Σ w_i ℓ_i / Σ w_i. The data lie on the device as uint8 and
are augmented and normalised a batch at a time. All random numbers come from one CPU generator (and
the seed of the initial weights), so that two runs with one seed agree bit for bit on the CPU.
The last epoch is the result; the best epoch on the test set is reported, never chosen.
"""

import csv
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoint import COSINE_SCALE, save_checkpoint
from ..data import Samples
from ..errors import SpectraError
from ..losses import LossSpec, effective_number_weights
from ..models import ModelSpec
from .recipes import Recipe
from .schedules import learning_rate
from .steps import sam_step, sgd_step

COLUMNS = ("epoch", "lr", "weighted", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


@dataclass(frozen=True)
class Scores:
    """How a network does on a split: evaluation mode, no augmentation, no class weights."""

    loss: float  # mean cross-entropy, a cosine head's scale included: comparable between methods
    accuracy: float  # 0..1
    class_loss: tuple[float, ...]  # (C,)
    class_accuracy: tuple[float, ...]  # (C,)


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
    quiet: bool = False,
) -> Run:
    """Train a network and save it.

    Args:
        recipe: what to run.
        samples: training set, images (N, c, h, w).
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

    if not all(1 <= epoch <= recipe.epochs for epoch in save_at):
        raise SpectraError(
            f"save_at is {tuple(save_at)}; expected epochs from 1 to {recipe.epochs}"
        )
    samples, test = (
        replace(part, inputs=part.inputs.to(device), targets=part.targets.to(device))
        for part in (samples, test)
    )
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
    (warmup, drops), groups = recipe.schedule, samples.groups()
    best = (0.0, 0)  # test accuracy, epoch
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "metrics.csv", "w", buffering=1, newline="", encoding="utf-8") as file,
        tqdm(total=recipe.epochs * len(samples), unit="img", disable=quiet or None) as bar,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *groups, *(f"class {name}" for name in test.class_names)])
        for epoch in range(1, recipe.epochs + 1):
            lr = learning_rate(epoch, base=recipe.lr, warmup=warmup, drops=drops)
            optimizer.param_groups[0]["lr"] = lr
            if recipe.drw and epoch > drops[0]:
                loss = replace(loss, weights=effective_number_weights(samples.counts, recipe.beta))
            mean_loss, accuracy = _one_epoch(
                recipe, network, optimizer, loss, samples, generator, bar.update
            )
            if not math.isfinite(mean_loss):
                raise SpectraError(
                    f"the loss is {mean_loss} in epoch {epoch}; the weights are lost from there "
                    "on: lower --lr, or lengthen --warmup"
                )
            row = [epoch, lr, int(loss.weights is not None), mean_loss, accuracy]
            last, saved = epoch == recipe.epochs, epoch in save_at
            if last or saved or epoch % eval_every == 0:
                scores = evaluate(network, test, scale=scale)
                best = max(best, (scores.accuracy, epoch), key=lambda pair: pair[0])
                shares = [_mean([scores.class_accuracy[c] for c in g]) for g in groups.values()]
                row += [scores.loss, scores.accuracy, *shares, *scores.class_accuracy]
                if not quiet:
                    parts = (f"{g} {x:.1%}" for g, x in zip(groups, shares, strict=True))
                    tqdm.write(
                        f"epoch {epoch}/{recipe.epochs}  lr {lr:.3g}  loss {mean_loss:.4f}  "
                        f"test {scores.accuracy:.1%}  {'  '.join(parts)}"
                    )
            table.writerow(row)
            paths = [folder / f"epoch-{epoch}.pt"] if saved else []
            for path in [*paths, result or folder / "last.pt"] if last else paths:
                both = {"train": evaluate(network, samples, scale=scale), "test": scores}
                metrics = {f"{k}_{n}": v for k, s in both.items() for n, v in asdict(s).items()}
                save_checkpoint(
                    path,
                    network,
                    model_spec=spec,
                    data=samples.spec,
                    loss=loss,
                    epoch=epoch,
                    metrics=metrics,
                    recipe=recipe.to_dict(),
                    draw_sha256=samples.draw_sha256,
                )
    return Run(network.eval(), scores, best[1], best[0])


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


def _forward(
    network: nn.Module, loss: LossSpec, x: Tensor, targets: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = network(x)
    return weighted_mean(loss, logits.float(), targets), logits


def weighted_mean(
    loss: LossSpec, logits: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Average the losses of a batch, divided by the sum of its weights."""
    weights = loss.sample_weights(targets).to(logits.dtype)
    return (weights * loss.per_sample(logits, targets)).sum() / weights.sum()


def evaluate(
    network: nn.Module, samples: Samples, *, scale: float = 1.0, batch_size: int = 500
) -> Scores:
    """Score a network on samples, all of which count alike; its mode is restored.

    Args:
        network: gives logits (n, C).
        samples: on the network's device.
        scale: s of a cosine head, multiplies the logits.
        batch_size: samples at a time.
    """
    was_training, ce = network.training, LossSpec.cross_entropy(scale)
    losses, correct = [], []
    network.eval()
    with torch.inference_mode():
        for index in torch.split(torch.arange(len(samples)), batch_size):
            batch = samples.select(index.to(samples.targets.device))
            logits = network(batch.prepared(device=batch.targets.device))
            losses.append(ce.per_sample(logits, batch.targets).double().cpu())
            correct.append((logits.argmax(1) == batch.targets).double().cpu())
    network.train(was_training)
    each, targets = torch.stack([torch.cat(losses), torch.cat(correct)]), samples.targets.cpu()
    by_class = torch.stack([each[:, targets == c].mean(1) for c in range(samples.num_classes)])
    return Scores(*each.mean(1).tolist(), *(tuple(values) for values in by_class.T.tolist()))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
