"""The table of recipes, and values that no run can have."""

from dataclasses import replace

import pytest

from spectra.errors import SpectraError
from spectra.training import RECIPES, Recipe, find_recipe


def test_the_table_names_every_data_set_method_and_step() -> None:
    assert len(RECIPES) == 18
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert {recipe.weight_decay for recipe in RECIPES.values()} == {2e-4}
    assert find_recipe("cifar10-lt-ldam-drw-sgd").head == "cosine"


def test_radii_are_the_published_ones() -> None:
    published = {"ce": (0.1, 0.2), "ce-drw": (0.5, 0.8), "ldam-drw": (0.8, 0.8)}
    for method, radii in published.items():
        found = tuple(find_recipe(f"cifar{c}-lt-{method}-sam").rho for c in (10, 100))
        assert found == radii


def test_plain_values_state_the_schedule_that_runs() -> None:
    values = replace(find_recipe("digits-lt-ce-sgd"), epochs=40).to_dict()
    assert (values["warmup"], values["drops"]) == (1, [32, 36])


@pytest.mark.parametrize(
    "change",
    [
        {"rho": -0.1},
        {"epochs": 0},
        {"lr": 0.0},
        {"step": "adam"},
        {"loss": "hinge"},
        {"precision": "fp8"},
        {"drops": (9, 3)},
        {"drops": (), "drw": True},
        {"ratio": 0.01},
    ],
)
def test_impossible_values_are_refused_in_one_line(change: dict[str, object]) -> None:
    with pytest.raises(SpectraError) as caught:
        _ = replace(find_recipe("digits-lt-ce-sgd"), **change).data_spec
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_near_names() -> None:
    with pytest.raises(SpectraError, match="digits-lt-ce-drw-sgd"):
        find_recipe("digit-lt-ce-drw-sgd")


def test_without_imbalance_the_whole_set_is_described() -> None:
    recipe = Recipe("all", dataset="digits", arch="digits", imbalance="none")
    assert recipe.data_spec.ratio is None
