"""The networks: published sizes, names and starting points, and right second derivatives."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.models import ModelSpec

CIFAR = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def fingerprint(network: nn.Module) -> str:
    lines = [f"{name} {tuple(value.shape)}" for name, value in network.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def image(spec: ModelSpec, n: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    side = 8 if spec.arch == "digits" else 32
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n, spec.in_channels, side, side, generator=generator, dtype=dtype)


@pytest.mark.parametrize(
    ("arch", "classes", "head", "expected"),
    [
        ("resnet32", 10, "linear", 464_154),
        ("resnet32", 100, "linear", 470_004),
        ("resnet32", 10, "cosine", 464_144),
        ("resnet32", 100, "cosine", 469_904),
        ("resnet8", 10, "linear", 75_290),
        ("resnet20", 10, "linear", 269_722),
        ("resnet20c", 10, "linear", 272_474),
        ("resnet56", 10, "linear", 853_018),
        ("resnet18c", 10, "linear", 11_173_962),
        ("resnet34c", 10, "linear", 21_282_122),
        ("resnet18", 1000, "linear", 11_689_512),
        ("resnet34", 1000, "linear", 21_797_672),
        ("resnet50", 1000, "linear", 25_557_032),
        ("digits", 10, "linear", 14_458),
    ],
)
def test_parameter_counts_are_the_published_ones(arch, classes, head, expected) -> None:
    with torch.device("meta"):
        assert size(ModelSpec(arch, classes, head)._make()) == expected


def test_cifar_networks_have_the_released_names() -> None:
    network = ModelSpec("resnet32", 10).build()
    names = [name for name, _ in network.named_parameters()]
    assert names[:6] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.bn1.bias",
    ]
    assert names[-2:] == ["linear.weight", "linear.bias"]
    assert "layer3.4.bn2.running_var" in network.state_dict()
    assert not [name for name in names if "shortcut" in name or "downsample" in name]
    cosine = ModelSpec("resnet32", 10, "cosine").build().state_dict()
    assert cosine["linear.weight"].shape == (64, 10)
    assert "linear.bias" not in cosine


@pytest.mark.parametrize(
    ("arch", "tensors", "expected"),
    # Taken from torchvision 0.28 itself, whose names, order, shapes and outputs were equal bit for
    # bit when these were written; its wheel does not import beside every build of torch.
    [
        ("resnet18", 122, "84fb10d9c6905a1c"),
        ("resnet34", 218, "28f9096d51307499"),
        ("resnet50", 320, "d7e4f8bb0a536344"),
    ],
)
def test_imagenet_networks_have_torchvision_names_in_its_order(arch, tensors, expected) -> None:
    with torch.device("meta"):
        network = ModelSpec(arch, 1000)._make()
    assert len(network.state_dict()) == tensors
    assert fingerprint(network) == expected


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_the_cifar_variant_is_torchvisions_network_but_for_the_stem(arch: str) -> None:
    with torch.device("meta"):
        large, small = ModelSpec(arch, 100)._make(), ModelSpec(f"{arch}c", 100)._make()
    shapes = [{k: tuple(v.shape) for k, v in n.state_dict().items()} for n in (large, small)]
    assert list(shapes[0]) == list(shapes[1])
    assert {k for k in shapes[0] if shapes[0][k] != shapes[1][k]} == {"conv1.weight"}
    assert shapes[1]["conv1.weight"] == (64, 3, 3, 3)
    assert size(large) - size(small) == (7**2 - 3**2) * 3 * 64
    sides: list[int] = []
    small.get_submodule("layer1").register_forward_pre_hook(
        lambda _, x: sides.append(x[0].shape[-1])
    )
    assert small.eval()(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 100)
    assert sides == [32]  # neither stride nor pooling before the first block


def test_torchvision_gives_the_same_outputs_and_starting_weights() -> None:
    try:
        import torchvision.models.resnet as reference
    except Exception as error:
        pytest.skip(f"torchvision does not import here ({type(error).__name__}: {error})")
    for arch in ("resnet18", "resnet50"):
        ours = ModelSpec(arch, 12).build(seed=4).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            theirs = getattr(reference, arch)(num_classes=12).eval()
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        assert torch.equal(ours(x), theirs(x))


def test_the_padded_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    network = ModelSpec("resnet20", 10).build()
    shortcut = network.get_submodule("layer2.0.downsample")
    x = torch.arange(16 * 4 * 4.0).reshape(1, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (1, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_starting_weights_follow_the_recipe() -> None:
    network = ModelSpec("resnet32", 100).build(seed=2)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4 or name == "linear.weight":
            fan_in = parameter[0].numel()
            deviation = parameter.std().item() * (fan_in / 2) ** 0.5
            assert abs(deviation - 1) < 5 / (2 * parameter.numel()) ** 0.5, name
    columns = ModelSpec("resnet32", 10, "cosine").build().get_parameter("linear.weight").norm(dim=0)
    torch.testing.assert_close(columns, torch.ones(10))


def test_a_cosine_head_gives_cosines() -> None:
    network = ModelSpec("resnet20", 5, "cosine").build().eval()
    features, weight = torch.randn(9, 64), network.get_parameter("linear.weight")
    x, w = features.numpy(), weight.detach().numpy()
    expected = x @ w / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(w, axis=0)
    cosines = network.get_submodule("linear")(features)
    np.testing.assert_allclose(cosines.detach(), expected, atol=1e-6)
    scaled = network.get_submodule("linear")(1000 * features)
    torch.testing.assert_close(scaled, cosines)


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    first = ModelSpec("digits", 10).build(seed=1).state_dict()
    again = ModelSpec("digits", 10).build(seed=1).state_dict()
    other = ModelSpec("digits", 10).build(seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    ("arch", "head"),
    [("resnet20", "cosine"), ("resnet20c", "linear"), ("digits", "linear"), ("digits", "cosine")],
)
def test_three_ways_to_the_hessian_product_agree(arch, head) -> None:
    spec = ModelSpec(arch, 4, head)
    network = spec.build().double().eval()
    x, y = image(spec, dtype=torch.float64), torch.tensor([0, 3])
    weights = {name: value.detach() for name, value in network.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    v = {k: torch.randn(w.shape, generator=generator, dtype=w.dtype) for k, w in weights.items()}

    def loss(w: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(network, w, (x,)), y)

    forward = torch.func.jvp(torch.func.grad(loss), (weights,), (v,))[1]
    reverse = torch.func.grad(lambda w: torch.func.jvp(loss, (w,), (v,))[1])(weights)
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    first = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    twice = torch.autograd.grad(first, list(leaves.values()), list(v.values()))
    for name, reference in zip(weights, twice, strict=True):
        torch.testing.assert_close(forward[name], reference, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(reverse[name], reference, rtol=1e-8, atol=1e-9)


def test_a_sample_without_features_keeps_the_cosine_heads_curvature_finite() -> None:
    head = ModelSpec("digits", 4, "cosine").build().get_submodule("linear")
    features = torch.zeros(1, 32)

    def loss(x: Tensor) -> Tensor:
        return head(torch.relu(x)).square().sum() + head(torch.relu(x))[0, 0]

    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (twice,) = torch.autograd.grad(gradient.sum(), leaf)
    tangent = torch.ones_like(features)
    forward = torch.func.jvp(torch.func.grad(loss), (features,), (tangent,))[1]
    reverse = torch.func.grad(lambda x: torch.func.jvp(loss, (x,), (tangent,))[1])(features)
    for product in (twice, forward, reverse):
        assert torch.isfinite(product).all()


def test_a_factory_is_called_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_networks.py").write_text(
        "from torch import nn\n"
        "def sized(num_classes): return nn.Linear(3, num_classes)\n"
        "def fixed(): return nn.Linear(3, 2)\n"
        "def open_ended(*, weights=None, **rest): return sized(**rest)\n"
        "def open_but_fixed(**rest): return nn.Linear(3, 2, **rest)\n"
        "def wrong(): return 3\n"
        "def failing(): raise RuntimeError('no weights')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sized = ModelSpec("sized", 5, factory="their_networks:sized").build()
    assert isinstance(sized, nn.Linear)
    assert sized.out_features == 5
    for name, width in (("open_ended", 5), ("open_but_fixed", 2)):  # as torchvision's, and not
        network = ModelSpec(name, 5, factory=f"their_networks:{name}").build()
        assert isinstance(network, nn.Linear)
        assert network.out_features == width
    assert isinstance(ModelSpec("fixed", 2, factory="their_networks:fixed").build(), nn.Linear)
    for function, message in {
        "wrong": "returned int, expected a Module",
        "failing": "failed .RuntimeError: no weights",
        "absent": "AttributeError.*importable from here",
    }.items():
        with pytest.raises(SpectraError, match=message):
            ModelSpec("x", 2, factory=f"their_networks:{function}").build()
    sys.modules.pop("their_networks")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelSpec("resnet31", 10).build(), "unknown architecture 'resnet31'.* resnet32,"),
        (lambda: ModelSpec("resnet32", 1), "expected 2 or more"),
        (lambda: ModelSpec.from_dict({"arch": "digits"}), "another version"),
        (lambda: ModelSpec("x", 2, factory="os.path").build(), "expected PACKAGE.MODULE:FUNCTION"),
        (lambda: ModelSpec("x", 2, factory="no.such:f").build(), "ModuleNotFoundError.*PYTHONPATH"),
    ],
)
def test_what_a_network_cannot_be_is_told_in_one_line(make, message: str) -> None:
    with pytest.raises(SpectraError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
