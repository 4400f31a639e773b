"""The notebooks run from top to bottom on the digits, and what they show is what is stored.

Their cells run in this process, without a kernel: no cell may need one.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

from spectra import Analysis, Plan, SpectraError, analyze, load_checkpoint, open_data
from spectra.budgets import BUDGETS, Budget, beside, table
from spectra.landscape import Survey

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHOICE = re.compile(r'^budget = "(\w+)"', flags=re.MULTILINE)
TINY = Plan(classes=(8, 9), steps=3, max_samples=4)


def cells(path: Path) -> list[str]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in document["cells"] if c["cell_type"] == "code"]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the checkpoints and nothing computed, and Jupyter started in a folder below."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("SPECTRA_DATA", raising=False)
    return tmp_path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "quick", replace(BUDGETS["quick"], plan=TINY))


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick budget with fewer steps, images and points: its own take a minute a notebook."""
    quick, few = BUDGETS["quick"], {"steps": 6, "max_samples": 12}
    less = replace(
        quick,
        plan=replace(quick.plan, probes=2, **few),
        released=quick.released | {"steps": 8},
        around=replace(quick.around, **few),
        survey=Survey(points=4, surface=3, amplification=4, minibatch=8, controls=2),
        kept=(2, 3, 4),
    )
    monkeypatch.setitem(BUDGETS, "quick", less)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_on_the_digits(path: Path, clone: Path, fewer: None) -> None:
    source = "\n".join(cells(path))
    assert len(CHOICE.findall(source)) == 1
    code = compile(CHOICE.sub('budget = "quick"', source), path.name, "exec")
    with matplotlib.rc_context():
        exec(code, {"__name__": "__main__"})
    pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_whole_at_full_budget_and_small(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert CHOICE.findall("\n".join(cells(path))) == ["full"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 1e6
    assert not re.search(r"(?<![\w.:/])/(work|home|Users|root|tmp|opt)/", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_plain_python_in_short_cells(path: Path) -> None:
    for source in cells(path):
        compile(source, path.name, "exec")  # no magics
        assert len(source.splitlines()) <= 12, source


def test_what_is_stored_is_shown_without_a_product(
    clone: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(clone / "checkpoints/digits-lt-ce-drw-sgd.pt")
    train = open_data(checkpoint.data)
    stored = analyze(checkpoint, TINY, train=train, folder=clone / "reports/anywhere")
    monkeypatch.setattr("spectra.budgets.budget.analyze", None)
    shown = Budget("quick").analysis("sgd")
    assert shown.to_dict()["spectra"] == stored.to_dict()["spectra"]
    assert "class 8, class 9 stored in reports/anywhere" in capsys.readouterr().out


def test_of_results_that_fit_the_one_with_most_probes_is_shown(
    clone: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(clone / "checkpoints/digits-lt-ce-drw-sgd.pt")
    train = open_data(checkpoint.data)
    for name, probes in (("a", 1), ("b", 3), ("c", 2)):
        plan = replace(TINY, classes=(9,), probes=probes)
        analyze(checkpoint, plan, train=train, folder=clone / "reports" / name)
    monkeypatch.setattr("spectra.budgets.budget.analyze", None)
    study = Budget("quick")
    assert [s.probes for s in study.analysis("sgd", classes=(9,)).spectra] == [3]
    assert [s.probes for s in study.analysis("sgd", classes=(9,), probes=2).spectra] == [3]
    with pytest.raises(TypeError):  # four are not stored, and nothing can be computed here
        study.analysis("sgd", classes=(9,), probes=4)


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 1}, {"steps": 2}, {"dtype": "float64"}, {"loss": "trained"}),
        *({"augment": "frozen:2"}, {"until_converged": 1e-3}, {"split": "test"}),
        *({"protocol": "released", "augment": "none"}, {"parameters": "linear.*"}),
    ],
    ids=str,
)
def test_results_of_other_settings_are_not_shown(
    change: dict, clone: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(clone / "checkpoints/digits-lt-ce-drw-sgd.pt")
    train = open_data(checkpoint.data)
    plan, other = replace(TINY, **change), clone / "reports/other"
    analyze(checkpoint, plan, train=train, test=train, folder=other)  # of the same draw
    Budget("quick").analysis("sgd")
    assert "computing class 8, class 9" in capsys.readouterr().out


def test_results_of_another_normalisation_are_not_shown(
    clone: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(clone / "checkpoints/digits-lt-ce-drw-sgd.pt")
    train = open_data(checkpoint.data).normalised_by((0,), (1,))
    analyze(checkpoint, TINY, train=train, folder=clone / "reports/other")
    Budget("quick").analysis("sgd")
    assert "computing class 8, class 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stored", "computed"),
    [(None, "class 8"), (5, "class 8, class 9"), (6, "class 8"), (8, None), (9, "class 8")],
)
def test_a_class_below_the_limit_is_the_same_under_any_limit(
    stored: int | None, computed: str | None, clone: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Classes 8 and 9 have 9 and 6 samples: at most 8 is a draw from the first alone."""
    plan = replace(TINY, max_samples=8)
    monkeypatch.setitem(BUDGETS, "quick", replace(BUDGETS["quick"], plan=plan))
    checkpoint = load_checkpoint(clone / "checkpoints/digits-lt-ce-drw-sgd.pt")
    train, other = open_data(checkpoint.data), replace(plan, max_samples=stored)
    analyze(checkpoint, other, train=train, folder=clone / "reports/other")
    found = Budget("quick").analysis("sgd")
    told = capsys.readouterr().out
    assert (f"computing {computed}" in told) if computed else ("computing" not in told)
    assert [s.count for s in found.spectra] == [8, 6]


@pytest.mark.parametrize("key", ["checkpoint", "draw"])
def test_results_of_other_weights_or_another_draw_are_not_shown(
    key: str, clone: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Budget("quick").analysis("sgd")
    (path,) = clone.glob("reports/notebooks/*/esd.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    where = ("checkpoint", "sha256") if key == "checkpoint" else ("data", "draw_sha256")
    document[where[0]][where[1]] = "0" * 64
    path.rename(path.with_name("elsewhere.json"))
    other = clone / "reports" / "other"
    other.mkdir()
    (other / "esd.json").write_text(json.dumps(document), encoding="utf-8")
    capsys.readouterr()
    Budget("quick").analysis("sgd")
    assert "computing class 8, class 9" in capsys.readouterr().out


def test_only_what_is_missing_is_computed_and_then_found_again(
    clone: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Budget("quick").analysis("sgd", classes=(8,))
    capsys.readouterr()
    both = Budget("quick").analysis("sgd")
    told = capsys.readouterr().out
    assert "class 8 stored in reports/notebooks/" in told
    assert "computing class 9" in told
    assert both.labels == ("class 8", "class 9")
    Budget("quick").analysis("sgd")
    assert "computing" not in capsys.readouterr().out


def test_places_without_checkpoint_or_images_stay_empty_and_say_so(clone: Path) -> None:
    full = Budget("full").analysis("sgd")
    assert full.labels == ("overall", "class 0", "class 8", "class 9")
    assert all(s.error is not None and s.lambda_min is None for s in full.spectra)
    assert "not computed yet" in table(full)._repr_markdown_()
    trajectory = Budget("full").trajectory("sgd")
    assert [run.epochs for run in trajectory.runs] == [()]


def test_the_committed_results_are_the_ones_of_the_committed_checkpoint(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / "reports").symlink_to(ROOT / "reports")
    for protocol in ("exact", "released"):
        found = Budget("full").analysis("sgd", protocol=protocol)
        stored = Analysis.load(ROOT / "reports/cifar10-lt-ce-drw-sgd" / protocol)
        for label in ("class 8", "class 9"):
            expected = pytest.approx(stored.get(label).lambda_min, rel=1e-4)  # other starts
            assert found.get(label).lambda_min == expected


def test_one_damaged_folder_is_left_out_with_a_line(
    clone: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(clone / "checkpoints/digits-lt-ce-drw-sgd.pt")
    train = open_data(checkpoint.data)
    for name in ("bad", "good"):
        analyze(checkpoint, TINY, train=train, folder=clone / "reports" / name)
    (clone / "reports/bad/esd.npz").write_bytes(b"PK")
    bad = clone / "reports/run"
    bad.mkdir()
    (bad / "trajectory.json").write_text("{}")
    assert Budget("quick").analysis("sgd").labels == ("class 8", "class 9")
    told = capsys.readouterr().out
    assert told.count("left out: ") == 1
    assert "stored in reports/good" in told
    assert Budget("full").analysis("sam", classes=(8,)).labels == ("overall", "class 8")
    assert not Budget("full").trajectory("sgd").runs[0].analyses
    assert "trajectory.json is truncated or no trajectory" in capsys.readouterr().out


def test_of_all_samples_and_some_the_figure_says_so() -> None:
    empty = {"checkpoint": {}, "data": {}, "device": "cpu", "versions": {}}
    whole, some = (Analysis(**empty, settings={"max_samples": n}) for n in (None, 500))
    assert beside(a=whole, b=some).settings["max_samples"] == "all and 500"
    assert beside(a=whole).settings["max_samples"] is None


def test_analyses_side_by_side_keep_their_numbers_and_name_both_settings(
    clone: Path, tiny: None
) -> None:
    one = Budget("quick").analysis("sgd")
    other = Budget("quick").analysis("sgd", seed=1)
    both = beside(first=one, second=other)
    assert both.labels == tuple(f"class {c}, {n}" for n in ("first", "second") for c in (8, 9))
    assert both.get("class 9, second").lambda_min == other.get("class 9").lambda_min
    assert both.settings["seed"] == "0 and 1"
    assert both.settings["steps"] == 3


def test_an_unknown_budget_is_refused() -> None:
    with pytest.raises(SpectraError, match="expected quick or full"):
        Budget("medium")
