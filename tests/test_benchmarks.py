"""The benchmarks run, at sizes that say nothing about speed."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

from spectra.checkpoint import save_checkpoint
from spectra.models import ModelSpec


@pytest.fixture
def bench(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))

    def run(name: str, *arguments: str) -> dict[str, Any]:
        for module in (name, "common"):
            sys.modules.pop(module, None)
        importlib.import_module(name).main(
            ["--quick", "--arch", "resnet8", "--out", str(tmp_path), *arguments]
        )
        (written,) = tmp_path.glob(f"{name}-*.json")
        assert str(Path.home()) not in written.read_text()
        assert str(repository) not in written.read_text()
        record: dict[str, Any] = json.loads(written.read_text())
        assert record["benchmark"] == name
        assert record["machine"]["cpu"]
        assert f"-{record['machine']['instructions'].lower()}" in written.stem
        assert (record["threads"] > 1) == written.stem.endswith("-threads")
        assert record["versions"]["torch"]
        return record["results"]

    return run


def test_all_ways_of_multiplying_agree_to_rounding_in_float64(bench):
    small = ("--samples", "4", "--batch-size", "2", "--repetitions", "1", "--device", "cpu")
    results = bench("product", *small)
    assert results["gradient"]["gradients"] == 1
    errors = {name: row["error"] for name, row in results.items() if name != "gradient"}
    assert {"reverse-over-forward", "forward-over-reverse", "double-backward"} <= set(errors)
    assert max(errors.values()) < 1e-10
    assert not [row["note"] for row in results.values() if "note" in row]


def test_a_way_says_where_it_has_fallen_back(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    common = importlib.import_module("common")

    class Kept:
        note, launched = "", ""

        def product(self, vector: float) -> float:
            return vector

    kept = Kept()
    for way in (kept.product, partial(kept.product, 1.0), partial(abs, 1.0), abs):
        assert common.fallen_back(way) == ""
    kept.note, kept.launched = "no room", "not recorded"
    for way in (kept.product, partial(kept.product, 1.0)):
        assert common.fallen_back(way) == "no room; not recorded"
    assert common.fallen_back(abs) == ""


def test_products_with_several_vectors_agree_with_those_one_after_the_other(bench):
    results = bench(
        "probes", "--batch-size", "4", "--probes", "2", "--repetitions", "1", "--device", "cpu"
    )
    assert len(results) == 5
    for way in results.values():
        assert way["relative_difference"] < 1e-2  # float32: single ReLUs may turn
        assert way["of_gradients"] > 0


def test_the_parts_of_a_product_are_shares_of_it(bench):
    results = bench("parts", "--samples", "4", "--batch-size", "2", "--device", "cpu")
    assert set(results) == {"gradient", "linearized"}
    for row in results.values():
        assert 0 < row["convolutions"] < sum(row["shares"].values()) <= 1.001


def test_layouts_change_the_speed_of_a_product_alone(bench):
    results = bench("layouts", "--dtype", "float64", "--repetitions", "1", "--device", "cpu")
    assert set(results) == {"4, channels-last", "4, contiguous"}
    for name, row in results.items():
        assert name.endswith(row["filters"])
        assert row["relative_difference"] < 1e-13
        assert row["samples_per_second"] == 4 / row["seconds"] > 0


def test_the_share_beside_the_products_is_one(bench):
    results = bench("overhead", "--steps", "3", "--cap", "4", "--repetitions", "1")
    assert len(results["classes"]) == 10
    assert 0 < results["share"] < results["share_of_the_smallest_class"] < 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is Linux's")
def test_memory_is_measured_in_processes_of_their_own(bench):
    sizes = ("--batch-sizes", "2", "--steps", "3", "--samples", "4", "--room", "1000")
    results = bench("memory", *sizes)
    assert results["runs"][0]["basis_formula_mb"] == pytest.approx(3 * 75_290 * 4 / 2**20)
    assert results["too_little_memory"]["error"] < 1e-4


def test_an_epoch_is_compared_with_its_bare_passes(bench):
    results = bench("training", "--samples", "20", "--repetitions", "1", "--device", "cpu")
    assert len(results) == 8  # two steps, two precisions, bare and plain
    for row in results.values():
        assert (row["of_bare"] == 1) == (row["path"] == "bare")
        assert row["images_per_second"] == pytest.approx(20 / row["seconds"])


def test_the_whole_job_takes_turns_with_the_released_protocol(bench, monkeypatch, tmp_path):
    turns: list[int] = []

    class Hessian:
        """As many products as its methods are told, none of them with a Hessian."""

        def __init__(self, model: nn.Module, loss: nn.Module, dataloader: Any, cuda: bool) -> None:
            self.params = list(model.parameters())
            turns.append(sum(len(targets) for _, targets in dataloader))

        def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
            return 1.0, v

        def eigenvalues(self, **options: Any) -> None:
            self.dataloader_hv_product(self.params)

        def trace(self, **options: Any) -> None:
            for _ in range(2):
                self.dataloader_hv_product(self.params)

    peer = ModuleType("pyhessian")
    peer.hessian = Hessian  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyhessian", peer)
    small, spec = tmp_path / "small.pt", ModelSpec("resnet8", 10)
    save_checkpoint(small, spec.build(), model_spec=spec)
    sizes = ("--classes", "8,9", "--cap", "2", "--steps", "3", "--device", "cpu")
    results = bench("job", "--checkpoint", str(small), *sizes)
    assert turns == [2, 2]
    ours, theirs = results["spectra"], results["released"]
    assert (ours["classes"], ours["failed"], ours["products"]) == (2, [], 2 * (3 + 21))
    assert (theirs["products"], theirs["sample_products"]) == (2 * (3 + 3), 2 * 2 * (3 + 3))
    assert ours["sample_products"] == 2 * ours["products"]
    assert theirs["goal"] == pytest.approx(2.2 * 24 / 96)
    assert theirs["ratio"] == theirs["seconds"] / ours["seconds"] > 0
    assert 0 < ours["beside_products"] < 1


def test_processes_share_a_product_that_stays_the_same(bench):
    sizes = ("--samples", "6", "--batch-size", "2", "--repetitions", "1")
    run = bench("processes", *sizes, "--device", "cpu")["2"]
    assert run["gain"] == run["alone"] / run["shared"]
    assert run["relative_difference"] < 1e-5


def test_time_and_memory_are_measured_over_samples_steps_and_parameters(bench):
    results = bench("scaling", "--device", "cpu")
    samples, steps = results["samples"]["seconds"], results["steps"]["seconds"]
    assert [*samples] == ["30", "100"]
    assert [*steps] == ["5", "10"]
    assert min(*samples.values(), *steps.values()) > 0
    for row in results["parameters"].values():
        assert row["seconds_per_step"] > 0
        assert row["peak_gb"] > 4e-9 * row["parameters"]
