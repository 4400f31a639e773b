"""Slices, surfaces and amplification against quadratics, closed forms and plain autograd."""

import copy
import math
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra import Plan, load_checkpoint, open_data
from spectra.data import Samples
from spectra.errors import SpectraError
from spectra.hessian import Objective, class_operators, hessian_operator
from spectra.krylov import Tridiagonal, random_start
from spectra.landscape import (
    Amplification,
    Slice,
    Survey,
    amplification,
    explore,
    exploring,
    filter_normalised,
    loss_slice,
    slices,
    surface,
)
from spectra.landscape.amplification import minibatch
from spectra.landscape.subject import direction_in
from spectra.losses import LossSpec
from spectra.networks import CosineHead

DIGITS = Path(__file__).resolve().parents[1] / "checkpoints" / "digits-lt-ce-drw-sgd.pt"
DOUBLE = torch.float64


def first_output(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, 0]


class Quadratic(nn.Module):
    """ℓ(x) = c + x₁·½ θᵀAθ + xᵀθ: minibatches differ in their gradients and Hessians x̄₁A."""

    def __init__(self, matrix: Tensor, at: Tensor, level: float = 0.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(at.clone())
        self.register_buffer("matrix", matrix)
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        bowl = 0.5 * self.theta @ self.matrix @ self.theta
        return (self.level + x[:, 0] * bowl + x[:, 1:] @ self.theta)[:, None]


def quadratic(
    device: torch.device | str = "cpu", *, n: int = 6, count: int = 40, spread: float = 0.0
) -> tuple[Objective, Tensor]:
    """Give an objective with H = A, λ from −3 to 2, but each sample's own a multiple of A."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=DOUBLE)).Q
    matrix = q @ torch.diag(torch.linspace(-3, 2, n, dtype=DOUBLE)) @ q.T
    at = torch.randn(n, generator=generator, dtype=DOUBLE)
    x = torch.randn(count, n + 1, generator=generator, dtype=DOUBLE)
    x[:, 0] = 1 + spread * (x[:, 0] - x[:, 0].mean())
    data = x, torch.zeros(count, dtype=torch.long)
    model = Quadratic((matrix + matrix.T) / 2, at, level=5.0)
    objective = Objective.of(
        model, data, first_output, dtype=DOUBLE, device=device, batch_size=count
    )
    return objective, (matrix + matrix.T) / 2


class Kink(nn.Module):
    """½κ|θ|² + J·relu(⟨d, θ − w⟩ − s): from w along d, a kink of slope J at distance s."""

    curvature, jump, place = -0.8, 0.5, 1.3e-3

    def __init__(self) -> None:
        super().__init__()
        at = torch.tensor([0.3, -0.2], dtype=DOUBLE)
        self.theta = nn.Parameter(at)
        self.register_buffer("at", at.detach().clone())
        self.register_buffer("along", torch.tensor([0.6, 0.8], dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        bend = F.relu((self.theta - self.at) @ self.along - self.place)
        loss = 0.5 * self.curvature * (self.theta @ self.theta) + self.jump * bend
        return x * loss


def conv_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 3),
        ).double()
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
        nn.init.uniform_(net[1].weight, 0.5, 2)
    return net


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    return x, torch.arange(count) % 3


class Idle(Quadratic):
    """A quadratic beside parameters that never move."""

    def __init__(self, n: int, frozen: int) -> None:
        super().__init__(torch.zeros(n, n, dtype=DOUBLE), torch.ones(n, dtype=DOUBLE))
        self.frozen = nn.Parameter(torch.zeros(frozen, dtype=DOUBLE), requires_grad=False)


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def test_a_quadratic_bends_alike_at_every_distance(device: torch.device) -> None:
    """Nothing is normalised: distances count in units of ‖v‖, and vᵀHv is of this v."""
    objective, matrix = quadratic(device)
    v = 3 * random_start(6, seed=1, probe=0)
    expected = float(v @ matrix @ v)
    distances = np.logspace(-9, 0, 19)
    cut = loss_slice(objective, v, distances[::-1], slopes=True)
    assert np.allclose(cut.distances, distances)
    assert cut.norm == pytest.approx(3.0)
    assert cut.loss == pytest.approx(objective.value(), rel=1e-14)
    assert cut.slope == pytest.approx(float(v @ objective.gradient().cpu()), rel=1e-12)
    assert np.allclose(cut.bends, 0.5 * cut.positions**2 * expected, atol=1e-13)
    assert cut.positions[[0, 19, -1]].tolist() == pytest.approx([-1, 0, 1])
    assert cut.slope_difference is not None
    for seen in (cut.second_difference, cut.slope_difference):
        assert seen.curvature == pytest.approx(expected, rel=1e-12)
        assert seen.agrees().all()
        assert seen.errors[-1] < 1e-10
        found = seen.agreement()
        assert found is not None
        assert found[1] == 1.0
    assert cut.second_difference.agreement(resolution=0.1)[0] > 1e-8
    assert cut.slope_difference.agreement(resolution=0.1)[0] == pytest.approx(1e-9)


@pytest.mark.parametrize("margin", [1.0, 12.0])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_rounding_stays_within_its_bar(
    dtype: torch.dtype, margin: float, device: torch.device
) -> None:
    """Binary cross-entropy, linear in θ: with z the margin and d = t·dz/dv the second difference is
    log(1 + p(1−p)·4 sinh²(d/2)) in exact arithmetic. At a margin of 12 the losses are far below
    the numbers that they are rounded beside, and 4 eps |L|/t² alone would be no bar."""
    used, used_by_slopes, naive = [], [], []
    distances = np.logspace(-8, -1, 15) if dtype == DOUBLE else np.logspace(-4, 0, 15)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(20, 4, generator=generator, dtype=torch.float32).double()
        x[:, 0] = 1.0
        y = torch.zeros(20, dtype=torch.long)
        model = nn.Linear(4, 2).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float32) / 4)
            model.bias[0] += margin
        v = random_start(10, seed=seed, probe=0)
        v = v.float().double()
        objective = Objective.of(model, (x, y), dtype=DOUBLE, device=device, batch_size=7)
        found = loss_slice(objective, v, distances, dtype=dtype, slopes=True)
        cut, slopes = found.second_difference, found.slope_difference
        assert slopes is not None
        z = numpy(model(x))
        z = z[:, 1] - z[:, 0]
        dz = numpy(x @ v[:8].view(2, 4).T + v[8:])
        d = distances[:, None] * (dz[:, 1] - dz[:, 0])
        p = 1 / (1 + np.exp(-z))
        truth = np.log1p(p * (1 - p) * 4 * np.sinh(d / 2) ** 2).mean(1) / distances**2
        off = np.abs(cut.values - truth)
        used.append(off / cut.errors)
        along = dz[:, 1] - dz[:, 0]
        truth = (along * np.sinh(d) / (np.cosh(z) + np.cosh(d))).mean(1) / (2 * distances)
        used_by_slopes.append(np.abs(slopes.values - truth) / slopes.errors)
        loss = float(np.log1p(np.exp(z)).mean())
        naive.append(off > 4 * torch.finfo(dtype).eps * loss / distances**2)
        if dtype == DOUBLE:
            assert cut.curvature == pytest.approx(truth[0], rel=1e-9)
    assert np.max(used) <= 1
    assert np.max(used) > 0.03, "bars far too long would say little"
    assert 0.03 < np.max(used_by_slopes) <= 1
    if margin > 10:
        assert np.mean(naive) > 0.3, "else the measured noise was not needed"


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_rounding_stays_within_its_bar_where_nothing_rounds_at_rest(
    dtype: torch.dtype, device: torch.device
) -> None:
    """At its minimum a quadratic has neither loss nor gradient to round: its walls have both."""
    _, matrix = quadratic()
    vectors = torch.linalg.eigh(matrix).eigenvectors
    bowl = vectors @ torch.diag(torch.tensor([30, 1, 1.5, 2, 2.5, 100]).double()) @ vectors.T
    bowl = (bowl + bowl.T) / 2
    one = torch.eye(1, 7, dtype=DOUBLE), torch.zeros(1, dtype=torch.long)
    model = Quadratic(bowl, torch.zeros(6, dtype=DOUBLE))
    objective = Objective.of(model, one, first_output, dtype=DOUBLE, device=device)
    by_losses, by_slopes = [], []
    for seed in range(4):
        v = random_start(6, seed=seed, probe=0)
        cut = loss_slice(objective, v, np.logspace(-5, 0, 9), dtype=dtype, slopes=True)
        truth = float(v.double() @ bowl @ v.double())
        for used, seen in ((by_losses, cut.second_difference), (by_slopes, cut.slope_difference)):
            assert seen is not None
            used.append(np.abs(seen.values - truth) / seen.errors)
            assert seen.agreement(resolution=1e-3)[1] == 1.0
    assert 0.03 < np.max(by_losses) <= 1
    assert 0.03 < np.max(by_slopes) <= 1


def test_a_slice_passes_over_the_samples_once_for_loss_and_slope(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """And makes no certificate that is known."""
    model, (x, y) = conv_net(), images()
    H = hessian_operator(model, (x, y), dtype=DOUBLE, device=device, batch_size=7)
    v, distances = random_start(H.dim, seed=0, probe=0), [1e-4, 1e-2]
    certificate = slices.certify(H, v)
    expected = loss_slice(H, v, distances)
    objective, passes = H.objective, 0
    for t, ahead in zip(distances, expected.ahead, strict=True):
        assert ahead == pytest.approx(objective.value(shift=t * v.to(device)), rel=1e-14)
    total: Callable[..., Tensor] = Objective._total

    def counted(self: Objective, share: Any) -> Tensor:
        nonlocal passes
        passes += 1
        return total(self, share)

    monkeypatch.setattr(Objective, "_total", counted)
    monkeypatch.setattr(slices, "certify", None)
    found = loss_slice(H, v, distances, slopes=True, certificate=certificate)
    assert passes == 2 * 2 + 1 + 2 * 11  # at w, and to measure the noise there and at an end
    assert np.allclose(found.losses, expected.losses, rtol=1e-14)
    assert found.slope == pytest.approx(expected.slope, rel=1e-12)
    assert found.second_difference.curvature == expected.second_difference.curvature
    assert found.second_difference.errors == pytest.approx(expected.second_difference.errors)


def test_looking_around_holds_one_basis_at_a_time_and_certifies_each_vector_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the bar is at its end when it is done."""
    checkpoint, runs, certified = load_checkpoint(DIGITS), list[weakref.ref[Tridiagonal]](), []
    for name in ("lanczos", "certify"):
        real = getattr(exploring, name)

        def watched(*given: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            assert not any(held() for held in runs), "a basis is still held"
            made = real(*given, **more)
            if name == "lanczos":
                runs.append(weakref.ref(made))
            else:
                certified.append(made.rayleigh_quotient)
            return made

        monkeypatch.setattr(exploring, name, watched)
    monkeypatch.setattr(slices, "certify", None)
    done = SimpleNamespace(work=0, announced=0)
    bar = SimpleNamespace(
        begin=lambda products, work: vars(done).update(announced=work),
        tick=lambda label, products, work: vars(done).update(work=done.work + work),
    )
    plan, survey = (
        Plan(classes=(8,), steps=4, probes=3, device="cpu"),
        Survey(points=2, nearest=0.1),
    )
    (view,) = explore(
        checkpoint, plan, survey, train=open_data(checkpoint.data), progress=bar
    ).views
    assert len(runs) == 3
    assert certified == [view.low.rayleigh_quotient, view.high.rayleigh_quotient]
    assert done.work == pytest.approx(done.announced, abs=1)


def test_the_agreement_ends_where_the_line_has_a_kink(device: torch.device) -> None:
    one = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=torch.long)
    objective = Objective.of(Kink(), one, first_output, dtype=DOUBLE, device=device)
    distances = np.logspace(-6, -1, 26)
    cut = loss_slice(objective, torch.tensor([0.6, 0.8], dtype=DOUBLE), distances, slopes=True)
    beyond = np.maximum(distances - Kink.place, 0)
    seen, slopes = cut.second_difference, cut.slope_difference
    expected = Kink.curvature + Kink.jump * beyond / distances**2
    assert np.allclose(seen.values, expected, atol=seen.errors + 1e-9)
    assert seen.curvature == pytest.approx(Kink.curvature, rel=1e-12), "H does not know the kink"
    last = distances[distances < Kink.place][-1]
    assert seen.agreement()[1] == pytest.approx(last)
    assert slopes is not None
    assert np.allclose(
        slopes.values,
        Kink.curvature + Kink.jump * (beyond > 0) / (2 * distances),
        atol=slopes.errors + 1e-9,
    )
    assert slopes.agreement() == pytest.approx((1e-6, last))
    assert seen.agreement(resolution=1e-15) is None, "none is resolved so well"
    wide = replace(seen, values=seen.values + 1.0)
    assert wide.agreement() is None, "the first that is resolved disagrees"
    assert replace(seen, values=expected * 1.05).agreement(tolerance=0.06) is not None


def test_a_slice_is_of_the_class_that_the_operator_belongs_to() -> None:
    """Through an operator or an objective; over any batches; a re-drawn augmentation rests."""
    model, (x, y) = conv_net().float().double(), images()
    H = class_operators(model, (x, y), dtype=torch.float32, batch_size=5)[2]
    v = random_start(H.dim, seed=0, probe=0)
    cut = loss_slice(H, v, [1e-3, 1e-2])
    exact = copy.deepcopy(model).eval()
    with torch.no_grad():
        losses = F.cross_entropy(exact(x[y == 2]), y[y == 2], reduction="none")
    assert cut.loss == pytest.approx(float(losses.mean()), rel=1e-13), "float64, whatever H has"
    whole = Objective.of(model, (x, y), dtype=DOUBLE, batch_size=24).select(
        torch.nonzero(y == 2)[:, 0]
    )
    other = loss_slice(whole, v, [1e-3, 1e-2])
    for a, b in ((cut.ahead, other.ahead), (cut.behind, other.behind)):
        assert np.allclose(a, b, rtol=1e-13)
    seen = cut.second_difference
    assert seen.curvature == pytest.approx(other.second_difference.curvature, rel=1e-9)
    assert np.all(np.abs(seen.values - other.second_difference.values) <= 2 * seen.errors)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"direction": torch.ones(5)}, "shape"),
        ({"direction": torch.zeros(6)}, "norm 0"),
        ({"direction": torch.full((6,), float("nan"))}, "norm nan"),
        ({"distances": []}, "0 distances"),
        ({"distances": [0.0, 1.0]}, "positive"),
        ({"distances": [1.0, float("inf")]}, "positive"),
    ],
)
def test_a_slice_without_a_line_or_distances_is_refused(wrong: dict[str, Any], what: str) -> None:
    objective, _ = quadratic()
    given: dict[str, Any] = {"direction": torch.ones(6), "distances": [0.1]} | wrong
    with pytest.raises(SpectraError, match=what):
        loss_slice(objective, **given)


def test_a_surface_holds_the_loss_at_every_point_of_its_grid(device: torch.device) -> None:
    objective, matrix = quadratic(device)
    u, v = 2 * random_start(6, seed=0, probe=0), random_start(6, seed=0, probe=1)
    ticks: list[int] = []
    seen = surface(
        objective, u, v, extents=(1.0, 0.5), points=(5, 3), callback=lambda: ticks.append(1)
    )
    slope = objective.gradient().cpu()
    assert seen.alphas.tolist() == [-1, -0.5, 0, 0.5, 1]
    assert seen.betas.tolist() == [-0.5, 0, 0.5]
    for i, alpha in enumerate(seen.alphas):
        for j, beta in enumerate(seen.betas):
            step = alpha * u + beta * v
            expected = objective.value() + float(slope @ step + 0.5 * step @ matrix @ step)
            assert seen.losses[i, j] == pytest.approx(expected, rel=1e-12)
    assert len(ticks) == 15
    assert seen.norms == pytest.approx((2, 1))
    assert seen.cosine == pytest.approx(float(u @ v) / 2, abs=1e-12)
    assert surface(objective, u, v, points=(2, 2), dtype=torch.float32).losses == pytest.approx(
        surface(objective, u, v, points=(2, 2)).losses, rel=1e-5
    )


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"v": torch.arange(6.0) * -2}, "loss_slice"),
        ({"u": torch.ones(5), "v": torch.arange(5.0)}, "u of shape"),
        ({"extents": (1.0, 0.0)}, "extents"),
        ({"points": (1, 5)}, "points"),
    ],
)
def test_a_surface_without_a_plane_is_refused(wrong: dict[str, Any], what: str) -> None:
    objective, _ = quadratic()
    given: dict[str, Any] = {"u": torch.arange(6.0), "v": torch.ones(6)} | wrong
    with pytest.raises(SpectraError, match=what):
        surface(objective, **given)


def test_every_filter_of_a_normalised_direction_is_as_long_as_the_weights_own(
    device: torch.device,
) -> None:
    """Li et al. 2018: rows of the flattened weights; biases and batch norms stay where they are."""
    model = conv_net()
    model[5].weight.requires_grad_(False)
    with torch.no_grad():
        model[0].weight[1] = 0
    for dtype in (torch.float32, DOUBLE):
        objective = Objective.of(model, images(), dtype=dtype, device=device)
        flat = filter_normalised(objective, seed=3).cpu()
        assert flat.dtype == DOUBLE
        rows = dict(
            zip(
                objective.parameters,
                flat.split([p.numel() for p in model.parameters()]),
                strict=True,
            )
        )
        filters = rows.pop("0.weight").view(3, -1)
        lengths = model[0].weight.detach().flatten(1).norm(dim=1)
        assert torch.allclose(filters.norm(dim=1), lengths, rtol=1e-6 if dtype != DOUBLE else 1e-12)
        assert lengths[1] == 0
        assert not any(row.any() for row in rows.values()), "a frozen head, biases, batch norm"
    raw = random_start(objective.dim, seed=3, probe=0)
    given = raw.clone()
    assert torch.equal(filter_normalised(objective, given).cpu(), flat)
    assert torch.equal(given, raw)
    cosine = F.cosine_similarity(filters[0], raw[:9], dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-12), "rescaled, not turned"
    other = filter_normalised(objective, seed=3, probe=1).cpu()
    assert abs(float(F.cosine_similarity(other, flat, dim=0))) < 0.9
    raw[:9] = 0
    assert not filter_normalised(objective, raw)[:9].any(), "nothing to rescale is no NaN"


def test_a_filter_lies_along_the_axis_of_its_layers_outputs() -> None:
    """Columns of a cosine head; the second axis of a transposed convolution without groups."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.ConvTranspose2d(1, 4, 3),
            nn.ConvTranspose2d(4, 4, 1, groups=4),
            nn.Flatten(),
            CosineHead(4 * 49, 3),
        ).double()
    objective = Objective.of(model, images(), dtype=DOUBLE)
    pieces = objective.rows.split(filter_normalised(objective))
    for name, axis in (("0.weight", 1), ("1.weight", 0), ("3.weight", 1)):
        weight = model.get_parameter(name).detach()
        lengths = [t.movedim(axis, 0).flatten(1).norm(dim=1) for t in (pieces[name], weight)]
        assert torch.allclose(*lengths, rtol=1e-12), name


def test_on_a_quadratic_the_second_order_is_exact(device: torch.device) -> None:
    """b = (1 + ρλ/‖g‖) a for an eigenvector, batch by batch, and all statistics follow."""
    objective, matrix = quadratic(device)
    values, vectors = torch.linalg.eigh(matrix)
    seen = amplification(
        objective,
        7 * vectors.T[[0, 3, 5]],  # any length
        eigenvalues=values[[0, 3, 5]].tolist(),
        batches=60,
        batch_size=8,
        seed=4,
    )
    assert seen.radii.tolist() == [0, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8]
    lam = numpy(values[[0, 3, 5]])
    q = 1 + seen.radii[:, None] / seen.gradient_norms * lam[:, None, None]
    a, b = seen.components[:, None], seen.shifted
    assert np.allclose(b, q * a, atol=1e-12)
    assert np.allclose(seen.curved, lam[:, None] * seen.components, atol=1e-12)
    assert np.isnan(seen.taylor_residuals[0]).all()
    assert seen.taylor_residuals[1:].max() < 1e-11
    squared, slope = (b**2).sum(-1) / (a**2).sum(-1), (a * b).sum(-1) / (a**2).sum(-1)
    for found, by_hand in ((seen.squared, squared), (seen.slope, slope)):
        assert np.allclose(found.value, by_hand, rtol=1e-12)
        assert np.all(found.low <= found.value)
        assert np.all(found.value <= found.high)
        assert (found.low[:, 0] == 1).all()
        assert (found.high[:, 0] == 1).all()
    assert np.array_equal(seen.sign_agreement.value, (q > 0).mean(-1))
    expected = seen.predictions
    for guess in (expected.squared_normalised, expected.squared_second_order):
        assert np.allclose(guess, squared, rtol=1e-9)
    for guess in (expected.slope_normalised, expected.slope_second_order):
        assert np.allclose(guess, slope, rtol=1e-9)
    assert np.allclose(expected.squared_plain, (1 + seen.radii * lam[:, None]) ** 2)
    assert np.allclose(seen.cnc.value, (seen.components**2).mean(-1))
    ratio = 6 * (seen.components**2).mean(-1) / (seen.gradient_norms**2).mean()
    assert np.allclose(seen.normalised_cnc.value, ratio)


def test_each_batch_has_its_own_hessian_in_the_second_order_prediction() -> None:
    """Where the batches' Hessians differ, an eigenvector of their mean predicts less."""
    objective, matrix = quadratic(spread=0.8)
    values, vectors = torch.linalg.eigh(matrix)
    seen = amplification(
        objective, vectors[:, 0], eigenvalues=[float(values[0])], batches=40, batch_size=4
    )
    assert seen.components.shape == (1, 40)
    assert np.allclose(seen.predictions.squared_second_order, seen.squared.value, rtol=1e-9)
    assert np.allclose(seen.predictions.slope_second_order, seen.slope.value, rtol=1e-9)
    far = seen.predictions.squared_normalised[0, -1] / seen.squared.value[0, -1]
    assert abs(far - 1) > 0.02
    unknown = amplification(objective, vectors[:, 0], batches=2, batch_size=4)
    assert np.isnan(unknown.predictions.squared_plain).all()
    assert np.isfinite(unknown.predictions.squared_second_order).all()
    assert np.isnan(unknown.squared.low).all(), "two batches have no interval"
    assert np.allclose(
        unknown.effective_batches,
        (unknown.components**2).sum() ** 2 / (unknown.components**4).sum(),
    )


@pytest.mark.parametrize("batch_norm", ["evaluation", "training"])
def test_a_batch_of_the_training_loss_is_differentiated_as_plain_autograd_does(
    batch_norm: Any, device: torch.device
) -> None:
    """Class weights, weighted mean, batch norm by its own or the batch's statistics."""
    model, (x, y), weights = conv_net(), images(), torch.tensor([0.5, 1.0, 3.0]).double()
    y[3] = -100  # ignored: in no batch
    before = copy.deepcopy(model.state_dict())
    loss = LossSpec(weights=tuple(weights.tolist()))
    H = hessian_operator(model, (x, y), loss, dtype=DOUBLE, device=device, batch_size=3)
    v = torch.stack([random_start(H.dim, seed=0, probe=i) for i in range(2)])
    radii = (0.0, 1e-4, 0.3)
    seen = amplification(H, v, radii=radii, batches=2, batch_size=10, seed=7, batch_norm=batch_norm)
    pool = torch.nonzero(y >= 0)[:, 0]

    def gradient(index: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        net = copy.deepcopy(model).train(batch_norm == "training")
        with torch.no_grad():
            flat = nn.utils.parameters_to_vector(net.parameters()) + shift
            nn.utils.vector_to_parameters(flat, net.parameters())
        losses = F.cross_entropy(net(x[index]), y[index], reduction="none")
        value = (losses * weights[y[index]]).sum() / weights[y[index]].sum()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, net.parameters())])

    for number in range(2):
        index = pool[torch.from_numpy(minibatch(len(pool), 10, 7, number))]
        assert len(index.unique()) == 10
        g = gradient(index)
        norm = float(g.norm())
        assert seen.gradient_norms[number] == pytest.approx(norm, rel=1e-10)
        assert np.allclose(seen.components[:, number], numpy(v @ g), rtol=1e-8, atol=1e-14)
        hg = (gradient(index, 1e-6 * g / norm) - gradient(index, -1e-6 * g / norm)) / 2e-6 * norm
        assert np.allclose(seen.curved[:, number], numpy(v @ hg), atol=1e-6 * float(hg.norm()))
        for r, rho in enumerate(radii):
            there = gradient(index, rho * g / norm)
            assert np.allclose(seen.shifted[:, r, number], numpy(v @ there), rtol=1e-8, atol=1e-13)
            if rho > 0:
                bend = rho * hg / norm
                residual = float((there - g - bend).norm() / bend.norm())
                assert seen.taylor_residuals[r, number] == pytest.approx(residual, rel=1e-2)
    assert seen.taylor_residuals[1].max() < 1e-2, "second order holds for small steps"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert seen.batch_norm == batch_norm


def test_directions_share_the_gradients_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient for each radius but 0, one at w, and one product, however many directions."""
    objective, matrix = quadratic()
    count = {"gradient": 0, "product": 0}
    for name in count:
        original: Callable[..., Tensor] = getattr(Objective, name)

        def counting(
            self: Objective,
            *args: Any,
            original: Callable[..., Tensor] = original,
            name: str = name,
            **options: Any,
        ) -> Tensor:
            count[name] += len(self.samples) == 8
            return original(self, *args, **options)

        monkeypatch.setattr(Objective, name, counting)
    steps: list[int] = []
    H = hessian_operator(objective.network, objective.samples, first_output, dtype=DOUBLE)
    count.update(gradient=0, product=0)
    v = torch.linalg.eigh(matrix).eigenvectors.T
    options: dict[str, Any] = {"radii": (0.0, 0.1, 0.4), "batches": 40, "batch_size": 8}
    together = amplification(H, v, callback=steps.append, **options)
    assert count == {"gradient": 120, "product": 40}
    assert steps == list(range(1, 41))
    alone = amplification(H, v[2], **options)
    assert np.array_equal(alone.shifted[0], together.shifted[2])
    again = amplification(H, v, **options)
    assert np.array_equal(again.squared.high, together.squared.high)
    other = amplification(H, v, seed=1, **options)
    assert not np.allclose(other.components, together.components)


def test_directions_are_normalised_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in float64 may be more than the device holds."""
    objective, _ = quadratic()
    alive: list[weakref.ref[Tensor]] = []

    def counted(*given: Any) -> Tensor:
        assert sum(held() is not None for held in alive) == 0, "the one before is still held"
        found = direction_in(*given)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(sys.modules[amplification.__module__], "direction_in", counted)
    amplification(objective, torch.ones(5, 6), batches=1, batch_size=4)
    assert len(alive) == 5


def test_gradients_without_a_direction_have_the_cnc_constant_one() -> None:
    """A loss linear in θ with Gaussian samples: γ n = mean ‖g‖², and SAM's step changes nothing."""
    n = 30
    x = torch.randn(4000, n + 1, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    data = x, torch.zeros(4000, dtype=torch.long)
    model = Quadratic(torch.zeros(n, n, dtype=DOUBLE), torch.ones(n, dtype=DOUBLE))
    objective = Objective.of(model, data, first_output, dtype=DOUBLE, batch_size=4000)
    v = random_start(n, seed=0, probe=0)
    seen = amplification(objective, v, radii=(0.5,), batches=80, batch_size=16)
    assert seen.normalised_cnc.low[0] < 1 < seen.normalised_cnc.high[0]
    assert seen.normalised_cnc.high[0] - seen.normalised_cnc.low[0] < 1
    assert np.allclose(seen.squared.value, 1)
    assert np.allclose(seen.slope.value, 1)
    assert np.isnan(seen.taylor_residuals).all(), "0/0 is no number"


def test_rows_that_never_move_count_for_no_direction() -> None:
    """Neither in n nor in the random directions: a Ritz vector lies in none of them."""
    n = 30
    x = torch.randn(4000, n + 1, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    data = x, torch.zeros(4000, dtype=torch.long)
    objective = Objective.of(Idle(n, 3 * n), data, first_output, dtype=DOUBLE, batch_size=4000)
    v = torch.cat([random_start(n, seed=0, probe=0), torch.zeros(3 * n, dtype=DOUBLE)])
    survey = Survey(amplification=80, minibatch=16, controls=3, radii=(0.5,))
    meter: Any = SimpleNamespace(tick=lambda *_: None, batch_cost=1.0)
    seen = exploring._amplify(objective, [v], [0.0], Plan(), survey, meter)
    assert seen.dim == n
    assert np.all((seen.normalised_cnc.value > 0.5) & (seen.normalised_cnc.value < 2))  # not 4
    words = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(8, 3))
    words[2].bias.requires_grad_(False)
    rows = Objective.of(words, (torch.ones(3, 2, dtype=torch.long), torch.arange(3))).rows
    assert rows.moving == 4 * 4 + 24


def synthetic(replicas: int, batches: int, seed: int = 0, **options: Any) -> Amplification:
    """b = 0.6 a + 0.8 z: R = 1, S = 0.6, the sign kept with 1/2 + asin(0.6)/π; γ = 1."""
    random = np.random.default_rng(seed)
    a, z = random.standard_normal((2, replicas, batches))
    return Amplification(
        radii=np.array([0.1]),
        eigenvalues=np.full(replicas, np.nan),
        components=a,
        shifted=(0.6 * a + 0.8 * z)[:, None],
        curved=z,
        gradient_norms=np.full(batches, 5.0),
        taylor_residuals=np.full((1, batches), np.nan),
        dim=25,
        batch_size=1,
        seed=seed,
        batch_norm="evaluation",
        **options,
    )


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say(confidence: float) -> None:
    seen = synthetic(1500, 256, confidence=confidence, resamples=500)
    truths = {
        "squared": 1.0,
        "slope": 0.6,
        "sign_agreement": 0.5 + math.asin(0.6) / math.pi,
        "cnc": 1.0,
        "normalised_cnc": 1.0,
    }
    for name, truth in truths.items():
        found = getattr(seen, name)
        covered = np.mean((found.low <= truth) & (truth <= found.high))
        assert abs(covered - confidence) < 0.045, f"{name}: {covered:.3f}"


def carried(share: float, batches: int = 40) -> np.ndarray:
    """Components of which the first batch carries a share of Σa², and the others the rest alike."""
    squares = np.full(batches, (1 - share) / (batches - 1))
    squares[0] = share
    return np.sqrt(squares)


def test_an_interval_that_a_few_batches_carry_is_absent_rather_than_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the rule a 95 % interval of four batches holds the truth in 77 % of the cases."""
    names = ("squared", "slope", "sign_agreement", "cnc", "normalised_cnc")
    few = synthetic(1500, 4, resamples=300)
    for name in names:
        assert np.isfinite(getattr(few, name).value).all()
    for name in set(names) - {"sign_agreement"}:
        assert np.isnan([getattr(few, name).low, getattr(few, name).high]).all(), name
    random = np.random.default_rng(1)
    scale = np.exp(2 * random.standard_normal((1500, 24)))  # of a and b alike: R and S stay
    heavy = replace(
        synthetic(1500, 24, resamples=300),
        components=synthetic(1500, 24).components * scale,
        shifted=synthetic(1500, 24).shifted * scale[:, None],
    )
    assert np.mean(heavy.effective_batches) < 3
    for name in set(names) - {"sign_agreement"}:
        found = getattr(heavy, name)
        assert np.isnan(found.low).mean() > 0.99, name
        assert np.array_equal(np.isnan(found.low), np.isnan(found.high)), name
    assert np.isfinite(heavy.sign_agreement.low).all(), "a share is of all batches"
    share, truth = few.sign_agreement, 0.5 + math.asin(0.6) / math.pi
    assert np.mean((share.low <= truth) & (truth <= share.high)) > 0.95, "of four as well"
    assert share.low[share.value == 1].max() == pytest.approx(0.025 ** (1 / 4))
    monkeypatch.setattr("spectra.landscape.statistics._FEWEST", 0)
    wrong = replace(few).squared
    assert np.mean((wrong.low <= 1) & (wrong.high >= 1)) < 0.85


def test_the_effective_batches_are_those_of_the_sum_that_has_fewer() -> None:
    even, lone = carried(1 / 40), carried(0.99)
    zero, one = np.zeros(40), np.ones(40)
    seen = replace(
        synthetic(4, 40),
        components=np.stack([even, lone, zero, even]),
        shifted=np.stack([even, lone, one, lone])[:, None],
    )
    assert np.allclose(seen.effective_batches[:2], [40, 1 / (0.99**2 + 0.01**2 / 39)])
    assert np.isnan(seen.effective_batches[2])
    absent = {
        "squared": [False, True, True, True],  # the last one for Σb²
        "slope": [False, True, True, False],
        "sign_agreement": [False] * 4,
        "cnc": [False, True, True, False],
        "normalised_cnc": [False, True, True, False],
    }
    for name, expected in absent.items():
        assert np.isnan(getattr(seen, name).low).ravel().tolist() == expected, name


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"directions": torch.ones(2, 5)}, "direction 0 of shape"),
        ({"directions": torch.stack([torch.ones(6), torch.zeros(6)])}, "direction 1 of norm 0"),
        ({"eigenvalues": [1.0, 2.0]}, "2 eigenvalues for 1"),
        ({"batch_size": 41}, "from 40 samples"),
        ({"batches": 0}, "0 batches"),
        ({"radii": ()}, "radii"),
        ({"radii": (0.1, float("nan"))}, "radii"),
    ],
)
def test_what_cannot_be_amplified_is_refused(wrong: dict[str, Any], what: str) -> None:
    objective, _ = quadratic()
    given: dict[str, Any] = {"directions": torch.ones(6), "batches": 1, "batch_size": 8} | wrong
    with pytest.raises(SpectraError, match=what):
        amplification(objective, **given)


def test_a_batch_with_its_own_statistics_is_never_cut_to_fit_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    H = hessian_operator(conv_net(), images(), dtype=DOUBLE)
    original = Objective._weighted_sum

    def stingy(self: Objective, inputs: Tensor, *rest: object) -> Tensor:
        if len(inputs) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs, *rest)

    monkeypatch.setattr(Objective, "_weighted_sum", stingy)
    options: dict[str, Any] = {"radii": (0.1,), "batches": 1, "batch_size": 12}
    amplification(H, torch.ones(H.dim), **options)
    with pytest.raises(SpectraError, match="batches of 12 samples"):
        amplification(H, torch.ones(H.dim), batch_norm="training", **options)


def test_looking_around_leaves_no_trace(device: torch.device) -> None:
    """Law 7: parameters, buffers, gradients, flags, random states; the operator's own, too."""
    model = conv_net().train()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    x, y = images()
    pixels = (x * 50 + 128).clamp(0, 255).to(torch.uint8)
    samples = Samples(pixels, y, 3, tuple("abc"), augmentation="crop-flip:1")
    H = hessian_operator(model, samples, dtype=DOUBLE, device=device)
    v = random_start(H.dim, seed=0, probe=0, device=device)
    u = random_start(H.dim, seed=0, probe=1, device=device)
    draw = torch.Generator().manual_seed(0)
    moving = H.objective.redrawn(draw)

    def state() -> list[Any]:
        tensors = [t.clone() for m in (model, H.objective.network) for t in m.state_dict().values()]
        flags = [m.training for m in model.modules()] + [
            p.requires_grad for p in model.parameters()
        ]
        grads = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
        random = [torch.random.get_rng_state(), draw.get_state()]
        if device.type == "cuda":
            random.append(torch.cuda.get_rng_state(device))
        return [*tensors, *flags, *grads, *random, H @ v, np.random.get_state()[1].tolist()]  # noqa: NPY002

    before, given = state(), v.clone()
    cut: Slice = loss_slice(moving, v, [0.1], slopes=True)
    assert cut.ahead == loss_slice(H, v, [0.1]).ahead, "nothing is drawn anew"
    surface(moving, u, v, points=(2, 2))
    filter_normalised(H)
    for mode in ("evaluation", "training"):
        amplification(moving, v, radii=(0.1,), batches=1, batch_size=6, batch_norm=mode)
    assert torch.equal(v, given)
    for a, b in zip(before, state(), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
