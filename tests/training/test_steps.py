"""Each step against a calculation by hand or a few lines of autograd, and what it may not touch."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.training.steps import (
    WHOLE,
    Escape,
    Gradient,
    Pass,
    Weights,
    descend,
    imbsam,
    lpf_sgd,
    pgd,
    sam,
    sgd,
    sse_sam,
    still_statistics,
)

DOUBLE = torch.float64


class Bowl(nn.Module):
    """L(w) = ½ wᵀ diag(3, −1) w, split over two parameters so that the norm must be global."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.4], dtype=DOUBLE))
        self.b = nn.Parameter(torch.tensor([0.5], dtype=DOUBLE))
        self.unused = nn.Parameter(torch.tensor([7.0], dtype=DOUBLE))
        self.seen: list[tuple[float, float]] = []

    def forward(self, _: slice) -> Pass:
        self.seen.append((self.a.item(), self.b.item()))
        loss = 1.5 * self.a**2 - 0.5 * self.b**2
        return Pass(loss, torch.ones((), dtype=DOUBLE), torch.zeros(1, 2, dtype=DOUBLE))


def test_sam_on_a_quadratic_equals_the_hand_calculation() -> None:
    bowl, rho, lr, decay, momentum = Bowl(), 0.26, 0.1, 0.01, 0.9
    weights = Weights(bowl)
    momenta = [torch.zeros_like(p) for p in weights.parameters]

    def step() -> Pass:
        slope, here = sam(weights, bowl, radius=rho)
        descend(weights.parameters, momenta, slope, lr=lr, momentum=momentum, weight_decay=decay)
        return here

    here = step()
    # g = (1.2, −0.5), ‖g‖ = 1.3, e = 0.26/1.3·g = (0.24, −0.1)
    assert bowl.seen[0] == (0.4, 0.5)
    assert bowl.seen[1] == pytest.approx((0.64, 0.4), rel=1e-10)
    assert here.loss().item() == pytest.approx(0.115)  # at w: 0.24 − 0.125, not at w + e
    # g′ = (3·0.64, −0.4); weight decay acts at w
    va, vb = 1.92 + decay * 0.4, -0.4 + decay * 0.5
    a, b = 0.4 - lr * va, 0.5 - lr * vb
    assert (bowl.a.item(), bowl.b.item()) == pytest.approx((a, b), rel=1e-10)
    assert bowl.unused.item() == 7.0  # no gradient: neither climbed nor decayed

    step()
    scale = rho / (9 * a**2 + b**2) ** 0.5
    va = momentum * va + 3 * (a + scale * 3 * a) + decay * a
    vb = momentum * vb - (b - scale * b) + decay * b
    assert (bowl.a.item(), bowl.b.item()) == pytest.approx((a - lr * va, b - lr * vb), rel=1e-10)


def test_adaptive_sam_climbs_in_units_of_the_weights() -> None:
    bowl, rho = Bowl(), 0.26
    sam(Weights(bowl), bowl, radius=rho, adaptive=True)
    # wg = (0.48, −0.25); e = ρ·w²g/‖wg‖
    length = (0.48**2 + 0.25**2) ** 0.5
    expected = (0.4 + rho * 0.16 * 1.2 / length, 0.5 - rho * 0.25 * 0.5 / length)
    assert bowl.seen[1] == pytest.approx(expected, rel=1e-10)


def test_descending_equals_torchs_sgd() -> None:
    generator = torch.Generator().manual_seed(0)
    w = [torch.randn(3, 2, generator=generator, dtype=DOUBLE) for _ in range(2)]
    mine, theirs = [t.clone() for t in w], [t.clone().requires_grad_() for t in w]
    tensor_rate = [t.clone() for t in w]
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.02)
    momenta, others = ([torch.zeros_like(t) for t in w] for _ in range(2))
    for _ in range(4):
        slope: Gradient = [torch.randn(3, 2, generator=generator, dtype=DOUBLE) for _ in w]
        how = {"momentum": 0.9, "weight_decay": 0.02}
        descend(mine, momenta, slope, lr=0.1, **how)
        descend(tensor_rate, others, slope, lr=torch.tensor(0.1, dtype=DOUBLE), **how)
        for parameter, gradient in zip(theirs, slope, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for a, b, c in zip(mine, theirs, tensor_rate, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, a, rtol=1e-14, atol=1e-15)


class Problem:
    """A small network, a weighted batch, and plain autograd for what each step should give."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(12, 3, generator=generator, dtype=DOUBLE)
        self.y = torch.randint(3, (12,), generator=generator)
        self.sizes = torch.rand(12, generator=generator, dtype=DOUBLE) + 0.5
        self.rare = self.y == 2
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)
            self.network = nn.Sequential(*layers).double()
        self.weights = Weights(self.network)

    def forward(self, part: slice) -> Pass:
        logits = self.network(self.x[part])
        losses = F.cross_entropy(logits, self.y[part], reduction="none")
        return Pass(self.sizes[part] * losses, self.sizes[part].sum(), logits)

    def gradient(
        self, sizes: Tensor, shift: list[Tensor] | None = None, scale: float = 1.0
    ) -> list[Tensor]:
        """Differentiate Σ sizes·ℓ / Σ(all sizes) at w + scale·shift, on a copy."""
        copied = copy.deepcopy(self.network)
        with torch.no_grad():
            for p, d in zip(copied.parameters(), shift or [], strict=False):
                p += scale * d
        losses = F.cross_entropy(copied(self.x), self.y, reduction="none")
        loss = (sizes * losses).sum() / self.sizes.sum()
        return list(torch.autograd.grad(loss, list(copied.parameters())))


@pytest.fixture
def problem() -> Problem:
    return Problem()


def _length(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.flatten() for t in tensors]).norm())


def _same(found: Gradient, expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def _tail(p: Problem) -> Tensor:
    return torch.where(p.rare, p.sizes, 0)


def _head(p: Problem) -> Tensor:
    return torch.where(p.rare, 0, p.sizes)


def test_sgd_follows_the_weighted_mean(problem: Problem) -> None:
    slope, here = sgd(problem.weights, problem.forward)
    _same(slope, problem.gradient(problem.sizes))
    logits = problem.network(problem.x)
    weighted = F.cross_entropy(logits, problem.y, reduction="none") * problem.sizes
    assert here.loss().item() == pytest.approx((weighted.sum() / problem.sizes.sum()).item())


def test_imbsam_adds_the_head_at_w_and_twice_the_climbed_tail(problem: Problem) -> None:
    head, tail = problem.gradient(_head(problem)), problem.gradient(2 * _tail(problem))
    climbed = problem.gradient(2 * _tail(problem), tail, 0.3 / _length(tail))
    found, _ = imbsam(problem.weights, problem.forward, problem.rare, radius=0.3)
    _same(found, [h + t for h, t in zip(head, climbed, strict=True)])


def test_imbsam_of_equal_weights_scales_by_one_and_two_over_the_batch(problem: Problem) -> None:
    """The published 1/B and 2/B: sums over head and tail samples, not means of the groups."""
    problem.sizes = torch.ones_like(problem.sizes)
    found, _ = imbsam(problem.weights, problem.forward, problem.rare, radius=0.0)
    losses = F.cross_entropy(problem.network(problem.x), problem.y, reduction="none")
    loss = losses[~problem.rare].sum() / 12 + 2 * losses[problem.rare].sum() / 12
    _same(found, list(torch.autograd.grad(loss, problem.weights.parameters)))


@pytest.mark.parametrize("rarity", [False, True])
@pytest.mark.parametrize("step", ["imbsam", "sse-sam"])
def test_a_batch_of_one_kind_alone_gives_no_nan(step: str, rarity: bool, problem: Problem) -> None:
    rare = torch.full((12,), rarity)
    if step == "imbsam":
        found, here = imbsam(problem.weights, problem.forward, rare, radius=0.5)
    else:
        found, here = sse_sam(
            problem.weights, problem.forward, rare, radius=0.5, tail_radius=0.5, climb_head=True
        )
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in found)
    assert bool(torch.isfinite(here.loss()))
    if not rarity and step == "imbsam":  # no tail sample: plain SGD
        _same(found, problem.gradient(problem.sizes))


def test_sse_sam_climbs_both_losses_and_later_the_tails_alone(problem: Problem) -> None:
    head, tail = problem.gradient(_head(problem)), problem.gradient(_tail(problem))
    high = problem.gradient(_head(problem), head, 0.2 / _length(head))
    far = problem.gradient(_tail(problem), tail, 0.4 / _length(tail))
    for climb, first in ((True, high), (False, head)):
        found, _ = sse_sam(
            problem.weights, problem.forward, problem.rare,
            radius=0.2, tail_radius=0.4, climb_head=climb,
        )  # fmt: skip
        _same(found, [h + t for h, t in zip(first, far, strict=True)])


def test_lpf_sgd_averages_over_parts_with_noise_in_units_of_the_filters(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = [p.shape for p in problem.weights.parameters]
    noise = [[torch.randn(s, generator=generator, dtype=DOUBLE) for s in shapes] for _ in range(2)]
    parts = [slice(0, 5), slice(5, 12)]
    found, here = lpf_sgd(problem.weights, problem.forward, noise=noise, deviation=0.1, parts=parts)
    expected = [torch.zeros(s, dtype=DOUBLE) for s in shapes]
    for part, draw in zip(parts, noise, strict=True):
        # Rows of a matrix are its filters; a bias is one vector.
        shift = [
            d * (p.norm(dim=1, keepdim=True) if p.dim() == 2 else p.norm())
            for p, d in zip(problem.weights.parameters, draw, strict=True)
        ]
        sizes = torch.zeros_like(problem.sizes)
        sizes[part] = problem.sizes[part]
        for total, g in zip(expected, problem.gradient(sizes, shift, 0.1), strict=True):
            total += g
    _same(found, expected)
    assert torch.equal(here.logits, problem.network(problem.x))  # logged at w


def test_pgd_perturbs_for_good_only_when_it_is_due(problem: Problem) -> None:
    ball = [torch.ones_like(p) for p in problem.weights.parameters]
    size = _length([p.detach() for p in problem.weights.parameters])
    start = [p.detach().clone() for p in problem.weights.parameters]
    memory = Escape(torch.tensor(1.0, dtype=DOUBLE), torch.tensor(3.0))

    def step(threshold: float, interval: int) -> Gradient:
        return pgd(
            problem.weights, problem.forward, noise=ball, radius=0.01,
            threshold=threshold, interval=interval, memory=memory,
        )[0]  # fmt: skip

    def moved() -> float:
        pairs = zip(problem.weights.parameters, start, strict=True)
        return max(float((p.detach() - s).abs().max()) for p, s in pairs)

    step(threshold=0.5, interval=1)  # the last gradient's norm was 1: too large
    assert moved() == 0
    assert float(memory.since) == 4
    slope = step(threshold=2.0, interval=5)  # small enough, and four steps ago is the fifth
    assert moved() == pytest.approx(0.01 * size, rel=1e-12)
    assert float(memory.since) == 0
    _same(slope, problem.gradient(problem.sizes))  # at the new w
    assert float(memory.last_norm) == pytest.approx(_length([g for g in slope if g is not None]))
    before = moved()
    step(threshold=2.0, interval=5)  # too soon
    assert moved() == before


Step = Callable[[Problem], object]
VISITS: dict[str, Step] = {
    "sam": lambda p: sam(p.weights, p.forward, radius=0.5),
    "imbsam": lambda p: imbsam(p.weights, p.forward, p.rare, radius=0.5),
    "sse-sam": lambda p: sse_sam(
        p.weights, p.forward, p.rare, radius=0.5, tail_radius=0.5, climb_head=True
    ),
    "lpf-sgd": lambda p: lpf_sgd(
        p.weights, p.forward, deviation=0.1, parts=[WHOLE],
        noise=[[torch.ones_like(w) for w in p.weights.parameters]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VISITS)
def test_every_bit_of_the_weights_is_restored(name: str, problem: Problem) -> None:
    before = copy.deepcopy(problem.network.state_dict())
    VISITS[name](problem)
    for key, value in problem.network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in problem.network.parameters())


def test_the_weights_are_restored_after_an_error_too(problem: Problem) -> None:
    before = copy.deepcopy(problem.network.state_dict())
    direction = [torch.ones_like(p) for p in problem.weights.parameters]
    with pytest.raises(RuntimeError), problem.weights.moved(direction, 1.0):
        raise RuntimeError
    for key, value in problem.network.state_dict().items():
        assert torch.equal(value, before[key]), key


def _normalised(p: Problem) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3), nn.BatchNorm1d(3)
        p.network = nn.Sequential(*layers).double()
    p.weights = Weights(p.network)
    return p.network


@pytest.mark.parametrize("name", VISITS)
def test_batch_norm_statistics_move_in_the_first_pass_only(name: str, problem: Problem) -> None:
    """P48: the statistics after a step are those of one pass at w; the logits too."""
    network = _normalised(problem)
    once = copy.deepcopy(network)
    expected = once(problem.x)
    passes: list[Tensor] = []
    forward = problem.forward

    def watched(part: slice) -> Pass:
        found = forward(part)
        passes.append(found.logits)
        return found

    problem.forward = watched  # type: ignore[method-assign]
    _, here = VISITS[name](problem)  # type: ignore[misc]
    for key, value in once.named_buffers():
        assert torch.equal(network.get_buffer(key), value), key
    assert torch.equal(here.logits, expected)
    assert not torch.equal(passes[-1], expected)  # the last pass ran at other weights


def test_batch_norm_statistics_move_in_both_passes_on_demand(problem: Problem) -> None:
    """The released behaviour: a second update of the statistics, at w + e."""
    network = _normalised(problem)
    problem.weights.still = False
    sam(problem.weights, problem.forward, radius=0.5)
    assert int(network[0].num_batches_tracked) == 2
    problem.weights.still = True
    sam(problem.weights, problem.forward, radius=0.5)
    assert int(network[0].num_batches_tracked) == 3


def test_statistics_move_again_after_an_error_in_the_second_pass(problem: Problem) -> None:
    network = _normalised(problem)
    with pytest.raises(RuntimeError), still_statistics(network):
        raise RuntimeError
    assert network[0].track_running_stats


def test_a_radius_of_zero_is_sgd_bit_for_bit(problem: Problem) -> None:
    plain, _ = sgd(problem.weights, problem.forward)
    none, _ = sam(problem.weights, problem.forward, radius=0.0)
    for one, other in zip(plain, none, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
