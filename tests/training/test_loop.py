"""The loop on the embedded digits: weighted means, reproducible runs, what is saved."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from spectra.checkpoint import load_checkpoint
from spectra.data import Samples, open_data
from spectra.errors import SpectraError
from spectra.losses import LossSpec, effective_number_weights
from spectra.training import RECIPES, Recipe, Run, evaluate, find_recipe, train
from spectra.training.loop import weighted_mean

Splits = tuple[Samples, Samples]


@pytest.fixture(scope="module")
def digits() -> Splits:
    spec = find_recipe("digits-lt-ce-sgd").data_spec
    return open_data(spec, split="train"), open_data(spec, split="test")


def _short(name: str, digits: Splits, folder: Path, **changes: object) -> Run:
    recipe: Recipe = replace(find_recipe(name), epochs=3, **changes)
    return train(recipe, *digits, folder=folder, quiet=True)


def test_the_batch_mean_divides_by_the_sum_of_the_weights() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    targets, weights = torch.tensor([0, 1, 2, 2, 2, 1, 0]), (0.2, 0.7, 2.1)
    expected = F.cross_entropy(logits, targets, weight=torch.tensor(weights))
    found = weighted_mean(LossSpec("ce", weights=weights), logits, targets)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["digits-lt-ce-drw-sgd", "digits-lt-ldam-drw-sam"])
def test_two_runs_with_one_seed_agree_bit_for_bit(
    name: str, digits: Splits, tmp_path: Path
) -> None:
    """P49: no global random state decides anything, and none is touched."""
    states = []
    before = torch.get_rng_state()
    for run in ("one", "two"):
        states.append(_short(name, digits, tmp_path / run).network.state_dict())
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)  # the second run finds another global state
        before = torch.get_rng_state()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    tables = [(tmp_path / run / "metrics.csv").read_bytes() for run in ("one", "two")]
    assert tables[0] == tables[1]


def test_another_seed_gives_other_weights(digits: Splits, tmp_path: Path) -> None:
    one = _short("digits-lt-ce-sgd", digits, tmp_path, seed=1).network
    two = _short("digits-lt-ce-sgd", digits, tmp_path, seed=2).network
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
    again = evaluate(last.model, digits[1], batch_size=37)
    assert again.class_accuracy == run.test.class_accuracy
    assert last.metrics["test_class_accuracy"] == again.class_accuracy
    assert again.class_loss == pytest.approx(run.test.class_loss, rel=1e-5)
    assert not last.model.training
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_metrics_hold_every_class_and_leave_unknown_cells_empty(
    digits: Splits, tmp_path: Path
) -> None:
    recipe = replace(find_recipe("digits-lt-ce-sgd"), epochs=3)
    run = train(recipe, *digits, folder=tmp_path, eval_every=2, quiet=True)
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["test_accuracy"] is None
    classes = [float(rows[2][f"class {c}"]) for c in range(10)]
    assert classes == list(run.test.class_accuracy)
    assert float(rows[2]["tail"]) == pytest.approx(sum(classes[7:]) / 3)
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])


def test_scores_are_means_over_all_samples_and_classes(digits: Splits) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    samples = digits[0]
    scores = evaluate(network, samples, scale=3.0, batch_size=100)
    with torch.no_grad():
        logits = 3.0 * network(samples.prepared())
    loss = F.cross_entropy(logits, samples.targets)
    assert scores.loss == pytest.approx(loss.item(), rel=1e-6)
    assert scores.accuracy == (logits.argmax(1) == samples.targets).double().mean()
    eight = samples.targets == 8
    expected = F.cross_entropy(logits[eight], samples.targets[eight])
    assert scores.class_loss[8] == pytest.approx(expected.item(), rel=1e-6)
    assert network.training


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(
    digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(SpectraError, match="lower --lr"):
        _short("digits-lt-ce-sgd", digits, tmp_path, lr=1e12)
    assert not list(tmp_path.glob("*.pt"))


def test_bf16_trains_and_keeps_float32_weights(digits: Splits, tmp_path: Path) -> None:
    run = _short("digits-lt-ce-sgd", digits, tmp_path, precision="bf16")
    assert {p.dtype for p in run.network.parameters()} == {torch.float32}
    assert run.test.accuracy > 0.15


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_the_digits(name: str, digits: Splits, tmp_path: Path) -> None:
    """P49: no recipe of the table is one that cannot run, here on the CPU at a toy budget."""
    recipe = replace(find_recipe(name), dataset="digits", arch="digits", epochs=2, drops=(1,))
    run = train(recipe, *digits, folder=tmp_path, eval_every=2, quiet=True)
    assert 0 < run.test.loss < 100
    assert run.best_epoch == 2
