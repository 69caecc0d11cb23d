"""CONCURRENTLY: waiters stall no build, and our lock timeout ends none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from witness import closed_gate, has_witness, measured, off, prepare, witnessed

from commands import Running, started
from projects import ASYNC_ENV, DRIVERS, ENV, Project
from servers import Database, Server, fresh_database, wait_until

pytestmark = pytest.mark.faults

ROWS = 150


def index_tree(folder: Path, driver: str) -> Project:
    """Make a gated migration, and one that builds an index concurrently, in a second and a half."""
    made = witnessed(folder, 1, env=ASYNC_ENV if driver == "asyncpg" else ENV, seconds=0, gated=True)
    build = f"""
op.execute("CREATE TABLE many AS SELECT generate_series(1, {ROWS}) AS id")
with op.get_context().autocommit_block():
    op.execute(f"CREATE INDEX CONCURRENTLY many_id ON many (slow(id, {{os.getpid()}}))")
"""
    made.add("r2", build, down="r1", head="import os")
    return made


@contextmanager
def building(tree: Project, database: Database, env: dict[str, str], waiting: int) -> Iterator[list[Running]]:
    """Let one begin to build when so many others already wait for its lock."""
    with ExitStack() as stack:
        with closed_gate(database):
            runs = [stack.enter_context(started(tree.folder, "migrate", env=env, name=f"{database.name}-0"))]
            wait_until(lambda: has_witness(database, "gate"), 60)
            for n in range(1, waiting + 1):
                runs.append(stack.enter_context(started(tree.folder, "migrate", env=env, name=f"{database.name}-{n}")))
            wait_until(lambda: all(run.has("lock.waiting") or blocks_inside(database) for run in runs[1:]), 120)
        yield runs


def blocks_inside(database: Database) -> bool:
    """Tell whether somebody waits for an advisory lock inside PostgreSQL."""
    return database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") > [(0,)]


def seconds_to_build(tree: Project, database: Database, env: dict[str, str], waiting: int) -> float:
    """Build while so many replicas wait; give the seconds that the migration took."""
    with building(tree, database, env, waiting) as runs:
        results = [run.end(120) for run in runs]
    assert {each.code for each in results} == {0}, [each.message for each in results]
    assert database.query("SELECT indisvalid FROM pg_index WHERE indexrelid = 'many_id'::regclass") == [(True,)]
    return next(float(each["elapsed"]) for each in results[0].named("migration.finished") if each["revision"] == "r2")


@pytest.mark.parametrize("driver", DRIVERS)
def test_ten_waiters_do_not_stall_a_concurrent_build(tmp_path: Path, watched_server: Server, driver: str) -> None:
    tree = index_tree(tmp_path, driver)
    took = {}
    for waiting in (0, 10):
        with fresh_database(watched_server) as database:
            prepare(database)
            took[waiting] = seconds_to_build(tree, database, {"DATABASE_URL": database.url_on(driver)}, waiting)
    measured("CONCURRENTLY", driver=driver, alone=took[0], ten_waiting=took[10])
    # Ten polls a second and a busy machine's moment; who waits inside PostgreSQL would stall it for ever.
    assert took[10] < 1.25 * took[0] + 0.5


def test_waiters_that_block_inside_postgresql_stall_a_concurrent_build(tmp_path: Path, watched: Database) -> None:
    tree = index_tree(tmp_path, "psycopg")
    env = {"DATABASE_URL": watched.url_on("psycopg"), **off(tmp_path, "polling")}
    with building(tree, watched, env, 2) as runs:
        wait_until(lambda: has_witness(watched, "concurrently"), 60)
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 4 * ROWS * 0.01 or has_failed(runs), 30)
        is_stalled = all(run.process.poll() is None for run in runs)
        measured("CONCURRENTLY, blocking", stalled=is_stalled, failed=has_failed(runs))
        assert is_stalled or has_failed(runs)


def has_failed(runs: list[Running]) -> bool:
    return any(run.has("migration.failed") for run in runs)


TIMEOUT = 0.2
#: What waits for every open writer of its table, and must not give up half-way: by the table.
CONCURRENT = {
    "made": "CREATE INDEX CONCURRENTLY made_now ON made (id)",
    "dropped": "DROP INDEX CONCURRENTLY dropped_id",
    "rebuilt": "REINDEX (CONCURRENTLY) INDEX rebuilt_id",
    "indexed": "REINDEX TABLE CONCURRENTLY indexed",
    "parted": "ALTER TABLE parted DETACH PARTITION parted_one CONCURRENTLY",
}
TABLES = """
CREATE TABLE made (id int); CREATE TABLE dropped (id int); CREATE INDEX dropped_id ON dropped (id);
CREATE TABLE rebuilt (id int); CREATE INDEX rebuilt_id ON rebuilt (id);
CREATE TABLE indexed (id int); CREATE INDEX indexed_id ON indexed (id);
CREATE TABLE parted (id int) PARTITION BY LIST (id); CREATE TABLE parted_one PARTITION OF parted FOR VALUES IN (1);
"""
# A build that fails leaves the session with its lock timeout, too.
ALL_CONCURRENT = f"""
with op.get_context().autocommit_block():
    for statement in {list(CONCURRENT.values())}:
        op.execute(statement)
    try:
        op.execute("CREATE INDEX CONCURRENTLY nothing ON nowhere (id)")
    except sa.exc.DBAPIError:
        op.execute("CREATE TABLE timeouts AS SELECT current_setting('lock_timeout') AS lock")
"""


def concurrent_tree(folder: Path, driver: str) -> Project:
    made = witnessed(folder, 0, env=ASYNC_ENV if driver == "asyncpg" else ENV)
    made.add("r1", ALL_CONCURRENT)
    return made


@contextmanager
def beside_writers(tree: Project, database: Database, env: dict[str, str]) -> Iterator[Running]:
    """Run while every table has an open writer, each of which ends after it was waited for longer than the timeout."""
    database.execute(TABLES)
    ours = {"ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": str(TIMEOUT), "ALEMBIC_ENTRYPOINT_IGNORE": "public.*"}
    with ExitStack() as stack:
        writers = [stack.enter_context(database.connect()) for _ in CONCURRENT]
        for writer, table in zip(writers, CONCURRENT, strict=True):
            writer.execute(f"BEGIN; INSERT INTO {table} VALUES (1)")
        run = stack.enter_context(started(tree.folder, "migrate", env={**ours, **env}))
        for writer in writers:
            keep_waiting(run, database, writer.info.backend_pid)
            writer.execute("COMMIT")
        yield run


def keep_waiting(run: Running, database: Database, pid: int) -> None:
    """Wait until the migration has waited for a session for longer than the timeout, or has ended."""
    is_waited_for = "SELECT count(*) FROM pg_locks WHERE NOT granted AND %s = ANY(pg_blocking_pids(pid))"
    wait_until(lambda: database.query(is_waited_for, pid) == [(1,)] or has_ended(run), 60)
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 2 * TIMEOUT or has_ended(run))


def has_ended(run: Running) -> bool:
    return run.process.poll() is not None


INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_concurrent_waits_for_open_writers_however_long_and_is_valid(
    tmp_path: Path, watched: Database, driver: str
) -> None:
    """With a lock timeout it would give up and leave an INVALID index behind [E11, R12]."""
    with beside_writers(concurrent_tree(tmp_path, driver), watched, {"DATABASE_URL": watched.url_on(driver)}) as run:
        result = run.end(60)
    assert result.code == 0, result.stderr
    assert watched.query(INVALID) == []
    assert watched.query("SELECT to_regclass('made_now') IS NOT NULL, to_regclass('dropped_id')") == [(True, None)]
    assert watched.query("SELECT count(*) FROM pg_inherits") == [(0,)]
    assert watched.query("SELECT lock FROM timeouts") == [("200ms",)]


def test_with_a_lock_timeout_what_is_concurrent_leaves_an_invalid_index(tmp_path: Path, watched: Database) -> None:
    env = {"DATABASE_URL": watched.url_on("psycopg"), **off(tmp_path, "exemption")}
    with beside_writers(concurrent_tree(tmp_path, "psycopg"), watched, env) as run:
        result = run.end(60)
    assert result.code == 1, result.stderr
    assert watched.query(INVALID) == [("made_now",)]
    assert "DROP INDEX CONCURRENTLY public.made_now;" in result.message
