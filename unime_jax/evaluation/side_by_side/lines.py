"""Lines of scores under common columns, of own runs and of papers."""

import dataclasses
from collections.abc import Mapping, Sequence

from unime_jax.evaluation.side_by_side import columns as columns_lib
from unime_jax.evaluation.side_by_side.columns import Column


@dataclasses.dataclass(frozen=True)
class Cell:
    """A score of a line.

    Attributes:
      spread: standard deviation over runs, None of one.
      change: from the baseline; None of the baseline itself, or where rows differ.
      interval: 95 % of the change, by a paired bootstrap over rows; None without results by row.
      derived: it is not printed in a paper, but follows from what is.
    """

    mean: float
    spread: float | None = None
    change: float | None = None
    interval: tuple[float, float] | None = None
    derived: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A model's scores: of so many runs of one's own, or published (no runs, but sources)."""

    name: str
    runs: int
    cells: Mapping[Column, Cell]
    sources: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Lines, columns by the heading of their table, and what a reader has to know."""

    lines: Sequence[Line]
    groups: Mapping[str, Sequence[Column]]
    baseline: str  # name of a line; "": none
    remarks: Sequence[str]

    def lines_of(self, columns: Sequence[Column]) -> list[Line]:
        """Lines with a score in any of the columns."""
        return [line for line in self.lines if any(c in line.cells for c in columns)]

    def digits(self, column: Column) -> int:
        """Decimals of a column."""
        cells = (line.cells.get(column) for line in self.lines)
        return columns_lib.digits(column, [cell.mean for cell in cells if cell])
