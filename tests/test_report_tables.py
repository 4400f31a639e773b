"""Tables in reports/ are those that the command above them makes of the stored results.

A table under a line ``    python -m spectra.compare …`` is compared row by row.
"""

import re
import shlex
from pathlib import Path

import pytest

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
