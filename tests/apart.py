"""Commands in processes of their own, forked from one that has imported most of what they need."""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("spectra.analysis", "spectra.training", "torch.distributed", "torch._dynamo"),
        *("sklearn.datasets", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf"),
    ]
)


class Apart:
    """`python -m MODULE ARGUMENTS` on one thread of a process of its own, seconds sooner."""

    def __init__(self, module: str, *arguments: str, **environment: str) -> None:
        given = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        self._folder = tempfile.TemporaryDirectory(prefix="apart-")
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        for file in self._files:
            file.touch()  # a process may end before it has begun to write
        self._process = _FORKS.Process(
            target=_run, args=(module, arguments, given | environment, self._files), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Give the exit code, None while it runs; minus the signal that has ended it."""
        self._code = self._process.exitcode if self._code is None else self._code
        return self._code

    def kill(self, sent: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, sent)

    @property
    def told(self) -> tuple[str, str]:
        """What it has written to its two outputs so far."""
        out, err = (file.read_text(encoding="utf-8") for file in self._files)
        return out, err

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end, once; give what it wrote to its two outputs."""
        self._process.join(timeout)
        told = self.told
        assert self.poll() is not None, f"not done after {timeout} s: {told}"
        self._process.close()
        self._folder.cleanup()
        return told


def _run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[Path]
) -> None:
    for file, stream in zip(files, (sys.stdout, sys.stderr), strict=True):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), stream.fileno())
    # A suite that was started in the background ignores the signal, and its children would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(importlib.import_module(module).main(list(arguments)))
