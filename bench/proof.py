"""What a proof costs, against `alembic upgrade head` on an empty database, paired in one run.

    python bench/proof.py [--migrations 1000] [--rounds 9]

Each migration creates a table. A replay is one with everything that belongs to it: the scratch database, the worker,
and a look at what is there after each migration. A proof is a replay, a snapshot on both sides, and the comparison; of
a schema that is at head, of one that is nobody's (a column short), and of the latter once more, when the replays are
known. Each figure is a median with its quartiles, each ratio the median of those of the rounds. CPU is that of all
processes, the server's sessions included; it is what can be trusted on a machine that others use. Ends with 1 where a
bar of bench/bars.py is not kept.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
from bars import ALEMBIC, PARENT_GROWS, Figures, Spread, heading, line
from measured import Command, Cost, columns, paired
from subject import BIN, database, execute, quiet_server, settle, tree

from alembic_entrypoint.address import parse
from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.logs import configure
from alembic_entrypoint.observe import Seen, find_target, observe
from alembic_entrypoint.postgres.embedded import Embedded
from alembic_entrypoint.postgres.scratch import scratch_server
from alembic_entrypoint.proof import Proof, prove
from alembic_entrypoint.replay import replay
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.worker.messages import Replay


class Live:
    """A database that holds a project's schema and no version table, and what is proved of it."""

    def __init__(self, server: Embedded, folder: Path, name: str, change: str = "") -> None:
        self._folder = folder
        self._url = server.url_for(name)
        execute(server.url, f"CREATE DATABASE {name}")
        Command([str(BIN / "alembic"), "upgrade", "head"], folder).run(self._url)
        execute(self._url, "DROP TABLE alembic_version", *([change] if change else []), "VACUUM ANALYZE")
        self._settings = Settings(database_url=parse(self._url))

    @cached_property
    def _seen(self) -> Seen:
        return observe(self._settings, find_target(self._settings))

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        os.chdir(self._folder)
        os.environ["DATABASE_URL"] = self._url  # of which env.py asks
        with psycopg.connect(self._url, autocommit=True) as connection:
            yield connection

    def replay(self) -> None:
        with ExitStack() as stack:
            connection = stack.enter_context(self._connected())
            server = stack.enter_context(scratch_server(self._settings, self._seen.target.address, connection))
            facts = self._seen.facts
            replay(self._settings, self._seen.target, server, Replay(facts.graph.heads), facts, connection)

    def prove(self, outcome: Outcome, known: Mapping[str, Any] | None = None) -> Proof:
        """Prove, and see that it ends as it should."""
        with self._connected() as connection:
            proof = prove(connection, self._settings, self._seen.target, self._seen.facts, known=known)
        assert proof.outcome is outcome
        return proof


def growth(action: Callable[[], object]) -> float:
    """Do something, and give by how many MB this process grew in between, at most."""
    # proc_pid_clear_refs(5): from here on VmHWM is the peak since. `ru_maxrss` begins with the size of who started us.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    action()
    return _peak() - before


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(each.split()[1]) / 1024 for each in status.splitlines() if each.startswith("VmHWM:"))


def cost(action: Callable[[], object], server: Embedded) -> Cost:
    """Measure seconds on the clock, and of CPU: ours, of our children, and of the sessions that have ended."""
    settle(server)
    quiet = _children(server)
    began, before = time.perf_counter(), _cpu(server)
    action()
    wall = time.perf_counter() - began
    while not _children(server) <= quiet:  # sessions end a little after their clients
        time.sleep(0.01)
    return Cost(wall, _cpu(server) - before)


def _children(server: Embedded) -> set[int]:
    return {each.pid for each in psutil.Process(server.pid).children()}


def _cpu(server: Embedded) -> float:
    sessions = psutil.Process(server.pid).cpu_times()  # of those that were waited for
    ours = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ended: float = sessions.children_user + sessions.children_system
    return ended + sum(each.ru_utime + each.ru_stime for each in ours)


def measure(server: Embedded, folder: Path, rounds: int) -> dict[str, list[Cost]]:
    """Measure everything once a round."""
    live = Live(server, folder, "live")
    short = Live(server, folder, "short", "ALTER TABLE t7 DROP COLUMN name")
    known = short.prove(Outcome.NONE).document
    upgrade = Command([str(BIN / "alembic"), "upgrade", "head"], folder)

    def upgraded() -> Cost:
        with database(server) as url:
            return cost(lambda: upgrade.run(url), server)

    actions: dict[str, Callable[[], object]] = {
        "replay": live.replay,
        "proof of head": lambda: live.prove(Outcome.ONE),
        "proof of nobody's": lambda: short.prove(Outcome.NONE),
        "proof of nobody's, known": lambda: short.prove(Outcome.NONE, known),
    }
    return paired({ALEMBIC: upgraded, **{name: partial(cost, each, server) for name, each in actions.items()}}, rounds)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--migrations", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    configure(level="warning")
    with tempfile.TemporaryDirectory() as place, quiet_server() as server:
        # Once before, in little: what a replay imports is no growth.
        Live(server, tree(Path(place) / "little", 10), "little").replay()
        folder = tree(Path(place) / "large", options.migrations)
        grown = growth(Live(server, folder, "grown").replay)
        costs = measure(server, folder, options.rounds)

    figures = Figures()
    print(heading(f"{options.migrations} migrations", "wall, s", "CPU, s", f"wall ÷ {ALEMBIC}", f"CPU ÷ {ALEMBIC}"))
    measures = columns(costs)
    for name in costs:
        spreads = [Spread.of(taken[name]).text(2) for taken in measures.values()]
        ratios = [
            "" if name == ALEMBIC else figures.ratio(name, options.migrations, of, ALEMBIC, taken[name], taken[ALEMBIC])
            for of, taken in measures.items()
        ]
        print(line(name, *spreads, *ratios))
    mark = figures.judged("the parent's growth in MB", grown, PARENT_GROWS)
    print(f"\nA replay adds {grown:.1f} MB to the memory of the process that asks for it {mark}")
    figures.end()


if __name__ == "__main__":
    main()
