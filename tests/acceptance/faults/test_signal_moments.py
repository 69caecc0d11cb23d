"""SIGTERM and SIGINT at every moment, on three drivers and three kinds of trees, also while the server is frozen.

Out within two seconds; the database as before, or at a whole number of migrations, or what is left is named by the next
start; and nobody is left.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from witness import (
    SETTINGS,
    SLOW_RECORDING,
    VERSION_TABLE,
    WITNESS,
    has_witness,
    measured,
    prepare,
    recorded,
    rounds,
)

from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import Running, started
from projects import ASYNC_ENV, DRIVERS, ENV, Project, project
from servers import Database, Server, fresh_database, own_server, processes_with, signals_of, wait_until

pytestmark = pytest.mark.faults

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Two seconds are promised, and what was really taken is among the figures. `make test-all` may be in a hurry.
LIMIT = 2.0 if float(os.environ.get("FAULT_ROUNDS") or 0) >= 1 else 3.0

# --- trees, and what may be left of them ---------------------------------------------------------------------------

#: One statement that says nothing for long, as most do: the driver waits in C.
SLOW = "op.execute(f\"SELECT witness({os.getpid()}, 'slow')\")\nop.execute('SELECT pg_sleep(30)')"
CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS t1_slow ON t1 (slow(id, {os.getpid()}))")
"""
#: Kinds of trees, with what may be left of each.
KINDS = {
    "in one transaction": ("as before",),
    "per migration": ("as before", "at r1"),
    "concurrently": ("as before", "at r1", "named"),
}


def tree_of(kind: str, driver: str, folder: Path) -> Project:
    """Make two migrations of which the second takes half a minute."""
    env = ASYNC_ENV if driver == "asyncpg" else ENV
    if kind == "per migration":
        env = env.replace("connection=connection)", "connection=connection, transaction_per_migration=True)")
    made = project(folder / kind.replace(" ", "_"), env=env)
    table = "op.execute('CREATE TABLE t1 AS SELECT generate_series(1, 3000) AS id')"
    made.add("r1", f"{WITNESS.format('r1', 0.05)}\n{table}", head="import os")
    made.add("r2", CONCURRENTLY if kind == "concurrently" else SLOW, down="r1", head="import os")
    return made


def variables(tree: Project, database: Database, driver: str) -> dict[str, str]:
    return {"DATABASE_URL": f"{database.url_on(driver)}?connect_timeout=2", "MARK": str(tree.folder)}


def left_of(tree: Project, database: Database, driver: str) -> str:
    """Name what is left: the database as before, one of the migrations, or what the next start names."""
    tables = {name for (name,) in database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    done = recorded(database) if "alembic_version" in tables else []
    assert (done, tables - {"alembic_version"}) in [([], set()), (["r1"], {"t1"})]
    if not database.query("SELECT FROM pg_index WHERE NOT indisvalid"):
        return "at r1" if done else "as before"
    with started(tree.folder, "migrate", env=variables(tree, database, driver)) as run:
        result = run.end(60)
    assert "DROP INDEX CONCURRENTLY public.t1_slow;" in result.stderr
    assert recorded(database) == ["r2"], result.stderr
    return "named"


# --- moments -------------------------------------------------------------------------------------------------------


def is_in_a_statement(database: Database) -> bool:
    return has_witness(database, "slow") or has_witness(database, "concurrently")


MOMENTS = ("", "server.examined", "lock.acquired", "schema.decided", "migration.finished", "in a statement")


def moment_of(run: Running, database: Database, aim: str) -> str:
    """Wait for a moment a little after the one that is aimed at; give the name of what was the last event."""
    wait_until(lambda: is_in_a_statement(database) if aim == "in a statement" else not aim or run.has(aim), 60)
    pause(random.uniform(0.0, 0.25))
    if is_in_a_statement(database):
        return "in a statement"
    return run.events[-1]["event"] if run.events else "starting"


def pause(seconds: float) -> None:
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began >= seconds)


def seconds_to_end(run: Running, signum: int) -> tuple[float, int]:
    """Send a signal; give the seconds until the end, and the code."""
    with open(os.pidfd_open(run.pid)) as process:  # wait() with a limit looks only twenty times a second
        began = time.monotonic()
        run.signal(signum)
        select.select([process], [], [], 30)
        return time.monotonic() - began, run.process.wait(1)


def see_that_nobody_is_left(tree: Project, database: Database, limit: float) -> None:
    wait_until(lambda: not processes_with(f"MARK={tree.folder}"), LIMIT, what="no process is left")
    clients = "SELECT query FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
    wait_until(lambda: not database.server.query(clients, database.name), limit, what="no session is left")


#: How one round ended: the moment, what was left, and the seconds.
End = tuple[str, str, float]


def tell(what: str, driver: str, ends: list[End]) -> None:
    moments, outcomes = Counter(end[0] for end in ends), Counter(end[1] for end in ends)
    longest = round(max(end[2] for end in ends), 2)
    measured(what, driver=driver, rounds=len(ends), longest=longest, moments=moments, ends=outcomes)


def end_at(aim: str, signum: int, kind: str, tree: Project, database: Database, driver: str) -> End:
    """Send a signal at a moment, and see how it ends."""
    prepare(database)
    with started(tree.folder, "run", "sleep", "60", env=variables(tree, database, driver)) as run:
        moment = moment_of(run, database, aim)
        is_caught = signal.SIGTERM in signals_of(run.pid, "SigCgt")  # SIGINT Python catches by itself
        elapsed, code = seconds_to_end(run, signum)
    # Before the first line of ours is run Python ends as it likes, and nothing has been begun.
    as_python_likes = [] if is_caught else [-signum, 1] if signum == signal.SIGINT else [-signum]
    assert code in [128 + signum, *as_python_likes], (moment, code, run.log.read_text())
    assert code == 128 + signum or not run.events
    assert elapsed < LIMIT, (moment, elapsed)
    see_that_nobody_is_left(tree, database, LIMIT)
    outcome = left_of(tree, database, driver)
    assert outcome in KINDS[kind], (moment, run.log.read_text())
    return moment, outcome, elapsed


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_signal_ends_everything_within_two_seconds(tmp_path: Path, watched_server: Server, driver: str) -> None:
    trees = {kind: tree_of(kind, driver, tmp_path) for kind in KINDS}
    ends = []
    for n in range(rounds(40, len(MOMENTS))):
        turn = n + n // len(MOMENTS)
        kind = [*KINDS][turn % len(KINDS)]
        with fresh_database(watched_server) as database:
            ends.append(end_at(MOMENTS[n % len(MOMENTS)], SIGNALS[turn % 2], kind, trees[kind], database, driver))
    tell("Signals", driver, ends)
    assert {"as before", "named"} <= {outcome for _, outcome, _ in ends}


# --- while the server is frozen ------------------------------------------------------------------------------------

FROZEN = ("waiting", "locking", "looking", "in a statement", "between migrations", "at commit")


def has_come_to(moment: str, run: Running, database: Database) -> bool:
    if moment == "in a statement":
        return is_in_a_statement(database)
    if moment == "at commit":
        return has_witness(database, "commit")
    return run.has({"locking": "lock.waiting", "looking": "lock.acquired"}.get(moment, "migration.finished"))


@contextmanager
def frozen_at(moment: str, tree: Project, database: Database, driver: str) -> Iterator[Running]:
    """Start a run, and freeze the server when it has come to a moment, for the length of the block."""
    server = database.server
    assert isinstance(server, Server)
    try:
        if moment == "waiting":
            server.freeze()
        with started(tree.folder, "migrate", env=variables(tree, database, driver)) as run:
            if moment == "waiting":
                wait_until(lambda: run.has("database.waiting"), 60)
            else:
                wait_until(lambda: has_come_to(moment, run, database), 60, interval=0.005)
                server.freeze()
            yield run
    finally:
        server.thaw()


@contextmanager
def lock_held(database: Database) -> Iterator[None]:
    with database.connect() as connection:
        connection.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, LOCK_A])
        yield


def end_frozen_at(moment: str, signum: int, kind: str, tree: Project, database: Database, driver: str) -> End:
    """Freeze the server at a moment, send a signal, and see how it ends."""
    prepare(database)
    if moment == "at commit":
        database.execute(VERSION_TABLE)
        database.execute(SLOW_RECORDING)
    holding = lock_held(database) if moment == "locking" else nullcontext()
    with holding, frozen_at(moment, tree, database, driver) as run:
        # Half a second later there is a statement of the parent's, too, that is never answered.
        pause(random.uniform(0.0, 1.2))
        elapsed, code = seconds_to_end(run, signum)
        assert (code, elapsed < LIMIT) == (128 + signum, True), (moment, elapsed, run.log.read_text())
        wait_until(lambda: not processes_with(f"MARK={tree.folder}"), LIMIT, what="no process is left")
    see_that_nobody_is_left(tree, database, 20)
    outcome = left_of(tree, database, driver)
    assert outcome in KINDS[kind], (moment, run.log.read_text())
    return moment, outcome, elapsed


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_signal_ends_everything_while_the_server_is_frozen(tmp_path: Path, driver: str) -> None:
    trees = {kind: tree_of(kind, driver, tmp_path) for kind in KINDS}
    ends, first = [], DRIVERS.index(driver)
    with own_server(18, SETTINGS) as server:
        for n in range(rounds(10, 2)):
            # With a tenth of the rounds, too, all moments have their turn, on one driver or another.
            moment = FROZEN[(n + 2 * first) % len(FROZEN)]
            kind = "per migration" if moment == "at commit" else [*KINDS][n % len(KINDS)]
            with fresh_database(server) as database:
                ends.append(end_frozen_at(moment, SIGNALS[(n + first) % 2], kind, trees[kind], database, driver))
    tell("Signals, server frozen", driver, ends)


def test_without_the_timer_a_frozen_server_is_waited_for(tmp_path: Path) -> None:
    """Which is to say that the frozen server of these tests is one that would be waited for."""
    place = tmp_path / "slow"
    place.mkdir()
    (place / "sitecustomize.py").write_text("from alembic_entrypoint import boundary\nboundary.LIMIT = 60.0\n")
    with own_server(18, SETTINGS) as server:
        for driver in ("psycopg", "psycopg2"):
            tree = tree_of("in one transaction", driver, tmp_path / driver)
            with fresh_database(server) as database, pytest.MonkeyPatch.context() as patch:
                prepare(database)
                patch.setenv("PYTHONPATH", str(place))
                with frozen_at("in a statement", tree, database, driver) as run:
                    run.signal(signal.SIGTERM)
                    with pytest.raises(subprocess.TimeoutExpired):
                        run.process.wait(LIMIT)
