"""What a start costs, whole processes, against `alembic upgrade head` and against a floor, paired in one run.

    python bench/starts.py [--migrations 10 100 1000] [--rounds 9]

The floor is what nothing can be faster than: python, import psycopg, connect, one query, exec. Machines are noisy: each
figure is a median with its quartiles, each ratio the median of those of the rounds, in which both ran one after the
other. Memory is that of all processes of a command together; it is sampled in rounds of its own. Ends with 1 where a
bar of bench/bars.py is not kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bars import ALEMBIC, FLOOR, Figures, Spread, heading, line
from measured import Command, Cost, columns, paired
from subject import BIN, database, execute, quiet_server, settle, tree

from alembic_entrypoint.postgres.embedded import Embedded

CLEANING, WAITING = "a script that cleans", "a script that waits"
IDLE, FEW, ALL = "nothing to do", "10 pending", "all pending"
UNITS = {"wall": "s", "CPU": "s", "memory": "MB"}
EVERYWHERE = ("ours", ALEMBIC, FLOOR)
FLOOR_PROGRAM = (
    "import os, psycopg; "
    "c = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True); "
    "c.execute(\"SELECT to_regclass('alembic_version')\").fetchall(); c.close(); os.execvp('true', ['true'])"
)
PRE_START = """
import os, sqlalchemy
from tenacity import retry, stop_after_attempt, wait_fixed

@retry(stop=stop_after_attempt(300), wait=wait_fixed(1))
def ready():
    url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
    with sqlalchemy.create_engine(url).connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))

ready()
"""


@dataclass(frozen=True)
class Measured:
    """What each command took, round by round, by measure: wall and CPU in seconds, memory in MB."""

    what: str
    migrations: int
    measures: dict[str, dict[str, list[float]]]

    def ratio(self, figures: Figures, measure: str, against: str) -> str:
        """Write ours as a part of another's."""
        each = self.measures[measure]
        return figures.ratio(self.what, self.migrations, measure, against, each["ours"], each[against])

    def row(self, figures: Figures, measure: str) -> str:
        """Write one line of a measure's table."""
        digits = 1 if UNITS[measure] == "MB" else 3
        costs = [Spread.of(self.measures[measure][name]).text(digits) for name in EVERYWHERE]
        ratios = [self.ratio(figures, measure, against) for against in EVERYWHERE[1:]]
        return line(self.what, self.migrations, *costs, *ratios)


def commands(folder: Path) -> dict[str, Command]:
    """Name what is compared: ours, Alembic, the floor."""
    words = {
        "ours": [str(BIN / "alembic-entrypoint"), "run", "--", "true"],
        ALEMBIC: [str(BIN / "alembic"), "upgrade", "head"],
        FLOOR: [sys.executable, "-c", FLOOR_PROGRAM],
    }
    return {name: Command(each, folder) for name, each in words.items()}


def scripts(folder: Path) -> dict[str, Command]:
    """Write two ways in which people start today."""
    upgrade = f"{BIN / 'alembic'} upgrade head && exec true\n"
    (folder / "start.sh").write_text(
        f'find . -type d -name __pycache__ -exec rm -rf {{}} + ; find . -name "*.pyc" -delete\n{upgrade}'
    )
    (folder / "backend_pre_start.py").write_text(PRE_START)
    (folder / "prestart.sh").write_text(f"{sys.executable} backend_pre_start.py && {upgrade}")
    return {CLEANING: Command(["sh", "start.sh"], folder), WAITING: Command(["sh", "prestart.sh"], folder)}


def compare(
    timed: dict[str, Command], place: Callable[[], AbstractContextManager[str]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Run commands in turn, each on the database that `place` gives; memory in rounds of its own."""

    def cost(command: Command) -> Cost:
        with place() as url:
            return command.run(url)

    def peak(command: Command) -> float:
        with place() as url:
            return command.peak(url)

    costs = paired({name: partial(cost, each) for name, each in timed.items()}, rounds)
    return {**columns(costs), "memory": paired({name: partial(peak, timed[name]) for name in EVERYWHERE}, rounds)}


def measure(server: Embedded, folder: Path, count: int, rounds: int) -> Iterator[Measured]:
    """Measure one project in every state of a database."""
    tree(folder, count)
    plain = commands(folder)
    execute(server.url, "CREATE DATABASE done", "CREATE DATABASE behind")
    plain["ours"].run(server.url_for("done"))

    @contextmanager
    def done() -> Iterator[str]:
        # A copy would be another database, of which the ledger knows nothing.
        settle(server)
        yield server.url_for("done")

    yield Measured(IDLE, count, compare({**plain, **scripts(folder)}, done, rounds))
    if count > 10:
        Command([str(BIN / "alembic"), "upgrade", f"m{count - 10:04}"], folder).run(server.url_for("behind"))
        execute(server.url_for("behind"), "VACUUM ANALYZE")
        yield Measured(FEW, count, compare(plain, partial(database, server, "behind"), rounds))
    yield Measured(ALL, count, compare(plain, partial(database, server), rounds))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--migrations", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    measured: list[Measured] = []
    for count in options.migrations:
        with tempfile.TemporaryDirectory() as folder, quiet_server() as server:
            measured += measure(server, Path(folder), count, options.rounds)
    measured.sort(key=lambda each: (IDLE, FEW, ALL).index(each.what))
    figures = Figures()
    for name, unit in UNITS.items():
        print(heading(f"{name}, {unit}", "migrations", *EVERYWHERE, *(f"÷ {each}" for each in EVERYWHERE[1:])))
        print(*(each.row(figures, name) for each in measured), "", sep="\n")
    print(heading(IDLE, f"wall ÷ {CLEANING}", f"wall ÷ {WAITING}"))
    for each in measured:
        if each.what == IDLE:
            print(line(each.migrations, *(each.ratio(figures, "wall", script) for script in (CLEANING, WAITING))))
    figures.end()


if __name__ == "__main__":
    main()
