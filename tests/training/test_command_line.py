"""`python -m spectra.train`: flags, errors, and small runs from end to end."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from spectra import train
from spectra.checkpoint import load_checkpoint
from spectra.data import DataSpec
from spectra.train import main, parse
from spectra.training import RECIPES, Recipe, find_recipe, loop
from tests.made_up import write_list_set


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(":".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
    return str(value)


def _flags(recipe: Recipe) -> list[str]:
    flags = []
    for field in fields(Recipe)[1:]:
        value, flag = getattr(recipe, field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", _text(value)]
    return flags


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_field_survives_the_command_line(recipe: Recipe) -> None:
    """P50: started from another recipe, the flags alone give this one, booleans and all."""
    parsed, _ = parse(["digits-lt-ce-sgd", *_flags(recipe)])
    assert parsed is not None
    for field in fields(Recipe)[1:]:
        assert getattr(parsed, field.name) == getattr(recipe, field.name), field.name


def test_small_radii_and_negated_booleans_round_trip() -> None:
    """P50: a radius of 0.05 stays 0.05, and a negated flag is false."""
    flags = ["--rho", "0.05", "--no-augment", "--bn-both-passes", "--drops", "100,120"]
    recipe, options = parse(["cifar10-lt-ce-drw-sam", *flags, "--save-at", "50,100"])
    assert recipe is not None
    assert (recipe.rho, recipe.bn_both_passes, recipe.augment) == (0.05, True, False)
    assert (recipe.drops, options.save_at) == ((100, 120), (50, 100))
    again, _ = parse(["cifar10-lt-ce-sam", *_flags(recipe), "--no-bn-both-passes"])
    assert again is not None
    assert (again.rho, again.bn_both_passes, again.augment) == (0.05, False, False)
    steps, _ = parse(["digits-lt-ce-sam", "--rho-steps", "6:0.1,61:0.5"])
    assert steps is not None
    assert steps.rho_steps == ((6, 0.1), (61, 0.5))


def test_a_short_run_leaves_a_checkpoint_that_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--epochs", "2", "--ratio", "10", "--seed", "3"]
    assert main(["digits-lt-ce-drw-sam", *flags]) == 0
    printed = capsys.readouterr()
    assert "after the last epoch" in printed.out
    assert "no result" in printed.out  # the best epoch on the test set is named for what it is
    for part in ("epoch 2/2", "loss", "head", "mid", "tail", "img/s", "00:00 left"):
        assert part in printed.out + printed.err
    folder = Path("runs/digits-lt-ce-drw-sam/3")
    assert (folder / "learning.png").exists()
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint.epoch == 2
    assert checkpoint.data == DataSpec("digits", "exp", 10.0)
    assert (checkpoint.recipe or {})["seed"] == 3
    run = json.loads((folder / "run.json").read_text())
    assert run["recipe"] == checkpoint.recipe
    assert run["counts"][0] / run["counts"][-1] == pytest.approx(10, rel=0.1)
    assert run["seconds"] > 0


@pytest.mark.parametrize(
    ("cost", "flags", "told"),
    [
        (8.2, ["--precision", "bf16"], True),
        (1.1, ["--precision", "bf16"], False),
        (8.2, ["--precision", "bf16", "--quiet"], False),
        (8.2, [], False),
    ],
)
def test_bf16_is_told_where_it_is_the_slower_one(
    cost: float,
    flags: list[str],
    told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "bf16_cost", lambda: cost)
    command = ["digits-lt-ce-sgd", "--epochs", "1", "--device", "cpu", *flags]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert ("about 8 times as long" in capsys.readouterr().err) is told


def test_seeds_give_the_runs_that_each_gives_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two side by side and one after them; the mean is of the last epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["digits-lt-ce-sgd", "--epochs", "2", "--quiet", "--device", "cpu"]
    assert main([*flags, "--seeds", "1,2,3", "--jobs", "2"]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert main([*flags, "--seed", "2", "--out", "alone"]) == 0
    together, alone = (Path(p) for p in ("runs/digits-lt-ce-sgd/2", "alone"))
    assert (together / "metrics.csv").read_bytes() == (alone / "metrics.csv").read_bytes()
    found = [
        load_checkpoint(f"runs/digits-lt-ce-sgd/{seed}/last.pt").metrics["test_accuracy"]
        for seed in (1, 2, 3)
    ]
    assert f"{100 * sum(found) / 3:.2f} ±" in last
    assert "3 seeds" in last


def test_an_interrupt_ends_the_seeds_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where they ignore Ctrl-C, as what a shell has put into the background does."""
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\ntrap '' INT\necho $$ >> started\nexec sleep 60\n")
    child.chmod(0o700)
    started = tmp_path / "started"

    def interrupted(_: float) -> None:
        deadline = time.monotonic() + 30
        while not started.exists() or len(started.read_text().split()) < 2:
            assert time.monotonic() < deadline
            os.sched_yield()
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(train.time, "sleep", interrupted)
    assert main(["digits-lt-ce-sgd", "--seeds", "1,2,3", "--jobs", "2"]) == 130
    for number in map(int, started.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], "runs/digits-lt-ce-sgd/0"),
        (["--out", "mine"], "mine"),
        (["--seeds", "7", "--out", "mine"], "mine/7"),
    ],
)
def test_an_interrupted_run_names_its_folder_once_it_holds_an_epoch_of_it(
    flags: list[str],
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state of a run that is to be replaced is nothing that this one has finished."""
    monkeypatch.chdir(tmp_path)
    command = ["digits-lt-ce-sgd", "--quiet", "--device", "cpu", "--state-every", "0", *flags]
    true = loop.run_epoch
    for more, epochs, told in (
        ([], 0, "nothing was finished yet"),
        (["--resume"], 1, f"what is finished lies in {folder}; the same command with --resume"),
        (["--overwrite"], 0, "nothing was finished yet"),
        (["--resume"], 0, f"what is finished lies in {folder};"),
        (["--overwrite"], 1, f"what is finished lies in {folder};"),
    ):
        left = iter(range(epochs))

        def stopping(*args: Any, left: Iterator[int] = left) -> tuple[float, float]:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return true(*args)

        monkeypatch.setattr(loop, "run_epoch", stopping)
        assert main([*command, *more]) == 130
        assert f"interrupted: {told}" in capsys.readouterr().err


def test_memory_that_runs_out_is_one_line_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMuch more")

    monkeypatch.setattr(loop, "run_epoch", full)
    assert main(["digits-lt-ce-sgd", "--out", str(tmp_path), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "batches of 32 images (CUDA out of memory.); lower --batch-size, or" in line


def test_a_failing_seed_ends_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others run to their end; the exit code and one line say that something failed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "out/1").mkdir(parents=True)
    (tmp_path / "out/1/run.json").write_text("{}")
    flags = ["--epochs", "1", "--quiet", "--out", "out"]
    assert main(["digits-lt-ce-sgd", *flags, "--seeds", "1,2"]) == 2
    error = capfd.readouterr().err
    assert "1 of 2 seeds failed" in error
    assert "holds a finished run" in error
    assert (tmp_path / "out/2/last.pt").exists()


def test_every_field_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for field in fields(Recipe)[1:]:
        assert re.search(rf"--{field.name.replace('_', '-')}(?![\w-])", text), field.name
    assert "radii from epochs on, as 6:0.1,61:0.5" in " ".join(text.split())


def test_a_made_up_list_file_set_trains_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The large sets' layout, loss, schedule, augmentation and ResNet-50, at a toy size."""
    monkeypatch.chdir(tmp_path)
    folder = write_list_set(tmp_path / "set", classes=3, per_class=(8, 4, 2))
    flags = ["--dataset", "list", "--image-size", "32", "--batch-size", "7", "--epochs", "2"]
    flags += ["--drops", "1", "--rho-steps", "2:0.1", "--data", str(folder), "--quiet"]
    assert main(["imagenet-lt-ldam-drw-sam", *flags, "--out", "run"]) == 0
    checkpoint = load_checkpoint("run/last.pt")
    assert (checkpoint.model_spec.arch, checkpoint.model_spec.head) == ("resnet50", "cosine")
    assert checkpoint.loss is not None
    assert checkpoint.loss.class_counts == (8, 4, 2)
    assert (checkpoint.loss.max_margin, checkpoint.loss.scale) == (0.3, 30.0)
    assert checkpoint.loss.weights is not None
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert [row.split(",")[1:3] for row in rows[1:]] == [["0.2", "0.05"], ["0.1", "0.1"]]


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
        ["digits-lt-ce-sgd", "--rho", "much"],
        ["digits-lt-ce-sam", "--rho-steps", "5"],
        ["digits-lt-ce-sgd", "--no-such-flag"],
        ["digits-lt-ce-sgd", "--ratio", "1e9"],
        ["digits-lt-ce-sgd", "--arch", "resnet33"],
        ["cifar10-lt-ce-sgd", "--data", "/nowhere"],
        ["digits-lt-ce-sgd", "--eval-every", "0"],
        ["digits-lt-ce-sgd", "--jobs", "0"],
        ["digits-lt-ce-sgd", "--seeds", "1,1"],
        ["digits-lt-ce-sgd", "--seeds", ","],
        ["digits-lt-ce-sgd", "--seeds", "1,2", "--seed", "3"],
        ["digits-lt-ce-sgd", "--jobs", "2"],
        ["digits-lt-ce-drw-sgd", "--beta", "1"],
        ["digits-lt-ce-drw-imbsam", "--rare-below", "1"],
        ["digits-lt-ce-sgd", "--resume", "--overwrite"],
        ["digits-lt-ce-sgd", "--save-at", "5000"],
        ["digits-lt-ce-sgd", "--device", "abacus"],
        ["digits-lt-ce-sgd", "--device", "cpu", "--update", "graph"],
        ["digits-lt-ce-sgd", "--device", "cpu", "--precision", "tf32"],
        ["digits-lt-ce-sgd", "--out", "/dev/null/run"],
    ],
    ids=" ".join,
)
def test_what_cannot_run_is_one_line_and_leaves_nothing(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(arguments)
    except SystemExit as ending:  # of the parser
        code = ending.code
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_list_names_every_recipe_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    assert [line[0] for line in lines if line[0] != "recipe"] == list(RECIPES)
    (row,) = [line for line in lines if line[0] == "cifar10-lt-ce-drw-sam"]
    assert row[1:6] == ["ce", "deferred", "sam", "0.5", "80.6"]
    assert find_recipe("cifar10-lt-ce-drw-sam").rho == 0.5


def test_the_list_may_be_cut_short() -> None:
    command = [sys.executable, "-m", "spectra.train", "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head -0` does
        assert process.stderr.read() == b""
        assert process.wait() == 0
