"""Write numbers and tables as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


@dataclass(frozen=True)
class Markdown:
    """A text in markdown, which a notebook shows as such."""

    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table that is still cells, shown as markdown."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: tuple[int, ...] = (0,)  # columns that are aligned to the left

    def __str__(self) -> str:
        return markdown(self.header, self.rows, self.text)

    def _repr_markdown_(self) -> str:
        return str(self)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits and a true minus; unknown is a dash."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    plain = -3 <= power < 4
    text = f"{value:.{max(0, digits - 1 - power)}f}" if plain else f"{mantissa}e{power}"
    return text.replace("-", "−")


def at_most(value: float | None, digits: int = 3) -> str:
    """Write a number rounded down, as a lower bound must be."""
    return _rounded(value, digits, ROUND_FLOOR)


def at_least(value: float | None, digits: int = 3) -> str:
    """Write a number rounded up, as an upper bound must be."""
    return _rounded(value, digits, ROUND_CEILING)


def _rounded(value: float | None, digits: int, way: str) -> str:
    if value is None or value == 0 or not math.isfinite(value):
        return number(value, digits)
    exact = Decimal(f"{value:.12g}")  # 1.22 is less than the double that stands for it
    last = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return number(float(exact.quantize(last, rounding=way)), digits)


def with_error(value: float | None, error: float | None) -> str:
    """Write a number to the second digit of its error, with three digits or more, and the error."""
    if value is None or not error or not (math.isfinite(error) and math.isfinite(value)):
        return number(value) if error is None else f"{number(value)} ± {number(error, 2)}"
    # The error is written with two digits and may round up; the value keeps more of them.
    first = int(f"{value:.14e}".split("e")[1]) if value else 0
    of_error = int(f"{error:.1e}".split("e")[1])
    digits = min(max(3, first - of_error + 2), 15)  # float64 has no more
    return f"{number(value, digits)} ± {number(error, 2)}"


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)
) -> str:
    """Set a table of GitHub markdown.

    Args:
        header: of the columns.
        rows: of as many cells each; a bar in one is escaped.
        text: columns that are aligned to the left.
    """
    rule = [":--" if i in text else "--:" for i in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
