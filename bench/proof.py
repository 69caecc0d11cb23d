"""What a proof costs, against `alembic upgrade head` on an empty database, paired in one run.

    python bench/proof.py [--migrations 1000] [--rounds 5]

Each migration creates a table. A replay is one with everything that belongs to it: the scratch database, the worker,
and a look at what is there after each migration. A proof is a replay, a snapshot on both sides, and the comparison; of
a schema that is at head, of one that is nobody's (a column short), and of the latter once more, when the replays are
known. Machines are noisy: the table gives medians of seconds on the clock and of seconds of CPU, those of worker and
server included, with their ratios; CPU is what can be trusted on a machine that others use.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from starts import BIN, tree

from alembic_entrypoint.address import parse
from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.logs import configure
from alembic_entrypoint.observe import Seen, find_target, observe
from alembic_entrypoint.postgres.embedded import Embedded, embedded_server
from alembic_entrypoint.postgres.scratch import scratch_server
from alembic_entrypoint.proof import Proof, prove
from alembic_entrypoint.replay import replay
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.worker.messages import Replay

Cost = tuple[float, float]


def cost(action: Callable[[], object], postmaster: int) -> Cost:
    """Measure seconds on the clock, and of CPU: ours, of our children, and of server processes that have ended."""
    began, before = time.perf_counter(), _cpu(postmaster)
    action()
    wall = time.perf_counter() - began
    time.sleep(0.5)  # sessions end a little after their clients
    return wall, _cpu(postmaster) - before


def _cpu(postmaster: int) -> float:
    # /proc/<pid>/stat, see proc(5): cutime and cstime are those of children that were waited for.
    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    ours = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ticks = int(fields[13]) + int(fields[14])
    return ticks / os.sysconf("SC_CLK_TCK") + sum(each.ru_utime + each.ru_stime for each in ours)


class Bench:
    """One database at head, and what is done to it."""

    def __init__(self, server: Embedded, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._seen: Seen | None = None
        self.fresh("live")
        os.environ["DATABASE_URL"] = server.url_for("live")
        self.settings = Settings(database_url=parse(server.url_for("live")))

    def fresh(self, name: str) -> None:
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name}")

    def upgrade(self, name: str) -> None:
        environ = {**os.environ, "DATABASE_URL": self._server.url_for(name)}
        subprocess.run([BIN / "alembic", "upgrade", "head"], cwd=self._folder, env=environ, check=True)

    def execute(self, statement: str) -> None:
        with psycopg.connect(self._server.url_for("live"), autocommit=True) as connection:
            connection.execute(statement)

    @property
    def seen(self) -> Seen:
        self._seen = self._seen or observe(self.settings, find_target(self.settings))
        return self._seen

    def replay(self) -> None:
        with ExitStack() as stack:
            connection = stack.enter_context(psycopg.connect(self._server.url_for("live"), autocommit=True))
            server = stack.enter_context(scratch_server(self.settings, self.seen.target.address, connection))
            facts = self.seen.facts
            replay(self.settings, self.seen.target, server, Replay(facts.graph.heads), facts, connection)

    def prove(self, known: Mapping[str, Any] | None = None) -> Proof:
        with psycopg.connect(self._server.url_for("live"), autocommit=True) as connection:
            return prove(connection, self.settings, self.seen.target, self.seen.facts, known=known)


def round_of(bench: Bench, measure: Callable[[str, Callable[[], object]], None]) -> None:
    """Measure everything once, and see that each proof ends as it should."""
    proofs: list[Proof] = []
    bench.fresh("empty")
    measure("alembic upgrade head", lambda: bench.upgrade("empty"))
    measure("replay", bench.replay)
    measure("proof: at head", lambda: proofs.append(bench.prove()))
    bench.execute("ALTER TABLE t7 DROP COLUMN name")
    measure("proof: nobody's", lambda: proofs.append(bench.prove()))
    measure("proof: known", lambda: proofs.append(bench.prove(proofs[1].document)))
    bench.execute("ALTER TABLE t7 ADD COLUMN name varchar(50)")
    assert [each.outcome for each in proofs] == [Outcome.ONE, Outcome.NONE, Outcome.NONE]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--migrations", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    configure(level="warning")
    measured: dict[str, list[Cost]] = {}

    with tempfile.TemporaryDirectory() as place, embedded_server() as server:
        folder = Path(place)
        tree(folder, given.migrations)
        os.chdir(folder)
        bench = Bench(server, folder)

        def measure(name: str, action: Callable[[], object]) -> None:
            measured.setdefault(name, []).append(cost(action, server.pid))

        bench.upgrade("live")
        bench.execute("DROP TABLE alembic_version")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(given.rounds):
            round_of(bench, measure)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    floor = [statistics.median(column) for column in zip(*measured["alembic upgrade head"], strict=True)]
    for name, costs in measured.items():
        wall, cpu = (statistics.median(column) for column in zip(*costs, strict=True))
        print(f"{name:22} {wall:6.2f} s {wall / floor[0]:5.2f} x   CPU {cpu:6.2f} s {cpu / floor[1]:5.2f} x")
    print(f"{given.migrations} migrations; the parent grew by {grown:.0f} MB")


if __name__ == "__main__":
    main()
