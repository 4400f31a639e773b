"""The loop on the embedded digits: reproducible runs, what is saved, what resumes."""

import contextlib
import csv
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectra.checkpoint import load_checkpoint
from spectra.data import Samples, open_data
from spectra.errors import SpectraError
from spectra.losses import effective_number_weights
from spectra.models import ModelSpec
from spectra.training import (
    RECIPES,
    Recipe,
    Run,
    Scores,
    evaluate,
    faster,
    find_recipe,
    loop,
    train,
)
from spectra.training.engine import Batch, Engine
from spectra.training.records import COLUMNS
from tests.apart import Apart

Splits = tuple[Samples, Samples]


@pytest.fixture(scope="module")
def digits() -> Splits:
    spec = find_recipe("digits-lt-ce-sgd").data_spec
    return open_data(spec, split="train"), open_data(spec, split="test")


def _short(name: str, digits: Splits, folder: Path, **changes: object) -> Run:
    recipe: Recipe = replace(find_recipe(name), epochs=3, **changes)
    return train(recipe, *digits, folder=folder, quiet=True)


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _assert_same_run(one: Path, other: Path) -> None:
    states = [load_checkpoint(folder / "last.pt").model.state_dict() for folder in (one, other)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


@pytest.mark.parametrize("name", ["digits-lt-ce-drw-sgd", "digits-lt-ldam-drw-sam"])
def test_two_runs_with_one_seed_agree_bit_for_bit(
    name: str, digits: Splits, tmp_path: Path
) -> None:
    """P49: no global random state decides anything, and none is touched."""
    before = torch.get_rng_state()
    for run in ("one", "two"):
        _short(name, digits, tmp_path / run)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)  # the second run finds another global state
        before = torch.get_rng_state()
    _assert_same_run(tmp_path / "one", tmp_path / "two")


def test_another_seed_gives_other_weights(digits: Splits, tmp_path: Path) -> None:
    one = _short("digits-lt-ce-sgd", digits, tmp_path / "1", seed=1).network
    two = _short("digits-lt-ce-sgd", digits, tmp_path / "2", seed=2).network
    assert not torch.equal(next(one.parameters()), next(two.parameters()))


def test_the_checkpoint_says_what_ran_and_how_it_did(digits: Splits, tmp_path: Path) -> None:
    recipe = replace(find_recipe("digits-lt-ce-drw-sam"), epochs=3, drops=(2,))
    run = train(recipe, *digits, folder=tmp_path, save_at=(2,), quiet=True)
    early, last = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("epoch-2", "last"))
    assert (early.epoch, last.epoch) == (2, 3)
    assert early.loss is not None
    assert last.loss is not None
    assert early.loss.weights is None  # re-weighting starts after it
    assert last.loss.weights == effective_number_weights(digits[0].counts, 0.9999)
    assert last.data == recipe.data_spec
    assert last.draw_sha256 == digits[0].draw_sha256
    assert last.recipe == recipe.to_dict()
    assert last.training is not None
    assert last.training["ran_on"]["torch"] == torch.__version__
    again = evaluate(last.model, digits[1], batch_size=37)
    assert again.class_accuracy == run.test.class_accuracy
    assert last.metrics["test_class_accuracy"] == again.class_accuracy
    assert again.class_loss == pytest.approx(run.test.class_loss, rel=1e-5)
    assert not last.model.training
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"epoch-2.pt", "last.pt", "metrics.csv", "run.json"}  # no state, no temporary


def test_metrics_hold_every_class_and_leave_unknown_cells_empty(
    digits: Splits, tmp_path: Path
) -> None:
    recipe = replace(find_recipe("digits-lt-ce-sam"), epochs=3, rho_steps=((3, 0.4),))
    run = train(recipe, *digits, folder=tmp_path, eval_every=2, quiet=True)
    rows = _rows(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["rho"]) for row in rows] == [0.2, 0.2, 0.4]
    assert rows[0]["test_accuracy"] is None
    classes = [float(rows[2][f"class {c}"]) for c in range(10)]
    assert classes == list(run.test.class_accuracy)
    assert float(rows[2]["tail"]) == pytest.approx(sum(classes[7:]) / 3)
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert list(rows[0])[: len(COLUMNS)] == list(COLUMNS)


@pytest.mark.parametrize("stopped", [False, True], ids=["in one piece", "resumed"])
def test_the_last_epoch_is_the_result_and_the_best_is_named_beside_it(
    stopped: bool, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, chosen = loop.evaluate, iter([0.2, 0.9, 0.4])

    def dictated(network: nn.Module, samples: Samples, **options: object) -> Scores:
        scores = true(network, samples, **options)  # type: ignore[arg-type]
        on_test = len(samples) == len(digits[1])
        return replace(scores, accuracy=next(chosen)) if on_test else scores

    monkeypatch.setattr(loop, "evaluate", dictated)
    recipe, run_epoch = replace(find_recipe("digits-lt-ce-sgd"), epochs=3), loop.run_epoch
    if stopped:
        left = iter(range(2))

        def stopping(*args: Any) -> object:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return run_epoch(*args)

        monkeypatch.setattr(loop, "run_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, *digits, folder=tmp_path, state_every=0.0, quiet=True)
        monkeypatch.setattr(loop, "run_epoch", run_epoch)
    run = train(recipe, *digits, folder=tmp_path, resume=stopped, quiet=True)
    assert (run.best_epoch, run.best_accuracy, run.test.accuracy) == (2, 0.9, 0.4)
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["best_on_test"] == {"epoch": 2, "accuracy": 0.9}
    assert summary["of_these_compiling"] == 0 < summary["seconds"]  # the plain way has nothing to
    assert load_checkpoint(tmp_path / "last.pt").metrics["test_accuracy"] == 0.4


def test_resampling_draws_the_classes_evenly(digits: Splits) -> None:
    recipe = replace(find_recipe("digits-lt-ce-sgd"), weighting="resample")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([loop._order(recipe, digits[0], generator) for _ in range(40)])
    counts = torch.bincount(digits[0].targets[drawn], minlength=10).double()
    expected = len(drawn) / 10
    assert float((counts - expected).abs().max()) < 5 * (0.9 * expected) ** 0.5
    plain = loop._order(find_recipe("digits-lt-ce-sgd"), digits[0], generator)
    assert torch.equal(plain.sort().values, torch.arange(len(digits[0])))


def test_a_point_of_the_ball_is_drawn_for_pgd_and_normals_for_lpf_sgd(digits: Splits) -> None:
    generator, network = torch.Generator().manual_seed(0), ModelSpec("digits", 10).build()
    for name, deviation in (("pgd", None), ("lpf-sgd", 1.0)):
        recipe = find_recipe(f"digits-lt-ce-drw-{name}")
        noise = loop._noise(Engine(recipe, network, digits[0].counts), generator)
        if deviation is None:
            assert 0.99 < float(noise.norm()) <= 1  # of 14,458 dimensions nearly all lies outside
        else:
            assert float(noise.std()) == pytest.approx(deviation, abs=0.03)


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(
    digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(SpectraError, match="lower --lr"):
        _short("digits-lt-ce-sgd", digits, tmp_path, lr=1e12)
    assert not list(tmp_path.glob("*.pt"))


def test_weights_that_are_lost_in_the_last_step_leave_no_checkpoint(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = loop.run_epoch

    def broken(engine: Engine, *rest: Any) -> tuple[float, float]:
        found = true(engine, *rest)
        with torch.no_grad():
            engine.weights.parameters[0].fill_(torch.nan)
        return found

    monkeypatch.setattr(loop, "run_epoch", broken)
    with pytest.raises(SpectraError, match="not finite"):
        _short("digits-lt-ce-sgd", digits, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_augmentation_and_mirror_images_are_used_as_the_recipe_says(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    flips: list[object] = []
    true_update, true_evaluate = Engine.update, loop.evaluate

    def update(engine: Engine, batch: Batch) -> Tensor:
        seen.append(batch["inputs"])
        return true_update(engine, batch)

    def scored(*args: Any, **options: Any) -> Scores:
        flips.append(options.get("flip", False))
        return true_evaluate(*args, **options)

    monkeypatch.setattr(Engine, "update", update)
    monkeypatch.setattr(loop, "evaluate", scored)
    known = {row.numpy().tobytes() for row in digits[0].prepared()}
    for augment in (False, True):
        seen.clear()
        _short("digits-lt-ce-sgd", digits, tmp_path / str(augment), augment=augment)
        rows = [row.numpy().tobytes() in known for row in torch.cat(seen)]
        assert all(rows) is not augment
    flips.clear()
    _short("digits-lt-ce-sgd", digits, tmp_path / "flip", flip_test=True)
    assert flips == [True, True, True, False]  # the test set thrice, then the training set


def test_a_single_sample_at_the_end_joins_the_batch_before() -> None:
    sizes = [[len(b) for b in loop._batches(torch.arange(n), 4)] for n in (1, 4, 8, 9, 10)]
    assert sizes == [[1], [4], [4, 4], [4, 5], [4, 4, 2]]


def test_images_that_the_network_cannot_take_are_one_line(digits: Splits, tmp_path: Path) -> None:
    coloured = [
        replace(s, inputs=s.inputs.expand(-1, 3, -1, -1), mean=None, std=None) for s in digits
    ]
    with pytest.raises(SpectraError, match="channels"):
        train(find_recipe("digits-lt-ce-sgd"), *coloured, folder=tmp_path, quiet=True)


@pytest.mark.parametrize("step", ["sgd", "sam"])
def test_the_committed_digits_are_todays_recipe_and_numbers(
    step: str, repository: Path, digits: Splits
) -> None:
    held = load_checkpoint(repository / f"checkpoints/digits-lt-ce-drw-{step}.pt")
    assert held.recipe == find_recipe(f"digits-lt-ce-drw-{step}").to_dict()
    assert held.draw_sha256 == digits[0].draw_sha256
    for split, samples in zip(("train", "test"), digits, strict=True):
        scores = evaluate(held.model, samples)
        assert scores.class_accuracy == held.metrics[f"{split}_class_accuracy"]
        # A sample's loss is rounded at the size of its logits, by each processor in its own way.
        expected = pytest.approx(held.metrics[f"{split}_class_loss"], rel=1e-4, abs=1e-6)
        assert scores.class_loss == expected


def test_bf16_trains_and_keeps_float32_weights(digits: Splits, tmp_path: Path) -> None:
    run = _short("digits-lt-ce-sgd", digits, tmp_path, precision="bf16")
    assert {p.dtype for p in run.network.parameters()} == {torch.float32}
    assert run.test.accuracy > 0.15


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_the_digits(name: str, digits: Splits, tmp_path: Path) -> None:
    """P49: no recipe of the table is one that cannot run, here on the CPU at a toy budget."""
    recipe = find_recipe(name)
    drops = None if recipe.schedule == "cosine" and recipe.weighting == "none" else (1,)
    recipe = replace(
        recipe, dataset="digits", arch="digits", epochs=2, drops=drops, batch_size=64,
        image_size=None, imbalance="exp", rare_below=min(recipe.rare_below, 50),
    )  # fmt: skip
    run = train(recipe, *digits, folder=tmp_path, eval_every=2, quiet=True)
    assert 0 < run.test.loss < 100
    assert run.best_epoch == 2


RESUMED: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sam": {"weighting": "resample", "rho": 0.1, "rho_end": 0.4},
    "pgd": {"noise": 1e-2, "noise_interval": 4},  # of 15 steps an epoch
    "pgd by its gradients": {"noise": 1e-2, "noise_interval": 1, "noise_threshold": 1e3},
    "lpf-sgd": {"noise": 2e-3, "precision": "float64"},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_stopped_goes_on_bit_for_bit(
    name: str, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Momentum, schedules, noise and random state survive, in whichever epoch it stops."""
    step, changes = name.split()[0], RESUMED[name]
    recipe = replace(
        find_recipe("digits-lt-ce-drw-sgd"), step=step, epochs=4, drops=(2, 3), **changes
    )
    train(recipe, *digits, folder=tmp_path / "whole", quiet=True)
    stopped, true = tmp_path / "stopped", loop.run_epoch
    for epochs in (1, 2):  # done before each of two interruptions: in epoch 2, and in epoch 4
        left = iter(range(epochs))

        def stopping(*args: object, left: Iterator[int] = left) -> object:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return true(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "run_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, *digits, folder=stopped, resume=True, state_every=0.0, quiet=True)
    monkeypatch.setattr(loop, "run_epoch", true)
    run = train(recipe, *digits, folder=stopped, resume=True, quiet=True)
    _assert_same_run(tmp_path / "whole", stopped)
    assert len(_rows(stopped)) == 4
    again = train(recipe, *digits, folder=stopped, resume=True, quiet=True)  # it has ended
    assert (again.test, again.best_epoch) == (run.test, run.best_epoch)
    assert torch.equal(next(again.network.parameters()), next(run.network.parameters()).float())


def test_a_resumed_run_adds_up_its_sessions_and_names_where_each_ran(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, true = replace(find_recipe("digits-lt-ce-sgd"), epochs=3), loop.run_epoch

    def session(engine: Engine, *args: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        engine.seconds += 10.0
        return true(engine, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "run_epoch", session)
    for device in ("one", "two", "one"):  # an epoch each
        left = iter(range(1))
        monkeypatch.setattr(loop, "device_name", lambda _, device=device: device)
        with contextlib.suppress(KeyboardInterrupt):
            train(recipe, *digits, folder=tmp_path, resume=True, state_every=0.0, quiet=True)
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["of_these_compiling"] == 30.0
    assert summary["ran_on"]["device"] == "one"
    assert [ran["device"] for ran in summary["ran_before_on"]] == ["two"]


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({"update": "compiled", "threads": 99}, "(update compiled, now plain; threads 99, now "),
        ({"threads": 99}, "(threads 99, now "),
        ({"update": None, "threads": None}, ""),  # by an older version, which did not tell
        ({}, ""),
    ],
)
def test_a_run_that_goes_on_otherwise_is_told(
    left: dict[str, Any],
    told: str,
    digits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, true = replace(find_recipe("digits-lt-ce-sgd"), epochs=2), loop.run_epoch

    def stopping(*args: Any) -> tuple[float, float]:
        if (tmp_path / "state.pt").exists():
            raise KeyboardInterrupt
        return true(*args)

    monkeypatch.setattr(loop, "run_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, *digits, folder=tmp_path, state_every=0.0, quiet=True)
    monkeypatch.setattr(loop, "run_epoch", true)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for key, value in left.items():
        del state["training"][key]
        state["training"] |= {} if value is None else {key: value}
    torch.save(state, tmp_path / "state.pt")
    train(recipe, *digits, folder=tmp_path, resume=True)
    found = capsys.readouterr().err
    assert (told in found, "may differ in the last bits" in found) == (True, bool(told))


@pytest.mark.parametrize("accepted", [True, False])
def test_a_run_says_how_far_it_came_with_a_faster_update(
    accepted: bool, digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weighted loss is another program, which is checked anew."""

    def judged(engine: Engine, _: Batch) -> faster.Fast:
        if not accepted or engine.loss.weights is not None:
            raise faster.Unlike("it is wrong")
        return faster.Fast(engine.step, None)

    monkeypatch.setattr("spectra.training.engine.faster", judged)
    recipe = replace(find_recipe("digits-lt-ce-drw-sgd"), epochs=4, drops=(2, 3))
    options: dict[str, Any] = {"update": "compiled", "save_at": (2,), "quiet": True}
    train(recipe, *digits, folder=tmp_path, **options)
    note = "the compiled update is not used (it is wrong); the plain one is"
    early, last = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("epoch-2", "last"))
    ran = [(held.training or {})["ran_on"]["update"] for held in (early, last)]
    whole = f"compiled, up to a step of epoch 3; then plain: {note}"
    assert ran == (["compiled", whole] if accepted else [note, note])
    assert json.loads((tmp_path / "run.json").read_text())["ran_on"]["update"] == ran[1]


def test_epochs_that_are_over_cannot_be_kept_afterwards(digits: Splits, tmp_path: Path) -> None:
    recipe = replace(find_recipe("digits-lt-ce-sgd"), epochs=2)
    train(recipe, *digits, folder=tmp_path, save_at=[2], quiet=True)
    train(recipe, *digits, folder=tmp_path, save_at=[2], resume=True, quiet=True)
    with pytest.raises(SpectraError, match=r"does not hold epoch-1\.pt;"):
        train(recipe, *digits, folder=tmp_path, save_at=[1, 2], resume=True, quiet=True)


def test_other_images_in_the_same_places_are_another_run(digits: Splits, tmp_path: Path) -> None:
    recipe, (samples, test) = replace(find_recipe("digits-lt-ce-sgd"), epochs=1), digits
    train(recipe, samples, test, folder=tmp_path, quiet=True)
    held = load_checkpoint(tmp_path / "last.pt")
    assert held.pixels_sha256 == samples.pixels_sha256
    other = replace(samples, inputs=samples.inputs.flip(-1))
    assert other.draw_sha256 == samples.draw_sha256
    with pytest.raises(SpectraError, match="other images"):
        train(recipe, other, test, folder=tmp_path, resume=True, quiet=True)


def test_resuming_where_no_state_was_left_is_told(
    digits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch\n")
    recipe = replace(find_recipe("digits-lt-ce-sgd"), epochs=1)
    train(recipe, *digits, folder=tmp_path, resume=True)
    assert "holds no state to go on from yet" in capsys.readouterr().err


def test_images_that_do_not_fit_the_device_stay_on_the_host(
    monkeypatch: pytest.MonkeyPatch, digits: Splits
) -> None:
    size = sum(part.inputs.numel() for part in digits)
    for free, home in ((2 * size, "cpu"), (2 * size + 1, "cuda")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert loop._home(torch.device("cuda"), *digits).type == home


def test_a_killed_process_resumes_to_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """Killed without warning, wherever it happens to be."""
    command = ["spectra.train", "digits-lt-ce-drw-sam", "--epochs", "20", "--quiet"]
    command += ["--device", "cpu", "--state-every", "0", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = Apart(*command, str(killed))
    state, deadline = killed / "state.pt", time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    assert process.poll() == -signal.SIGKILL
    assert not (killed / "last.pt").exists()
    for folder, flags in ((killed, ["--resume"]), (whole, [])):
        process = Apart(*command, str(folder), *flags)
        told = process.communicate(timeout=120)
        assert process.poll() == 0, told
    _assert_same_run(whole, killed)
    assert json.loads((killed / "run.json").read_text())["last_resumed_after_epoch"] >= 1
