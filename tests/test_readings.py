"""What is read off a basis before it goes survives between probes, also from older files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.krylov import SymmetricOperator, lanczos, random_start
from spectra.readings import RitzVectors


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
