"""The result files: exact round trips, whole or untouched files, one clear line for each fault."""

import dataclasses
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spectra.errors import SpectraError
from spectra.krylov import SpectralMeasure, SymmetricOperator, lanczos, random_start
from spectra.results import CAVEAT, CERTIFICATE_KEYS, DOCTOR_KEYS, Analysis, ClassSpectrum

ISSUE_KEYS = (
    *("label", "name", "count", "share", "loss", "train_accuracy", "test_accuracy", "lambda_min"),
    *("lambda_max", "residual_min", "residual_max", "nonconvexity", "negative_mass"),
    *("negative_mass_threshold", "trace", "trace_stderr", "steps", "probes", "converged"),
    *("doctor", "certificate"),
)


def spectrum_of(label: str = "class 8", probes: int = 2, **changes: object) -> ClassSpectrum:
    """Measure a matrix with the eigenvalues -2, ..., 4."""
    import torch

    operator = SymmetricOperator.from_matrix(torch.linspace(-2, 4, 12, dtype=torch.float64).diag())
    runs = tuple(
        lanczos(operator, random_start(12, seed=0, probe=p), steps=6).without_basis()
        for p in range(probes)
    )
    fields = {
        "label": label,
        "name": "ship",
        "count": 83,
        "share": 83 / 12406,
        "loss": 0.1 + 0.2,
        "lambda_min": -2.0,
        "lambda_max": 4.0,
        "nonconvexity": 0.5,
        "steps": 6,
        "probes": probes,
        "classes": (8,),
        "doctor": {"fixed_operator": True, "repeatability": 0.0, "asymmetry": 1e-16}
        | {"noise_floor": 1e-12},
        "certificate": dict.fromkeys(CERTIFICATE_KEYS) | {"negative_curvature": True},
        "runs": runs,
        "quadratic_forms": (0.25, -1.5),
        "measure": SpectralMeasure.from_tridiagonals(runs, 12) if runs else None,
    }
    return ClassSpectrum(**(fields | changes))


def analysis_of(*spectra: ClassSpectrum) -> Analysis:
    return Analysis(
        checkpoint={"file": "a.pt", "sha256": "ab12", "arch": "resnet32", "epoch": 200},
        data={"name": "cifar10", "split": "train", "draw_sha256": "c", "pixels_sha256": "d"}
        | {"counts": [5000, 50]},
        settings={"steps": 6, "probes": 2, "seed": 0, "augment": "none"},
        device="cpu",
        versions={"torch": "2.13.0"},
        spectra=spectra,
        notes=("772 pixels differ",),
    )


def failed(label: str) -> ClassSpectrum:
    return ClassSpectrum(label=label, name="x", count=1, share=0.5, error="NaN in batch 3")


def test_round_trip_is_exact(tmp_path: Path) -> None:
    before = analysis_of(spectrum_of(), spectrum_of("overall", probes=1), failed("class 3"))
    after = Analysis.load(before.save(tmp_path))
    assert after.to_dict() == before.to_dict()
    assert after.labels == ("class 8", "overall", "class 3")
    for old, new in zip(before.spectra, after.spectra, strict=True):
        assert old.quadratic_forms == new.quadratic_forms
        assert len(old.runs) == len(new.runs) == old.probes
        for a, b in zip(old.runs, new.runs, strict=True):
            assert np.array_equal(a.alphas, b.alphas)
            assert np.array_equal(a.betas, b.betas)
            assert dataclasses.replace(a, alphas=b.alphas, betas=b.betas) == b
        assert (old.measure is None) == (new.measure is None)


def test_density_is_redrawn_from_the_files_to_the_last_bit(tmp_path: Path) -> None:
    before = spectrum_of(probes=3)
    analysis_of(before).save(tmp_path)
    after = Analysis.load(tmp_path).spectra[0]
    assert before.measure is not None
    assert after.measure is not None
    grid = before.measure.symlog_grid()
    old, new = before.measure.density(grid), after.measure.density(grid)
    assert np.array_equal(old.mean, new.mean)
    assert old.low is not None
    assert np.array_equal(old.low, new.low)


def test_every_key_of_the_public_format_is_there(tmp_path: Path) -> None:
    path = analysis_of(failed("class 0")).save(tmp_path)
    document = json.loads(path.read_text())
    assert document["schema"] == 1
    assert {"checkpoint", "data", "settings", "device", "versions", "spectra"} <= set(document)
    (entry,) = document["spectra"]
    assert set(ISSUE_KEYS) <= set(entry)
    assert set(DOCTOR_KEYS) == set(entry["doctor"])
    assert set(CERTIFICATE_KEYS) == set(entry["certificate"])


def test_unknown_is_null_and_never_zero_or_nan(tmp_path: Path) -> None:
    spectrum = spectrum_of(lambda_min=float("nan"), trace=float("inf"), loss=None)
    text = analysis_of(spectrum).save(tmp_path).read_text()
    (entry,) = json.loads(text)["spectra"]
    assert "NaN" not in text
    assert "Infinity" not in text
    for key in ("lambda_min", "trace", "loss", "test_accuracy", "negative_mass"):
        assert entry[key] is None
    assert Analysis.load(tmp_path).spectra[0].trace is None


def test_numpy_scalars_and_folders_do_not_reach_the_file(tmp_path: Path) -> None:
    before = dataclasses.replace(
        analysis_of(), settings={"ckpt": Path("/secret/a.pt"), "seed": np.int64(3)}
    )
    assert Analysis.load(before.save(tmp_path)).settings == {"ckpt": "a.pt", "seed": 3}


@pytest.mark.parametrize(
    ("protocol", "operator", "caveat"),
    [
        ("exact", "fixed", None),
        ("exact", "resampled", CAVEAT),
        ("released", "resampled", CAVEAT),
        ("released", "fixed", CAVEAT),
    ],
)
def test_numbers_of_a_moving_operator_are_called_so_in_the_file(
    tmp_path: Path, protocol: str, operator: str, caveat: str | None
) -> None:
    path = analysis_of(spectrum_of(protocol=protocol, operator=operator)).save(tmp_path)
    assert json.loads(path.read_text())["spectra"][0]["caveat"] == caveat
    assert Analysis.load(path).spectra[0].caveat == caveat


def test_negative_and_zero_entries_count_as_finished_and_failed_ones_do_not(tmp_path: Path) -> None:
    """P47: the marker of resume is presence, not the sign of a value."""
    spectra = (
        spectrum_of("class 0", lambda_max=-1.0, lambda_min=-2.0),
        spectrum_of("class 1", lambda_max=0.0, lambda_min=0.0),
        failed("class 2"),
        spectrum_of("class 3", probes=1, complete=False),
    )
    analysis_of(*spectra).save(tmp_path)
    partial = Analysis.load(tmp_path)
    assert partial.finished == ("class 0", "class 1")
    interrupted = partial.get("class 3")
    assert interrupted is not None
    assert len(interrupted.runs) == 1
    assert partial.get("class 4") is None


def test_resumed_files_equal_uninterrupted_ones_byte_for_byte(tmp_path: Path) -> None:
    """P47"""
    first, second = spectrum_of("class 0"), spectrum_of("class 1")
    analysis_of(first, second).save(tmp_path / "whole")
    half = dataclasses.replace(spectrum_of("class 1", probes=1), complete=False)
    analysis_of(first, half).save(tmp_path / "resumed")
    Analysis.load(tmp_path / "resumed").with_spectrum(second).save(tmp_path / "resumed")
    for name in ("esd.json", "esd.npz"):
        whole, resumed = tmp_path / "whole" / name, tmp_path / "resumed" / name
        assert whole.read_bytes() == resumed.read_bytes()


def test_rows_say_whose_they_are() -> None:
    """Tables of several checkpoints, one below the other, can be told apart."""
    found = analysis_of(spectrum_of("class 8"), spectrum_of("overall"))
    found = replace(found, settings={**found.settings, "loss": "ce", "augment": "none", "seed": 3})
    rows = found.rows()
    assert [row["label"] for row in rows] == ["class 8", "overall"]
    for row, spectrum in zip(rows, found.spectra, strict=True):
        assert row | spectrum.to_row() == row
        assert row["checkpoint"] == found.checkpoint["file"]
        assert row["checkpoint_sha256"] == found.checkpoint["sha256"]
        assert (row["epoch"], row["data"]) == (found.checkpoint["epoch"], found.data["name"])
        assert (row["criterion"], row["augment"], row["seed"]) == ("ce", "none", 3)


def test_a_spectrum_takes_its_predecessors_place() -> None:
    analysis = analysis_of(spectrum_of("a"), spectrum_of("b"))
    assert analysis.with_spectrum(failed("a")).labels == ("a", "b")
    assert analysis.with_spectrum(failed("c")).labels == ("a", "b", "c")
    assert analysis.with_spectrum(failed("a")).spectra[0].error == "NaN in batch 3"


def test_spectrum_that_could_not_be_read_back_is_refused() -> None:
    with pytest.raises(SpectraError, match="probes=3, nodes of 2"):
        dataclasses.replace(spectrum_of(probes=2), probes=3)


def test_one_label_cannot_hide_another() -> None:
    """P46: a hundred classes under one key would be one class."""
    with pytest.raises(SpectraError, match="each label once"):
        analysis_of(spectrum_of(), spectrum_of())


def test_json_beside_older_arrays_of_more_probes_is_read(tmp_path: Path) -> None:
    """A stop between the two renames leaves new arrays beside the old json."""
    analysis_of(spectrum_of(probes=1)).save(tmp_path)
    old = (tmp_path / "esd.json").read_text()
    analysis_of(spectrum_of(probes=2)).save(tmp_path)
    (tmp_path / "esd.json").write_text(old)
    (spectrum,) = Analysis.load(tmp_path).spectra
    assert len(spectrum.runs) == spectrum.probes == 1


def test_full_disk_leaves_the_previous_files_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis_of(spectrum_of()).save(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fill_up(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", fill_up)
    with pytest.raises(SpectraError, match="No space left on device") as caught:
        analysis_of(spectrum_of(), failed("class 9")).save(tmp_path)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(SpectraError, match="--out"):
        analysis_of().save(tmp_path / "out")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "no results can be read"),
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "truncated"),
        (lambda p: p.write_bytes(b"\x89PNG\xff"), "truncated or no JSON"),
        (lambda p: p.write_text("[1, 2]"), "no result of spectra"),
        (lambda p: p.write_text('{"schema": NaN}'), "NaN is not JSON"),
        (lambda p: edit(p, schema=2), "schema 2, expected schema 1"),
        (lambda p: edit(p, data=None), "data is no dict"),
        (lambda p: edit(p, spectra=[3]), "spectra.0..label is missing, .*\\.\\.\\.; it was edited"),
        (lambda p: edit(p, checkpoint={"sha256": "other"}), "another checkpoint"),
        (
            lambda p: p.write_text(p.read_text().replace('"count": 83', '"count": null')),
            "count = None is no number",
        ),
        (
            lambda p: p.write_text(p.read_text().replace('"loss": 0', '"loss": "0" , "x": 0')),
            "loss = '0' is no number",
        ),
        (lambda p: p.write_text(p.read_text().replace("class 8", "class 7")), "different runs"),
        (lambda p: p.with_name("esd.npz").unlink(), "esd.npz cannot be read"),
        (lambda p: p.with_name("esd.npz").write_bytes(b"PK\x03\x04half"), "esd.npz cannot be read"),
        (lambda p: p.with_name("esd.npz").write_bytes(b""), "esd.npz cannot be read"),
        (lambda p: save_array(p.with_name("esd.npz")), "esd.npz cannot be read"),
    ],
)
def test_spoiled_files_get_one_clear_line(tmp_path: Path, spoil: object, message: str) -> None:
    path = analysis_of(spectrum_of()).save(tmp_path)
    spoil(path)  # type: ignore[operator]
    with pytest.raises(SpectraError, match=message) as caught:
        Analysis.load(path)
    assert "\n" not in str(caught.value)


def test_truncated_arrays_are_refused_at_every_length(tmp_path: Path) -> None:
    path = analysis_of(spectrum_of()).save(tmp_path).with_name("esd.npz")
    whole = path.read_bytes()
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(SpectraError, match="cannot be read"):
            Analysis.load(tmp_path)
