"""What a start costs, whole processes, against `alembic upgrade head` and against a floor, paired in one run.

    python bench/starts.py [--migrations 10 100 1000] [--rounds 9]

The floor is what nothing can be faster than: python, import psycopg, connect, one query, exec. Machines are noisy:
the table gives ratios of medians, and the medians with the spread from the lower to the upper quartile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from alembic_entrypoint.postgres.embedded import Embedded, embedded_server

BIN = Path(sys.executable).parent
FLOOR = (
    "import os, psycopg; "
    "c = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True); "
    "c.execute('SELECT version_num FROM alembic_version').fetchall(); c.close(); os.execvp('true', ['true'])"
)
ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, pool

url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
engine = create_engine(url, poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
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
MIGRATION = """
import sqlalchemy as sa
from alembic import op
revision = "m{n:04}"
down_revision = {down!r}
def upgrade():
    op.create_table("t{n}", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(50)))
def downgrade():
    op.drop_table("t{n}")
"""


@dataclass(frozen=True)
class Cost:
    """One process: seconds on the clock, seconds of CPU with its children, peak memory in MB."""

    wall: float
    cpu: float
    memory: float


def measure(command: list[str], folder: Path, url: str) -> Cost:
    """Run a command to its end and say what it took."""
    environment = {**os.environ, "DATABASE_URL": url, "ALEMBIC_ENTRYPOINT_LOG_LEVEL": "warning"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}: {error.decode()}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def tree(folder: Path, count: int) -> None:
    """Make a project with so many migrations, each of which makes a table."""
    versions = folder / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (folder / "migrations" / "env.py").write_text(ENV)
    for n in range(1, count + 1):
        (versions / f"m{n:04}.py").write_text(MIGRATION.format(n=n, down=f"m{n - 1:04}" if n > 1 else None))


@contextmanager
def database(server: Embedded, template: str = "template1") -> Iterator[str]:
    """Make a database for one measurement; give its URL."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE measured TEMPLATE {template}")
        try:
            yield server.url_for("measured")
        finally:
            connection.execute("DROP DATABASE measured WITH (FORCE)")


def commands(folder: Path) -> dict[str, list[str]]:
    """What is compared: ours, Alembic, the floor, and two ways in which people start today."""
    python, alembic = sys.executable, str(BIN / "alembic")
    (folder / "start.sh").write_text(
        'find . -type d -name __pycache__ -exec rm -rf {} + ; find . -name "*.pyc" -delete\n'
        f"{alembic} upgrade head && exec true\n"
    )
    (folder / "backend_pre_start.py").write_text(PRE_START)
    (folder / "prestart.sh").write_text(f"{python} backend_pre_start.py && {alembic} upgrade head && exec true\n")
    return {
        "ours": [str(BIN / "alembic-entrypoint"), "run", "--", "true"],
        "alembic": [alembic, "upgrade", "head"],
        "floor": [python, "-c", FLOOR],
        "a script that cleans bytecode first": ["sh", "start.sh"],
        "a script that waits with tenacity first": ["sh", "prestart.sh"],
    }


def compare(server: Embedded, folder: Path, template: str, rounds: int) -> dict[str, list[Cost]]:
    """Run ours and Alembic in turn, each on a database of its own."""
    costs: dict[str, list[Cost]] = {"ours": [], "alembic": []}
    for n in range(rounds + 1):
        for name in costs:
            with database(server, template) as url:
                cost = measure(commands(folder)[name], folder, url)
            if n:  # the first round warms caches
                costs[name].append(cost)
    return costs


def compare_idle(url: str, folder: Path, rounds: int) -> dict[str, list[Cost]]:
    """Run everything in turn on one database, in which there is nothing to do."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands(folder)}
    for n in range(rounds + 1):
        for name, command in commands(folder).items():
            cost = measure(command, folder, url)
            if n:
                costs[name].append(cost)
    return costs


def idle_row(count: int, costs: dict[str, list[Cost]]) -> str:
    """Write one line of the table of starts with nothing to do: ours as a part of each of the others."""
    wall = {name: statistics.median(cost.wall for cost in each) for name, each in costs.items()}
    memory = {name: statistics.median(cost.memory for cost in each) for name, each in costs.items()}
    order = ("floor", "alembic", "a script that cleans bytecode first", "a script that waits with tenacity first")
    others = [f"{wall['ours'] / wall[name]:.2f}" for name in order]
    return f"| {count} | {wall['ours']:.3f} s | {' | '.join(others)} | {memory['ours'] / memory['floor']:.2f} |"


def row(what: str, count: int, costs: dict[str, list[Cost]]) -> str:
    """Write one line of the table."""

    def middle(name: str, part: Callable[[Cost], float]) -> float:
        return statistics.median(map(part, costs[name]))

    def ratio(against: str, part: Callable[[Cost], float]) -> str:
        return f"{middle('ours', part) / middle(against, part):.2f}" if against in costs else ""

    wall = sorted(cost.wall for cost in costs["ours"])
    quartiles = f"{wall[len(wall) // 4]:.2f} to {wall[-1 - len(wall) // 4]:.2f}"
    cells = [
        what,
        str(count),
        f"{middle('ours', lambda c: c.wall):.2f} s ({quartiles})",
        f"{middle('alembic', lambda c: c.wall):.2f} s",
        ratio("alembic", lambda c: c.wall),
        ratio("alembic", lambda c: c.cpu),
        ratio("alembic", lambda c: c.memory),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--migrations", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    idle, busy = [], []
    for count in options.migrations:
        with tempfile.TemporaryDirectory() as name, embedded_server() as server:
            folder = Path(name)
            tree(folder, count)
            plain = [str(BIN / "alembic"), "upgrade"]
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE done")
                connection.execute("CREATE DATABASE behind")
            measure(commands(folder)["ours"], folder, server.url_for("done"))
            idle.append(idle_row(count, compare_idle(server.url_for("done"), folder, options.rounds)))
            few = max(3, options.rounds // 3)
            if count > 10:
                measure([*plain, f"m{count - 10:04}"], folder, server.url_for("behind"))
                busy.append(row("10 pending", count, compare(server, folder, "behind", few)))
            busy.append(row("all pending", count, compare(server, folder, "template1", few)))
    print(
        "| migrations | ours, nothing to do | ÷ the floor | ÷ Alembic | ÷ cleaning script | ÷ waiting script |"
        " memory ÷ the floor |"
    )
    print("|---|---|---|---|---|---|---|", *idle, sep="\n")
    print("\n| what | migrations | ours | Alembic | wall ÷ Alembic | CPU ÷ Alembic | memory ÷ Alembic |")
    print("|---|---|---|---|---|---|---|", *busy, sep="\n")


if __name__ == "__main__":
    main()
