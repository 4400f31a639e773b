"""From a checkpoint to stored landscapes and their figures, on the committed digits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectra import Plan, figures
from spectra.budgets import BUDGETS, Budget
from spectra.errors import SpectraError
from spectra.hessian import Objective
from spectra.landscape import Landscape, Survey, amplified, exploring, told
from spectra.landscape.__main__ import main
from spectra.study import Study
from spectra.writing import number

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "checkpoints/digits-lt-ce-drw-sgd.pt")
TINY = ["--classes", "8", "--steps", "6", "--points", "7", "--nearest", "1e-6", "--quiet"]
MORE = ["--surface", "3", "--amplification", "3", "--minibatch", "8", "--controls", "2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("landscape")
    assert main([DIGITS, *TINY, *MORE, "--out", str(folder)]) == 0
    return folder


def test_the_command_leaves_measurements_that_agree_with_each_other(made: Path) -> None:
    found = Landscape.load(made)
    (view,) = found.views
    assert (view.label, view.count, view.classes) == ("class 8", 9, (8,))
    assert view.low.rayleigh_quotient < 0 < view.high.rayleigh_quotient
    for certificate, cut in ((view.low, view.along_low), (view.high, view.along_high)):
        seen = cut.slope_difference
        assert seen is not None
        assert seen.curvature == pytest.approx(certificate.rayleigh_quotient, rel=1e-6)
        assert seen.agrees(tolerance=0.05)[0]  # a millionth away, where few kinks have been met
    assert view.plane is not None
    assert view.plane.losses[1, 1] == pytest.approx(view.loss, rel=1e-4)
    assert abs(view.plane.cosine) < 1e-3
    measured = found.amplification
    assert measured is not None
    assert measured.squared.value[:, 0] == pytest.approx(np.ones(4))  # no step at ρ = 0
    assert found.directions == ("class 8 λmin", "class 8 λmax", "random", "random")
    assert measured.eigenvalues[0] == view.low.rayleigh_quotient
    assert found.data["draw_sha256"]
    assert found.data["pixels_sha256"]
    assert found.settings["loss_function"]["weights"] is None
    assert len(found.settings["amplified_loss"]["weights"]) == 10  # SAM's step is of the trained
    names = {"slices.png", "surfaces.png", "amplification.png", "slices.pdf"}
    assert names <= {path.name for path in made.iterdir()}


def test_a_landscape_read_back_and_saved_again_is_the_same(made: Path, tmp_path: Path) -> None:
    Landscape.load(made).save(tmp_path)
    assert (tmp_path / "landscape.json").read_text() == (made / "landscape.json").read_text()
    with np.load(made / "landscape.npz") as one, np.load(tmp_path / "landscape.npz") as other:
        assert one.files == other.files
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_figures_are_drawn_from_stored_results_without_a_product(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "mean", None)
    monkeypatch.setattr(Objective, "value", None)
    found = Landscape.load(made)
    pages = figures.landscape_pages(found)
    assert list(pages) == ["slices", "surfaces", "amplification"]
    above, below = pages["slices"][0].axes[0], pages["slices"][0].axes[2]
    parabola = next(line for line in above.lines if line.get_label() == "parabola")
    t, y = parabola.get_xdata()[-1], parabola.get_ydata()[-1]
    theta = found.views[0].low.rayleigh_quotient
    assert y == pytest.approx(0.5 * t**2 * theta, rel=1e-5)
    level = next(line for line in below.lines if line.get_label() == "vᵀHv")
    assert level.get_ydata()[0] == pytest.approx(theta, rel=1e-5)
    squared = pages["amplification"][0].axes[0]
    assert sum(line.get_label() == "control" for line in squared.lines) == 2


def test_what_is_missing_leaves_a_place_that_says_so(made: Path, tmp_path: Path) -> None:
    held = Landscape.load(made).surface("class 8")
    beside = figures.surface_panels({"one": None, "two": held})
    assert len(figures.save([beside], tmp_path)) == 2  # drawn, not only laid out
    for figure in (
        beside,
        figures.slice_panels({"one": None}),
        figures.surface_panels({"one": None}),
        figures.amplification_panels(None, ()),
    ):
        assert "not computed yet" in [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--protocol", "released"], "expected exact"),
        (["--augment", "frozen:2"], "expected exact, none"),
        (["--surface", "1"], "at least 2"),
        (["--farthest", "0"], "nearest < farthest"),
        (["--farthest", "inf"], "all finite"),
        (["--surface", "3", "--extent", "inf"], "all finite"),
        (["--amplification", "2", "--minibatch", "500"], "lower --minibatch"),
    ],
)
def test_options_without_a_fixed_function_or_sense_are_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main([DIGITS, *TINY, *flags, "--out", str(folder)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words in told
    assert not folder.exists()


@pytest.mark.parametrize("radii", [(), (0.1, float("nan"))])
def test_radii_that_make_no_step_are_refused_before_any_product(radii: tuple[float, ...]) -> None:
    with pytest.raises(SpectraError, match="no step to measure"):
        Survey(radii=radii)


def test_the_summary_says_how_far_a_number_bears(made: Path) -> None:
    found = Landscape.load(made)
    measured = found.amplification
    assert measured is not None
    lines = "\n".join(told(found))
    for name, batches in zip(found.directions[:2], measured.effective_batches, strict=False):
        assert f"  {name}: {batches:.1f} effective batches of 3" in lines
    assert "  2 random directions: " in lines
    residuals = lines.split("median: ")[1].split(";")[0].split(", ")
    assert len(residuals) == np.sum(measured.radii > 0)
    assert residuals[-1] == f"{np.median(measured.taylor_residuals[-1]):.2g} at ρ = 0.8"
    assert np.isnan(measured.squared.low).all(), "three batches bear no interval"


def test_the_table_has_what_was_measured_and_expected_at_every_radius(made: Path) -> None:
    found = Landscape.load(made)
    measured = found.amplification
    table = amplified(found)
    assert table.header[2:] == tuple(f"ρ = {rho:g}" for rho in measured.radii if rho)
    rows = {row[1]: row[2:] for row in table.rows[:6]}  # of the first direction
    assert table.rows[0][0].startswith(f"{found.directions[0]}, λ = ")
    assert rows["S"][-1] == number(measured.slope.value[0, -1])  # three batches: no interval
    assert rows["R"][0] == number(measured.squared.value[0, 1])
    assert rows["S expected, ρ/‖g‖"][2] == number(measured.predictions.slope_normalised[0, 3])
    controls = measured.slope.value[[k for k, d in enumerate(found.directions) if d == "random"]]
    assert table.rows[-3][:2] == ("2 random directions", "S")
    low, high = table.rows[-3][-1].split(" to ")
    assert (low, high) == (number(controls[:, -1].min()), number(controls[:, -1].max()))
    assert table.rows[-1][-1] == number(np.median(measured.taylor_residuals[-1]))
    assert amplified(replace(found, amplification=None)).rows == ()


def test_an_interrupt_says_where_the_finished_classes_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [DIGITS, *TINY, "--classes", "8,9", "--points", "2", "--out", str(tmp_path)]
    look, left = exploring._look, [1]

    def stopped(*given: Any) -> Any:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return look(*given)

    monkeypatch.setattr(exploring, "_look", stopped)
    assert main(flags) == 130
    told = capsys.readouterr().err
    assert f"what is finished lies in {tmp_path}" in told
    assert "--resume" not in told
    assert Landscape.load(tmp_path).labels == ("class 8",)
    assert main(flags) == 2
    assert "other results than this run makes (unfinished ones)" in capsys.readouterr().err
    assert main([*flags, "--overwrite"]) == 130
    assert "nothing was finished yet" in capsys.readouterr().err, "those files are not of this run"


def test_figures_of_what_a_later_run_did_not_look_at_do_not_stay_beside_it(
    made: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(made, folder)
    (folder / "mine.png").touch()
    (folder / "slices-2.png").touch()
    again = [DIGITS, *TINY, "--points", "2", "--out", str(folder)]
    assert main(again) == 2  # other distances than those that lie there
    assert main([*again, "--overwrite"]) == 0
    left = {path.name for path in folder.iterdir()}
    drawn = {"slices.png", "slices.pdf"}
    assert left == {"landscape.json", "landscape.npz", "mine.png", *drawn}


def test_what_products_did_otherwise_than_planned_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = exploring._look

    def eventful(study: Study, *rest: Any) -> Any:
        assert study.way.kept is not None
        study.way.kept.note = "memory ran out"
        return look(study, *rest)

    monkeypatch.setattr(exploring, "_look", eventful)
    flags = ["--points", "2", "--product", "kept-graph", "--out", str(tmp_path)]
    assert main([DIGITS, *TINY, *flags]) == 0
    notes = Landscape.load(tmp_path).notes
    assert notes[-1] == "memory ran out"
    assert len(notes) > 1


def test_files_that_are_cut_or_of_another_checkpoint_are_refused(
    made: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    document = json.loads((folder / "landscape.json").read_text(encoding="utf-8"))
    document["checkpoint"]["sha256"] = "0" * 64
    (folder / "landscape.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SpectraError, match="belongs to another checkpoint"):
        Landscape.load(folder)
    (folder / "landscape.npz").write_bytes((made / "landscape.npz").read_bytes()[:500])
    with pytest.raises(SpectraError, match="truncated or no landscape"):
        Landscape.load(folder)
    with pytest.raises(SpectraError, match="no landscape can be read"):
        Landscape.load(tmp_path / "nowhere")


def test_a_budget_computes_a_landscape_once_and_leaves_out_what_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECTRA_DATA", raising=False)
    plan, survey = Plan(classes=(8,), steps=2, max_samples=3), Survey(points=2)
    tiny = replace(BUDGETS["quick"], around=plan, survey=survey)
    monkeypatch.setitem(BUDGETS, "quick", tiny)
    first = Budget("quick").landscape()
    assert "computing" in capsys.readouterr().out
    again = Budget("quick").landscape()
    assert "stored in reports/notebooks/" in capsys.readouterr().out
    assert again.views[0].loss == first.views[0].loss
    assert Budget("full").landscape().labels == ()
    assert "not computed yet" in capsys.readouterr().out
