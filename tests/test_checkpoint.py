"""The checkpoint file: round trips, the files of others, and one clear line for each bad one."""

import argparse
import collections
import errno
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from spectra.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spectra.data import DataSpec, open_data
from spectra.errors import SpectraError
from spectra.losses import LossSpec
from spectra.models import ModelSpec
from spectra.remarks import doubts

SPEC = ModelSpec("digits", 10)


def network(spec: ModelSpec = SPEC, seed: int = 5) -> nn.Module:
    """A network whose running statistics are not those of a fresh one."""
    made = spec.build(seed=seed)
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.25)
    return made


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(SpectraError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "own.pt"
    save_checkpoint(path, network(), model_spec=SPEC, loss=LossSpec())
    return path


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "new folder" / "own.pt"
    described = {
        "data": DataSpec("digits", "exp", 20.0),
        "loss": LossSpec("ldam", tuple(range(1, 11)), weights=(0.5,) * 10, scale=30.0),
        "epoch": 12,
        "metrics": {"accuracy": 0.75, "per_class": [0.5, 1.0]},
        "recipe": {"sam": 0.5, "schedule": [1, 2]},
        "draw_sha256": "ab" * 32,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, 1, 8, 8)).sum().backward()
    optimizer.step()
    training = {"optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
    save_checkpoint(path, model, model_spec=SPEC, training=training, **described)
    opened = load_checkpoint(path)
    assert same_weights(opened.model, model)
    assert opened.model_spec == SPEC
    assert {name: getattr(opened, name) for name in described} == described
    assert opened.training is not None
    momentum = opened.training["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, training["optimizer"]["state"][0]["momentum_buffer"])
    assert opened.file == "own.pt"
    assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert opened.head_scale == 30.0
    assert os.listdir(path.parent) == ["own.pt"]


def test_opened_networks_are_float32_in_evaluation_mode(saved: Path) -> None:
    opened = load_checkpoint(saved)
    assert not any(module.training for module in opened.model.modules())
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in opened.model.parameters())


def test_saving_and_opening_have_no_side_effects(tmp_path: Path) -> None:
    model = network()
    before, random = network(), torch.get_rng_state()
    save_checkpoint(tmp_path / "a.pt", model, model_spec=SPEC)
    mine = network(seed=6)
    untouched = network(seed=6)
    opened = load_checkpoint(tmp_path / "a.pt", model=mine)
    assert same_weights(opened.model, model)
    assert same_weights(model, before)
    assert model.training
    assert same_weights(mine, untouched)
    assert mine.training
    assert torch.equal(torch.get_rng_state(), random)
    assert "numpy" not in str(torch.serialization.get_safe_globals())


def test_what_the_caller_allows_stays_allowed(saved: Path) -> None:
    with torch.serialization.safe_globals([np.dtype]):
        load_checkpoint(saved)
        assert np.dtype in torch.serialization.get_safe_globals()


def test_views_do_not_drag_their_storage_into_the_file(tmp_path: Path) -> None:
    model = network()
    flat = torch.cat([torch.zeros(1_000_000), *(p.detach().flatten() for p in model.parameters())])
    position = 1_000_000
    for parameter in model.parameters():
        parameter.data = flat[position : position + parameter.numel()].view_as(parameter)
        position += parameter.numel()
    save_checkpoint(tmp_path / "a.pt", model, model_spec=SPEC)
    assert (tmp_path / "a.pt").stat().st_size < 200_000


# ------------------------------------------------------------------------------ files of others


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod."])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_released_files_open_with_or_without_prefix(tmp_path: Path, prefix: str, head: Any) -> None:
    spec = ModelSpec("resnet32", 10, head)
    model, path = network(spec), tmp_path / "ckpt.best.pth.tar"
    state = collections.OrderedDict((prefix + k, v) for k, v in model.state_dict().items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    released = {
        "epoch": 200,
        "arch": "resnet32",
        "state_dict": state,
        "best_acc1": torch.tensor(75.5),
        "optimizer": optimizer,
    }
    torch.save(released, path)
    opened = load_checkpoint(path)
    assert same_weights(opened.model, model)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(opened.model(x), model.eval()(x))
    assert (opened.model_spec, opened.epoch, opened.metrics) == (spec, 200, {"best_acc1": 75.5})
    assert (opened.data, opened.loss) == (None, None)
    # LDAM's scale is not in its file; without it, cross-entropy on cosines means nothing.
    assert opened.head_scale == {"linear": 1.0, "cosine": 30.0}[head]


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "net"])
def test_a_state_dict_opens_under_every_usual_name(tmp_path: Path, key: str | None) -> None:
    model = network()
    torch.save({key: model.state_dict()} if key else model.state_dict(), tmp_path / "a.pt")
    assert same_weights(load_checkpoint(tmp_path / "a.pt").model, model)


def test_averaged_weights_beside_others_are_told_and_read_when_named(tmp_path: Path) -> None:
    plain, mean = network(seed=1), network(seed=2)
    averaged = AveragedModel(mean)
    held = {"state_dict": plain.state_dict(), "state_dict_ema": averaged.state_dict()}
    torch.save({**held, "center": {"c": torch.ones(3)}, "epoch": 3}, tmp_path / "a.pt")
    first = load_checkpoint(tmp_path / "a.pt")
    assert same_weights(first.model, plain)
    assert (first.file, first.others) == ("a.pt", ("state_dict_ema",))
    second = load_checkpoint(tmp_path / "a.pt", weights="state_dict_ema")
    assert same_weights(second.model, mean)
    assert (second.file, second.others) == ("a.pt:state_dict_ema", ())
    assert second.sha256 != first.sha256  # results of one are not taken for the other's
    again = load_checkpoint(tmp_path / "a.pt", weights="state_dict")
    assert (again.file, again.sha256) == (first.file, first.sha256)
    with pytest.raises(
        SpectraError, match=r"under 'ema': choose from 'state_dict', 'state_dict_ema'"
    ):
        load_checkpoint(tmp_path / "a.pt", weights="ema")
    torch.save({"ema": mean.state_dict()}, tmp_path / "b.pt")
    with pytest.raises(SpectraError, match="choose from 'ema': --weights KEY"):
        load_checkpoint(tmp_path / "b.pt")
    assert same_weights(load_checkpoint(tmp_path / "b.pt", weights="ema").model, mean)
    torch.save(mean.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(SpectraError, match="no key names: leave --weights out"):
        load_checkpoint(tmp_path / "bare.pt", weights="state_dict")
    data = open_data(DataSpec("digits"))
    assert any("state_dict_ema, too" in note for note in doubts(first, data, data))


def test_what_training_keeps_beside_a_network_is_left_out_and_told(tmp_path: Path) -> None:
    """A LightningModule with weights in its loss, and a bare network beside such a loss."""
    model, data = network(), open_data(DataSpec("digits"))
    for prefix in ("model.", ""):
        state = {prefix + name: value for name, value in model.state_dict().items()}
        torch.save(
            {"state_dict": state | {"criterion.weight": torch.ones(10)}}, tmp_path / "a.ckpt"
        )
        for options in ({}, {"model": network(seed=1)}):
            opened = load_checkpoint(tmp_path / "a.ckpt", **options)
            assert same_weights(opened.model, model)
            assert opened.unread == ("criterion.weight",)
            told = [note for note in doubts(opened, data, data) if "not read" in note]
            assert len(told) == 1
            assert "criterion.weight" in told[0]
    assert load_checkpoint(tmp_path / "a.ckpt", arch="digits").unread == ("criterion.weight",)


def test_a_network_that_was_guessed_is_told(tmp_path: Path) -> None:
    torch.save(ModelSpec("resnet20c", 10).build().state_dict(), tmp_path / "a.pt")
    data = open_data(DataSpec("digits"))
    for options, guessed in (({}, True), ({"arch": "resnet20c"}, False)):
        opened = load_checkpoint(tmp_path / "a.pt", **options)
        told = [note for note in doubts(opened, data, data) if "no max-pooling" in note]
        assert opened.guessed == bool(told) == guessed


def test_samples_of_another_draw_or_of_other_images_than_the_trainings_are_told() -> None:
    data = open_data(DataSpec("digits"))
    prints = {"draw_sha256": data.draw_sha256, "pixels_sha256": data.pixels_sha256}
    trained = replace(Checkpoint.of(network()), data=data.spec, **prints)
    assert doubts(trained, data, data) == doubts(trained, data, None) == []
    mirrored = replace(data, inputs=data.inputs.flip(-1))
    assert mirrored.draw_sha256 == data.draw_sha256
    (told,) = doubts(trained, mirrored, mirrored)
    assert "trained on other images than these, though their labels and positions" in told
    (told,) = doubts(trained, data, data.select(torch.arange(100)))  # their images differ, too
    assert "trained on another draw" in told
    unknown = replace(trained, pixels_sha256=None)
    assert doubts(unknown, mirrored, mirrored) == []


def test_the_options_of_a_training_script_do_not_keep_a_file_shut(tmp_path: Path) -> None:
    """As timm and torchvision's reference scripts keep them."""
    options = argparse.Namespace(lr=0.1, output=tmp_path, opt="sgd", milestones=[1, 2])
    torch.save({"state_dict": network().state_dict(), "args": options}, tmp_path / "a.pth.tar")
    assert same_weights(load_checkpoint(tmp_path / "a.pth.tar").model, network())


def test_a_file_of_safetensors_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(network().state_dict(), tmp_path / "a.safetensors")
    opened = load_checkpoint(tmp_path / "a.safetensors")
    assert same_weights(opened.model, network())
    assert opened.sha256 == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:500])
    assert "no PyTorch checkpoint" in refusal(tmp_path / "cut.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # not installed
    assert "pip install safetensors" in refusal(tmp_path / "a.safetensors")


def test_weights_in_a_dictionary_of_the_file_are_named_with_a_dot(tmp_path: Path) -> None:
    plain, mean = network(seed=1), network(seed=2)
    ema = {"module": mean.state_dict(), "decay": 0.99, "copy": plain.state_dict(), 3: torch.ones(2)}
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    plain(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()  # now it has momenta, which nobody would take for weights
    held = {"model": plain.state_dict(), "ema": ema, "optimizer": optimizer.state_dict()}
    torch.save(held, tmp_path / "a.pt")
    first = load_checkpoint(tmp_path / "a.pt")
    assert same_weights(first.model, plain)
    assert first.others == ("ema.module",)  # the copy says nothing new
    second = load_checkpoint(tmp_path / "a.pt", weights="ema.module")
    assert same_weights(second.model, mean)
    assert (second.file, second.others) == ("a.pt:ema.module", ())
    torch.save({"ema": ema}, tmp_path / "b.pt")
    with pytest.raises(SpectraError, match=r"choose from 'ema.module', 'ema.copy': --weights KEY"):
        load_checkpoint(tmp_path / "b.pt")
    torch.save({"ema.module": plain.state_dict(), **held}, tmp_path / "c.pt")
    literal = load_checkpoint(tmp_path / "c.pt", weights="ema.module")
    assert same_weights(literal.model, plain)  # a key of the file goes first


def test_sparse_tensors_beside_the_weights_stand_in_nobodys_way(tmp_path: Path) -> None:
    plain = network()
    sparse = {name: value.float().to_sparse() for name, value in plain.state_dict().items()}
    torch.save({"net": plain.state_dict(), "sparse": sparse}, tmp_path / "a.pt")
    opened = load_checkpoint(tmp_path / "a.pt")
    assert same_weights(opened.model, plain)
    assert opened.others == ("sparse",)


def test_files_of_lightning_and_of_averaged_weights_open(tmp_path: Path) -> None:
    """A prefix on every name, or a counter beside it; the network is told, or given."""
    model = network()
    lightning = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": lightning, "epoch": 3}, tmp_path / "lightning.ckpt")
    torch.save(AveragedModel(nn.DataParallel(model)).state_dict(), tmp_path / "swa.pt")
    for file in ("lightning.ckpt", "swa.pt"):
        assert same_weights(load_checkpoint(tmp_path / file).model, model)
        assert same_weights(load_checkpoint(tmp_path / file, model=SPEC.build()).model, model)


def test_a_network_that_keeps_everything_in_one_module_opens(tmp_path: Path) -> None:
    theirs, mine = (nn.ModuleDict({"module": SPEC.build(seed=seed)}) for seed in (1, 2))
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    assert same_weights(load_checkpoint(tmp_path / "a.pt", model=mine).model, theirs)


@pytest.mark.parametrize("shortcut", ["downsample", "shortcut"])
def test_networks_with_convolution_shortcuts_open(tmp_path: Path, shortcut: str) -> None:
    """Such as a released net.pkl: old file layout, module. prefix, fc head, no epoch."""
    model, path = network(ModelSpec("resnet20c", 10)), tmp_path / "net.pkl"
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    if shortcut == "shortcut":
        state = {k.replace("downsample", shortcut).replace(".fc.", ".linear."): v
                 for k, v in state.items()}  # fmt: skip
    torch.save(state, path, _use_new_zipfile_serialization=False)
    opened = load_checkpoint(path)
    assert same_weights(opened.model, model)
    assert opened.model_spec.arch == "resnet20c"
    assert opened.epoch is None


def test_imagenet_networks_open(tmp_path: Path) -> None:
    spec = ModelSpec("resnet18", 20)
    model = network(spec)
    torch.save({"arch": "resnet18", "state_dict": model.state_dict()}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").model_spec == spec


def test_files_from_before_the_batch_counter_open(tmp_path: Path) -> None:
    model = network()
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "a.pt")
    assert same_weights(load_checkpoint(tmp_path / "a.pt").model, model)


@pytest.mark.parametrize("number", [np.float64(7.5), np.float32(7.5), np.int64(7), np.bool_(True)])
def test_numpy_numbers_open(tmp_path: Path, number: Any) -> None:
    torch.save({"state_dict": network().state_dict(), "best": number}, tmp_path / "a.pt")
    opened = load_checkpoint(tmp_path / "a.pt")
    assert opened.metrics == ({} if isinstance(number, np.bool_) else {"best": float(number)})


def test_numpy_numbers_of_numpy_1_open(tmp_path: Path) -> None:
    torch.save({"state_dict": network().state_dict(), "best": np.float64(7.5)}, tmp_path / "b.pt")
    with (
        zipfile.ZipFile(tmp_path / "b.pt") as new,
        zipfile.ZipFile(tmp_path / "a.pt", "w") as old,
    ):
        for item in new.infolist():
            renamed = new.read(item).replace(b"numpy._core.multi", b"numpy.core.multi")
            old.writestr(item.filename, renamed)
    assert (tmp_path / "a.pt").read_bytes() != (tmp_path / "b.pt").read_bytes()
    assert load_checkpoint(tmp_path / "a.pt").metrics == {"best": 7.5}


# ---------------------------------------------------------- what the file cannot say, flags say


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "foreign_nets.py").write_text(
        "from torch import nn\n"
        "def sized(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
        "class Ahead(nn.Module):\n"
        "    def __init__(self, num_classes=7):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(4, num_classes)\n"
        "        self.body = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten())\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.body(x))\n"
        "def ahead(num_classes):\n"
        "    return Ahead(num_classes)\n"
        "def fixed():\n"
        "    return Ahead()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "foreign_nets:sized"
    sys.modules.pop("foreign_nets", None)


def test_a_network_comes_from_a_factory_or_as_an_object(tmp_path: Path, factories: str) -> None:
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    for model in (factories, nn.Sequential(nn.Flatten(), nn.Linear(64, 7))):
        opened = load_checkpoint(tmp_path / "a.pt", model=model)
        assert same_weights(opened.model, theirs)
        assert opened.model_spec.num_classes == 7
    assert "cannot tell the network" in refusal(tmp_path / "a.pt")
    assert "the model factory 'absent:f' failed" in refusal(tmp_path / "a.pt", model="absent:f")


@pytest.mark.parametrize("function", ["ahead", "fixed"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_head_that_comes_first_tells_the_classes(
    tmp_path: Path, factories: str, function: str, prefix: str
) -> None:
    factory = factories.replace("sized", function)
    theirs = ModelSpec("ahead", 7, factory=factory).build()
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    for model in (factory, theirs):
        opened = load_checkpoint(tmp_path / "a.pt", model=model)
        assert same_weights(opened.model, theirs)
        assert opened.model_spec.num_classes == 7
    assert Checkpoint.of(theirs).model_spec.num_classes == 7


@pytest.mark.parametrize(
    ("layers", "classes"),
    [
        ({"fc1": nn.Linear(9, 8), "fc2": nn.Linear(8, 5)}, 5),
        ({"linear": nn.Linear(9, 8), "out": nn.Linear(8, 5)}, 5),
        ({"head": nn.Linear(8, 5), "fc1": nn.Linear(9, 8), "fc2": nn.Linear(8, 8)}, 5),
        ({"classifier": nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 5)), "fc": nn.Linear(9, 9)}, 5),
        ({"fc1": nn.Linear(9, 8), "last": nn.Linear(8, 5, bias=False)}, 5),
        ({"a": nn.Linear(9, 8), "mlp_head": nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))}, 5),
        ({"tokens": nn.Embedding(50, 8), "body": nn.Sequential(nn.Linear(8, 5))}, 5),
        ({"features": nn.Conv2d(3, 8, 3), "last": nn.Conv2d(8, 5, 1)}, 5),
    ],
)
def test_classes_are_those_of_what_is_most_like_a_head(
    layers: dict[str, nn.Module], classes: int
) -> None:
    assert Checkpoint.of(nn.ModuleDict(layers)).model_spec.num_classes == classes
    assert Checkpoint.of(nn.ModuleDict(layers), 4).model_spec.num_classes == 4


def test_a_file_cannot_have_a_factory_imported(tmp_path: Path, factories: str) -> None:
    spec = ModelSpec("sized", 7, factory=factories)
    save_checkpoint(tmp_path / "a.pt", spec.build(), model_spec=spec)
    sys.modules.pop("foreign_nets")
    assert f"--model {factories}" in refusal(tmp_path / "a.pt")
    assert "foreign_nets" not in sys.modules
    assert load_checkpoint(tmp_path / "a.pt", model=factories).model_spec == spec


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {"num_classes": 100},
            ["mis-shaped linear.weight (10, 32) instead of (100, 32), linear.bias (10,)"],
        ),
        (
            {"arch": "resnet32"},
            ["missing layer1.0.conv1.weight", ", … (", "unexpected conv2.weight", "in all)"],
        ),
        ({"arch": "resnet31"}, ["unknown architecture 'resnet31'", "resnet32"]),
        ({"num_classes": 1}, ["expected 2 or more: --num-classes"]),
    ],
)
def test_weights_that_do_not_fit_are_listed_and_not_analysed(
    saved: Path, options: dict[str, Any], parts: list[str]
) -> None:
    """P45: random weights were analysed after a printed message."""
    message = refusal(saved, **options)
    for part in parts:
        assert part in message
    assert len(message) < 700


def test_a_layer_too_many_and_one_too_few_are_both_named(tmp_path: Path) -> None:
    """P45: the message lists missing and unexpected keys."""
    state = network().state_dict()
    state["bn3.scale"] = state.pop("bn3.weight")
    torch.save(state, tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt")
    assert "missing bn3.weight; unexpected bn3.scale" in message
    assert "--arch" in message


# --------------------------------------------------------------------------------- bad files


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """P45: a missing checkpoint printed a message and random weights were analysed."""
    message = refusal(tmp_path / "absent.pt")
    assert "there is no checkpoint file" in message
    assert "absent.pt" in message


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert "to read (Is a directory)" in refusal(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [40, 5_000, 50_000])
def test_a_truncated_file_is_an_error(saved: Path, legacy: bool, keep: int) -> None:
    if legacy:
        torch.save(network().state_dict(), saved, _use_new_zipfile_serialization=False)
    saved.write_bytes(saved.read_bytes()[:keep])
    assert "own.pt is truncated or damaged" in refusal(saved)


def test_a_flipped_bit_is_an_error(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 4
    saved.write_bytes(content)
    assert "own.pt is truncated or damaged" in refusal(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"some text of a readme",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\x1f\x8b" + bytes(50),
        bytes(9),
    ],
)
def test_another_kind_of_file_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert "a.pt is no PyTorch checkpoint" in refusal(tmp_path / "a.pt")


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    assert "a.pt is empty" in refusal(tmp_path / "a.pt")


class Bomb:
    """Runs a command when it is unpickled the unsafe way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_wrapped_networks_go_in_and_out(tmp_path: Path, wrap: Any) -> None:
    save_checkpoint(tmp_path / "a.pt", wrap(network()), model_spec=SPEC)
    bare = load_checkpoint(tmp_path / "a.pt").model.state_dict()
    torch.save(network().state_dict(), tmp_path / "b.pt")
    into = load_checkpoint(tmp_path / "b.pt", model=wrap(SPEC.build()))
    assert into.model_spec.arch == "DigitsNet"
    for name, value in network().state_dict().items():
        assert torch.equal(bare[name], value)
        assert torch.equal(into.model.state_dict()[name], value)


@pytest.mark.parametrize("nest", [False, True])
def test_no_file_runs_code(tmp_path: Path, nest: bool) -> None:
    bomb = Bomb(f"touch {tmp_path / 'exploded'}")
    torch.save({"state_dict": network().state_dict(), "x": bomb} if nest else bomb, tmp_path / "a")
    message = refusal(tmp_path / "a")
    assert "refused: it holds a pickled posix.system" in message
    assert not (tmp_path / "exploded").exists()


def test_whole_modules_and_other_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt")
    assert "a pickled spectra.networks.DigitsNet" in message
    assert "torch.save(model.state_dict(), ...)" in message
    assert "--model PACKAGE.MODULE:FUNCTION" in message
    torch.save({"state_dict": {}, "args": collections.defaultdict(int)}, tmp_path / "b.pt")
    assert "collections.defaultdict" in refusal(tmp_path / "b.pt")
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"a": np.zeros(3)}, protocol=2))
    assert "c.pkl" in refusal(tmp_path / "c.pkl")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/data.pkl", b"\x80\x02).")
        archive.writestr("a/version", b"3\n")
    assert "a TorchScript program" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {3: torch.zeros(1)}, [1, 2], torch.zeros(3), {"state_dict": {}}]
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt")
    assert "a.pt holds" in message
    assert "save model.state_dict()" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    model = network()
    model.get_parameter("conv2.weight").data[3, 2, 1, 0] = value
    save_checkpoint(tmp_path / "a.pt", model, model_spec=SPEC)
    assert "NaN or infinite weights in conv2.weight" in refusal(tmp_path / "a.pt")


def test_a_later_format_asks_for_an_update(saved: Path) -> None:
    payload = torch.load(saved, weights_only=True)
    torch.save({**payload, "version": 2}, saved)
    assert "update spectra" in refusal(saved)


@pytest.mark.parametrize("key", ["model", "loss", "data"])
def test_descriptions_with_unknown_names_are_errors(saved: Path, key: str) -> None:
    payload = torch.load(saved, weights_only=True)
    torch.save({**payload, key: {"name": "digits", "colour": 3}}, saved)
    assert "another version" in refusal(saved)


# ------------------------------------------------------------------------------------- saving


def test_what_could_not_be_opened_again_is_not_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", network(), model_spec=SPEC)
    before = (tmp_path / "a.pt").read_bytes()
    for recipe in ({"out": collections.UserString("x")}, {"loss": lambda: 1}):
        with pytest.raises(SpectraError, match=r"a.pt was not written, it could not be loaded"):
            save_checkpoint(tmp_path / "a.pt", network(), model_spec=SPEC, recipe=recipe)
    assert (tmp_path / "a.pt").read_bytes() == before


def intact(path: Path, before: bytes) -> bool:
    return path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # files end at 10 kB
    try:
        with pytest.raises(SpectraError, match=r"own.pt \(0.1 MB\) was not written") as caught:
            save_checkpoint(saved, network(seed=9), model_spec=SPEC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert intact(saved, before)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(descriptor: int) -> None:
        raise error

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((SpectraError, KeyboardInterrupt)):
        save_checkpoint(saved, network(seed=9), model_spec=SPEC)
    assert intact(saved, before)


def test_a_kill_in_the_middle_of_saving_leaves_the_old_file(saved: Path) -> None:
    before = load_checkpoint(saved)
    script = (
        "import os, signal, sys\n"
        "from spectra.checkpoint import save_checkpoint\n"
        "from spectra.models import ModelSpec\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "spec = ModelSpec('digits', 10)\n"
        "save_checkpoint(sys.argv[1], spec.build(seed=9), model_spec=spec)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(saved)], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    after = load_checkpoint(saved)
    assert after.sha256 == before.sha256
    save_checkpoint(saved, network(), model_spec=SPEC)  # the leftover is in nobody's way


def test_a_folder_that_cannot_be_made_is_an_error(saved: Path) -> None:
    with pytest.raises(SpectraError, match="was not written"):
        save_checkpoint(saved / "under a file.pt", network(), model_spec=SPEC)


def test_scale_and_loss_may_be_the_callers(tmp_path: Path) -> None:
    data = open_data(DataSpec("digits"))
    path = tmp_path / "a.pt"
    torch.save(ModelSpec("digits", 10, "cosine").build().state_dict(), path)
    assumed = load_checkpoint(path)
    assert assumed.criterion("ce") == LossSpec.cross_entropy(scale=30.0)
    assert [note for note in doubts(assumed, data, data) if "30 was taken; --scale" in note]
    told = load_checkpoint(path, scale=16.0)
    assert told.criterion("ce") == LossSpec.cross_entropy(scale=16.0)
    assert not [note for note in doubts(told, data, data) if "--scale" in note]
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        assert "positive number: --scale" in refusal(path, scale=wrong)
    loss = LossSpec("ldam", tuple(range(1, 11)), scale=20.0)
    given = load_checkpoint(path, loss=loss)
    assert (given.criterion("trained"), given.head_scale) == (loss, 20.0)
    assert load_checkpoint(path, loss=loss, scale=5.0).head_scale == 5.0

    def own(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    trained = load_checkpoint(path, loss=own).criterion("trained")
    assert trained.per_sample(torch.zeros(3, 2), torch.tensor([0, 1, 0])).shape == (3,)


def test_a_head_scale_comes_from_the_loss_first(saved: Path) -> None:
    opened = load_checkpoint(saved)
    assert isinstance(opened, Checkpoint)
    assert opened.head_scale == 1.0
