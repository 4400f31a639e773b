"""What is kept from product to product changes their cost, and nothing else."""

import gc
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from spectra.choices import KeptName
from spectra.hessian import KeptProducts, Objective
from spectra.hessian.norms import written_out
from spectra.losses import LossSpec
from tests.zoo import CLASSES, MODELS, build

EAGER: tuple[KeptName, ...] = ("kept-graph", "linearized")
# grid_sample and functions in the old style have no forward mode to trace.
TRACEABLE = [name for name in MODELS if name not in ("grid-sample", "old-function")]


class Residual(nn.Module):
    """A convolution, a residual block that halves the image, a head; batch norms between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x)).relu()
        h = (self.bn2(self.conv2(h)) + h[:, :, ::2, ::2]).relu()
        out: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(h, 2).flatten(1))
        return out


def residual_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Residual().double()
        for module in (model.bn1, model.bn2):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def problem(
    model: nn.Module, x: Tensor, device: torch.device, loss: LossSpec | None = None
) -> tuple[Objective, Tensor]:
    y = torch.arange(len(x)) % CLASSES
    H = Objective.of(model, (x, y), loss, dtype=torch.float64, device=device, batch_size=4)
    draw = torch.Generator().manual_seed(1)
    return H, torch.randn(H.dim, generator=draw, dtype=torch.float64).to(device)


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Tied(nn.Module):
    """One weight in two layers, another used twice, a third not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.b.weight = self.a.weight
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x).tanh()).tanh()
        out: Tensor = self.c(self.b(h))
        return out


@pytest.mark.parametrize("name", EAGER)
def test_tied_repeated_and_unused_parameters(name: KeptName, device: torch.device) -> None:
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective, v = problem(Tied().double(), x, device)
    kept = KeptProducts(name, objective, "double-backward", sizes=(4,))
    assert off(kept.product(objective, v), objective.product(v, "double-backward")) < 1e-12


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("network", MODELS)
def test_every_kept_way_agrees_with_double_backward_in_float64(
    network: str, name: KeptName, device: torch.device
) -> None:
    if name == "linearized" and network not in TRACEABLE:
        pytest.skip("no forward mode")
    if network == "grid-sample" and torch.__version__ < "2.12":
        pytest.skip("torch differentiates its backward from 2.12 on")
    if network == "tokens-lstm" and name == "linearized" and device.type == "cuda":
        pytest.skip("no forward mode of an LSTM on a GPU")
    model, (x, _) = build(MODELS[network][0], *MODELS[network][1], n=7)
    objective, v = problem(model, x, device)
    kept = KeptProducts(name, objective, "double-backward", sizes=(4,))
    expected = objective.product(v, "double-backward")
    for _ in range(2):  # the second time from what was kept
        assert off(kept.product(objective, v), expected) < 1e-10
    assert kept.kept_samples == 7
    assert kept.note + kept.launched == ""


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("loss", ["weighted", "focal", "ldam", "masked"])
def test_losses_with_weights_and_masks_lose_nothing(
    name: KeptName, loss: str, device: torch.device
) -> None:
    specs = {
        "weighted": LossSpec(weights=(0.2, 1.0, 3.0)),
        "focal": LossSpec("focal"),
        "ldam": LossSpec("ldam", class_counts=(12, 8, 3), scale=3.0),
        "masked": LossSpec(ignore_index=1),
    }
    objective, v = problem(residual_net(), images(6), device, specs[loss])
    kept = KeptProducts(name, objective, "double-backward", sizes=(4,))
    assert off(kept.product(objective, v), objective.product(v, "double-backward")) < 1e-10


@pytest.mark.parametrize("sizes", [(8,), (3,), (8, 2), (1,)])
def test_batches_filled_up_with_samples_of_weight_zero_change_nothing(
    sizes: tuple[int, ...], device: torch.device
) -> None:
    objective, v = problem(residual_net(), images(11), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=sizes)
    expected = objective.product(v, "double-backward")
    assert off(kept.product(objective, v), expected) < 1e-12
    for rows in ([0, 3], [4], list(range(10))):
        part = objective.select(torch.tensor(rows))
        assert off(kept.product(part, v), part.product(v, "double-backward")) < 1e-12
        assert kept.kept_samples == len(rows)
        kept.drop()


@pytest.mark.parametrize("name", EAGER)
def test_the_budget_decides_what_is_kept_and_no_bit_of_the_product(
    name: KeptName, device: torch.device
) -> None:
    objective, v = problem(residual_net(), images(12), device)
    whole = KeptProducts(name, objective, "double-backward", sizes=(4,))
    expected = whole.product(objective, v)
    assert whole.kept_samples == 12
    size = _held(whole)
    assert size > 0
    kept = []
    for budget in (0, size // 2, 2 * size):
        ways = KeptProducts(name, objective, "double-backward", sizes=(4,), budget=budget)
        assert torch.equal(ways.product(objective, v), expected)
        kept.append(ways.kept_samples)
    assert kept[0] == 0
    assert kept[1] == 4
    assert kept[2] == 12


def _held(kept: KeptProducts) -> int:
    """Bytes of a keeper, found by giving it less and less until it keeps less."""
    batch = kept._pieces[0].batch
    linear, size = kept._linear(kept._owner(), batch)  # type: ignore[misc,arg-type]
    assert linear is not None
    return 3 * (size + sum(t.untyped_storage().nbytes() for t in batch))


def test_another_selection_takes_the_place_of_the_last(device: torch.device) -> None:
    objective, v = problem(residual_net(), images(8), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    for rows in (torch.arange(0, 4), torch.arange(4, 8)):
        part = objective.select(rows)
        for _ in range(3):
            assert off(kept.product(part, v), part.product(v, "double-backward")) < 1e-12
            assert kept.kept_samples == 4


def test_operators_that_take_turns_keep_nothing_in_the_end(device: torch.device) -> None:
    """To keep what is dropped a product later costs more than it saves."""
    objective, v = problem(residual_net(), images(8), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    parts = [objective.select(torch.arange(a, b)) for a, b in ((0, 4), (4, 8))]
    seen = []
    for part in parts * 3:
        assert off(kept.product(part, v), part.product(v, "double-backward")) < 1e-12
        seen.append(kept.kept_samples)
    assert seen == [4, 4, 4, 0, 0, 0]
    for _ in range(4):
        kept.product(objective, v)
    kept.product(parts[0], v)  # after some products with the same one all is as before
    assert kept.kept_samples == 4


def test_a_program_that_fails_makes_way_for_the_plain_path_and_says_so(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    objective, v = problem(residual_net(), images(8), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))

    def broken(*_: object) -> Tensor:
        raise RuntimeError("the expanded size must match")

    with monkeypatch.context() as patch:
        patch.setattr(KeptProducts, "_sum", broken)
        expected = objective.product(v, "double-backward")
        assert torch.equal(kept.product(objective, v), expected)
    assert "the expanded size must match; double-backward instead" in kept.note
    part = objective.select(torch.arange(4))  # another one starts anew
    kept.product(part, v)
    assert not kept.plain
    assert kept.kept_samples == 4


def test_what_is_kept_is_dropped_when_the_weights_move(device: torch.device) -> None:
    objective, v = problem(residual_net(), images(4), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    before = kept.product(objective, v)
    with torch.no_grad():
        for parameter in objective.network.parameters():
            parameter.mul_(1.1)
    after = kept.product(objective, v)
    assert off(after, before) > 1e-3
    assert off(after, objective.product(v, "double-backward")) < 1e-12


def test_dropping_frees_what_was_kept(device: torch.device) -> None:
    objective, v = problem(residual_net(), images(4), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    kept.product(objective, v)
    held = weakref.ref(kept._pieces[0].batch[0])
    kept.drop()
    gc.collect()
    assert held() is None
    assert kept.kept_samples == 0
    assert off(kept.product(objective, v), objective.product(v, "double-backward")) < 1e-12


def test_moved_buffers_and_frozen_parameters_are_noticed(device: torch.device) -> None:
    model = residual_net()
    next(model.parameters()).requires_grad_(False)
    objective, v = problem(model, images(4), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    before = kept.product(objective, v)
    with torch.no_grad():
        next(objective.network.parameters()).mul_(1.5)
        next(objective.network.buffers()).add_(0.3)
    after = kept.product(objective, v)
    assert off(after, before) > 1e-3
    assert off(after, objective.product(v, "double-backward")) < 1e-12


def test_nothing_is_held_without_a_budget(device: torch.device) -> None:
    objective, v = problem(residual_net(), images(8), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,), budget=0)
    kept.product(objective, v)
    assert all(piece.batch is None and piece.linear is None for piece in kept._pieces)


@pytest.mark.parametrize("failures", [1, 2])
def test_out_of_memory_keeps_nothing_and_then_takes_the_plain_path(
    failures: int, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    objective, v = problem(residual_net(), images(8), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    expected = kept.product(objective, v)
    left = failures
    real: Callable[..., Tensor] = KeptProducts._sum

    def scarce(self: KeptProducts, *given: object) -> Tensor:
        nonlocal left
        if left:
            left -= 1
            raise torch.OutOfMemoryError
        return real(self, *given)

    monkeypatch.setattr(KeptProducts, "_sum", scarce)
    kept.drop()
    assert off(kept.product(objective, v), expected) < 1e-12
    assert kept.kept_samples == 0
    assert ("double-backward" in kept.note) == (failures == 2)


def test_some_rows_and_frozen_parameters_come_out_where_they_belong(device: torch.device) -> None:
    model = residual_net()
    next(model.parameters()).requires_grad_(False)
    y = torch.arange(4) % CLASSES
    for rows in (None, "*2.*"):
        objective = Objective.of(
            model, (images(4), y), parameters=rows, dtype=torch.float64, device=device
        )
        draw = torch.Generator().manual_seed(1)
        v = torch.randn(objective.dim, generator=draw, dtype=torch.float64).to(device)
        for name in get_args(KeptName)[:2]:
            kept = KeptProducts(name, objective, "double-backward", sizes=(4,))
            expected = objective.product(v, "double-backward")
            assert off(kept.product(objective, v), expected) < 1e-12


class Normed(nn.Module):
    """A layer, a batch norm after it (or after something in between), a head over both."""

    def __init__(
        self, layer: nn.Module, norm: nn.Module, between: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.between = layer, norm, between
        self.fc = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z, also = self.made(x)
        h = self.norm(z if self.between is None else self.between(z))
        out: Tensor = self.fc((h.tanh() + also).flatten(1))
        return out

    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What goes to the norm, and what else is read."""
        z = self.layer(x)
        return z, z


class ByName(Normed):
    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(input=x), torch.zeros(())


class Twice(Normed):
    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.layer(x)
        return self.layer(z.tanh()), self.norm(z)


class OverItsInput(Normed):
    """The input of the layer is changed in place before its output is normed."""

    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x * 1.0
        z = self.layer(h)
        return z, h.relu_()


class OtherWeights(Normed):
    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = {name: 2 * value for name, value in self.layer.named_parameters()}
        return torch.func.functional_call(self.layer, weights, (x,)), torch.zeros(())


class Inference(Normed):
    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            z = self.layer(x)
        return z.clone(), torch.zeros(())


def square(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1, **options)


def doubling() -> nn.Module:
    layer = square()
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    return layer


def overridden() -> nn.Module:
    layer = square()
    layer.forward = MethodType(  # type: ignore[method-assign]
        lambda self, x: nn.Conv2d.forward(self, x).exp(), layer
    )
    return layer


NORMED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # and a sample's shape
    "linear": (lambda: Normed(nn.Linear(3, 4), nn.BatchNorm1d(4)), (3,)),
    "rows of a linear": (lambda: Normed(nn.Linear(3, 5), nn.BatchNorm1d(4)), (4, 3)),
    "conv1d": (lambda: Normed(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4)), (2, 5)),
    "conv3d": (
        lambda: Normed(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2, affine=False)),
        (1, 3, 3, 3),
    ),
    "groups, stride, dilation": (
        lambda: Normed(
            nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2, groups=2), nn.BatchNorm2d(4)
        ),
        (4, 6, 6),
    ),
    "mirrored edges": (
        lambda: Normed(square(padding_mode="reflect"), nn.BatchNorm2d(3)),
        (3, 4, 4),
    ),
    "something between": (lambda: Normed(square(), nn.BatchNorm2d(3), torch.tanh), (3, 4, 4)),
    "changed in place": (lambda: Normed(square(), nn.BatchNorm2d(3), torch.sigmoid_), (3, 4, 4)),
    "its input changed": (lambda: OverItsInput(square(), nn.BatchNorm2d(3)), (3, 4, 4)),
    "other weights": (lambda: OtherWeights(square(), nn.BatchNorm2d(3)), (3, 4, 4)),
    "a hook": (lambda: Normed(doubling(), nn.BatchNorm2d(3)), (3, 4, 4)),
    "another forward": (lambda: Normed(overridden(), nn.BatchNorm2d(3)), (3, 4, 4)),
    "called by name": (lambda: ByName(square(), nn.BatchNorm2d(3)), (3, 4, 4)),
    "called twice": (lambda: Twice(square(), nn.BatchNorm2d(3)), (3, 4, 4)),
    "inference": (lambda: Inference(square().requires_grad_(False), nn.BatchNorm2d(3)), (3, 4, 4)),
}


def normed(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = NORMED[name]
    x = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = build().double().train()
        for _ in range(3):
            model(x + torch.randn_like(x))
        assert isinstance(model.norm, nn.Module)
        for parameter in model.norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval(), x


# Autograd refuses to differentiate by the weights of a layer whose input is gone.
NO_LAYER = ("norm.*", "fc.*")
ROWS = {"its input changed": NO_LAYER, "inference": NO_LAYER}


@pytest.mark.parametrize("name", NORMED)
def test_a_norm_drawn_into_the_layer_before_it_leaves_every_second_derivative(
    name: str, device: torch.device
) -> None:
    model, x = normed(name)
    data, rows = (x, torch.arange(5) % CLASSES), ROWS.get(name)
    objective = Objective.of(model, data, parameters=rows, dtype=torch.float64, device=device)
    draw = torch.Generator().manual_seed(1)
    v = torch.randn(objective.dim, generator=draw, dtype=torch.float64).to(device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(5,))
    expected = objective.product(v, "forward-over-reverse")
    assert off(kept.product(objective, v), expected) < 1e-12
    assert not kept.note + kept.launched


def test_products_scale_no_activation_and_add_no_zeros(device: torch.device) -> None:
    objective, v = problem(residual_net(), images(4), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    kept.product(objective, v)
    (program,) = kept._programs.values()
    assert isinstance(program.apply, fx.GraphModule)
    aten, nodes = torch.ops.aten, program.apply.graph.nodes
    multiplied = [node.meta["val"].shape for node in nodes if node.target is aten.mul.Tensor]
    weights = {p.shape for p in objective.network.parameters()}
    assert multiplied
    assert not [shape for shape in multiplied if len(shape) == 4 and shape not in weights]
    added = [term.target for node in nodes if node.target is aten.add.Tensor for term in node.args]
    assert aten.convolution.default in added
    assert aten.zeros_like.default not in added


SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "wider": lambda h: torch.zeros_like(h.expand(3, *h.shape)).add(h[None]).sum(0),
    "of another precision": lambda h: torch.zeros_like(h) + h.float(),
    "of another layout": lambda h: (
        (torch.zeros_like(h.t().contiguous()) + h.t()).view(-1).view(h.t().shape).t()
    ),
    "times a number": lambda h: torch.zeros_like(h).add(h, alpha=2),
}


@pytest.mark.parametrize("sum_of", SUMS)
def test_a_sum_with_zeros_is_more_than_its_other_term(sum_of: str, device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    model[0].register_forward_hook(lambda module, inputs, output: SUMS[sum_of](output))
    draw = torch.Generator().manual_seed(2)
    objective, v = problem(model, torch.randn(4, 5, generator=draw, dtype=torch.float64), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    single = sum_of == "of another precision"
    expected = objective.product(v, "double-backward")
    assert off(kept.product(objective, v), expected) < (1e-6 if single else 1e-12)
    assert not kept.note + kept.launched


def test_written_out_norms_are_the_same_function_with_the_same_names() -> None:
    model = residual_net()
    out, maps = written_out(model, {})
    assert len(maps.weights) == 0
    assert list(out.state_dict()) == list(model.state_dict())
    x = images(3)
    with torch.no_grad():
        assert off(out(x), model(x)) < 1e-14
    assert type(model.bn1) is nn.BatchNorm2d  # the caller's is left as it was


def test_norms_by_their_maps_are_the_same_function_and_give_the_same_gradient(
    device: torch.device,
) -> None:
    objective, _ = problem(residual_net(), images(3), device)
    model, rows, x = objective.network, objective.rows, images(3).to(device)
    out, maps = written_out(model, rows.places)
    assert len(maps.weights) == 2 * 4  # two norms of four channels

    def loss(network: nn.Module, at: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(network, at, (x,)).square().sum()

    here = rows.here()
    mapped = rows.split(maps.of(rows.flatten(here)))
    assert off(loss(out, mapped), loss(model, here)) < 1e-14
    expected = rows.flatten(torch.func.grad(lambda at: loss(model, at))(here))
    by_maps = rows.flatten(torch.func.grad(lambda at: loss(out, at))(mapped))
    assert off(by_maps, expected) > 0.01
    assert off(maps.back(by_maps), expected) < 1e-12


@pytest.mark.parametrize("how", ["one weight for two norms", "a frozen bias", "no weight"])
def test_norms_whose_map_is_not_theirs_alone_keep_their_parameters(
    how: str, device: torch.device
) -> None:
    model = residual_net()
    one, other = model.bn1, model.bn2
    if how == "one weight for two norms":
        other.weight = one.weight
    elif how == "a frozen bias":
        one.bias.requires_grad_(False)
    else:
        model.bn1 = nn.BatchNorm2d(one.num_features, affine=False).double().eval()
    objective, v = problem(model, images(4), device)
    _, maps = written_out(objective.network, objective.rows.places)
    assert len(maps.weights) == (0 if how == "one weight for two norms" else 4)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    assert off(kept.product(objective, v), objective.product(v, "double-backward")) < 1e-10
    assert not kept.note + kept.launched


class TwoNames(nn.Module):
    """One layer and one norm, each under two names; one weight under two names of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.second, self.again = self.first, self.norm
        self.head = nn.Linear(6, CLASSES)
        self.other = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x)))
        out: Tensor = self.head(torch.tanh(self.again(self.second(h)))) + (h @ self.other.t()).sin()
        return out


@pytest.mark.parametrize("name", [None, *EAGER])
def test_a_module_of_two_names_is_called_with_its_parameters_and_keeps_its_own(
    name: KeptName | None, device: torch.device
) -> None:
    model = TwoNames().double().eval()
    draw = torch.Generator().manual_seed(2)
    objective, v = problem(model, torch.randn(4, 6, generator=draw, dtype=torch.float64), device)
    before = {n: p.clone() for n, p in objective.network.named_parameters()}
    expected = objective.product(v, "double-backward")
    step = 1e-5 * v / v.norm()
    slopes = [objective.gradient(shift=sign * step) for sign in (1, -1)]
    assert off((slopes[0] - slopes[1]) / (2e-5 / v.norm()), expected) < 1e-7
    found = objective.product(v, "reverse-over-forward")
    if name is not None:
        kept = KeptProducts(name, objective, "double-backward", sizes=(4,))
        found = kept.product(objective, v)
        assert not kept.note + kept.launched
    assert off(found, expected) < 1e-12
    assert all(torch.equal(p, before[n]) for n, p in objective.network.named_parameters())


class Reader(nn.Module):
    """Reads a norm's parameters past the norm itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * self.inner.bn1.weight.sum()
        return out


def test_a_norm_whose_parameters_others_read_keeps_them(device: torch.device) -> None:
    model = Reader().double().eval()
    model.inner.load_state_dict(residual_net().state_dict())
    objective, v = problem(model, images(4), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    assert off(kept.product(objective, v), objective.product(v, "double-backward")) < 1e-10
    assert not kept.note + kept.launched


def test_a_linearized_product_convolves_twice_as_often_as_a_gradient_at_most(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeptProducts, "_record", lambda *_: None)  # nobody counts in a recording
    objective, v = problem(residual_net(), images(4), device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(4,))
    kept.product(objective, v)

    def work(task: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            task()
        return sum(n for op, n in counter.get_flop_counts()["Global"].items() if "conv" in str(op))

    plain = work(lambda: objective.product(v, "reverse-over-forward"))
    fast = work(lambda: kept.product(objective, v))
    kept.drop()
    again = work(lambda: kept.product(objective, v))
    assert 0 < fast <= 2 * work(objective.gradient)
    assert fast < plain
    assert fast < again <= 3 * work(objective.gradient)
