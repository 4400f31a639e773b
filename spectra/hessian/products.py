"""Three ways to differentiate Σ_i w_i ℓ_i(θ) twice along v, each as one function of a batch.

With f the weighted sum of the losses of a batch, each path returns ∇²f(θ)·v:

    double-backward       ∇⟨∇f(θ), v⟩        the reference
    reverse-over-forward  ∇(∂_v f)(θ)        the fastest plain path: one reverse pass over a scalar
    forward-over-reverse  ∂_v(∇f)(θ)

References:
    B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994),
    https://doi.org/10.1162/neco.1994.6.1.147
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from spectra.choices import PathName

Parameters = dict[str, Tensor]
Function = Callable[[Parameters], Tensor]


def gradient(f: Function, at: Parameters) -> Parameters:
    """Differentiate `f` once, by the engine that every custom autograd function knows."""
    return differentiated(f, at, create_graph=False)[1]


def differentiated(
    f: Function, at: Parameters, *, create_graph: bool
) -> tuple[Parameters, Parameters]:
    """Differentiate `f` at fresh leaves; give them and the gradient, with its graph if asked."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    first = torch.autograd.grad(
        f(leaves),
        list(leaves.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return leaves, dict(zip(leaves, first, strict=True))


def reverse_over_forward(f: Function, at: Parameters, vector: Parameters) -> Parameters:
    """Differentiate the directional derivative of `f` at `at` along `vector`."""
    directional = partial(_directional_derivative, f, vector)
    product: Parameters = torch.func.grad(directional)(at)
    return product


def _directional_derivative(f: Function, vector: Parameters, at: Parameters) -> Tensor:
    derivative: Tensor = torch.func.jvp(f, (at,), (vector,))[1]
    return derivative


def forward_over_reverse(f: Function, at: Parameters, vector: Parameters) -> Parameters:
    """Push `vector` through the gradient of `f` at `at`."""
    product: Parameters = torch.func.jvp(torch.func.grad(f), (at,), (vector,))[1]
    return product


def double_backward(f: Function, at: Parameters, vector: Parameters) -> Parameters:
    """Differentiate the inner product of the gradient of `f` at `at` with `vector`."""
    leaves, gradients = differentiated(f, at, create_graph=True)
    inner = torch.stack([(g * vector[name]).sum() for name, g in gradients.items()]).sum()
    if not inner.requires_grad:  # the loss is affine in every parameter
        return {name: torch.zeros_like(value) for name, value in at.items()}
    inputs = list(leaves.values())
    second = torch.autograd.grad(inner, inputs, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, second, strict=True))


PRODUCTS: dict[PathName, Callable[[Function, Parameters, Parameters], Parameters]] = {
    "reverse-over-forward": reverse_over_forward,
    "double-backward": double_backward,
    "forward-over-reverse": forward_over_reverse,
}
