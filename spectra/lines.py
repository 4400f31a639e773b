"""Messages between the process that leads and the others, while each computes parts of its own.

Nobody waits there for an answer that may take hours: a thread at each end sends a sign of life
every few seconds, and another listens. So a process that has ended is noticed at once, as its
connection closes, and one that computes is not taken for it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from spectra.processes import LostProcess, Processes

BEAT = 5.0  # seconds between signs of life
_SILENCE: list[Any] = [None]  # told from others by identity
PATIENCE = 0.05  # seconds between two looks at what has come


class Post(Protocol):
    """What two processes have to understand to write to one another; see `processes.Processes`."""

    def send(self, message: object, other: int) -> None:
        """Send a small object to another process."""

    def receive(self, other: int) -> Any:
        """Wait for what another process sends."""


@contextlib.contextmanager
def attended(processes: Processes | None) -> Iterator[Callable[[object], None]]:
    """Let the other processes, which `attend`, know that this one, if it leads, is at work.

    Gives what tells them the one thing that they wait for.
    """
    lines = []
    if processes is not None and processes.leads:
        lines = [Line(processes, other) for other in range(1, processes.size)]

    def say(message: object) -> None:
        for line in lines:
            line.say(message)

    with opened(lines):
        yield say


@contextlib.contextmanager
def opened(lines: Sequence[Line]) -> Iterator[None]:
    """Close lines at the end of a block; on an error fall silent, as one who is lost."""
    try:
        yield
    except BaseException:
        for line in lines:
            line.abandon()
        raise
    for line in lines:
        line.close()


def attend(processes: Processes) -> Any:
    """Wait, for hours if need be, for what the leading process has to say."""
    line = Line(processes, 0)
    while not (heard := line.heard()):
        time.sleep(PATIENCE)
    line.close()
    return heard[0]


class Line:
    """One end of a connection to another process, which opens the other end and closes it, too."""

    def __init__(self, processes: Post, other: int, beat: float = BEAT) -> None:
        self._processes, self._other, self._beat = processes, other, beat
        self._said: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lost: LostProcess | None = None
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._send, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def say(self, message: object) -> None:
        """Send an object, sooner or later.

        Raises:
            LostProcess: the other process has ended.
        """
        self.require()
        self._said.put([message])

    def heard(self) -> list[Any]:
        """Take what has come since the last time.

        Raises:
            LostProcess: the other process has ended, and all that it had sent is taken.
        """
        lost = self._lost  # asked first: nothing comes after it
        found = []
        while not self._heard.empty():
            found.append(self._heard.get())
        if lost is not None and not found:
            raise lost
        return found

    def close(self) -> None:
        """Say that nothing more will come, and wait until the other process says so, too.

        Raises:
            LostProcess: the other process has ended.
        """
        self._said.put(None)
        for thread in self._threads:
            thread.join()
        self.require()

    def abandon(self) -> None:
        """Send nothing more, not even a sign of life."""
        self._said.put(_SILENCE)

    def require(self) -> None:
        """Raise LostProcess if the other process has ended."""
        if self._lost is not None:
            raise self._lost

    def _send(self) -> None:
        try:
            message: list[Any] | None = []
            while message is not None:
                try:
                    message = self._said.get(timeout=self._beat)
                except queue.Empty:
                    message = []  # alive
                if message is _SILENCE:
                    return
                self._processes.send(message, self._other)
        except LostProcess as error:
            self._lost = error

    def _listen(self) -> None:
        try:
            while (message := self._processes.receive(self._other)) is not None:
                for content in message:
                    self._heard.put(content)
        except LostProcess as error:
            self._lost = error
