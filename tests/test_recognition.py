"""Which network some weights belong to, told by names and shapes, whoever wrote them."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.models import ARCHITECTURES, ModelSpec
from spectra.recognition import (
    canonical_names,
    find_weights,
    fitting_names,
    infer_spec,
    without_prefixes,
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_names_and_shapes_tell_the_network(arch, head) -> None:
    with torch.device("meta"):
        spec = ModelSpec(arch, 7, head)
        state = spec._make().state_dict()
    assert infer_spec(state) == spec
    assert infer_spec({f"module.{name}": value for name, value in state.items()}) == spec
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_a_square_cosine_head_is_not_taken_for_a_linear_one() -> None:
    for head in ("linear", "cosine"):
        spec = ModelSpec("resnet20", 64, head)
        assert infer_spec(spec.build().state_dict()) == spec


@pytest.mark.parametrize("arch", ["resnet20c", "resnet32c", "resnet18c"])
def test_shortcut_names_are_taken_for_downsample_names(arch: str) -> None:
    state = ModelSpec(arch, 10).build().state_dict()
    foreign = {
        "module." + k.replace("downsample", "shortcut").replace("fc.", "linear."): v
        for k, v in state.items()
    }
    assert infer_spec(foreign) == ModelSpec(arch, 10)
    assert list(canonical_names(foreign)) == list(state)


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(3, 2) for name in names}


@pytest.mark.parametrize(
    "prefix", ["model.", "module.model.", "model._orig_mod.", "_orig_mod.module.module.module."]
)
def test_a_prefix_that_all_names_share_goes_piece_by_piece(prefix: str) -> None:
    state = ModelSpec("digits", 10).build().state_dict()
    foreign = {prefix + name: value for name, value in state.items()}
    assert infer_spec(foreign) == ModelSpec("digits", 10)
    assert list(canonical_names(foreign)) == list(state)
    assert list(fitting_names(foreign, state)) == list(state)
    assert len(list(without_prefixes(foreign))) == prefix.count(".") + 1


@pytest.mark.parametrize("outer", ["", "_orig_mod."])
@pytest.mark.parametrize("inner", ["", "module.", "_orig_mod."])
def test_the_counter_of_an_average_goes_with_its_prefix(outer: str, inner: str) -> None:
    own = named("conv.weight", "fc.weight")
    averaged = {f"{outer}module.{inner}{name}": value for name, value in own.items()}
    averaged = {f"{outer}n_averaged": torch.tensor(7), **averaged}
    assert list(fitting_names(averaged, own)) == list(own)
    counting = named("n_averaged", "net.conv.weight", "net.fc.weight")
    assert list(without_prefixes(counting)) == [counting]


def test_a_network_beside_other_parts_is_found_where_there_is_only_one_of_it() -> None:
    """A LightningModule with a metric, a teacher of another kind, and one of the same."""
    own = ModelSpec("digits", 10).build().state_dict()
    student = {f"model.{name}": value for name, value in own.items()}
    module = named("teacher.conv1.weight", "metric.total") | student
    assert list(fitting_names(module, own)) == list(own)
    twice = student | {f"teacher.{name}": value for name, value in own.items()}
    assert not set(fitting_names(twice, own)) & set(own)
    for prefix in ("", "model."):  # the one within the other
        nested = {f"{prefix}{name}": value for name, value in own.items()}
        teacher = {f"{prefix}teacher.{name}": value + 1 for name, value in own.items()}
        found = fitting_names(nested | teacher, own)
        assert all(found[name] is own[name] for name in found if name in own)


def test_a_prefix_of_the_networks_own_stays() -> None:
    own = named("module.body.weight", "module.head.weight")
    assert fitting_names(own, own) == own
    outer = {f"model.{name}": value for name, value in own.items()}
    assert list(fitting_names(outer, own)) == list(own)
    assert list(fitting_names(named("0.weight"), ["0.weight"])) == ["0.weight"]
    assert fitting_names({}, own) == {}


def another_stem() -> Mapping[str, Tensor]:
    with torch.device("meta"):
        return ModelSpec("resnet34", 10)._make().state_dict() | {
            "conv1.weight": torch.zeros(64, 3, 5, 5)
        }


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (dict, "0 tensors"),
        (lambda: {"a.weight": torch.zeros(3, 2)}, r"a.weight \(3, 2\).*--arch"),
        (another_stem, r"\(3, 4, 6, 3\) blocks per stage"),
        (
            lambda: {"layer1.0.conv1.weight": torch.zeros(3), "fc": torch.zeros(3)},
            r"\(1,\) blocks per stage",
        ),
    ],
)
def test_weights_of_no_known_network_are_described_in_one_line(
    state: Callable[[], Mapping[str, Tensor]], message: str
) -> None:
    with pytest.raises(SpectraError, match=message) as caught:
        infer_spec(state())
    assert "\n" not in str(caught.value)


def test_an_optimisers_state_is_no_network_to_choose() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    with pytest.raises(SpectraError, match=r"save model\.state_dict\(\)$"):
        find_weights(optimizer.state_dict(), "opt.pt")
