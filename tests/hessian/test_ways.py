"""The way of computing products is measured, proven, recorded; what fails is explained."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from spectra.choices import KeptName
from spectra.errors import SpectraError
from spectra.hessian import (
    KeptProducts,
    Objective,
    ProductChoice,
    Work,
    choose_product,
    choose_way,
    hessian_operator,
    tracing,
    ways,
)
from spectra.hessian.batching import Batching
from tests.zoo import CLASSES, MODELS, build

MUCH = Work([9], 10**9)


def setting(
    device: torch.device, name: str = "conv", dtype: torch.dtype = torch.float64
) -> tuple[Objective, ProductChoice]:
    model, (x, y) = build(MODELS[name][0], *MODELS[name][1])
    objective = Objective.of(model, (x, y), dtype=dtype, device=device)
    return objective, choose_product(objective)


def over(model: nn.Module, x: Tensor, device: torch.device) -> Objective:
    """The mean loss of a model over some inputs, the classes in turns, in float64."""
    y = torch.arange(len(x)) % CLASSES
    return Objective.of(model.double(), (x, y), dtype=torch.float64, device=device)


def random_inputs(n: int) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_little_work_takes_the_plain_path_and_measures_nothing(device: torch.device) -> None:
    objective, choice = setting(device)
    way = choose_way(objective, choice, Work([9], 10))
    assert (way.name, way.kept, way.seconds) == (choice.path, None, {})


def test_much_work_takes_the_fastest_way_that_was_measured(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(ways, "_WORTH_COMPILING", float("inf"))
    objective, choice = setting(device)
    way = choose_way(objective, choice, MUCH)
    assert set(way.seconds) >= {choice.path, "linearized"}
    if way.kept is not None:
        assert way.seconds[way.name] < way.seconds[choice.path]
        v = torch.ones(objective.dim, dtype=torch.float64, device=device)
        expected = objective.product(v, choice.path)
        assert float((way.kept.product(objective, v) - expected).norm() / expected.norm()) < 1e-12
    else:
        assert any("not faster" in note for note in way.notes)


@pytest.mark.parametrize("slow", ["linearized", "kept-graph"])
def test_a_way_that_is_not_faster_is_not_used(
    slow: str, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(ways, "_WORTH_COMPILING", float("inf"))
    clock = {"linearized": 2.0, "kept-graph": 2.0, "plain": 1.0} | {slow: 3.0}

    def time(self: object, product: object) -> float:
        owner = getattr(product, "__self__", None)
        return clock[owner.name if isinstance(owner, KeptProducts) else "plain"]

    monkeypatch.setattr(ways._Trial, "time", time)
    objective, choice = setting(device)
    way = choose_way(objective, choice, MUCH)
    assert way.name == choice.path
    assert f"{slow} is not faster here than {choice.path}" in way.notes


@pytest.mark.parametrize("worth", [True, False])
def test_the_compiler_starts_where_the_products_to_come_are_worth_it(
    worth: bool, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """By what the linearized products will take, and not by what the plain ones would."""
    work = Work([100], 10**9)
    linearized = (1.5 if worth else 0.5) * ways._WORTH_COMPILING / work.samples
    clock = {"linearized": linearized, "compiled": 0.5 * linearized, "plain": 3 * linearized}
    built: list[str] = []
    build = ways._Trial.build

    def uncompiled(self: ways._Trial, name: KeptName) -> KeptProducts | None:
        built.append(name)
        kept = build(self, "linearized")
        assert kept is not None
        kept.name = name
        return kept

    def time(self: object, product: object) -> float:
        owner = getattr(product, "__self__", None)
        return clock[owner.name if isinstance(owner, KeptProducts) else "plain"]

    monkeypatch.setattr(ways._Trial, "build", uncompiled)
    monkeypatch.setattr(ways._Trial, "time", time)
    objective, choice = setting(device)
    way = choose_way(objective, choice, work)
    assert built == (["linearized", "compiled"] if worth else ["linearized"])
    assert way.name == built[-1]


def test_what_there_is_no_room_to_keep_is_timed_as_it_will_run(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Half of the samples are kept: half at the price of one that is, half of one that is not."""

    def time(self: object, product: Callable[..., Tensor]) -> float:
        owner = product.__self__  # type: ignore[attr-defined]
        return 4.0 if owner._room == 0 else 1.0

    monkeypatch.setattr(ways._Trial, "time", time)
    monkeypatch.setattr(KeptProducts, "share", lambda self, selections: 0.5)
    objective, choice = setting(device)
    trial = ways._Trial(objective, choice, Work([4], 10), None, 0)
    trial.seconds[choice.path] = 3.0
    trial.padding = 1.0
    assert trial.better("linearized", choice.path) is not None
    assert trial.seconds["linearized"] == 2.5
    monkeypatch.setattr(KeptProducts, "share", lambda self, selections: 0.25)
    assert trial.better("linearized", choice.path) is None


@pytest.mark.parametrize(
    ("gap", "scatter", "proven"),
    [(3e-9, 1e-9, True), (3e-9, 1e-10, False), (3e-6, 1e-6, False)],
)
def test_samples_that_are_fitted_to_the_last_bits_do_not_cost_the_fast_way(
    gap: float, scatter: float, proven: bool, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """There p - 1 is rounding, and two plain paths differ by more than elsewhere as well."""
    objective, choice = setting(device)

    def relative(a: Tensor, b: Tensor) -> float:
        return gap if a is products[-1] else scatter

    products: list[Tensor] = []
    multiply = KeptProducts.product

    def product(*given: object) -> Tensor:
        products.append(multiply(*given))  # type: ignore[arg-type]
        return products[-1]

    monkeypatch.setattr(KeptProducts, "product", product)
    monkeypatch.setattr(ways, "relative", relative)
    if proven:
        way = choose_way(objective, choice, MUCH, product="linearized")
        assert any("fitted to the last bits" in note for note in way.notes)
    else:
        with pytest.raises(SpectraError, match="away from"):
            choose_way(objective, choice, MUCH, product="linearized")


def test_the_share_that_is_kept_counts_whole_batches(device: torch.device) -> None:
    objective, _ = setting(device)  # nine samples
    vector = torch.ones(objective.dim, dtype=torch.float64, device=device)
    kept = KeptProducts("linearized", objective, "double-backward", sizes=(3,))
    assert kept.share([9]) == 0.0  # nothing is known yet
    kept.product(objective, vector)
    kept._space = 2 * kept._kept_bytes // 3 + kept._kept_bytes // 9  # for seven samples
    assert kept.share([9]) == 6 / 9
    assert kept.share([9, 3]) == 9 / 12
    kept.forgo()
    kept.product(objective, vector)
    assert (kept.kept_samples, kept.share([9])) == (0, 0.0)


def test_a_network_that_cannot_be_traced_keeps_its_plain_path_and_says_why(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.body(x)
            return h.sinh() if bool(self.body.bias.sum() > 0) else h.cosh()

    objective = over(Branch(), random_inputs(6), device)
    choice = choose_product(objective)
    way = choose_way(objective, choice, Work([6], 10**9))
    assert way.name in (choice.path, "kept-graph")
    assert any(note.startswith("no linearized product") for note in way.notes)
    with pytest.raises(SpectraError, match="got product 'linearized', which cannot be had here"):
        choose_way(objective, choice, MUCH, product="linearized")


def test_a_way_stands_on_a_path_that_is_right(device: torch.device) -> None:
    objective, choice = setting(device, "old-function")
    assert "forward-over-reverse" in choice.refused
    with pytest.raises(SpectraError, match="stands on forward-over-reverse"):
        choose_way(objective, choice, MUCH, product="linearized")
    assert choose_way(objective, choice, MUCH, product="kept-graph").kept is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_program_that_is_wrong_is_found_out(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    objective, choice = setting(device, dtype=dtype)
    real = tracing.forward_over_reverse

    def wrong(*given: object) -> dict[str, Tensor]:
        return {name: 1.00001 * part for name, part in real(*given).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(tracing, "forward_over_reverse", wrong)
    with pytest.raises(SpectraError, match=r"1\.0e-05 away from double-backward in float64"):
        choose_way(objective, choice, MUCH, product="linearized")


@pytest.mark.parametrize("off", [0.0, 0.1])
def test_kernels_that_round_otherwise_are_judged_by_their_distance_from_float64(
    off: float, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Beyond the bound, which was measured on CPUs, a way may be twice as far as the plain path."""
    monkeypatch.setitem(ways._CLOSE, torch.float32, -1.0)
    monkeypatch.setattr(ways, "_AS_FAR", 1e4)  # a single ReLU may turn in one path alone
    real = KeptProducts.product

    def product(self: KeptProducts, objective: Objective, vector: Tensor) -> Tensor:
        found = real(self, objective, vector)
        return found if objective.dtype == torch.float64 else found * (1 + off)

    monkeypatch.setattr(KeptProducts, "product", product)
    objective, choice = setting(device, dtype=torch.float32)
    if off:
        with pytest.raises(SpectraError, match=r"9\.1e-02 away from .* in float32"):
            choose_way(objective, choice, MUCH, product="linearized")
    else:
        way = choose_way(objective, choice, MUCH, product="linearized")
        assert any("from the product in float64" in note for note in way.notes)


def test_the_batch_is_filled_up_little(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("one pair of sizes there")
    objective, _ = setting(device)
    for classes in ([5], [50, 83], [500, 300, 50], [1, 1, 40], [5000, 50]):
        (size,) = ways._sizes(objective, Work(classes, 1))
        batches = sum(-(-n // size) for n in classes)
        assert batches * size <= 1.2 * sum(classes)
        assert batches <= sum(classes) / 15 + 10
        assert size <= 40


@pytest.mark.parametrize("name", ["kept-graph", "linearized"])
def test_the_product_that_is_asked_for_is_used_by_operators(
    name: str, device: torch.device
) -> None:
    model, data = build(MODELS["conv"][0], *MODELS["conv"][1])
    H = hessian_operator(model, data, dtype=torch.float64, device=device, product=name)  # type: ignore[arg-type]
    plain = hessian_operator(model, data, dtype=torch.float64, device=device)
    assert H.kept is not None
    assert H.kept.name == name
    v = torch.ones(H.dim, dtype=torch.float64, device=device)
    assert float((H @ v - plain @ v).norm() / (plain @ v).norm()) < 1e-12
    assert H.kept.kept_samples == 9


class ByValue(nn.Module):
    """What it does with a batch depends on the values in it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).tanh()
        if self.kind == "mask":
            chosen = x[:, 0] > 0
            h = h.index_put((chosen,), h[chosen].exp())
        elif self.kind == "unique":
            for value in (x[:, 0] > 0).unique():
                h = torch.where(((x[:, 0] > 0) == value)[:, None], h * (1 + value.to(h)), h)
        out: Tensor = self.head(h)
        return out


@pytest.mark.parametrize("kind", ["mask", "unique"])
def test_a_network_whose_shapes_follow_values_is_not_linearized(
    kind: str, device: torch.device
) -> None:
    """A program traced with one batch would be silently wrong for the next."""
    x = random_inputs(40)
    x[:32, 0] = x[:32, 0].abs()  # the first batch knows one kind only
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ByValue(kind)
    objective = over(model, x, device)
    with pytest.raises(SpectraError, match="depends on values"):
        choose_way(objective, choose_product(objective), MUCH, product="linearized")


def test_a_program_that_holds_for_its_first_batch_alone_is_found_out(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is over other samples than those that the program was traced with."""
    objective, choice = setting(device)
    multiply, first = KeptProducts.product, dict[KeptProducts, Objective]()

    def stuck(kept: KeptProducts, now: Objective, vector: Tensor) -> Tensor:
        return multiply(kept, first.setdefault(kept, now), vector)

    choose_way(objective, choice, MUCH, product="linearized")
    monkeypatch.setattr(KeptProducts, "product", stuck)
    with pytest.raises(SpectraError, match=r"which cannot be had here.* away from"):
        choose_way(objective, choice, MUCH, product="linearized")


@torch.library.custom_op("spectra_tests::clipped", mutates_args=())
def clipped(x: Tensor) -> Tensor:
    """Prepare inputs by an operation that no one has described by shapes alone."""
    return x.clamp(-1, 1)


def test_an_operation_that_needs_real_values_is_traced_with_a_batch(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    modes, make_fx = [], tracing.make_fx

    def watched(f: Callable[..., object], tracing_mode: str = "real", **more: bool) -> object:
        modes.append(tracing_mode)
        return make_fx(f, tracing_mode=tracing_mode, **more)

    monkeypatch.setattr(tracing, "make_fx", watched)

    class Clipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(clipped(x)).tanh()
            return out

    objective = over(Clipping(), random_inputs(40), device)
    choice = choose_product(objective)
    way = choose_way(objective, choice, MUCH, product="linearized")
    assert modes[:2] == ["fake", "real"]
    v = torch.ones(objective.dim, dtype=torch.float64, device=device)
    plain = objective.product(v, choice.path)
    assert way.kept is not None
    assert float((way.kept.product(objective, v) - plain).norm() / plain.norm()) < 1e-12


def test_running_out_of_memory_in_the_trial_is_not_taken_for_success(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    def scarce(*_: object) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(KeptProducts, "_sum", scarce)
    objective, choice = setting(device)
    with pytest.raises(SpectraError, match="out of memory"):
        choose_way(objective, choice, MUCH, product="linearized")


def test_a_wrong_compiler_is_found_out(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    def faulty(half: Callable[..., tuple[Tensor, ...]], **_: object) -> Callable[..., object]:
        return lambda *given: tuple(
            1.005 * part if part.is_floating_point() else part for part in half(*given)
        )

    monkeypatch.setattr(torch, "compile", faulty)
    objective, choice = setting(device, dtype=torch.float32)
    with pytest.raises(SpectraError, match="away from reverse-over-forward"):
        choose_way(objective, choice, MUCH, product="compiled")


def test_precisions_that_nobody_proved_stay_with_the_plain_path(device: torch.device) -> None:
    objective, choice = setting(device, dtype=torch.float32)
    low = objective.recut(dtype=torch.bfloat16)
    with pytest.raises(SpectraError, match="only in float32 and float64"):
        choose_way(low, choice, MUCH, product="linearized")


def test_the_error_of_tf32_is_measured_where_it_is_used(device: torch.device) -> None:
    objective, choice = setting(device, dtype=torch.float32)
    exact = choose_way(objective, choice, MUCH, product=choice.path)
    assert not any(note.startswith("tf32") for note in exact.notes)
    reduced = choose_way(replace(objective, tf32=True), choice, MUCH, product=choice.path)
    assert any(note.startswith("tf32") for note in reduced.notes) == (device.type == "cuda")


@pytest.mark.parametrize("wrong", [False, True])
def test_tf32_neither_costs_a_way_its_proof_nor_hides_what_is_wrong(
    wrong: bool, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Two products in TF32 may be percents apart; in float32 the same program is not."""
    objective, choice = setting(device, dtype=torch.float32)
    plain, fast = Objective.product, KeptProducts.product
    draw = torch.Generator().manual_seed(0)

    def rounded(product: Tensor, tf32: bool) -> Tensor:
        noise = torch.randn(product.shape, generator=draw).to(product)
        return product + (0.03 * tf32) * product.norm() * noise / noise.norm()

    def multiply(kept: KeptProducts, part: Objective, vector: Tensor) -> Tensor:
        product = fast(kept, part, vector)
        if wrong and part.dtype == torch.float32:  # as if a compiler were
            product = 1.005 * product
        return rounded(product, part.tf32)

    monkeypatch.setattr(KeptProducts, "product", multiply)
    monkeypatch.setattr(
        Objective, "product", lambda self, *given: rounded(plain(self, *given), self.tf32)
    )
    objective = replace(objective, tf32=True)
    if wrong:
        with pytest.raises(SpectraError, match="away from"):
            choose_way(objective, choice, MUCH, product="linearized")
    else:
        assert choose_way(objective, choice, MUCH, product="linearized").kept is not None


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_product_agrees_in_float64_and_does_not_compile_for_a_ragged_batch(
    device: torch.device,
) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )
    x = torch.randn(11, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = Objective.of(model, (x, torch.arange(11) % CLASSES), dtype=torch.float64, device=device)
    v = torch.ones(H.dim, dtype=torch.float64, device=device)
    kept = KeptProducts("compiled", H, "double-backward", sizes=(4,))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    expected = H.product(v, "double-backward")
    for _ in range(2):
        assert float((kept.product(H, v) - expected).norm() / expected.norm()) < 1e-10
    part = H.select(torch.arange(5))  # another class: the same shapes
    off = kept.product(part, v) - part.product(v, "double-backward")
    assert float(off.norm()) < 1e-10
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1  # the second half
    nothing_kept = KeptProducts("compiled", H, "double-backward", sizes=(4,), budget=0)
    assert torch.equal(nothing_kept.product(H, v), kept.product(H, v))


def test_no_more_samples_are_taken_at_once_than_fit_or_are_asked_for() -> None:
    many = Work([1000], 10)
    few = over(nn.Linear(4, CLASSES), random_inputs(9), torch.device("cpu"))
    few = replace(few, batching=Batching(4))
    assert ways._sizes(few, many) == (4,)
    assert ways._sizes(replace(few, batching=Batching(100)), many) == (40,)
    on_gpu = replace(few, device=torch.device("cuda"))
    assert ways._sizes(on_gpu, many) == (4,)
    assert ways._sizes(replace(on_gpu, batching=Batching(100)), many) == (100, 64)
    assert ways._sizes(replace(on_gpu, batching=Batching(2048)), many) == (512, 64)
