"""`python -m spectra.report`: one page about stored results, which says what the files say."""

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spectra import Analysis, ClassSpectrum, Trajectory, esd, pages, report, trajectory
from spectra.results import CAVEAT
from spectra.writing import number, with_error
from tests.made_up import train_digits

SGD = "checkpoints/digits-lt-ce-drw-sgd.pt"
FEW = ("--max-samples", "60")
FILES = ("report.html", "report.md", "report.pdf", "report.png")


def analysed(folder: Path, repository: Path, *flags: str) -> Path:
    command = [str(repository / SGD), "--steps", "6", "--quiet", "--out", str(folder), *flags]
    assert esd.main(command) == 0
    return folder


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("report") / "exact"
    return analysed(folder, repository, "--overall", "--classes", "8,9", "--probes", "3", *FEW)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("report") / "released"
    return analysed(folder, repository, "--classes", "8", "--protocol", "released")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = train_digits(folder / "short")
    flags = ["--classes", "0,8", "--steps", "6", *FEW, "--quiet"]
    flags += ["--out", str(folder / "followed")]
    assert trajectory.main([str(run), *flags]) == 0
    return folder / "followed"


def page_of(folder: Path, out: Path) -> str:
    assert report.main([str(folder), "--out", str(out), "--quiet"]) == 0
    return (out / "report.md").read_text(encoding="utf-8")


def edited(folder: Path, copy: Path, **changes: Any) -> Path:
    """Copy results and change what the file says of its settings, data or versions."""
    shutil.copytree(folder, copy)
    document = json.loads((copy / "esd.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        section = next(s for s in ("settings", "data", "versions") if key in document[s])
        document[section][key] = value
    (copy / "esd.json").write_text(json.dumps(document), encoding="utf-8")
    return copy


def test_a_page_has_every_section_and_every_number_of_the_table(
    exact: Path, tmp_path: Path
) -> None:
    text = page_of(exact, tmp_path)
    headings = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    assert headings[0] == "Hessian spectra of digits-lt-ce-drw-sgd.pt, epoch 200"
    assert headings[1:5] == ["Densities", "What the doctor found", "Notes", "Methods"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert "](report.png)" in text
    for s in Analysis.load(exact).spectra:
        row = next(line for line in text.splitlines() if f"| {s.label} |" in line)
        assert number(s.lambda_min) in row
        assert number(s.lambda_max) in row
        assert f"**{s.label}**" in text


def test_the_pages_lie_beside_the_results_when_no_folder_is_named(
    exact: Path, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [shutil.copytree(f, tmp_path / f.name) for f in (exact, released)]
    assert report.main([str(folder) for folder in folders]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert sorted(listed) == sorted(str(folder / name) for folder in folders for name in FILES)
    assert all(Path(line).stat().st_size > 0 for line in listed)


def test_a_page_is_written_without_checkpoint_data_or_products(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a page spent a product")

    monkeypatch.setattr("spectra.krylov.operator.SymmetricOperator.__matmul__", refuse)
    monkeypatch.setattr("torch.nn.Module.__call__", refuse)
    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.chdir(tmp_path)  # nothing of the repository lies here
    assert "# Hessian spectra" in page_of(exact, tmp_path)


def test_the_methods_paragraph_says_what_the_file_says(exact: Path) -> None:
    analysis = Analysis.load(exact)
    text = pages.methods([analysis])
    dim = analysis.spectra[0].measure.dim
    for fact in (
        *(f"{dim:,} parameters", "epoch 200", analysis.checkpoint["sha256"][:12], "453 in all"),
        *(analysis.data["draw_sha256"][:12], analysis.data["pixels_sha256"][:12]),
        *("imbalance ratio 20", ", ".join(map(str, analysis.data["counts"])), "float32 (TF32 off)"),
        *(
            "6 steps from 3 random start vectors (seed 0",
            "class 8 (9 samples)",
            "augmentation none",
        ),
        *(analysis.settings["product"], analysis.device, f"torch {analysis.versions['torch']}"),
        *(
            "3 of 3 are fixed symmetric matrices",
            "bands are one standard error over the start vectors",
        ),
        f"{sum(s.proven for s in analysis.spectra)} of 3 spectra",
    ):
        assert fact in text, fact


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({"steps": 77, "seed": 5}, "77 steps from 3 random start vectors (seed 5", "seed 0, u"),
        ({"max_samples": 4}, "random subset of at most 4", "\0"),
        ({"augment": "frozen:3"}, "3 augmentation draw(s)", "No augmentation"),
        ({"tf32": True, "device": "cuda"}, "float32 (TF32 on)", "TF32 off"),
        ({"tf32": True, "device": "cpu"}, "float32 (TF32 off)", "TF32 on"),
        ({"dtype": "float64", "tf32": True, "device": "cuda"}, "float64 (TF32 off)", "TF32 on"),
        ({"batch_size": 7}, "in batches of at most 7 samples", "shared out"),
        ({"processes": 4}, "shared out among 4 processes, whose sums are added.", "of its own"),
        ({"processes": 4, "augment": "resample"}, "with augmentation draws of its own", "\0"),
        ({"until_converged": 1e-4}, "below 0.0001 of the larger modulus", "\0"),
        ({"loss": "trained"}, "the loss that the checkpoint was trained with", "cross-entropy"),
        (
            {"loss": "trained", "loss_function": {"name": "ce", "weights": [1.0] * 10}},
            "all samples together H = Σ wᵢ∇²ℓᵢ(θ) / Σ wᵢ",
            "\0",
        ),
        ({"loss": "trained", "loss_function": {"name": "mine"}}, "trained with (mine)", "wᵢ"),
        ({"mean": [0.25], "std": [0.5]}, "by the mean 0.25 and the standard deviation 0.5.", "\0"),
        ({"loss": "ce"}, "cross-entropy, without class weights", "wᵢ"),
        ({"basis": "none"}, "no basis kept", "two passes"),
        ({"product": "linearized"}, "by linearized", "reverse-over"),
        ({"product": "kept-graph"}, "passes in which nothing is kept have batches", "in batches"),
        ({"kernel": "paper"}, "of one width", "follows the eigenvalue"),
        ({"torch": "9.9"}, "torch 9.9", "torch 2"),
        ({"pixels_sha256": None}, "pixels unknown", "\0"),
        ({"spec": None, "counts": []}, "training split of digits (draw", "long-tailed"),
    ],
)
def test_the_paragraph_follows_the_file(
    changes: dict[str, Any], said: str, unsaid: str, exact: Path, tmp_path: Path
) -> None:
    text = pages.methods([Analysis.load(edited(exact, tmp_path / "edited", **changes))])
    assert said in text
    assert unsaid not in text


def test_the_paragraph_tells_what_is_missing_and_claims_nothing_of_it(exact: Path) -> None:
    """Failed and unfinished spectra, fewer probes than asked for, and no spectrum at all."""
    held = Analysis.load(exact)
    first, second, third = held.spectra
    assert "It made" not in pages.methods([held])
    failed = replace(first, error="why", measure=None, runs=(), probes=0, doctor={}, certificate={})
    nodes, weights = (getattr(second.measure, name)[:1] for name in ("nodes", "weights"))
    begun = replace(
        second,
        complete=False,
        probes=1,
        runs=second.runs[:1],
        measure=replace(second.measure, nodes=nodes, weights=weights),
        doctor={},
        certificate={},
    )
    changed = replace(held, spectra=(failed, begun))
    text = pages.methods([changed])
    assert f"The analysis failed for {first.label}." in text
    assert f"test: {second.label} (1 of 3 start vectors)." in text
    assert "bands are" not in text
    assert "repeatedly" not in text  # no doctor has reported
    assert third.label not in text
    none = pages.methods([replace(held, spectra=(failed,))])
    for claim in ("Lanczos", "products are computed", "recomputed", "Spectra are of"):
        assert claim not in none
    assert f"failed for {first.label}" in none


def test_steps_that_were_not_made_are_not_claimed(exact: Path) -> None:
    held = Analysis.load(exact)
    asked = replace(held, settings={**held.settings, "steps": 100})
    assert "It made 6 steps from each." in pages.methods([asked])
    whole = [
        replace(s, runs=tuple(replace(r, exhausted=True) for r in s.runs)) for s in held.spectra
    ]
    text = pages.methods([replace(asked, spectra=tuple(whole))])
    assert "It made 6 steps from each, to the end of the Krylov space." in text


def test_a_released_analysis_is_called_what_it_is(released: Path, tmp_path: Path) -> None:
    text = page_of(released, tmp_path)
    (spectrum,) = Analysis.load(released).spectra
    assert f"**{CAVEAT.capitalize()}**: class 8" in text
    assert "no fixed matrix: a product repeated with the same vector" in text
    assert "because the augmentation is drawn again in every product" in text
    assert "calls most negative (λmin = " in text
    assert number(spectrum.certificate["rayleigh_quotient"]) in text
    assert "0 of 1 are fixed symmetric matrices" in text
    assert "entries ±1; one pass of Gram–Schmidt" in text
    assert "https://arxiv.org/abs/2212.13827" in text


def test_findings_tell_proof_from_no_proof_and_failure_from_both(exact: Path) -> None:
    spectrum = Analysis.load(exact).spectra[0]
    assert spectrum.proven
    told = pages.findings(spectrum).replace("−", "-")
    least, above = re.search(
        r"curvature is proven: λmin ≤ (\S+) \(yᵀHy = -.*λmin > (\S+)\.$", told
    ).groups()
    certificate = spectrum.certificate
    proven = certificate["rayleigh_quotient"] + certificate["noise_floor"]
    assert proven <= float(least) <= 0.99999 * proven
    assert 1.00001 * certificate["lower_bound_95"] <= float(above) <= certificate["lower_bound_95"]
    unsure = dict(spectrum.certificate) | {"negative_curvature": False}
    assert "is not proven: yᵀHy" in pages.findings(replace(spectrum, certificate=unsure))
    assert "There is no certificate" in pages.findings(replace(spectrum, certificate={}))
    assert "not finished" in pages.findings(replace(spectrum, doctor={}, complete=False))
    assert "have not converged" in pages.findings(replace(spectrum, converged=False))
    assert pages.findings(replace(spectrum, error="NaN weights")) == "No numbers: NaN weights."


def test_a_class_that_failed_is_on_the_page(exact: Path, tmp_path: Path) -> None:
    held = Analysis.load(exact)
    failed = ClassSpectrum(label="class 3", name="3", classes=(3,), count=4, share=0.1, error="why")
    held.with_spectrum(failed).save(tmp_path / "held")
    text = page_of(tmp_path / "held", tmp_path)
    assert "**class 3**: No numbers: why." in text
    assert "class 3 (4 samples)" not in text  # it has no spectrum


def test_the_html_needs_no_other_file_and_runs_nothing(exact: Path, tmp_path: Path) -> None:
    held = Analysis.load(exact)
    sly = replace(held.spectra[1], name="<script>alert(1)</script>|x")
    held.with_spectrum(sly).save(tmp_path / "held")
    page_of(tmp_path / "held", tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'src="([^"]{22})', text) == ["data:image/png;base64,"]
    assert "<script" not in text
    assert text.count("<table>") == 2
    assert text.count("<tr>") >= len(held.spectra) + 1


@pytest.mark.parametrize(
    "name",
    [
        *("__bg__ *b*", "a\\|b`c`", "![x](a.png)", "[l](b)&amp;", "two\nrows | x", "back\\"),
        *("<b>", "~~s~~", "# h", "- i", "1. i", "a_b_c"),
    ],
)
def test_names_and_messages_are_shown_letter_by_letter(
    name: str, exact: Path, tmp_path: Path
) -> None:
    """Whatever a folder of images is called: no markup, no cell, row or line of its own."""
    held = Analysis.load(exact)
    failed = ClassSpectrum(label="class 3", name=name, count=4, share=0.1, error=f"{name} is bad.")
    odd = replace(
        held.with_spectrum(replace(held.spectra[1], name=name)).with_spectrum(failed),
        checkpoint={**held.checkpoint, "file": name},
        notes=(name,),
    )
    text = pages.markdown(odd)
    page = pages.to_html(text, tmp_path)
    body = page.partition("<body>")[2]
    shown = " ".join(name.split())

    def texts(tag: str) -> list[str]:
        found = re.findall(f"<{tag}(?: [^>]*)?>(.*?)</{tag}>", body, flags=re.DOTALL)
        return [html.unescape(re.sub("<[^>]*>", "", piece)).strip() for piece in found]

    assert not re.search("<(em|img|s|ol|hr|h3|b)[ >]", body)
    assert body.count("<a ") == text.count("<https://")
    assert texts("h1") == [f"Hessian spectra of {shown}, epoch 200"]
    assert html.unescape(re.findall("<title>(.*)</title>", page)[0]) == texts("h1")[0]
    table = re.findall("<tr>.*?</tr>", body.partition("</table>")[0], flags=re.DOTALL)
    assert {row.count("<td") + row.count("<th") for row in table} == {14}
    assert texts("td")[14 + 2] == shown
    assert {shown, f"class 3: No numbers: {shown} is bad.", f"✗ class 3: {shown} is bad."} <= set(
        texts("li")
    )
    assert f"{held.spectra[1].label} ({shown}, " in " ".join(texts("p"))


def test_pages_of_an_earlier_figure_do_not_stay(exact: Path, tmp_path: Path) -> None:
    for old in ("report-2.png", "report-2.pdf", "report-talk.pdf"):
        (tmp_path / old).touch()
    page_of(exact, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "report-talk.pdf"])


def test_an_operator_that_moved_by_itself_is_warned_of(exact: Path) -> None:
    """A random layer: nobody asked for another matrix in every product."""
    held = Analysis.load(exact)
    moved = replace(held.spectra[1], doctor={**held.spectra[1].doctor, "fixed_operator": False})
    warning = f"> **{CAVEAT.capitalize()}**: {moved.label}. "
    assert warning in pages.markdown(held.with_spectrum(moved))
    assert warning not in pages.markdown(held)


def test_two_equal_calls_write_equal_pages(exact: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        page_of(exact, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_trajectory_gets_a_page_with_every_epoch(followed: Path, tmp_path: Path) -> None:
    text = page_of(followed, tmp_path)
    for label in ("class 0", "class 8"):
        rows = [line for line in text.splitlines() if f"| {label} |" in line]
        assert [row.split(" | ")[0].strip("| ") for row in rows] == ["1", "2", "3"]
        assert f"**short, {label}**: The operator was one fixed symmetric matrix" in text
    held = Trajectory.load(followed).runs[0].of("class 8")[-1][1]
    assert f"| {number(held.residual_min, 1)} {number(held.residual_max, 1)} |" in rows[-1]
    assert f"| {with_error(held.trace, held.trace_stderr)} |" in rows[-1]
    assert "at epochs 1, 2 and 3 (3 checkpoints)" in text
    assert "trained by the recipe digits-lt-ce-drw-sgd" in text
    assert "published" not in text.lower()  # nothing was published of three epochs on digits
    assert "re-weighting" not in text


def test_the_words_about_a_run_leave_no_epoch_out(followed: Path) -> None:
    held = Trajectory.load(followed)
    (run,) = held.runs
    first = run.analyses[0]
    failed = replace(first.spectra[0], error="why", doctor={}, certificate={})
    changed = replace(run, analyses=(first.with_spectrum(failed), *run.analyses[1:]))
    told = pages.markdown(replace(held, runs=(changed, replace(run, name="the_other_"))))
    assert "fixed symmetric matrix at all 2 epochs that have numbers" in told
    assert "There are no numbers at epoch 1." in told
    assert "The analysis failed for class 0 at epoch 1." in told
    for name in ("short", r"the_other\_"):  # whose paragraph it is
        assert f"**{name}.** We analyse" in told


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: None, "no such folder"),
        (lambda f: f.mkdir(), "a folder without results"),
        (lambda f: (f.mkdir(), (f / "last.pt").touch()), "which is of a training"),
        (lambda f: (f.mkdir(), (f / "esd.json").write_text("{")), "truncated or no JSON"),
        (lambda f: (f.mkdir(), (f / "trajectory.json").write_text("[]")), "no trajectory"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    make: Any, says: str, exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = shutil.copytree(exact, tmp_path / "good"), tmp_path / "bad"
    make(bad)
    before = sorted(tmp_path.rglob("*"))
    assert report.main([str(good), str(bad)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_results_without_their_arrays_are_refused(
    exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exact, tmp_path / "held")
    (folder / "esd.npz").unlink()
    assert report.main([str(folder)]) == 2
    assert "esd.npz cannot be read" in capsys.readouterr().err
    assert not (folder / "report.md").exists()


def test_one_folder_for_two_pages_is_refused(
    exact: Path, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(exact), str(released), "--out", str(tmp_path)]) == 2
    assert "replace each other" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
