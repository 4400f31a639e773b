"""Image files of a large set: an analysis decodes those that it needs, and finds the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from spectra import esd, figures
from spectra.checkpoint import save_checkpoint
from spectra.data import DataSpec, images
from spectra.models import ModelSpec
from tests.made_up import write_list_set

COUNTS = (150, 40, 3)
SPREAD = 64  # of the whole split, over which ways to compute products are compared


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """List the files that are decoded, one by one."""
    files: list[Path] = []
    decode = images._decode

    def seen(file: Path, *rest: Any) -> Any:
        files.append(file)
        return decode(file, *rest)

    monkeypatch.setattr(images, "_decode", seen)
    return files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a set of 193 images, and a network for them."""
    home = tmp_path_factory.mktemp("set")
    write_list_set(home, 3, COUNTS, side=8)
    spec = ModelSpec("resnet8", 3)
    save_checkpoint(home / "net.pt", spec.build(), model_spec=spec, data=DataSpec("list"))
    return home / "net.pt"


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(figures, "save", lambda *_: [])

    def call(*flags: str, out: str = "out") -> dict[str, Any]:
        given = ["--data", str(checkpoint.parent), "--out", str(tmp_path / out), "--steps", "5"]
        given += ["--device", "cpu", "--product", "reverse-over-forward", "--quiet"]
        assert esd.main([str(checkpoint), *given, *flags]) == 0
        held: dict[str, Any] = json.loads((tmp_path / out / "esd.json").read_text())
        return held

    return call


def classes_of(files: list[Path]) -> list[int]:
    """Count the training images of each class, from the names of their folders."""
    names = [file.parent.name for file in files if file.parent.parent.name == "train"]
    return [names.count(f"n{label:08d}") for label in range(3)]


def test_a_class_is_found_without_decoding_the_others(read: list[Path], run: Any) -> None:
    """The same numbers as with all images in memory, but for the fingerprint of all pixels."""
    whole = run("--per-class", out="whole")
    assert len(set(read)) == sum(COUNTS) + 12  # the test images, too
    read.clear()
    few = run("--classes", "2", "--no-accuracies")
    assert len(read) <= SPREAD + COUNTS[2]
    assert classes_of(read)[2] == COUNTS[2]
    mine, theirs = few["spectra"][0], whole["spectra"][2]
    assert mine["lambda_max"] > 0
    same = ("label", "count", "share", "loss", "lambda_min", "lambda_max", "trace", "certificate")
    assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
    prints = {key: (few["data"].pop(key), whole["data"].pop(key)) for key in ("pixels_sha256",)}
    assert prints["pixels_sha256"][0] is None
    assert few["data"] == whole["data"]
    # What of the pixels was seen is told with each spectrum.
    assert mine["samples_sha256"] != theirs["samples_sha256"]


def test_accuracies_of_a_class_need_its_images_alone(read: list[Path], run: Any) -> None:
    whole = run("--per-class", out="whole")["spectra"][1]
    read.clear()
    few = run("--classes", "1")["spectra"][0]
    assert classes_of(read)[0] <= SPREAD
    assert len([file for file in read if file.parent.name == "val"]) == 4
    for key in ("train_accuracy", "test_accuracy"):
        assert few[key] is not None
        assert few[key] == whole[key]


def test_a_subset_decodes_no_more_than_itself(read: list[Path], run: Any) -> None:
    run("--max-samples", "20", "--no-accuracies")
    assert len(read) <= SPREAD + 20


def test_groups_of_test_images_need_no_training_image(read: list[Path], run: Any) -> None:
    """Only the labels say which classes are head, mid and tail."""
    found = run("--groups", "--split", "test", "--no-accuracies")
    assert [entry["label"] for entry in found["spectra"]] == ["head", "mid", "tail"]
    assert classes_of(read) == [0, 0, 0]


def test_frozen_draws_are_those_that_the_images_have_among_all(run: Any) -> None:
    flags = ("--augment", "frozen:2", "--no-accuracies")
    whole, few = run("--per-class", *flags, out="whole"), run("--classes", "2", *flags)
    assert few["data"]["pixels_sha256"] is None
    assert whole["data"]["pixels_sha256"] is not None
    assert few["spectra"][0] == whole["spectra"][2]


def test_classes_are_added_to_results_of_all_images(run: Any) -> None:
    """A fingerprint that is not known contradicts none."""
    whole = run("--overall", "--no-accuracies")
    both = run("--overall", "--classes", "2", "--no-accuracies", "--resume")
    assert both["spectra"][0] == whole["spectra"][0]
    assert both["data"] == whole["data"]
    one = run("--classes", "2", "--no-accuracies", out="few")
    two = run("--classes", "1,2", "--no-accuracies", "--resume", out="few")
    assert two["data"]["pixels_sha256"] is None
    assert two["spectra"][1] == one["spectra"][0]
