"""`python -m spectra.trajectory` from end to end: files, table, refusals, interruption."""

import csv
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spectra import Analysis, SpectraError, Trajectory, figures, terminal, trajectory
from spectra.results import CAVEAT
from tests.apart import Apart
from tests.made_up import train_digits

PAGES = [f"trajectory{k}.{kind}" for k in ("", "-2", "-3", "-4") for kind in ("png", "pdf")]
FILES = {"trajectory.csv", "trajectory.json", *PAGES}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each step on the digits, of which epochs 2 and 3 are kept."""
    folder = tmp_path_factory.mktemp("runs")
    for step in ("sgd", "sam"):
        train_digits(folder / step, f"digits-lt-ce-drw-{step}")
        (folder / step / "epoch-1.pt").unlink()
    return folder


class Result:
    """What one call of the command left behind."""

    def __init__(self, folder: Path, code: int, out: str, err: str) -> None:
        self.folder, self.code, self.out, self.err = folder, code, out, err

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "trajectory.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def files(self) -> dict[str, bytes]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}


Command = Callable[..., Result]


def name_pages(drawn: Sequence[Any], folder: Path, stem: str) -> list[Path]:
    """Stand in for `figures.save`, which takes a second and has tests of its own."""
    pages = [f"{stem}-{k + 1}" if k else stem for k in range(len(drawn))]
    paths = [folder / f"{page}.{kind}" for page in pages for kind in ("png", "pdf")]
    for path in paths:
        path.touch()
    return paths


@pytest.fixture
def command(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Call the command line in this process, on class 9 of one run unless told otherwise."""
    monkeypatch.setattr(figures, "save", name_pages)
    tiny = ["--steps", "3", "--max-samples", "4", "--device", "cpu"]

    def call(*flags: str, run_dirs: Sequence[Path] | None = None) -> Result:
        given = [str(path) for path in ([runs / "sgd"] if run_dirs is None else run_dirs)]
        given += [*tiny, "--out", str(tmp_path / "out"), *flags]
        code = trajectory.main(given)
        captured = capsys.readouterr()
        return Result(tmp_path / "out", code, captured.out, captured.err)

    return call


@pytest.fixture
def single(runs: Path, tmp_path: Path) -> Path:
    """A run that has kept one epoch."""
    (tmp_path / "single").mkdir()
    shutil.copy(runs / "sgd" / "last.pt", tmp_path / "single" / "last.pt")
    return tmp_path / "single"


def test_two_runs_give_a_table_files_and_panels_side_by_side(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without --out the results lie under the names of the runs."""
    monkeypatch.chdir(tmp_path)
    flags = ["--classes", "9", "--steps", "2", "--max-samples", "3"]
    assert trajectory.main([str(runs / "sgd"), str(runs / "sam"), *flags]) == 0
    captured = capsys.readouterr()
    folder = tmp_path / "reports" / "sgd+sam"
    results = Result(folder, 0, captured.out, captured.err)
    epochs = {f"{run}/epoch-{e}" for run in ("sgd", "sam") for e in (2, 3)}
    kept = {f"{epoch}/esd.{kind}" for epoch in epochs for kind in ("json", "npz")}
    assert set(results.files) == FILES | kept
    assert results.files["trajectory.png"].startswith(b"\x89PNG")
    assert results.files["trajectory.pdf"].startswith(b"%PDF")
    assert [(row["run"], row["epoch"], row["label"]) for row in results.rows] == [
        (run, epoch, "class 9") for run in ("sgd", "sam") for epoch in "23"
    ]
    assert all(word in captured.out for word in ("sgd: |λmin| / λmax", "sam: ", *FILES))
    assert "sam epoch-3 (2 of 2) class 9" in captured.err
    assert "100%" in captured.err
    drawn = figures.trajectory_panels(Trajectory.load(folder))
    assert [ax.get_title(loc="left") for ax in drawn.axes] == ["sgd", "sam"]
    for ax in drawn.axes:
        lines = {line.get_label(): line for line in ax.lines}
        assert set(lines) == {"class 9", "re-weighting"}
        assert set(lines["re-weighting"].get_xdata()) == {2}


def test_a_process_that_was_killed_is_resumed_by_another(
    runs: Path, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    given = ["--classes", "0,9", "--steps", "60", "--max-samples", "20"]
    called = [str(runs / "sgd"), *given, "--device", "cpu", "--out", str(folder)]
    process = Apart("spectra.trajectory", *called)
    deadline = time.monotonic() + 60
    while not (folder / "sgd" / "epoch-2" / "esd.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.told
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert process.poll() == -signal.SIGKILL
    finished = Analysis.load(folder / "sgd" / "epoch-2").finished
    assert finished[0] == "class 0"
    assert not (folder / "sgd" / "epoch-3" / "esd.json").exists()
    again = Apart("spectra.trajectory", *called, "--resume")
    out, err = again.communicate(timeout=60)
    assert again.poll() == 0, err
    assert "epoch-2 (1 of 2) class 0" not in err  # taken over
    assert "epoch-3 (2 of 2) class 9" in err
    assert all(word in out for word in ("sgd: |λmin| / λmax", *FILES))
    found, whole = Result(folder, 0, out, err), command(*given)
    assert set(found.files) == set(whole.files)
    assert len(found.rows) == 4
    for mine, theirs in zip(found.rows, whole.rows, strict=True):
        assert (mine["epoch"], mine["label"]) == (theirs["epoch"], theirs["label"])
        assert float(mine["lambda_max"]) == pytest.approx(float(theirs["lambda_max"]), rel=1e-3)


def test_quiet_prints_nothing(command: Command, single: Path) -> None:
    result = command("--classes", "9", "--quiet", run_dirs=[single])
    assert (result.code, result.out, result.err) == (0, "", "")
    assert set(result.files) >= FILES


@pytest.mark.parametrize(
    "flags", [("--augment", "resample"), ("--protocol", "released")], ids=lambda f: f[1]
)
def test_moving_operators_are_named_for_what_they_are_everywhere(
    flags: tuple[str, ...], command: Command, single: Path
) -> None:
    result = command("--classes", "9", *flags, run_dirs=[single])
    assert result.code == 0
    assert {row["caveat"] for row in result.rows} == {CAVEAT}
    assert {row["augment"] for row in result.rows} == {"resample"}
    assert CAVEAT in result.out
    (ax,) = figures.trajectory_panels(Trajectory.load(result.folder)).axes
    assert CAVEAT in [text.get_text() for text in ax.texts]


def test_bad_input_gets_one_line_exit_code_2_and_leaves_nothing(
    command: Command, runs: Path, single: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    mixed = shutil.copytree(runs / "sgd", tmp_path / "mixed")
    shutil.copy(runs / "sam" / "epoch-2.pt", mixed / "epoch-2.pt")
    cases: list[tuple[tuple[str, ...], list[Path], str]] = [
        ((), [tmp_path / "absent"], "no run folder"),
        ((), [single / "last.pt"], "spectra.esd"),
        ((), [tmp_path / "empty"], "--save-at"),
        ((), [mixed], "another run"),
        ((), [single, single], "different names"),
        (("--classes", "0,10"), [single], "0 to 9"),
        (("--published", "sgd"), [single], "--published none"),
        (("--published", "auto,sam"), [single], "one for all"),
        (("--arch", "resnet32"), [single], "missing"),
        (("--dataset", "mnist"), [single], "known: digits"),
        (("--steps", "0"), [single], "steps"),
        (("--augment", "sometimes"), [single], "resample"),
        (("--device", "warp"), [single], "--device cpu"),
    ]
    for flags, run_dirs, word in cases:
        result = command(*flags, run_dirs=run_dirs)
        told = f"{flags} {run_dirs}: {result.err}"
        assert result.code == 2, told
        assert result.err.count("\n") == 1, told
        assert result.err.startswith("python -m spectra.trajectory: "), told
        assert word in result.err, told
        assert result.out == "", told
        assert not result.folder.exists(), told


@pytest.mark.parametrize(
    "flags", [("--published", "ldam"), ("--classes", "a"), ("--step", "7"), ("--kernel", "paper")]
)
def test_usage_errors_end_with_exit_code_2_before_anything_is_opened(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        trajectory.main(["no-such-run", *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_gives_130_and_resume_gives_what_an_uninterrupted_run_gives(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P47: the second epoch is interrupted within its third probe."""
    flags = ("--classes", "9", "--probes", "3")
    whole = command(*flags, "--quiet").files
    shutil.rmtree(tmp_path / "out")
    tick, seen = terminal.Bar.tick, [0]

    def interrupt(self: terminal.Bar, label: str, products: int, work: int) -> None:
        seen[0] += ("epoch-3 " in label) * products
        if seen[0] > 12:
            raise KeyboardInterrupt
        tick(self, label, products, work)

    with monkeypatch.context() as patch:
        patch.setattr(terminal.Bar, "tick", interrupt)
        stopped = command(*flags)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert Trajectory.load(stopped.folder).runs[0].epochs == (2,)
    assert "sgd/epoch-3/esd.json" in stopped.files  # its finished probes
    assert not [name for name in stopped.files if "partial" in name]

    resumed = command(*flags, "--resume", "--quiet")
    assert resumed.code == 0
    assert resumed.files == whole
    with monkeypatch.context() as patch:  # anew: no table of the old run beside new epochs
        seen[0] = 0
        patch.setattr(terminal.Bar, "tick", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("--classes", "11").code == 2  # before any product: nothing goes
        assert (resumed.folder / "trajectory.json").exists()
        refused = command(*flags, "--seed", "2")  # before any product, too
        assert refused.code == 2
        assert "seed (0, now 2)" in refused.err
        assert (resumed.folder / "trajectory.json").exists()
        assert command(*flags, "--seed", "2", "--overwrite").code == 130
    assert not list(resumed.folder.glob("trajectory.*"))
    assert command(*flags, "--resume", "--quiet").files == whole
    other = command(*flags, "--resume", "--seed", "1", "--quiet")
    assert other.code == 2
    assert "seed (0, now 1)" in other.err
    assert resumed.files == whole  # untouched


def test_all_spectra_failing_is_an_error_even_when_quiet(
    command: Command, single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spectra import probing

    def fail(*_: object, **__: object) -> None:
        raise SpectraError("got NaN in batch 3, expected numbers")

    monkeypatch.setattr(probing, "examine", fail)
    result = command("--classes", "8,9", "--quiet", run_dirs=[single])
    assert result.code == 2
    assert "NaN in batch 3" in result.err
    assert [(row["lambda_min"], row["nonconvexity"]) for row in result.rows] == [("", "")] * 2
    assert all("NaN in batch 3" in row["error"] for row in result.rows)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(
    command: Command, single: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    result = command("--classes", "9", "--quiet", run_dirs=[single])
    assert result.code == 2
    assert "--out" in result.err
    assert (tmp_path / "out").read_text() == "a file where the folder should be"


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        trajectory.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for flag in ("classes", "protocol", "steps", "published", "out", "resume", "quiet"):
        assert re.search(rf"--{flag}(?![\w-])", printed), flag
    assert "130 interrupted" in printed
