"""The table of recipes against the published runs (paper.md 3.4 to 3.7, 4.3, 6.2)."""

from dataclasses import fields

import pytest

from spectra.errors import SpectraError
from spectra.training import ENTRIES, RECIPES, Recipe, find_recipe

METHODS = ("ce", "ce-drw", "ldam-drw", "vs")


@pytest.mark.parametrize("data", ["digits-lt", "cifar10-lt", "cifar100-lt"])
def test_every_method_has_both_steps(data: str) -> None:
    for method in METHODS:
        sgd, sam = (find_recipe(f"{data}-{method}-{step}") for step in ("sgd", "sam"))
        assert (sgd.step, sgd.rho, sam.step) == ("sgd", 0.0, "sam")
        differing = {f.name for f in fields(Recipe) if getattr(sgd, f.name) != getattr(sam, f.name)}
        assert differing == {"name", "step", "rho"}
    for step in ("pgd", "lpf-sgd", "imbsam", "sse-sam"):
        assert find_recipe(f"{data}-ce-drw-{step}").step == step


def test_radii_are_the_published_ones() -> None:
    published = {"ce": (0.1, 0.2), "ce-drw": (0.5, 0.8), "ldam-drw": (0.8, 0.8)}
    for method, radii in published.items():
        found = tuple(find_recipe(f"cifar{c}-lt-{method}-sam").rho for c in (10, 100))
        assert found == radii
    sweep = sorted(r.rho for n, r in RECIPES.items() if n.startswith("cifar10-lt-ce-drw-sam"))
    assert sweep == [0.05, 0.1, 0.2, 0.5, 0.8]


def test_goals_are_the_published_accuracies() -> None:
    for data, row in {
        "cifar10-lt": (71.7, 73.1, 75.5, 80.6, 77.5, 81.9, 78.6, 82.4),
        "cifar100-lt": (38.5, 39.6, 41.0, 44.6, 42.7, 45.4, 41.7, 46.6),
    }.items():
        names = [f"{data}-{method}-{step}" for method in METHODS for step in ("sgd", "sam")]
        assert tuple(ENTRIES[name].published for name in names) == row
    assert ENTRIES["inat2018-ldam-drw-sam"].published == 70.1
    assert ENTRIES["cifar10-lt-ce-drw-sam-rho0.8"].published == 77.2
    for ratio, target in ((10, 89.4), (200, 78.1)):
        entry = ENTRIES[f"cifar10-lt{ratio}-ldam-drw-sam"]
        assert (entry.published, entry.recipe.ratio, entry.recipe.rho) == (target, ratio, 0.8)


@pytest.mark.parametrize("data", ["imagenet-lt", "inat2018"])
def test_the_large_sets_have_every_method_and_step(data: str) -> None:
    for method in METHODS:
        sgd, sam = (ENTRIES[f"{data}-{method}-{step}"] for step in ("sgd", "sam"))
        assert (sgd.recipe.rho, sam.recipe.rho) == (0.0, 0.05)
        assert (sgd.published is None) == (method == "vs")
        assert (sam.published is None) == (method in ("ce", "vs"))


def test_what_was_not_published_says_so_and_has_no_goal() -> None:
    """A value of ours is named; a run that nobody published has no target."""
    for name, entry in ENTRIES.items():
        assert ("ours" in entry.about) or entry.published is not None, name
        if entry.about.startswith("ours"):
            assert entry.published is None, name
    for name in ("cifar10-lt-vs-sam", "cifar10-lt-ce-drw-pgd", "cifar100-lt-ce-drw-lpf-sgd"):
        assert "unpublished" in ENTRIES[name].about
    for step in ("imbsam", "sse-sam"):
        assert ENTRIES[f"cifar10-lt-ce-drw-{step}"].about == "ours, no published target"


def test_the_class_aware_steps_have_their_own_recipe() -> None:
    recipe = find_recipe("cifar100-lt-resnet34-ce-imbsam")
    found = (recipe.arch, recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.schedule)
    assert found == ("resnet34c", 0.01, 1e-3, 64, "cosine")
    assert (recipe.rare_below, recipe.rho, recipe.flip_test) == (20, 0.05, True)
    sse = find_recipe("cifar100-lt-resnet34-ce-sse-sam")
    assert (sse.rare_below, sse.rho, sse.rho_tail, sse.stage_two) == (100, 0.05, 0.1, 0.7)


def test_the_paper_s_runs_share_its_recipe() -> None:
    for name, recipe in RECIPES.items():
        if name.startswith("cifar") and "resnet34" not in name:
            found = (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch_size)
            assert found == (0.1, 0.9, 2e-4, 128), name
            assert (recipe.epochs, recipe.arch) == (200, "resnet32"), name
    assert all(name == recipe.name for name, recipe in RECIPES.items())


def test_an_unknown_recipe_lists_near_names() -> None:
    with pytest.raises(SpectraError, match="digits-lt-ce-drw-sgd"):
        find_recipe("digit-lt-ce-drw-sgd")
