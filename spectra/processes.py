"""Several processes, one analysis: the only room that knows torch.distributed.

The first process leads: it alone makes decisions, draws the bar, prints and writes. The others hold
their share of the samples and add what they are asked for, or compute whole parts (`together`). So
no two processes ever have to agree on a rounding, and their machines may differ.

Every process starts with the variables that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT; LOCAL_RANK and LOCAL_WORLD_SIZE on each machine).

References:
    https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from spectra.errors import SpectraError, first_line, out_of_memory

# Of one wait for another process. A process that has ended is noticed at once, for its connections
# are closed; this is for one that stands still, or whose machine cannot be reached any more. It is
# no shorter because nobody can tell that from work: while the others wait, the leader classifies
# all samples, measures and compiles products, orthogonalises, writes; and a slow disk lets one
# machine open its data minutes after the others. To end sooner what seems to stand still, press
# Ctrl-C: --resume goes on after the last finished class and probe.
TIMEOUT = timedelta(minutes=30)

# Of the wait for others to start, before a line says what is waited for: a command within another
# project's job finds that job's variables, and nobody else comes.
HINT = 10.0  # seconds

# Of the leader's wait for the others at the end: they are there within moments, or are lost.
FAREWELL = 10.0  # seconds


class LostProcess(SpectraError):
    """Tell that another process of this run has ended: no sum is whole any more."""


@dataclass(frozen=True, eq=False)
class Processes:
    """The processes of this run, seen from one of them."""

    rank: int  # 0 leads
    size: int
    local_rank: int  # on this machine
    local_size: int
    store: Any  # a torch.distributed.Store: what all processes can read and count in
    alike: bool = True  # all have a GPU, or none has

    @staticmethod
    def start(timeout: timedelta = TIMEOUT) -> Processes | None:
        """Join the processes that torchrun has started; None in a plain run.

        Args:
            timeout: of the start, and of every wait for another process.

        Raises:
            SpectraError: the others do not come.
        """
        given = os.environ
        if int(given.get("WORLD_SIZE", "1")) == 1:
            return None
        from torch.distributed.rendezvous import rendezvous

        told = f"waiting for {given['WORLD_SIZE']} processes; for a run of one unset WORLD_SIZE"
        hint = threading.Timer(HINT, print, [told], {"file": sys.stderr, "flush": True})
        hint.daemon = True
        if given.get("RANK") == "0":
            hint.start()
        try:
            store, rank, size = next(rendezvous("env://", timeout=timeout))
            on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
            store.set(f"spectra/on_gpu/{rank}", str(on_gpu))
            found = {store.get(f"spectra/on_gpu/{other}") for other in range(size)}
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=timeout,
            )
        except (RuntimeError, ValueError) as error:
            raise SpectraError(
                f"got WORLD_SIZE={given['WORLD_SIZE']} and no connection to the other processes "
                f"({_line(error)}), expected all of them; start them with torchrun, or unset "
                "WORLD_SIZE for a plain run"
            ) from error
        finally:
            hint.cancel()
        local = int(given.get("LOCAL_RANK", rank)), int(given.get("LOCAL_WORLD_SIZE", size))
        joined = Processes(rank, size, *local, store, alike=len(found) == 1)
        joined._listen()
        return joined

    @property
    def leads(self) -> bool:
        """Tell whether this process decides, prints and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Choose this process's device: a GPU of its own for each where "auto" or "cuda" is asked.

        Raises:
            SpectraError: one device for all, fewer GPUs than processes on this machine, or none
                on another one.
        """
        if name.startswith("cuda:"):
            raise SpectraError(
                f"got the device {name!r} for {self.size} processes, expected cuda, auto or cpu: "
                "they would wait for one another on one GPU; leave the number out"
            )
        if name == "cpu":
            return name
        if not self.alike:
            raise SpectraError(
                f"got the device {name!r} and a GPU in some processes only, expected one in each: "
                "sums on a GPU and on a CPU would wait for one another; use --device cpu, or leave "
                "out the machines without"
            )
        if not torch.cuda.is_available():
            return name
        if self.local_size > (count := torch.cuda.device_count()):
            raise SpectraError(
                f"got {self.local_size} processes on a machine with {count} GPU(s), expected one "
                f"GPU for each; use --nproc-per-node {count}, or --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def tell(self, message: object) -> None:
        """Send a small object from the leader to all others, which `hear` it."""
        with _watched():
            dist.broadcast_object_list([message], src=0, device=torch.device("cpu"))

    def hear(self) -> Any:
        """Receive what the leader tells."""
        heard: list[Any] = [None]
        with _watched():
            dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
        return heard[0]

    def send(self, message: object, other: int) -> None:
        """Send a small object to one other process, which `receive`s it; from any thread."""
        with _watched():
            dist.send_object_list([message], dst=other, device=torch.device("cpu"))

    def receive(self, other: int) -> Any:
        """Receive what one other process sends; from any thread."""
        heard: list[Any] = [None]
        with _watched():
            dist.recv_object_list(heard, src=other, device=torch.device("cpu"))
        return heard[0]

    def share(self, tensor: Tensor) -> Tensor:
        """Give all processes the leader's values, in place."""
        with _watched():
            dist.broadcast(tensor, src=0)
        return tensor

    def add(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; the sum is the leader's alone."""
        with _watched():
            dist.reduce(tensor, dst=0)
        return tensor

    def first_to_tell(self) -> bool:
        """Tell whether no process has said yet why the run ends: one line is enough."""
        try:
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            return bool(self.store.add(f"spectra/told/{attempt}", 1) == 1)
        except RuntimeError:  # the store went with its process: better twice than never
            return True

    def run(self, command: Callable[[Processes], object]) -> None:
        """Run a command; leave what nobody expected where torchrun looks for causes."""
        from torch.distributed.elastic.multiprocessing.errors import record

        stopped: list[Exception] = []

        def watched() -> None:
            try:
                command(self)
            except (SpectraError, OSError) as error:
                stopped.append(error)  # one line will tell
            except Exception as error:
                if out_of_memory(error):
                    stopped.append(error)
                    return
                self.first_to_tell()  # the traceback does
                raise

        record(watched)()
        if stopped:
            raise stopped[0]

    def close(self, code: int) -> NoReturn:
        """End this process, with its group as it is: no process has a use for the others any more.

        Nothing is taken down: a group that has lost a process may wait for it for ever, and gloo's
        threads may abort a process whose peers leave while it does.

        Args:
            code: exit code of this process.
        """
        try:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # a full disk, a closed pipe
                    stream.flush()
            with contextlib.suppress(RuntimeError):  # the store went with its process
                self.store.set(f"spectra/gone/{self.rank}", "")
                # Without torchrun the leader's process holds the store, and whoever is still to
                # ask who tells needs it.
                if self.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                    others = [f"spectra/gone/{other}" for other in range(self.size)]
                    end = time.monotonic() + FAREWELL
                    while time.monotonic() < end and not self.store.check(others):
                        time.sleep(0.02)
        finally:
            os._exit(code)

    def _listen(self) -> None:
        """End with one line when torchrun sends SIGTERM, as it does once a process is lost.

        From a thread of its own: the main one may be waiting for a GPU that waits for the lost
        process, and sees no signal there.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def wait() -> None:
            while reader.recv(1) != bytes([signal.SIGTERM]):
                pass
            if self.first_to_tell():
                print(f"\n{_lost('SIGTERM')}", file=sys.stderr, flush=True)
            writer.close()
            os._exit(2)

        threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Turn what a lost process leaves behind into one error."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(_line(error)) from error


def _lost(why: str) -> LostProcess:
    return LostProcess(
        f"got no answer from another process of this run ({why}), expected all of them to the end: "
        "a sum without its samples would be wrong; what is finished is kept, and the same command "
        "with --resume goes on there, in any number of processes"
    )


def _line(error: Exception) -> str:
    """Take the first sentence, without the place in torch's sources."""
    return re.sub(r"^\[\S*\] ", "", first_line(error, None)).split(". ")[0][:160]
