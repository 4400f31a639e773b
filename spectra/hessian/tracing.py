"""Write a Hessian-vector product out as a program, and cut it where the vector comes in.

    H v = ∂_v(∇f)(θ) = apply(θ, batch, prepare(θ, batch), v)

Forward-over-reverse is traced once per shape into a graph of plain tensor operations. What does not
depend on v goes to `prepare`: the gradient, its three convolutions for each layer. The rest, two
for each of these, goes to `apply`. Between the two lie tensors that may be kept, and then a product
costs six convolution passes, twice a gradient. What is cheap to compute from what lies there
already is not kept, but computed again in `apply`.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from spectra.hessian.products import Function, Parameters, forward_over_reverse

aten = torch.ops.aten
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOW = ("stride", "padding", "dilation", "groups")
_LAYERS: dict[type[nn.Module], tuple[Callable[..., Tensor], Sequence[str]]] = {
    nn.Linear: (F.linear, ()),
    nn.Conv1d: (F.conv1d, _HOW),
    nn.Conv2d: (F.conv2d, _HOW),
    nn.Conv3d: (F.conv3d, _HOW),
}
Bound = Callable[..., Function]  # the tensors of a batch -> the weighted sum of its losses


@dataclass(frozen=True)
class Program:
    """The product of one batch shape, in two halves."""

    prepare: Callable[..., tuple[Tensor, ...]]  # θ and batch -> what the second half reads
    apply: Callable[..., tuple[Tensor, ...]]  # θ, batch, what was prepared, v -> H v

    def compiled(self) -> Program:
        """Compile both halves; the compiler runs at their first calls."""
        halves = (self.prepare, self.apply)
        return Program(*(torch.compile(half, dynamic=False) for half in halves))


def written_out(network: nn.Module) -> nn.Module:
    """Copy a network, its evaluation-mode batch norms written out as the affine maps they are.

    One that follows a convolution (or a linear layer) is drawn into its weights,

        s∘(W∗x + b) + t = (s∘W)∗x + (s∘b + t),   s = γ/√(σ² + ε),   t = β − s∘μ

    so that what derivatives of γ and β ask of it is done on weights and not on activations. The
    function of W, b, γ and β stays the same, and with it the Hessian.

    Args:
        network: in evaluation mode.

    Returns:
        A module whose parameters and buffers have the same names and values.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) in _NORMS:
            module.__class__ = _Affine
        elif type(module) in _SIGNING:
            module.__class__ = _SIGNING[type(module)]
    return network


def _signing(
    layer: type[nn.Module], function: Callable[..., Tensor], how: Sequence[str]
) -> type[nn.Module]:
    """Derive a layer whose outputs say what they were made of, to a batch norm that comes next."""

    def forward(self: Any, input: Tensor) -> Tensor:
        output: Tensor = layer.forward(self, input)
        made = (output, input, self.weight, self.bias)
        plain = getattr(self, "padding_mode", "zeros") == "zeros"
        if plain and not any(tensor is not None and tensor.is_inference() for tensor in made):
            again = partial(function, **{name: getattr(self, name) for name in how})
            output.made_of = (again, *made[1:], _versions(made))  # type: ignore[attr-defined]
        return output

    return type(layer.__name__, (layer,), {"forward": forward})


_SIGNING = {layer: _signing(layer, *called) for layer, called in _LAYERS.items()}


def _versions(tensors: Sequence[Tensor | None]) -> list[int]:
    return [-1 if tensor is None else tensor._version for tensor in tensors]


class _Affine(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = torch.rsqrt(self.running_var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        drawn_in = _drawn_in(input, scale, shift)
        if drawn_in is not None:
            return drawn_in
        shape = (-1,) + (1,) * (input.dim() - 2)
        return input * scale.view(shape) + shift.view(shape)


def _drawn_in(made: Tensor, scale: Tensor, shift: Tensor) -> Tensor | None:
    """Let the layer that made a tensor scale and shift its channels; None where it cannot.

    The layer's own output is then computed in vain, and falls out of the traced program.
    """
    if not hasattr(made, "made_of"):
        return None
    again, x, weight, bias, versions = made.made_of
    if _versions((made, x, weight, bias)) != versions:  # changed in place since
        return None
    if made.dim() != weight.dim():  # no batch, or its channels are not the second dimension
        return None
    weight = weight * scale.view((-1,) + (1,) * (weight.dim() - 1))
    bias = shift if bias is None else bias * scale + shift
    drawn_in: Tensor = again(x, weight, bias)
    return drawn_in


def trace(bound: Bound, at: Parameters, batch: Sequence[Tensor]) -> Program:
    """Trace the product of one batch and cut it in two.

    Args:
        bound: takes the tensors of a batch and gives the sum of its losses as a function of the
            parameters. What it does must depend on shapes alone, not on values: the batches to
            come run through the same operations.
        at: name to parameter.
        batch: tensors of the shapes and layouts to come.

    Returns:
        The program. Parameters and v go in and out as tensors in the order of `at`.

    Raises:
        RuntimeError: the function cannot be traced, or what it does depends on values.
    """
    names, size = list(at), len(batch)

    def product(*flat: Tensor) -> list[Tensor]:
        here = dict(zip(names, flat, strict=False))
        along = dict(zip(names, flat[len(names) + size :], strict=True))
        f = bound(*flat[len(names) : len(names) + size])
        result = forward_over_reverse(f, here, along)
        return [result[name] for name in names]

    like = list(at.values())
    inputs = [*like, *batch, *(torch.zeros_like(value) for value in like)]
    flat_product = torch.func.functionalize(product, remove="mutations")
    graph = None
    with contextlib.suppress(Exception):  # of shapes alone: half the time, and nothing is computed
        by_shapes = make_fx(flat_product, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = by_shapes(*inputs)
    if graph is None:  # an operation without a description by shapes needs a batch
        graph = make_fx(flat_product)(*inputs)
    _refuse_values(graph.graph)
    _tidy(graph.graph)
    prepare, apply = _cut(graph, vectors=len(names))
    return Program(prepare, apply)


def _refuse_values(graph: fx.Graph) -> None:
    """Refuse operations whose shapes follow values: the next batch would have others."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        tags = node.target.tags
        depends = torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags
        if node.target is aten.index.Tensor:  # only a mask makes its shape follow values
            masks = (i.meta["val"].dtype for i in node.args[1] if i is not None)
            depends = any(dtype in (torch.bool, torch.uint8) for dtype in masks)
        if depends:
            raise RuntimeError(f"{node.target} has a shape that depends on values")


def _tidy(graph: fx.Graph) -> None:
    """Drop what nobody reads or what adds nothing; let a convolution's gradients stand alone."""
    for node in list(graph.nodes):
        same = node.args[0] if node.target is aten.alias.default else _without_zeros(node)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target is not aten.convolution_backward.default:
            continue
        *rest, wanted = node.args
        for k in range(3):
            users = [user for user in node.users if user.args[1] == k]
            if not users or sum(wanted) == 1:
                continue
            with graph.inserting_before(node):
                mask = [j == k for j in range(3)]
                alone = graph.call_function(node.target, (*rest, mask))
                item = graph.call_function(operator.getitem, (alone, k))
                item.meta = dict(users[0].meta)
            for user in users:
                user.replace_all_uses_with(item)
    graph.eliminate_dead_code()


def _without_zeros(node: fx.Node) -> fx.Node | None:
    """Find the term that alone makes a sum, like the tangent of every ReLU's gradient."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    for term, other in (node.args, node.args[::-1]):
        if isinstance(term, fx.Node) and isinstance(other, fx.Node):
            whole, part = (each.meta["val"] for each in (node, other))
            alike = whole.dtype == part.dtype and whole.shape == part.shape
            # Another layout is a copy that a view behind the sum may need.
            if term.target is aten.zeros_like.default and alike and whole.stride() == part.stride():
                return other
    return None


def _cut(program: fx.GraphModule, *, vectors: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Part the operations that depend on the last `vectors` inputs from the others."""
    nodes = list(program.graph.nodes)
    given = [node for node in nodes if node.op == "placeholder"]
    given, vector = given[:-vectors], given[-vectors:]
    moving = set(vector)
    for node in nodes:
        if node.op == "call_function" and moving & set(node.all_input_nodes):
            moving.add(node)
    last = nodes[-1]
    fixed = [node for node in nodes if node.op == "call_function" and node not in moving]
    kept = {node for node in fixed if any(user in moving or user is last for user in node.users)}
    again = _recomputed(kept, fixed, moving)
    kept -= again
    boundary = [node for node in fixed if node in kept]
    constants = [node for node in nodes if node.op == "get_attr"]
    later = [
        node for node in nodes if node.op == "call_function" and (node in moving or node in again)
    ]
    prepare = _graph(program, given, constants + fixed, boundary)
    apply = _graph(program, [*given, *boundary, *vector], constants + later, last.args[0])
    return prepare, apply


def _recomputed(kept: set[fx.Node], fixed: Sequence[fx.Node], moving: set[fx.Node]) -> set[fx.Node]:
    """Find what is elementwise, or a view, of what is kept anyway."""
    found: set[fx.Node] = set()
    for node in fixed:
        cheap = isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.pointwise in node.target.tags or node.target.is_view
        )
        if (
            node in kept
            and cheap
            and all(
                n in kept or (n.op in ("placeholder", "get_attr") and n not in moving)
                for n in node.all_input_nodes
            )
        ):
            found.add(node)
    return found


def _graph(
    owner: fx.GraphModule,
    inputs: Sequence[fx.Node],
    operations: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in operations:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(tuple(copies[node] for node in outputs))
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(owner, graph)
