"""What a command shows while it works, and how wide its table may be."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectra.processes import Processes

_PATIENCE = 2.0  # seconds in which nothing need be said


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say what a block does, if it takes long."""

    def say() -> None:
        print(f"{what} …", file=sys.stderr, flush=True)

    timer = threading.Timer(_PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # what it is saying comes before whatever is said next


@contextmanager
def shown_bar(
    options: argparse.Namespace, processes: Processes | None = None
) -> Iterator[Bar | None]:
    """Open a bar for a command, None where it is quiet or another process leads; close it."""
    leads = processes is None or processes.leads
    bar = Bar() if leads and not options.quiet else None
    try:
        yield bar
    finally:
        if bar is not None:
            bar.close()


class Bar:
    """A progress bar of samples passed over, which tells products; quick for tail classes, too."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.done = self.total = 0

    def stage(self, what: str) -> AbstractContextManager[None]:
        """Say what is done before the products, under the bar before."""
        self.close()
        return announced(what)

    def begin(self, products: int, work: int) -> None:
        """Open the bar, under the one before."""
        from tqdm import tqdm

        self.close()
        self.done, self.total = 0, products
        self.bar = tqdm(
            total=work,
            unit="sample",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds; a log keeps every line
            bar_format="{desc} {percentage:3.0f}% |{bar}| {postfix} [{elapsed}<{remaining}, "
            "{rate_fmt}]",
        )

    def tick(self, label: str, products: int, work: int) -> None:
        """Count products; the label says where."""
        self.done += products
        self.bar.set_description_str(f"{label:>9}", refresh=False)
        self.bar.set_postfix_str(f"{self.done}/{self.total} products", refresh=False)
        self.bar.update(work)

    def close(self) -> None:
        """Leave the line as it stands."""
        if self.bar is not None:
            self.bar.close()


def screen_width() -> int:
    """Measure the terminal, within what a table can use."""
    import shutil

    return max(80, min(160, shutil.get_terminal_size((120, 40)).columns))
