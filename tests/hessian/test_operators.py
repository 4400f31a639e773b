"""Hessians against three independent oracles: closed form, dense autograd, another library."""

import copy
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from spectra.data import Samples
from spectra.errors import SpectraError
from spectra.hessian import Objective, class_operators, hessian_operator
from spectra.hessian.choice import relative
from spectra.losses import LossSpec

N, CLASSES = 13, 3
Loss = Callable[[Tensor, Tensor], Tensor]


def small_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def conv_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.BatchNorm1d(16, affine=False),
            nn.Linear(16, CLASSES),
        ).double()
        for norm in (net[1], net[5]):
            norm.running_mean.normal_(generator=torch.Generator().manual_seed(5))
            norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(6))
        nn.init.uniform_(net[1].weight, 0.5, 2)
    return net.eval()


def data(*shape: int, n: int = N, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    # Unequal classes on purpose: 0 is common, 2 is rare.
    y = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n, replacement=True, generator=generator)
    y[:CLASSES] = torch.arange(CLASSES)
    return x, y


def dense(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, weights: Tensor | None = None
) -> Tensor:
    """The Hessian of the weighted mean by two plain autograd passes a row, all in float64."""
    model = copy.deepcopy(model).double().eval()
    parameters = list(model.parameters())
    weights = torch.ones(len(y), dtype=torch.float64) if weights is None else weights
    value = (loss(model(x.double()), y) * weights).sum() / weights.sum()
    gradient = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = []
    for entry in flat:
        if not entry.requires_grad:
            rows.append(torch.zeros_like(flat))
            continue
        row = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([r.reshape(-1) for r in row]))
    return torch.stack(rows).detach()


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return float((a.cpu() - b).norm()) <= tolerance * float(b.norm())


LOSSES: dict[str, LossSpec | Loss] = {
    "ce": LossSpec(),
    "smoothed": LossSpec(label_smoothing=0.2),
    "weighted": LossSpec(weights=(0.2, 1.0, 3.0)),
    "ldam": LossSpec("ldam", class_counts=(12, 8, 3), scale=30.0),
    "vs": LossSpec("vs", class_counts=(12, 8, 3)),
    "focal": LossSpec("focal"),
    "masked": LossSpec(ignore_index=1),
    "callable": plain,
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_matches_the_dense_hessian_for_any_batches(
    name: str, device: torch.device
) -> None:
    """P4, P5, P6, P8: ragged cuts, a last batch of one sample, weighted and masked losses."""
    model, (x, y), loss = small_net(), data(4), LOSSES[name]
    spec = loss if isinstance(loss, LossSpec) else LossSpec()
    if name == "ldam":  # margins belong to a cosine head; any bounded logits do for the algebra
        model = nn.Sequential(model, nn.Tanh())
    expected = dense(model, x, y, spec.per_sample, spec.sample_weights(y))
    vector = torch.randn(len(expected), generator=torch.Generator().manual_seed(2)).double()
    for batch_size in (1, 3, 7, N):
        H = hessian_operator(
            model, (x, y), loss, dtype=torch.float64, device=device, batch_size=batch_size
        )
        assert close(H @ vector, expected @ vector)
    assert close(H.dense(), expected)


def test_softmax_regression_has_its_closed_form_hessian(device: torch.device) -> None:
    x, y = data(4)
    model = nn.Linear(4, CLASSES).double()
    p = torch.softmax(model(x), 1).detach()
    xt = torch.cat([x, torch.ones(N, 1, dtype=torch.float64)], 1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    blocks = torch.einsum("nab,ni,nj->aibj", curvature, xt, xt) / N  # (C, 5, C, 5)
    order = [(c, i) for c in range(CLASSES) for i in range(4)] + [(c, 4) for c in range(CLASSES)]
    index = torch.tensor([c * 5 + i for c, i in order])
    expected = blocks.reshape(CLASSES * 5, CLASSES * 5)[index][:, index]
    H = hessian_operator(model, (x, y), dtype=torch.float64, device=device, batch_size=5)
    assert close(H.dense(), expected, 1e-12)


def test_batch_norm_in_evaluation_mode_is_exact(device: torch.device) -> None:
    """P11: the affine map in place of batch norm has the Hessian of the original."""
    model, (x, y) = conv_net(), data(1, 5, 5, n=9)
    H = hessian_operator(model, (x, y), dtype=torch.float64, device=device, batch_size=4)
    assert close(H.dense(), dense(model, x, y, plain))


def test_batch_norm_without_running_statistics_is_refused_by_name() -> None:
    """P11: it would couple the samples of a batch."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(SpectraError, match="batch norm `1` without running statistics"):
        hessian_operator(model, data(4))


def test_class_hessians_add_up_to_the_overall_one(device: torch.device) -> None:
    """Law 1: Σ_c (N_c/N) H_c v = H v, whatever the batches."""
    model, (x, y) = conv_net(), data(1, 5, 5)
    options = {"dtype": torch.float64, "device": device}
    H = hessian_operator(model, (x, y), batch_size=7, **options)
    parts = class_operators(model, (x, y), batch_size=3, **options)
    v = torch.randn(H.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = sum(int((y == c).sum()) / N * (part @ v) for c, part in parts.items())
    assert close(total, (H @ v).cpu(), 1e-13)
    assert list(parts) == [0, 1, 2]


def test_class_weights_cancel_in_a_class_mean_and_count_in_its_contribution(
    device: torch.device,
) -> None:
    """P7: two named modes, both against dense references."""
    model, (x, y), loss = small_net(), data(4), LossSpec(weights=(0.2, 1.0, 3.0))
    weights = loss.sample_weights(y)
    options = {"dtype": torch.float64, "device": device, "batch_size": 5}
    means = class_operators(model, (x, y), loss, **options)
    shares = class_operators(model, (x, y), loss, normalization="contribution", **options)
    for c in range(CLASSES):
        rows = y == c
        assert close(means[c].dense(), dense(model, x[rows], y[rows], plain))
        expected = dense(model, x[rows], y[rows], plain) * weights[rows].sum() / weights.sum()
        assert close(shares[c].dense(), expected)
    whole = hessian_operator(model, (x, y), loss, **options).dense()
    assert close(sum(part.dense() for part in shares.values()), whole.cpu(), 1e-12)


def test_a_class_of_one_sample_has_its_own_hessian(device: torch.device) -> None:
    model, (x, y) = small_net(), data(4)
    y = torch.where(y == 2, 0, y)
    y[7] = 2
    H = class_operators(
        model, (x, y), classes=[2], dtype=torch.float64, device=device, batch_size=4
    )[2]
    assert close(H.dense(), dense(model, x[7:8], y[7:8], plain))


def test_an_empty_class_is_refused() -> None:
    x, y = data(4)
    with pytest.raises(SpectraError, match="class 1"):
        class_operators(small_net(), (x[y != 1], y[y != 1]), classes=[1])


class Awkward(nn.Module):
    """Frozen, unused, tied and affine parameters in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Linear(4, CLASSES)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)
        self.shift = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.frozen(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return hidden + self.shift


def test_frozen_unused_and_tied_parameters_have_the_right_rows(device: torch.device) -> None:
    """P10: zero rows for frozen and unused parameters, tied ones counted once."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Awkward().double()
    x, y = data(4)
    H = hessian_operator(model, (x, y), dtype=torch.float64, device=device, batch_size=6)
    live = copy.deepcopy(model)
    for parameter in live.parameters():
        parameter.requires_grad_(True)
    expected = dense(live, x, y, plain)
    names = [name for name, p in live.named_parameters() for _ in range(p.numel())]
    still = torch.tensor([name.startswith("frozen") for name in names])
    expected[still], expected[:, still] = 0, 0
    assert H.dim == 16 + 3 + 15 + 3
    assert close(H.dense(), expected)
    assert not expected[[name == "unused" for name in names]].any()


def test_a_loss_that_is_affine_in_the_parameters_has_a_zero_hessian(
    device: torch.device,
) -> None:
    """P10"""
    H = hessian_operator(
        nn.Linear(4, CLASSES).double(),
        data(4),
        lambda logits, targets: logits.sum(1),
        dtype=torch.float64,
        device=device,
    )
    assert not H.dense().any()


def test_named_parameters_give_their_block_of_the_hessian(device: torch.device) -> None:
    model, (x, y) = conv_net(), data(1, 5, 5, n=9)
    full = dense(model, x, y, plain)
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    rows = torch.tensor([name.startswith("6.") or name == "1.weight" for name in names])
    H = hessian_operator(
        model, (x, y), parameters=["6.*", "1.weight"], dtype=torch.float64, device=device
    )
    assert close(H.dense(), full[rows][:, rows])
    with pytest.raises(SpectraError, match="layer9"):
        hessian_operator(model, (x, y), parameters="layer9.*")


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, AveragedModel], ids=["compile", "parallel", "averaged"]
)
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch, of itself
def test_wrappers_around_a_network_change_nothing(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """DataParallel takes no tangents, and each puts a prefix before the parameters' names."""
    model = small_net()
    asked = {"parameters": "0.*", "dtype": torch.float64, "device": "cpu"}
    bare = hessian_operator(model, data(4), **asked)
    wrapped = hessian_operator(wrap(model), data(4), **asked)
    vector = torch.randn(bare.dim, dtype=torch.float64)
    assert torch.equal(bare @ vector, wrapped @ vector)


def test_the_order_of_the_parameters_does_not_change_the_spectrum(device: torch.device) -> None:
    """P16"""

    class Reordered(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.z_head, self.a_body = net[2], net[0]

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.z_head(torch.tanh(self.a_body(x)))
            return output

    model, (x, y) = small_net(), data(4)
    spectra = [
        np.linalg.eigvalsh(
            hessian_operator(m, (x, y), dtype=torch.float64, device=device).dense().numpy()
        )
        for m in (model, Reordered(model))
    ]
    assert np.allclose(*spectra, rtol=1e-10, atol=1e-14)


def test_the_product_is_taken_at_the_parameters_and_not_at_the_vector(
    device: torch.device,
) -> None:
    """P9: Σθ⁴ at (2, 3) along (1, 0) has the product (48, 0), and products are homogeneous."""

    class Quartic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.theta**4).sum()

    ones = torch.ones(1, 1, dtype=torch.float64)
    H = hessian_operator(
        Quartic(),
        (ones, torch.zeros(1, dtype=torch.long)),
        lambda logits, targets: logits[:, 0],
        dtype=torch.float64,
        device=device,
    )
    v = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert (H @ v).tolist() == pytest.approx([48.0, 0.0])
    assert (H @ (1e9 * v)).tolist() == pytest.approx([48.0e9, 0.0])


@pytest.mark.parametrize(
    "path", ["reverse-over-forward", "forward-over-reverse", "double-backward"]
)
def test_every_path_gives_the_same_product(path: str, device: torch.device) -> None:
    model, (x, y) = conv_net(), data(1, 5, 5)
    H = hessian_operator(
        model, (x, y), product=path, dtype=torch.float64, device=device, batch_size=10
    )
    assert H.choice.path == path
    assert close(H.dense(), dense(model, x, y, plain))


def test_curvlinops_agrees_on_unweighted_losses() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, (x, y) = conv_net(), data(1, 5, 5)
    H = hessian_operator(model, (x, y), dtype=torch.float64, batch_size=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = curvlinops.HessianLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)]
        )
        v = torch.randn(H.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        expected = theirs @ v
    assert close(H @ v, expected.detach())


def test_two_operators_on_one_model_are_independent_and_leave_no_trace(
    device: torch.device,
) -> None:
    """P14, P15, law 7: parameters, buffers, gradients, flags and random state are untouched."""
    model, (x, y) = conv_net(), data(1, 5, 5)
    model.train()
    model[0].eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    model[6].bias.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    requires = [p.requires_grad for p in model.parameters()]
    random = torch.random.get_rng_state()
    first = hessian_operator(model, (x, y), dtype=torch.float64, device=device)
    v = torch.randn(first.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    before = first @ v
    second = hessian_operator(model, (x[:5], y[:5]), dtype=torch.float64, device=device)
    second @ v
    assert torch.equal(first @ v, before)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(first @ v, before), "an operator must not follow later training"
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(1.0)
    assert all(torch.allclose(v, state[k]) for k, v in model.state_dict().items())
    assert flags == [m.training for m in model.modules()]
    assert requires == [p.requires_grad for p in model.parameters()]
    assert all(bool((p.grad == 0.5).all()) for p in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


def test_a_loader_is_read_once_and_its_tensors_stay(device: torch.device) -> None:
    """P2, P44: one pass over the source, whatever the number of products."""

    class Counting:
        passes = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.passes += 1
            x, y = data(4)
            yield from zip(x.split(6), y.split(6), strict=True)

    source = Counting()
    H = hessian_operator(small_net(), source, dtype=torch.float64, device=device)
    v = torch.ones(H.dim, dtype=torch.float64)
    first = H @ v
    for _ in range(5):
        H @ torch.randn(H.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(H @ v, first)
    assert source.passes == 1
    x, y = data(4)
    assert close(first, dense(small_net(), x, y, plain) @ v.cpu())


def test_a_reduced_loss_and_a_model_without_logits_are_refused() -> None:
    x, y = data(4)
    with pytest.raises(SpectraError, match="reduction"):
        hessian_operator(small_net(), (x, y), nn.CrossEntropyLoss())
    with pytest.raises(SpectraError, match="reduction='none'"):
        hessian_operator(small_net(), (x, y), lambda a, b: F.cross_entropy(a, b))

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return self.net(x), 1

    with pytest.raises(SpectraError, match="logits"):
        hessian_operator(Pair(), (x, y))


def test_nan_weights_stop_the_first_product() -> None:
    """P40"""
    model = small_net()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(SpectraError):
        hessian_operator(model, data(4), dtype=torch.float64) @ torch.ones(51)


def test_running_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = small_net(), data(4)
    H = hessian_operator(model, (x, y), dtype=torch.float64, batch_size=16)
    expected = dense(model, x, y, plain)
    original = Objective._weighted_sum

    def stingy(self: Objective, inputs: Tensor, *rest: object) -> Tensor:
        if len(inputs) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs, *rest)

    monkeypatch.setattr(Objective, "_weighted_sum", stingy)
    assert close(H.dense(), expected)
    assert H.objective.batch_size == 3


def test_all_classes_share_what_one_of_them_learnt_to_fit_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (x, y) = small_net(), data(4)
    operators = class_operators(model, (x, y), dtype=torch.float64, batch_size=len(x))
    v = torch.randn(51, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = [H @ v for H in operators.values()]
    original, failures = Objective._weighted_sum, []

    def stingy(self: Objective, inputs: Tensor, *rest: object) -> Tensor:
        if len(inputs) > 2:
            failures.append(len(inputs))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs, *rest)

    monkeypatch.setattr(Objective, "_weighted_sum", stingy)
    halvings = []
    for H, product in zip(operators.values(), expected, strict=True):
        assert close(H @ v, product)
        halvings.append(len(failures))
    assert sum(len(H.objective.samples) > 2 for H in operators.values()) >= 2
    assert halvings == [halvings[0]] * len(operators)
    assert halvings[0] > 0


def test_half_precision_models_are_differentiated_in_float32(device: torch.device) -> None:
    """P28: the copy takes the precision of the products, whatever the model's own."""
    model, (x, y) = small_net(), data(4)
    H = hessian_operator(model.bfloat16(), (x, y), device=device)
    expected = dense(model, x, y, plain)
    assert close(H.dense(), expected, 1e-5)


def test_samples_know_their_augmentation_and_a_fixed_set_has_none_to_redraw() -> None:
    objective = Objective.of(small_net(), Samples.from_batches(data(4)), dtype=torch.float64)
    with pytest.raises(SpectraError, match="augment"):
        objective.redrawn(torch.Generator())


def test_products_run_where_the_network_is(device: torch.device) -> None:
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])
    model = nn.Linear(3, 2).to(device)
    assert hessian_operator(model, (x, y)).device.type == device.type
    assert class_operators(model, (x, y))[1].device.type == device.type
    assert hessian_operator(model, (x, y), device="cpu").device.type == "cpu"


def test_no_class_has_no_operator() -> None:
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])
    assert class_operators(nn.Linear(3, 2), (x, y), classes=[]) == {}


def test_a_precision_below_that_of_certificates_is_refused() -> None:
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(SpectraError, match=r"expected torch\.float32 or torch\.float64"):
        hessian_operator(nn.Linear(3, 2), (x, y), dtype=torch.bfloat16)


def test_frozen_parameters_that_were_chosen_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(
        SpectraError, match=r"parameters that are all frozen.*for 0\.weight, 0\.bias"
    ):
        hessian_operator(model, (x, y), parameters="0.*")


def test_two_products_that_are_zero_are_no_distance_apart() -> None:
    zero = torch.zeros(3)
    assert relative(zero, zero) == 0
    assert relative(zero, zero + 1) == 1
    for one, other in ((zero + torch.nan, zero + 1), (zero, zero + torch.nan)):
        assert math.isnan(relative(one, other))
        assert math.isnan(relative(other, one))
