"""Tables of text, and means with deviations as their cells."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: headings.
        rows: cells, as many a row as there are headings.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def cell(self, row: Mapping[str, str], column: str) -> str:
        """Return the cell of a column in the one row that has the given cells.

        Raises:
            LookupError: a heading does not exist, or no row or several rows have these cells.
        """
        if unknown := {*row, column}.difference(self.columns):
            raise LookupError(f"no column {sorted(unknown)}; there are {list(self.columns)}")
        lines = [dict(zip(self.columns, cells, strict=True)) for cells in self.rows]
        found = [line for line in lines if all(line[name] == cell for name, cell in row.items())]
        if len(found) != 1:
            raise LookupError(f"{len(found)} rows have {dict(row)}; one is needed")
        return found[0][column]


def spread(values: Sequence[float], digits: int = 1, empty: str = "–") -> str:
    """Format a mean and, where there are several values, their standard deviation behind ±."""
    if not values:
        return empty
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"
