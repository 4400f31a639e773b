"""Accuracies of runs: what is read, what counts once, what fills a cell of the paper's tables."""

import csv
import json
import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spectra import accuracy
from spectra.checkpoint import load_checkpoint, save_checkpoint
from spectra.errors import SpectraError
from spectra.figures import class_panels, radius_panels
from spectra.training import ENTRIES, Recipe, find_recipe, published
from spectra.training.accuracies import Accuracies, named, read
from spectra.training.accuracy_curves import (
    beside_published,
    head_mid_tail,
    published_radii,
    radii,
    sgd_beside_sam,
)
from spectra.training.accuracy_tables import (
    further_table,
    large_table,
    main_table,
    notes,
    optimiser_table,
    other_table,
    radius_table,
)
from spectra.training.published import PARTS, Row
from spectra.training.table import method_name

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "checkpoints" / "digits-lt-ce-drw-sgd.pt"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Give a writer of run folders, as the trainer leaves them."""

    def folder(
        name: str, accuracy: float = 0.75, *, at: str = "", summary: bool = True, **changes: Any
    ) -> Path:
        recipe = replace(find_recipe(name), **changes)
        place = tmp_path / (at or f"{name}-{len(list(tmp_path.iterdir()))}")
        place.mkdir(parents=True)
        classes = [min(1.0, accuracy + 0.01 * k) for k in range(10)]
        columns = ["epoch", "lr", "test_accuracy", "head", "mid", "tail"]
        with open(place / "metrics.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([*columns, *(f"class {c}" for c in range(10))])
            for epoch in range(1, recipe.epochs + 1):
                scores = [accuracy, accuracy + 0.1, accuracy, accuracy - 0.1, *classes]
                table.writerow([epoch, recipe.lr_of(epoch), *scores])
        if summary:
            text = json.dumps({"recipe": recipe.to_dict()})
            (place / "run.json").write_text(text, encoding="utf-8")
        return place

    return folder


def rows_of(table: Any) -> dict[str, tuple[str, ...]]:
    return {row[0]: row for row in table.rows}


def test_a_checkpoint_and_the_folder_of_its_run_count_once(tmp_path: Path) -> None:
    """The committed run and its metrics.csv agree in every number, and are one run."""
    name = "cifar10-lt-ce-drw-sgd"
    paths = [ROOT / "reports/training" / name, ROOT / f"checkpoints/{name}.pt"]
    found = read(paths, root=ROOT)
    (run,) = found.runs
    assert run.recorded
    assert run.sources == (f"checkpoints/{name}.pt", f"reports/training/{name}")
    (alone,) = read(paths[:1], root=ROOT).runs
    for part in PARTS:
        assert run.parts[part] == pytest.approx(alone.parts[part], abs=1e-9)
    assert found.names("cifar10")[8] == "ship"
    assert run.parts["overall"] == 100 * load_checkpoint(paths[1]).metrics["test_accuracy"]


def test_seeds_are_averaged_and_a_seed_counts_once(write: Write) -> None:
    values = (0.70, 0.72, 0.77)
    folders = [write("cifar10-lt-ce-sgd", v, seed=s) for s, v in enumerate(values)]
    found = read([*folders, write("cifar10-lt-ce-sgd", 0.5, seed=1)])
    (group,) = found.groups("cifar10")
    score = group.of("overall")
    assert score.mean == pytest.approx(100 * statistics.mean(values))
    assert score.std == pytest.approx(100 * statistics.stdev(values))
    assert group.seeds == "3 seeds, float32"
    assert "seed 1" in found.notes[0]
    assert "the first counts" in found.notes[0]
    assert rows_of(main_table(found, "cifar10"))["CE"][1] == "73.0 ± 3.6"


def test_a_single_seed_has_no_deviation(write: Write) -> None:
    found = read([write("cifar10-lt-ce-sgd", 0.70, seed=4)])
    row = rows_of(main_table(found, "cifar10"))["CE"]
    assert row[1:5] == ("70.0", "80.0", "70.0", "60.0")
    assert row[5:9] == ("71.7 ± 0.1", "90.8 ± 3.6", "71.9 ± 0.4", "52.3 ± 3.7")
    assert row[9:] == ("−1.7", "seed 4, float32")


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"epochs": 50}, "CE+DRW+SAM, 50 epochs"),
        ({"epochs": 50, "drops": (45, 48)}, "CE+DRW+SAM, 50 epochs, drops 45 and 48"),
        ({"batch_size": 64}, "CE+DRW+SAM, batch 64"),
        ({"rho": 0.3}, "CE+DRW+SAM, ρ 0.3"),
        ({"ratio": 50.0}, "CE+DRW+SAM, ratio 50"),
        ({"augment": False}, "CE+DRW+SAM, no augment"),
        ({"arch": "resnet20"}, "CE+DRW+SAM, arch resnet20"),
        ({"flip_test": True, "lr": 0.2}, "CE+DRW+SAM, lr 0.2, flip test"),
    ],
)
def test_another_protocol_never_fills_the_paper_s_cell(
    changes: dict[str, Any], label: str, write: Write
) -> None:
    found = read([write("cifar10-lt-ce-drw-sam", 0.9, **changes)])
    assert found.cell("cifar10", "CE+DRW+SAM") is None
    assert rows_of(main_table(found, "cifar10"))["CE+DRW+SAM"][1:5] == ("",) * 4
    (row,) = other_table(found, "cifar10").rows
    assert row[:2] == (label, "90.0")
    assert row[5] == ""  # published accuracies are of other protocols


def test_the_released_batch_norm_has_the_published_row_beside_it(write: Write) -> None:
    """In the released code both passes of SAM move the running statistics."""
    found = read([write("cifar10-lt-ce-drw-sam", 0.8, bn_both_passes=True)])
    (group,) = found.groups("cifar10")
    assert group.label == "CE+DRW+SAM, bn both passes"
    assert group.published.overall.mean == 80.6
    assert found.cell("cifar10", "CE+DRW+SAM") is None
    named_one = read([write("cifar10-lt-ce-drw-sam", 0.8)])
    assert any("both passes" in note for note in notes(named_one, "cifar10"))
    assert not any("both passes" in note for note in notes(found, "cifar10"))


def test_a_group_without_classes_has_no_accuracy(tmp_path: Path) -> None:
    held = load_checkpoint(DIGITS)
    metrics = {"test_accuracy": 0.7, "test_class_accuracy": [0.8, 0.6]}
    loss = replace(held.loss, class_counts=(30, 20), weights=None)
    path = tmp_path / "last.pt"
    save_checkpoint(
        path, held.model, model_spec=held.model_spec, data=None, loss=loss, recipe=held.recipe,
        epoch=held.epoch, metrics=metrics,
    )  # fmt: skip
    (run,) = read([path]).runs
    assert run.parts["head"] == pytest.approx(80)
    assert math.isnan(run.parts["tail"])


def test_float32_fills_a_cell_before_other_precisions_and_they_do_not_mix(write: Write) -> None:
    name = "cifar10-lt-ce-drw-sgd"
    half = [write(name, 0.8, seed=seed, precision="bf16") for seed in (0, 1)]
    alone = rows_of(main_table(read(half), "cifar10"))["CE+DRW"]
    assert alone[-1] == "2 seeds, bf16"
    assert "bf16" in " ".join(notes(read(half), "cifar10"))
    found = read([*half, write(name, 0.7)])
    assert rows_of(main_table(found, "cifar10"))["CE+DRW"][1] == "70.0"
    assert [row[0] for row in other_table(found, "cifar10").rows] == ["CE+DRW, bf16"]


def test_a_table_of_epochs_alone_fills_no_cell(write: Write) -> None:
    """It says neither batch nor seed; of a run that has not ended it says nothing at all."""
    name = "cifar10-lt-ce-sgd"
    found = read([write(name, at=name, summary=False), write(name, at="other", summary=False)])
    assert [group.label for group in found.groups("cifar10")] == ["CE, recipe not on file"]
    assert found.cell("cifar10", "CE") is None
    assert "other is not counted" in found.notes[0]
    short = write(name, at=f"{name}-50/0", summary=False, epochs=50)
    assert read([short]).groups("cifar10")[0].label == "CE, 50 epochs, recipe not on file"


def test_a_run_that_has_not_ended_is_no_result(write: Write) -> None:
    folder = write("cifar10-lt-ce-sgd")
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(lines[:176]) + "\n")
    found = read([folder])
    assert found.runs == ()
    assert "ends with epoch 175 of 200" in found.notes[0]


def test_every_published_run_is_named_as_in_the_paper() -> None:
    rows = ["CE", "CE+SAM", "CE+DRW", "CE+DRW+SAM", "LDAM+DRW", "LDAM+DRW+SAM", "VS", "VS+SAM"]
    for data in ("cifar10", "cifar100"):
        assert list(published.MAIN[data]) == rows
        for method in (*rows, "CE+DRW+PGD", "CE+DRW+LPF-SGD"):
            name = named(data, method)
            assert name is not None
            assert method_name(find_recipe(name)) == method
    assert [row[0] for row in main_table(Accuracies((), ()), "cifar10").rows] == rows


def test_published_values_are_the_goals_of_the_recipes(write: Write) -> None:
    """Whatever `spectra.train --list` prints for a data set of the digits' shape is found again."""
    goals = {n: e for n, e in ENTRIES.items() if e.recipe.dataset == "cifar10" and e.published}
    assert len(goals) == 8 + 2 + 4 + 2  # Tables 1 and 3, the radii, the ratios
    found = read([write(name) for name in goals])
    for group in found.groups("cifar10"):
        row, entry = group.published, goals[group.recipe.name]
        assert isinstance(row, Row)
        assert row.overall.mean == entry.published
    assert {row[1] for row in radius_table(found).rows} == {"75.0"}
    assert {row[1] for row in optimiser_table(found, "cifar10").rows} == {"75.0"}
    assert [row[3] for row in further_table(found).rows][:3] == ["75.0", "75.0", ""]


def test_another_paper_s_runs_are_told_by_their_network_and_keep_their_targets(
    write: Write,
) -> None:
    """CIFAR-100-LT has CE of two networks, and ImbSAM without re-weighting of one alone."""
    found = read([write(name) for name in ENTRIES if name.startswith("cifar100-lt-resnet34")])
    rows = rows_of(other_table(found, "cifar100"))
    assert {label: row[5] for label, row in rows.items()} == {
        "CE, resnet34c": "47.6",
        "CE+SAM, resnet34c": "48.9",
        "CE+ImbSAM, resnet34c": "51.1",
        "CE+SSE-SAM, resnet34c": "49.3",
    }
    told = "\n".join(notes(found, "cifar100"))
    assert "Published, where no other source is named: Rangwani et al." in told
    for source in (
        "CE+ImbSAM, resnet34c: ImbSAM; theirs",
        "CE+SSE-SAM, resnet34c: SSE-SAM; theirs",
    ):
        assert f"Published beside {source} is the best epoch" in told
    assert named("cifar100", "CE+ImbSAM") is None
    other = read([write("cifar100-lt-resnet34-ce-imbsam", arch="resnet32")])
    (row,) = other_table(other, "cifar100").rows
    assert (row[0], row[5]) == ("CE+ImbSAM, arch resnet32", "")
    assert "Published: Rangwani et al." in "\n".join(notes(other, "cifar100"))


def test_curves_pair_runs_of_one_network_alone(write: Write) -> None:
    names = ("cifar100-lt-ce-sgd", "cifar100-lt-resnet34-ce-sgd", "cifar100-lt-resnet34-ce-sam")
    found = read([write(name) for name in names])
    pairs = sgd_beside_sam(found, "cifar100", "CE")
    assert list(pairs) == ["CE: resnet34c, float32"]


def test_the_published_tables_have_their_numbers() -> None:
    """Sums over the columns as printed; head, mid and tail average to the whole."""
    sizes = {
        "cifar10": (3, 4, 3),
        "cifar100": (36, 35, 29),
        "imagenet-lt": (390, 445, 165),
        "inat2018": (842, 3701, 3599),
    }
    other_splits = {("inat2018", "DRO-LT"), ("imagenet-lt", "DRO-LT"), ("imagenet-lt", "DisAlign")}
    for data, weights in sizes.items():
        for name, row in published.MAIN[data].items():
            if (data, name) in other_splits:
                continue
            parts = [row.of(part) for part in PARTS[1:]]
            mean = sum(w * p.mean for w, p in zip(weights, parts, strict=True)) / sum(weights)
            assert mean == pytest.approx(row.overall.mean, abs=0.15), (data, name)
    sums = {"cifar10": (2.6, 5.9, 4.0, 8.5), "cifar100": (3.4, 5.0, 6.1, 5.4)}
    for data, expected in sums.items():
        held = published.MAIN[data].values()
        found = [sum(row.of(part).std for row in held) for part in PARTS]
        assert found == pytest.approx(expected)
    assert statistics.mean(published.CLASSWISE_CE) == pytest.approx(71.7, abs=0.1)
    table = rows_of(large_table(Accuracies((), ())))
    assert table["LDAM+DRW+SAM"][3:7] == ("70.1", "64.1", "70.5", "71.2")
    assert table["cRT"][1] == "yes"


def test_curves_hold_what_the_runs_hold_and_pair_only_one_protocol(write: Write) -> None:
    sgd, sam = "cifar10-lt-ce-drw-sgd", "cifar10-lt-ce-drw-sam"
    found = read([write(sgd), write(sam, 0.6, epochs=50), write(f"{sam}-rho0.1", 0.7)])
    assert next(iter(sgd_beside_sam(found, "cifar10").values())).keys() == {"SGD"}
    found = read([write(sgd, 0.5, epochs=50), write(sam, 0.6, epochs=50), write(sgd)])
    pairs = sgd_beside_sam(found, "cifar10")
    assert {title: list(curves) for title, curves in pairs.items()} == {
        "CE+DRW: 50 epochs, float32": ["SGD", "SAM"]
    }
    found = read([write(sam), write(f"{sam}-rho0.1", 0.7), write(sam, 0.6, epochs=50)])
    assert {label: sorted(c) for label, c in radii(found, "cifar10").items()} == {
        "ours, float32": [0.1, 0.5],
        "ours, 50 epochs, float32": [0.5],
    }


def test_the_figures_draw_every_run_and_the_published_ones_hollow(write: Write) -> None:
    runs = [write("cifar10-lt-ce-drw-sgd", v, seed=s) for s, v in enumerate((0.6, 0.7))]
    found = read([*runs, write("cifar10-lt-ce-drw-sam")])
    curves = {"left": beside_published(found, "cifar10")} | sgd_beside_sam(found, "cifar10")
    groups = head_mid_tail(found, "cifar10")
    assert groups == {"head": (0, 1, 2), "mid": (3, 4, 5, 6), "tail": (7, 8, 9)}
    left, right = class_panels(curves, found.names("cifar10"), groups).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines["CE, published"].get_ydata()) == list(published.CLASSWISE_CE)
    assert lines["CE, published"].get_markerfacecolor() == "white"
    assert lines["CE+DRW, ours"].get_ydata()[0] == pytest.approx(65)
    assert [line.get_label() for line in right.lines] == ["SGD", "SAM"]
    panels = radius_panels(radii(found, "cifar10"), published_radii("cifar10"), {"Tail": "tail"})
    paper, ours = panels.axes[0].lines
    assert list(paper.get_ydata()) == [62.8, 66.1, 70.1, 72.2, 72.9]
    assert list(ours.get_ydata()) == pytest.approx([65.0])


def test_the_command_writes_the_digits_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for step in ("sgd", "sam"):
        shutil.copy(DIGITS.with_name(f"digits-lt-ce-drw-{step}.pt"), tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    assert accuracy.main(["--dataset", "digits", "--out", "table.md"]) == 0
    text = Path("table.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == "table.md\n"
    for step, method in (("sgd", "CE+DRW"), ("sam", "CE+DRW+SAM")):
        metrics = load_checkpoint(Path(f"checkpoints/digits-lt-ce-drw-{step}.pt")).metrics
        assert f"| {method} | {100 * metrics['test_accuracy']:.1f} |" in text
    assert "| VS |  |  |  |  |" in text
    assert "`python -m spectra.accuracy --dataset digits --out table.md`" in text
    assert "`checkpoints/digits-lt-ce-drw-sam.pt`" in text
    assert str(tmp_path) not in text
    assert accuracy.main([str(tmp_path / "checkpoints"), "--dataset", "digits"]) == 0
    assert str(tmp_path) not in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["missing.pt", "empty", "broken", "unknown"])
def test_bad_input_is_one_line_and_exit_code_two(
    bad: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / bad
    if bad == "empty":
        path.mkdir()
    elif bad in ("broken", "unknown"):
        write("cifar10-lt-ce-sgd", at=bad, epochs=2)
        text = "{" if bad == "broken" else json.dumps({"recipe": {"invented": 1}})
        (path / "run.json").write_text(text, encoding="utf-8")
    out = tmp_path / "table.md"
    assert accuracy.main([str(path), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_without_a_run_anywhere_the_command_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert accuracy.main([]) == 2
    assert "checkpoints/*.pt" in capsys.readouterr().err


def test_another_file_is_no_table_of_epochs(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SpectraError, match=r"no metrics\.csv of spectra\.train"):
        read([tmp_path])


def test_a_shortened_run_of_a_large_set_is_told_by_its_length(write: Write) -> None:
    folder = write("imagenet-lt-ce-drw-sgd", epochs=50, drops=(33,))
    (group,) = read([folder]).groups("imagenet-lt")
    assert [field for field, _ in group.changes] == ["epochs"]


def test_a_run_after_its_first_epoch_is_a_note(write: Write) -> None:
    folder = write("digits-lt-ce-sgd", at="digits-lt-ce-drw-sgd", summary=False, epochs=1)
    found = read([folder])
    assert not found.runs
    assert "no run.json" in found.notes[0]


def test_a_recipe_that_no_run_can_have_is_a_note_and_stops_no_table(write: Write) -> None:
    good, strange = write("digits-lt-ce-sgd"), write("digits-lt-ce-sgd", at="strange")
    summary = json.loads((strange / "run.json").read_text(encoding="utf-8"))
    summary["recipe"]["step"] = "pgd"
    (strange / "run.json").write_text(json.dumps(summary), encoding="utf-8")
    found = read([good, strange])
    assert len(found.runs) == 1
    assert "none of this version: noise is 0.0" in found.notes[0]


def test_an_older_trainer_s_recipe_is_understood() -> None:
    held = ROOT / "checkpoints/cifar10-lt-ce-drw-sgd.pt"
    assert "drw" in (load_checkpoint(held).recipe or {})  # `weighting` today
    (run,) = read([held]).runs
    assert isinstance(run.recipe, Recipe)
    assert (run.recipe.weighting, run.recipe.drops) == ("deferred", (160, 180))
