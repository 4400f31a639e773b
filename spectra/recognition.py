"""Which weights a file holds, and which network they belong to: told by keys, names and shapes.

Wrappers and other code bases put names of their own around those of a network's parameters, or have
other words for its layers; here they become the ones of `networks`.
"""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import SpectraError
from .models import ARCHITECTURES, ModelSpec
from .networks import DIGITS_FEATURES, LAYOUTS

HEADS = re.compile(r"(.*_)?(head|heads|classifier)")  # names that no other layer has
LAST = ("fc", "linear", "out", "output", "logits")  # names that the last layer often has
# Modules that training keeps beside a network, as a LightningModule its loss.
BESIDE = re.compile(r"(\w+_)?(criterion|loss(_\w+)?)\.")
USUAL = ("state_dict", "model_state_dict", "model", "net")  # keys of a file's weights


@dataclass(frozen=True)
class Found:
    """The state dict that was taken out of a file."""

    state: dict[str, Tensor]
    key: str  # that had to be named for it; empty for what is taken without a name
    others: tuple[str, ...]  # keys of more weights of such a network, which nobody chose


def find_weights(payload: object, file: str, chosen: str | None = None) -> Found:
    """Take the weights out of what a file holds.

    Args:
        payload: a state dict, or a dictionary with some in it, or in dictionaries in it.
        file: its name.
        chosen: key of the state dict, "ema.module" for one in a dictionary; else `USUAL`.

    Raises:
        SpectraError: if there are none, or none under that key; it lists what was seen.
    """
    held = payload if isinstance(payload, Mapping) else {}
    found = _state_dicts(held)
    usual = next((key for key in USUAL if key in found), None)
    key = usual if chosen is None else chosen
    if key in found:
        rest = () if chosen else sorted(found.keys() - {key})
        others = tuple(name for name in rest if _rivals(found[key], found[name]))
        return Found(found[key], "" if key == usual else key, others)
    bare = _tensors_by_name(payload)
    if bare and chosen is None:
        return Found(bare, "", ())
    seen = f"the keys {shorten([str(key) for key in held])}" if held else type(payload).__name__
    hint = "save model.state_dict()"
    if bare:
        hint = "it is one bare state dict, which no key names: leave --weights out"
    elif found:
        hint = f"choose from {shorten([repr(key) for key in found])}: --weights KEY"
    raise SpectraError(
        f"{file} holds {seen}, expected the tensors of a network by name, bare or under "
        f"{chosen or 'state_dict'!r}: {hint}"
    )


def _state_dicts(held: Mapping[Any, object]) -> dict[str, dict[str, Tensor]]:
    """Find the state dicts by key; those of a dictionary inside have its key before a dot."""
    outer = {str(k): parts for k, value in held.items() if (parts := _tensors_by_name(value))}
    inner = {
        f"{key}.{name}": parts
        for key, value in held.items()
        if isinstance(value, Mapping) and str(key) not in outer
        for name, part in value.items()
        if isinstance(name, str) and (parts := _tensors_by_name(part))  # not an optimiser's
    }
    return inner | outer


def _rivals(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict could be another one of the same network, and is no copy."""
    return _shapes(state) <= _shapes(other) and not all(
        name in other and _same(value, other[name]) for name, value in state.items()
    )


def _same(a: Tensor, b: Tensor) -> bool:
    try:
        return a.dtype == b.dtype and torch.equal(a, b)
    except RuntimeError:  # there is none for sparse tensors, nor for some types
        return False


def _tensors_by_name(value: object) -> dict[str, Tensor]:
    parts = dict(value) if isinstance(value, Mapping) else {}
    named = all(isinstance(k, str) and isinstance(part, Tensor) for k, part in parts.items())
    return parts if named else {}


def _shapes(state: Mapping[str, Tensor]) -> Counter[torch.Size]:
    return Counter(value.shape for value in state.values() if value.ndim > 0)


def canonical_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a foreign residual network to the names used here.

    What all names begin with goes; 1x1-convolution shortcuts `shortcut.0`, `shortcut.1` with the
    head `linear`, as some write them, become `downsample.0`, `downsample.1` with the head `fc`.
    """
    *_, names = without_prefixes(state_dict)
    if not any(re.search(r"\.(shortcut|downsample)\.0\.weight$", name) for name in names):
        return names
    return {
        re.sub(r"^linear\.", "fc.", name.replace(".shortcut.", ".downsample.")): value
        for name, value in names.items()
    }


def without_prefixes(state_dict: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Give a state dict as it is, then without each piece that all of its names begin with.

    DataParallel adds `module.`, torch.compile `_orig_mod.`, a LightningModule what it calls the
    network; AveragedModel adds `module.`, and a counter beside it that goes with it. What `BESIDE`
    matches is no part of them, and the last state dict is without it.
    """
    names = dict(state_dict)
    while True:
        yield names
        counted = "n_averaged" in names
        kept = [name for name in names if name != "n_averaged" and not BESIDE.match(name)]
        prefix, *others = {"".join(name.partition(".")[:2]) for name in kept} or {""}
        if others or not prefix.endswith(".") or (counted and prefix != "module."):
            break
        names = {name.removeprefix(prefix): names[name] for name in kept}
    if kept and len(kept) + counted < len(names):
        yield {name: value for name, value in names.items() if not BESIDE.match(name)}


def fitting_names(state_dict: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Take off what names begin with, as far as most of them become those of a network.

    That is what all begin with, or what the whole network lies under, beside other parts: a
    LightningModule's teacher, or its metrics. Where two parts have all of its names, neither is
    taken: which is meant would be a guess.

    Args:
        state_dict: parameters and buffers by name.
        expected: the network's own names.
    """
    known = set(expected)
    versions = [*without_prefixes(state_dict), *_under_one_prefix(state_dict, known)]
    return max(versions, key=lambda names: (len(names.keys() & known), -len(names.keys() - known)))


def _under_one_prefix(
    state_dict: Mapping[str, Tensor], known: Collection[str]
) -> Iterator[dict[str, Tensor]]:
    needed = {name for name in known if not name.endswith("num_batches_tracked")}
    # The names as they are count, too: a teacher beside them is no reason to take it.
    prefixes = {"", *(n[: k + 1] for n in state_dict for k, c in enumerate(n) if c == ".")}
    parts = (
        {name.removeprefix(p): v for name, v in state_dict.items() if name.startswith(p)}
        for p in sorted(prefixes)
        if all(p + name in state_dict for name in needed)
    )
    found = [part for part in parts if needed]
    if len(found) == 1:
        yield found[0]


def infer_spec(state_dict: Mapping[str, Tensor]) -> ModelSpec:
    """Tell which network a bare state dict belongs to, from its names and shapes.

    Args:
        state_dict: parameters and buffers by name; all may begin with the same.

    Returns:
        Architecture, classes, head and input channels.

    Raises:
        SpectraError: if no network known here has such names; it lists what was seen.
    """
    shapes = {name: tuple(value.shape) for name, value in canonical_names(state_dict).items()}
    stages = [re.match(r"layer(\d+)\.\d+\.conv1\.weight$", name) for name in shapes]
    counts = [match.group(1) for match in stages if match]
    blocks = tuple(counts.count(stage) for stage in sorted(set(counts)))
    bottleneck = "layer1.0.conv3.weight" in shapes
    padded = not any(".downsample.0." in name for name in shapes)
    stem = shapes.get("conv1.weight", ())
    candidates = [
        (arch, layout.head, layout.features)
        for arch, layout in LAYOUTS.items()
        if (layout.blocks, layout.bottleneck, layout.padded, layout.stem[0])
        == (blocks, bottleneck, padded, *stem[3:])
    ]
    if not blocks and "conv3.weight" in shapes:
        candidates.append(("digits", "linear", DIGITS_FEATURES))
    for arch, name, features in candidates:
        shape = shapes.get(f"{name}.weight", ())
        if len(shape) != 2 or len(stem) != 4:
            continue
        # A head without bias is the cosine one: (features, classes), not (classes, features).
        cosine = f"{name}.bias" not in shapes and shape[0] == features
        return ModelSpec(arch, shape[int(cosine)], "cosine" if cosine else "linear", stem[1])
    seen = ", ".join(f"{k} {tuple(v.shape)}" for k, v in itertools.islice(state_dict.items(), 3))
    raise SpectraError(
        f"cannot tell the network from {len(shapes)} tensors, {blocks or 'no'} blocks per stage, "
        f"names like {seen or 'none'}: name it with --arch ({', '.join(ARCHITECTURES)}) or with "
        "--model PACKAGE.MODULE:FUNCTION"
    )


def guess_classes(state: Mapping[str, Tensor]) -> int:
    """Take the width of what is called like a head, the last one: it may be declared first."""
    *_, names = without_prefixes(state)

    def likeness(name: str) -> int:
        layer = name.partition(".")[0]
        return 2 if HEADS.fullmatch(layer) else int(layer in LAST)

    sized = sorted((name for name, value in names.items() if value.ndim > 0), key=likeness)
    return names[sized[-1]].shape[0] if sized else 0


def choose_spec(
    state: Mapping[str, Tensor],
    *,
    file: str,
    told: ModelSpec | None = None,
    named: object = None,
    factory: str | None = None,
    arch: str | None = None,
    num_classes: int | None = None,
) -> ModelSpec:
    """Settle the network: what the caller says, then what the file says, then names and shapes.

    Args:
        state: parameters and buffers by name.
        file: name of the file.
        told: what the file says of its network, in our own format.
        named: the architecture that the file of another project names.
        factory: "package.module:function", where the caller names one.
        arch: the architecture, where the caller names one.
        num_classes: the number of classes, where the caller says it.

    Raises:
        SpectraError: if it cannot be told, or the file names a factory and the caller none.
    """
    if factory is not None:
        classes = num_classes or (told.num_classes if told else guess_classes(state))
        return ModelSpec(factory.partition(":")[2], classes, factory=factory)
    if told is not None and told.factory is not None and arch is None:
        raise SpectraError(
            f"{file} was made with the model factory {told.factory!r}; a file may not import code "
            f"by itself: repeat with --model {told.factory} if you trust it"
        )
    if told is None:
        try:
            told = infer_spec(state)
        except SpectraError:
            if arch is None and named not in ARCHITECTURES:
                raise
            told = ModelSpec(str(arch or named), num_classes or guess_classes(state))
    told = replace(told, num_classes=num_classes or told.num_classes)
    return told if arch is None else replace(told, arch=arch, factory=None)


def shorten(names: Sequence[str], most: int = 4) -> str:
    """Join names, the first few of many."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
