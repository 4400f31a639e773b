"""The private copy is the caller's network in evaluation mode, and the caller's stays as it was."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.hessian.network import (
    culprit,
    differentiate,
    exact_arithmetic,
    forked_random_state,
    private_copy,
)

CPU = torch.device("cpu")


def batch_normed() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.BatchNorm1d(36, affine=False),
            nn.Linear(36, 3),
        )
        for norm in (model[1], model[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(model[1].weight, 0.5, 2)
    return model


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(3)).double()


def test_the_copy_gives_the_outputs_of_evaluation_mode(device: torch.device) -> None:
    """P11: with and without γ and β."""
    model = batch_normed()
    copy = private_copy(model, dtype=torch.float64, device=device)
    expected = model.double().eval()(images())
    assert torch.allclose(copy(images().to(device)).cpu(), expected, rtol=1e-12, atol=1e-12)


def test_an_embedding_that_rewrites_its_weights_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(SpectraError, match="embedding `0` with max_norm"):
        private_copy(model, dtype=torch.float64, device=CPU)


def test_the_copy_keeps_names_order_and_ties_and_the_original_everything() -> None:
    """P14, P15, P16, law 7"""
    model = batch_normed().train()
    model[5].bias.requires_grad_(False)
    model.tied = nn.Linear(36, 3)
    model.tied.weight = model[5].weight
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    copy = private_copy(model, dtype=torch.float64, device=CPU)
    assert [n for n, _ in copy.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert copy.tied.weight is copy[5].weight
    assert all(p.dtype == torch.float64 for p in copy.parameters())
    assert [n for n, p in copy.named_parameters() if not p.requires_grad] == ["5.bias"]
    with torch.no_grad():
        for p in copy.parameters():
            p.add_(1)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(isinstance(model[i], t) for i, t in ((1, nn.BatchNorm2d), (4, nn.BatchNorm1d)))
    assert not model[5].bias.requires_grad
    assert bool((model[0].weight.grad == 1).all())


def test_passes_record_no_graph_for_parameters_that_are_no_rows() -> None:
    """Nor does a copy of the copy in another precision; the caller's parameters are others."""
    model, saved = batch_normed(), list[Tensor]()
    copy = private_copy(model, dtype=torch.float64, device=CPU)
    differentiate(copy, ["5.weight", "5.bias"])
    copy = private_copy(copy, dtype=torch.float32, device=CPU)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        copy(images().float()).sum().backward()
    assert [tuple(t.shape) for t in saved if t.numel() > 36 * 3] == [(5, 36)]  # what the head takes
    assert copy[5].weight.grad is not None
    assert all(p.requires_grad for p in model.parameters())


def test_one_norm_in_two_places_stays_one_norm() -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.fill_(0.5)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(nn.Linear(4, 4), norm)})
    copy = private_copy(model, dtype=torch.float32, device=CPU)
    assert copy["a"].weight is copy["b"][1].weight
    x = torch.ones(3, 4)
    assert torch.allclose(copy["b"][1](x), model.eval()["b"][1](x))


def test_a_subclass_of_batch_norm_keeps_its_own_forward() -> None:
    class Doubled(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    copy = private_copy(nn.Sequential(Doubled(3)), dtype=torch.float64, device=CPU)
    x = torch.ones(2, 3, dtype=torch.float64)
    assert torch.allclose(copy(x), 2 * x, rtol=1e-4)


def test_a_model_that_cannot_be_copied_is_refused_in_one_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm is deprecated, and still used
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
    model(torch.ones(2, 4))
    with pytest.raises(SpectraError, match="remove_weight_norm"):
        private_copy(model, dtype=torch.float64, device=CPU)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_products_run_without_fused_kernels_and_every_setting_is_put_back(
    tf32: bool, recurrent: bool
) -> None:
    """Law 7, and law 6: TF32 is off unless asked for. The flags are there without a GPU, too."""
    backends = torch.backends

    def settings() -> tuple[object, ...]:
        return (
            backends.cudnn.conv.fp32_precision,
            backends.cuda.matmul.fp32_precision,
            backends.cudnn.deterministic,
            backends.cudnn.enabled,
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        )

    before, word = settings(), "tf32" if tf32 else "ieee"
    with exact_arithmetic(torch.device("cuda"), tf32=tf32, recurrent=recurrent):
        assert settings() == (word, word, True, not recurrent, False, False, False, True)
    assert settings() == before


def test_the_random_state_is_put_back(device: torch.device) -> None:
    state = torch.random.get_rng_state()
    with forked_random_state(device):
        torch.rand(3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_culprit_is_the_innermost_layer_that_moves() -> None:
    """P3: named by its path and class; a fixed network has none, and no hook stays behind."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    model = nn.ModuleDict({"stem": nn.Linear(3, 3)})
    chain = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), Noisy()), nn.Linear(3, 2))
    state = torch.random.get_rng_state()
    assert culprit(chain, torch.ones(2, 3)) == "1.1 (Noisy)"
    assert torch.equal(state, torch.random.get_rng_state())
    assert culprit(model["stem"], torch.ones(2, 3)) is None
    assert culprit(Noisy(), torch.ones(2, 3)) == "the model (Noisy)"
    assert not any(m._forward_hooks for m in chain.modules())
