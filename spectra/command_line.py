"""What all commands share: their parser, their exit codes, and how they end when stopped."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

from spectra.errors import SpectraError, first_line, out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from spectra.processes import Processes

Entry = TypeVar("Entry")
EXIT_CODES = (
    "exit codes: 0 done, 2 an input cannot be used or memory ran out, 130 interrupted, 143 by "
    "SIGTERM"
)


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations: a later flag would change what a script means."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    @property
    def resumes(self) -> bool:
        """Tell whether the command goes on where an interrupted one has stopped."""
        return "--resume" in self._option_string_actions

    def format_help(self) -> str:
        """Add the exit codes, and what to do after the last two of them."""
        rest = " (go on with --resume)" if self.resumes else ""
        return f"{super().format_help()}\n{EXIT_CODES}{rest}\n"

    def error(self, message: str) -> NoReturn:
        """Say it in one line: the usage of thirty flags would bury it."""
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n" if leads() else None)


def exit_code(
    parser: Parser,
    command: Callable[[], object],
    held: Callable[[], Path | None],
    tells: Callable[[], bool] = lambda: True,
) -> int:
    """Run a command; turn what stops it into one line and an exit code.

    Args:
        parser: names the command.
        command: what to do.
        held: gives the folder in which an interrupted command has left results, if any.
        tells: says whether the line is this process's to print.

    Returns:
        0 when it is done, 2 after an error that the user can mend and when memory has run out, 130
        on Ctrl-C, 143 on SIGTERM.
    """

    def rest() -> str:
        if (folder := held()) is None:
            return ": nothing was finished yet"
        then = "; the same command with --resume goes on there" if parser.resumes else ""
        return f": what is finished lies in {folder}{then}"

    try:
        with _terminable():
            command()
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # `| head` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the end of Python
        return 0
    except (SpectraError, OSError) as error:  # a disk may be full wherever something is written
        if tells():
            print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if tells():
            print(f"{parser.prog}: out of memory ({first_line(error)}){rest()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        code = 128 + (signal.SIGTERM if isinstance(stopped, _Terminated) else signal.SIGINT)
        if tells():
            print(f"\ninterrupted{rest()}", file=sys.stderr)
        return code


def found_in(folder: Path, pattern: str, *, resume: bool = False) -> Callable[[], Path | None]:
    """Give what `exit_code` asks for: the folder, once results of this run lie in it.

    Args:
        folder: of the results.
        pattern: of the files that hold them.
        resume: those that lie there now are this run's, too.
    """

    def stamps() -> set[tuple[int, int]]:
        """Tell one writing of the files from the next."""
        found = set()
        for path in folder.glob(pattern):
            with suppress(OSError):
                stat = path.stat()
                found.add((stat.st_ino, stat.st_mtime_ns))
        return found

    before = set() if resume else stamps()
    return lambda: folder if stamps() - before else None


class _Terminated(KeyboardInterrupt):
    """SIGTERM came, which schedulers send some seconds before they kill."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: with what it has finished saved."""
    before = signal.getsignal(signal.SIGTERM)
    inside = threading.current_thread() is not threading.main_thread()
    if inside or before is signal.SIG_IGN:  # no other thread may set a handler
        yield
        return

    def end(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the saving
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:  # torchrun's processes have a handler of their own
        if signal.getsignal(signal.SIGTERM) in (end, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def shared_exit_code(
    parser: Parser,
    command: Callable[[Processes | None], object],
    held: Callable[[], Path | None],
) -> int:
    """Run a command as `exit_code` does, in as many processes as torchrun has started.

    Whichever process fails first prints its line, and the others end silently.

    Args:
        parser: names the command.
        command: takes the processes, None in a plain run.
        held: as in `exit_code`.
    """
    joined: list[Processes] = []

    def run() -> None:
        from spectra.processes import Processes

        processes = Processes.start()
        if processes is None:
            command(None)
            return
        joined.append(processes)
        processes.run(command)

    code = exit_code(parser, run, held, lambda: joined[0].first_to_tell() if joined else leads())
    for processes in joined:
        processes.close(code)
    return code


def require_done(errors: Sequence[str | None]) -> None:
    """Raise SpectraError if spectra have failed, of which the others are saved.

    Args:
        errors: of every spectrum, None where it is there.
    """
    if failed := [error for error in errors if error is not None]:
        raise SpectraError(
            f"{len(failed)} of {len(errors)} spectra failed, the first because: {failed[0]}"
        )


def leads() -> bool:
    """Tell whether a line on the screen is this process's to print."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"  # torchrun sets it
    return not several or os.environ.get("RANK", "0") == "0"


def integers(text: str) -> tuple[int, ...]:
    """Read a list of whole numbers.

    Raises:
        ArgumentTypeError: for anything else.
    """
    return listed(text, int, "whole numbers, expected e.g. 0,8")


def listed(text: str, read: Callable[[str], Entry], what: str) -> tuple[Entry, ...]:
    """Read a list of anything, parted by commas.

    Args:
        text: of the command line.
        read: takes an entry; raises ValueError where it is none.
        what: is listed, for the message.

    Raises:
        ArgumentTypeError: an entry is none.
    """
    try:
        return tuple(map(read, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of {what}") from None
