"""What a result has to say beside its numbers: how they were made, and what to doubt.

Whether the samples may not be those of the training, which parameters have no part in the loss, and
what a network hardly knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spectra.checkpoint import Checkpoint
from spectra.data import Samples
from spectra.data.spec import KNOWN, ONE_SIZE
from spectra.gathering import Chosen, accuracy
from spectra.hessian import Objective
from spectra.networks import LAYOUTS
from spectra.plan import Plan

UNCLASSIFIED = "no image was classified: accuracies were left out"
_NAMED = 4  # of what there is more of


def about_products(chosen: Chosen, plan: Plan) -> list[str]:
    """Say how products were chosen, on what evidence, and who computes them."""
    choice, owners = chosen.choice, chosen.owners
    said = [f"product: {choice}"]
    said += [f"refused for this model: {name}, {why}" for name, why in choice.refused.items()]
    said += chosen.way.notes
    if plan.until_converged is not None:
        said.append(
            f"each probe ends once both residuals are within {plan.until_converged:g} of the "
            "larger modulus: fewer nodes, so that the bounds of the negative mass are wider"
        )
    if owners:
        count = f" ({len(owners)})" if len(owners) > _NAMED else ""
        named = f"{_first([*owners])}{count}"
        said.append(f"computed by one process each: {named}; the others by all together")
    return said


def about_parameters(objective: Objective, checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Name the parameters with rows of zeros, and those that were rounded."""
    said = []
    if objective.frozen:
        said.append(f"zero rows for frozen parameters: {', '.join(sorted(objective.frozen))}")
    if names := unused(objective):
        said.append(f"zero rows for parameters that the loss does not depend on: {_first(names)}")
    held_in = {p.dtype for p in checkpoint.model.parameters()}
    if torch.float64 in held_in and plan.dtype == "float32":
        said.append(
            "the network's float64 parameters were rounded to float32, for the certificates, "
            "too; --dtype float64 takes them as they are"
        )
    return said


def about_accuracies(
    correct: Mapping[str, tuple[Tensor, Tensor]], train: Samples | None, *, asked: bool
) -> list[str]:
    """Say where a network hardly knows its training set, or that nobody looked.

    Args:
        correct: split -> hits and their labels, as `gathering.classify` gives them.
        train: the training split.
        asked: accuracies were asked for.
    """
    if not asked:
        return [UNCLASSIFIED]
    if train is None or "train" not in correct:
        return []
    return near_chance(*correct["train"], train)


def doubts(checkpoint: Checkpoint, samples: Samples, train: Samples | None) -> list[str]:
    """Say where the samples may not be those that a checkpoint was trained on."""
    spec, found = samples.spec, []
    if checkpoint.data is None and spec is not None and spec.imbalance is None:
        found.append(
            f"the checkpoint names no draw of its data: {spec.name} is taken as it is (draws "
            "of CIFAR and of the digits need --imbalance-ratio)"
        )
    if checkpoint.data is None and spec is not None and spec.name not in ONE_SIZE:
        height, width = samples.inputs.shape[-2:]
        if spec.image_size is None:
            found.append(
                f"images are taken at {height} × {width} pixels, and a network that pools takes "
                "any: --image-size sets what it was trained on"
            )
    if checkpoint.data is None and spec is not None:
        usual = KNOWN[spec.name]
        if (samples.mean, samples.std) == (usual.mean, usual.std):
            found.append(
                f"pixels are normalised as is usual for {spec.name}, for the checkpoint does not "
                "say how its own were: --mean and --std set it"
            )
    if checkpoint.guessed:
        spec_of = checkpoint.model_spec
        layout = LAYOUTS.get(spec_of.arch)
        stem = "" if layout is None else f", {layout.about}"
        found.append(
            f"the file does not name its network: names and shapes are those of {spec_of.arch}"
            f"{stem}; another with the same ones needs --model"
        )
    if checkpoint.unread:
        found.append(f"not read, as no part of the network: {_first(checkpoint.unread)}")
    said = checkpoint.scale is not None or checkpoint.loss is not None
    if checkpoint.model_spec.head == "cosine" and not said:
        found.append(
            "the file does not say by which scale its loss multiplies the cosines: "
            f"{checkpoint.head_scale:g} was taken; --scale S sets it"
        )
    if checkpoint.others:
        found.append(
            f"the file holds weights of such a network under {', '.join(checkpoint.others)}, too, "
            "which were not read; --weights chooses them"
        )
    if train is not None and checkpoint.draw_sha256 not in (None, train.draw_sha256):
        found.append("the checkpoint was trained on another draw of the data than this one")
    elif (
        train is not None
        and checkpoint.pixels_sha256 is not None
        and train.pixels_sha256 not in (None, checkpoint.pixels_sha256)
    ):
        found.append(
            "the checkpoint was trained on other images than these, though their labels and "
            "positions are the same: another copy of the data, or one in another order"
        )
    elif train is not None and train.pixels_sha256 is None and checkpoint.data is not None:
        side, here = checkpoint.data.image_size, train.inputs.shape[-1]
        if side not in (None, here):
            found.append(
                f"the checkpoint was trained on images cut to {side} pixels, and these have {here}"
            )
    return found


def near_chance(correct: Tensor, targets: Tensor, samples: Samples) -> list[str]:
    """Say so where a network hardly knows the whole set that it was trained on.

    Args:
        correct: (k,) hits, as `classify` gives them.
        targets: (k,) their labels.
        samples: of the training split.
    """
    share = accuracy(correct, targets, ())
    chance = 1 / samples.num_classes
    if share is None or len(targets) < sum(samples.counts) or share > chance + 0.1 * (1 - chance):
        return []
    return [
        f"the accuracy on the training samples is {share:.1%}, near chance: other constants of "
        "normalisation (--mean, --std), another order of the classes, or another network (--model) "
        "than in the training would do that"
    ]


def unused(objective: Objective) -> list[str]:
    """Name the parameters that the loss does not depend on: no sample has a slope along them.

    A few samples tell, a little aside of the parameters, for at a layer that starts at zero others
    have none; where nothing has any slope at all (fitted to the last bits), nothing is known.
    """
    seen = torch.nonzero(objective.weights)[:, 0]
    spread = torch.linspace(0, len(seen) - 1, min(8, len(seen))).round().long()
    few, rows = objective.select(seen[spread.to(seen.device)]), objective.rows
    aside = 1e-3 * torch.randn(objective.dim, generator=torch.Generator().manual_seed(0))
    shift = rows.flatten(rows.split(aside.to(objective.device, objective.dtype)))  # frozen stay
    slopes = rows.split(few.gradient(shift=shift))
    flat = [name for name, slope in slopes.items() if not bool(slope.any())]
    if len(flat) == len(slopes):
        return []
    return [name for name in flat if name not in objective.frozen]


def _first(names: Sequence[str]) -> str:
    """List the first of them; the dots say that there are more."""
    return f"{', '.join(names[:_NAMED])}{', …' if names[_NAMED:] else ''}"
