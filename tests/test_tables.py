"""What a reader of the table relies on: alignment, width, digits, marks that are explained."""

import csv
import dataclasses
import errno
import io
from pathlib import Path

import pandas as pd
import pytest

from spectra import tables
from spectra.errors import SpectraError
from spectra.results import CAVEAT, Analysis, ClassSpectrum
from spectra.tables import frame, number, render, to_csv, to_markdown
from spectra.writing import at_least, at_most, with_error

KNOWN = ClassSpectrum(
    label="class 8",
    name="ship",
    classes=(8,),
    count=83,
    share=83 / 12406,
    loss=2.4e-3,
    train_accuracy=1.0,
    test_accuracy=0.521,
    lambda_min=-0.4987,
    lambda_max=45.51,
    residual_min=2.1e-5,
    residual_max=3.3e-7,
    nonconvexity=0.01096,
    negative_mass=0.0123,
    negative_mass_stderr=0.001,
    negative_mass_threshold=4.5e-5,
    trace=1234.5,
    trace_stderr=45.1,
    steps=100,
    probes=3,
    converged=True,
    certificate={"negative_curvature": True, "rayleigh_quotient": -0.49},
    doctor={"asymmetry": 1e-9},
)
FAILED = ClassSpectrum(label="class 3", name="cat", count=1077, share=0.09, error="NaN in batch 2")


def analysis_of(*spectra: ClassSpectrum) -> Analysis:
    return Analysis(
        checkpoint={"file": "a.pt", "sha256": "ab"},
        data={"name": "cifar10", "split": "train"},
        settings={"protocol": "exact", "augment": "none", "steps": 100},
        device="cpu",
        versions={},
        spectra=spectra,
    )


def rows(text: str) -> list[str]:
    """Give the lines between the second and the third rule."""
    return text.split("─\n")[2].rpartition("\n")[0].splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.4987, "−0.499"),
        (45.51, "45.5"),
        (9.999, "10.0"),
        (1234.5, "1234"),
        (99999.0, "1.00e5"),
        (2.4e-3, "0.00240"),
        (-2.4e-4, "−2.40e−4"),
        (1e-12, "1.00e−12"),
    ],
)
def test_numbers_have_three_digits_and_unknown_is_a_dash(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "low", "high"),
    [
        (-1.1070010175, 6, "−1.10701", "−1.10700"),
        (-1.1061977256, 6, "−1.10620", "−1.10619"),
        (0.99999, 3, "0.999", "1.00"),
        (9.991, 3, "9.99", "10.0"),
        (1.22, 3, "1.22", "1.22"),
        (2.4041e-7, 3, "2.40e−7", "2.41e−7"),
        (0.0, 3, "0", "0"),
        (None, 3, "–", "–"),
    ],
)
def test_bounds_are_rounded_away_from_what_they_bound(
    value: float | None, digits: int, low: str, high: str
) -> None:
    assert (at_most(value, digits), at_least(value, digits)) == (low, high)


def test_every_quantity_of_the_issue_stands_in_the_row() -> None:
    (row,) = rows(render(analysis_of(KNOWN)))
    cells = ["▼", "class 8", "ship", "83", "0.669", "0.00240", "100.0", "52.1", "−0.499", "45.5"]
    cells += ["2e−5 3e−7", "0.0110", "1.23 ± 0.10", "1234 ± 45"]
    position = -1
    for cell in cells:
        position = row.index(cell, position + 1)


def test_table_of_a_hundred_classes_fits_and_stays_aligned() -> None:
    """P46"""
    spectra = (
        dataclasses.replace(KNOWN, label=f"class {c}", name=f"a long class name {c}")
        for c in range(100)
    )
    text = render(analysis_of(*spectra))
    assert len(rows(text)) == 100
    assert max(map(len, text.splitlines())) <= 120
    ends = {len(row) for row in rows(text)}
    assert len(ends) == 1


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_narrow_screens_lose_columns_but_no_curvature(width: int) -> None:
    text = render(analysis_of(KNOWN, FAILED), width)
    assert max(map(len, text.splitlines())) <= width
    for cell in ("class 8", "−0.499", "45.5", "0.0110", "1.23 ± 0.10", "1234 ± 45"):
        assert cell in text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.119, 2.7e-4, "0.11900 ± 2.7e−4"),
        (1.0903, 0.0036, "1.0903 ± 0.0036"),
        (53.8, 2.7, "53.8 ± 2.7"),
        (1234.5, 451.0, "1234 ± 451"),
        (99999.0, 45.0, "9.9999e4 ± 45"),
        (9.96, 0.12, "9.96 ± 0.12"),
        (float("nan"), 0.1, "nan ± 0.10"),
        (-0.5, 12.0, "−0.500 ± 12"),
        (2.0, 1e-30, "2.00000000000000 ± 1.0e−30"),
        (0.0, 0.1, "0 ± 0.10"),
        (1.5, None, "1.50"),
        (None, None, "–"),
    ],
)
def test_a_number_has_the_digits_that_its_error_has(
    value: float | None, error: float | None, text: str
) -> None:
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("bounds", "stderr", "text"),
    [
        ((0.0122, 0.0124), 0.001, "1.23 ± 0.10"),
        ((0.012, 0.0139), 0.001, "1.23 ± 0.10"),
        ((0.0122349, 0.0124351), None, "1.22–1.25"),  # outwards
        ((0.0351, 0.0549), 0.001, "3–6"),
        ((0.07, 0.57), 0.001, "7–57"),
        ((0.012, 0.016), 0.001, "1.20–1.60"),
        ((0.0122, 0.0124), None, "1.22–1.24"),
        ((0.0123, 0.0123 + 1e-12), None, "1.23"),
        ((0.01, 0.99), 0.001, "1–99"),
        ((0.01, 0.11), 0.2, "1.23 ± 20"),
        (None, None, "1.23"),
    ],
)
def test_a_share_is_a_range_where_the_quadrature_leaves_more_open_than_the_probes(
    bounds: tuple[float, float] | None, stderr: float | None, text: str
) -> None:
    s = dataclasses.replace(KNOWN, negative_mass_bounds=bounds, negative_mass_stderr=stderr)
    table, _, foot = to_markdown(analysis_of(s)).partition("\n\n")
    assert table.splitlines()[-1].split(" | ")[-2] == text
    assert "τ = max(noise floor, 1e−6 λmax)" in foot
    assert "τ" not in to_markdown(analysis_of(FAILED)).partition("\n\n")[2]


def test_unknown_is_a_dash_and_never_zero() -> None:
    (row,) = rows(render(analysis_of(FAILED)))
    assert row.split() == ["✗", "class", "3", "cat", "1077", "9.00", *"–" * 10]


@pytest.mark.parametrize(
    ("changes", "marks"),
    [
        ({}, "▼"),
        ({"certificate": {"negative_curvature": False}}, ""),
        ({"certificate": {}}, ""),
        ({"converged": False}, "▼~"),
        ({"protocol": "released", "certificate": {}}, "!"),
        ({"operator": "resampled", "certificate": {}}, "!"),
        ({"complete": False}, "▼…"),
    ],
)
def test_marks_say_what_holds_and_the_footer_explains_them(
    changes: dict[str, object], marks: str
) -> None:
    spectrum = dataclasses.replace(KNOWN, **changes)
    text = render(analysis_of(spectrum))
    assert tables.marks(spectrum) == marks
    footer = text.split("─\n")[-1].splitlines()
    explained = {line[0] for line in footer if line[0] in tables.MARKS}
    assert explained == set(marks)
    assert (CAVEAT in text) == ("!" in marks)


def test_footer_states_operator_failure_and_notes() -> None:
    analysis = dataclasses.replace(analysis_of(KNOWN, FAILED), notes=("772 pixels differ",))
    footer = render(analysis, 200).split("─\n")[-1]
    for words in ("class 3: NaN in batch 2", "772 pixels differ", "protocol exact", "augment none"):
        assert words in footer


def test_markdown_is_one_table_with_as_many_cells_in_every_row() -> None:
    lines = to_markdown(analysis_of(KNOWN, FAILED)).split("\n\n")[0].splitlines()
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {15}


def test_frame_is_one_row_a_spectrum_with_nested_fields_flat() -> None:
    table = frame(analysis_of(KNOWN, FAILED))
    assert list(table["label"]) == ["class 8", "class 3"]
    assert table["lambda_min"][0] == -0.4987
    assert table["certificate_rayleigh_quotient"][0] == -0.49
    assert table["doctor_asymmetry"][0] == 1e-9
    assert pd.isna(table["lambda_min"][1])


def test_csv_keeps_every_digit_and_leaves_unknown_empty(tmp_path: Path) -> None:
    exact = dataclasses.replace(KNOWN, loss=0.1 + 0.2)
    path = to_csv(analysis_of(exact, FAILED), tmp_path / "new" / "esd.csv")
    with path.open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert float(first["loss"]) == 0.1 + 0.2
    assert second["loss"] == second["trace"] == second["lambda_min"] == ""
    assert second["count"] == "1077"


def test_full_disk_leaves_the_previous_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = to_csv(analysis_of(KNOWN), tmp_path / "esd.csv")
    before = path.read_bytes()

    def fill_up(self: pd.DataFrame, path: Path, **options: object) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fill_up)
    with pytest.raises(SpectraError, match="No space left"):
        to_csv(analysis_of(FAILED), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_spectra_make_an_empty_table() -> None:
    assert rows(render(analysis_of())) == []
    assert to_markdown(analysis_of())
    assert frame(analysis_of()).empty
    assert io.StringIO(render(analysis_of())).readline().startswith("─")
