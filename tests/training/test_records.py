"""The folder of a run: another run in it is neither replaced nor taken for this one."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spectra.data import Samples, open_data
from spectra.errors import SpectraError, StorageError
from spectra.training import Recipe, find_recipe, loop, train

RECIPE = replace(find_recipe("digits-lt-ce-drw-sgd"), epochs=2)


@pytest.fixture(scope="module")
def digits() -> tuple[Samples, Samples]:
    return open_data(RECIPE.data_spec, split="train"), open_data(RECIPE.data_spec, split="test")


@pytest.fixture
def finished(digits: tuple[Samples, Samples], tmp_path: Path) -> Path:
    train(RECIPE, *digits, folder=tmp_path, save_at=(1,), quiet=True)
    return tmp_path


def _stopped_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    true, left = loop.run_epoch, iter(range(epochs))

    def stopping(*args: Any) -> tuple[float, float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return true(*args)

    monkeypatch.setattr(loop, "run_epoch", stopping)


@pytest.fixture
def unfinished(
    digits: tuple[Samples, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    with monkeypatch.context() as patch:
        _stopped_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(RECIPE, *digits, folder=tmp_path, state_every=0.0, quiet=True)
    return tmp_path


def _kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("held", ["finished", "unfinished"])
def test_a_run_is_not_replaced_unasked(
    held: str, digits: tuple[Samples, Samples], request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(held)
    before = _kept(folder)
    with pytest.raises(SpectraError, match=f"{held} run.*--resume.*--overwrite"):
        train(RECIPE, *digits, folder=folder, quiet=True)
    assert _kept(folder) == before
    (folder / "learning.png").write_bytes(b"its curves")
    train(RECIPE, *digits, folder=folder, overwrite=True, quiet=True)
    assert not (folder / "learning.png").exists()
    assert not (folder / "epoch-1.pt").exists()  # of the run that was replaced
    assert not (folder / "state.pt").exists()


@pytest.mark.parametrize("held", ["finished", "unfinished"])
def test_a_run_is_replaced_once_an_epoch_of_the_new_one_is_done(
    held: str,
    digits: tuple[Samples, Samples],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then it is whole; from then on nothing of it is left beside the new one."""
    folder: Path = request.getfixturevalue(held)
    (folder / "learning.png").write_bytes(b"its curves")
    before, other = _kept(folder), replace(RECIPE, seed=1)
    for epochs in (0, 1):
        with monkeypatch.context() as patch:
            _stopped_after(epochs, patch)
            with pytest.raises(KeyboardInterrupt):
                train(other, *digits, folder=folder, overwrite=True, state_every=0.0, quiet=True)
        if epochs == 0:
            assert _kept(folder) == before
    assert sorted(_kept(folder)) == ["metrics.csv", "state.pt"]
    train(other, *digits, folder=folder, resume=True, quiet=True)
    alone = folder / "alone"
    train(other, *digits, folder=alone, quiet=True)
    assert (folder / "metrics.csv").read_bytes() == (alone / "metrics.csv").read_bytes()


def test_a_run_that_is_replaced_goes_before_its_table(
    finished: Path, digits: tuple[Samples, Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off there, the folder holds a table that no state belongs to: no half of either run."""
    table = finished / "metrics.csv"
    old, true = table.read_bytes(), Path.replace

    def cut_off(path: Path, target: Path) -> Path:
        if target == table:
            raise KeyboardInterrupt
        return true(path, target)

    monkeypatch.setattr(Path, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, *digits, folder=finished, overwrite=True, quiet=True)
    assert _kept(finished) == {"metrics.csv": old}


def test_a_row_is_on_disk_before_a_state_counts_on_it(
    digits: tuple[Samples, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, int] = {}
    states: list[bool] = []
    fsync, save = os.fsync, loop.save_checkpoint

    def noting(file: int) -> None:
        fsync(file)
        stat = os.fstat(file)
        synced[stat.st_ino] = stat.st_size

    def saving(path: Path, **options: Any) -> None:
        stat = (tmp_path / "metrics.csv").stat()
        states.append(synced.get(stat.st_ino) == stat.st_size)
        save(path, **options)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(loop, "save_checkpoint", saving)
    recipe = replace(RECIPE, epochs=3)
    train(recipe, *digits, folder=tmp_path, state_every=0.0, quiet=True)
    assert states == [True] * 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a full disk to try")
def test_a_full_disk_is_one_line_that_names_the_table(
    digits: tuple[Samples, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, table = loop.run_epoch, tmp_path / "metrics.csv"

    def filling(*args: Any) -> tuple[float, float]:
        if (tmp_path / "state.pt").exists():
            table.unlink()
            table.symlink_to("/dev/full")
        return true(*args)

    monkeypatch.setattr(loop, "run_epoch", filling)
    with pytest.raises(StorageError, match=r"row of epoch 2.*No space left.*--resume") as caught:
        train(RECIPE, *digits, folder=tmp_path, state_every=0.0, quiet=True)
    assert str(caught.value).startswith(f"{table} did not take")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"recipe": "sgd"}', b'{"recipe": {}, "best_on_test": 3}', b"\xff"],
)
def test_another_run_json_is_one_line(
    content: bytes, finished: Path, digits: tuple[Samples, Samples]
) -> None:
    (finished / "run.json").write_bytes(content)
    before = _kept(finished)
    with pytest.raises(SpectraError, match=r"is no run\.json of spectra\.train.*--over") as caught:
        train(RECIPE, *digits, folder=finished, resume=True, quiet=True)
    assert "\n" not in str(caught.value)
    assert _kept(finished) == before


CHANGES: dict[str, dict[str, object]] = {
    "lr 0.1, not 0.2": {"lr": 0.2},
    "arch 'digits', not 'resnet20'": {"arch": "resnet20"},
    "epochs 2, not 5": {"epochs": 5},
    "rho_steps \\[\\], not \\[\\[2, 0.1\\]\\]": {"step": "sam", "rho_steps": ((2, 0.1),)},
}


@pytest.mark.parametrize("held", ["finished", "unfinished"])
@pytest.mark.parametrize("said", CHANGES)
def test_another_run_is_not_resumed_as_this_one(
    said: str, held: str, digits: tuple[Samples, Samples], request: pytest.FixtureRequest
) -> None:
    """A checkpoint of another model, schedule or step: one line that names what differs."""
    folder: Path = request.getfixturevalue(held)
    before, recipe = _kept(folder), replace(RECIPE, **CHANGES[said])
    assert isinstance(recipe, Recipe)
    with pytest.raises(SpectraError, match=said) as caught:
        train(recipe, *digits, folder=folder, resume=True, quiet=True)
    assert "\n" not in str(caught.value)
    assert _kept(folder) == before


def test_other_samples_are_not_trained_on_when_resuming(
    unfinished: Path, digits: tuple[Samples, Samples]
) -> None:
    fewer = digits[0].select(slice(1, None))
    with pytest.raises(SpectraError, match="another draw"):
        train(RECIPE, fewer, digits[1], folder=unfinished, resume=True, quiet=True)


def test_a_damaged_state_is_one_line(unfinished: Path, digits: tuple[Samples, Samples]) -> None:
    state = unfinished / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(SpectraError, match="truncated") as caught:
        train(RECIPE, *digits, folder=unfinished, resume=True, quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"arch": "resnet33"}, {"arch": "resnet20"}])
def test_a_run_that_cannot_start_replaces_nothing(
    change: dict[str, object], finished: Path, digits: tuple[Samples, Samples]
) -> None:
    before, recipe = _kept(finished), replace(RECIPE, **change)
    three = digits
    if change["arch"] == "resnet20":  # fits the images, but not the way that is asked for
        options: dict[str, object] = {"update": "graph", "device": "cpu"}
    else:
        options = {}
    with pytest.raises(SpectraError):
        train(recipe, *three, folder=finished, overwrite=True, quiet=True, **options)  # type: ignore[arg-type]
    assert _kept(finished) == before


@pytest.mark.parametrize("damage", ["torn", "missing"])
def test_a_table_with_gaps_is_not_gone_on_with(
    damage: str, unfinished: Path, digits: tuple[Samples, Samples]
) -> None:
    table = unfinished / "metrics.csv"
    if damage == "missing":
        table.unlink()
    else:
        table.write_text(table.read_text().splitlines()[0] + "\n,0.1\n")
    with pytest.raises(SpectraError, match="epochs 1 to 1"):
        train(RECIPE, *digits, folder=unfinished, resume=True, quiet=True)


def test_files_of_others_in_the_folder_stay(
    digits: tuple[Samples, Samples], tmp_path: Path
) -> None:
    (tmp_path / "epoch-7.pt").write_bytes(b"somebody's")
    train(RECIPE, *digits, folder=tmp_path, overwrite=True, quiet=True)
    assert (tmp_path / "epoch-7.pt").read_bytes() == b"somebody's"


def test_resuming_nothing_starts_from_the_beginning(
    digits: tuple[Samples, Samples], tmp_path: Path
) -> None:
    run = train(RECIPE, *digits, folder=tmp_path, resume=True, quiet=True)
    assert run.test.accuracy > 0
    assert (tmp_path / "last.pt").exists()
