"""The runs that have a name: data set × method × step, with what was published of each.

`about` names the source of a run's values ("paper" is Rangwani et al. 2022) and which of them are
ours. The digits' have no published target: they are long enough that the head is fitted and the
tail is not. Another ratio, seed or length is the same recipe with a field overridden.

References:
    Rangwani et al., Escaping saddle points, https://arxiv.org/abs/2212.13827
    ImbSAM, https://github.com/cool-xuan/Imbalanced_SAM
    Lyu et al., SSE-SAM, https://arxiv.org/abs/2412.13715
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import SpectraError
from .recipes import Recipe


@dataclass(frozen=True)
class Entry:
    """A named run."""

    recipe: Recipe
    about: str  # where its values come from
    published: float | None = None  # test accuracy in %, None where nothing comparable is known


_DATASETS: dict[str, dict[str, Any]] = {
    "digits-lt": {"dataset": "digits", "arch": "digits", "ratio": 20.0, "batch_size": 32},
    "cifar10-lt": {"dataset": "cifar10", "arch": "resnet32"},
    "cifar100-lt": {"dataset": "cifar100", "arch": "resnet32"},
}
_METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "ce-drw": {"weighting": "deferred"},
    "ldam-drw": {"loss": "ldam", "weighting": "deferred"},
    "vs": {"loss": "vs"},
}
# γ and τ of VS: the VS paper's tuned ones, since the reference does not name its own.
_VS = {"digits-lt": (0.15, 1.25), "cifar10-lt": (0.15, 1.25), "cifar100-lt": (0.05, 0.75)}
# SAM's radius for the four methods. Published for three of them on CIFAR.
_RADII = {
    "digits-lt": (0.2, 0.2, 0.2, 0.2),
    "cifar10-lt": (0.1, 0.5, 0.8, 0.5),
    "cifar100-lt": (0.2, 0.8, 0.8, 0.8),
}
# Table 1: SGD and SAM for each of the four methods.
_TABLE_1 = {
    "cifar10-lt": ((71.7, 73.1), (75.5, 80.6), (77.5, 81.9), (78.6, 82.4)),
    "cifar100-lt": ((38.5, 39.6), (41.0, 44.6), (42.7, 45.4), (41.7, 46.6)),
}
# Table 3, on CE+DRW: PGD and LPF-SGD.
_TABLE_3 = {"cifar10-lt": (77.2, 78.5), "cifar100-lt": (42.2, 42.9)}
# The published figure of the radius, read off to 0.1; at 0.5 it is cifar10-lt-ce-drw-sam itself.
_SWEEP = {0.05: 77.0, 0.1: 78.3, 0.2: 79.6, 0.8: 77.2}
_RATIOS = {10.0: 89.4, 200.0: 78.1}  # other ratios that the paper gives numbers for
# Of ImbSAM and SSE-SAM on the reference's recipe: classes below which n_c counts as tail.
_RARE = {"digits-lt": (20, 50), "cifar10-lt": (200, 1000), "cifar100-lt": (20, 100)}
_PAPER, _OURS = "paper", "ours, no published target"


def _small() -> Iterator[Entry]:
    """Name the runs of Tables 1 and 3, of the radius sweep, and the digits' like them."""
    for data, options in _DATASETS.items():
        digits, sam = data == "digits-lt", {}
        for i, (method, choice) in enumerate(_METHODS.items()):
            recipe = Recipe(f"{data}-{method}-sgd", **options, **choice)
            if vs := method == "vs":
                recipe = replace(recipe, gamma=_VS[data][0], tau=_VS[data][1])
            about = _OURS if digits else _PAPER
            if vs and not digits:
                about += "; unpublished: γ, τ are the VS paper's"
            sam[method] = replace(
                recipe, name=f"{data}-{method}-sam", step="sam", rho=_RADII[data][i]
            )
            targets = (None, None) if digits else _TABLE_1[data][i]
            yield Entry(recipe, about, targets[0])
            if vs and not digits:
                about += ", the radius ours"
            yield Entry(sam[method], about, targets[1])
        base = Recipe(f"{data}-ce-drw", **options, weighting="deferred")
        targets = _TABLE_3.get(data, (None, None))
        noisy = "" if digits else f"{_PAPER}; unpublished: the noise is ours"
        for step, noise, target in zip(("pgd", "lpf-sgd"), (1e-3, 2e-3), targets, strict=True):
            yield Entry(
                replace(base, name=f"{base.name}-{step}", step=step, noise=noise),
                noisy or _OURS,
                target,
            )
        if data == "cifar10-lt":
            for rho, target in _SWEEP.items():
                recipe = replace(sam["ce-drw"], name=f"{base.name}-sam-rho{rho:g}", rho=rho)
                yield Entry(recipe, f"{_PAPER}, radius sweep", target)
            for ratio, target in _RATIOS.items():
                name = f"{data}{ratio:g}-ldam-drw-sam"
                yield Entry(replace(sam["ldam-drw"], name=name, ratio=ratio), _PAPER, target)
        few, many = _RARE[data]
        rho = _RADII[data][1]
        changes: dict[str, dict[str, Any]] = {
            "imbsam": {"rare_below": few, "rho": rho},
            "sse-sam": {"rare_below": many, "rho": rho / 2, "rho_tail": rho},
        }
        for step, change in changes.items():
            yield Entry(replace(base, name=f"{base.name}-{step}", step=step, **change), _OURS)


def _class_aware() -> Iterator[Entry]:
    """Name the runs of ImbSAM's and SSE-SAM's own recipe, and what they compare with."""
    plain = Recipe(
        "cifar100-lt-resnet34-ce-sgd", "cifar100", "resnet34c", schedule="cosine",
        lr=0.01, weight_decay=1e-3, batch_size=64, flip_test=True,
    )  # fmt: skip
    steps: dict[str, tuple[dict[str, Any], str, float]] = {
        "sgd": ({}, "ImbSAM", 47.6),
        "sam": ({"rho": 0.05}, "ImbSAM; unpublished: the radius is ours", 48.9),
        "imbsam": ({"rare_below": 20, "rho": 0.05}, "ImbSAM", 51.1),
        "sse-sam": (
            {"rare_below": 100, "rho": 0.05, "rho_tail": 0.1, "stage_two": 0.7},
            "SSE-SAM",
            49.3,
        ),
    }
    for step, (change, about, target) in steps.items():
        name = f"cifar100-lt-resnet34-ce-{step}"
        about += "; theirs is the best epoch on the test set"
        yield Entry(replace(plain, name=name, step=step, **change), about, target)


def _large() -> Iterator[Entry]:
    """Name the runs of Table 2, and those that it leaves out: the list-file sets, ResNet-50."""
    published = {  # None: not in the table, here for completeness
        "imagenet-lt": (42.7, None, 44.9, 47.1, 49.9, 53.1, None, None),
        "inat2018": (60.3, None, 63.0, 65.3, 67.5, 70.1, None, None),
    }
    radii = {  # from the epochs 6, 61 and 76 on, after 0.05; ours, CE+DRW's, where not named
        ("imagenet-lt", None): (0.1, 0.5, 0.5),
        ("inat2018", None): (0.1, 0.1, 0.2),
        ("inat2018", "ldam-drw"): (0.1, 0.5, 0.5),
    }
    for data, targets in published.items():
        plain = Recipe(
            data, data, "resnet50", imbalance="none", image_size=224, epochs=90, batch_size=256,
            schedule="cosine", drops=(60,), lr=0.2 if data == "imagenet-lt" else 0.1,
        )  # fmt: skip
        names = [(method, step) for method in _METHODS for step in ("sgd", "sam")]
        for (method, step), target in zip(names, targets, strict=True):
            change = dict(_METHODS[method], step=step)
            if method == "ldam-drw":
                change["max_margin"] = 0.3
                change["weight_decay"] = 2e-4 if data == "imagenet-lt" else 1e-4
            if method == "vs":
                change["gamma"], change["tau"] = _VS["cifar100-lt"]
            if step == "sam":
                after = radii.get((data, method), radii[data, None])
                change["rho"], change["rho_steps"] = (
                    0.05,
                    tuple(zip((6, 61, 76), after, strict=True)),
                )
            about = _PAPER if target else _OURS
            yield Entry(replace(plain, name=f"{data}-{method}-{step}", **change), about, target)


ENTRIES = {entry.recipe.name: entry for part in (_small, _class_aware, _large) for entry in part()}
RECIPES = {name: entry.recipe for name, entry in ENTRIES.items()}


def find_recipe(name: str) -> Recipe:
    """Look a recipe up; an unknown name is a SpectraError that lists near ones."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--list prints all of them"
        raise SpectraError(f"no recipe is named {name!r}; {hint}")
    return RECIPES[name]
