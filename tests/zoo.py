"""Small networks of every kind, each with the path that is the fastest right one for it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


class Attention(nn.Module):
    """LayerNorm and scaled dot-product attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 6), nn.LayerNorm(6)
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        out: Tensor = self.head((h + F.scaled_dot_product_attention(q, k, v)).mean(1))
        return out


class Encoder(nn.Module):
    """The library's transformer layer, whose evaluation mode has a fused path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embed(x)).mean(1))
        return out


class Warp(nn.Module):
    """A spatial transformer: grid_sample has no forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.affine = nn.Parameter(torch.tensor([[1.0, 0.1, 0.05], [0.1, 0.9, 0.02]]))
        self.head = nn.Linear(25, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.affine.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        out: Tensor = self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))
        return out


class Tokens(nn.Module):
    """Integer inputs, an embedding and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(7, 4), nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.embed(x))[0][:, -1])
        return out


class Sine(torch.autograd.Function):
    """A custom function in the old style, which torch.func does not take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class Detached(Sine):
    """Its first derivative is right and its second one silently zero."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].detach().cos()


class Once(Sine):
    """Its second derivative is missing, and says so."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.body, self.head, self.function = nn.Linear(5, 5), nn.Linear(5, CLASSES), function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.function.apply(self.body(x)))
        return out


def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(4, CLASSES)
        ),
        (1, 5, 5),
        "reverse-over-forward",
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(16, CLASSES)),
        (1, 3, 3, 3),
        "reverse-over-forward",
    ),
    "attention": (Attention, (4, 5), "forward-over-reverse"),
    "encoder": (Encoder, (4, 5), "forward-over-reverse"),
    "instance-norm": (lambda: normed(nn.InstanceNorm2d(4)), (1, 5, 5), "forward-over-reverse"),
    "group-norm": (lambda: normed(nn.GroupNorm(2, 4)), (1, 5, 5), "reverse-over-forward"),
    "grid-sample": (Warp, (1, 5, 5), "double-backward"),
    "old-function": (lambda: Custom(Sine), (5,), "double-backward"),
    "tokens-lstm": (Tokens, (4,), "reverse-over-forward"),
}


def build(make: Callable[[], nn.Module], *shape: int, n: int = 9) -> tuple[nn.Module, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        x = torch.randn(n, *shape, dtype=torch.float64)
        if isinstance(model, Tokens):
            x = torch.randint(0, 7, (n, *shape))
    return model, (x, torch.arange(n) % CLASSES)
