"""What a reader of the figure relies on, asked of its artists: nothing here compares pixels."""

import dataclasses
import errno
import itertools
import math
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from spectra.doctor import Certificate
from spectra.errors import SpectraError
from spectra.figures import (
    COLOURS,
    OUTSIDE,
    PLAIN,
    Scale,
    amplification_panels,
    class_panels,
    density_grid,
    draw_density,
    landscape_pages,
    radius_panels,
    recurrence_panels,
    save,
    slice_panels,
    surface_panels,
    trajectory_pages,
)
from spectra.figures.learning import learning_curves
from spectra.figures.pages import plain_text
from spectra.krylov import SpectralMeasure, Tridiagonal
from spectra.krylov.measure import Kernel
from spectra.landscape import Amplification, Differences, Landscape, Slice, Surface, View
from spectra.results import CAVEAT, Analysis, ClassSpectrum
from spectra.trajectories import RunTrajectory, Trajectory

GROUPS = {"head": [0, 1, 2], "mid": [3, 4, 5, 6], "tail": [7, 8, 9]}


def measure_of(seed: int, probes: int = 1, scale: float = 1.0) -> SpectralMeasure:
    """Make what Lanczos gives: a heavy bulk at zero, light outliers on both sides."""
    random = np.random.default_rng(seed)
    nodes, weights = [], []
    for _ in range(probes):
        outliers = 10 ** random.uniform(0, 1.7, 8) * np.where(np.arange(8) < 2, -0.05, 1.0)
        nodes.append(scale * np.sort(np.append(outliers, random.normal(0, 1e-2, 12))))
        weights.append(np.where(abs(nodes[-1]) < 0.03 * scale, 1.0, 1e-5 * random.chisquare(1, 20)))
        weights[-1] /= weights[-1].sum()
    return SpectralMeasure(tuple(nodes), tuple(weights), 1_000_000)


def spectrum_of(c: int, probes: int = 1, scale: float = 1.0, **changes: object) -> ClassSpectrum:
    measure = measure_of(c, probes, scale)
    low, high = measure.support
    fields = {
        "label": f"class {c}",
        "name": f"thing {c}",
        "classes": (c,),
        "count": 5000 - c,
        "share": 0.1,
        "loss": 2.3e-3,
        "probes": probes,
        "test_accuracy": 0.521,
        "lambda_min": low,
        "lambda_max": high,
        "converged": True,
        "measure": measure,
        "certificate": {"negative_curvature": True, "rayleigh_quotient": 0.9 * low},
    }
    return ClassSpectrum(**(fields | changes))


def failed(label: str) -> ClassSpectrum:
    return ClassSpectrum(label=label, name="x", count=1, share=0.5, error="NaN in batch 3")


def analysis_of(*spectra: ClassSpectrum, groups: bool = True) -> Analysis:
    return Analysis(
        checkpoint={"file": "cifar10-lt.pt", "sha256": "ab", "epoch": 200},
        data={"name": "cifar10", "split": "train"} | ({"groups": GROUPS} if groups else {}),
        settings={"loss": "ce", "protocol": "exact", "augment": "none", "kernel": "default"},
        device="cpu",
        versions={},
        spectra=spectra,
    )


def all_panels(pages: list[Figure]) -> list[Axes]:
    return [ax for page in pages for ax in page.axes]


def labelled(ax: Axes, label: str) -> list:
    return [artist for artist in (*ax.lines, *ax.collections) if artist.get_label() == label]


def box_of(ax: Axes) -> Text:
    (box,) = (text for text in ax.texts if text.get_gid() == "numbers")
    return box


def colour_of(ax: Axes) -> tuple[float, float, float]:
    return to_rgb(ax.collections[0].get_facecolor()[0][:3])


@pytest.fixture(scope="module")
def hundred() -> list[Axes]:
    return all_panels(density_grid(analysis_of(*map(spectrum_of, range(100)))))


def test_a_hundred_classes_are_a_hundred_panels_each_with_one_curve(hundred: list[Axes]) -> None:
    """P46: no class is left out, none is drawn on another's axes."""
    assert len(hundred) == len(set(map(id, hundred))) == 100
    titles = [ax.get_title(loc="left") for ax in hundred]
    assert [title.replace("\n", " · ") for title in titles] == [
        f"class {c} · thing {c}" for c in range(100)
    ]
    for c, ax in enumerate(hundred):
        (curve,) = labelled(ax, "density")
        nodes = measure_of(c).nodes[0]
        peak = measure_of(c).density(nodes).mean.max()
        assert peak <= curve.get_ydata().max() < 1.2 * peak


@pytest.mark.parametrize("count", [0, 1, 15, 16, 41])
def test_pages_hold_at_most_fifteen_panels_and_are_balanced(count: int) -> None:
    sizes = [
        len(page.axes) for page in density_grid(analysis_of(*map(failed, map(str, range(count)))))
    ]
    assert sum(sizes) == count
    assert max(sizes) <= 15
    assert len(sizes) == max(1, -(-count // 15))
    assert max(sizes) - min(sizes) < len(sizes) + 1


def test_drawing_twice_draws_afresh() -> None:
    """P46: axes are never reused."""
    analysis = analysis_of(spectrum_of(0), spectrum_of(1))
    first, second = density_grid(analysis), density_grid(analysis)
    for a, b in zip(all_panels(first), all_panels(second), strict=True):
        assert a is not b
        assert len(labelled(a, "density")) == len(labelled(b, "density")) == 1


def test_all_panels_of_all_pages_share_both_axes(hundred: list[Axes]) -> None:
    assert len({ax.get_xlim() for ax in hundred}) == 1
    assert len({ax.get_ylim() for ax in hundred}) == 1
    assert {ax.get_xscale() for ax in hundred} == {"symlog"}
    assert {ax.get_yscale() for ax in hundred} == {"log"}


def test_axes_hold_every_node_with_its_kernel(hundred: list[Axes]) -> None:
    low, high = hundred[0].get_xlim()
    for c in range(100):
        assert low < 1.1 * measure_of(c).support[0]
        assert high > 1.1 * measure_of(c).support[1]


def test_numbers_of_the_panel_stand_in_its_box() -> None:
    (page,) = density_grid(analysis_of(spectrum_of(0, lambda_min=-22.95, lambda_max=23.11)))
    words = box_of(page.axes[0]).get_text().split()
    assert words == ["λmax", "23.1", "λmin", "−22.9", "test", "acc", "52.1%", "loss", "0.00230"]
    assert page.axes[0].get_title(loc="right") == "n = 5000"


def test_unknown_and_unconverged_numbers_are_called_so() -> None:
    """Of an interrupted spectrum no residual is known yet, and so not that it is large."""
    interrupted = spectrum_of(
        0, lambda_min=None, test_accuracy=None, converged=False, complete=False
    )
    (page,) = density_grid(analysis_of(interrupted, spectrum_of(1, converged=False)))
    lines = [line.split() for line in box_of(page.axes[0]).get_text().splitlines()]
    assert lines[1:3] == [["λmin", "–"], ["test", "acc", "–"]]
    assert lines[-1] == ["loss", "0.00230"]
    assert labelled(page.axes[0], "λmin") == []
    assert box_of(page.axes[1]).get_text().splitlines()[-1] == "not converged"


def flat(loss: float) -> Surface:
    places = np.linspace(-1, 1, 5)
    return Surface(places, places, np.full((5, 5), loss), (1.0, 1.0), 0.0)


def test_a_dollar_sign_in_a_name_begins_no_formula(tmp_path: Path) -> None:
    """This pair of them would be one, which matplotlib refuses to draw."""
    odd = r"$\nothing$"
    run = Tridiagonal(np.array([1.0, 0, 0]), np.array([0.5, 0.25]), 0.1, None, False, 9)
    spectrum = spectrum_of(8, label=odd, name=odd, runs=(run,))
    analysis = dataclasses.replace(
        analysis_of(spectrum, dataclasses.replace(failed("x"), error=odd)),
        checkpoint={"file": odd, "epoch": 1},
        data={"name": odd},
    )
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "epoch,lr,weighted,train_loss,test_accuracy,head,mid,tail\n1,0.1,0,1,0.5,0.5,0.5,0.5\n"
    )
    values = {odd: [(50.0, None), (40.0, None)]}
    pages = {
        "densities": density_grid(analysis),
        "trajectories": trajectory_pages(Trajectory((RunTrajectory(odd, (analysis,)),))),
        "recurrence": [recurrence_panels([(odd, analysis)])],
        "classes": [class_panels({odd: values}, [odd, "b"], {})],
        "radii": [radius_panels({odd: {0.1: {"all": (50.0, None)}}}, {}, {odd: "all"})],
        "learning": [learning_curves({odd: metrics})],
        "amplification": [amplification_panels(amplification_of(), (odd, "b", "c"), title=odd)],
        "slices": [slice_panels({odd: slice_of()}, title=odd)],
        "surfaces": [surface_panels({odd: flat(1.0)}, title=odd)],
    }
    for room, drawn in pages.items():
        for page in drawn:
            page.canvas.draw()
            told = " ".join(text.get_text() for text in page.findobj(Text))
            assert odd.replace("$", r"\$") in told, room
    for name in ("$x$", r"a \$5 or $6", "$"):
        text = Figure().text(0, 0, plain_text(name))
        plain = Figure().text(0, 0, name, parse_math=False)
        assert text.get_window_extent().bounds == plain.get_window_extent().bounds


def test_extremes_are_marked_where_they_lie() -> None:
    spectrum = spectrum_of(3)
    (page,) = density_grid(analysis_of(spectrum))
    (low,), (high,) = labelled(page.axes[0], "λmin"), labelled(page.axes[0], "λmax")
    assert set(low.get_xdata()) == {spectrum.lambda_min}
    assert set(high.get_xdata()) == {spectrum.lambda_max}


def test_only_proven_negative_curvature_is_marked_at_its_quotient() -> None:
    proven = spectrum_of(0)
    doubtful = spectrum_of(1, certificate={"negative_curvature": False, "rayleigh_quotient": -1.0})
    (page,) = density_grid(analysis_of(proven, doubtful, spectrum_of(2, certificate={})))
    (mark,) = labelled(page.axes[0], "proven")
    assert list(mark.get_xdata()) == [proven.certificate["rayleigh_quotient"]]
    assert labelled(page.axes[1], "proven") == labelled(page.axes[2], "proven") == []


def test_panels_of_a_moving_operator_carry_a_ribbon_and_no_others() -> None:
    analysis = analysis_of(
        spectrum_of(0),
        spectrum_of(1, operator="resampled"),
        spectrum_of(2, protocol="released"),
        failed("x"),
    )
    panels = all_panels(density_grid(analysis))
    ribbons = [any(text.get_text() == CAVEAT for text in ax.texts) for ax in panels]
    assert ribbons == [False, True, True, False]


def test_band_needs_three_probes() -> None:
    (page,) = density_grid(analysis_of(spectrum_of(0, probes=2), spectrum_of(1, probes=3)))
    assert [len(labelled(ax, "band")) for ax in page.axes] == [0, 1]


def test_the_band_is_a_standard_error_of_the_logarithm_and_never_reaches_the_floor_alone() -> None:
    spectrum = spectrum_of(1, probes=4)
    (page,) = density_grid(analysis_of(spectrum))
    (curve,), (band,) = (labelled(page.axes[0], name) for name in ("density", "band"))
    probes = labelled(page.axes[0], "probe")
    assert len(probes) == 4
    mean, floor = curve.get_ydata(), page.axes[0].get_ylim()[0]
    seen = mean > floor
    assert seen.sum() > 100
    lines = np.stack([line.get_ydata()[seen] for line in probes])
    assert np.allclose(lines.mean(axis=0), mean[seen], rtol=1e-6, atol=floor)
    corners = band.get_paths()[0].vertices
    for x, y in zip(curve.get_xdata()[seen][::50], mean[seen][::50], strict=True):
        ends = corners[corners[:, 0] == x, 1]
        assert ends.max() == pytest.approx(y * y / max(ends.min(), floor), rel=1e-6) or (
            ends.min() == floor
        )
        assert ends.max() <= np.e * y * (1 + 1e-9)


def test_a_label_is_never_cut_and_what_follows_stands_below_it() -> None:
    labels = [f"class {c}, released, augmentation stored, trained loss" for c in range(9)]
    spectra = [spectrum_of(c, label=label, name="airplane") for c, label in enumerate(labels)]
    for width in (3.4, 7.0):
        pages = density_grid(analysis_of(*spectra), width=width)
        assert {page.get_figwidth() for page in pages} == {width}
        for ax, label in zip(all_panels(pages), labels, strict=True):
            *lines, name = ax.get_title(loc="left").splitlines()
            assert (" ".join(lines), name) == (label, "airplane")


def test_what_ended_the_steps_and_which_samples_stand_above_the_panels() -> None:
    analysis = analysis_of(spectrum_of(0))
    more = {"steps": 100, "until_converged": 1e-4, "max_samples": 83, "probes": 1}
    (page,) = density_grid(dataclasses.replace(analysis, settings=analysis.settings | more))
    told = " ".join(text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in page.texts)
    told = " ".join(told.split())
    for fact in ("steps 100", "until_converged 0.0001", "max_samples 83"):
        assert fact in told


def test_failed_class_gets_a_panel_with_the_reason() -> None:
    (page,) = density_grid(analysis_of(spectrum_of(0), failed("class 1")))
    assert [text.get_text() for text in page.axes[1].texts] == ["NaN in batch 3"]
    assert labelled(page.axes[1], "density") == []


def test_groups_have_the_papers_colours_where_they_are_known() -> None:
    spectra = [spectrum_of(c) for c in (0, 4, 9)]
    spectra += [spectrum_of(20, label="tail", classes=(7, 8, 9))]
    spectra += [spectrum_of(21, label="overall", classes=())]
    colours = [colour_of(ax) for ax in all_panels(density_grid(analysis_of(*spectra)))]
    names = [COLOURS["head"], COLOURS["mid"], COLOURS["tail"], COLOURS["tail"], OUTSIDE]
    assert colours == list(map(to_rgb, names))
    plain = all_panels(density_grid(analysis_of(*spectra[:3], groups=False)))
    assert {colour_of(ax) for ax in plain} == {to_rgb(PLAIN)}


@pytest.mark.parametrize("kernel", ["default", "paper"])
def test_no_kernel_falls_between_grid_points(kernel: Kernel) -> None:
    """P38: the published kernel is a thousand times narrower than the axis at its ends."""
    spectrum = spectrum_of(5, scale=1e3)
    (page,) = density_grid(analysis_of(spectrum), kernel=kernel)
    (curve,) = labelled(page.axes[0], "density")
    measure = spectrum.measure
    assert measure is not None
    (nodes,), (weights,) = measure.nodes, measure.weights
    heavy = nodes[weights > 1e-6]
    drawn = np.interp(heavy, curve.get_xdata(), curve.get_ydata())
    assert np.all(drawn >= 0.9 * measure.density(heavy, kernel).mean)


def test_the_picture_does_not_depend_on_the_unit_of_the_loss() -> None:
    """P37"""
    (plain,) = density_grid(analysis_of(*(spectrum_of(c) for c in range(3))))
    (small,) = density_grid(analysis_of(*(spectrum_of(c, scale=1e-6) for c in range(3))))
    for a, b in zip(plain.axes, small.axes, strict=True):
        (one,), (other,) = labelled(a, "density"), labelled(b, "density")
        grid = np.linspace(0.02, 0.98, 50)
        places = []
        for ax, line in ((a, one), (b, other)):
            place = (line.get_transform() - ax.transAxes).transform(line.get_xydata())
            places.append(np.interp(grid, place[:, 0], place[:, 1]))
        assert np.allclose(*places, atol=0.02)


@pytest.mark.parametrize("nodes", [[0.0], [2.5], [-1.0], [-3.0, 0.0], [1.0, 1e12]])
def test_degenerate_spectra_are_drawn(nodes: list[float]) -> None:
    count = len(nodes)
    measure = SpectralMeasure((np.array(nodes),), (np.full(count, 1 / count),), 4)
    (page,) = density_grid(analysis_of(spectrum_of(0, measure=measure, probes=1)))
    (ax,) = page.axes
    assert ax.get_xlim()[0] < nodes[0] <= nodes[-1] < ax.get_xlim()[1]
    page.canvas.draw()


def texts_of(page: Figure) -> list[Text]:
    """List what is written: titles, labels of shown ticks, boxes, header, legend."""
    found = [*page.texts, *page.legends[0].get_texts()]
    for ax in page.axes:
        found += [ax.title, ax._left_title, ax._right_title, *ax.texts]
        found += [*ax.get_xticklabels(), *ax.get_yticklabels()]
    return [text for text in found if text.get_visible() and text.get_text()]


@pytest.mark.parametrize(
    ("count", "moving", "width"),
    [*((n, True, None) for n in (1, 2, 3, 4, 5)), (12, False, None), (2, True, 3.4)],
)
def test_no_two_texts_overlap_and_none_is_small(
    count: int, moving: bool, width: float | None
) -> None:
    changes = {"operator": "resampled", "converged": False} if moving else {}
    spectra = [
        spectrum_of(c, probes=3, scale=1e-4, name="a long class name", count=115_846, **changes)
        for c in range(count)
    ]
    (page,) = density_grid(analysis_of(*spectra), width=width)
    page.canvas.draw()
    assert page.get_figwidth() <= 7
    boxes = []
    for text in texts_of(page):
        assert text.get_fontsize() >= 7
        place = text.get_window_extent()
        if place.width and page.bbox.overlaps(place):
            boxes.append((text.get_text(), place))
            assert page.bbox.padded(1).contains(place.x0, place.y0), text
            assert page.bbox.padded(1).contains(place.x1, place.y1), text
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        assert not one.overlaps(other), (a, b)


def test_no_curve_runs_under_the_numbers(hundred: list[Axes]) -> None:
    for ax in hundred:
        box = box_of(ax).get_window_extent()
        (curve,) = labelled(ax, "density")
        points = curve.get_transform().transform(curve.get_xydata())
        under = points[(points[:, 0] > box.x0) & (points[:, 0] < box.x1), 1]
        assert under.max() < box.y0


def test_one_density_is_drawn_into_anyones_axes() -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    spectrum = spectrum_of(0)
    grid = np.linspace(-5, 50, 300)
    assert draw_density(ax, spectrum, grid, "paper") is ax
    (curve,) = labelled(ax, "density")
    assert spectrum.measure is not None
    expected = spectrum.measure.density(grid, "paper").mean
    floor = Scale.of([spectrum], "paper").floor
    assert np.array_equal(curve.get_ydata(), np.maximum(expected, floor))


def test_files_of_all_pages_are_written_and_equal_byte_for_byte(tmp_path: Path) -> None:
    analysis = analysis_of(*(spectrum_of(c) for c in range(3)))
    paths = save(density_grid(analysis, page=2), tmp_path / "a")
    assert [path.name for path in paths] == ["esd.png", "esd.pdf", "esd-2.png", "esd-2.pdf"]
    again = save(density_grid(analysis, page=2), tmp_path / "b")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")


def test_figure_is_redrawn_from_the_files_alone(tmp_path: Path) -> None:
    analysis = analysis_of(*(spectrum_of(c, probes=3) for c in range(2)))
    analysis.save(tmp_path)
    (before,), (after,) = density_grid(analysis), density_grid(Analysis.load(tmp_path))
    for a, b in zip(before.axes, after.axes, strict=True):
        (one,), (other,) = labelled(a, "density"), labelled(b, "density")
        assert np.array_equal(one.get_xydata(), other.get_xydata())


def test_full_disk_leaves_the_previous_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = density_grid(analysis_of(spectrum_of(0)))
    before = {path: path.read_bytes() for path in save(pages, tmp_path)}

    def fill_up(self: Figure, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fill_up)
    with pytest.raises(SpectraError, match="No space left"):
        save(pages, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save(density_grid(analysis_of(spectrum_of(0))), tmp_path)
    assert dict(mpl.rcParams) == before


def test_a_start_loads_nothing_that_takes_seconds() -> None:
    slow = {"pandas", "matplotlib.pyplot", "seaborn", "scipy.stats", "scipy.sparse.linalg"}
    check = "import spectra.esd, spectra.figures, spectra.train, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True
    )
    assert not slow & set(done.stdout.split())


def test_a_changed_spectrum_changes_only_its_own_panel() -> None:
    spectra = [spectrum_of(c) for c in range(3)]
    changed = dataclasses.replace(spectra[1], loss=1.0)
    (one,) = density_grid(analysis_of(*spectra))
    (other,) = density_grid(analysis_of(spectra[0], changed, spectra[2]))
    pairs = zip(one.axes, other.axes, strict=True)
    same = [box_of(a).get_text() == box_of(b).get_text() for a, b in pairs]
    assert same == [True, False, True]


def slice_of(ahead: float = 0.0, behind: float = 0.0) -> Slice:
    """Make the slice of 1 − t²/2, with something added to its farthest values."""
    t = np.geomspace(1e-4, 1, 13)
    seen = Differences(t, np.full(13, -1.0), np.full(13, 1e-9), -1.0, 1e-9)
    last = np.eye(13)[-1]
    ends = (1 - t**2 / 2 + np.where(last > 0, extra, 0.0) for extra in (ahead, behind))
    return Slice(t, *ends, 1.0, 0.0, 1.0, seen, None)


def test_one_value_far_off_does_not_set_the_scale_and_is_marked() -> None:
    calm = slice_panels({"calm": slice_of()}).axes[0]
    assert not [line for line in labelled(calm, "outside") if len(line.get_xdata())]
    ax = slice_panels({"far": slice_of(ahead=50.0, behind=-50.0)}).axes[0]
    assert np.abs(ax.get_ylim()).max() <= np.abs(calm.get_ylim()).max() < 1
    marks = {line.get_ydata()[0] > 0.5: line.get_xdata()[0] for line in labelled(ax, "outside")}
    assert marks == {True: 1.0, False: -1.0}


def test_the_loss_itself_is_drawn_over_the_same_axes_for_all_lines() -> None:
    figure = slice_panels({"one": slice_of(), "none": None, "two": slice_of(ahead=3.0)})
    one, two = figure.axes[6], figure.axes[8]
    assert (one.get_xlim(), one.get_ylim()) == (two.get_xlim(), two.get_ylim())
    (curve,) = labelled(one, "loss")
    t, losses = curve.get_xdata(), curve.get_ydata()
    assert 0.2 < t.max() == -t.min() <= 0.5
    assert np.allclose(losses, 1 - t**2 / 2)


def test_losses_below_the_panel_are_marked_at_its_edge() -> None:
    """Two decades below L(w) it ends, unless another panel's loss falls as far."""
    calm = slice_of()
    falling = dataclasses.replace(calm, ahead=np.exp(-30 * calm.distances))
    low = dataclasses.replace(calm, loss=1e-5)

    def marked(*slices: Slice) -> list[float]:
        figure = slice_panels({str(k): cut for k, cut in enumerate(slices)})
        (marks,) = labelled(figure.axes[2 * len(slices)], "outside")
        return marks.get_xdata().round(3).tolist()

    assert marked(calm) == []
    assert marked(falling) == [0.215, 0.464]
    assert marked(falling, low) == [0.464]


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_no_number_is_left_out_and_the_page_is_drawn(bad: float, tmp_path: Path) -> None:
    cut = slice_of(ahead=bad)
    lost = dataclasses.replace(cut.second_difference, values=np.full(13, bad), curvature=bad)
    empty = dataclasses.replace(cut, loss=bad, slope=bad, second_difference=lost)
    beside = {"whole": slice_of(), "one": cut, "all": empty}
    slices = slice_panels(beside)
    losses = np.outer(np.geomspace(0.1, 10, 5), np.ones(4))
    holed = losses.copy()
    holed[1, 2] = bad
    places = np.linspace(-1, 1, 5), np.linspace(-1, 1, 4)
    seen = {
        name: Surface(*places, held, (1.0, 1.0), 0.0)
        for name, held in {"whole": losses, "one": holed, "all": np.full((5, 4), bad)}.items()
    }
    planes = surface_panels(seen)
    save([slices, planes], tmp_path)
    for figure in (slices, planes):
        for ax in figure.axes:
            assert np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all()
    (mark,) = labelled(planes.axes[1], "no number")
    assert mark.get_xydata().tolist() == [[places[0][1], places[1][2]]]
    assert len(labelled(planes.axes[0], "no number")[0].get_xdata()) == 0


def test_a_loss_below_the_scale_of_colours_is_told_from_the_lowest_on_it() -> None:
    losses = np.full((5, 5), 1.0)
    losses[0] = 1e-9  # the scale ends at a hundredth of the middle
    seen = dataclasses.replace(flat(1.0), losses=losses)
    figure = surface_panels({"one": seen})
    (filled,) = [c for c in figure.axes[0].collections if c.get_array() is not None and c.filled]
    assert filled.extend == "min"
    assert filled.cmap.get_under().tolist() == [0, 0, 0, 1]
    assert "below $10^{-2.0}$" in figure.axes[-1].get_ylabel()


def amplification_of(residual: float = 0.5, count: int = 40) -> Amplification:
    random = np.random.default_rng(0)
    radii = np.array([0.0, 0.1, 0.5])
    a = random.normal(1, 0.1, (3, count))
    residuals = np.stack([np.full(count, np.nan), np.full(count, 0.5), np.full(count, residual)])
    shifted = a[:, None] * (1 + radii[:, None])
    return Amplification(
        radii=radii, eigenvalues=np.array([-1.0, 2.0, np.nan]), components=a, shifted=shifted,
        curved=a, gradient_norms=np.ones(count), taylor_residuals=residuals,
        dim=10, batch_size=8, seed=0, batch_norm="evaluation", confidence=0.9,
    )  # fmt: skip


def test_radii_that_no_expansion_reaches_are_hollow_and_the_batches_that_count_are_told() -> None:
    names = ("class 8 λmin", "class 8 λmax", "random")
    figure = amplification_panels(amplification_of(2.0), names, title="SAM")
    assert figure.get_suptitle() == "SAM"
    for ax in figure.axes:
        (hollow,) = labelled(ax, "unexplained")
        assert hollow.get_xdata().tolist() == [0.5]
        assert hollow.get_markerfacecolor() == "white"
    assert "of 40 batches" in figure.axes[0].get_xlabel()
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "90 % over batches" in told
    assert any("class's own plain-CE Hessian" in words for words in told)
    calm = amplification_panels(amplification_of(), names)
    assert len(labelled(calm.axes[0], "unexplained")[0].get_xdata()) == 0
    few = amplification_panels(amplification_of(count=2), names)  # two batches have no interval
    assert not [t for t in few.legends[0].get_texts() if "over batches" in t.get_text()]
    few.canvas.draw()


def test_landscapes_have_four_columns_a_page() -> None:
    certificate = Certificate("H", "float32", -1.0, 0.0, 0.0, False, None)
    views = tuple(
        View(
            label=f"class {c}", name="", classes=(c,), count=1, low=certificate, high=certificate,
            along_low=slice_of(), along_high=slice_of(),
        )
        for c in range(5)
    )  # fmt: skip
    about = {"checkpoint": {"file": "x.pt"}, "data": {}, "settings": {}, "versions": {}}
    names = ("class 8 λmin", "class 8 λmax", "random")
    held = Landscape(**about, device="cpu", views=views, amplification=amplification_of(),
                     directions=names)  # fmt: skip
    pages = landscape_pages(held)
    columns = [len(page.axes) // 3 for page in pages["slices"]]
    assert columns == [4, 4, 2]
    assert max(page.get_figwidth() for part in pages.values() for page in part) <= 7
    assert [len(page.axes) for page in pages["amplification"]] == [4]


def test_a_radius_without_a_part_is_left_out_of_its_panel() -> None:
    sweep = {0.1: {"overall": (70.0, None)}, 0.5: {"overall": (75.0, None), "tail": (60.0, 1.0)}}
    parts = {"All": "overall", "Head": "head", "Tail": "tail"}
    figure = radius_panels({"ours": sweep}, sweep, parts)
    drawn = [[len(line.get_xdata()) for line in ax.lines] for ax in figure.axes]
    assert drawn == [[2, 2], [], [1, 1]]
    paper, ours = figure.axes[0].lines
    assert paper.get_markersize() > ours.get_markersize()  # where they meet, both are seen


def test_whiskers_are_named_and_no_accuracy_axis_leaves_the_percents() -> None:
    lone = {0.1: {"overall": (2.0, None)}, 0.5: {"overall": (96.0, None)}}
    seeds = lone | {0.5: {"overall": (96.0, 3.0)}}
    for sweep, told in ((lone, False), (seeds, True)):
        figures = [radius_panels({"ours": sweep}, {}, {"All": "overall"})]
        values = [value["overall"] for value in sweep.values()]
        figures.append(class_panels({"title": {"ours": values}}, ["a", "b"], {}))
        for figure in figures:
            words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
            assert words == ["ours", *["± s.d. over seeds"] * told]
        low, high = figures[0].axes[0].get_ylim()
        assert 0 <= low < high <= 100


def test_analyses_that_differ_in_samples_alone_are_told_apart() -> None:
    run = Tridiagonal(np.array([1.0, 0, 0]), np.array([0.5, 0.25]), 0.1, None, False, 9)
    few, many, nine = (
        ("run", analysis_of(spectrum_of(c, count=n, runs=(run,), lambda_max=1.0)))
        for c, n in ((8, 83), (8, 500), (9, 50))
    )
    figure = recurrence_panels([few, many, nine])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["run, class 8"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["exact, 83 samples", "exact, 500 samples", "constant T: 1/2"]
    alone = recurrence_panels([few, nine]).legends[0].get_texts()
    assert [text.get_text() for text in alone] == ["exact", "constant T: 1/2"]


def test_a_long_name_of_a_run_is_broken_into_lines_above_its_panel() -> None:
    run = Tridiagonal(np.array([1.0, 0, 0]), np.array([0.5, 0.25]), 0.1, None, False, 9)
    analysis = analysis_of(spectrum_of(8, runs=(run,), lambda_max=1.0))
    names = [f"seed {k} of a run with a long name, 200 epochs, and no word shorter" for k in "ab"]
    figure = recurrence_panels([(name, analysis) for name in names])
    figure.canvas.draw()
    titles = [ax._left_title for ax in figure.axes]
    shown = [title.get_text().replace("\n", " ") for title in titles]
    assert shown == [f"{name}, class 8" for name in names]
    boxes = [text.get_window_extent() for text in (*figure.legends[0].get_texts(), *titles)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_many_analyses_of_one_class_have_looks_of_their_own() -> None:
    run = Tridiagonal(np.array([1.0, 0, 0]), np.array([0.5, 0.25]), 0.1, None, False, 9)
    spectrum = spectrum_of(8, runs=(run,), lambda_max=1.0)
    settings = [
        {"augment": augment, "split": split, "loss": loss}
        for augment in ("none", "resample", "frozen:2", "frozen:4")
        for split in ("train", "test")
        for loss in ("ce", "trained")
    ]
    analyses = [
        ("run", dataclasses.replace(analysis_of(spectrum), settings=each)) for each in settings
    ]
    (ax,) = recurrence_panels(analyses).axes
    lines = [line for line in ax.lines if line.get_xdata()[-1] == 3]
    assert len(lines) == len(settings) == 16
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 16


def test_a_png_is_small_and_looks_the_same(tmp_path: Path) -> None:
    from PIL import Image

    (figure,) = density_grid(analysis_of(spectrum_of(8)))
    png, _ = save([figure], tmp_path)
    figure.savefig(tmp_path / "full.png")
    with Image.open(png) as few, Image.open(tmp_path / "full.png") as full:
        assert (few.size, few.info["dpi"]) == (full.size, full.info["dpi"])
        small, whole = (np.asarray(image.convert("RGB"), int) for image in (few, full))
    apart = (small - whole).reshape(-1, 3)
    assert png.stat().st_size < 0.6 * (tmp_path / "full.png").stat().st_size
    assert np.sqrt((apart**2).mean()) < 2  # of 255
    assert np.abs(apart).max() < 32
    _, colour, counts = np.unique(
        whole.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    frequent = np.isin(colour.ravel(), np.argsort(-counts)[:40])
    assert not apart[frequent].any()  # backgrounds, areas and lines
