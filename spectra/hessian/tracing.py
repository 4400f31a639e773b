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
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from spectra.devices import compiled
from spectra.hessian.products import Function, Parameters, forward_over_reverse

aten = torch.ops.aten
Bound = Callable[..., Function]  # the tensors of a batch -> the weighted sum of its losses


@dataclass(frozen=True)
class Program:
    """The product of one batch shape, in two halves."""

    prepare: Callable[..., tuple[Tensor, ...]]  # θ and batch -> what the second half reads
    apply: Callable[..., tuple[Tensor, ...]]  # θ, batch, what was prepared, v -> H v

    def compiled(self) -> Program:
        """Compile the second half; the compiler runs at its first call.

        Compiling the first one, too, takes as long again. It is three convolution passes, which the
        compiler leaves as they are: where it ran in every product, nothing was gained by it.
        """
        return replace(self, apply=compiled(self.apply))


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
