"""Several analyses in one table and one figure; every analysis here is made up."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectra.compare import main
from spectra.comparisons import HEADER, beside_published, compare, named, settling, signatures
from spectra.figures import recurrence_panels
from spectra.krylov import SpectralMeasure, SymmetricOperator, lanczos, random_start
from spectra.results import CAVEAT, Analysis, ClassSpectrum

VALUES = torch.linspace(-1.0, 1.0, 200, dtype=torch.float64) ** 3
VALUES[-1] = 50.0  # an outlier over a bulk


def runs_of(values: torch.Tensor, probes: int = 1, steps: int = 40) -> dict[str, Any]:
    """Run Lanczos on a diagonal matrix."""
    operator = SymmetricOperator(lambda v: values * v, len(values), dtype=torch.float64)
    runs = tuple(
        lanczos(operator, random_start(len(values), seed=0, probe=p), steps=steps)
        for p in range(probes)
    )
    measure = SpectralMeasure.from_tridiagonals(runs, len(values))
    ends = [x for nodes in measure.nodes for x in (nodes[0], nodes[-1])]
    held = {"runs": runs, "measure": measure, "probes": probes}
    return held | {"lambda_min": min(ends), "lambda_max": max(ends), "converged": True}


def spectrum_of(c: int, **changes: Any) -> ClassSpectrum:
    fields = {"label": f"class {c}", "name": "", "classes": (c,), "count": 9, "share": 0.1}
    return ClassSpectrum(**(fields | changes))


def analysis_of(*spectra: ClassSpectrum, augment: str = "none") -> Analysis:
    return Analysis(
        checkpoint={"file": "net.pt", "sha256": "0" * 64, "epoch": 1},
        data={"name": "digits", "split": "train"},
        settings={"augment": augment, "protocol": "exact", "steps": 40},
        device="cpu",
        versions={},
        spectra=spectra,
    )


def rows_of(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == [h.strip() for h in HEADER]
    return [dict(zip(HEADER, row, strict=True)) for row in cells[2:]]


def test_a_fixed_matrix_leaves_small_off_diagonals_and_a_constant_t_its_ends() -> None:
    fixed = spectrum_of(0, **runs_of(VALUES))
    assert signatures(fixed)[0] < 0.05
    entries = {"alphas": np.zeros(100), "betas": np.full(99, 3.0), "basis": None}
    run = replace(fixed.runs[0], **entries)
    ends = run.ritz().values[[0, -1]]
    assert ends == pytest.approx(6 * np.cos(np.pi / 101) * np.array([-1, 1]))
    both = spectrum_of(0, runs=(run, fixed.runs[0]), probes=2, lambda_max=50.0)
    assert signatures(both) == pytest.approx([6 / ends[1], signatures(fixed)[0]])
    assert signatures(spectrum_of(0, **runs_of(-VALUES.abs() - 0.1))) == [None]


def test_the_ratio_of_every_probe_is_its_own() -> None:
    spectrum = spectrum_of(0, **runs_of(VALUES, probes=3))
    expected = [-run.ritz().values[0] / run.ritz().values[-1] for run in spectrum.runs]
    assert spectrum.ratios == pytest.approx(expected)
    assert spectrum_of(0, **runs_of(VALUES.abs() + 0.1)).ratios == [0.0]
    assert spectrum_of(0, **runs_of(-VALUES.abs() - 0.1)).ratios == [None]
    assert spectrum_of(0).ratios == []


def test_rows_stand_by_run_then_class_then_analysis() -> None:
    exact = analysis_of(spectrum_of(8, **runs_of(VALUES)), spectrum_of(9, **runs_of(VALUES)))
    moving = {"protocol": "released", "operator": "resampled"}
    released = analysis_of(
        spectrum_of(9, **runs_of(VALUES), **moving),
        spectrum_of(8, error="a | b", **moving),
        augment="resample",
    )
    text = compare([("SGD", exact), ("SAM", exact), ("SGD", released)])
    rows = rows_of(text)
    order = [(row["run"], row["class"], row["analysis"]) for row in rows]
    assert order == [
        *(("SGD", "class 8", "exact"), ("SGD", "class 8", "released")),
        *(("SGD", "class 9", "exact"), ("SGD", "class 9", "released")),
        *(("SAM", "class 8", "exact"), ("SAM", "class 9", "exact")),
    ]
    assert rows[0]["λmax"] == "50.0"
    assert rows[0]["ratio"] == "0.0200"
    assert rows[1]["λmax"] == "–"
    assert rows[1][""] == "!✗"
    assert "not the spectrum of a matrix" in text
    assert "class 8: a | b" in text


def test_after_fewer_steps_stands_what_a_shorter_run_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two probes in a cell; a run that has ended before has nothing to say."""
    long, short = runs_of(VALUES, probes=2), runs_of(VALUES, probes=2, steps=7)
    shorter = [run.ritz().values[[0, -1]] for run in short["runs"]]
    assert all(run.after(7).steps == 7 for run in long["runs"])
    for run, ends, cut in zip(long["runs"], shorter, short["runs"], strict=True):
        assert run.after(7).ritz().values[[0, -1]] == pytest.approx(ends)
        assert run.after(7).residual_norm == pytest.approx(cut.residual_norm)
        assert run.after(7).vector(0).tolist() == pytest.approx(cut.vector(0).tolist())
    moving = {"protocol": "released", "operator": "resampled"}
    held = analysis_of(spectrum_of(8, **long), spectrum_of(9, **short, **moving))
    told = settling([("SGD", held)], (7,))
    assert "not the spectrum of a matrix" in told
    assert "| ! | SGD | class 9" in told
    table = settling([("SGD", held)], (7, 40)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:4]]
    at_seven = " · ".join(f"{-low / high:.3g} of 50.0" for low, high in shorter)
    assert [row[5] for row in cells] == [at_seven, at_seven]
    assert [row[6] for row in cells] == ["0.0200 of 50.0 · 0.0200 of 50.0", "– · –"]

    held.save(tmp_path)
    assert main([str(tmp_path), "--after", "7,40"]) == 0
    assert "after 40" in capsys.readouterr().out
    assert main([str(tmp_path), "--after", "0,40"]) == 2
    assert "expected 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--after", "7;40"])
    assert "no list of whole numbers" in capsys.readouterr().err


def test_published_ends_stand_below_ours_where_there_are_any() -> None:
    made = {"lambda_min": -2.0, "lambda_max": 8.0, "nonconvexity": 0.25, "loss": 0.01}
    made |= {"residual_min": 1.9, "residual_max": 0.02, "protocol": "released"}
    ours = analysis_of(spectrum_of(8, test_accuracy=0.5, **made), spectrum_of(9, **made))
    told = beside_published({"sgd": ours, "sam": ours})
    lines = told.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert [row[:5] for row in cells] == [
        ["!~", "SGD", "class 8", "9", "ours"],
        ["", "", "", "", "published"],
        ["!~", "SAM", "class 8", "9", "ours"],
        ["", "", "", "", "published"],
    ]
    assert cells[0][5:] == ["−2.00", "8.00", "2 0.02", "0.250", "50.0", "0.0100"]
    assert cells[1][5:] == ["−22.95", "23.11", "–", "0.993", "52.1", "0.0023"]
    assert cells[3][5:] == ["−2.28", "14.58", "–", "0.156", "72.8", "0.070"]
    assert CAVEAT in told
    assert "- ~ not converged" in told
    blank = analysis_of(spectrum_of(8, error="not computed yet"))
    assert "SGD, class 8: not computed yet" in beside_published({"sgd": blank})


@pytest.mark.parametrize(
    ("protocol", "augment", "expected"),
    [
        ("exact", "none", "exact"),
        ("exact", "frozen:5", "frozen:5"),
        ("exact", "resample", "resample"),
        ("released", "resample", "released"),
        ("released", "none", "released, no augmentation"),
        ("released", "frozen:2", "released, augmentation stored"),
    ],
)
def test_an_analysis_is_named_by_recurrence_and_operator(
    protocol: Any, augment: str, expected: str
) -> None:
    spectrum = spectrum_of(0, protocol=protocol)
    analysis = analysis_of(spectrum, augment=augment)
    assert named(analysis, spectrum) == expected
    others = replace(analysis, settings={**analysis.settings, "split": "test", "loss": "trained"})
    assert named(others, spectrum) == f"{expected}, test split, trained loss"


def test_other_inputs_and_losses_of_one_run_have_other_names() -> None:
    plain = analysis_of(spectrum_of(0))
    usual = replace(plain, data=plain.data | {"mean": [0.3055], "std": [0.3754]})
    other = replace(plain, data=plain.data | {"mean": [0.0], "std": [1.0]})
    mine = replace(
        plain,
        settings=plain.settings
        | {"loss": "trained", "loss_function": {"name": "mine", "sha256": "0"}},
    )
    names = [named(analysis, spectrum_of(0)) for analysis in (plain, usual, other, mine)]
    assert names == ["exact", "exact", "exact, normalised by 0 and 1", "exact, trained loss mine"]


def test_analyses_of_one_name_say_what_sets_them_apart() -> None:
    s = spectrum_of(8, **runs_of(VALUES))
    held = analysis_of(s), analysis_of(replace(s, label="class 9"))
    exact = [replace(held[0], settings=held[0].settings | more) for more in (
        {"dtype": "float32", "seed": 0, "batch_size": 32},
        {"dtype": "float64", "seed": 0, "batch_size": 16},
        {"dtype": "float32", "seed": 1, "until_converged": 1e-5},
    )]  # fmt: skip
    text = compare([("SGD", a) for a in (*exact, held[1])])
    assert [row["analysis"] for row in rows_of(text)] == [
        "exact, float32, seed 0", "exact, float64, seed 0", "exact, float32, until 1e-05, seed 1",
        "exact",
    ]  # fmt: skip
    moving = [replace(a, settings=a.settings | {"augment": "resample"}) for a in exact[:2]]
    (first, second) = rows_of(compare([("SGD", a) for a in moving]))
    assert first["analysis"] == "resample, float32, batches of 32"
    assert second["analysis"] == "resample, float64, batches of 16"
    figure = recurrence_panels([("SGD", a) for a in exact])
    assert len({line.get_color() for line in figure.axes[0].lines[:-1:2]}) == 3


def test_the_figure_has_a_panel_a_run_and_class_and_a_line_a_probe() -> None:
    exact = analysis_of(spectrum_of(8, **runs_of(VALUES, probes=3)), spectrum_of(9, error="none"))
    figure = recurrence_panels([("SGD", exact), ("SAM", exact), ("SGD", exact)])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["SGD, class 8", "SAM, class 8"]
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 39]
    assert len(curves) == 6
    run = exact.spectra[0].runs[0]
    assert curves[0].get_ydata() == pytest.approx(run.betas / exact.spectra[0].lambda_max)


def test_panels_with_one_analysis_give_way_to_those_that_compare() -> None:
    exact = analysis_of(spectrum_of(8, **runs_of(VALUES, probes=1)))
    moving = replace(exact, settings={**exact.settings, "augment": "resample"})
    figure = recurrence_panels([("SGD", exact), ("SAM", exact), ("SGD", moving)])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["SGD, class 8"]


def test_the_command_reads_folders_and_writes_table_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis_of(spectrum_of(8, **runs_of(VALUES))).save(tmp_path / "a")
    folders = [str(tmp_path / "a"), f"SAM={tmp_path / 'a'}"]
    assert main([*folders, "--out", str(tmp_path / "out")]) == 0
    assert [row["run"] for row in rows_of(capsys.readouterr().out)] == ["net", "SAM"]
    written = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert [row["class"] for row in rows_of(written)] == ["class 8", "class 8"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("comparison.md", "recurrence.png", "recurrence.pdf"),
    }
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no results can be read" in capsys.readouterr().err


def test_some_classes_alone_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tail = [spectrum_of(c, **runs_of(VALUES)) for c in (7, 8)]
    head = spectrum_of(8, **runs_of(VALUES)), replace(spectrum_of(0), label="head", classes=(0,))
    analysis_of(*tail).save(tmp_path / "a")
    analysis_of(*head).save(tmp_path / "b")
    folders = [f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}"]
    assert main([*folders, "--classes", "7", "--out", str(tmp_path / "out")]) == 0
    (row,) = rows_of(capsys.readouterr().out)  # B has no class 7
    assert (row["run"], row["class"]) == ("A", "class 7")
    assert main([*folders, "--classes", "8"]) == 0
    assert [row["run"] for row in rows_of(capsys.readouterr().out)] == ["A", "B"]
    assert main([*folders, "--classes", "8,0"]) == 2  # the head is no class, though it has one
    assert "got class 0, expected one that is stored: 7, 8\n" in capsys.readouterr().err


def test_two_checkpoints_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "ratio=10" / "exact", tmp_path / "ratio=50" / "exact"
    for folder, weights in ((one, "ab" * 32), (two, "cd" * 32)):
        held = analysis_of(spectrum_of(8, **runs_of(VALUES)))
        replace(held, checkpoint={**held.checkpoint, "sha256": weights}).save(folder)
    assert main([str(one), str(two)]) == 2
    assert "a name for each run" in capsys.readouterr().err
    assert main([f"ten={one}", f"fifty={two}"]) == 0
    told = capsys.readouterr().out
    assert "ten" in told
    assert "fifty" in told


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    analysis_of(spectrum_of(8, **runs_of(VALUES))).save(tmp_path / "a")
    command = [sys.executable, "-m", "spectra.compare", str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # as `| head -0` does
        assert process.stderr.read() == b""
        assert process.wait() == 0
