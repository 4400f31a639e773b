"""What long work tells whoever waits for it: what it is at, and how far."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What a progress bar has to understand."""

    def begin(self, products: int, work: int) -> None:
        """Say how many products there will be, and how many samples they pass over."""

    def tick(self, label: str, products: int, work: int) -> None:
        """Say that so many products over so many samples are done."""


@runtime_checkable
class Announcing(Protocol):
    """What it may understand beside."""

    def stage(self, what: str) -> AbstractContextManager[object]:
        """Say what a block does that comes before the products."""


class Silent:
    """Nobody waits."""

    def begin(self, products: int, work: int) -> None:
        """Say nothing."""

    def tick(self, label: str, products: int, work: int) -> None:
        """Say nothing."""


def stage(progress: Progress | None, what: str) -> AbstractContextManager[object]:
    """Say what a block does, to a progress bar that understands it."""
    return progress.stage(what) if isinstance(progress, Announcing) else nullcontext()
