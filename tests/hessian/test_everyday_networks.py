"""Networks as people write them: right numbers, or a refusal that says what to change."""

import copy
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.doctor import certify, examine
from spectra.errors import SpectraError
from spectra.hessian import HessianOperator, class_operators, hessian_operator
from spectra.krylov import lanczos, random_start

Batch = tuple[Tensor, Tensor]
N, FEATURES, CLASSES = 20, 8, 3


def dense(model: nn.Module, data: Batch) -> Tensor:
    """(n, n) by double backward alone, in float64, every parameter a leaf of its own."""
    model, (x, y) = copy.deepcopy(model).double(), data
    x = x.double() if x.is_floating_point() else x
    weights = list(model.parameters())
    first = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)
    rows = [
        torch.autograd.grad(
            g, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for part in first
        for g in part.reshape(-1)
    ]
    return torch.stack([torch.cat([p.reshape(-1) for p in row]) for row in rows])


def vectors(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(N, FEATURES, generator=draw)
    return x, torch.randint(CLASSES, (N,), generator=draw)


def pictures() -> Batch:
    x = torch.randn(N, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, vectors()[1]


def tokens() -> Batch:
    x = torch.randint(10, (N, 7), generator=torch.Generator().manual_seed(2))
    x[:, 4:] = 0
    return x, vectors()[1]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


class Probe(nn.Module):
    """A linear probe on a backbone that nobody has frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.backbone(x)
        logits: Tensor = self.head(z)
        return logits


def test_a_gradient_that_is_not_the_losss_is_refused_and_certifies_nothing() -> None:
    """Logistic regression is convex: such products once proved negative curvature of it."""
    model = made(Probe)
    with pytest.raises(SpectraError, match=r"none reaches backbone.0.weight, backbone.0.bias"):
        hessian_operator(model, vectors())
    model.backbone.requires_grad_(False)
    H = hessian_operator(model, vectors())
    run = lanczos(H, random_start(H.dim, seed=0, probe=0), steps=40)
    assert not certify(H, run.vector(0)).negative_curvature
    assert run.ritz().values[0] > -1e-6


class Words(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4, **options)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.words(x).mean(1)))
        return logits


def test_the_row_of_the_padding_never_moves(device: torch.device) -> None:
    """Gradients leave it out, though the mean over time depends on it: zero, as if frozen."""
    model, plain = (made(lambda o=o: Words(**o)) for o in ({"padding_idx": 0}, {}))
    plain.load_state_dict(model.state_dict())
    expected = dense(plain, tokens())
    assert expected[:4].abs().max() > 1e-3  # it would have a curvature
    expected[:4] = 0
    expected[:, :4] = 0
    H = hessian_operator(model, tokens(), dtype=torch.float64, device=device)
    assert torch.allclose(H.dense().cpu(), expected, rtol=0, atol=1e-14)
    shift = torch.full((H.dim,), 0.1, dtype=torch.float64, device=device)
    kept = shift.clone()
    kept[:4] = 0
    assert H.objective.value(shift=shift) == H.objective.value(shift=kept)


class Tied(nn.Module):
    """The padding is masked; its row of the table is that of a class as well."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4, padding_idx=padding)

    def forward(self, x: Tensor) -> Tensor:
        z = (self.words(x) * (x != 0).unsqueeze(-1)).mean(1)
        return torch.tanh(z) @ self.words.weight.T


def test_a_tied_padding_row_stays_still_on_both_sides() -> None:
    model, plain = made(lambda: Tied(0)), made(lambda: Tied(None))
    plain.load_state_dict(model.state_dict())
    expected = dense(plain, tokens())
    expected[:4] = 0
    expected[:, :4] = 0
    H = hessian_operator(model, tokens(), dtype=torch.float64)
    assert torch.allclose(H.dense(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_how_gradients_are_stored_and_scaled_does_not_enter(option: str) -> None:
    model = made(lambda: Words(**{option: True}))
    expected = dense(made(Words), tokens())
    H = hessian_operator(model, tokens(), dtype=torch.float64)
    assert torch.allclose(H.dense(), expected, rtol=0, atol=1e-14)
    assert getattr(model.words, option)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        logits: Tensor = self.head(torch.tanh(z - z.mean(0)))
        return logits


class Recurrent(nn.Module):
    """`batch_first` was forgotten: each sample follows from the ones before it."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(FEATURES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cells(x)[0])
        return logits


@pytest.mark.parametrize("build", [Standardised, Recurrent])
def test_samples_that_depend_on_each_other_are_refused(build: type[nn.Module]) -> None:
    """Their mean would follow the batches, as it would with a batch norm's own statistics."""
    with pytest.raises(SpectraError, match="depends on the others in its batch"):
        hessian_operator(made(build), vectors())


def test_a_class_of_one_sample_does_not_hide_that() -> None:
    """Alone in its batch it depends on nobody; the others' operators would follow the batches."""
    x, y = vectors()
    y = torch.cat([torch.tensor([0]), 1 + y[1:] % (CLASSES - 1)])
    with pytest.raises(SpectraError, match="depends on the others in its batch"):
        class_operators(made(Standardised), (x, y))
    assert list(class_operators(made(Standardised), (x, y), classes=[0])) == [0]


def test_a_block_whose_hessian_is_zero_passes() -> None:
    """LoRA begins with B = 0, so that its A has no curvature; the outputs depend on the rest."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(FEATURES, CLASSES)
            self.A = nn.Parameter(torch.randn(FEATURES, 2))
            self.B = nn.Parameter(torch.zeros(2, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.base(x) + x @ self.A @ self.B
            return logits

    H = hessian_operator(made(Adapted), vectors(), parameters="A")
    assert not bool(H.dense().any())


@pytest.mark.parametrize("margin", [45.0, 60.0])
def test_samples_fitted_to_the_last_bit_are_not_called_a_gradient_that_stops(margin: float) -> None:
    """Their products are rounding, which has no symmetry."""
    y = vectors()[1]
    model = nn.Linear(CLASSES, CLASSES)
    nn.init.eye_(model.weight)
    x = margin * F.one_hot(y, CLASSES).float() + vectors()[0][:, :CLASSES]
    assert hessian_operator(model, (x, y)).choice.path


class Rotated(nn.Module):
    def __init__(self, *, learnt: bool) -> None:
        super().__init__()
        self.query, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        angles = torch.polar(torch.ones(4), torch.arange(4.0))
        if learnt:
            self.angles = nn.Parameter(angles)
        else:
            self.register_buffer("angles", angles)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(self.query(x).view(-1, 4, 2)) * self.angles
        logits: Tensor = self.head(torch.tanh(torch.view_as_real(z).flatten(1)))
        return logits


def test_complex_buffers_stay_whole_and_complex_parameters_are_refused() -> None:
    model = made(lambda: Rotated(learnt=False))
    H = hessian_operator(model, vectors(), dtype=torch.float64)
    expected = copy.deepcopy(model).double()
    expected.angles = model.angles.to(torch.complex128)
    loss = F.cross_entropy(expected(vectors()[0].double()), vectors()[1]).item()
    assert H.objective.value() == pytest.approx(loss, abs=1e-14)
    with pytest.raises(SpectraError, match="complex parameter `angles`"):
        hessian_operator(made(lambda: Rotated(learnt=True)), vectors())


class Viewed(nn.Module):
    """As LeNet is written in a hundred tutorials: `view` wants the plain layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        logits: Tensor = self.head(x.view(x.size(0), -1))
        return logits


class ViewedAtOnce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(108, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.view(x.size(0), -1))
        return logits


class ViewedAcross(nn.Module):
    """Batch and channels in one dimension: one sample alone can be viewed so in any layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        logits: Tensor = self.head(x.view(x.size(0) * 4, 16).sum(1).view(-1, 4))
        return logits


class Strided(Viewed):
    """Reads its memory as if it were laid out plainly."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        logits: Tensor = self.head(torch.as_strided(x, (x.size(0), 64), (64, 1)))
        return logits


@pytest.mark.parametrize("build", [Viewed, ViewedAtOnce, ViewedAcross, Strided])
@pytest.mark.parametrize("product", ["auto", "linearized", "kept-graph"])
def test_images_are_laid_out_as_the_network_views_them(
    build: type[nn.Module], product: str, device: torch.device
) -> None:
    model = made(build)
    H = hessian_operator(model, pictures(), dtype=torch.float64, device=device, product=product)
    expected = dense(model, pictures())
    assert torch.allclose(H.dense().cpu(), expected, rtol=0, atol=1e-13)
    run = lanczos(H, random_start(H.dim, seed=0, probe=0, dtype=H.dtype, device=device), steps=5)
    assert certify(H, run.vector(0)).noise_floor < 1e-8


class Float32Inside(nn.Module):
    """Norms and softmax in float32, as language models have them, and constants without dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)
        self.gain = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        given, z = z.dtype, z.to(torch.float32)
        z = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)
        z = self.gain * z.to(given) * torch.softmax(z, -1, dtype=torch.float32)
        logits: Tensor = self.head(z @ torch.eye(5)).float()
        return logits


class Float64Inside(Float32Inside):
    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        z = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)
        logits: Tensor = self.head(self.gain * z * torch.softmax(z, -1))
        return logits


@pytest.mark.parametrize("product", ["auto", "linearized"])
def test_float32_by_name_is_float64_where_that_is_the_precision(product: str) -> None:
    model, expected = made(Float32Inside), dense(made(Float64Inside), vectors())
    H = hessian_operator(model, vectors(), dtype=torch.float64, product=product)
    assert torch.allclose(H.dense(), expected, rtol=0, atol=1e-13)
    assert torch.get_default_dtype() == torch.float32
    single = hessian_operator(model, vectors(), product=product)
    assert torch.allclose(single.dense().double(), expected, rtol=0, atol=1e-6)
    low = random_start(single.dim, seed=0, probe=0)
    assert certify(single, low).noise_floor < 1e-9


class Drawn(nn.Module):
    """Random features, and scales read from bits: the function itself, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)
        self.register_buffer("packed", torch.full((5,), 1.5).view(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).to(x)
        z = torch.tanh(self.hidden(x)) @ drawn * self.packed.view(torch.float32).to(x)
        logits: Tensor = self.head(z)
        return logits


def test_what_is_drawn_or_read_in_float32_stays_what_it_is() -> None:
    model = made(Drawn)
    expected = dense(model, vectors())
    H = hessian_operator(model, vectors(), dtype=torch.float64)
    assert torch.allclose(H.dense(), expected, rtol=0, atol=1e-12)
    single = hessian_operator(model, vectors())
    run = lanczos(single, random_start(single.dim, seed=0, probe=0), steps=60)
    theta = certify(single, run.vector(0)).rayleigh_quotient
    assert theta == pytest.approx(float(torch.linalg.eigvalsh(expected)[0]), rel=1e-4)


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)
        self.attention: Tensor | None = None
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.attention = torch.tanh(self.hidden(x))
        self.seen.append(self.attention)
        logits: Tensor = self.head(self.attention)
        return logits


def test_a_network_may_keep_what_it_has_computed() -> None:
    """Passes of the private copy leave such tensors there, and it is copied again."""
    model = made(Keeps)
    H = hessian_operator(model, vectors())
    run = lanczos(H, random_start(H.dim, seed=0, probe=0), steps=30)
    assert certify(H, run.vector(0)).noise_floor < 1e-9
    expected = dense(made(Keeps), vectors())
    assert torch.allclose(H.dense().double(), expected, rtol=0, atol=1e-6)
    assert model.attention is None
    assert model.seen == []


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("product", ["auto", "linearized", "kept-graph"])
def test_the_modes_of_the_caller_end_where_products_begin(mode: Any, product: str) -> None:
    model, data = made(perceptron), vectors()
    v = random_start(hessian_operator(model, data).dim, seed=0, probe=1)
    outside = {c: H @ v for c, H in class_operators(model, data).items()}
    with mode():
        x, y = (part.clone() for part in data)
        operators = class_operators(model, (x, y), product=product)
        inside = {c: H @ v.clone() for c, H in operators.items()}
        floors = [certify(H, v.clone()).noise_floor for H in operators.values()]
        assert all(examine(H).fixed_operator for H in operators.values())
    for c, product_outside in outside.items():
        assert torch.allclose(inside[c], product_outside, rtol=0, atol=1e-6)
    assert max(floors) < 1e-9


def test_a_network_that_runs_anothers_parameters_is_refused() -> None:
    """A `forward` over the module that was copied: its Hessian would be zero, silently."""

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()

    model = made(Closed).double()
    model.forward = lambda x: model.net(x.double())  # type: ignore[method-assign]
    with pytest.raises(SpectraError, match="do not depend on its parameters"):
        hessian_operator(model, vectors())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_traced_script_is_refused_in_one_line() -> None:
    script = torch.jit.trace(made(perceptron), vectors()[0])
    with pytest.raises(SpectraError, match=r"torch\.jit has compiled"):
        hessian_operator(script, vectors())


def test_threads_take_turns_with_one_network() -> None:
    """With products, copies and settings: parameters of another thread are in the network."""
    model = made(perceptron)
    operators = class_operators(model, vectors())
    v = random_start(operators[0].dim, seed=0, probe=0)
    alone = {c: H @ v for c, H in operators.items()}
    wrong: list[object] = []

    def work(c: int, H: HessianOperator) -> None:
        try:
            for _ in range(4):
                wrong.extend(c for _ in range(4) if not torch.equal(H @ v, alone[c]))
                assert examine(H).fixed_operator
                assert certify(H, v).noise_floor < 1e-9
                hessian_operator(model, vectors())
        except BaseException as error:  # of a thread, which pytest would not see
            wrong.append(error)

    threads = [threading.Thread(target=work, args=item) for item in operators.items()]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert torch.get_default_dtype() == torch.float32
