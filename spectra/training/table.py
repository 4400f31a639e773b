"""The runs that have a name: data set × method × step, with what was published of each.

`about` names the source of a run's values ("paper" is Rangwani et al. 2022) and which of them are
ours. The digits' have no published target: they are long enough that the head is fitted and the
tail is not. Another ratio, seed or length (`Recipe.lasting`) is the same recipe with a field
overridden.

References:
    Rangwani et al., Escaping saddle points, https://arxiv.org/abs/2212.13827
    ImbSAM, https://github.com/cool-xuan/Imbalanced_SAM
    Lyu et al., SSE-SAM, https://arxiv.org/abs/2412.13715
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..errors import SpectraError
from . import published
from .recipes import Recipe


@dataclass(frozen=True)
class Entry:
    """A named run."""

    recipe: Recipe
    about: str  # where its values come from
    published: float | None = None  # test accuracy in %, None where nothing comparable is known

    @property
    def by_paper(self) -> bool:
        """Say whether the run is by the paper's recipe, and not by another paper's."""
        return self.about.startswith(("paper", "ours"))


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
# Of ImbSAM and SSE-SAM on the reference's recipe: classes below which n_c counts as tail.
_RARE = {"digits-lt": (20, 50), "cifar10-lt": (200, 1000), "cifar100-lt": (20, 100)}
_PAPER, _OURS = "paper", "ours, no published target"


def method_name(recipe: Recipe) -> str:
    """Name a recipe's method as the paper does: loss, deferred re-weighting, step."""
    loss = {"focal": "Focal", "logit-adjustment": "LA"}.get(recipe.loss, recipe.loss.upper())
    weighting = {"none": "", "deferred": "+DRW"}.get(recipe.weighting, f"+{recipe.weighting}")
    step = {"imbsam": "ImbSAM", "sgd": ""}.get(recipe.step, recipe.step.upper())
    return loss + weighting + (f"+{step}" if step else "")


def _goal(rows: Mapping[str, published.Row], recipe: Recipe) -> float | None:
    row = rows.get(method_name(recipe))
    return None if row is None else row.overall.mean


def _small() -> Iterator[Entry]:
    """Name the runs of Tables 1 and 3, of the radius sweep, and the digits' like them."""
    for data, options in _DATASETS.items():
        digits, sam = data == "digits-lt", {}
        goals = published.MAIN.get(options["dataset"], {})
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
            yield Entry(recipe, about, _goal(goals, recipe))
            if vs and not digits:
                about += ", the radius ours"
            yield Entry(sam[method], about, _goal(goals, sam[method]))
        base = Recipe(f"{data}-ce-drw", **options, weighting="deferred")
        goals = published.OPTIMISERS.get(options["dataset"], {})
        noisy = "" if digits else f"{_PAPER}; unpublished: the noise is ours"
        for step, noise in (("pgd", 1e-3), ("lpf-sgd", 2e-3)):  # pgd's at the full learning rate
            recipe = replace(base, name=f"{base.name}-{step}", step=step, noise=noise)
            yield Entry(recipe, noisy or _OURS, _goal(goals, recipe))
        if data == "cifar10-lt":
            for rho, row in published.SWEEP.items():
                if rho != sam["ce-drw"].rho:  # else it is that run itself
                    recipe = replace(sam["ce-drw"], name=f"{base.name}-sam-rho{rho:g}", rho=rho)
                    yield Entry(recipe, f"{_PAPER}, radius sweep", row.overall.mean)
            for (dataset, ratio, method), row in published.FURTHER.items():
                if (dataset, method) == ("cifar10", method_name(sam["ldam-drw"])):
                    name = f"{data}{ratio:g}-ldam-drw-sam"
                    recipe = replace(sam["ldam-drw"], name=name, ratio=ratio)
                    yield Entry(recipe, _PAPER, row.overall.mean)
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
    radii = {  # from the epochs 6, 61 and 76 on, after 0.05; ours, CE+DRW's, where not named
        ("imagenet-lt", None): (0.1, 0.5, 0.5),
        ("inat2018", None): (0.1, 0.1, 0.2),
        ("inat2018", "ldam-drw"): (0.1, 0.5, 0.5),
    }
    for data in ("imagenet-lt", "inat2018"):
        plain = Recipe(
            data, data, "resnet50", imbalance="none", image_size=224, epochs=90, batch_size=256,
            schedule="cosine", drops=(), lr=0.2 if data == "imagenet-lt" else 0.1,
        )  # fmt: skip
        for method, step in product(_METHODS, ("sgd", "sam")):
            change = dict(_METHODS[method], step=step)
            if "weighting" in change:
                change["drops"] = (60,)  # where the weighting starts
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
            recipe = replace(plain, name=f"{data}-{method}-{step}", **change)
            goal = _goal(published.MAIN[data], recipe)
            yield Entry(recipe, _OURS if goal is None else _PAPER, goal)


ENTRIES = {entry.recipe.name: entry for part in (_small, _class_aware, _large) for entry in part()}
RECIPES = {name: entry.recipe for name, entry in ENTRIES.items()}


def find_recipe(name: str) -> Recipe:
    """Look a recipe up; an unknown name is a SpectraError that lists near ones."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--list prints all of them"
        raise SpectraError(f"no recipe is named {name!r}; {hint}")
    return RECIPES[name]
