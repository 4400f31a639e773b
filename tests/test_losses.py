"""The losses: published numbers, plain formulas, and second derivatives that agree."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spectra.devices import constant
from spectra.errors import SpectraError
from spectra.losses import (
    CallableLoss,
    LossSpec,
    as_loss,
    effective_number_weights,
    ldam_margins,
)

CIFAR10_LT = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
CIFAR100_LT = tuple(int(500 * 0.01 ** (c / 99)) for c in range(100))
COUNTS = (40, 12, 5, 2)


def specs() -> dict[str, LossSpec]:
    return {
        "ce": LossSpec(),
        "ce, scaled": LossSpec.cross_entropy(scale=3.0),
        "ce, smoothed": LossSpec.cross_entropy(label_smoothing=0.1),
        "ldam": LossSpec("ldam", COUNTS, scale=3.0),
        "ldam, margin 0.3": LossSpec("ldam", COUNTS, scale=3.0, max_margin=0.3),
        "vs": LossSpec("vs", COUNTS),
        "vs, γ 0.15, τ 1.25": LossSpec("vs", COUNTS, gamma=0.15, tau=1.25),
        "logit-adjustment": LossSpec("logit-adjustment", COUNTS, tau=1.3),
        "focal": LossSpec("focal"),
        "focal, γ 0.5": LossSpec("focal", gamma=0.5),
    }


each_loss = pytest.mark.parametrize("spec", list(specs().values()), ids=list(specs()))


def plain(spec: LossSpec, logits: np.ndarray, label: int) -> float:
    """One sample in NumPy, straight from the formulas of the papers."""
    counts = np.array(COUNTS, float)
    z = spec.scale * logits
    if spec.name == "ldam":
        margins = spec.max_margin * counts**-0.25 / (counts**-0.25).max()
        z = spec.scale * np.array(
            [v - (margins[j] if j == label else 0) for j, v in enumerate(logits)]
        )
    if spec.name == "vs":
        z = z / (counts.max() / counts) ** spec.gamma
    if spec.name in ("vs", "logit-adjustment"):
        z = z + spec.tau * np.log(counts / counts.sum())
    p = np.exp(z) / np.exp(z).sum()
    if spec.name == "focal":
        return float(-((1 - p[label]) ** spec.gamma) * np.log(p[label]))
    goal = np.full(4, spec.label_smoothing / 4)
    goal[label] += 1 - spec.label_smoothing
    return float(-(goal * np.log(p)).sum())


def batch(n: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype)
    return logits, torch.randint(4, (n,), generator=generator)


def test_deferred_weights_are_the_published_ones() -> None:
    expected = [0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993]
    weights = effective_number_weights(CIFAR10_LT)
    assert np.round(weights, 3).tolist() == expected
    hundred = effective_number_weights(CIFAR100_LT)
    assert np.round([hundred[c] for c in (0, 35, 70, 99)], 3).tolist() == [
        0.045,
        0.224,
        1.153,
        4.378,
    ]
    assert math.isclose(sum(hundred), 100)


def test_margins_are_the_published_ones() -> None:
    expected = [0.158, 0.180, 0.204, 0.232, 0.264, 0.300, 0.341, 0.387, 0.440, 0.500]
    assert np.round(ldam_margins(CIFAR10_LT), 3).tolist() == expected
    assert max(ldam_margins(CIFAR10_LT, max_margin=0.3)) == 0.3


def test_weights_are_equal_at_beta_zero_and_inverse_counts_near_one() -> None:
    assert effective_number_weights(COUNTS, beta=0.0) == (1.0, 1.0, 1.0, 1.0)
    weights = np.array(effective_number_weights(COUNTS, beta=1 - 1e-12))
    inverse = 1 / np.array(COUNTS)
    np.testing.assert_allclose(weights, 4 * inverse / inverse.sum(), rtol=1e-9)


@each_loss
def test_each_loss_is_its_formula(spec: LossSpec) -> None:
    logits, targets = batch()
    expected = [plain(spec, z, y) for z, y in zip(logits.numpy(), targets.tolist(), strict=True)]
    np.testing.assert_allclose(spec.per_sample(logits, targets), expected, rtol=1e-12)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_keep_the_type_of_the_logits(spec: LossSpec, dtype: torch.dtype) -> None:
    assert spec.per_sample(*batch(dtype=dtype)).dtype == dtype


@each_loss
def test_second_derivatives_agree_in_every_direction(spec: LossSpec) -> None:
    logits, targets = batch()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).double()

    def total(z: Tensor) -> Tensor:
        return spec.per_sample(z, targets).sum()

    leaf = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(total, leaf)
    assert torch.autograd.gradgradcheck(total, leaf)
    (gradient,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
    (twice,) = torch.autograd.grad(gradient, leaf, direction)
    gradient_of = torch.func.grad(total)
    _, forward = torch.func.jvp(gradient_of, (logits,), (direction,))
    reverse = torch.func.grad(lambda z: torch.func.jvp(total, (z,), (direction,))[1])(logits)
    torch.testing.assert_close(forward, twice, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(reverse, twice, rtol=1e-12, atol=1e-14)


@each_loss
def test_a_batch_may_be_cut_anywhere(spec: LossSpec) -> None:
    """P6: normalising by the size of a batch makes weighted losses depend on the cut."""
    spec = LossSpec(**{**spec.to_dict(), "weights": (0.1, 0.5, 1.4, 2.0), "ignore_index": 3})
    logits, targets = batch(70)
    whole = spec.per_sample(logits, targets)
    parts = [
        spec.per_sample(z, y)
        for z, y in zip(logits.split([40, 30]), targets.split([40, 30]), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=0)
    weights = spec.sample_weights(targets)
    assert weights.dtype == torch.float64
    assert (targets == 3).any()
    assert (weights[targets == 3] == 0).all()
    assert (whole[targets == 3] == 0).all()


def everything(spec: LossSpec, logits: Tensor, targets: Tensor) -> list[Tensor]:
    """The losses, the weights, and one Hessian-vector product in two ways."""

    def total(z: Tensor) -> Tensor:
        return (spec.per_sample(z, targets) * spec.sample_weights(targets)).sum()

    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
    (twice,) = torch.autograd.grad(gradient, leaf, logits)
    forward = torch.func.jvp(torch.func.grad(total), (logits,), (logits,))[1]
    return [spec.per_sample(logits, targets), spec.sample_weights(targets), twice, forward]


def within_inference(total, z: Tensor) -> None:
    with torch.inference_mode():
        total(z)


FIRST = {
    "inference mode": within_inference,
    "grad": lambda total, z: torch.func.grad(total)(z),
    "jvp of grad": lambda total, z: torch.func.jvp(torch.func.grad(total), (z,), (z,)),
    "grad of jvp": lambda total, z: torch.func.grad(
        lambda at: torch.func.jvp(total, (at,), (z,))[1]
    )(z),
    "vmap": lambda total, z: torch.func.vmap(lambda scale: total(scale * z))(z[:3, 0]),
}


@each_loss
@pytest.mark.parametrize("first", FIRST)
def test_where_a_loss_is_first_called_changes_nothing_later(spec: LossSpec, first: str) -> None:
    """Its constants are made once; made inside a transform they must not stay bound to it."""
    spec = LossSpec(**{**spec.to_dict(), "weights": (0.1, 0.5, 1.4, 2.0)})
    logits, targets = batch()
    constant.cache_clear()
    expected = everything(spec, logits, targets)
    constant.cache_clear()
    weigh = spec.sample_weights
    FIRST[first](lambda z: (spec.per_sample(z, targets) * weigh(targets)).sum(), logits)
    for ours, reference in zip(everything(spec, logits, targets), expected, strict=True):
        assert torch.equal(ours, reference)


@each_loss
def test_a_second_call_copies_nothing_from_the_host(
    spec: LossSpec, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a copy is forbidden while a CUDA graph is recorded."""
    spec = LossSpec(**{**spec.to_dict(), "weights": (0.1, 0.5, 1.4, 2.0)})
    logits, targets = (part.to(device) for part in batch(dtype=torch.float32))

    def weighted() -> Tensor:
        return spec.per_sample(logits, targets) * spec.sample_weights(targets)

    expected = weighted()
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(weighted(), expected)
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = weighted()
        graph.replay()
        assert torch.equal(recorded, expected)


def test_class_weights_stay_outside_the_loss() -> None:
    """P7: inside the mean over one class they would cancel."""
    logits, targets = batch()
    weighted = LossSpec.cross_entropy(weights=(0.1, 0.5, 1.4, 2.0))
    assert torch.equal(weighted.per_sample(logits, targets), LossSpec().per_sample(logits, targets))
    weights = weighted.sample_weights(targets)
    assert weights.tolist() == [(0.1, 0.5, 1.4, 2.0)[y] for y in targets.tolist()]
    mean = (weights * weighted.per_sample(logits, targets)).sum() / weights.sum()
    table = torch.tensor([0.1, 0.5, 1.4, 2.0]).double()
    torch.testing.assert_close(mean, nn.functional.cross_entropy(logits, targets, table))


def test_any_function_per_sample_is_a_loss() -> None:
    """P8: a function needs no reduction attribute."""
    logits, targets = batch()
    loss = as_loss(lambda z, y: (z.gather(1, y[:, None]).squeeze(1) - 1) ** 2)
    assert loss.per_sample(logits, targets).shape == (6,)
    assert loss.sample_weights(targets).tolist() == [1.0] * 6
    assert as_loss(loss) is loss
    assert as_loss(LossSpec()) == LossSpec()


def test_a_torch_loss_keeps_its_ignored_label() -> None:
    targets = batch()[1]
    loss = as_loss(nn.CrossEntropyLoss(reduction="none", ignore_index=2))
    assert isinstance(loss, CallableLoss)
    assert torch.equal(loss.sample_weights(targets), (targets != 2).double())


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss(reduction="sum")])
def test_a_torch_loss_that_reduces_is_refused(loss: nn.Module) -> None:
    with pytest.raises(SpectraError, match="reduction='none'"):
        as_loss(loss)


def test_a_torch_loss_with_weights_inside_is_refused() -> None:
    with pytest.raises(SpectraError, match=r"LossSpec\(weights="):
        as_loss(nn.CrossEntropyLoss(weight=torch.ones(4), reduction="none"))


def test_a_function_that_holds_weights_of_one_dtype_is_told_what_to_cast() -> None:
    weight = torch.ones(4)
    loss = as_loss(lambda z, y: nn.functional.cross_entropy(z, y, weight=weight, reduction="none"))
    logits, targets = batch()
    with pytest.raises(SpectraError, match=r"weight\.to\(logits\.dtype\)"):
        loss.per_sample(logits.double(), targets)
    assert loss.per_sample(logits.float(), targets).shape == targets.shape


def test_a_function_that_reduces_is_refused() -> None:
    with pytest.raises(SpectraError, match="reduction='none'"):
        as_loss(nn.functional.cross_entropy).per_sample(*batch())


@each_loss
def test_a_description_survives_json(spec: LossSpec) -> None:
    assert LossSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("margin", [60.0, 1000.0])
def test_focal_is_smooth_where_the_network_is_certain(margin: float) -> None:
    logits = torch.tensor([[margin, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = LossSpec("focal", gamma=1.5).per_sample(logits, torch.tensor([0])).sum()
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    (twice,) = torch.autograd.grad(gradient.sum(), logits)
    assert torch.isfinite(twice).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossSpec("mse"), "unknown loss 'mse', expected one of ce, ldam"),
        (lambda: LossSpec("ldam"), "expected the training samples of every class"),
        (lambda: LossSpec("vs", (3, 0)), "each at least 1"),
        (lambda: LossSpec("focal", label_smoothing=0.1), "no label_smoothing"),
        (lambda: LossSpec.from_dict({"name": "ce", "sharpness": 3}), "another version"),
        (lambda: effective_number_weights((3, 0)), "each at least 1"),
        (lambda: effective_number_weights((3, 1), beta=1.0), "0 ≤ β < 1"),
        (lambda: ldam_margins(()), "each at least 1"),
        (lambda: LossSpec("vs", (3, 2, 1)).per_sample(*batch()), "4 classes, .* of 3"),
        (lambda: LossSpec(weights=(1.0, 2.0)).per_sample(*batch()), "4 classes, .* of 2"),
        (
            lambda: LossSpec(weights=(1.0, 2.0)).sample_weights(torch.tensor([0, 2, 1])),
            "labels from 0 to 2, expected 0 to 1.*2 class weights: give it one for each class",
        ),
        (
            lambda: LossSpec(weights=(1.0,), ignore_index=9).sample_weights(torch.tensor([-5, 9])),
            "labels from -5 to -5, expected 0 to 0",
        ),
        (lambda: as_loss("ce"), r"the loss 'ce', expected .*LossSpec\(name\), of ce"),
        (lambda: as_loss(0.5), "the loss 0.5, expected"),
    ],
)
def test_what_a_loss_cannot_be_is_told_in_one_line(make, message: str) -> None:
    with pytest.raises(SpectraError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
