"""A way of differentiating is used only where it is right, and the refusal says why."""

import copy
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.hessian import Objective, choose_product, hessian_operator, objective
from spectra.models import ModelSpec
from tests.zoo import (
    CLASSES,
    MODELS,
    Attention,
    Custom,
    Detached,
    Encoder,
    Once,
    build,
)


def by_differences(model: nn.Module, data: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
    """H v from gradients alone, with no product of ours."""
    model, (x, y) = copy.deepcopy(model), data
    weights = list(model.parameters())
    sides = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                pieces = torch.split(v, [p.numel() for p in weights])
                for p, piece in zip(weights, pieces, strict=True):
                    p.add_(step * piece.view_as(p))
            g = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
            sides.append(torch.cat([part.reshape(-1) for part in g]))
    return (sides[0] - sides[1]) / 2e-6


@pytest.mark.parametrize("name", MODELS)
def test_the_fastest_right_path_is_chosen_and_gives_the_true_product(
    name: str, device: torch.device
) -> None:
    """P28, law 6: LayerNorm and InstanceNorm make reverse-over-forward silently wrong."""
    make, shape, path = MODELS[name]
    if name == "tokens-lstm" and device.type == "cuda":
        path = "double-backward"  # an LSTM's fused cell has no forward mode there
    model, data = build(make, *shape)
    if name == "grid-sample" and torch.__version__ < "2.12":
        with pytest.raises(SpectraError, match="grid_sampler_2d_backward is not implemented"):
            hessian_operator(model, data, dtype=torch.float64, device=device)
        return
    H = hessian_operator(model, data, dtype=torch.float64, device=device, batch_size=4)
    assert H.choice.path == path
    assert H.choice.disagreement < 1e-10
    v = torch.randn(H.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = by_differences(model, data, v)
    assert float(((H @ v).cpu() - expected).norm() / expected.norm()) < 1e-6
    reference = H.objective.product(v.to(device), "double-backward")
    assert float((H @ v - reference).norm() / reference.norm()) < 1e-12
    refused = {"reverse-over-forward", "forward-over-reverse", "double-backward"}
    order = ("reverse-over-forward", "forward-over-reverse", "double-backward")
    assert set(H.choice.refused) == refused & set(order[: order.index(path)])


def test_a_recurrent_network_has_products_in_float32_too(device: torch.device) -> None:
    """oneDNN's layer, which float32 takes on a CPU and float64 does not, has no forward mode."""
    model, data = build(MODELS["tokens-lstm"][0], *MODELS["tokens-lstm"][1])
    H, exact = (
        hessian_operator(model, data, dtype=dtype, device=device)
        for dtype in (torch.float32, torch.float64)
    )
    v = torch.randn(H.dim, generator=torch.Generator().manual_seed(1))
    expected = exact @ v
    assert float((H @ v - expected).norm() / expected.norm()) < 1e-5
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    ("given", "words"),
    [({"product": "fastest"}, "one of auto, "), ({"dtype": "float64"}, "torch.float64")],
)
def test_a_word_that_names_nothing_is_refused(
    given: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users run without the type checks that the tests run with."""
    model, data = build(MODELS["conv"][0], 1, 5, 5)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(SpectraError, match=words):
        hessian_operator(model, data, **given)


@pytest.mark.parametrize("name", ["attention", "encoder", "instance-norm"])
def test_a_wrong_path_is_refused_with_its_error_even_when_it_is_asked_for(name: str) -> None:
    model, data = build(*MODELS[name][:1], *MODELS[name][1])
    H = hessian_operator(model, data)
    assert "away from a finite difference" in H.choice.refused["reverse-over-forward"]
    with pytest.raises(SpectraError, match=r"expected reverse-over-forward to agree"):
        hessian_operator(model, data, product="reverse-over-forward")


def test_the_wrong_path_is_really_wrong() -> None:
    """Else the refusals above would be for nothing; when PyTorch mends it, this test says so."""
    model, data = build(Attention, 4, 5)
    few = Objective.of(model, data, dtype=torch.float64)
    v = torch.randn(few.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right, wrong = (few.product(v, p) for p in ("double-backward", "reverse-over-forward"))
    assert float((right - wrong).norm() / right.norm()) > 0.01


@pytest.mark.parametrize("function", [Detached, Once])
def test_a_function_without_second_derivative_is_refused(function: type) -> None:
    model, data = build(lambda: Custom(function), 5)
    with pytest.raises(SpectraError, match="wrong or missing") as error:
        hessian_operator(model, data)
    assert "\n" not in str(error.value)


def test_weight_norm_is_refused() -> None:
    """Its double backward is wrong by tens of percent, and it has no forward mode."""
    model, data = build(
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)
        ),
        5,
    )
    with pytest.raises(SpectraError, match=r"double-backward: \d+% away .*weight_norm"):
        hessian_operator(model, data)


def test_weight_norm_is_refused_in_a_small_corner_of_a_large_network() -> None:
    """A tolerance of percents over all rows would let it through."""
    model, data = build(
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)),
            nn.Tanh(),
            nn.Linear(2, 80),
            nn.Tanh(),
            nn.Linear(80, CLASSES),
        ),
        5,
    )
    with pytest.raises(SpectraError, match="wrong or missing"):
        hessian_operator(model, data)


@pytest.mark.parametrize("seed", range(4))
def test_a_resnet_at_initialisation_is_not_refused_for_its_kinks(seed: int) -> None:
    """Some of its many ReLU units always lie between the two points of a coarse difference."""
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    model = ModelSpec("resnet20", CLASSES).build(seed=seed)
    choice = choose_product(Objective.of(model, (x, torch.arange(4) % CLASSES)))
    assert choice.path == "reverse-over-forward"
    assert not choice.refused


def test_units_that_stand_exactly_on_their_kink_are_not_refused() -> None:
    """Black pixels and zero biases put them there, at initialisation."""
    model, (x, y) = build(MODELS["conv"][0], 1, 5, 5)
    nn.init.zeros_(model[0].bias)
    x[:, :, :, :4] = 0
    assert hessian_operator(model, (x, y)).choice.path == "reverse-over-forward"


@pytest.mark.parametrize("margin", [10.0, 25.0, 60.0])
def test_a_network_that_fits_its_samples_to_the_last_bit_is_not_refused(margin: float) -> None:
    model, (x, _) = build(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), 5)
    with torch.no_grad():
        top = model(x).topk(2, 1)[0]
        scale = margin / (top[:, 0] - top[:, 1]).min()
        for p in model[2].parameters():
            p.mul_(scale)
    assert hessian_operator(model, (x, model(x).argmax(1))).choice.path == "reverse-over-forward"


def test_masked_samples_take_no_part_in_the_comparison() -> None:
    """P6: here all but one of the samples have the weight zero."""
    model, (x, y) = build(lambda: nn.Linear(5, CLASSES), 5, n=50)
    y[:] = -100
    y[17] = 1
    assert hessian_operator(model, (x, y), dtype=torch.float64).choice.disagreement < 1e-10


def test_a_zero_hessian_passes() -> None:
    """P10: differences of an affine loss are nothing but rounding."""
    model, data = build(lambda: nn.Linear(5, CLASSES), 5)
    H = hessian_operator(model, data, lambda logits, targets: 1e6 * logits.sum(1))
    assert H.choice.path == "reverse-over-forward"
    assert not H.dense().any()


def test_functional_dropout_is_refused_by_the_name_of_its_layer() -> None:
    """P3: it is random in evaluation mode, too; the refusal leaves the random state alone."""

    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    model = nn.Sequential()
    model.add_module("body", nn.Linear(5, 8))
    model.add_module("forgetful", Forgetful())
    model.add_module("head", nn.Linear(8, CLASSES))
    state = torch.random.get_rng_state()
    with pytest.raises(SpectraError, match=r"forgetful \(Forgetful\)"):
        hessian_operator(model, (torch.ones(4, 5), torch.arange(4) % CLASSES))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_comparison_leaves_the_network_and_the_global_state_untouched(
    device: torch.device,
) -> None:
    """P12, P15, law 7: the finite differences move a copy; every flag and state is put back."""
    model, data = build(Encoder, 4, 5)
    few = Objective.of(model, data, dtype=torch.float64, device=device)
    before = {k: v.clone() for k, v in few.network.state_dict().items()}
    backends = torch.backends

    def flags() -> list[object]:
        return [
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
            backends.mha.get_fastpath_enabled(),
            backends.cudnn.conv.fp32_precision,
            backends.cuda.matmul.fp32_precision,
            backends.cudnn.deterministic,
            backends.cudnn.enabled,
            torch.random.get_rng_state().tolist(),
            torch.is_grad_enabled(),
        ]

    settings = flags()
    choose_product(few)
    assert settings == flags()
    assert all(torch.equal(v, before[k]) for k, v in few.network.state_dict().items())


def test_another_path_than_the_chosen_one_is_the_reference_wherever_one_is_right() -> None:
    """The certificate's independence hangs on it."""
    model, data = build(MODELS["conv"][0], 1, 5, 5)
    for path in ("reverse-over-forward", "forward-over-reverse", "double-backward"):
        choice = hessian_operator(model, data, product=path).choice
        assert choice.path == path
        assert choice.reference != path
        on_gpu, on_cpu = (choice.second(torch.device(name)) for name in ("cuda", "cpu"))
        assert on_cpu == choice.reference
        assert on_gpu not in (path, "double-backward")  # slow there, and there is a third
        alone = replace(choice, refused={on_gpu: "wrong"})
        assert alone.second(torch.device("cuda")) not in (path, on_gpu)


def test_a_path_that_differs_by_little_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two exact paths agree to 1e-8 or one of them is not exact."""
    model, data = build(MODELS["conv"][0], 1, 5, 5)
    original = objective.PRODUCTS["reverse-over-forward"]

    def biased(f: Any, at: Any, vector: Any) -> Any:
        return {k: p * (1 + 1e-6) for k, p in original(f, at, vector).items()}

    monkeypatch.setitem(objective.PRODUCTS, "reverse-over-forward", biased)
    choice = hessian_operator(model, data).choice
    assert choice.path == "forward-over-reverse"
    assert "away from double-backward" in choice.refused["reverse-over-forward"]


def test_differences_that_say_nothing_are_not_reported_as_an_error(device: torch.device) -> None:
    model, data = build(MODELS["conv"][0], *MODELS["conv"][1])
    H = hessian_operator(model, data, dtype=torch.float64, device=device)
    assert "from finite differences" in str(H.choice)
    blind = replace(H.choice, conclusive=False, finite_difference_error=1.0)
    assert "did not agree among themselves" in str(blind)
    assert "1.0e+00" not in str(blind)
