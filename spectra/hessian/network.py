"""The network as the Hessian sees it: a private copy in evaluation mode, one precision, one device.

Nothing here touches the caller's module. Batch norm in evaluation mode is an affine map of its
inputs, and torch's own kernel for it the fastest form of that map where autograd runs: written out
as multiply and add it cost 4 % more on ResNet-32. `norms` draws it into a layer before it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spectra.devices import arithmetic
from spectra.errors import SpectraError
from spectra.networks import copied

Given = ParamSpec("Given")
Result = TypeVar("Result")
_ONE_AT_A_TIME = threading.RLock()  # levels of forward differentiation belong to all threads
_TURNS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # a lock for each network
_MAKING = threading.Lock()
_DEFAULTS: list[torch.dtype] = []  # the caller's, then those of who came later


def by_itself(run: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let one thread at a time run, outside inference mode.

    Args:
        run: what passes over samples; it takes an objective.
    """
    undisturbed = untouched(run)

    @functools.wraps(run)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with _ONE_AT_A_TIME:
            return undisturbed(*args, **kwargs)

    return alone


def untouched(run: Callable[Given, Result]) -> Callable[Given, Result]:
    """Wait until no other thread's parameters are in the network; leave inference mode.

    Args:
        run: what reads an objective's network. Unlike `by_itself` it may be asked for while another
            thread waits for its result, as ranks in threads do.
    """

    @functools.wraps(run)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        given = (getattr(value, "network", None) for value in (*args, *kwargs.values()))
        network = next(held for held in given if isinstance(held, nn.Module))
        with _MAKING:
            turn = _TURNS.setdefault(network, threading.RLock())
        with turn, torch.inference_mode(False):
            return run(*args, **kwargs)

    return alone


def private_copy(
    model: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format | None = None,
    memo: dict[int, Any] | None = None,
) -> nn.Module:
    """Copy a model for differentiation: evaluation mode, `dtype`, `device`, one layout.

    Args:
        model: any module; it is left exactly as it is.
        dtype: precision of parameters and floating-point buffers; complex buffers take the complex
            numbers of that precision.
        device: where the copy lives.
        layout: of convolutions; what `memory_format` chooses when None.
        memo: as in `networks.copied`; `leftovers` of a private copy.

    Returns:
        The copy. Parameters keep their names, order, ties and whether they require gradients.

    Raises:
        SpectraError: a batch norm uses the statistics of the batch even in evaluation mode, an
            embedding rewrites its weights, parameters are complex, or the model cannot be copied.
    """
    network = copied(model, memo).to(device).eval()
    for name, parameter in network.named_parameters():
        if parameter.is_complex():
            raise SpectraError(
                f"got the complex parameter `{name}`, expected real ones: a Hessian of its real "
                "part alone would be another network's; keep torch.view_as_real of it as the "
                "parameter"
            )
    beside = torch.complex128 if dtype == torch.float64 else torch.complex64
    numbers = {True: beside, False: dtype}
    for module in network.modules():  # what a network holds beside its buffers goes with them
        for name, held in vars(module).items():
            if isinstance(held, Tensor) and held.is_floating_point():
                vars(module)[name] = held.to(device, dtype)
    network._apply(  # type: ignore[no-untyped-call]
        lambda t: t.to(numbers[t.is_complex()]) if t.is_complex() or t.is_floating_point() else t
    )
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise SpectraError(
                f"got the batch norm `{name}` without running statistics, expected one that keeps "
                "them: it would couple the samples of a batch, and the Hessian would depend on how "
                "the data are cut into batches; build it with track_running_stats=True and let "
                "data pass through it in train mode once"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise SpectraError(
                f"got the embedding `{name}` with max_norm, expected none: it rewrites its weights "
                "in every forward pass, so no product belongs to the parameters of the file; "
                "rescale the weights once and leave max_norm out"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):  # gradients of the loss, no others
            module.scale_grad_by_freq = module.sparse = False
    layout = layout or memory_format(network)
    # Convolutions and their derivatives then keep one memory layout.
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return network


def differentiate(network: nn.Module, live: Collection[str]) -> None:
    """Let passes record graphs for some parameters of a private copy alone; no other needs one."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in live)


def recopied(network: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a private copy, without what passes through it have left; `memo` as in `copied`."""
    return copied(network, leftovers(network) | (memo or {}))


def leftovers(network: nn.Module) -> dict[int, Any]:
    """List what passes through a private copy have left as attributes, for `copied` to leave out.

    Such tensors belong to graphs and transforms that are gone, and cannot be copied.
    """
    held = (value for module in network.modules() for value in vars(module).values())
    return {id(t): None for value in held for t in _tensors_in(value) if _left_over(t)}


def _tensors_in(held: object) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping):
        yield from (t for value in held.values() for t in _tensors_in(value))
    elif isinstance(held, Sequence) and not isinstance(held, str):
        yield from (t for value in held for t in _tensors_in(value))


def _left_over(tensor: Tensor) -> bool:
    try:
        tensor.untyped_storage()
        return not tensor.is_leaf
    except (RuntimeError, NotImplementedError):  # of a transform of torch.func that has ended
        return True


def memory_format(network: nn.Module) -> torch.memory_format:
    """Choose the layout of images: channels-last, but where torch has no forward mode for it."""
    grouped = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
    contiguous = any(isinstance(module, grouped) for module in network.modules())
    return torch.contiguous_format if contiguous else torch.channels_last


@contextlib.contextmanager
def exact_arithmetic(
    device: torch.device, *, tf32: bool = False, recurrent: bool = False, widened: bool = False
) -> Iterator[None]:
    """Run products with kernels that have second derivatives, in the precision that was asked for.

    Attention takes its plain form (the fused ones lack second derivatives), `recurrent` networks
    leave cuDNN and oneDNN for the same reason, convolutions and matrix products use TF32 only when
    `tf32` says so, and cuDNN uses deterministic algorithms. The caller's autocast and inference
    mode end here, and constants without a dtype take float64 where the network is `widened`. Every
    setting is put back on the way out. Gradients are recorded inside: who wants none says so there.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if widened:
            stack.enter_context(_float64_by_default())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        stack.enter_context(arithmetic(device, precision="tf32" if tf32 else "ieee"))
        libraries: list[Any] = [torch.backends.cudnn, torch.backends.mkldnn]
        for library in libraries if recurrent else ():
            stack.callback(setattr, library, "enabled", library.enabled)
            library.enabled = False
        yield


@contextlib.contextmanager
def _float64_by_default() -> Iterator[None]:
    """Set torch's default; the first thread to set it tells what the last one puts back."""
    with _MAKING:
        _DEFAULTS.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        with _MAKING:
            first = _DEFAULTS[0]
            _DEFAULTS.pop()
            torch.set_default_dtype(torch.float64 if _DEFAULTS else first)


def calling(*, widened: bool) -> contextlib.AbstractContextManager[object]:
    """Set torch up for a network's own calls: float32 by name is float64 where it is `widened`."""
    return _Widened() if widened else contextlib.nullcontext()


class _Widened(TorchFunctionMode):
    """Read float64 for float32 in every call."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = {key: _widened(value) for key, value in (kwargs or {}).items()}
        return (Tensor.double if func is Tensor.float else func)(*map(_widened, args), **named)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def forked_random_state(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put the global random state, of the CPU and of `device`, back on the way out."""
    fork: contextlib.AbstractContextManager[None] = torch.random.fork_rng(
        devices=[device] if device.type == "cuda" else []
    )
    return fork


def recordable(tensor: Tensor) -> Tensor:
    """Copy a tensor that was made in inference mode: no graph may hold it."""
    return tensor.clone() if tensor.is_inference() else tensor


def logits_of(output: object) -> Tensor:
    """Take the logits out of what a model returns: the tensor itself, or its `logits`."""
    logits = output.get("logits") if isinstance(output, Mapping) else output
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor):
        raise SpectraError(
            f"got a {type(output).__name__} from the model, expected a tensor of logits or "
            "an object with `.logits`; wrap the model so that it returns its logits"
        )
    return logits


def require_outputs(logits: Tensor, classes: int) -> None:
    """Refuse a network that has fewer outputs than the data have classes."""
    if logits.shape[-1] < classes:
        raise SpectraError(
            f"got a network with {logits.shape[-1]} outputs for {classes} classes, expected at "
            "least as many: the loss would be undefined; labels start at 0, and --dataset and "
            "--num-classes name other data and networks"
        )


def culprit(network: nn.Module, inputs: Tensor) -> str | None:
    """Name the first layer whose output changes between two passes over the same inputs.

    Args:
        network: a module; its random layers draw from the global generator, which is put back.
        inputs: (B, ...) a batch.

    Returns:
        The layer's name and class, or None when two passes agree bit for bit.
    """
    outputs: list[tuple[str, Tensor]] = []
    names = {module: name for name, module in network.named_modules()}

    def record(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append((f"{names[module] or 'the model'} ({type(module).__name__})", output))

    hooks = [module.register_forward_hook(record) for module in names]
    try:
        with torch.no_grad(), forked_random_state(inputs.device):
            network(inputs)
            first, outputs = outputs, []
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(first, outputs, strict=False)
    return next((a[0] for a, b in pairs if not torch.equal(a[1], b[1])), None)
