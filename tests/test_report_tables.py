"""Tables in reports/ and the README are those of the stored results.

A table under a line ``    python -m spectra.compare …`` is compared row by row with what the
command makes; the README's ratios with the results that each row stands for.
"""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from spectra import Analysis, ClassSpectrum
from spectra.compare import main

ROOT = Path(__file__).resolve().parents[1]
COMMAND = re.compile(r"^ {4}python -m spectra\.compare (.+)$", flags=re.MULTILINE)
TABLES = [
    pytest.param(path, found, id=f"{path.relative_to(ROOT)}:{found.start()}")
    for path in sorted((ROOT / "reports").rglob("*.md"))
    for found in COMMAND.finditer(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("path", "found"), TABLES)
def test_a_table_in_a_report_is_what_its_command_prints(
    path: Path,
    found: re.Match[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(found.group(1))
    if "--out" in arguments:  # the table is the same without
        place = arguments.index("--out")
        del arguments[place : place + 2]
    assert main(arguments) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rest = path.read_text(encoding="utf-8")[found.end() :].splitlines()
    first = next(i for i, line in enumerate(rest) if line.startswith("|"))
    assert rest[first : first + len(printed)] == printed
    assert not rest[first + len(printed)].startswith("|")


SGD, SAM = "cifar10-lt-ce-drw-sgd", "cifar10-lt-ce-drw-sam"
HEADLINE = (  # the results in reports/ of each row of the README's first table
    *(f"{SGD}/exact", f"{SGD}/resample", f"{SGD}/released") * 2,  # classes 8 and 9
    *(f"{SAM}/exact", f"{SAM}/released-300") * 2,
    *(f"{SGD}/sizes/{name}" for name in ("exact", "released", "exact-83", "released-83")),
)
ASKED = {  # protocol and augmentation, by the name of an analysis there
    "exact": ("exact", "none"),
    "`--augment resample`": ("exact", "resample"),
    "`--protocol released`": ("released", "resample"),
    "`--protocol released --batch-size 32`": ("released", "resample"),
}
SECOND = {  # the runs in reports/ of each row of its second table, by its name
    "CE+DRW, SGD, three seeds": (SGD, f"{SGD}/seed-1", f"{SGD}/seed-2"),
    "CE+DRW, SAM, two seeds": (SAM, f"{SAM}/seed-1"),
    "LDAM+DRW, SGD": ("cifar10-lt-ldam-drw-sgd",),
    "VS, SGD": ("cifar10-lt-vs-sgd",),
    "CE without re-weighting, SGD": ("cifar10-lt-ce-sgd",),
    "CIFAR-100-LT, CE+DRW, SGD, five other classes": ("cifar100-lt-ce-drw-sgd",),
    "CIFAR-100-LT, CE+DRW, SAM, the same classes": ("cifar100-lt-ce-drw-sam",),
}


def readme_rows(head: str) -> list[list[str]]:
    """Give the cells of the README's table whose first line begins so, with plain minus signs."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(head)) + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def held(folder: str, label: str) -> tuple[Analysis, ClassSpectrum]:
    analysis = Analysis.load(ROOT / "reports" / folder)
    spectrum = analysis.get(label)
    assert spectrum is not None
    return analysis, spectrum


def like(shown: str, value: float | None) -> bool:
    """Tell whether a number is a value to all the decimals that it has."""
    return value is not None and shown == f"{value:.{len(shown.partition('.')[2])}f}"


def test_the_readmes_first_table_is_that_of_the_stored_results() -> None:
    network = ""
    rows = readme_rows("| Network, class | Analysis |")
    for (named, kind, low, high, ratio, quotient), folder in zip(rows, HEADLINE, strict=True):
        network = named or network
        step, label = re.findall(r"\w+", network)[:2]
        analysis, spectrum = held(folder, f"class {label}")
        settings, certificate = analysis.settings, spectrum.certificate
        assert analysis.checkpoint["file"] == f"cifar10-lt-ce-drw-{step.lower()}.pt"
        assert (settings["protocol"], settings["augment"]) == ASKED[kind]
        assert f"{spectrum.count:,}" in re.findall(r"[\d,]+", network)
        bold = re.match(r"\*\*(.+?)\*\*", ratio)
        assert (bold is None) == (kind == "`--augment resample`")
        assert like(bold[1] if bold else ratio, spectrum.nonconvexity), (network, kind)
        assert (low, high) == (f"{spectrum.lambda_min:.3g}", f"{spectrum.lambda_max:.3g}")
        theta, *proven = quotient.split(", ", 1)
        assert theta == f"{certificate['rayleigh_quotient']:+.3g}"
        assert spectrum.proven or not proven
        for bound in re.findall(r"λmin > (\S+)", quotient):  # rounded down
            assert float(bound) <= certificate["lower_bound_95"] < float(bound) + 1e-4


def test_the_readmes_second_table_is_that_of_the_stored_results() -> None:
    rows = readme_rows("| 200 epochs, ratio of class 8 (and 9) |")
    assert [name for name, *_ in rows] == list(SECOND)
    for name, *cells in rows:
        for cell, kind in zip(cells, ("exact", "released"), strict=True):
            folders = [f"{run}/{kind}" for run in SECOND[name]]
            if name.startswith("CIFAR-100"):
                analysis = Analysis.load(ROOT / "reports" / folders[0])
                ratios = [spectrum.nonconvexity for spectrum in analysis.spectra]
                low, high = cell.split(" to ")
                assert like(low, min(ratios)), (name, cell)
                assert like(high, max(ratios)), (name, cell)
                continue
            told = re.findall(r"\d\.\d+(?: to \d\.\d+)?", cell)
            stored = [
                held(folder, f"class {c}")[1].nonconvexity for c in (8, 9) for folder in folders
            ]
            for shown, value in zip(told, stored, strict=True):
                low, _, high = shown.partition(" to ")  # of further runs, too
                fits = float(low) <= value <= float(high) if high else like(low, value)
                assert fits, (name, cell)
