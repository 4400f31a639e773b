"""The doctor calls fixed what is fixed, names what moves, and proves only what is true."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra import doctor
from spectra.data import Samples
from spectra.doctor import Certificate, Examination, certify, examine
from spectra.errors import SpectraError
from spectra.hessian import HessianOperator, Objective, hessian_operator, objective
from spectra.hessian.choice import ProductChoice, central_difference
from spectra.krylov import SymmetricOperator, extreme_eigenvalues, lanczos, random_start
from spectra.losses import LossSpec

CLASSES = 3
SCALES = [1e-8, 1e-4, 1.0, 1e4, 1e8]


def symmetric(n: int = 60, seed: int = 0) -> Tensor:
    m = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (m + m.T) / 2


def wrap(product: Callable[[Tensor], Tensor], n: int, dtype: torch.dtype) -> SymmetricOperator:
    return SymmetricOperator(product, n, dtype)


def conv_net(seed: int = 0, scale: float = 1.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, CLASSES),
        )
    with torch.no_grad():
        net[5].weight.mul_(scale)
    return net.double()


def mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def data(*shape: int, n: int = 11, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, *shape, generator=generator, dtype=torch.float64),
        torch.arange(n) % CLASSES,
    )


def pictures(n: int = 10) -> Samples:
    x = torch.randint(
        0, 256, (n, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    names = tuple("abc")
    return Samples(x, torch.arange(n) % CLASSES, CLASSES, names, augmentation="crop-flip:2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_a_symmetric_matrix_is_fixed_at_every_scale(scale: float, dtype: torch.dtype) -> None:
    """P18, P19: nothing in the examination is absolute."""
    matrix = (scale * symmetric()).to(dtype)
    for seed in range(10):
        seen = examine(SymmetricOperator.from_matrix(matrix), seed=seed)
        assert seen.fixed_operator
        assert seen.culprit is None
        assert 0 < seen.noise_floor(scale) < 1e-3 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("flaw", ["asymmetric", "affine", "noisy", "quadratic"])
def test_what_is_no_symmetric_matrix_is_not_fixed(
    flaw: str, scale: float, dtype: torch.dtype
) -> None:
    n = 60
    matrix = (scale * symmetric(n)).to(dtype)
    skew = (scale * torch.triu(symmetric(n, 1), 1)).to(dtype)
    offset = torch.full((n,), 0.1 * scale, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    products: dict[str, Callable[[Tensor], Tensor]] = {
        "asymmetric": lambda v: matrix @ v + 0.1 * (skew @ v),
        "affine": lambda v: matrix @ v + offset,
        "noisy": lambda v: matrix @ v + 0.01 * scale * torch.randn(n, generator=generator).to(v),
        "quadratic": lambda v: matrix @ v + scale * v * v,
    }
    for seed in range(10):
        seen = examine(wrap(products[flaw], n, dtype), seed=seed)
        assert not seen.fixed_operator
        defect = {
            "asymmetric": seen.asymmetry,
            "noisy": seen.repeatability,
        }.get(flaw, seen.nonlinearity)
        assert defect > 1e-4


def test_the_zero_operator_is_fixed_and_a_noisy_zero_is_not() -> None:
    zero = examine(wrap(torch.zeros_like, 7, torch.float64))
    assert zero.fixed_operator
    assert zero.rounding > 0
    calls = iter(range(99))
    flicker = wrap(lambda v: v * 0 if next(calls) == 0 else v, 7, torch.float64)
    assert not examine(flicker).fixed_operator


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_hessians_of_a_network_are_fixed_and_symmetric_to_rounding(
    scale: float, dtype: torch.dtype, device: torch.device
) -> None:
    """Law 2; the float32 defects are those of rounding, far below what augmentation does."""
    for seed in range(3):
        H = hessian_operator(
            conv_net(seed, scale), data(1, 6, 6), dtype=dtype, device=device, batch_size=4
        )
        seen = examine(H, seed=seed)
        assert seen.fixed_operator
        assert seen.repeatability == 0
        assert max(seen.asymmetry, seen.nonlinearity, seen.rounding) < 100 * torch.finfo(dtype).eps


def test_an_examination_costs_the_products_that_it_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """P41: five, the one over other batches included; the certificate four more."""
    H = hessian_operator(mlp(), data(4), dtype=torch.float64)
    count = 0
    original = Objective.product

    def counting(self: Objective, *args: Any) -> Tensor:
        nonlocal count
        count += 1
        return original(self, *args)

    monkeypatch.setattr(Objective, "product", counting)
    examine(H)
    assert count == doctor.PRODUCTS_PER_EXAMINATION
    certify(H, random_start(H.dim, seed=0, probe=0))
    assert count == doctor.PRODUCTS_PER_EXAMINATION + doctor.PRODUCTS_PER_CERTIFICATE


def test_a_random_layer_is_named_and_the_random_state_put_back() -> None:
    """P3: dropout that ignores evaluation mode."""

    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    net = mlp()
    model = nn.Sequential(net[0], nn.Sequential(nn.Tanh(), Forgetful()), net[2])
    # hessian_operator would refuse it: the operator is put together by hand.
    choice = ProductChoice("double-backward", "double-backward", 0.0, 0.0, {})
    H = HessianOperator.of(Objective.of(model, data(4), dtype=torch.float64), choice)
    state = torch.random.get_rng_state()
    seen = examine(H)
    assert not seen.fixed_operator
    assert seen.repeatability > 0.1
    assert seen.culprit is not None
    assert "1.1 (Forgetful)" in seen.culprit
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_redrawn_augmentation_moves_and_a_frozen_one_does_not(device: torch.device) -> None:
    """P1, P2: the augmentation is named; K stored draws are one fixed matrix."""
    H = hessian_operator(conv_net(), pictures(), dtype=torch.float64, device=device)
    moving = HessianOperator.of(H.objective.redrawn(torch.Generator().manual_seed(0)), H.choice)
    v = random_start(H.dim, seed=0, probe=0, device=device)
    assert not torch.equal(moving @ v, moving @ v)
    seen = examine(moving)
    assert not seen.fixed_operator
    assert seen.culprit == "the augmentation is drawn again in every product"
    frozen = hessian_operator(
        conv_net(), pictures().frozen(3, 0), dtype=torch.float64, device=device
    )
    assert examine(frozen).fixed_operator
    before = frozen @ v
    frozen @ random_start(H.dim, seed=0, probe=1, device=device)
    assert torch.equal(frozen @ v, before)
    assert len(frozen.objective.samples) == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_recutting_changes_nothing_but_rounding(dtype: torch.dtype, device: torch.device) -> None:
    """P4, P5: half the batch, walked backwards."""
    H = hessian_operator(conv_net(), data(1, 6, 6), dtype=dtype, device=device, batch_size=5)
    other = H.objective.recut()
    assert other.batch_size == 3
    v = random_start(H.dim, seed=0, probe=0, dtype=dtype, device=device)
    a, b = H @ v, other.product(v, H.choice.path)
    assert float((a - b).norm() / a.norm()) < 20 * torch.finfo(dtype).eps
    assert other.value() == pytest.approx(H.objective.value(), rel=1e-5)


def test_the_automatic_batch_is_between_one_and_its_limit(device: torch.device) -> None:
    size = Objective.of(conv_net(), data(1, 6, 6), device=device).batch_size
    assert 1 <= size <= 2048


def test_a_rayleigh_quotient_is_an_upper_bound_of_the_smallest_eigenvalue() -> None:
    """Law 5: for every vector; "proven" only where the dense matrix has negative curvature."""
    model, samples = mlp(), data(4)
    H = hessian_operator(model, samples, batch_size=4)  # float32: certificates are float64
    dense = hessian_operator(model.float(), samples, dtype=torch.float64).dense()
    values, vectors = torch.linalg.eigh(dense)
    lowest = float(values[0])
    assert lowest < 0
    generator = torch.Generator().manual_seed(0)
    low = [vectors[:, 0] + s * vectors[:, 1] for s in (0, 0.1, 1)]
    for y in [torch.randn(H.dim, generator=generator).double() for _ in range(40)] + low:
        c = certify(H, y)
        assert c.rayleigh_quotient >= lowest - 1e-14
        assert c.noise_floor > 0
        inside = (values - c.rayleigh_quotient).abs() <= c.residual + 1e-13
        assert bool(inside.any()), "some eigenvalue lies within the residual"
        unit = y / y.norm()
        truth = float(unit @ dense @ unit)
        assert abs(c.rayleigh_quotient - truth) <= c.noise_floor < abs(truth)
        assert c.negative_curvature == (truth < 0)
    best = certify(H, vectors[:, 0], name="none", lower_bound_95=-3.0)
    assert best.negative_curvature
    assert best.rayleigh_quotient == pytest.approx(lowest, rel=1e-10)
    assert best.residual < 1e-10
    assert (best.operator, best.dtype, best.lower_bound_95) == ("none", "float64", -3.0)
    assert certify(H, -7e5 * vectors[:, 0].float()).rayleigh_quotient == pytest.approx(
        lowest, rel=1e-6
    ), "neither length nor sign counts"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("margin", [1.0, 30.0])
def test_a_convex_problem_is_never_proven_to_curve_down(dtype: torch.dtype, margin: float) -> None:
    """Softmax regression: λmin = 0 with many null vectors, whose products are only rounding."""
    quotients = []
    for seed in range(0, 12, 2):
        x, y = data(6, n=3 + seed, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Linear(6, CLASSES).double()
        with torch.no_grad():
            model.weight.mul_(margin)  # saturated: the rounding of p (1 - p) is relative to 1
        H = hessian_operator(model, (x, y), dtype=dtype, batch_size=2)
        run = lanczos(H, random_start(H.dim, seed=seed, probe=0, dtype=dtype), steps=H.dim)
        assert run.basis is not None
        shift = torch.cat([torch.ones(CLASSES * 6), torch.zeros(CLASSES)])  # an exact null vector
        vectors = [*(run.vector(i) for i in range(min(2, run.steps))), shift, 1 - shift]
        for vector in vectors:
            c = certify(H, vector)
            quotients.append(c.rayleigh_quotient)
            assert not c.negative_curvature
            assert c.noise_floor > 0
    assert min(quotients) < 0, "else the floor was not needed and this test is too easy"


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_samples_that_are_fitted_to_the_last_bits_have_a_floor_for_the_softmax(
    scale: float,
) -> None:
    """Both passes take the same p, which is off by the rounding beside 1: they agree, and err."""
    for seed, margin in enumerate(np.linspace(20, 36, 33)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 3, generator=generator, dtype=torch.float64)
        size = float(x.square().sum())
        loss = LossSpec.cross_entropy(scale)
        model = nn.Linear(3, 2, bias=False).double()
        nn.init.constant_(model.weight, 0.01 / scale)
        H = hessian_operator(model, (x, torch.tensor([0])), loss, dtype=torch.float64)
        # Differentiated forward first, two classes have no such rounding.
        alike = replace(H.choice, path="forward-over-reverse", reference="double-backward")
        side = 0.5 * margin / scale / size * x
        with torch.no_grad():  # after the path was chosen, for which these are too well fitted
            H.objective.network.weight.copy_(torch.cat([side, -side]))
        z = -scale * float((side * x).sum()) * 2
        p = np.exp(z) / (1 + np.exp(z))  # of the other class, with all digits
        truth = 2 * scale**2 * p * (1 - p) * size
        certificate = certify(replace(H, choice=alike), torch.cat([x[0], -x[0]]))
        assert abs(certificate.rayleigh_quotient - truth) <= certificate.noise_floor


def test_rounding_that_both_passes_share_is_in_the_floor() -> None:
    """Of one row x, 10⁶ x xᵀy: they agree to the last bit, and not with the exact quotient."""
    errors = []
    for seed in range(12):
        x, labels = data(20, n=1, seed=seed)
        (y,) = data(20, n=1, seed=seed + 100)[0]
        H = hessian_operator(
            nn.Linear(20, 1, bias=False).double(),
            (x, labels),
            lambda logits, _: 0.5e6 * logits[:, 0].square(),
            dtype=torch.float64,
        )
        row, vector = ([Fraction(float(v)) for v in values] for values in (x[0], y))
        along = sum(a * b for a, b in zip(row, vector, strict=True))
        truth = 10**6 * along**2 / sum(v * v for v in vector)
        c = certify(H, y)
        errors.append(abs(float(Fraction(c.rayleigh_quotient) - truth)))
        assert errors[-1] <= c.noise_floor < 1e-9 * truth
    assert max(errors) > 0


def test_the_certificate_of_a_zero_hessian_has_a_floor_and_proves_nothing() -> None:
    H = hessian_operator(nn.Linear(4, CLASSES), data(4), lambda logits, targets: logits.sum(1))
    c = certify(H, torch.ones(H.dim))
    assert c.rayleigh_quotient == 0
    assert c.noise_floor > 0
    assert not c.negative_curvature


@pytest.mark.parametrize("change", [lambda p: -p, lambda p: 1e3 * p, lambda p: p * 0])
def test_a_corrupted_fast_product_cannot_fake_a_proof(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quotient comes from another path, and disagreement can only raise the noise floor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convex = nn.Linear(4, CLASSES).double()
    H = hessian_operator(convex, data(4), dtype=torch.float64, batch_size=4)
    assert H.choice.path == "reverse-over-forward"
    y = random_start(H.dim, seed=0, probe=0)
    honest = certify(H, y)
    assert honest.rayleigh_quotient == pytest.approx(float(y @ (H @ y)), rel=1e-12)
    original = objective.PRODUCTS[H.choice.path]

    def wrong(f: Any, at: Any, vector: Any) -> Any:
        return {k: change(p) for k, p in original(f, at, vector).items()}

    monkeypatch.setitem(objective.PRODUCTS, H.choice.path, wrong)
    assert float(y @ (H @ y)) != pytest.approx(honest.rayleigh_quotient)
    fooled = certify(H, y)
    assert fooled.rayleigh_quotient == honest.rayleigh_quotient
    assert fooled.noise_floor > 1e6 * honest.noise_floor
    for vector in (y, extreme_eigenvalues(H, steps=H.dim).vector_min):
        assert vector is not None
        assert not certify(H, vector).negative_curvature


def test_the_two_passes_of_a_certificate_share_neither_path_nor_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, int, bool, torch.dtype]] = []
    original = Objective.product

    def noting(self: Objective, vector: Tensor, path: Any) -> Tensor:
        seen.append((path, self.batch_size, self.backwards, self.dtype))
        return original(self, vector, path)

    for size in (1, 2, 3, 4, 8):
        H = hessian_operator(mlp(), data(4), batch_size=size)
        with monkeypatch.context() as patch:
            patch.setattr(Objective, "product", noting)
            certify(H, torch.ones(H.dim))
        first, second, *_ = seen[-doctor.PRODUCTS_PER_CERTIFICATE :]
        assert all(a != b for a, b in zip(first[:3], second[:3], strict=True))
        assert first[3] == second[3] == torch.float64


def test_where_one_path_is_right_alone_the_second_pass_is_a_central_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same path twice would round alike and agree with itself, be it wrong or right."""
    noises: list[float] = []

    def noted(exact: Objective, y: Tensor) -> tuple[Tensor, float, bool]:
        found = central_difference(exact, y)
        noises.append(found[1])
        return found

    monkeypatch.setattr(doctor, "central_difference", noted)
    H = hessian_operator(mlp(), data(4), dtype=torch.float64)
    alone = replace(H, choice=replace(H.choice, path="double-backward"))
    lowest = torch.linalg.eigh(H.dense())
    c = certify(alone, lowest.eigenvectors[:, 0])
    assert c.rayleigh_quotient == pytest.approx(float(lowest.eigenvalues[0]), rel=1e-10)
    assert 1e-14 < noises[0] < c.noise_floor < 1e-5
    assert c.negative_curvature


def test_under_redrawing_the_certificate_is_that_of_the_plain_operator() -> None:
    """A redrawn operator has no λmin; the vector that it gave is judged by the fixed one."""
    H = hessian_operator(conv_net(), pictures(), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    moving = replace(H, objective=H.objective.redrawn(generator))
    y, state = random_start(H.dim, seed=0, probe=0), generator.get_state()
    assert certify(moving, y) == certify(H, y)
    assert torch.equal(generator.get_state(), state), "no draw was taken"
    frozen = hessian_operator(conv_net(), pictures().frozen(2, 0), dtype=torch.float64)
    c = certify(frozen, y, name="frozen:2")
    assert c.operator == "frozen:2"
    assert c.rayleigh_quotient == pytest.approx(float(y @ (frozen @ y)), rel=1e-12)
    assert c.rayleigh_quotient != pytest.approx(certify(H, y).rayleigh_quotient, rel=1e-6)


def test_findings_are_told_in_a_line() -> None:
    proven = Certificate("none", "float64", -1.106201, 1.6e-5, 2e-9, True, -1.10712)
    assert str(proven) == (
        "negative curvature proven: yᵀHy −1.1062010000 ± 2.0e−9 in float64, residual 2e−5, "
        "λmin > −1.10712 (95 %)"
    )
    open_ = replace(proven, operator="frozen:5", negative_curvature=False, lower_bound_95=None)
    assert str(open_).startswith("no negative curvature proven over frozen:5: ")
    assert "λmin" not in str(open_)
    moved = Examination(False, 0.8, 1e-7, 2e-7, 3e-7, "layer `0` draws")
    assert str(moved).startswith("not a fixed symmetric matrix (layer `0` draws): repeatability 8")
    assert str(replace(moved, fixed_operator=True, culprit=None)).startswith("fixed: ")


def test_nan_is_refused_before_anything_is_said() -> None:
    """P40"""
    with pytest.raises(SpectraError, match="NaN"):
        examine(wrap(lambda v: v * float("nan"), 5, torch.float64))


def test_ritz_vectors_of_a_float32_run_prove_what_the_dense_matrix_has() -> None:
    proven = []
    for seed in range(5):
        model, samples = mlp(seed).float(), data(4, seed=seed)
        H = hessian_operator(model, samples)
        found = extreme_eigenvalues(H, steps=H.dim)
        assert found.vector_min is not None
        c = certify(H, found.vector_min)
        values = np.linalg.eigvalsh(
            hessian_operator(model, samples, dtype=torch.float64).dense().numpy()
        )
        assert values[0] - 1e-14 <= c.rayleigh_quotient <= values[0] + 1e-4 * values[-1]
        assert c.negative_curvature <= (values[0] < 0)
        proven.append(c.negative_curvature)
    assert any(proven)
