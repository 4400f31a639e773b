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


class _Small(torch.nn.Module):
    """A network on a machine with memory for so many samples."""

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.inner, self.most, self.error, self.tried = _linear(), most, error, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tried.append(len(x))
        if len(x) > self.most:
            raise self.error("bad_alloc")
        return self.inner(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_that_does_not_fit_is_halved(samples: Samples, error: type[Exception]) -> None:
    network = _Small(most=130, error=error)
    found, expected = evaluate(network, samples), evaluate(network.inner, samples)
    assert len(samples) == 453
    assert network.tried == [453, 226, 113, 113, 113, 113, 1]
    assert found.class_accuracy == expected.class_accuracy
    assert found.class_loss == pytest.approx(expected.class_loss, rel=1e-5)
    assert network.training


def test_where_no_sample_fits_the_error_is_passed_on(samples: Samples) -> None:
    network = _Small(most=0)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(network, samples, batch_size=4)
    assert network.tried == [4, 2, 1]


def test_another_error_is_not_taken_for_memory(samples: Samples) -> None:
    network = _linear()
    with pytest.raises(RuntimeError, match="shape"):
        evaluate(torch.nn.Sequential(network, torch.nn.Linear(3, 10)), samples)


def test_mirror_images_are_averaged_on_demand(samples: Samples) -> None:
    network = _linear()
    x = samples.prepared()
    with torch.no_grad():
        logits = (network(x) + network(x.flip(-1))) / 2
    expected = F.cross_entropy(logits, samples.targets).item()
    assert evaluate(network, samples, flip=True).loss == pytest.approx(expected, rel=1e-6)
    assert evaluate(network, samples).loss != pytest.approx(expected, rel=1e-3)
