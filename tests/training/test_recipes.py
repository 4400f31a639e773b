"""A recipe's schedules and losses as published, and values that no run can have."""

from dataclasses import replace
from itertools import product

import pytest

from spectra.errors import SpectraError
from spectra.training import Recipe, find_recipe

# The published class counts at ratio 100 (paper.md 4.2) and the weights that follow (4.3).
COUNTS = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
WEIGHTS = (0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993)


def test_deferred_weights_are_the_published_ones_from_epoch_161_on() -> None:
    recipe = find_recipe("cifar10-lt-ce-drw-sgd")
    assert recipe.loss_of(160, COUNTS).weights is None
    weights = recipe.loss_of(161, COUNTS).weights
    assert weights == pytest.approx(WEIGHTS, abs=6e-4)
    assert replace(recipe, weighting="effective").loss_of(1, COUNTS).weights == weights
    assert replace(recipe, weighting="resample").loss_of(161, COUNTS).weights is None


def test_the_losses_of_the_recipes_have_the_published_parameters() -> None:
    ldam = find_recipe("cifar10-lt-ldam-drw-sgd").loss_of(200, COUNTS)
    assert (ldam.name, ldam.scale, ldam.max_margin) == ("ldam", 30.0, 0.5)
    assert find_recipe("imagenet-lt-ldam-drw-sgd").loss_of(1, COUNTS).max_margin == 0.3
    vs = find_recipe("cifar100-lt-vs-sgd").loss_of(200, COUNTS)
    assert (vs.name, vs.gamma, vs.tau, vs.weights) == ("vs", 0.05, 0.75, None)
    assert find_recipe("cifar10-lt-ldam-drw-sgd").head == "cosine"
    assert find_recipe("cifar10-lt-vs-sgd").scale == 1.0


def test_the_large_sets_follow_a_cosine_and_weigh_the_last_thirty_epochs() -> None:
    recipe = find_recipe("imagenet-lt-ce-drw-sam")
    assert recipe.lr_of(1) == 0.2
    assert recipe.lr_of(61) == pytest.approx(0.05)  # no drop beside the cosine
    assert [recipe.loss_of(e, COUNTS).weights is None for e in (60, 61)] == [True, False]
    assert [recipe.rho_of(e) for e in (1, 5, 6, 60, 61, 90)] == [0.05, 0.05, 0.1, 0.1, 0.5, 0.5]
    nature = find_recipe("inat2018-ce-drw-sam")
    assert [nature.rho_of(e) for e in (5, 6, 75, 76)] == [0.05, 0.1, 0.1, 0.2]
    assert nature.lr == 0.1
    assert find_recipe("inat2018-ldam-drw-sgd").weight_decay == 1e-4


def test_the_heads_climb_ends_with_the_first_stage() -> None:
    recipe = find_recipe("cifar100-lt-resnet34-ce-sse-sam")
    assert [recipe.rho_of(e) for e in (1, 140, 141, 200)] == [0.05, 0.05, 0.0, 0.0]


def test_plain_values_state_the_schedule_that_runs() -> None:
    values = replace(find_recipe("digits-lt-ce-sgd"), epochs=40).to_dict()
    assert (values["warmup"], values["drops"]) == (1, [32, 36])
    assert find_recipe("imagenet-lt-ce-sgd").to_dict()["warmup"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"rho": -0.1},
        {"step": "sam", "rho_steps": ((5, 0.1), (5, 0.2))},
        {"rho_steps": ((5, -0.1),)},
        {"step": "sam", "rho_steps": ((5, 0.1),), "rho_end": 0.2},
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"rho": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"step": "sam"},
        {"rho": 0.1},
        {"step": "sam", "rho": float("inf")},
        {"rho_steps": ((0, 0.1),), "step": "sam"},
        {"imbalance": "log"},
        {"drops": (300,), "weighting": "deferred"},
        {"step": "adam"},
        {"step": "imbsam", "rho": 0.1},
        {"loss": "hinge"},
        {"weighting": "often"},
        {"schedule": "linear"},
        {"precision": "fp8"},
        {"weighting": "deferred", "epochs": 1},
        {"step": "pgd"},  # it would be SGD by another name
        {"step": "lpf-sgd"},
        {"step": "imbsam", "rare_below": 20, "rho": 0.5, "adaptive": True},
        {"noise": 1e-3},
        {"step": "pgd", "noise": 1e-3, "noise_parts": 4},
        {"step": "pgd", "noise": 1e-3, "noise_threshold": 0.0},
        {"step": "pgd", "noise": 1e-3, "noise_threshold": float("nan")},
        {"step": "sse-sam", "rho": 0.5, "rare_below": 20},  # its tail would never climb
        {"step": "sam", "rho": 0.5, "stage_two": 0.3},
        {"beta": 0.99},
        {"weighting": "resample", "beta": 0.99},
        {"gamma": 1.0},
        {"tau": 2.0},
        {"max_margin": 0.3},
        {"noise": -1.0},
        {"drops": (9, 3)},
        {"drops": (), "weighting": "deferred"},
        {"ratio": 0.01},
        {"seed": -1},
    ],
    ids=str,
)
def test_impossible_values_are_refused_in_one_line(change: dict[str, object]) -> None:
    with pytest.raises(SpectraError) as caught:
        _ = replace(find_recipe("digits-lt-ce-sgd"), **change).data_spec
    assert "\n" not in str(caught.value)


SSE = {"step": "sse-sam", "rho": 0.1, "rho_tail": 0.1, "rare_below": 50}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (SSE | {"stage_two": 1.5}, "stage_two is 1.5; expected a share"),
        (SSE | {"rho_tail": -0.1}, "rho_tail is -0.1; expected at least 0"),
        (SSE | {"rho_tail": 0.0}, "rho_tail is 0.0; expected at least 0, above 0 for sse-sam"),
        ({"step": "sam", "rho": 0.1, "rho_tail": 0.5}, "rho_tail is 0.5, which only sse-sam use"),
        ({"weighting": "deferred", "beta": 1.0}, "beta is 1.0; expected 0 to 1"),
        ({"weighting": "none", "beta": 0.99}, "beta is 0.99, which only deferred, effective use"),
        ({"loss": "ldam", "max_margin": -3.0}, "max_margin is -3.0; expected above 0"),
        ({"loss": "focal", "gamma": -1.0}, "gamma is -1.0; expected at least 0"),
        ({"step": "lpf-sgd", "noise": 1e-3, "noise_parts": 0}, "noise_parts is 0; expected 1"),
        ({"step": "pgd", "noise": 1e-3, "noise_interval": 0}, "noise_interval is 0; expected at"),
        ({"step": "pgd", "noise": 1e-3, "noise_threshold": -1.0}, "noise_threshold is -1.0; exp"),
        ({"bn_both_passes": True}, "bn_both_passes is True, which only imbsam, lpf-sgd, sam, sse"),
        ({"step": "pgd", "noise": 1e-3, "bn_both_passes": True}, "bn_both_passes is True, which"),
        ({"imbalance": "none", "ratio": 50.0}, "ratio is 50.0, which only exp, step use; exp"),
        ({"schedule": "cosine", "drops": (30,)}, "drops is (30,) under a cosine, where only"),
        ({"schedule": "cosine", "drops": (30,), "weighting": "effective"}, "drops is (30,) under"),
    ],
    ids=str,
)
def test_a_value_is_refused_by_its_own_rule(change: dict[str, object], told: str) -> None:
    with pytest.raises(SpectraError) as caught:
        replace(find_recipe("digits-lt-ce-sgd"), **change)
    assert str(caught.value).startswith(told)


def test_another_length_keeps_the_shares_of_what_is_named_in_epochs() -> None:
    large = find_recipe("imagenet-lt-ce-drw-sam")
    half = large.lasting(45)
    assert half.drops == (30,)
    assert [half.rho_of(e) for e in (1, 3, 30, 31, 45)] == [0.05, 0.1, 0.1, 0.5, 0.5]
    assert large.lasting(90) == large
    small = find_recipe("cifar10-lt-ce-drw-sam")
    assert small.lasting(50) == replace(small, epochs=50)
    one = find_recipe("digits-lt-ce-drw-sgd").lasting(1, weighting="none", drops=(0,))
    assert (one.epochs, one.drops) == (1, (0,))
    lengths = [replace(small, epochs=e).lr_epochs[1] for e in range(2, 30)]
    assert all(1 <= first < second for first, second in lengths)


def test_the_large_sets_name_a_drop_where_the_weighting_starts_alone() -> None:
    for data, method in product(("imagenet-lt", "inat2018"), ("ce", "ce-drw", "ldam-drw", "vs")):
        for step in ("sgd", "sam"):
            recipe = find_recipe(f"{data}-{method}-{step}")
            assert recipe.drops == ((60,) if "drw" in method else ())
            assert recipe.lr_of(61) == pytest.approx(recipe.lr / 4)


def test_drops_that_a_finished_cosine_run_states_are_its_own() -> None:
    recipe = find_recipe("cifar100-lt-resnet34-ce-sgd")
    stated = recipe.to_dict()
    assert replace(recipe, drops=tuple(stated["drops"])).to_dict() == stated


def test_a_part_of_an_epoch_ends_no_stage_early() -> None:
    """0.29 · 100 is 28.999999999999996 in floating point."""
    recipe = find_recipe("cifar100-lt-resnet34-ce-sse-sam")
    found = replace(recipe, epochs=100, stage_two=0.29)
    assert [found.rho_of(epoch) for epoch in (29, 30)] == [0.05, 0.0]


def test_pgd_s_noise_falls_with_the_learning_rate_and_no_other_s() -> None:
    recipe = find_recipe("cifar10-lt-ce-drw-pgd")
    found = [recipe.noise_of(epoch) for epoch in (1, 5, 160, 161, 181)]
    assert found == pytest.approx([2e-4, 1e-3, 1e-3, 1e-5, 1e-7])
    assert replace(recipe, lr=0.5).noise_of(160) == pytest.approx(1e-3)
    assert find_recipe("cifar10-lt-ce-drw-lpf-sgd").noise_of(200) == 2e-3


def test_a_short_run_has_one_epoch_of_warm_up_which_is_none() -> None:
    recipe = find_recipe("cifar10-lt-ce-sgd")
    first = {e: recipe.lasting(e).lr_of(1) for e in (200, 60, 59, 50, 1)}
    assert first == pytest.approx({200: 0.02, 60: 0.05, 59: 0.1, 50: 0.1, 1: 0.1})


def test_without_imbalance_the_whole_set_is_described() -> None:
    recipe = Recipe("all", dataset="digits", arch="digits", imbalance="none")
    assert recipe.data_spec.ratio is None
    whole = find_recipe("digits-lt-ce-sgd").lasting(40, imbalance="none")  # its ratio was 20
    assert whole.data_spec == recipe.data_spec
