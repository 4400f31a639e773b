"""`python -m spectra.train`: flags, errors, and a small run from end to end."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from spectra.checkpoint import load_checkpoint
from spectra.data import DataSpec
from spectra.train import main, parse
from spectra.training import RECIPES, Recipe, find_recipe


def _flags(recipe: Recipe) -> list[str]:
    flags = []
    for field in fields(Recipe)[1:]:
        value, flag = getattr(recipe, field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            flags += [f"--{flag}", ",".join(map(str, value))]
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_every_field_survives_the_command_line(recipe: Recipe) -> None:
    """P50: started from another recipe, the flags alone give this one, booleans and all."""
    parsed, _ = parse(["cifar100-lt-ldam-drw-sam", *_flags(recipe)])
    assert parsed is not None
    for field in fields(Recipe)[1:]:
        assert getattr(parsed, field.name) == getattr(recipe, field.name), field.name


def test_small_radii_and_negated_booleans_round_trip() -> None:
    """P50: a radius of 0.05 stays 0.05, and a negated flag is false."""
    flags = ["--rho", "0.05", "--no-drw", "--no-augment", "--drops", "100,120"]
    recipe, options = parse(["cifar10-lt-ce-drw-sam", *flags, "--save-at", "50,100"])
    assert recipe is not None
    assert (recipe.rho, recipe.drw, recipe.augment) == (0.05, False, False)
    assert (recipe.drops, options.save_at) == ((100, 120), (50, 100))
    again, _ = parse(["cifar10-lt-ce-sam", *_flags(recipe)])
    assert again is not None
    assert (again.rho, again.drw, again.augment) == (0.05, False, False)


def test_a_short_run_leaves_a_checkpoint_that_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--epochs", "2", "--ratio", "10", "--seed", "3", "--quiet"]
    assert main(["digits-lt-ce-drw-sam", *flags, "--out", "kept/net.pt"]) == 0
    printed = capsys.readouterr().out
    assert "after the last epoch" in printed
    assert "no result" in printed  # the best epoch on the test set is named for what it is
    checkpoint = load_checkpoint("kept/net.pt")
    assert checkpoint.epoch == 2
    assert checkpoint.data == DataSpec("digits", "exp", 10.0)
    assert (checkpoint.recipe or {})["seed"] == 3
    assert Path("runs/digits-lt-ce-drw-sam/3/metrics.csv").is_file()


def test_an_unknown_recipe_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spectra.train", "digits-lt-ce-drw-sdg"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "digits-lt-ce-drw-sgd" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["digits-lt-ce-sgd", "--rho", "-1"],
        ["digits-lt-ce-sgd", "--ratio", "1e9"],
        ["cifar10-lt-ce-sgd", "--data", "/nowhere"],
        ["digits-lt-ce-sgd", "--eval-every", "0"],
        ["digits-lt-ce-sgd", "--save-at", "5000"],
        ["digits-lt-ce-sgd", "--device", "abacus"],
        ["digits-lt-ce-sgd", "--out", "/dev/null/run"],
    ],
)
def test_what_cannot_run_is_one_line_and_leaves_nothing(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert "rho 0.5" in next(line for line in lines if "cifar10-lt-ce-drw-sam" in line)
    assert find_recipe("cifar10-lt-ce-drw-sam").rho == 0.5
