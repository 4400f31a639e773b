"""How much memory can be taken, so that a set too large is refused before it is decoded.

    free = min(MemAvailable, limit - usage + reclaimable file pages of each control group)

A container or a batch system ends a process at its group's limit, whatever the machine has.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import TooLarge


def refuse_what_does_not_fit(shape: tuple[int, ...], free: int | None) -> None:
    """Raise if uint8 images (n, c, h, w) need more bytes than are free (None: nobody knows).

    Raises:
        TooLarge: With the bytes needed and the bytes there.
    """
    n, *size = shape
    needed = n
    for length in size:
        needed *= length
    if free is not None and needed > free:
        raise TooLarge(
            f"{n} images of {' × '.join(map(str, size))} take {needed / 1e9:.1f} GB of memory as "
            f"uint8 and {free / 1e9:.1f} GB are free; the machine would swap, or end the process "
            "while it decodes: ask for a smaller image size or a larger imbalance ratio, or take a "
            "machine with more memory"
        )


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that can be taken without swapping; None where the system does not tell.

    Args:
        root: Where the system's own files (proc, sys) lie.
    """
    known = [*_available(root), *_left_in_groups(root)]
    names = getattr(os, "sysconf_names", {})  # Windows has none
    if not known and "SC_PHYS_PAGES" in names:  # macOS: all there is, free or not
        known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(known, default=None)


def _available(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _left_in_groups(root: Path) -> Iterator[int]:
    """Walk from the process's own control group upwards, in version 2 or 1 of their files."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        group = base / path.lstrip("/")
        for place in (group, *group.parents):
            limit, used = (_text(place / name).strip() for name in names[:2])
            if limit.isdecimal() and used.isdecimal():  # without a limit it says "max"
                stat = dict(row.split() for row in _text(place / "memory.stat").splitlines())
                yield max(0, int(limit) - int(used) + int(stat.get(names[2], 0)))
            if place == base:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
