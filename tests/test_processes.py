"""Several processes: shares that add up, one voice, and what a lost process leaves behind."""

import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectra import (
    Analysis,
    Plan,
    SpectraError,
    analyze,
    certify,
    esd,
    figures,
    load_checkpoint,
    trajectory,
)
from spectra.data import Samples, open_data
from spectra.hessian import HessianOperator, Objective, choose_product
from spectra.hessian.choice import central_difference, of_logits
from spectra.hessian.kept import KeptProducts
from spectra.hessian.shares import _seed_of, assist, led, share_of
from spectra.lines import Line, opened
from spectra.processes import LostProcess, Processes
from spectra.resuming import describe, take_over
from spectra.sharing import share_out
from tests.apart import Apart
from tests.made_up import train_digits

SGD = "checkpoints/digits-lt-ce-drw-sgd.pt"


class Threads:
    """Stand in for `Processes` within one process: a thread each, that wait for one another.

    One computes at a time: the levels of forward-mode differentiation are those of a process.
    """

    turn = threading.Lock()

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = rank, size
        self.board, self.barrier = board, barrier

    def _exchange(self, mine: Any) -> list[Any]:
        self.board[self.rank] = mine
        self._wait()
        seen = list(self.board)
        self._wait()
        return seen

    def _wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait(30)
        finally:
            self.turn.acquire()

    def tell(self, message: object) -> None:
        self._exchange(message)

    def hear(self) -> Any:
        return self._exchange(None)[0]

    def share(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(self._exchange(tensor.clone())[0])

    def add(self, tensor: Tensor) -> Tensor:
        parts = self._exchange(tensor.clone())
        assert len({(part.shape, part.dtype) for part in parts}) == 1
        total = torch.stack(parts).sum(0)
        return tensor.copy_(total if self.rank == 0 else torch.full_like(total, torch.nan))


Built = tuple[Objective, KeptProducts | None]  # each process builds its own


def shared(build: Callable[[], Built], size: int, work: Callable[[Objective, Any], Any]) -> Any:
    """Let the first of so many processes work with an objective that all of them share."""
    board, barrier = [None] * size, threading.Barrier(size)
    failed: list[BaseException] = []

    def follow(rank: int) -> None:
        try:
            with Threads.turn:
                objective, kept = build()
                assist(objective, kept, Threads(rank, size, board, barrier))
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    others = [threading.Thread(target=follow, args=(rank,), daemon=True) for rank in range(1, size)]
    for other in others:
        other.start()
    leader = Threads(0, size, board, barrier)
    try:
        with Threads.turn:
            objective, kept = build()
            result = work(led(objective, leader), kept)
            leader.tell(None)
    except threading.BrokenBarrierError:
        raise failed[0] from None
    except BaseException:
        barrier.abort()
        raise
    for other in others:
        other.join(30)
    assert not failed
    return result


def small(count: int = 7) -> Objective:
    """An objective over a few samples, weighted, that no symmetry makes easy."""
    draw = torch.Generator().manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    x = torch.randn(count, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (count,), generator=draw)
    objective = Objective.of(network, (x, y), dtype=torch.float64, batch_size=2)
    weights = 0.5 + torch.rand(count, generator=draw, dtype=torch.float64)
    return replace(objective, weights=weights, normalizer=float(weights.sum()))


def direction(objective: Objective) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(objective.dim, generator=draw, dtype=torch.float64).to(objective.dtype)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_shares_of_any_size_give_the_mean_of_one_process(size: int) -> None:
    """P17: unequal shares, micro-batches that do not fit them, and more processes than samples."""
    alone = small()
    v = direction(alone)

    def work(objective: Objective, _: Any) -> list[Any]:
        return [
            objective.value(),
            objective.value(shift=0.1 * v),
            objective.gradient(shift=0.1 * v),
            *(objective.product(v, path) for path in ("double-backward", "reverse-over-forward")),
            objective.recut(batch_size=3).product(v, "forward-over-reverse"),
            replace(objective, tf32=False).product(v, "double-backward"),
            objective.count,
        ]

    for ours, theirs in zip(
        shared(lambda: (small(), None), size, work), work(alone, None), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_padding_row_that_is_not_zero_goes_to_the_other_processes_as_it_is() -> None:
    """Derivatives are zero there; the parameter is not, and the forward pass reads it."""

    def build() -> Built:
        draw = torch.Generator().manual_seed(1)
        table = torch.randn(6, 4, generator=draw, dtype=torch.float64)
        words = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=0)
        network = nn.Sequential(words, nn.Flatten(), nn.Linear(12, 2).double())
        with torch.no_grad():
            network[2].weight.copy_(torch.randn(2, 12, generator=draw, dtype=torch.float64))
            network[2].bias.zero_()
        x = torch.tensor([[0, 1, 2], [3, 0, 0], [4, 5, 0], [1, 1, 3], [0, 2, 5]])
        y = torch.tensor([0, 1, 0, 1, 1])
        return Objective.of(network, (x, y), dtype=torch.float64, batch_size=2), None

    alone, _ = build()

    def work(objective: Objective, _: Any) -> list[Any]:
        v = direction(alone)
        return [objective.value(), objective.gradient(), objective.product(v, "double-backward")]

    for ours, theirs in zip(shared(build, 2, work), work(alone, None), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_shares_are_all_samples_once() -> None:
    held = [share_of(small(), rank, 3).samples.positions for rank in range(3)]
    assert [len(part) for part in held] == [3, 2, 2]
    rows = torch.cat([share_of(small(), rank, 3).weights for rank in range(3)])
    assert sorted(rows.tolist()) == sorted(small().weights.tolist())


def test_a_process_without_samples_adds_nothing() -> None:
    empty = share_of(small(2), 2, 3)
    assert len(empty.samples) == 1
    assert empty.weights.tolist() == [0.0]
    assert empty.normalizer == small(2).normalizer


@pytest.mark.parametrize("name", ["kept-graph", "linearized"])
@pytest.mark.parametrize("size", [2, 9])
def test_kept_products_are_shared_too(name: Any, size: int) -> None:
    v = direction(small())

    def build() -> Built:
        objective = small()
        return objective, KeptProducts(name, objective, "double-backward", sizes=(4, 2))

    def work(objective: Objective, kept: KeptProducts) -> list[Tensor]:
        return [kept.product(objective, v), kept.product(objective, 2 * v), objective.gradient()]

    alone = small()
    h = alone.product(v, "double-backward")
    for ours, theirs in zip(shared(build, size, work), [h, 2 * h, alone.gradient()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fails_in", ["leader", "other"])
def test_a_process_that_runs_out_of_memory_changes_no_sum(
    fails_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each halves its own batches, and gives up keeping, while the others wait for its one sum."""
    v = direction(small())
    own_thread = threading.get_ident()
    failed: list[int] = []
    plain = KeptProducts._sum

    def scarce(self: KeptProducts, objective: Objective, vector: Tensor) -> Tensor:
        if (threading.get_ident() == own_thread) == (fails_in == "leader") and len(failed) < 2:
            failed.append(1)
            raise torch.OutOfMemoryError("made up")
        return plain(self, objective, vector)

    monkeypatch.setattr(KeptProducts, "_sum", scarce)

    def build() -> Built:
        objective = small()
        return objective, KeptProducts("linearized", objective, "double-backward", sizes=(2,))

    ours = shared(build, 2, lambda objective, kept: kept.product(objective, v))
    assert len(failed) == 2
    torch.testing.assert_close(ours, small().product(v, "double-backward"), rtol=1e-12, atol=1e-14)


def test_the_certificate_is_that_of_one_process() -> None:
    """Two float64 passes over a float32 objective, both summed over all processes."""
    alone = small().recut(dtype=torch.float32, backwards=False, batch_size=2)
    choice = choose_product(alone)
    v = direction(alone)

    def work(objective: Objective, _: Any) -> Any:
        return certify(HessianOperator.of(objective, choice), v)

    def build() -> Built:
        return small().recut(dtype=torch.float32, backwards=False, batch_size=2), None

    ours, theirs = shared(build, 3, work), work(alone, None)
    assert ours.rayleigh_quotient == pytest.approx(theirs.rayleigh_quotient, rel=1e-12)
    assert ours.residual == pytest.approx(theirs.residual, rel=1e-12)
    assert ours.noise_floor == pytest.approx(theirs.noise_floor, rel=0.5)
    assert ours.negative_curvature == theirs.negative_curvature


def test_the_logits_share_of_the_noise_floor_is_summed_over_all_processes() -> None:
    v = direction(small())

    def work(objective: Objective, _: Any) -> list[Tensor]:
        function = of_logits(objective)
        return [function.product(v, "double-backward"), objective.product(v, "double-backward")]

    ours = shared(lambda: (small(), None), 3, work)
    for mine, alone in zip(ours, work(small(), None), strict=True):
        torch.testing.assert_close(mine, alone, rtol=1e-12, atol=1e-14)


def test_parameters_that_the_leader_moves_are_moved_everywhere() -> None:
    """A central difference of gradients, and products after it at the old place."""
    v = direction(small())
    v = v / v.norm()

    def work(objective: Objective, _: Any) -> list[Tensor]:
        before = objective.product(v, "double-backward")
        difference = central_difference(objective, v)[0]
        return [before, difference, objective.product(v, "double-backward")]

    before, difference, after = shared(lambda: (small(), None), 2, work)
    torch.testing.assert_close(before, small().product(v, "double-backward"))
    torch.testing.assert_close(difference, before, rtol=1e-5, atol=1e-6)
    assert torch.equal(before, after)


def test_an_error_of_the_leader_leaves_the_others_in_step() -> None:
    """One class that fails must not stop the next ones."""
    v = direction(small())

    def work(objective: Objective, _: Any) -> Tensor:
        def fail() -> Tensor:
            raise SpectraError("made up")

        with pytest.raises(SpectraError, match="made up"):
            objective.mean("double-backward", objective.rows.here(), v, fail)
        return objective.product(v, "double-backward")

    ours = shared(lambda: (small(), None), 2, work)
    torch.testing.assert_close(ours, small().product(v, "double-backward"), rtol=1e-12, atol=1e-14)


def images(count: int = 6) -> Objective:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(0, 255, (count, 1, 6, 6), generator=draw).to(torch.uint8)
    y = torch.arange(count) % 2
    samples = Samples(x, y, 2, ("a", "b"), (0.5,), (0.5,), augmentation="crop:1")
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    torch.manual_seed(0)
    nn.init.normal_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    return Objective.of(network, samples, dtype=torch.float64, batch_size=3)


def test_no_two_processes_draw_alike() -> None:
    assert len({7, *(_seed_of(7, rank) for rank in (1, 2, 3))}) == 4


def test_augmentation_that_is_drawn_anew_starts_again_from_its_seed() -> None:
    """An interrupted probe is made again with the same draws in every process."""
    v = direction(images())

    def work(objective: Objective, _: Any) -> list[Tensor]:
        draws = torch.Generator()
        moving, found = objective.redrawn(draws), []
        for seed in (7, 8, 7):
            draws.manual_seed(seed)
            found += [moving.product(v, "double-backward") for _ in range(2)]
        return found

    first, second, other, _, again, again_second = shared(lambda: (images(), None), 2, work)
    assert torch.equal(first, again)
    assert torch.equal(second, again_second)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_parts_that_fill_no_batch_are_given_out_evenly_and_larger_ones_are_shared() -> None:
    sizes = {f"class {c}": max(5, int(1280 * (1 - c / 1000) ** 4)) for c in range(1000)}
    owners = share_out({"overall": 5000, **sizes}, "cuda", 8)
    assert owners.keys() == sizes.keys()
    loads = [sum(n for label, n in sizes.items() if owners[label] == rank) for rank in range(8)]
    assert max(loads) - min(loads) < 5
    assert share_out({"a": 512 * 8, "b": 7}, "cuda", 8) == {"b": 0}


def test_a_small_part_is_shared_where_the_others_would_wait_for_its_process() -> None:
    assert share_out({"a": 60, "b": 1}, "cpu", 2) == {"b": 0}
    assert share_out({"a": 60, "b": 59}, "cpu", 2) == {"a": 0, "b": 1}
    assert share_out({}, "cpu", 2) == {}


class Posts:
    """Two queues in the place of a connection; a lost process is one whose messages say so."""

    def __init__(self, out: queue.Queue[Any], back: queue.Queue[Any]) -> None:
        self.out, self.back = out, back

    def send(self, message: object, other: int) -> None:
        self.out.put(message)

    def receive(self, other: int) -> Any:
        message = self.back.get(timeout=30)
        if isinstance(message, LostProcess):
            raise message
        return message


def connected() -> tuple[Posts, Posts]:
    there, back = queue.Queue[Any](), queue.Queue[Any]()
    return Posts(there, back), Posts(back, there)


def test_a_line_brings_all_messages_in_order_until_both_ends_have_closed_it() -> None:
    ours, theirs = connected()
    one, two = Line(ours, 1, beat=0.01), Line(theirs, 0, beat=0.01)
    for word in ("a", ["b"], None):
        two.say(word)
    waiting = threading.Thread(target=two.close)
    waiting.start()
    time.sleep(0.1)
    assert waiting.is_alive()  # until the other end is closed
    one.close()
    waiting.join(30)
    assert not waiting.is_alive()
    assert one.heard() == ["a", ["b"], None]
    assert two.heard() == []


def test_a_silent_line_carries_signs_of_life_and_nothing_that_is_heard() -> None:
    ours, theirs = connected()
    line = Line(ours, 1, beat=0.01)
    assert [theirs.receive(0) for _ in range(3)] == [[], [], []]
    assert line.heard() == []
    theirs.send(None, 0)
    line.close()


def test_an_error_ends_the_signs_of_life() -> None:
    ours, _ = connected()
    line = Line(ours, 1, beat=0.01)
    with pytest.raises(ValueError, match="made up"), opened([line]):
        raise ValueError("made up")
    line._threads[0].join(30)
    assert not line._threads[0].is_alive()
    said = [ours.out.get() for _ in range(ours.out.qsize())]
    assert None not in said  # which would mean that all is done
    ours.back.put(None)
    line._threads[1].join(30)


def test_a_lost_process_is_told_after_what_it_had_sent() -> None:
    ours, theirs = connected()
    line = Line(ours, 1)
    for message in (["a"], [], ["b"], LostProcess("made up")):
        theirs.send(message, 0)
    line._threads[1].join(30)
    assert line.heard() == ["a", "b"]
    for further in (line.heard, line.close, partial(line.say, "c")):
        with pytest.raises(LostProcess, match="made up"):
            further()


def test_a_plain_run_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Processes.start() is None
    assert not torch.distributed.is_initialized()


def one_of(size: int, **options: Any) -> Processes:
    return Processes(0, size, 0, size, None, **options)


def test_every_process_of_a_machine_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one_of(2).device("cpu") == "cpu"
    with pytest.raises(SpectraError, match="leave the number out"):
        one_of(2).device("cuda:0")
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert replace(one_of(2), rank=5, local_rank=1).device("auto") == "cuda:1"
    assert chosen == [1]
    with pytest.raises(SpectraError, match="--nproc-per-node 2"):
        one_of(3).device("auto")


def test_a_gpu_in_some_processes_only_is_refused_before_they_wait_for_one_another() -> None:
    mixed = one_of(2, alike=False)
    assert mixed.device("cpu") == "cpu"
    with pytest.raises(SpectraError, match="a GPU in some processes only"):
        mixed.device("auto")


# From here on: real processes, gloo, the command itself.


def start(
    rank: int,
    size: int,
    port: int,
    flags: list[str],
    repository: Path,
    *command: str,
) -> Apart:
    command = command or ("spectra.esd", str(repository / SGD))
    given = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "MPLBACKEND": "agg"}
    return Apart(*command, *flags, **given)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alone(flags: list[str], folder: Path, repository: Path) -> dict[str, Any]:
    assert esd.main([str(repository / SGD), *flags, "--out", str(folder)]) == 0
    return json.loads((folder / "esd.json").read_text(encoding="utf-8"))


def require_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare every number; those that are rounding themselves, by their size beside H."""
    assert [e["label"] for e in ours["spectra"]] == [e["label"] for e in theirs["spectra"]]
    for mine, other in zip(ours["spectra"], theirs["spectra"], strict=True):
        size = other["lambda_max"]
        compare(mine, other, size, mine["label"])
    for key in ("checkpoint", "data", "device", "versions"):
        assert ours[key] == theirs[key]
    changed = {k for k, v in theirs["settings"].items() if ours["settings"][k] != v}
    assert changed <= {"processes"}


def compare(mine: Any, other: Any, size: float, where: str) -> None:
    if isinstance(other, dict):
        assert mine.keys() == other.keys(), where
        for key in other:
            compare(mine[key], other[key], size, f"{where}.{key}")
    elif isinstance(other, list):
        assert len(mine) == len(other), where
        for a, b in zip(mine, other, strict=True):
            compare(a, b, size, where)
    elif isinstance(other, float):
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-10 * max(1.0, size)), where
    else:
        assert mine == other, where


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "save", lambda *_: [])


def test_two_processes_under_torchrun_find_what_one_finds(repository: Path, tmp_path: Path) -> None:
    """Shares of 33 and 32 samples; small classes by one process each; one voice for both."""
    flags = ["--overall", "--classes", "7,8,9", "--steps", "8", "--max-samples", "65"]
    flags += ["--dtype", "float64", "--device", "cpu", "--product", "linearized"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "spectra.esd", str(repository / SGD)),
            *(*flags, "--out", str(tmp_path / "two")),
        ],
        capture_output=True,
        text=True,
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("esd.csv") == 1
    assert len(re.findall(r"^\S* *class 8 ", done.stdout, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^ +0% \|", done.stderr, flags=re.MULTILINE)) == 1  # one bar begins
    assert (tmp_path / "two" / "esd.png").exists()
    ours = json.loads((tmp_path / "two" / "esd.json").read_text(encoding="utf-8"))
    assert ours["settings"]["processes"] == 2
    given_out = "class 7, class 8, class 9; the others by all together"
    assert f"computed by one process each: {given_out}" in ours["notes"]
    require_equal(ours, alone([*flags, "--quiet"], tmp_path / "one", repository))


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--classes", "6,7,8,9", "--max-samples", "1"], id="in parts of its own"),
        pytest.param(["--classes", "0,1", "--max-samples", "64"], id="in a sum"),
    ],
)
def test_a_lost_process_ends_the_run_with_one_line_and_resumable_results(
    flags: list[str], repository: Path, tmp_path: Path
) -> None:
    """One process goes on where two have stopped."""
    flags = [*flags, "--steps", "12", "--dtype", "float64", "--device", "cpu", "--quiet"]
    folder, port = tmp_path / "two", free_port()
    both = [start(r, 2, port, [*flags, "--out", str(folder)], repository) for r in (0, 1)]
    deadline = time.monotonic() + 240
    while not (folder / "esd.json").exists() and time.monotonic() < deadline:
        assert both[0].poll() is None, both[0].told
        time.sleep(0.01)
    both[1].kill()
    out, err = both[0].communicate(timeout=120)
    both[1].communicate(timeout=120)
    assert both[0].poll() == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("python -m spectra.esd: got no answer from another process")
    assert "--resume" in err
    before = Analysis.load(folder)
    assert 0 < len(before.finished) < len(flags[1].split(","))
    assert all(spectrum.error is None for spectrum in before.spectra)
    resumed = alone([*flags, "--resume"], folder, repository)
    assert any("computed by 2 process" in note for note in resumed["notes"])
    require_equal(resumed, alone(flags, tmp_path / "one", repository))


def test_more_processes_go_on_with_a_part_that_one_has_begun(
    repository: Path, tmp_path: Path
) -> None:
    """Before the small classes, whose vectors would take the place of its own."""
    checkpoint = load_checkpoint(repository / SGD)
    train, test = (open_data(checkpoint.data, split=split) for split in ("train", "test"))
    made = 0

    class Stop:
        def begin(self, *_: object) -> None:
            pass

        def tick(self, label: str, products: int, work: int) -> None:
            nonlocal made
            made += products
            if made > 16:
                raise KeyboardInterrupt

    plan = Plan(overall=True, classes=(8, 9), steps=8, probes=2, max_samples=65, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        analyze(checkpoint, plan, train=train, test=test, folder=tmp_path, progress=Stop())
    (begun,) = Analysis.load(tmp_path).get("overall").runs
    flags = ["--overall", "--classes", "8,9", "--steps", "8", "--probes", "2", "--device", "cpu"]
    flags += ["--max-samples", "65", "--resume", "--out", str(tmp_path)]
    port = free_port()
    both = [start(r, 2, port, flags, repository) for r in (0, 1)]
    told = [process.communicate(timeout=240) for process in both]
    assert [process.poll() for process in both] == [0, 0], told
    found = Analysis.load(tmp_path)
    assert found.finished == ("overall", "class 8", "class 9")
    first, second = found.get("overall").runs
    assert first.alphas.tolist() == begun.alphas.tolist()  # to the last bit: it was not made again
    assert second.alphas.tolist() != first.alphas.tolist()


def test_an_input_that_cannot_be_used_is_told_once(repository: Path, tmp_path: Path) -> None:
    flags = ["--classes", "11", "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    port = free_port()
    both = [start(r, 2, port, flags, repository) for r in (0, 1)]
    told = [process.communicate(timeout=240)[1] for process in both]
    assert [process.poll() for process in both] == [2, 2]
    assert sum(text.count("\n") for text in told) == 1, told
    assert "0 to 9" in "".join(told)


def test_two_processes_follow_a_run_as_one_does(repository: Path, tmp_path: Path) -> None:
    """Every epoch shared out, one voice; and taken over again where nothing is left to do."""
    run = train_digits(tmp_path / "short")
    flags = ["--classes", "8,9", "--steps", "5", "--dtype", "float64", "--device", "cpu"]
    two, one = tmp_path / "two", tmp_path / "one"
    for more in ([], ["--resume"]):
        port, given = free_port(), [*flags, *more, "--out", str(two)]
        both = [
            start(r, 2, port, given, repository, "spectra.trajectory", str(run)) for r in (0, 1)
        ]
        told = [process.communicate(timeout=400) for process in both]
        assert [process.poll() for process in both] == [0, 0], told
        assert told[0][0].count("trajectory.csv") == 1
        assert told[1] == ("", "")
    assert trajectory.main([str(run), *flags, "--quiet", "--out", str(one)]) == 0
    for epoch in (1, 2, 3):
        ours, theirs = (
            json.loads((f / "short" / f"epoch-{epoch}" / "esd.json").read_text(encoding="utf-8"))
            for f in (two, one)
        )
        assert ours["settings"]["processes"] == 2
        require_equal(ours, theirs)


@pytest.mark.parametrize(
    ("augment", "says"), [("none", "equal to rounding"), ("resample", "with other draws")]
)
def test_what_another_number_of_processes_changes_is_told(
    augment: str, says: str, repository: Path
) -> None:
    checkpoint = load_checkpoint(repository / SGD)
    samples = open_data(checkpoint.data)
    one, two = (
        describe(checkpoint, Plan(augment=augment), samples, None, torch.device("cpu"), processes=n)
        for n in (1, 2)
    )
    assert take_over(one, two).notes == (f"some results were computed by 2 process(es): {says}",)
