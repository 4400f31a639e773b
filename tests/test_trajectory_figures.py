"""Figure and table of trajectories, asked of their artists and lines; every run here is made up."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectra.figures import (
    COLOURS,
    draw_trajectory,
    ends_panels,
    loss_panels,
    save,
    trace_panels,
    trajectory_pages,
    trajectory_panels,
    trajectory_titles,
)
from spectra.krylov import SpectralMeasure
from spectra.results import CAVEAT, Analysis, ClassSpectrum
from spectra.tables import render_trajectory
from spectra.trajectories import RunTrajectory, Trajectory
from spectra.trajectories.published import EPOCHS, NONCONVEXITY

GROUPS = {"head": [0, 1, 2], "mid": [3, 4, 5, 6], "tail": [7, 8, 9]}
RECIPE = {"name": "cifar10-lt-ce-drw-sgd", "weighting": "deferred", "drops": [160, 180]}


def spectrum_of(c: int, ratio: float | None, probes: int = 1, **changes: object) -> ClassSpectrum:
    """Make a spectrum whose probes scatter around a ratio, which may be unknown."""
    fields: dict[str, Any] = {
        "label": f"class {c}",
        "name": f"thing {c}",
        "classes": (c,),
        "count": 83,
        "share": 0.1,
        "nonconvexity": ratio,
        "lambda_min": None if ratio is None else -ratio,
        "lambda_max": 1.0,
        "converged": True,
    }
    if ratio is not None:
        nodes = [np.array([-ratio * (1 + 0.01 * p), 1.0]) for p in range(probes)]
        weights = (np.array([0.5, 0.5]),) * probes
        fields |= {"probes": probes, "measure": SpectralMeasure(tuple(nodes), weights, 100)}
    return ClassSpectrum(**(fields | changes))


def analysis_of(epoch: int, *spectra: ClassSpectrum) -> Analysis:
    return Analysis(
        checkpoint={"file": f"epoch-{epoch}.pt", "sha256": f"{epoch}", "epoch": epoch},
        data={"name": "cifar10", "split": "train", "groups": GROUPS},
        settings={"loss": "ce", "protocol": "exact", "augment": "none", "steps": 100},
        device="cpu",
        versions={},
        spectra=spectra,
    )


def run_of(
    run: str, *classes: int, probes: int = 1, published: str | None = None, **changes: object
) -> RunTrajectory:
    """Make a run whose ratio of class c at epoch e is 0.01·(c + 1) + e/1000."""

    def at(epoch: int) -> Analysis:
        ratios = {c: 0.01 * (c + 1) + epoch / 1000 for c in classes}
        return analysis_of(
            epoch, *(spectrum_of(c, r, probes, **changes) for c, r in ratios.items())
        )

    return RunTrajectory(run, tuple(map(at, EPOCHS)), RECIPE, published)


def lines_of(ax: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in ax.lines}


def panel_of(run: RunTrajectory) -> Axes:
    (ax,) = trajectory_panels(Trajectory((run,))).axes
    return ax


def test_every_class_is_a_line_over_the_kept_epochs_in_the_colour_of_its_group() -> None:
    lines = lines_of(panel_of(run_of("sgd", 0, 5, 7, 8)))
    for c, group in ((0, "head"), (5, "mid"), (7, "tail"), (8, "tail")):
        line = lines[f"class {c}"]
        assert line.get_xdata().tolist() == list(EPOCHS)
        assert line.get_ydata().tolist() == [0.01 * (c + 1) + e / 1000 for e in EPOCHS]
        assert to_rgb(line.get_color()) == tuple(0.65 * part for part in to_rgb(COLOURS[group]))
    looks = {(line.get_marker(), line.get_linestyle()) for line in lines.values()}
    assert len({line.get_marker() for line in lines.values()} - {"None"}) == 4
    assert len(looks) == 5  # and the line of the re-weighting


def test_the_line_of_the_re_weighting_stands_where_the_recipe_says() -> None:
    assert set(lines_of(panel_of(run_of("sgd", 8)))["re-weighting"].get_xdata()) == {160}
    plain = replace(run_of("ce", 8), recipe={"weighting": "none", "drops": [160, 180]})
    assert "re-weighting" not in lines_of(panel_of(plain))
    early = RunTrajectory("early", run_of("x", 8).analyses[:2], RECIPE)  # epochs 10 and 50
    ax = panel_of(early)
    assert "re-weighting" not in lines_of(ax)
    assert ax.get_xlim()[1] < 60


def test_published_values_are_hollow_and_drawn_only_where_they_were_chosen() -> None:
    ax = panel_of(run_of("sgd", 5, 8, 9, published="sgd"))
    lines = lines_of(ax)
    for c in (5, 8):
        hollow, ours = lines[f"published class {c}"], lines[f"class {c}"]
        assert hollow.get_xdata().tolist() == list(EPOCHS)
        assert hollow.get_ydata().tolist() == list(NONCONVEXITY["sgd"][c])
        assert hollow.get_fillstyle() == "none"
        assert hollow.get_linestyle() == "None"
        assert to_rgb(hollow.get_color()) == to_rgb(ours.get_color())
    assert "published class 9" not in lines  # of which none was published
    assert ax.get_ylim()[1] > 1
    for other in (run_of("sgd", 8), run_of("sam", 8, published="sam")):
        ax = panel_of(other)
        assert ax.get_ylim()[1] < 0.5
        assert ("published class 8" in lines_of(ax)) == (other.name == "sam")


def test_whiskers_need_three_probes_and_hold_the_mean_of_the_probes() -> None:
    assert not panel_of(run_of("two", 8, probes=2)).collections
    ax = panel_of(run_of("three", 8, probes=3))
    assert len(ax.collections) == len(EPOCHS)
    for epoch, whisker in zip(EPOCHS, ax.collections, strict=True):
        ((x, low), (same, high)) = whisker.get_segments()[0]
        ratio = 0.09 + epoch / 1000
        assert x == same == epoch
        assert (low + high) / 2 == pytest.approx(1.01 * ratio)
        assert high - low == pytest.approx(2 * 4.3027 * 0.01 * ratio / math.sqrt(3), rel=1e-4)


def test_panels_of_moving_operators_carry_the_ribbon_and_no_others() -> None:
    runs = (
        run_of("exact", 8),
        run_of("released", 8, protocol="released", operator="resampled"),
        run_of("resampled", 8, operator="resampled"),
    )
    figure = trajectory_panels(Trajectory(runs))
    ribbons = [CAVEAT in [text.get_text() for text in ax.texts] for ax in figure.axes]
    assert ribbons == [False, True, True]


def test_runs_lie_side_by_side_over_the_same_axes() -> None:
    short = RunTrajectory("short", run_of("x", 8).analyses[:3], None)
    figure = trajectory_panels(Trajectory((run_of("sgd", 8, published="sgd"), short)))
    one, two = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["sgd", "short"]
    assert one.get_position().y0 == two.get_position().y0
    assert (one.get_xlim(), one.get_ylim()) == (two.get_xlim(), two.get_ylim())


def test_what_is_unknown_leaves_a_gap_and_is_not_zero() -> None:
    failed = spectrum_of(8, None, error="NaN in batch 3")
    analyses = (
        analysis_of(10, spectrum_of(8, 0.1)),
        analysis_of(50, failed),
        analysis_of(100, spectrum_of(8, 0.2)),
    )
    values = lines_of(panel_of(RunTrajectory("x", analyses)))["class 8"].get_ydata()
    assert np.isnan(values[1])
    assert values[[0, 2]].tolist() == [0.1, 0.2]
    assert panel_of(RunTrajectory("y", (analysis_of(50, failed),))).get_ylim() == (-0.02, 1.0)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_what_is_drawn_and_of_many_classes_the_groups() -> None:
    few = trajectory_panels(Trajectory((run_of("sgd", 0, 8, probes=3, published="sgd"),)))
    expected = ["class 0 · thing 0", "class 8 · thing 8", "re-weighting starts"]
    assert legend_of(few) == [*expected, "published SGD, 200 epochs", "95 %, mean of single probes"]
    many = trajectory_panels(Trajectory((replace(run_of("ce", *range(100)), recipe=None),)))
    groups = ["head classes", "mid classes", "tail classes", "other classes"]
    assert legend_of(many) == groups
    assert len(many.axes[0].lines) == 100
    drawn = {line.get_color() for line in many.axes[0].lines}
    assert {handle.get_color() for handle in many.legends[0].legend_handles} == drawn


def test_both_ends_stand_with_their_residuals_over_the_same_axes() -> None:
    small = run_of("sgd", 0, 8, residual_min=0.01, residual_max=0.5)
    large = run_of("sam", 8, lambda_min=-7.0, lambda_max=300.0)
    figure = ends_panels(Trajectory((small, large)))
    ours, theirs = figure.axes
    ends = [line.get_ydata().tolist() for line in ours.lines if line.get_label() == "class 8"]
    assert ends == [[-0.09 - e / 1000 for e in EPOCHS], [1.0] * len(EPOCHS)]
    bars = [np.array(path.vertices)[:, 1] for bar in ours.collections for path in bar.get_paths()]
    assert len(bars) == 4 * len(EPOCHS)
    assert [float(np.ptp(bar)) for bar in bars[:1]] == pytest.approx([0.02])
    assert not theirs.collections
    assert ours.get_ylim() == theirs.get_ylim() == (-14.0, 600.0)
    assert "± residual" in legend_of(figure)


def test_both_ends_stand_against_the_loss_over_the_same_axes() -> None:
    def losing(name: str, *losses: float | None, **ends: float) -> RunTrajectory:
        spectra = [spectrum_of(8, 0.5, loss=loss, **ends) for loss in losses]
        analyses = tuple(analysis_of(e, s) for e, s in zip(EPOCHS, spectra, strict=False))
        return replace(run_of(name, 8), analyses=analyses)

    wide = losing("sgd", 2.0, None, 0.02, 0.0)
    figure = loss_panels(Trajectory((wide, losing("sam", 0.1, lambda_min=0.3, lambda_max=70.0))))
    ours, theirs = figure.axes
    high, low = ours.lines
    assert list(zip(*high.get_data(), strict=True)) == [(2.0, 1.0), (0.02, 1.0)]
    assert list(zip(*low.get_data(), strict=True)) == [(2.0, 0.5), (0.02, 0.5)]
    assert (high.get_fillstyle(), low.get_fillstyle()) == ("full", "none")
    assert len(theirs.lines) == 1  # λmin is above zero there
    assert ours.get_xlim() == theirs.get_xlim()
    assert ours.get_ylim() == theirs.get_ylim()
    assert ours.get_ylim()[1] > 70
    assert {"λmax", "|λmin|"} <= set(legend_of(figure))
    (empty,) = loss_panels(Trajectory((losing("sgd", None),))).axes
    assert not empty.lines


def test_the_trace_has_a_page_where_it_is_known() -> None:
    known = run_of("sgd", 8, trace=-3.0, trace_stderr=0.5)
    names = [page.texts[0].get_text() for page in trajectory_pages(Trajectory((known,)))]
    assert [name.split()[0] for name in names] == ["|λmin|", "λ", "tr"]
    assert len(trajectory_pages(Trajectory((run_of("sgd", 8),)))) == 2
    titles = trajectory_titles(Trajectory((run_of("sgd", 8, loss=0.1),)))
    assert [title.split(" against")[-1] for title in titles] == [" the epoch"] * 2 + [" the loss"]
    (ax,) = trace_panels(Trajectory((known,))).axes
    assert set(ax.lines[0].get_ydata()) == {-3.0}
    bars = [np.array(path.vertices)[:, 1] for bar in ax.collections for path in bar.get_paths()]
    assert {tuple(bar) for bar in bars} == {(-3.5, -2.5)}
    assert "± standard error" in legend_of(trace_panels(Trajectory((known,))))


@pytest.mark.parametrize(
    ("low", "high"), [(-1e-9, 0.0), (-3e4, 1e-3), (-0.2, 7e5), (-0.245, 13.8), (20.0, 45.0)]
)
def test_the_axis_of_both_signs_has_few_marks_and_holds_every_value(
    low: float, high: float
) -> None:
    run = run_of("sgd", 8, lambda_min=low, lambda_max=high)
    figure = ends_panels(Trajectory((run,)))
    figure.canvas.draw()
    (ax,) = figure.axes
    assert ax.get_ylim()[0] < min(low, 0) <= high < ax.get_ylim()[1]
    marks = [label for label in ax.get_yticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in marks]
    assert len(marks) <= 9
    places = [label.get_position()[1] for label in marks]
    assert 0 in places
    seen = 1e-4 * max(abs(low), abs(high))  # what is smaller lies next to zero
    assert (min(places) < 0) == (low < -seen)
    assert (max(places) > 0) == (high > seen)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("name", ["run", "a run of 200 epochs in a folder with a long name:"])
@pytest.mark.parametrize(("count", "width"), [(1, None), (2, None), (3, None), (4, None), (2, 3.4)])
def test_no_two_texts_overlap(count: int, width: float | None, name: str) -> None:
    changes = {"operator": "resampled", "name": "a long class name"}
    changes |= {"probes": 3, "published": "sgd"}
    runs = [run_of(f"{name} {k}", 0, 2, 5, 7, 8, **changes) for k in range(count)]
    figure = trajectory_panels(Trajectory(tuple(runs)), width=width)
    figure.canvas.draw()
    assert figure.get_figwidth() <= 7
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for ax in figure.axes:
        texts += [ax._left_title, *ax.texts]
        (_, right), (_, high) = ax.get_xlim(), ax.get_ylim()
        texts += [label for label in ax.get_xticklabels() if 0 <= label.get_position()[0] <= right]
        texts += [label for label in ax.get_yticklabels() if 0 <= label.get_position()[1] <= high]
    shown = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_visible()]
    shown = [(words, box) for words, box in shown if words and box.width]
    for words, box in shown:
        assert figure.bbox.padded(2).contains(box.x0, box.y0), words
        assert figure.bbox.padded(2).contains(box.x1, box.y1), words
    for (a, one), (b, other) in itertools.combinations(shown, 2):
        assert not one.overlaps(other), (a, b)
    for ax in figure.axes:
        top = figure.legends[0].get_window_extent().y0
        assert ax.get_window_extent().y1 < top


def test_one_run_is_drawn_into_anyones_axes_and_files_are_equal_byte_for_byte(
    tmp_path: Path,
) -> None:
    trajectory = Trajectory((run_of("sgd", 8),))
    ax = trajectory_panels(trajectory).axes[0]
    ax.clear()
    assert draw_trajectory(ax, trajectory.runs[0]) is ax
    one = save([trajectory_panels(trajectory)], tmp_path / "a", "trajectory")
    two = save([trajectory_panels(trajectory)], tmp_path / "b", "trajectory")
    assert [path.name for path in one] == ["trajectory.png", "trajectory.pdf"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_the_table_sets_ours_over_the_published_values() -> None:
    proven = {"negative_curvature": True}
    sgd = run_of("sgd", 8, 9, published="sgd", certificate=proven)
    moving = run_of("released", 8, protocol="released", operator="resampled")
    lines = render_trajectory(Trajectory((sgd, moving)), 120).splitlines()
    assert lines[0] == "sgd: |λmin| / λmax"
    assert lines[2].split() == ["epoch", *map(str, EPOCHS)]
    assert lines[3].startswith("class 8 thing 8")
    assert lines[3].split()[4:] == [
        *("0.100▼", "0.140▼", "0.190▼", "0.250▼", "0.260▼", "0.280▼", "0.290▼")
    ]
    assert lines[4].split()[:3] == ["published", "0.469", "0.185"]
    assert lines[5].startswith("class 9")
    assert lines[7] == "released: |λmin| / λmax"
    assert lines[10].split()[4] == "0.100!"
    assert "published" not in "".join(lines[7:12])
    ends = [line.find(f"{epoch}") + len(str(epoch)) for epoch in EPOCHS for line in [lines[2]]]
    assert [lines[3].find("▼", 24 + 12 * k) for k in range(7)] == ends
    text = "\n".join(lines)
    assert text.count(CAVEAT) == 1
    assert text.count("negative curvature is proven") == 1


def test_a_narrow_screen_breaks_the_epochs_and_failures_are_said() -> None:
    analyses = tuple(analysis_of(epoch, spectrum_of(8, 0.1)) for epoch in range(1, 31))
    failed = analysis_of(31, spectrum_of(8, None, error="NaN in batch 3"))
    text = render_trajectory(Trajectory((RunTrajectory("long", (*analyses, failed)),)), 80)
    assert max(map(len, text.splitlines())) <= 80
    epochs = [int(e) for line in text.splitlines() if line[:5] == "epoch" for e in line.split()[1:]]
    assert epochs == list(range(1, 32))
    assert "✗ long, epoch 31, class 8: NaN in batch 3" in text
