"""SAM against a calculation by hand, and what it may not touch."""

import copy

import pytest
import torch
from torch import Tensor, nn

from spectra.training.steps import sam_step, sgd_step, still_statistics


class Bowl(nn.Module):
    """L(w) = ½ wᵀ diag(3, −1) w, split over two parameters so that the norm must be global."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.4], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
        self.unused = nn.Parameter(torch.tensor([7.0], dtype=torch.float64))

    def forward(self) -> Tensor:
        return (1.5 * self.a**2 - 0.5 * self.b**2).sum()


def test_sam_on_a_quadratic_equals_the_hand_calculation() -> None:
    bowl, rho, lr, decay, momentum = Bowl(), 0.26, 0.1, 0.01, 0.9
    optimizer = torch.optim.SGD(bowl.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    seen: list[tuple[float, float]] = []

    def forward() -> tuple[Tensor, Tensor]:
        seen.append((bowl.a.item(), bowl.b.item()))
        return bowl(), torch.zeros(1, 2)

    loss, _ = sam_step(forward, optimizer, network=bowl, rho=rho)
    # g = (1.2, −0.5), ‖g‖ = 1.3, e = 0.26/1.3·g = (0.24, −0.1)
    assert seen[0] == (0.4, 0.5)
    assert seen[1] == pytest.approx((0.64, 0.4), rel=1e-10)
    assert loss.item() == pytest.approx(0.115)  # at w: 0.24 − 0.125, not at w + e
    # g′ = (3·0.64, −0.4); weight decay acts at w
    va, vb = 1.92 + decay * 0.4, -0.4 + decay * 0.5
    a, b = 0.4 - lr * va, 0.5 - lr * vb
    assert (bowl.a.item(), bowl.b.item()) == pytest.approx((a, b), rel=1e-10)
    assert bowl.unused.item() == 7.0  # no gradient: neither climbed nor decayed

    sam_step(forward, optimizer, network=bowl, rho=rho)
    scale = rho / (9 * a**2 + b**2) ** 0.5
    va = momentum * va + 3 * (a + scale * 3 * a) + decay * a
    vb = momentum * vb - (b - scale * b) + decay * b
    expected = (a - lr * va, b - lr * vb)
    assert (bowl.a.item(), bowl.b.item()) == pytest.approx(expected, rel=1e-10)


def test_a_radius_of_zero_is_plain_sgd_bit_for_bit() -> None:
    torch_seed = torch.Generator().manual_seed(0)
    network = _with_batch_norm()
    twin = copy.deepcopy(network)
    x = torch.randn(8, 3, generator=torch_seed)
    for model, step in ((network, "sam"), (twin, "sgd")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def forward(model: nn.Module = model) -> tuple[Tensor, Tensor]:
            logits = model(x)
            return logits.square().mean(), logits

        for _ in range(3):
            if step == "sam":
                sam_step(forward, optimizer, network=model, rho=0.0)
            else:
                sgd_step(forward, optimizer)
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_batch_norm_statistics_move_in_the_first_pass_only() -> None:
    """P48: the statistics after a step are those of one pass at w; the loss and logits too."""
    network = _with_batch_norm()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    once = copy.deepcopy(network)
    expected = once(x)
    passes: list[Tensor] = []

    def forward() -> tuple[Tensor, Tensor]:
        passes.append(network(x))
        return passes[-1].square().mean(), passes[-1]

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss, logits = sam_step(forward, optimizer, network=network, rho=0.5)
    for name, value in once.named_buffers():
        assert torch.equal(network.get_buffer(name), value), name
    assert torch.equal(logits, expected)
    assert loss == expected.square().mean()
    # The second pass ran at other weights and still normalised by its own batch.
    assert not torch.equal(passes[1], expected)
    torch.testing.assert_close(network[0](x).mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_statistics_move_again_after_an_error_in_the_second_pass() -> None:
    network = _with_batch_norm()
    with pytest.raises(RuntimeError), still_statistics(network):
        raise RuntimeError
    assert network[0].track_running_stats


def _with_batch_norm() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 4), nn.BatchNorm1d(4))
