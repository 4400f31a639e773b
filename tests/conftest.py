"""What every test shares: the device, shape checks at run time, and the real data where it lies."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from tests.shapes import check_shapes

REPOSITORY = Path(__file__).resolve().parents[1]

# Shape annotations are checked while the tests run, and only then (design: conventions).
if importlib.util.find_spec("beartype") is not None:
    check_shapes("spectra")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that the operators run on: cpu, cuda")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that --device auto means the same everywhere


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda was asked for and this machine has no CUDA device")
    return chosen


@pytest.fixture(autouse=True)
def no_recording_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failed CUDA graph ends all recording in a process."""
    monkeypatch.setattr("spectra.devices._FAILED", "")


@pytest.fixture(autouse=True)
def nobody_is_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine anything takes long, and would be announced."""
    monkeypatch.setattr("spectra.terminal._PATIENCE", 3600.0)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real CIFAR-10 and CIFAR-100 (developers and CI have it, users do not).

    Open it with ``download=False``: no test fetches an archive.
    """
    folder = REPOSITORY.parent / "shared" / "data"
    for name in ("cifar10", "cifar100"):
        if not any((folder / name).glob("*")):
            pytest.skip(f"the real {name} is not beside this repository (../shared/data/{name})")
    return folder
