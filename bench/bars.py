"""What must be kept, all of it, and how a figure is set against it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ALEMBIC, FLOOR, DUMP = "alembic upgrade head", "the floor", "pg_dump -s"

# The median ratio of ours to another's at so many migrations (a snapshot: tables) may be this much.
BARS = {
    ("nothing to do", 10, "wall", FLOOR): 1.25,
    ("nothing to do", 100, "wall", FLOOR): 1.30,
    ("nothing to do", 1000, "wall", FLOOR): 1.50,
    ("nothing to do", 10, "wall", ALEMBIC): 0.40,
    ("nothing to do", 100, "wall", ALEMBIC): 0.38,
    ("nothing to do", 1000, "wall", ALEMBIC): 0.32,
    ("nothing to do", 10, "memory", FLOOR): 1.20,
    ("nothing to do", 100, "memory", FLOOR): 1.20,
    ("nothing to do", 1000, "memory", FLOOR): 1.30,
    ("all pending", 1000, "wall", ALEMBIC): 1.20,
    ("replay", 1000, "wall", ALEMBIC): 1.20,
    ("proof of head", 1000, "wall", ALEMBIC): 3.00,
    ("proof of nobody's", 1000, "wall", ALEMBIC): 3.00,
    ("proof of nobody's, known", 1000, "wall", ALEMBIC): 3.00,
    ("snapshot", 1000, "wall", DUMP): 1.00,
}
# So many MB may a replay add to the memory of the process that asks for it.
PARENT_GROWS = 4.0


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Take the spread of some figures; of one alone there is none."""
        several = figures if len(figures) > 1 else [figures[0], figures[0]]
        return cls(*statistics.quantiles(several, n=4, method="inclusive"))

    def text(self, digits: int) -> str:
        low, middle, high = (f"{each:.{digits}f}" for each in (self.low, self.middle, self.high))
        return f"{middle} ({low} to {high})"


class Figures:
    """The figures that are printed, and those among them that do not keep their bar."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def ratio(
        self, what: str, count: int, measure: str, against: str, ours: Sequence[float], theirs: Sequence[float]
    ) -> str:
        """Write the ratio of ours to another's of the same round, with its bar where it has one."""
        spread = Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])
        bar = BARS.get((what, count, measure, against))
        if bar is None:
            return spread.text(2)
        return f"{spread.text(2)} {self.judged(f'{what} at {count}, {measure} ÷ {against}', spread.middle, bar)}"

    def judged(self, name: str, figure: float, bar: float) -> str:
        """Write a bar, and whether a figure keeps it."""
        if figure > bar:
            self.broken.append(f"{name}: {figure:.3f} is more than {bar:.2f}")
        return f"{'✗' if figure > bar else '✓'} ≤ {bar:.2f}"

    def end(self) -> None:
        """Exit with 1 where a bar is not kept, and say which."""
        if self.broken:
            raise SystemExit("Not kept:\n" + "\n".join(self.broken))


def line(*cells: object) -> str:
    """Write one line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def heading(*cells: str) -> str:
    """Write a table's heading."""
    return f"{line(*cells)}\n|{'---|' * len(cells)}"
