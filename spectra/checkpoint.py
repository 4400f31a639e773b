"""The checkpoint file: the one door between training and analysis, and to the files of others.

Our own file is what `torch.save` makes of a dictionary with the names of `Checkpoint`, plain values
all, the weights as `state_dict`, and `format`, `version` and `torch`. Files of others hold a bare
state dict, or one named `state_dict`, `model_state_dict`, `model` or `net`; one of another name, as
that of averaged weights, is taken where the caller names it (see `recognition`).

No file runs code (see `untrusted`), and a model factory is imported because the caller names it,
never because a file does.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .data.spec import DataSpec
from .errors import SpectraError
from .files import replacing
from .fingerprints import held_beside, sha256_of
from .losses import Loss, LossSpec, as_loss
from .models import ModelSpec
from .networks import DigitsNet, ResNet, copied, unwrapped
from .recognition import (
    canonical_names,
    choose_spec,
    find_weights,
    fitting_names,
    guess_classes,
    infer_spec,
    shorten,
)
from .untrusted import FORMAT, WAY_OUT, is_own, read, refused, unpickle

VERSION = 1
COSINE_SCALE = 30.0  # s of the LDAM recipe, which released files with a cosine head do not state


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says, with its weights loaded; None where it does not say."""

    model: nn.Module  # weights loaded, evaluation mode, on the CPU; of a file in float32
    model_spec: ModelSpec
    data: DataSpec | None  # the training set
    loss: Loss | None  # the training loss (see also `head_scale`)
    epoch: int | None  # as the file counts
    metrics: dict[str, Any]  # numbers by name
    sha256: str  # of the file (and of the key of weights that a caller chose), or see `of`
    file: str  # its name, without the folder (and ":KEY"), or the name that was given
    draw_sha256: str | None = None  # of the drawn training set: positions and labels
    pixels_sha256: str | None = None  # of its images
    recipe: dict[str, Any] | None = None  # how it was trained
    training: dict[str, Any] | None = None  # what training needs to go on, the optimizer's state
    others: tuple[str, ...] = ()  # where the file holds more weights of such a network, not read
    unread: tuple[str, ...] = ()  # names of tensors beside the network's, a loss's for example
    guessed: bool = False  # which network it is was told from names and shapes alone
    scale: float | None = None  # of the logits, where the caller says it

    @classmethod
    def of(
        cls,
        model: nn.Module,
        num_classes: int | None = None,
        *,
        loss: LossSpec | Callable[[Tensor, Tensor], Tensor] | None = None,
        epoch: int | None = None,
        name: str = "a network in memory",
    ) -> "Checkpoint":
        """Take a network in memory for a checkpoint, in the middle of its training for example.

        Args:
            model: any classifier, wrapped or not; it is copied as it is now, and not changed.
            num_classes: number of classes; guessed without it, from the shape of what is named
                like a head (`recognition.HEADS`, else `LAST`), else of the last parameter.
            loss: the training loss, for `Plan(loss="trained")`: described, or any function of
                logits (n, C) and targets (n,) that gives one value a sample, (n,). Means run over
                what a function gives: only of a described loss are the class weights outside it.
                It also says the scale of a cosine head that is none of ours: `LossSpec(scale=30)`.
            epoch: what the results name beside their numbers.
            name: what they name in the place of a file.

        Returns:
            The checkpoint; its `sha256` is that of the modules as they print, of name, type, shape
            and bytes of every parameter and buffer, and whether it is frozen, and of the tensors,
            numbers and words that modules hold as plain attributes (which passes may change).

        Raises:
            SpectraError: if weights are NaN or infinite, the network cannot be copied, or the loss
                reduces.
        """
        criterion = None if loss is None else as_loss(loss)
        model = copied(unwrapped(model)).to("cpu").eval()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        _require_finite(parameters, name)
        printed = re.sub(r" at 0x\w+", "", repr(model)).encode()
        tensors = parameters | dict(model.named_buffers(remove_duplicate=False))
        beside = [(name, held_beside(module)) for name, module in model.named_modules()]
        sha256 = sha256_of((tensors, beside), start=printed)
        if isinstance(model, ResNet | DigitsNet):
            spec = infer_spec(model.state_dict())
        else:
            spec = ModelSpec(type(model).__name__, num_classes or max(2, guess_classes(parameters)))
        return cls(model, spec, None, criterion, epoch, {}, sha256, name)

    @property
    def head_scale(self) -> float:
        """Give the scale s of the logits: the caller's, the loss's, else 30 for a cosine head."""
        if self.scale is not None:
            return self.scale
        if isinstance(self.loss, LossSpec):
            return self.loss.scale
        return COSINE_SCALE if self.model_spec.head == "cosine" else 1.0

    def criterion(self, name: Literal["ce", "trained"]) -> Loss:
        """Choose a loss: plain cross-entropy of the head's logits, or the one that was trained.

        Raises:
            SpectraError: the trained one of a checkpoint that does not say it.
        """
        if name == "ce":
            return LossSpec.cross_entropy(scale=self.head_scale)
        if self.loss is None:
            raise SpectraError(
                "got a checkpoint that does not say which loss it was trained with, expected one "
                "that does: --loss trained would be a guess; use --loss ce, or in Python "
                "load_checkpoint(path, loss=...)"
            )
        return self.loss

    def described(self) -> dict[str, Any]:
        """Say in a result file which checkpoint this is."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "arch": self.model_spec.arch,
            "epoch": self.epoch,
        }


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    model_spec: ModelSpec,
    data: DataSpec | None = None,
    loss: LossSpec | None = None,
    epoch: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    draw_sha256: str | None = None,
    pixels_sha256: str | None = None,
) -> None:
    """Write a checkpoint whole or not at all: an old file stays until the new one is on disk.

    Args:
        path: file to write; its folder is made where it is missing.
        model: the network, in wrappers or not; the others are as in `Checkpoint`.

    Raises:
        SpectraError: if the values hold something that could not be loaded again, or the disk is
            full or not writable.
    """
    path = Path(path)
    if loss is not None and not isinstance(loss, LossSpec):
        raise SpectraError(
            f"{path.name} was not written: got the loss {loss!r}, expected a LossSpec, since a "
            "file cannot hold a function; leave it out, and name it again with Checkpoint.of"
        )
    # Clones, because a view would drag its whole storage into the file.
    state = unwrapped(model).state_dict()
    weights = {name: value.detach().cpu().clone() for name, value in state.items()}
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "state_dict": weights,
        "model": model_spec.to_dict(),
        "data": data.to_dict() if data else None,
        "loss": loss.to_dict() if loss else None,
        "epoch": epoch,
        "metrics": dict(metrics or {}),
        "draw_sha256": draw_sha256,
        "pixels_sha256": pixels_sha256,
        "recipe": dict(recipe) if recipe else None,
        "training": dict(training) if training else None,
        "torch": str(torch.__version__),
    }
    buffer = io.BytesIO()
    try:
        torch.save(payload, buffer)
        unpickle(buffer)
    except Exception as error:
        what = refused(error) or f"{type(error).__name__}: {error}"
        raise SpectraError(
            f"{path.name} was not written, it could not be loaded again ({what}): metrics, recipe "
            "and training may hold tensors, numbers, strings, lists and dictionaries"
        ) from error
    content = buffer.getbuffer()
    with replacing(path, size=len(content)) as partial:
        partial.write_bytes(content)


def load_checkpoint(
    path: str | Path,
    *,
    model: str | nn.Module | None = None,
    arch: str | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
    scale: float | None = None,
    loss: LossSpec | Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Checkpoint:
    """Open a checkpoint of this or another project; what it cannot say comes from the arguments.

    Args:
        path: the file.
        model: the network, or the function that builds it as "package.module:function"; a network
            that is given is copied, not changed.
        arch: architecture, one of `ARCHITECTURES`; told from the parameter names without it.
        num_classes: number of classes; told from the head's shape without it (for `model`, guessed
            as in `Checkpoint.of`).
        weights: key of the file's state dict, "state_dict_ema" for example, or "ema.module" for one
            in a dictionary of the file; the usual names, or the file itself, without it.
        scale: s by which the cross-entropy multiplies the logits, those of a cosine head.
        loss: the training loss in the place of what the file says, as in `Checkpoint.of`.

    Returns:
        The checkpoint; `data` is None for the files of others, `loss` too unless it was given, and
        `head_scale` is 30 for their cosine heads.

    Raises:
        SpectraError: if the file cannot be opened or refuses to be loaded safely, if the network
            cannot be told, if names or shapes disagree, or if weights are NaN or infinite.
    """
    path = Path(path)
    if scale is not None and not 0 < scale < float("inf"):
        raise SpectraError(f"got the scale {scale}, expected a positive number: --scale")
    payload, sha256 = read(path)
    said: dict[str, Any] = payload if isinstance(payload, dict) else {}
    own: dict[str, Any] = said if is_own(payload) else {}
    if own and own.get("version") != VERSION:
        raise SpectraError(
            f"{path.name} has the format version {own.get('version')!r}, expected {VERSION}: "
            "another version of spectra wrote it; update spectra"
        )
    found = find_weights(payload, path.name, weights)
    state = found.state
    if isinstance(model, nn.Module):
        network = copied(unwrapped(model))
        spec = ModelSpec(type(network).__name__, num_classes or guess_classes(state))
    else:
        spec = choose_spec(
            state,
            file=path.name,
            told=ModelSpec.from_dict(own["model"]) if own.get("model") else None,
            named=said.get("arch"),
            factory=model,
            arch=arch,
            num_classes=num_classes,
        )
        network = spec.build()
        state = state if spec.factory else canonical_names(state)
    guessed = not (own or model or arch or said.get("arch") == spec.arch)
    state = fitting_names(state, network.state_dict())
    taken = {id(value) for value in state.values()}
    beside = [name for name, value in found.state.items() if id(value) not in taken]
    network = network.to("cpu", torch.float32).eval()
    _load_weights(network, state, path.name)
    numbers = _numbers(said)
    epoch = numbers.pop("epoch", None)
    return Checkpoint(
        model=network,
        model_spec=spec,
        data=DataSpec.from_dict(own["data"]) if own.get("data") else None,
        loss=_criterion(loss, own.get("loss")),
        epoch=None if epoch is None else int(epoch),
        metrics=own.get("metrics", {}) if own else numbers,
        sha256=sha256_of([sha256, found.key]) if found.key else sha256,
        file=f"{path.name}:{found.key}" if found.key else path.name,
        draw_sha256=own.get("draw_sha256"),
        pixels_sha256=own.get("pixels_sha256"),
        recipe=own.get("recipe"),
        training=own.get("training"),
        others=found.others,
        unread=tuple(name for name in beside if not name.endswith("n_averaged")),
        guessed=guessed,
        scale=scale,
    )


def _criterion(
    given: LossSpec | Callable[[Tensor, Tensor], Tensor] | None, said: Mapping[str, Any] | None
) -> Loss | None:
    """Take the training loss that the caller gives, else the one that the file describes."""
    if given is not None:
        return as_loss(given)
    return LossSpec.from_dict(said) if said else None


def _numbers(said: Mapping[str, Any]) -> dict[str, float]:
    """Find the plain numbers: Python's, NumPy's, and tensors of one entry."""
    return {
        name: float(value)
        for name, value in said.items()
        if (isinstance(value, int | float | np.number) and not isinstance(value, bool))
        or (isinstance(value, Tensor) and value.numel() == 1)
    }


def _load_weights(network: nn.Module, state: Mapping[str, Tensor], file: str) -> None:
    expected = network.state_dict()
    # Files older than torch 0.4.1 lack this counter, which evaluation never reads.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    misshaped = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
    if found := [f"{kind} {shorten(names)}" for kind, names in kinds if names]:
        raise SpectraError(
            f"{file} does not fit the network {type(network).__name__} ({'; '.join(found)}); "
            "random weights would have been analysed: rename the file's tensors, or "
            f"{WAY_OUT}"
        )
    _require_finite(state, file)
    network.load_state_dict(dict(state), strict=False)


def _require_finite(state: Mapping[str, Tensor], file: str) -> None:
    if broken := [k for k, v in state.items() if not bool(torch.isfinite(v).all())]:
        raise SpectraError(
            f"{file} holds NaN or infinite weights in {shorten(broken)}: the training diverged; "
            "choose an earlier checkpoint"
        )
