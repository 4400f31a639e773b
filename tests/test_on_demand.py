"""Image files of a large set: an analysis decodes those that it needs, and finds the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spectra import (
    Checkpoint,
    Plan,
    SpectraError,
    analysis,
    analyze,
    esd,
    figures,
    gathering,
    load_checkpoint,
    open_data,
    probing,
    trajectory,
)
from spectra.checkpoint import save_checkpoint
from spectra.data import DataSpec, images
from spectra.draws import __main__ as draws
from spectra.models import ModelSpec
from spectra.training import find_recipe
from spectra.training import train as run_training
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
def run(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    monkeypatch.setattr(figures, "save", lambda *_: [])

    own = checkpoint

    def call(
        *flags: str, checkpoint: Path = own, out: str = "out", code: int = 0, fails: str = ""
    ) -> dict[str, Any]:
        given = ["--data", str(checkpoint.parent), "--out", str(tmp_path / out), "--steps", "5"]
        given += ["--device", "cpu", "--product", "reverse-over-forward", "--quiet"]
        found, said = esd.main([str(checkpoint), *given, *flags]), capsys.readouterr().err
        assert found == (2 if fails else code), said
        assert fails in said
        held: dict[str, Any] = json.loads((tmp_path / out / "esd.json").read_text())
        return held

    return call


def classes_of(files: list[Path]) -> list[int]:
    """Count the training images of each class, from the names of their folders."""
    names = [file.parent.name for file in files if file.parent.parent.name == "train"]
    return [names.count(f"n{label:08d}") for label in range(3)]


def by_label(document: dict[str, Any]) -> dict[str, Any]:
    return {entry["label"]: entry for entry in document["spectra"]}


def test_a_class_is_found_without_decoding_the_others(read: list[Path], run: Any) -> None:
    """The same numbers as with all images in memory; of all pixels there is no fingerprint."""
    whole = run("--per-class", out="whole")
    assert len(set(read)) == len(read) == sum(COUNTS) + 12  # the test images, too
    read.clear()
    few = run("--classes", "2", "--no-accuracies")
    assert len(set(read)) == len(read) <= SPREAD + COUNTS[2]
    assert classes_of(read)[2] == COUNTS[2]
    mine, theirs = few["spectra"][0], whole["spectra"][2]
    assert mine["lambda_max"] > 0
    unseen = {"train_accuracy": None, "test_accuracy": None}
    assert mine == {**theirs, **unseen}
    assert few["data"].pop("pixels_sha256") is None
    assert whole["data"].pop("pixels_sha256") is not None
    assert few["data"] == whole["data"]
    assert few["data"]["files_sha256"] is not None


def test_accuracies_of_a_class_need_its_images_alone_and_once(read: list[Path], run: Any) -> None:
    whole = run("--per-class", out="whole")["spectra"][1]
    read.clear()
    few = run("--classes", "1")["spectra"][0]
    assert len(set(read)) == len(read)
    assert classes_of(read)[0] <= SPREAD
    assert classes_of(read)[1] == COUNTS[1]
    assert len([file for file in read if file.parent.name == "val"]) == 4
    assert few == whole
    assert few["train_accuracy"] is not None
    assert few["test_accuracy"] is not None


def test_a_subset_decodes_no_more_than_itself(read: list[Path], run: Any) -> None:
    run("--max-samples", "20", "--no-accuracies")
    assert len(set(read)) == len(read) <= SPREAD + 20


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


def test_what_does_not_fit_is_classified_batch_after_batch(
    read: list[Path], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set larger than the memory: some samples of each class, and accuracies of all."""
    flags = ("--per-class", "--max-samples", "9")
    whole = run(*flags, out="whole")
    monkeypatch.setattr(images, "free_memory", lambda: 100 * 3 * 8 * 8)
    monkeypatch.setattr(gathering, "_AT_ONCE", 50)
    read.clear()
    few = run(*flags)
    assert few["spectra"] == whole["spectra"]
    assert few["data"]["pixels_sha256"] is None
    assert len({file for file in read if file.parent.parent.name == "train"}) == sum(COUNTS)
    run("--per-class", out="whole", fails="analyse named classes (--classes) or some samples")


def test_a_run_is_followed_without_decoding_an_image_twice(
    read: list[Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "save", lambda *_: [])
    folder = tmp_path / "run"
    folder.mkdir()
    spec = ModelSpec("resnet8", 3)
    for epoch in (1, 2, 3):
        kept = {"model_spec": spec, "data": DataSpec("list"), "epoch": epoch}
        save_checkpoint(folder / f"epoch-{epoch}.pt", spec.build(epoch), **kept)
    flags = ["--classes", "1,2", "--steps", "3", "--device", "cpu", "--quiet"]
    flags += ["--data", str(checkpoint.parent), "--out", str(tmp_path / "out")]
    assert trajectory.main([str(folder), *flags]) == 0
    assert len(set(read)) == len(read)
    assert classes_of(read)[1:] == [*COUNTS[1:]]


def test_draws_decode_every_image_once(read: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--classes", "1,2", "--draws", "3", "--steps", "3", "--device", "cpu", "--quiet"]
    flags += ["--data", str(checkpoint.parent), "--out", str(tmp_path / "out")]
    assert draws.main([str(checkpoint), *flags]) == 0
    assert len(set(read)) == len(read)
    assert classes_of(read)[1:] == [*COUNTS[1:]]


def test_classes_are_added_to_results_of_all_images_and_the_other_way_round(run: Any) -> None:
    """The same files by name and size, where not all of their pixels are known."""
    whole = run("--per-class", "--no-accuracies")
    again = run("--classes", "2", "--no-accuracies", "--resume")
    assert again["data"] == whole["data"]
    assert again["data"]["pixels_sha256"] is not None
    assert by_label(again) == by_label(whole)
    one = run("--classes", "2", "--no-accuracies", out="few")
    all_ = run("--per-class", "--no-accuracies", "--resume", out="few")
    assert all_["data"]["pixels_sha256"] is None  # the first one's nobody has seen
    assert by_label(all_) == by_label(whole)
    assert by_label(all_)["class 2"] == by_label(one)["class 2"]


@pytest.mark.parametrize("way", ["--resume", "replaced"])
def test_images_of_another_size_are_other_images(way: str, run: Any) -> None:
    """No table mixes two sizes, and none is replaced by another's."""
    before = run("--classes", "2", "--no-accuracies", "--image-size", "6")
    flags = ("--classes", "2", "--no-accuracies", *(["--resume"] if way == "--resume" else []))
    assert run(*flags, fails="image files (") == before


def test_results_that_name_no_files_are_taken_over_where_all_pixels_are_known(
    run: Any, tmp_path: Path
) -> None:
    """As versions before 0.5.1 wrote them."""
    whole = run("--per-class", "--no-accuracies")
    file = tmp_path / "out/esd.json"
    document = json.loads(file.read_text())
    for key in ("files_sha256", "some_pixels_sha256"):
        del document["data"][key]
    file.write_text(json.dumps(document))
    run("--classes", "2", "--no-accuracies", "--resume", fails="image files (None, now ")
    assert run("--per-class", "--no-accuracies", "--resume")["data"] == whole["data"]


def test_other_pixels_in_as_many_bytes_are_noticed(checkpoint: Path, tmp_path: Path) -> None:
    """Names and bytes are the same; some pixels are looked at."""
    folder = tmp_path / "set"
    for label, count in ((0, 5), (1, 3)):
        for split in ("train", "test"):
            place = folder / split / f"class {label}"
            place.mkdir(parents=True)
            for k in range(count):
                (place / f"{k}.ppm").write_bytes(b"P6 8 8 255 " + bytes(192))
    first = open_data(DataSpec("folder"), path=folder, on_demand=True)
    (folder / "train/class 0/0.ppm").write_bytes(b"P6 8 8 255 " + bytes([1] * 192))
    second = open_data(DataSpec("folder"), path=folder, on_demand=True)
    assert first.files_sha256 == second.files_sha256
    held = Checkpoint.of(ModelSpec("resnet8", 2).build())
    plan = Plan(classes=(1,), steps=2, device="cpu")
    (folder / "train/class 0/0.ppm").write_bytes(b"P6 8 8 255 " + bytes(192))
    analyze(held, plan, train=first, folder=tmp_path / "out")
    (folder / "train/class 0/0.ppm").write_bytes(b"P6 8 8 255 " + bytes([1] * 192))
    more = {"train": second, "folder": tmp_path / "out", "resume": True}
    with pytest.raises(SpectraError, match="pixels of 64 images"):
        analyze(held, replace(plan, classes=(0, 1)), **more)


def test_named_classes_that_do_not_fit_are_classified_batch_after_batch(
    read: list[Path], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--classes", "0,1", "--max-samples", "9")
    whole = run(*flags, out="whole")
    monkeypatch.setattr(images, "free_memory", lambda: 100 * 3 * 8 * 8)
    monkeypatch.setattr(gathering, "_AT_ONCE", 50)
    assert run(*flags)["spectra"] == whole["spectra"]


def test_another_copy_of_an_image_makes_other_files(checkpoint: Path, run: Any) -> None:
    run("--classes", "2", "--no-accuracies")
    file = next((checkpoint.parent / "train/n00000000").glob("*.png"))
    pixels = file.read_bytes()
    try:
        file.write_bytes(pixels + b"more")
        run("--classes", "1,2", "--no-accuracies", "--resume", fails="image files (")
    finally:
        file.write_bytes(pixels)


def test_probes_of_an_interrupted_class_are_taken_over(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun among all images in memory, and gone on with where they are not."""
    flags = ("--probes", "2", "--no-accuracies")
    whole = run("--classes", "2", *flags, out="whole")
    real, made = probing.lanczos, 0

    def lanczos(*args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        if made == 6:  # the second probe of the last class
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(probing, "lanczos", lanczos)
    begun = run("--per-class", *flags, code=130)["spectra"][2]
    assert (begun["probes"], begun["complete"]) == (1, False)
    held = run("--classes", "2", *flags, "--resume")
    assert made == 7
    assert by_label(held)["class 2"] == by_label(whole)["class 2"]


def test_a_side_that_is_not_the_trainings_is_told(checkpoint: Path, run: Any) -> None:
    """The fingerprint of all pixels cannot tell it where they are not read."""
    spec, file = ModelSpec("resnet8", 3), checkpoint.with_name("six.pt")
    given = {"model_spec": spec, "data": DataSpec("list", image_size=6), "pixels_sha256": "ab" * 32}
    save_checkpoint(file, spec.build(), **given)
    flags = ("--classes", "2", "--no-accuracies")
    told = "the checkpoint was trained on images cut to 6 pixels, and these have 8"
    assert told in run(*flags, "--image-size", "8", checkpoint=file)["notes"]
    assert told not in run(*flags, checkpoint=file, out="as trained")["notes"]


def test_processes_compare_files_whose_pixels_one_of_them_has_not_seen(checkpoint: Path) -> None:
    def prints(spec: DataSpec, on_demand: bool) -> Any:
        data = open_data(spec, path=checkpoint.parent, on_demand=on_demand)
        return analysis._fingerprints(load_checkpoint(checkpoint), data, None)

    whole, unread = (prints(DataSpec("list"), on) for on in (False, True))
    assert analysis._different(whole, unread) == analysis._different(unread, whole) == []
    other = prints(DataSpec("list", image_size=6), True)
    assert analysis._different(whole, other) == ["train image files"]
    assert "train images" in analysis._different({**whole, "train images": "ab"}, whole)
    alone = {"checkpoint": unread["checkpoint"]}
    assert "train draw" in analysis._different(alone, unread)


def test_training_reads_all_images(checkpoint: Path, tmp_path: Path) -> None:
    splits = [open_data(DataSpec("list"), path=checkpoint.parent, split=s, on_demand=True)
              for s in ("train", "test")]  # fmt: skip
    recipe = replace(find_recipe("imagenet-lt-ce-sgd"), epochs=1, arch="resnet8", batch_size=50)
    run_training(recipe, *splits, folder=tmp_path / "run", quiet=True)
    assert load_checkpoint(tmp_path / "run/last.pt").pixels_sha256 is not None
