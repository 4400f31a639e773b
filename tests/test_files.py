"""Files take their names whole or not at all."""

import errno
from pathlib import Path

import pytest

from spectra.errors import StorageError
from spectra.files import Keeping, replacing, require_writable


def test_a_file_takes_its_name_at_the_end_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises((StorageError, KeyboardInterrupt)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_message_says_how_much_where_and_why_in_one_line(tmp_path: Path) -> None:
    message = r"a.pt \(3.0 MB\) was not written \(No space left\); .* is unchanged; .*--out"
    with (
        pytest.raises(StorageError, match=message) as caught,
        replacing(tmp_path / "a.pt", size=3_000_000),
    ):
        raise OSError(errno.ENOSPC, "No space left")
    assert "\n" not in str(caught.value)


def test_trying_a_folder_out_leaves_nothing_in_it(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="was not written"):
        require_writable(tmp_path / "file" / "in")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("spectra.files.monotonic", lambda: self.now)


def test_a_growing_whole_is_written_for_a_twentieth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, written = Clock(monkeypatch), []

    def write(whole: int) -> None:
        written.append(whole)
        clock.now += 0.1 * whole  # the larger, the longer

    with Keeping(write) as keep:
        for whole in range(1, 101):
            clock.now += 1.0  # a class takes a second
            keep(whole)
        spent = 0.1 * sum(written)
        assert spent < 100 / 20 + 10  # and the last write
        assert written[:3] == [1, 3, 9]  # due after 2, 6 and 18 seconds more
    assert written[-1] == 100
    assert len(written) == len(set(written))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_waits_to_be_written_is_written_on_the_way_out(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = Clock(monkeypatch), []

    def write(whole: str) -> None:
        written.append(whole)
        clock.now += 1.0

    def run() -> None:
        with Keeping(write) as keep:
            keep("a")
            keep("ab")
            keep("abc")
            assert written == ["a"]
            raise error

    with pytest.raises(error):
        run()
    assert written == ["a", "abc"]


def test_what_cannot_wait_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(monkeypatch), []

    def write(whole: str) -> None:
        written.append(whole)
        clock.now += 1.0

    with Keeping(write) as keep:
        keep("a")
        keep("ab")
        keep("abc", at_once=True)
        assert written == ["a", "abc"]
    assert written == ["a", "abc"]


def test_a_write_that_was_interrupted_is_made_on_the_way_out() -> None:
    written = []

    def write(whole: str) -> None:
        written.append(whole)
        if len(written) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Keeping(write) as keep:
        keep("a")
    assert written == ["a", "a"]


def test_what_cannot_be_written_is_tried_once() -> None:
    tries = []

    def write(whole: str) -> None:
        tries.append(whole)
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="full"), Keeping(write) as keep:
        keep("a")
    assert tries == ["a"]
