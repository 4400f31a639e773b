"""What tells two values apart, as bytes: of networks and functions that no file holds."""

import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = bool | int | float | complex | str | bytes | torch.dtype | None
_EMPTY = types.CellType()
_SWITCHES = frozenset(vars(nn.Module()))  # parameters, modules, hooks, training


def sha256_of(value: Any, start: bytes = b"") -> str:
    """Digest a value, after some bytes that stand before it."""
    digest = hashlib.sha256(start)
    for piece in pieces(value):
        digest.update(piece)
    return digest.hexdigest()


def pieces(value: Any, above: tuple[int, ...] = ()) -> Iterator[bytes]:
    """Write tensors, numbers and words, in any containers, as bytes; of others the type alone.

    Of a function its code is told, with its constants, its defaults and what it closes over; of a
    module what it holds beside its switches; of a method and an object that is called like a
    function the type, the code and what the object holds.

    Args:
        value: anything.
        above: ids of what it lies in, for containers that hold themselves.
    """
    if id(value) in above:
        return
    above = (*above, id(value))
    if isinstance(value, np.ndarray | np.generic):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Tensor):
        about = value.dtype, tuple(value.shape), value.requires_grad
        yield repr(about).encode()
        plain = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        yield plain.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from pieces(key, above)
            yield from pieces(item, above)
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        for item in value:
            yield from pieces(item, above)
    elif isinstance(value, functools.partial):
        yield from pieces((value.func, value.args, value.keywords), above)
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        yield from pieces((value.__code__, value.__defaults__, value.__kwdefaults__, cells), above)
    elif isinstance(value, types.MethodType):
        owner = value.__self__
        kind = owner if isinstance(owner, type) else type(owner)
        held = owner if isinstance(owner, nn.Module) else _held(owner)
        yield from pieces((kind.__module__, kind.__qualname__, value.__func__, held), above)
    elif isinstance(value, types.CodeType):
        yield from pieces((value.co_code, value.co_names, value.co_consts), above)
    elif isinstance(value, nn.Module):
        yield type(value).__name__.encode()
        yield from pieces((value.state_dict(), held_beside(value)), above)
        yield from pieces(list(value.children()), above)
    elif callable(value) and (held := _held(value)):  # an object that is called like a function
        yield from pieces((type(value).__qualname__, type(value).__call__, held), above)
    else:
        yield repr(value if isinstance(value, _PLAIN) else type(value)).encode()


def _held(value: object) -> dict[str, Any]:
    """List the attributes of an object, those in slots included; of a class none."""
    if isinstance(value, type):
        return {}
    slots = [s for c in type(value).__mro__ for s in np.atleast_1d(getattr(c, "__slots__", ()))]
    found = {name: getattr(value, name) for name in map(str, slots) if hasattr(value, name)}
    return dict(sorted((found | getattr(value, "__dict__", {})).items()))


def held_beside(module: nn.Module) -> dict[str, Any]:
    """List what a module holds beside parameters, buffers and modules, and its own switches."""
    return {name: vars(module)[name] for name in sorted(vars(module).keys() - _SWITCHES)}


def name_of(function: Callable[..., Any]) -> str:
    """Name a function, or an object that is called like one."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>")
