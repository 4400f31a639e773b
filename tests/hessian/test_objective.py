"""The loss and its gradient beside the parameters: as if the network had been moved, untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.hessian import Objective
from spectra.losses import LossSpec

N, CLASSES = 11, 3


def conv_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(75, CLASSES),
        ).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 1, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(N) % CLASSES


@pytest.mark.parametrize("batch_size", [4, N])
def test_a_shift_gives_the_loss_and_gradient_of_the_moved_network(
    batch_size: int, device: torch.device
) -> None:
    """Against plain autograd on a copy that is moved in place; the head's bias is frozen."""
    model, (x, y), weights = conv_net(), data(), torch.tensor([0.5, 1.0, 3.0]).double()
    model[4].bias.requires_grad_(False)
    loss = LossSpec(weights=tuple(weights.tolist()))
    objective = Objective.of(
        model, (x, y), loss, dtype=torch.float64, device=device, batch_size=batch_size
    )
    shift = torch.randn(objective.dim, generator=torch.Generator().manual_seed(2)).double()
    still = {name: p.clone() for name, p in objective.network.named_parameters()}
    moved = copy.deepcopy(model).eval()
    pieces = shift.split([p.numel() for p in moved.parameters()])
    with torch.no_grad():
        for p, piece in zip(moved.parameters(), pieces, strict=True):
            p.add_(piece.view_as(p) * p.requires_grad)
    losses = F.cross_entropy(moved(x), y, reduction="none")
    value = (losses * weights[y]).sum() / weights[y].sum()
    slopes = torch.autograd.grad(value, [p for p in moved.parameters() if p.requires_grad])
    expected = torch.cat([g.reshape(-1) for g in (*slopes, torch.zeros(CLASSES))])
    value = float(value.detach())
    assert objective.value(shift=shift) == pytest.approx(value, rel=1e-12)
    assert torch.allclose(objective.gradient(shift=shift).cpu(), expected, rtol=1e-10, atol=1e-13)
    assert objective.value() != pytest.approx(value, rel=1e-2)
    assert objective.value(shift=0 * shift) == objective.value()
    assert all(torch.equal(p, still[name]) for name, p in objective.network.named_parameters())


def test_the_loss_halves_the_batch_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective.of(conv_net(), data(), dtype=torch.float64, batch_size=N)
    expected, original = objective.value(), Objective._weighted_sum

    def stingy(self: Objective, inputs: Tensor, *rest: object) -> Tensor:
        if len(inputs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs, *rest)

    monkeypatch.setattr(Objective, "_weighted_sum", stingy)
    assert objective.value() == pytest.approx(expected, rel=1e-14)
    assert objective.batch_size == 2
