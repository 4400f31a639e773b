"""Exported sets: the same pixels, the same fingerprints, a description of their own."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from spectra.data import DIGITS_LT, DataSpec, Samples, export, open_data
from spectra.data.__main__ import main
from spectra.errors import SpectraError


@pytest.fixture
def exported(tmp_path):
    for split in ("train", "test"):
        export(open_data(DIGITS_LT, split=split), tmp_path / "set", split)
    return tmp_path / "set"


def colours(n=12, spec=None):
    pixels = torch.randint(0, 256, (n, 3, 9, 7), dtype=torch.uint8)
    return Samples(pixels, torch.arange(n) % 3, 3, ("a", "b", "c"), spec=spec)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_exported_set_opens_as_it_was(exported, split):
    here, there = open_data(path=exported, split=split), open_data(DIGITS_LT, split=split)
    assert here.draw_sha256 == there.draw_sha256
    assert here.pixels_sha256 == there.pixels_sha256
    assert torch.equal(here.prepared(), there.prepared())
    for key in ("spec", "counts", "class_names", "augmentation", "mean", "std", "num_classes"):
        assert getattr(here, key) == getattr(there, key)


def test_colour_images_come_back_bit_by_bit(tmp_path):
    samples = colours()
    file = export(samples, tmp_path, "train")
    assert torch.equal(open_data(path=file).inputs, samples.inputs)


def test_the_file_describes_itself(exported):
    metadata = pq.read_schema(exported / "train.parquet").metadata
    about = json.loads(metadata[b"spectra"])
    assert about["schema"] == 1
    assert about["spec"] == DIGITS_LT.to_dict()
    assert about["counts"] == [134, 96, 68, 49, 35, 25, 18, 13, 9, 6]
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"][3] == "3"


def test_the_asked_for_set_must_be_the_one_that_lies_there(tmp_path):
    export(colours(spec=DataSpec("cifar10", "exp", 100.0)), tmp_path, "train")
    with pytest.raises(SpectraError, match=r"exp, ratio 100.*ratio 50.* was asked for"):
        open_data(DataSpec("cifar10", "exp", 50.0), path=tmp_path)
    assert len(open_data(DataSpec("cifar10", "exp", 100), path=tmp_path)) == 12


def test_a_changed_file_is_refused(exported):
    table = pq.read_table(exported / "train.parquet")
    pq.write_table(table.take(list(range(table.num_rows - 1, -1, -1))), exported / "train.parquet")
    with pytest.raises(SpectraError, match="the file was changed"):
        open_data(path=exported)


def test_a_truncated_file_is_refused(exported):
    file = exported / "train.parquet"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SpectraError, match="no readable parquet"):
        open_data(path=exported)


def test_another_schema_is_refused(exported):
    table = pq.read_table(exported / "train.parquet")
    metadata = {b"spectra": json.dumps({"schema": 99})}
    pq.write_table(table.replace_schema_metadata(metadata), exported / "train.parquet")
    with pytest.raises(SpectraError, match="schema 99"):
        open_data(path=exported)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(exported, monkeypatch):
    before = (exported / "train.parquet").read_bytes()

    def full(table, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(SpectraError, match="No space left on device"):
        export(open_data(DIGITS_LT), exported, "train")
    assert (exported / "train.parquet").read_bytes() == before
    assert sorted(p.name for p in exported.iterdir()) == ["test.parquet", "train.parquet"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpectraError, match="was not written"):
        export(open_data(DIGITS_LT, split="test"), tmp_path / "file" / "set", "test")


def test_float_inputs_cannot_be_exported(tmp_path):
    samples = Samples(torch.randn(2, 3), torch.tensor([0, 1]), 2, ("a", "b"))
    with pytest.raises(SpectraError, match="expected uint8 images"):
        export(samples, tmp_path, "train")


def test_the_command_line_exports_and_reads_back(tmp_path, capsys):
    digits = ["--dataset", "digits", "--imbalance-ratio", "20"]
    assert main(["export", *digits, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["info", "--data", str(tmp_path)]) == 0
    exported = capsys.readouterr().out
    assert main(["info", *digits]) == 0
    assert capsys.readouterr().out == exported
    assert "134 96 68 49 35 25 18 13 9 6" in exported
    assert main(["info", "--data", str(tmp_path), "--imbalance-ratio", "20"]) == 2
    assert "got --imbalance-ratio without a data set" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert "imagenet-lt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["info"],
        ["info", "--dataset", "cifar11"],
        ["info", "--dataset", "cifar10", "--data", "/nowhere"],
        ["info", "--dataset", "digits", "--imbalance", "exp"],
        ["info", "--dataset", "digits", "--imbalance-ratio", "0"],
        ["info", "--dataset", "digits", "--imbalance-ratio", "500"],
        ["info", "--dataset", "digits", "--image-size", "64"],
    ],
)
def test_wrong_input_gets_one_line_and_exit_code_2(arguments, capsys, monkeypatch):
    monkeypatch.delenv("SPECTRA_DATA", raising=False)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m spectra.data: ")
    assert captured.err.count("\n") == 1
