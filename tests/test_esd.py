"""`python -m spectra.esd` from end to end: the files, the table, every flag, every refusal."""

import csv
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import spectra
from spectra import (
    Analysis,
    Plan,
    SpectraError,
    esd,
    figures,
    load_checkpoint,
    open_data,
    plan_flags,
    probing,
    study,
    terminal,
    trajectory,
)
from spectra.choices import KeptName, PathName
from spectra.results import CAVEAT, CERTIFICATE_KEYS, DOCTOR_KEYS
from tests.apart import Apart

SGD = "checkpoints/digits-lt-ce-drw-sgd.pt"
FILES = ("esd.csv", "esd.json", "esd.npz", "esd.pdf", "esd.png")
HEAD_KEYS = ("schema", "checkpoint", "data", "settings", "device", "versions", "spectra")
NUMBERS = (
    *("share", "loss", "train_accuracy", "test_accuracy", "lambda_min", "lambda_max"),
    *("residual_min", "residual_max", "nonconvexity", "negative_mass", "negative_mass_threshold"),
    *("trace", "trace_stderr"),
)
FLAGS = (  # every flag of the issue, by the name under which `settings` resolves it
    *("overall", "per_class", "classes", "groups", "split", "loss", "protocol", "augment", "steps"),
    *("probes", "seed", "batch_size", "max_samples", "device", "dtype", "tf32", "kernel", "data"),
    *("dataset", "imbalance_ratio", "model", "arch", "num_classes"),
)


class Result:
    """What one call of the command left behind."""

    def __init__(self, folder: Path, code: int, out: str, err: str) -> None:
        self.folder, self.code, self.out, self.err = folder, code, out, err

    @property
    def json(self) -> dict[str, Any]:
        return json.loads((self.folder / "esd.json").read_text(encoding="utf-8"))

    @property
    def labels(self) -> list[str]:
        return [entry["label"] for entry in self.json["spectra"]]


Command = Callable[..., Result]


def name_pages(drawn: Sequence[Any], folder: Path) -> list[Path]:
    """Stand in for `figures.save`, which takes a second a page and has tests of its own."""
    stems = ["esd", *(f"esd-{i + 2}" for i in range(len(drawn) - 1))]
    paths = [folder / f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")]
    for path in paths:
        path.touch()
    return paths


@pytest.fixture
def command(
    tmp_path: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Call the command line in this process, on the committed digits unless told otherwise."""
    monkeypatch.setattr(figures, "save", name_pages)
    monkeypatch.setenv("COLUMNS", "120")  # a narrow terminal gets fewer columns

    def call(*flags: str, checkpoint: str | Path | None = None, steps: int = 6) -> Result:
        folder = tmp_path / "out"
        given = ["--steps", str(steps), "--out", str(folder), "--device", "cpu", *flags]
        code = esd.main([str(checkpoint or repository / SGD), *given])
        captured = capsys.readouterr()
        return Result(folder, code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """One run with a bit of everything: overall, groups and two classes."""
    folder = tmp_path_factory.mktemp("shared") / "out"
    flags = ["--overall", "--groups", "--classes", "9,8", "--steps", "6", "--max-samples", "40"]
    code = esd.main([str(repository / SGD), *flags, "--out", str(folder), "--quiet"])
    assert code == 0
    return folder


def test_every_key_of_the_public_format_is_there_and_of_its_type(shared: Path) -> None:
    document = json.loads((shared / "esd.json").read_text(encoding="utf-8"))
    assert set(HEAD_KEYS) <= set(document)
    assert document["schema"] == 1
    assert set(document["checkpoint"]) == {"file", "sha256", "arch", "epoch"}
    assert document["checkpoint"]["file"] == "digits-lt-ce-drw-sgd.pt"
    assert document["checkpoint"]["epoch"] == 200
    data = document["data"]
    assert {"name", "split", "draw_sha256", "pixels_sha256", "counts"} <= set(data)
    assert data["counts"] == [134, 96, 68, 49, 35, 25, 18, 13, 9, 6]
    assert all(re.fullmatch("[0-9a-f]{64}", data[k]) for k in ("draw_sha256", "pixels_sha256"))
    assert set(FLAGS) <= set(document["settings"])
    assert {"torch", "numpy", "python", "spectra"} <= set(document["versions"])
    assert isinstance(document["device"], str)
    for entry in document["spectra"]:
        assert isinstance(entry["label"], str)
        assert isinstance(entry["name"], str)
        for key in ("count", "steps", "probes"):
            assert type(entry[key]) is int, key
        for key in NUMBERS:
            assert type(entry[key]) is float, key
        low, high = entry["negative_mass_bounds"]
        assert 0 <= low <= high <= 1
        assert type(entry["converged"]) is bool
        assert set(DOCTOR_KEYS) <= set(entry["doctor"])
        assert type(entry["doctor"]["fixed_operator"]) is bool
        assert all(type(entry["doctor"][k]) is float for k in DOCTOR_KEYS[1:])
        certificate = entry["certificate"]
        assert set(certificate) == set(CERTIFICATE_KEYS)
        assert (certificate["operator"], certificate["dtype"]) == ("none", "float64")
        assert type(certificate["negative_curvature"]) is bool
        assert all(type(certificate[k]) is float for k in ("rayleigh_quotient", "noise_floor"))


def test_what_one_probe_cannot_tell_is_null_and_not_zero(shared: Path) -> None:
    for entry in json.loads((shared / "esd.json").read_text(encoding="utf-8"))["spectra"]:
        assert entry["probes"] == 1
        assert entry["negative_mass_stderr"] is None
        assert entry["trace_stderr"] > 0  # ten one-product probes stand beside the one of Lanczos
        assert entry["caveat"] is None


def test_selections_combine_in_the_order_overall_groups_classes(shared: Path) -> None:
    analysis = Analysis.load(shared)
    assert analysis.labels == ("overall", "head", "mid", "tail", "class 8", "class 9")
    counts = [134, 96, 68, 49, 35, 25, 18, 13, 9, 6]
    shares = {s.label: s.share for s in analysis.spectra}
    assert shares["class 8"] == pytest.approx(counts[8] / sum(counts))
    assert shares["head"] + shares["mid"] + shares["tail"] == pytest.approx(1)
    assert [s.count for s in analysis.spectra] == [40, 40, 40, 28, 9, 6]  # at most --max-samples


def test_the_results_are_five_files_and_nothing_else(shared: Path) -> None:
    assert sorted(path.name for path in shared.iterdir()) == sorted(FILES)
    assert (shared / "esd.png").read_bytes().startswith(b"\x89PNG")
    assert (shared / "esd.pdf").read_bytes().startswith(b"%PDF")
    with (shared / "esd.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    analysis = Analysis.load(shared)
    assert [row["label"] for row in rows] == list(analysis.labels)
    assert float(rows[0]["lambda_min"]) == analysis.spectra[0].lambda_min
    assert rows[0]["negative_mass_stderr"] == ""
    assert rows[0]["certificate_operator"] == "none"
    with np.load(shared / "esd.npz", allow_pickle=False) as arrays:
        for key in ("alphas", "betas", "nodes", "weights"):
            assert f"class 8/probe 0/{key}" in arrays.files


def test_no_result_holds_a_path_of_this_machine(shared: Path, repository: Path) -> None:
    """File names are given without folders, so that results can be published as they are."""
    for name in FILES:
        content = (shared / name).read_bytes()
        if name.endswith(".npz"):
            with np.load(shared / name, allow_pickle=False) as arrays:
                content = b"".join(arrays[key].tobytes() for key in arrays.files)
        for place in map(str, (repository, shared, f"{Path.home()}/", Path(sys.prefix))):
            for coding in ("utf-8", "utf-32-le"):  # the latter is NumPy's
                assert place.encode(coding) not in content, name
    assert not re.search(r'"(/|[A-Z]:\\\\)', (shared / "esd.json").read_text(encoding="utf-8"))


def test_without_a_selection_the_overall_spectrum_comes_with_table_bar_and_files(
    command: Command,
) -> None:
    result = command()
    assert result.code == 0
    assert result.labels == ["overall"]
    assert result.json["spectra"][0]["count"] == 453
    assert "overall" in result.out
    assert all(word in result.out for word in ("λmin", "λmax", "residuals", "trace ± s.e.", "▼"))
    assert all(name in result.out for name in FILES)
    assert "products" in result.err
    assert "100%" in result.err


def test_quiet_prints_nothing(command: Command) -> None:
    result = command("--classes", "9", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert sorted(path.name for path in result.folder.iterdir()) == sorted(FILES)


def test_per_class_gives_each_class_and_shares_that_sum_to_one(command: Command) -> None:
    result = command("--per-class", "--quiet", "--max-samples", "6", steps=4)
    assert result.labels == [f"class {c}" for c in range(10)]
    assert sum(entry["share"] for entry in result.json["spectra"]) == pytest.approx(1)


def test_the_test_split_is_balanced_and_keeps_its_own_fingerprint(
    command: Command, shared: Path
) -> None:
    result = command("--classes", "8", "--split", "test", "--quiet")
    assert result.json["data"]["split"] == "test"
    assert result.json["data"]["counts"] == [40] * 10
    assert result.json["spectra"][0]["count"] == 40
    training = Analysis.load(shared).data
    assert result.json["data"]["draw_sha256"] != training["draw_sha256"]
    assert result.json["data"]["groups"] == training["groups"]  # by the training counts


def test_the_trained_loss_weighs_the_classes_overall_and_not_within_one(
    command: Command, shared: Path, repository: Path
) -> None:
    flags = ("--overall", "--classes", "8", "--quiet", "--max-samples", "40")
    result = command(*flags, "--loss", "trained")
    assert result.json["settings"]["loss"] == "trained"
    plain = Analysis.load(shared)
    overall, one = (
        next(e for e in result.json["spectra"] if e["label"] == label)
        for label in ("overall", "class 8")
    )
    assert one["loss"] == pytest.approx(plain.get("class 8").loss, rel=1e-6)
    assert one["lambda_max"] == pytest.approx(plain.get("class 8").lambda_max, rel=1e-5)
    assert overall["loss"] != pytest.approx(plain.get("overall").loss, rel=1e-2)


def test_frozen_draws_are_a_fixed_operator_with_a_certificate_of_their_own(
    command: Command,
) -> None:
    result = command("--classes", "9", "--augment", "frozen:2")
    (entry,) = result.json["spectra"]
    assert result.json["settings"]["augment"] == "frozen:2"
    assert entry["caveat"] is None
    assert entry["doctor"]["fixed_operator"] is True
    assert entry["certificate"]["operator"] == "frozen:2"
    assert entry["count"] == 6  # samples, not draws
    assert CAVEAT not in result.out


@pytest.mark.parametrize(
    "flags", [("--augment", "resample"), ("--protocol", "released")], ids=lambda f: f[1]
)
def test_moving_operators_are_named_for_what_they_are_everywhere(
    flags: tuple[str, ...], command: Command
) -> None:
    """In json, csv, table and figure; what only a matrix has is null, and the certificate is of
    the fixed operator."""
    result = command("--classes", "8", *flags)
    assert result.code == 0
    (entry,) = result.json["spectra"]
    assert result.json["settings"]["augment"] == "resample"
    assert entry["caveat"] == CAVEAT == "not the spectrum of a matrix"
    assert entry["doctor"]["fixed_operator"] is False
    assert "augmentation" in entry["doctor"]["culprit"]
    assert entry["certificate"]["operator"] == "none"
    assert entry["certificate"]["rayleigh_quotient"] is not None
    assert entry["certificate"]["lower_bound_95"] is None
    assert entry["negative_mass"] is None
    assert CAVEAT in result.out
    assert CAVEAT in (result.folder / "esd.csv").read_text(encoding="utf-8")
    (figure,) = figures.density_grid(Analysis.load(result.folder))
    assert CAVEAT in [text.get_text() for text in figure.axes[0].texts]


def test_the_released_protocol_is_the_papers_in_one_word(command: Command) -> None:
    """100 steps and one probe are the command's defaults; its kernel and draws come with it."""
    result = command("--classes", "9", "--protocol", "released", "--quiet")
    settings = result.json["settings"]
    assert (settings["augment"], settings["kernel"]) == ("resample", "paper")
    defaults = esd._parser().parse_args(["x.pt"])
    assert (defaults.steps, defaults.probes) == (100, 1)
    flags = ("--classes", "9", "--protocol", "released", "--augment", "none", "--quiet")
    fixed = command(*flags, "--overwrite")
    assert fixed.json["spectra"][0]["caveat"] == CAVEAT
    assert fixed.json["settings"]["augment"] == "none"


def test_three_probes_give_a_standard_error_and_a_band(command: Command) -> None:
    result = command("--classes", "8", "--probes", "3", "--quiet")
    (entry,) = result.json["spectra"]
    assert entry["probes"] == 3
    assert entry["negative_mass_stderr"] is not None
    (spectrum,) = Analysis.load(result.folder).spectra
    assert len(spectrum.runs) == 3
    measure = spectrum.measure
    assert measure.density(measure.symlog_grid()).low is not None


def test_dtype_kernel_product_batch_and_seed_arrive(command: Command) -> None:
    result = command(
        *("--classes", "9", "--dtype", "float64", "--kernel", "paper", "--seed", "3", "--quiet"),
        *("--product", "double-backward", "--batch-size", "4", "--no-tf32"),
    )
    settings = result.json["settings"]
    assert (settings["dtype"], settings["kernel"], settings["seed"]) == ("float64", "paper", 3)
    assert (settings["product"], settings["batch_size"]) == ("double-backward", 4)
    assert settings["tf32"] is False
    assert result.json["spectra"][0]["doctor"]["noise_floor"] < 1e-9


def flags_of(plan: Plan) -> list[str]:
    """Write a plan as flags."""
    flags = []
    for field in fields(Plan):
        value, flag = getattr(plan, field.name), f"--{field.name.replace('_', '-')}"
        if field.name == "tf32":
            flags.append(flag if value else "--no-tf32")
        elif isinstance(value, bool):
            flags += [flag] * value
        elif isinstance(value, tuple):
            flags += [flag, ",".join(map(str, value))] if value else []
        elif value is not None:
            flags += [flag, str(value)]
    return flags


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(tf32=False, classes=(0, 8), overall=True, augment="frozen:3", max_samples=7),
        Plan(tf32=True, per_class=True, groups=True, dtype="float64", batch_size=16, seed=5),
        Plan(protocol="released", split="test", loss="trained", steps=7, probes=2, device="cpu"),
    ],
    ids=range(4),
)
def test_every_field_of_a_plan_survives_both_command_lines(plan: Plan) -> None:
    """P50: booleans and all; "--no-tf32" after "--tf32" is false."""
    for command in (esd, trajectory):
        options = command._parser().parse_args(["x", "--tf32", *flags_of(plan)])
        assert plan_flags.plan_of(options) == plan


def test_the_products_to_choose_from_are_those_that_exist() -> None:
    actions = {action.dest: action for action in esd._parser()._actions}
    assert set(actions["product"].choices) == {"auto", *get_args(PathName), *get_args(KeptName)}


@pytest.mark.parametrize("wrapper", ["bare", "released"])
def test_a_foreign_checkpoint_opens_once_its_data_are_named(
    wrapper: str, command: Command, tmp_path: Path, repository: Path
) -> None:
    state = load_checkpoint(repository / SGD).model.state_dict()
    if wrapper == "released":
        state = {f"module.{name}": value for name, value in state.items()}
        held: Any = {"state_dict": state, "epoch": 7, "best_acc1": torch.tensor(71.5)}
    else:
        held = state
    torch.save(held, tmp_path / "theirs.pt")
    refused = command("--classes", "9", checkpoint=tmp_path / "theirs.pt")
    assert refused.code == 2
    assert "--dataset" in refused.err
    flags = ("--classes", "9", "--dataset", "digits", "--imbalance-ratio", "20", "--quiet")
    result = command(*flags, checkpoint=tmp_path / "theirs.pt")
    assert result.code == 0
    assert result.json["data"]["counts"][9] == 6
    assert result.json["checkpoint"]["epoch"] == (7 if wrapper == "released" else None)
    settings = result.json["settings"]
    assert (settings["dataset"], settings["imbalance_ratio"]) == ("digits", 20.0)
    assert not any("taken as it is" in note for note in result.json["notes"])
    guess = command(*flags, "--loss", "trained", checkpoint=tmp_path / "theirs.pt")
    assert guess.code == 2
    assert "--loss ce" in guess.err


def test_weights_are_chosen_by_their_key_and_results_of_others_are_not_resumed(
    command: Command, repository: Path, tmp_path: Path
) -> None:
    names = {"state_dict": SGD, "state_dict_ema": SGD.replace("sgd", "sam")}
    both = {key: load_checkpoint(repository / name).model for key, name in names.items()}
    path = tmp_path / "both.pt"
    torch.save({key: model.state_dict() for key, model in both.items()}, path)
    flags = ("--dataset", "digits", "--imbalance-ratio", "20", "--classes", "9", "--quiet")
    chosen = command(*flags, "--weights", "state_dict_ema", checkpoint=path)
    assert chosen.code == 0, chosen.err
    assert chosen.json["checkpoint"]["file"] == "both.pt:state_dict_ema"
    assert chosen.json["settings"]["weights"] == "state_dict_ema"
    alone = command(*flags, checkpoint=repository / names["state_dict_ema"])
    assert alone.json["spectra"][0]["lambda_max"] == chosen.json["spectra"][0]["lambda_max"]
    other = command(*flags, "--resume", checkpoint=path)
    assert other.code == 2
    assert "checkpoint" in other.err


def test_what_took_hours_is_not_replaced_by_another_question(
    command: Command, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--classes", "9,8", "--quiet")
    assert command(*flags).code == 0
    assert command(*flags).code == 0  # the same question: made again
    held = (tmp_path / "out" / "esd.json").read_bytes()
    sam = repository / SGD.replace("sgd", "sam")
    copied = tmp_path / Path(SGD).name
    copied.write_bytes(sam.read_bytes())
    for others, told, checkpoint in (
        (("--classes", "9,8", "--seed", "1"), "seed (0, now 1)", None),
        (("--classes", "9"), "class 8", None),
        (flags, "(checkpoint ('digits-lt-ce-drw-sgd.pt, ", sam),
        (flags, "(checkpoint ('digits-lt-ce-drw-sgd.pt, ", copied),
    ):
        refused = command(*others, checkpoint=checkpoint)
        assert refused.code == 2
        assert told in refused.err
        assert "--overwrite" in refused.err
        assert refused.err.count("\n") == 1
        assert (refused.folder / "esd.json").read_bytes() == held
    more = command("--classes", "9,8,7", "--quiet")  # all of them again, and one more
    assert more.code == 2  # for class 7 is missing there: --resume makes that alone
    assert "unfinished" in more.err
    assert command("--classes", "9", "--quiet", "--overwrite").labels == ["class 9"]
    with pytest.raises(SystemExit):
        command("--classes", "9", "--resume", "--overwrite")


def test_accuracies_can_be_left_out(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def classify(*_: object) -> None:
        raise AssertionError("nothing is to be classified")

    whole = command("--classes", "9", "--quiet").json["spectra"][0]
    monkeypatch.setattr(study, "classify", classify)
    (entry,) = command("--classes", "9", "--quiet", "--no-accuracies").json["spectra"]
    assert entry["train_accuracy"] is entry["test_accuracy"] is None
    assert entry == whole | {"train_accuracy": None, "test_accuracy": None}


def test_the_default_folder_names_the_run_where_the_file_does_not(tmp_path: Path) -> None:
    for path, folder in {
        "mine/resnet.pth": "resnet",
        "runs/a/last.pt": "a-last",
        "runs/a/epoch-7.pt": "a-epoch-7",
        "b/model_best.pth.tar": "b-model_best.pth",
        "b/model-soup.pt": "model-soup",
        "logs/version_3/checkpoints/epoch=9-step=3910.ckpt": "version_3-epoch=9-step=3910",
        "logs/version_3/checkpoints/last-v1.ckpt": "version_3-last-v1",
        "checkpoints/sgd.pt": "sgd",
    }.items():
        options = esd._parser().parse_args([str(tmp_path / path)])
        assert plan_flags.results_folder(options).name == folder
    options = esd._parser().parse_args([str(tmp_path / "c" / "best.pt"), "--weights", "ema"])
    assert plan_flags.results_folder(options).name == "c-best-ema"


def test_a_foreign_normalisation_reaches_the_network_and_the_results(command: Command) -> None:
    flags = ("--classes", "9", "--quiet")
    plain = command(*flags).json  # each call writes into the same folder
    same = command(*flags, "--mean", "0.3055", "--std", "0.3754").json
    assert same["spectra"] == plain["spectra"]
    other = command(*flags, "--mean", "0", "--std", "1", "--overwrite").json
    assert (other["data"]["mean"], other["data"]["std"]) == ([0.0], [1.0])
    assert other["spectra"][0]["loss"] > 10 * plain["spectra"][0]["loss"]
    assert other["data"]["pixels_sha256"] == plain["data"]["pixels_sha256"]
    for wrong in (("--mean", "0.5"), ("--mean", "0.5", "--std", "0")):
        assert command(*flags, *wrong).code == 2


def test_a_draw_that_nobody_named_and_results_that_are_replaced_are_told(
    command: Command, tmp_path: Path, repository: Path
) -> None:
    torch.save(load_checkpoint(repository / SGD).model.state_dict(), tmp_path / "theirs.pt")
    flags = ("--classes", "9", "--dataset", "digits")
    first = command(*flags, "--quiet", checkpoint=tmp_path / "theirs.pt")
    assert first.json["data"]["counts"][9] > 100
    assert any("digits is taken as it is" in note for note in first.json["notes"])
    again = command(*flags, checkpoint=tmp_path / "theirs.pt")
    assert "taken as it is" in again.out
    assert "These replace the results" in again.out
    assert "These replace" not in command(*flags, "--resume").out + first.out


def test_an_exported_set_stands_in_for_the_data(
    command: Command, tmp_path: Path, shared: Path
) -> None:
    from spectra.data.__main__ import main as data

    place = tmp_path / "exported"
    assert (
        data(["export", "--dataset", "digits", "--imbalance-ratio", "20", "--out", str(place)]) == 0
    )
    result = command("--classes", "8", "--data", str(place), "--quiet")
    assert result.code == 0
    assert result.json["settings"]["data"] == "exported"  # without the folder that it lies in
    assert result.json["data"]["pixels_sha256"] == Analysis.load(shared).data["pixels_sha256"]
    (entry,) = result.json["spectra"]
    there = Analysis.load(shared).get("class 8")
    assert entry["lambda_max"] == pytest.approx(there.lambda_max, rel=1e-5)


def poisoned(source: Path, target: Path) -> Path:
    payload = torch.load(source, weights_only=True)
    payload["state_dict"]["linear.bias"][3] = float("nan")
    torch.save(payload, target)
    return target


def test_bad_input_gets_one_line_exit_code_2_and_leaves_nothing(
    command: Command, tmp_path: Path, repository: Path
) -> None:
    """P45: nothing is analysed in place of what could not be read."""
    whole = (repository / SGD).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    sick = poisoned(repository / SGD, tmp_path / "nan.pt")
    torch.save({"a.weight": torch.ones(3, 3)}, tmp_path / "strange.pt")
    cases: list[tuple[tuple[str, ...], Path | None, str]] = [
        ((), tmp_path / "absent.pt", "absent.pt"),
        ((), tmp_path / "cut.pt", "truncated"),
        ((), tmp_path / "text.pt", "no PyTorch checkpoint"),
        ((), tmp_path / "module.pt", "refused"),
        ((), tmp_path / "strange.pt", "--arch"),
        ((), sick, "NaN"),
        (("--num-classes", "7"), None, "mis-shaped"),
        (("--arch", "resnet32"), None, "missing"),
        (("--arch", "resnet31"), None, "unknown architecture"),
        (("--model", "no.such:thing"), None, "no.such:thing"),
        (("--classes", "0,10"), None, "0 to 9"),
        (("--classes", "-1"), None, "0 to 9"),
        (("--dataset", "mnist"), None, "known: digits"),
        (("--data", str(tmp_path / "nowhere"), "--dataset", "cifar10"), None, "does not exist"),
        (("--imbalance-ratio", "0.01"), None, "at least 1"),
        (("--augment", "frozen:0"), None, "frozen:K"),
        (("--augment", "sometimes"), None, "resample"),
        (("--steps", "0"), None, "steps"),
        (("--probes", "0"), None, "probes"),
        (("--max-samples", "0"), None, "max_samples"),
        (("--seed", "-1"), None, "seed"),
        (("--device", "warp"), None, "--device cpu"),
    ]
    if not torch.cuda.is_available():
        cases.append((("--device", "cuda"), None, "--device cpu"))
    for flags, checkpoint, word in cases:
        result = command(*flags, checkpoint=checkpoint)
        told = f"{flags} {checkpoint}: {result.err}"
        assert result.code == 2, told
        assert result.err.count("\n") == 1, told
        assert result.err.startswith("python -m spectra.esd: "), told
        assert word in result.err, told
        assert result.out == "", told
        assert not result.folder.exists(), told


@pytest.mark.parametrize(
    "flags",
    [
        ("--classes", "a,b"),
        ("--classes", ""),
        ("--split", "validation"),
        ("--protocol", "exactly"),
        ("--batch-size", "0"),
        ("--mean", "0.3 0.4"),
        ("--dtype", "float16"),
        ("--kernel", "wide"),
        ("--product", "guess"),
        ("--step", "7"),  # no abbreviations: a later flag would change what a script means
        ("--no-such-flag",),
    ],
    ids=" ".join,
)
def test_usage_errors_end_with_exit_code_2_before_anything_is_opened(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        esd.main(["no-such-file.pt", *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        esd.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for flag in (*FLAGS, "out", "resume", "quiet"):
        assert f"--{flag.replace('_', '-')}" in printed, flag


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    result = command("--classes", "9", "--quiet")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "--out" in result.err
    assert (tmp_path / "out").read_text() == "a file where the folder should be"


def test_all_classes_failing_is_an_error_even_when_quiet(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SpectraError("got NaN in batch 3, expected numbers")

    monkeypatch.setattr(probing, "examine", fail)
    result = command("--classes", "8,9", "--quiet")
    assert result.code == 2
    assert "NaN in batch 3" in result.err
    assert [entry["lambda_min"] for entry in result.json["spectra"]] == [None, None]


class Impatient:
    """A timer that is over as soon as it starts."""

    def __init__(self, seconds: float, say: Callable[[], None]) -> None:
        assert seconds > 0
        self.start = say

    def cancel(self) -> None:
        """It has fired."""

    def join(self) -> None:
        """It has said what it had to."""


def test_what_takes_long_before_the_products_is_announced(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def announced(*flags: str) -> list[str]:
        shutil.rmtree(command("--classes", "9", "--steps", "3", "--quiet").folder)
        err = command("--classes", "9", "--steps", "3", *flags).err
        return [line for line in err.splitlines() if line.endswith(" …")]

    assert announced() == []  # the digits keep nobody waiting
    monkeypatch.setattr("spectra.terminal.threading.Timer", Impatient)
    reading = ["reading the train images …", "reading the test images …"]
    classifying = [line.replace("reading", "classifying") for line in reading]
    gathering, comparing = "gathering the samples …", "comparing ways to compute products …"
    assert announced() == [*reading, gathering, *classifying, comparing]
    assert announced("--no-accuracies") == [reading[0], gathering, comparing]
    assert announced("--quiet") == []


def test_ctrl_c_gives_130_and_resume_gives_what_an_uninterrupted_run_gives(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P47: the second class is interrupted within its third probe."""
    flags = ("--classes", "8,9", "--probes", "3")
    whole = command(*flags, "--quiet")
    expected = (whole.json, dict(np.load(whole.folder / "esd.npz", allow_pickle=False)))
    shutil.rmtree(whole.folder)

    tick, seen = terminal.Bar.tick, [0]

    def interrupt(self: terminal.Bar, label: str, products: int, work: int) -> None:
        seen[0] += (label == "class 9") * products
        if seen[0] > 20:
            raise KeyboardInterrupt
        tick(self, label, products, work)

    with monkeypatch.context() as patch:
        patch.setattr(terminal.Bar, "tick", interrupt)
        stopped = command(*flags)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    partial = Analysis.load(stopped.folder)
    assert partial.finished == ("class 8",)
    assert partial.get("class 9").probes == 2

    resumed = command(*flags, "--resume", "--quiet")
    assert resumed.code == 0
    assert resumed.json == expected[0]
    arrays = dict(np.load(resumed.folder / "esd.npz", allow_pickle=False))
    assert arrays.keys() == expected[1].keys()
    assert all(np.array_equal(arrays[key], expected[1][key]) for key in arrays)
    assert sorted(path.name for path in resumed.folder.iterdir()) == sorted(FILES)

    other = command(*flags, "--resume", "--seed", "1", "--quiet")
    assert other.code == 2
    assert "seed (0, now 1)" in other.err
    assert resumed.json == expected[0]  # untouched


def test_a_class_without_memory_does_not_end_the_others(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = probing.certify, [0]

    def certify(*given: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return real(*given, **options)

    flags = ("--classes", "8,9", "--probes", "2", "--steps", "5", "--quiet")
    monkeypatch.setattr(probing, "certify", certify)
    first = command(*flags)
    assert first.code == 2
    assert first.err.startswith("python -m spectra.esd: 1 of 2 spectra failed, the first because: ")
    failed = Analysis.load(first.folder).get("class 8")
    assert failed.error.startswith("got too little memory for class 8 (CUDA out of memory. Tried")
    assert "more)" not in failed.error
    assert Analysis.load(first.folder).finished == ("class 9",)
    assert command(*flags, "--resume", "--keep", "0").code == 0
    assert Analysis.load(first.folder).finished == ("class 8", "class 9")
    assert seen[0] == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no more"), MemoryError("no more")])
def test_without_memory_for_all_one_line_says_so(
    error: Exception, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(*_: object) -> None:
        raise error

    few = ("--steps", "5", "--quiet")
    assert command("--classes", "8", *few).code == 0
    monkeypatch.setattr(study, "gather", gather)
    anew = command("--classes", "8", *few, "--probes", "2", "--overwrite")  # what lies there goes
    more = command("--classes", "8,9", *few, "--resume")
    for stopped, told in ((anew, "nothing was finished yet"), (more, "--resume goes on")):
        assert stopped.code == 2
        assert "out of memory (no more): " in stopped.err
        assert told in stopped.err
        assert stopped.err.count("\n") == 1
    assert "other settings" in command("--classes", "8", *few, "--probes", "2", "--resume").err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_from_terminal_or_scheduler_leaves_results_that_open(
    sent: signal.Signals, code: int, repository: Path, tmp_path: Path
) -> None:
    """The command as a process of its own, after its first class."""
    folder = tmp_path / "out"
    flags = ["--per-class", "--steps", "25", "--max-samples", "20", "--quiet"]
    flags += ["--out", str(folder), "--device", "cpu"]
    process = Apart("spectra.esd", str(repository / SGD), *flags)
    deadline = time.monotonic() + 60
    while not (folder / "esd.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.told
        time.sleep(0.02)
    process.kill(sent)
    _, err = process.communicate(timeout=60)
    assert process.poll() == code, err
    assert "Traceback" not in err
    analysis = Analysis.load(folder)
    assert analysis.finished[0] == "class 0"
    assert len(analysis.finished) < 10
    assert not list(folder.glob(".*"))


TOY = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 100))
"""


def test_a_hundred_classes_give_a_hundred_spectra_on_clean_pages(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P46: the data count the classes; and a factory of the user's builds the network."""
    from PIL import Image

    random = np.random.default_rng(0)
    for c in range(100):
        place = tmp_path / "images" / "train" / f"thing-{c:03d}"
        place.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8)).save(place / "0.png")
    (tmp_path / "toy_factory.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    state = nn.Sequential(nn.Flatten(), nn.Linear(12, 100)).state_dict()
    torch.save(state, tmp_path / "toy.pt")
    flags = ("--model", "toy_factory:build", "--data", str(tmp_path / "images"))
    flags += ("--dataset", "folder", "--per-class")
    result = command(*flags, checkpoint=tmp_path / "toy.pt", steps=2)
    assert result.code == 0, result.err
    assert result.labels == [f"class {c}" for c in range(100)]
    assert len({entry["lambda_max"] for entry in result.json["spectra"]}) == 100
    assert {entry["test_accuracy"] for entry in result.json["spectra"]} == {None}  # no test images
    assert result.json["settings"]["model"] == "toy_factory:build"
    pages = sorted(path.name for path in result.folder.glob("*.png"))
    assert pages == [*(f"esd-{page}.png" for page in range(2, 8)), "esd.png"]  # 15 a page
    assert "class 99" in result.out

    fewer = command(
        *(*flags[:-1], "--classes", "3", "--quiet", "--overwrite"),
        checkpoint=tmp_path / "toy.pt",
        steps=3,
    )
    assert fewer.code == 0
    left = sorted(path.name for path in fewer.folder.iterdir())
    assert left == sorted(FILES)  # no page of the earlier run stays beside other results


def test_the_data_of_the_digits_are_those_that_the_checkpoint_was_trained_on(
    repository: Path,
) -> None:
    for stem in ("sgd", "sam"):
        checkpoint = load_checkpoint(repository / f"checkpoints/digits-lt-ce-drw-{stem}.pt")
        assert checkpoint.data is not None
        assert open_data(checkpoint.data).draw_sha256 == checkpoint.draw_sha256


def test_only_the_splits_that_are_read_are_opened(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test set may be all that lies on a machine, and another take hours to decode."""
    real, opened = spectra.open_data, []

    def watched(spec: Any, *, split: str, **more: Any) -> Any:
        opened.append(split)
        return real(spec, split=split, **more)

    monkeypatch.setattr(spectra, "open_data", watched)
    for flags, splits in (
        ((), ["train", "test"]),
        (("--no-accuracies",), ["train"]),
        (("--split", "test"), ["train", "test"]),
        (("--split", "test", "--no-accuracies"), ["test"]),
        (("--split", "test", "--no-accuracies", "--groups"), ["train", "test"]),
    ):
        opened.clear()
        done = command("--classes", "9", "--steps", "2", "--quiet", "--overwrite", *flags)
        assert (done.code, opened) == (0, splits), flags
