"""SIGTERM and SIGINT at every moment, on three drivers, also while the server is frozen: out within two seconds."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from witness import SETTINGS, has_witness, measured, prepare, recorded, rounds, sessions, witnessed

from commands import Running, started
from projects import ENV, Project
from servers import Database, Server, is_running, own_server, processes_of, signals_of, wait_until

pytestmark = pytest.mark.faults

ASYNC_ENV = """
import asyncio
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine


def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def run_online():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)


asyncio.run(run_online())
"""
DRIVERS = ("psycopg", "psycopg2", "asyncpg")
#: Two seconds are promised. The machine that tests may be busy; what was really taken is among the figures.
LIMIT = 4.0


def tree_on(driver: str, folder: Path) -> Project:
    """Make two migrations of which the second takes half a minute."""
    made = witnessed(folder, 1, env=ASYNC_ENV if driver == "asyncpg" else ENV, seconds=0.05)
    # One statement that says nothing for long, as most do: the driver waits in C.
    slow = "op.execute(f\"SELECT witness({os.getpid()}, 'slow')\")\nop.execute('SELECT pg_sleep(30)')"
    made.add("r2", slow, down="r1", head="import os")
    return made


def address(database: Database, driver: str) -> dict[str, str]:
    return {"DATABASE_URL": database.url.replace("postgresql://", f"postgresql+{driver}://")}


def seconds_to_end(run: Running, signum: int) -> tuple[float, int]:
    """Send a signal; give the seconds until the end, and the code."""
    with open(os.pidfd_open(run.pid)) as process:  # wait() with a limit looks only twenty times a second
        began = time.monotonic()
        run.signal(signum)
        select.select([process], [], [], 30)
        return time.monotonic() - began, run.process.wait(1)


MOMENTS = ("", "server.examined", "lock.acquired", "schema.decided", "migration.finished", "in a statement")


def moment_of(run: Running, database: Database, n: int) -> str:
    """Wait for a moment a little after the one that it is the turn of; give the name of what was the last event."""
    aim, begun = MOMENTS[n % len(MOMENTS)], server_log(database).count(" slow")

    def is_in_a_statement() -> bool:
        return server_log(database).count(" slow") > begun

    wait_until(lambda: is_in_a_statement() if aim == "in a statement" else not aim or run.has(aim), 60)
    reached, length = time.monotonic(), random.uniform(0.0, 0.25)
    wait_until(lambda: time.monotonic() - reached > length)
    if is_in_a_statement():
        return "in a statement"
    return run.events[-1]["event"] if run.events else "starting"


def server_log(database: Database) -> str:
    assert isinstance(database.server, Server)
    return database.server.log


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_signal_ends_everything_within_two_seconds(tmp_path: Path, watched: Database, driver: str) -> None:
    tree = tree_on(driver, tmp_path)
    longest, moments = 0.0, []
    for n in range(rounds(40, len(MOMENTS))):
        signum = (signal.SIGTERM, signal.SIGINT)[(n + n // len(MOMENTS)) % 2]
        with started(tree.folder, "run", "sleep", "60", env=address(watched, driver)) as run:
            moments.append(moment_of(run, watched, n))
            family = processes_of(run.pid)
            is_caught = signal.SIGTERM in signals_of(run.pid, "SigCgt")  # SIGINT Python catches by itself
            elapsed, code = seconds_to_end(run, signum)
            # Before the first line of ours is run Python ends as it likes, and nothing has been begun.
            as_python_likes = [] if is_caught else [-signum, 1] if signum == signal.SIGINT else [-signum]
            assert code in [128 + signum, *as_python_likes], (moments[-1], code, run.log.read_text())
            assert code == 128 + signum or not run.events
            assert elapsed < LIMIT, (moments[-1], elapsed)
            wait_until(lambda: not sessions(watched), 10, what="no session is left")
            assert not any(is_running(pid) for pid in family)
        assert watched.query("SELECT to_regclass('t1')") == [(None,)]
        longest = max(longest, elapsed)
    measured("Signals", driver=driver, rounds=len(moments), longest=round(longest, 2), moments=Counter(moments))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_signal_ends_everything_while_the_server_is_frozen(tmp_path: Path, driver: str) -> None:
    tree = tree_on(driver, tmp_path)
    longest, total = 0.0, rounds(10, 2)
    with own_server(18, SETTINGS) as server:
        database = Database(server, "postgres")
        prepare(database)
        for n in range(total):
            with started(tree.folder, "migrate", env=address(database, driver)) as run:
                begun = server.log.count("slow")
                wait_until(lambda begun=begun: server.log.count("slow") > begun, 60)  # type: ignore[misc]
                family = processes_of(run.pid)
                server.freeze()
                frozen, later = time.monotonic(), 1.2 * (n % 2)
                try:
                    # Half a second later there is a statement of the parent's, too, that is never answered.
                    wait_until(lambda since=frozen, later=later: time.monotonic() - since >= later)  # type: ignore[misc]
                    elapsed, code = seconds_to_end(run, signal.SIGTERM)
                    assert (code, elapsed < LIMIT) == (143, True), elapsed
                    assert not any(is_running(pid) for pid in family)
                finally:
                    server.thaw()
            wait_until(lambda: not sessions(database), 20, what="no session is left once the server runs again")
            assert database.query("SELECT to_regclass('alembic_version')") == [(None,)]
            longest = max(longest, elapsed)
    measured("Signals, server frozen", driver=driver, rounds=total, longest=round(longest, 2))


def test_without_the_timer_a_frozen_server_is_waited_for(tmp_path: Path) -> None:
    tree = tree_on("psycopg", tmp_path)
    without = {"PYTHONPATH": str(tmp_path / "slow")}
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "from alembic_entrypoint import boundary\nboundary.LIMIT = 60.0\n"
    )
    with own_server(18, SETTINGS) as server:
        database = Database(server, "postgres")
        prepare(database)
        with started(tree.folder, "migrate", env={**address(database, "psycopg"), **without}) as run:
            wait_until(lambda: "slow" in server.log, 60)
            server.freeze()
            try:
                run.signal(signal.SIGTERM)
                with pytest.raises(Exception, match="timed out"):
                    run.process.wait(LIMIT)
            finally:
                server.thaw()


def test_a_cancelled_concurrent_build_is_named_by_the_next_start(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 1, seconds=0.0)
    build = """
with op.get_context().autocommit_block():
    op.execute("CREATE TABLE IF NOT EXISTS big AS SELECT generate_series(1, 2000) AS id")
    op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS big_id ON big (slow(id, {os.getpid()}))")
"""
    tree.add("r2", build, down="r1", head="import os")
    with started(tmp_path, "migrate", env={"DATABASE_URL": watched.url}) as run:
        wait_until(lambda: has_witness(watched, "concurrently"), 60)
        elapsed, code = seconds_to_end(run, signal.SIGTERM)
    assert (code, elapsed < LIMIT) == (143, True)
    wait_until(lambda: not sessions(watched), 10)
    with started(tmp_path, "migrate", env={"DATABASE_URL": watched.url}) as run:
        result = run.end(60)
    assert "DROP INDEX CONCURRENTLY public.big_id;" in result.stderr
    assert recorded(watched) == ["r2"], result.stderr
