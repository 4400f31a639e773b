"""Commands in processes of their own, forked from one that has imported torch already."""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["spectra.analysis", "spectra.training", "torch.distributed"])


class Apart:
    """`python -m MODULE ARGUMENTS` in a process of its own, seconds sooner."""

    def __init__(self, module: str, *arguments: str, **environment: str) -> None:
        self._told = tempfile.TemporaryDirectory()
        self._process = _FORKS.Process(
            target=_run, args=(module, arguments, environment, self._told.name), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Give the exit code, None while it runs; minus the signal that has ended it."""
        self._code = self._process.exitcode if self._code is None else self._code
        return self._code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end, once; give what it wrote to its two outputs."""
        self._process.join(timeout)
        told = self.told
        assert self.poll() is not None, f"not done after {timeout} s: {told}"
        self._process.close()
        self._told.cleanup()
        return told

    @property
    def told(self) -> tuple[str, str]:
        out, err = (Path(self._told.name, name).read_text("utf-8") for name in ("out", "err"))
        return out, err

    def kill(self, sent: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, sent)


def _run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str
) -> None:
    for name, target in (("out", sys.stdout), ("err", sys.stderr)):
        with open(Path(folder, name), "wb") as file:
            os.dup2(file.fileno(), target.fileno())
    # A suite that was started in the background ignores the signal, and its children would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for rank in ("RANK", "WORLD_SIZE"):
        os.environ.pop(rank, None)
    os.environ.update(environment)
    sys.exit(importlib.import_module(module).main(list(arguments)))
