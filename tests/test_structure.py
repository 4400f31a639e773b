"""The house as a whole: which room may know which, what an import costs, whether README runs."""

import ast
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import spectra
from tests.shapes import Marking

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spectra"
SOURCES = sorted(PACKAGE.rglob("*.py"))
README = ROOT / "README.md"

GROUND = {"errors", "krylov", "devices", "files"}
SHARED = GROUND | {"models", "data", "losses", "checkpoint"}
HALLWAY = SHARED | {"hessian", "doctor", "plan", "released", "results", "readings"}
# What each room may import; design.md: imports point one way.
MAY_IMPORT = {
    "errors": set(),
    "devices": {"errors"},
    "files": {"errors"},
    "choices": set(),
    "fingerprints": set(),
    "processes": {"errors"},
    "lines": {"processes"},
    "sharing": set(),
    "writing": set(),
    "progress": set(),
    "krylov": {"errors"},
    "networks": {"errors"},
    "models": {"errors", "networks"},
    "recognition": {"errors", "networks", "models"},
    "losses": {"errors", "devices", "fingerprints"},
    "data": {"errors", "devices", "files"},
    "data.__main__": {"errors", "command_line", "data"},
    "untrusted": {"errors"},
    "checkpoint": {"errors", "files", "fingerprints", "untrusted", "networks", "models", "data"}
    | {"losses", "recognition"},
    "hessian": {"choices", "errors", "devices", "networks", "krylov", "data", "losses"},
    "doctor": {"krylov", "hessian", "writing"},
    "landscape": {"errors", "files", "krylov", "hessian", "losses", "doctor", "networks"}
    | {"choices", "checkpoint", "data", "plan", "readings", "study", "gathering", "writing"}
    | {"devices", "progress", "resuming"},
    "landscape.__main__": {"spectra", "command_line", "opening", "plan_flags", "terminal"}
    | {"landscape", "figures"},
    "released": {"krylov"},
    "results": {"errors", "files", "krylov"},
    "plan": {"choices", "errors", "data", "hessian"},
    "readings": {"files", "krylov", "hessian", "doctor", "results"},
    "resuming": {"spectra", "errors", "devices", "files", "checkpoint", "data", "plan", "results"},
    "gathering": {"choices", "devices", "checkpoint", "data", "hessian", "krylov", "losses"}
    | {"errors", "lines", "plan", "processes", "sharing"},
    "remarks": {"checkpoint", "data", "gathering", "hessian", "networks", "plan"},
    "study": {"checkpoint", "data", "doctor", "errors", "gathering", "hessian", "krylov", "lines"}
    | {"plan", "processes", "progress", "remarks", "results", "resuming"},
    "probing": {"data", "doctor", "errors", "fingerprints", "gathering", "hessian", "krylov"}
    | {"plan", "processes", "progress", "readings", "released", "results", "study"},
    "together": {"errors", "lines", "plan", "processes", "progress", "results", "study"}
    | {"probing"},
    "analysis": {"errors", "files", "devices", "processes", "checkpoint", "data", "plan"}
    | {"progress", "remarks", "results", "resuming", "study", "together"},
    "trajectories": {"errors", "files", "krylov", "checkpoint", "data", "plan", "results"}
    | {"progress", "analysis", "processes", "resuming"},
    "tables": {"files", "results", "trajectories", "writing"},
    "comparisons": {"data", "krylov", "results", "tables", "trajectories", "writing"},
    "figures": {"errors", "files", "krylov", "results", "trajectories", "comparisons"}
    | {"landscape", "writing"},
    "pages": {"errors", "files", "results", "trajectories", "tables", "figures", "writing"},
    "training": {"errors", "files", "devices", "networks", "models", "data", "losses"}
    | {"checkpoint", "writing"},
    "command_line": {"errors", "processes"},
    "plan_flags": {"spectra", "choices", "command_line"},
    "opening": {"spectra", "command_line", "data", "errors", "gathering", "plan", "plan_flags"}
    | {"terminal"},
    "terminal": {"processes"},
    "esd": {"spectra", "files", "processes", "command_line", "opening", "plan_flags", "terminal"}
    | {"tables", "figures"},
    "trajectory": {"spectra", "processes", "command_line", "opening", "plan_flags", "terminal"}
    | {"trajectories", "tables", "figures"},
    "draws": {"errors", "checkpoint", "data", "krylov", "hessian", "doctor", "plan", "gathering"}
    | {"progress", "readings", "writing"},
    "draws.__main__": {"errors", "devices", "files", "command_line", "opening", "plan_flags"}
    | {"spectra", "plan", "draws", "resuming", "remarks", "terminal"},
    "compare": {"spectra", "errors", "files", "command_line", "comparisons", "figures"},
    "report": {"spectra", "errors", "command_line", "pages"},
    "accuracy": {"errors", "files", "command_line", "training"},
    "budgets": {"spectra", "errors", "terminal", "comparisons", "tables", "figures", "training"}
    | {"data", "trajectories", "landscape", "writing"},
    "train": {"errors", "devices", "command_line", "data", "checkpoint", "training", "figures"},
    "__main__.__main__": set(),
    "spectra": (HALLWAY - {"files", "devices", "readings", "released"})
    | {"analysis", "trajectories", "landscape"},
}


def room_of(path: Path) -> str:
    """Name the room of a file; the command line of a package is a room of its own."""
    parts = path.relative_to(PACKAGE).parts
    first = parts[0].removesuffix(".py")
    if parts[-1] == "__main__.py":
        return f"{first}.__main__"
    return "spectra" if first == "__init__" else first


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in it, as an absolute dotted name."""
    package = ("spectra", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*home, *([node.module] if node.module else [])))
            yield module
            if module == "spectra":  # `from spectra import tables` names a room, too
                yield from (f"spectra.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    names: set[str] = set()
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "spectra":
            names.add(parts[1] if len(parts) > 1 and parts[1] in rooms else "spectra")
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what it may know"
    surplus = rooms_imported(path) - MAY_IMPORT[room] - {room}
    assert not surplus, f"{room} imports {surplus}"


def test_the_map_of_rooms_permits_nothing_that_is_not_used() -> None:
    used: dict[str, set[str]] = {}
    for path in SOURCES:
        used.setdefault(room_of(path), set()).update(rooms_imported(path))
    assert {room: may - used[room] for room, may in MAY_IMPORT.items() if may - used[room]} == {}


def test_the_map_of_rooms_has_no_cycle_and_the_wings_do_not_meet() -> None:
    order: list[str] = []
    rest = {room: may - {"spectra"} for room, may in MAY_IMPORT.items() if room != "spectra"}
    while rest:
        free = [room for room, may in rest.items() if may <= set(order)]
        assert free, f"a cycle among {sorted(rest)}"
        order += free
        rest = {room: may for room, may in rest.items() if room not in free}
    analysis = {"krylov", "hessian", "doctor", "analysis", "study", "probing", "readings"}
    analysis |= {"released"}
    analysis |= {"trajectories", "landscape"}
    assert not MAY_IMPORT["training"] & analysis
    assert all("training" not in MAY_IMPORT[room] for room in analysis | SHARED)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "reports").rglob("*.py")), ids=lambda path: path.stem
)
def test_scripts_of_the_reports_find_what_they_import(path: Path) -> None:
    """They run for minutes on data that users lack; a name that is gone would wait until then."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spectra"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "spectra" or hasattr(spectra, node.attr), node.attr


def test_the_list_of_commands_names_every_one(capsys: pytest.CaptureFixture[str]) -> None:
    runnable = {p.stem for p in PACKAGE.glob("*.py") if '__name__ == "__main__"' in p.read_text()}
    runnable |= {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    runpy.run_module("spectra", run_name="__main__")
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert sorted(told) == sorted(f"spectra.{name}" for name in runnable - {"__main__"})


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("pandas", {"tables"}),
        ("matplotlib", {"figures"}),
        ("seaborn", set()),
        ("markdown_it", {"pages"}),
        ("pooch", {"data"}),
        ("pyarrow", {"data"}),
        ("PIL", {"data", "figures"}),
        ("sklearn", {"data"}),
        ("tqdm", {"terminal", "training"}),
    ],
)
def test_a_library_is_known_to_few_rooms(library: str, rooms: set[str]) -> None:
    knowing = {
        room_of(path)
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert knowing == rooms


def test_shapes_are_checked_while_the_tests_run() -> None:
    pytest.importorskip("beartype")
    from jaxtyping import TypeCheckError

    from spectra.krylov.trace import trace_estimate
    from spectra.landscape.slices import Slice
    from spectra.losses import LossSpec

    with pytest.raises(TypeCheckError):
        LossSpec().per_sample(torch.zeros(2, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(TypeCheckError):
        trace_estimate(np.ones((2, 2)), 4)
    with pytest.raises(TypeCheckError):
        Slice(*(np.ones((2, 2)) for _ in fields(Slice)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_whatever_names_a_shape_is_checked(path: Path) -> None:
    """A shape is a subscript that ends in a string, `Float[Tensor, "n c"]`, wherever it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def shaped(part: ast.AST) -> bool:
        found = [node for node in ast.walk(part) if isinstance(node, ast.Subscript)]
        found = [node for node in found if ast.unparse(node.value) != "Literal"]
        ends = [node.slice.elts[-1] for node in found if isinstance(node.slice, ast.Tuple)]
        return any(isinstance(e, ast.Constant) and isinstance(e.value, str) for e in ends)

    expected = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
            parts = [a.annotation for a in arguments if a.annotation] + [node.returns]
        elif isinstance(node, ast.ClassDef) and node.decorator_list:
            parts = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        else:
            continue
        if any(shaped(part) for part in parts if part is not None):
            expected.append(node.name)
    marking = Marking(tree)
    marking.visit(tree)
    assert sorted(marking.marked) == sorted(expected)


def test_only_the_probing_knows_the_released_protocol() -> None:
    assert [p.name for p in SOURCES if "released" in rooms_imported(p)] == ["probing.py"]


def test_krylov_knows_no_network() -> None:
    for path in (PACKAGE / "krylov").glob("*.py"):
        assert not any(name.startswith(("torch.nn", "torch.func")) for name in imports_of(path))


def printed(code: str) -> str:
    """Run code in a process that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout


def test_importing_the_package_loads_no_library_that_only_some_need() -> None:
    heavy = ("matplotlib", "pandas", "pooch", "pyarrow", "PIL", "sklearn", "seaborn", "beartype")
    asked = "Plan, analyze, data, esd, follow, landscape, results, tables, trajectory"
    code = f"import sys; from spectra import {asked}; print({{*{heavy}}} & {{*sys.modules}})"
    assert printed(code).strip() == "set()"


@pytest.mark.parametrize("command", ["esd", "trajectory", "compare", "report"])
def test_help_waits_for_no_library(command: str) -> None:
    code = f"import sys, spectra.{command} as command\n"
    code += "try: command.main(['--help'])\nfinally: print({'torch', 'numpy'} & {*sys.modules})"
    told = printed(code)
    assert "exit codes: 0 done" in told
    assert told.splitlines()[-1] == "set()"


def test_what_the_package_names_is_what_it_gives() -> None:
    """Type checkers read imports, programs a table: the two are one list."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    read = {a.name: node.module for node in block.body for a in node.names}  # type: ignore[attr-defined]
    assert read == spectra._HOME
    assert not set(read) & {path.stem for path in PACKAGE.iterdir()}
    assert sorted(spectra.__all__) == sorted(read)
    for name, module in read.items():
        assert getattr(spectra, name) is getattr(importlib.import_module(f"spectra.{module}"), name)
        assert name in dir(spectra)
    with pytest.raises(AttributeError, match="no attribute 'lanzcos'"):
        _ = spectra.lanzcos


def test_modules_of_the_package_need_no_import_of_their_own() -> None:
    code = "import spectra; print(spectra.krylov.lanczos is spectra.lanczos, spectra.figures.save)"
    assert printed(code).startswith("True <function save")


# What pyproject calls otherwise, or conda does.
CONDA = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def requirement(line: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([\w.-]+)(.*)", line.replace(" ", "")).groups()
    return CONDA.get(name, name), bound


def test_conda_and_pip_ask_for_the_same_packages_in_the_same_ranges() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^  - ([^:\n]+)$", text.split("dependencies:")[1], flags=re.MULTILINE)
    conda = dict(requirement(line) for line in listed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["notebooks"]
    expected = dict(requirement(line) for line in lines)
    expected |= {"python": project["requires-python"], "pip": ""}
    assert conda == expected
    assert "channels:\n  - conda-forge\n" in text


def test_every_declared_package_is_imported_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    imported = {name.split(".")[0] for path in SOURCES for name in imports_of(path)}
    names = {"pillow": "PIL", "scikit-learn": "sklearn", "markdown-it-py": "markdown_it"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for line in project["dependencies"]:
        name = requirement(line)[0]
        assert names.get(name, name) in imported, f"{name} is imported nowhere"
        assert f"\n{name}==" in pins, f"{name} has no pin"
    extras = project["optional-dependencies"]
    for line in extras["test"] + extras["notebooks"]:
        assert f"\n{requirement(line)[0]}==" in pins, line


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_tracked_file_names_a_place_of_one_machine() -> None:
    place = re.compile(rb"(?<![\w.:/])/(work|home|Users|root|mnt|opt)/[\w.-]+")
    for path in tracked():
        if path.is_file() and path.suffix not in (".png", ".pt") and path != Path(__file__):
            found = place.search(path.read_bytes())
            assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_the_committed_files_stay_small() -> None:
    sizes = {path: path.stat().st_size for path in tracked() if path.is_file()}
    checkpoints = [size for path, size in sizes.items() if path.parent.name == "checkpoints"]
    assert sum(checkpoints) < 16e6
    assert (ROOT / "docs" / "digits.png").stat().st_size < 200e3
    assert not [path for path, size in sizes.items() if size > 16e6]


def blocks(language: str) -> list[str]:
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's relative paths mean what they mean in a clone."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("SPECTRA_DATA", raising=False)
    return tmp_path


def test_the_readme_has_the_commands_and_the_five_lines() -> None:
    assert {"make esd", "make test"} <= set(commands())
    assert any(line.startswith("python -m spectra.esd") for line in commands())
    (block,) = blocks("python")
    statements = [line for line in block.splitlines() if line and not line.startswith("import ")]
    assert len(statements) == 5


def test_the_readmes_commands_run_on_a_tiny_budget(elsewhere: Path) -> None:
    """P49: every printed command works; only its steps are cut."""
    budget = {"spectra.esd": ["--steps", "3", "--max-samples", "6", "--quiet"]}
    budget["spectra.trajectory"] = budget["spectra.esd"]
    budget["spectra.draws"] = ["--draws", "2", "--steps", "3", "--quiet"]
    budget["spectra.landscape"] = [*budget["spectra.esd"], "--points", "3"]
    budget["spectra.train"] = ["--epochs", "2", "--save-at", "1", "--quiet"]
    lines = [line for line in commands() if line.startswith("python -m ")]
    assert lines
    for line in lines:
        _, _, module, *flags = shlex.split(line)
        package = (PACKAGE / module.removeprefix("spectra.")).is_dir()
        name = f"{module}.__main__" if package else module
        assert importlib.import_module(name).main([*flags, *budget.get(module, [])]) == 0, line
    for drawn in ("digits-lt-ce-drw-sgd/esd.png", "digits/trajectory.png"):
        assert (elsewhere / "reports" / drawn).exists()


def printed_commands() -> Iterator[tuple[str, str]]:
    """Find the commands that README and reports set apart: a file, and what follows `-m`."""
    for path in [README, *sorted((ROOT / "reports").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if found := re.match(r" *(?:python|torchrun [^\n]*?) -m (spectra\.\w+.*)", line):
                yield str(path.relative_to(ROOT)), found.group(1)


def test_every_printed_command_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """P49: those, too, that take a day or data that are not here."""
    seen = set()
    for path, command in printed_commands():
        module, *flags = shlex.split(command, comments=True)
        package = (PACKAGE / module.removeprefix("spectra.")).is_dir()
        parser = importlib.import_module(f"{module}.__main__" if package else module)._parser()
        try:
            parser.parse_args(flags)
        except SystemExit:
            pytest.fail(f"{path}: {command}: {capsys.readouterr().err}")
        seen.add(module.removeprefix("spectra."))
    assert seen >= {"esd", "trajectory", "train", "draws", "landscape", "compare"}


def test_the_readmes_python_runs_as_printed(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib.pyplot as plt

    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert "negative curvature proven" in capsys.readouterr().out
    assert plt.gca().lines
    plt.close("all")


def test_make_has_every_target_that_is_spoken_of() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [README.read_text(encoding="utf-8"), (ROOT / ".ci/run").read_text(encoding="utf-8")]
    code = re.compile(r"`make ([a-z-]+)`|^(?:exec )?make ([a-z-]+)", flags=re.MULTILINE)
    spoken = {a or b for text in texts for a, b in code.findall(text)}
    assert {"esd", "test"} <= spoken
    for target in spoken:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_readme_documents_every_flag_and_every_key_of_the_format() -> None:
    from spectra import esd, trajectory
    from spectra.results import CERTIFICATE_KEYS, DOCTOR_KEYS, ClassSpectrum

    text = README.read_text(encoding="utf-8")
    for action in [*esd._parser()._actions, *trajectory._parser()._actions]:
        for flag in action.option_strings:
            if flag not in ("-h", "--help", "--no-tf32"):
                assert re.search(rf"[` ]{flag}(?![\w-])", text), flag
    entry = ClassSpectrum(label="x", name="x", count=1, share=1.0).to_dict()
    for key in (*entry, *DOCTOR_KEYS, *CERTIFICATE_KEYS):
        short = f"`_{key.removeprefix('negative_mass_')}`"
        assert f"`{key}`" in text or short in text, key
    assert (ROOT / "docs/digits.png").exists()
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        if link.startswith("#"):  # as GitHub names a heading
            headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
            assert link[1:] in {
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            }
            continue
        assert (ROOT / link).exists(), link


def test_every_benchmark_is_introduced_and_says_its_question() -> None:
    text = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"common.py"}
    assert set(re.findall(r"^\| `(\w+\.py)`", text, flags=re.MULTILINE)) == files
    assert set(re.findall(r"(?<!tests/)\b(\w+\.py)\b", text)) <= files


def test_ci_runs_what_a_person_runs() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
