"""Several augmentation draws, a matrix each: their ends, and whether they agree."""

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spectra import (
    Plan,
    SpectraError,
    analyze,
    hessian_operator,
    lanczos,
    load_checkpoint,
    open_data,
    random_start,
)
from spectra.draws import over_draws, table
from spectra.draws.__main__ import main

SGD = Path(__file__).resolve().parents[1] / "checkpoints" / "digits-lt-ce-drw-sgd.pt"
PLAN = Plan(classes=(8,), steps=15, seed=3, device="cpu")


def test_a_draw_is_the_matrix_of_the_frozen_analysis_with_its_seed() -> None:
    checkpoint, train = load_checkpoint(SGD), open_data(load_checkpoint(SGD).data)
    (found,) = over_draws(checkpoint, PLAN, train, draws=2)
    assert found.seeds == (3, 4)
    frozen = analyze(checkpoint, replace(PLAN, augment="frozen:1"), train=train).spectra[0]
    assert found.lambda_max[0] == pytest.approx(frozen.lambda_max, rel=1e-4)
    assert found.lambda_min[0] == pytest.approx(frozen.lambda_min, rel=1e-3)
    assert found.losses[0] == pytest.approx(frozen.loss, rel=1e-6)
    assert found.ratios[0] == pytest.approx(frozen.nonconvexity, rel=1e-3)


def test_the_angle_is_that_of_the_two_draws_own_vectors() -> None:
    checkpoint, train = load_checkpoint(SGD), open_data(load_checkpoint(SGD).data)
    (found,) = over_draws(checkpoint, PLAN, train, draws=3)
    tops = []
    for seed in (3, 4, 5):
        rows = (train.targets == 8).nonzero()[:, 0]
        H = hessian_operator(checkpoint.model, train.frozen(1, seed).select(rows))
        start = random_start(H.dim, seed=3, probe=0, dtype=H.dtype)
        tops.append(lanczos(H, start, steps=15).vector(-1).double().numpy())
    expected = [float(tops[i] @ tops[j]) ** 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.cosines_squared == pytest.approx(expected, abs=1e-3)
    assert np.ptp(found.lambda_max) > 0.05 * max(found.lambda_max)  # they are different matrices


def test_one_basis_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, train = load_checkpoint(SGD), open_data(load_checkpoint(SGD).data)
    runs: list[weakref.ref[Any]] = []

    def watched(*given: Any, **more: Any) -> Any:
        assert not any(held() for held in runs), "the basis before is still held"
        runs.append(weakref.ref(made := lanczos(*given, **more)))
        return made

    monkeypatch.setattr("spectra.draws.drawing.lanczos", watched)
    list(over_draws(checkpoint, replace(PLAN, classes=(8, 9), steps=3), train, draws=2))
    assert len(runs) == 4


def test_the_command_writes_every_draw_and_prints_their_span(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--classes", "8,9", "--steps", "8", "--draws", "2", "--out", str(tmp_path)]
    assert main([str(SGD), *flags]) == 0
    document = json.loads((tmp_path / "draws.json").read_text(encoding="utf-8"))
    assert [len(one["lambda_max"]) for one in document["draws"]] == [2, 2]
    doctor = [seen for one in document["draws"] for seen in one["doctor"]]
    assert [seen["fixed_operator"] for seen in doctor] == [True] * 4
    assert all(0 < seen["noise_floor"] < 1e-3 for seen in doctor)
    assert document["checkpoint"]["file"] == SGD.name
    printed = capsys.readouterr().out
    assert printed.count("| class ") == 3
    assert {line.count("|") for line in printed.splitlines() if line.startswith("|")} == {9}


def test_what_is_finished_is_kept_and_another_draw_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--imbalance-ratio", "5", "--steps", "4", "--draws", "2", "--out", str(tmp_path)]
    true, calls = lanczos, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:  # in the second class
            raise KeyboardInterrupt
        return true(*args, **kwargs)

    monkeypatch.setattr("spectra.draws.drawing.lanczos", interrupted)
    assert main([str(SGD), "--classes", "8,9", *flags]) == 130
    assert str(tmp_path) in capsys.readouterr().err
    document = json.loads((tmp_path / "draws.json").read_text(encoding="utf-8"))
    assert [one["label"] for one in document["draws"]] == ["class 8"]
    assert "another draw" in document["notes"][0]


@pytest.mark.parametrize(
    "change",
    [{"protocol": "released"}, {"augment": "frozen:3"}, {"probes": 3}, {"split": "test"}],
    ids=lambda c: next(iter(c)),
)
def test_what_would_be_ignored_is_refused(change: dict[str, Any]) -> None:
    checkpoint, train = load_checkpoint(SGD), open_data(load_checkpoint(SGD).data)
    with pytest.raises(SpectraError, match=f"got {next(iter(change))} for draws"):
        next(over_draws(checkpoint, replace(PLAN, **change), train))
    with pytest.raises(SpectraError, match="two draws or more"):
        next(over_draws(checkpoint, PLAN, train, draws=1))
    still = replace(train, augmentation=None)
    with pytest.raises(SpectraError, match="images with an augmentation"):
        next(over_draws(checkpoint, PLAN, still))


def test_an_operator_of_rounding_alone_is_marked() -> None:
    """A class that is fitted to the last bits: 1 - p is rounding, and not symmetric."""
    checkpoint, train = load_checkpoint(SGD), open_data(load_checkpoint(SGD).data)
    plan = replace(PLAN, classes=(0,), max_samples=20)
    (sound,) = over_draws(checkpoint, plan, train, draws=2)
    assert sound.fixed
    assert "!" not in table([sound])
    head = [m for m in checkpoint.model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.weight *= 10
        head.bias *= 10
    (noise,) = over_draws(checkpoint, plan, train, draws=2)
    assert max(noise.losses) < 1e-9
    assert not noise.fixed
    assert "class 0 !" in table([noise])


def test_ends_that_have_not_converged_are_marked() -> None:
    """The residuals are those of a product: T alone would call them zero."""
    checkpoint, train = load_checkpoint(SGD), open_data(load_checkpoint(SGD).data)
    few, more = (
        next(over_draws(checkpoint, replace(PLAN, steps=steps), train, draws=2))
        for steps in (3, 30)
    )
    assert not few.converged
    assert "class 8 ~" in table([few])
    assert more.converged
    assert "~" not in table([more])
    assert min(more.residual_max) > 1e-12 * max(more.lambda_max)


def test_draws_of_another_question_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--steps", "4", "--quiet", "--out", str(tmp_path)]
    first = [str(SGD), "--classes", "8", "--draws", "2", *flags]
    assert main(first) == 0
    before = (tmp_path / "draws.json").read_bytes()
    for told, other in (
        ("1 more, as class 8", ["--classes", "9", "--draws", "2"]),
        ("draws (2, now 3)", ["--classes", "8", "--draws", "3"]),
        ("seed (0, now 1)", ["--classes", "8", "--draws", "2", "--seed", "1"]),
    ):
        assert main([str(SGD), *other, *flags]) == 2
        assert told in capsys.readouterr().err
        assert (tmp_path / "draws.json").read_bytes() == before
    assert main(first) == 0  # the same question
    assert main([str(SGD), "--classes", "9", "--draws", "2", *flags, "--overwrite"]) == 0
    assert [d["label"] for d in json.loads((tmp_path / "draws.json").read_text())["draws"]] == [
        "class 9"
    ]
    (tmp_path / "draws.json").write_text("{")
    assert main(first) == 2
    assert "truncated or holds no draws" in capsys.readouterr().err
