"""What is read off T is true of H; what is read off a basis survives between probes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.doctor import Certificate, examine
from spectra.krylov import SymmetricOperator, extremes_of, lanczos, random_start
from spectra.readings import RitzVectors, assemble
from spectra.results import ClassSpectrum


@pytest.fixture
def saved(tmp_path: Path) -> RitzVectors:
    d = torch.linspace(-1, 2, 30, dtype=torch.float64)
    vectors = RitzVectors(tmp_path / "ritz-vectors.pt", "class 8")
    A = SymmetricOperator(lambda v: d * v, 30, torch.float64)
    vectors.take(lanczos(A, random_start(30, seed=0, probe=0), steps=10))
    vectors.known_forms = np.array([0.25, -0.5])
    vectors.save(1)
    return vectors


def test_what_is_kept_between_probes_is_read_back(saved: RitzVectors) -> None:
    found = RitzVectors(saved.path, "class 8")
    assert found.load(1)
    assert found.values == saved.values
    assert torch.equal(found.low, saved.low)
    assert found.known_forms.tolist() == [0.25, -0.5]


def test_a_file_that_knows_nothing_of_the_trace_leaves_it_to_plain_samples(
    saved: RitzVectors,
) -> None:
    state = torch.load(saved.path, weights_only=True)
    del state["known_forms"]  # as earlier versions wrote it
    torch.save(state, saved.path)
    found = RitzVectors(saved.path, "class 8")
    assert found.load(1)
    assert found.known_forms is None


@pytest.mark.parametrize(("label", "probes"), [("class 9", 1), ("class 8", 2)])
def test_vectors_of_other_runs_are_not_taken(label: str, probes: int, saved: RitzVectors) -> None:
    assert not RitzVectors(saved.path, label).load(probes)


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_the_lower_bound_knows_how_far_the_products_are_off(off: float) -> None:
    """Products that are off in the same way each time pass every other test."""
    d = torch.linspace(-1, 2, 30, dtype=torch.float64)
    products = SymmetricOperator(lambda v: d * v + off * v, 30, torch.float64)
    run = lanczos(products, random_start(30, seed=0, probe=0), steps=30)
    ends = extremes_of(run)
    certificate = Certificate("none", "float64", float(-1), 0.0, 1e-15, True, None)
    outline = ClassSpectrum(label="class 8", name="", count=1, share=1.0)
    found = assemble(outline, [run], ends, np.zeros(0), examine(products), certificate)
    assert found.lambda_min == pytest.approx(-1 + off, abs=1e-12)
    assert -1 - 2e-12 - off <= found.certificate["lower_bound_95"] <= -1 + 1e-12
