"""Scores are plain means over samples and classes, and leave the network as it was."""

import pytest
import torch
import torch.nn.functional as F

from spectra.data import Samples, open_data
from spectra.training import evaluate, find_recipe


@pytest.fixture(scope="module")
def samples() -> Samples:
    return open_data(find_recipe("digits-lt-ce-sgd").data_spec)


def _linear() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def test_scores_are_means_over_all_samples_and_classes(samples: Samples) -> None:
    network = _linear()
    scores = evaluate(network, samples, scale=3.0, batch_size=100)
    with torch.no_grad():
        logits = 3.0 * network(samples.prepared())
    loss = F.cross_entropy(logits, samples.targets)
    assert scores.loss == pytest.approx(loss.item(), rel=1e-6)
    assert scores.accuracy == (logits.argmax(1) == samples.targets).double().mean()
    eight = samples.targets == 8
    expected = F.cross_entropy(logits[eight], samples.targets[eight])
    assert scores.class_loss[8] == pytest.approx(expected.item(), rel=1e-6)
    assert scores.of((7, 8)) == pytest.approx(sum(scores.class_accuracy[7:9]) / 2)
    assert scores.named("test")["test_accuracy"] == scores.accuracy
    assert network.training


def test_mirror_images_are_averaged_on_demand(samples: Samples) -> None:
    network = _linear()
    x = samples.prepared()
    with torch.no_grad():
        logits = (network(x) + network(x.flip(-1))) / 2
    expected = F.cross_entropy(logits, samples.targets).item()
    assert evaluate(network, samples, flip=True).loss == pytest.approx(expected, rel=1e-6)
    assert evaluate(network, samples).loss != pytest.approx(expected, rel=1e-3)
