"""Migrations that undo what their session was given, and builds that a lock of ours could stall."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from test_signal_moments import ASYNC_ENV, DRIVERS, address
from witness import (
    PER_MIGRATION,
    closed_gate,
    has_witness,
    lines_of,
    measured,
    off,
    prepare,
    recorded,
    violations,
    witnessed,
)

from alembic_entrypoint.worker.messages import LOCK_B, LOCK_CLASS
from commands import Running, started
from projects import ENV, Project
from servers import Database, Server, fresh_database, is_running, processes_of, wait_until

pytestmark = pytest.mark.faults

IN_A_BLOCK = "with op.get_context().autocommit_block():\n    op.execute({!r})"
OWN_ENGINE = """
engine = sa.create_engine(op.get_bind().engine.url, poolclass=sa.pool.NullPool)
with engine.begin() as connection:
    connection.exec_driver_sql('CREATE TABLE own ()')
"""
PREAMBLE = """
op.execute("SET lock_timeout = 0")
op.execute("SET idle_in_transaction_session_timeout = 0")
op.execute("SELECT pg_catalog.set_config('search_path', '', false)")
op.execute("SET search_path = public")
"""
HOSTILE = {
    "DISCARD ALL": IN_A_BLOCK.format("DISCARD ALL"),
    "RESET ALL": "op.execute('RESET ALL')",
    "unlock_all": "op.execute('SELECT pg_advisory_unlock_all()')",
    "unlock_all in a block": IN_A_BLOCK.format("SELECT pg_advisory_unlock_all()"),
    "a pg_dump preamble": PREAMBLE,
    "advisory locks of its own": "op.execute('SELECT pg_advisory_lock(1, 2), pg_advisory_xact_lock(42)')",
    "SET ROLE": "op.execute('SET ROLE hostile')",
    "an engine of its own": OWN_ENGINE,
    "a bare except": "try:\n    op.execute('SELECT 1')\nexcept:\n    pass",
}


def backends_with_the_fence(database: Database) -> set[int]:
    rows = database.query(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted "
        "AND classid = %s AND objid = %s",
        LOCK_CLASS,
        LOCK_B,
    )
    return {pid for (pid,) in rows}


def holds_the_fence(tree: Project, database: Database, env: dict[str, str]) -> bool:
    """Run until r2 stands at the gate; tell whether its backend holds the fence, and let it end."""
    with started(tree.folder, "migrate", env={"DATABASE_URL": database.url, **env}) as run:
        with closed_gate(database):
            wait_until(lambda: has_witness(database, "gate") or run.process.poll() is not None, 60)
            backends = {backend for _, backend, _ in lines_of(database)}
            assert backends, run.log.read_text()
            is_held = backends <= backends_with_the_fence(database)
        result = run.end(60)
        assert result.code == 0 or not is_held, result.stderr
    return is_held


GATE = 'op.execute(f"SELECT gate({os.getpid()})")'


def hostile_tree(folder: Path, body: str, *, env: str = ENV) -> Project:
    """Make a hostile first migration, and a second one that stands at the gate, outside of a transaction."""
    made = witnessed(folder, 0, env=env)
    made.add("r1", body)
    timeouts = "op.execute(\"CREATE TABLE timeouts AS SELECT current_setting('lock_timeout') AS lock\")"
    block = f"with op.get_context().autocommit_block():\n    {GATE}"
    made.add("r2", f"{timeouts}\n{block}", down="r1", head="import os")
    return made


@pytest.fixture
def hostile(watched: Database) -> Database:
    watched.execute(
        "DO $$ BEGIN CREATE ROLE hostile SUPERUSER; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
    )
    return watched


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_migration_takes_neither_fence_nor_timeouts_from_the_next(
    tmp_path: Path, hostile: Database, body: str
) -> None:
    assert holds_the_fence(hostile_tree(tmp_path, body), hostile, {})
    assert recorded(hostile) == ["r2"]
    assert hostile.query("SELECT lock FROM timeouts") == [("5s",)]


@pytest.mark.parametrize("name", ["DISCARD ALL", "unlock_all"])
def test_without_the_renewal_a_hostile_migration_takes_the_fence(tmp_path: Path, hostile: Database, name: str) -> None:
    place = tmp_path / "bare"
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        "try:\n    from alembic_entrypoint.worker import transactions\n"
        "    transactions.Fence.hold = lambda self, connection: None\n"
        "    transactions.Fence.check_migration = transactions.Fence.hold\nexcept ImportError:\n    pass\n"
    )
    assert not holds_the_fence(hostile_tree(tmp_path, HOSTILE[name]), hostile, {"PYTHONPATH": str(place)})


def test_a_raw_connection_beside_sqlalchemys_holds_the_fence(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 1, seconds=0)
    body = """
url = op.get_bind().engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
with psycopg.connect(url, autocommit=True) as raw:
    raw.execute(f"SELECT gate({os.getpid()})")
"""
    tree.add("r2", body, down="r1", head="import os\nimport psycopg")
    assert holds_the_fence(tree, watched, {})


def test_a_forked_child_that_keeps_the_socket_keeps_the_fence(tmp_path: Path, watched: Database) -> None:
    tree, over = witnessed(tmp_path, 1, seconds=0, env=PER_MIGRATION), tmp_path / "over"
    fork = f"""
child = os.fork()
if not child:
    os.setsid()
    while not os.path.exists({str(over)!r}):
        time.sleep(0.05)
    os._exit(0)
op.execute(f"SELECT witness({{os.getpid()}}, 'r2', 0.05)")
time.sleep(60)
"""
    tree.add("r2", fork, down="r1", head="import os\nimport time")
    env = {"DATABASE_URL": watched.url, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "2"}
    try:
        with started(tree.folder, "migrate", env=env) as run:
            wait_until(lambda: has_witness(watched, "r2"), 60)
            for pid in processes_of(run.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.end()
        tree.add("r2", "op.execute(f\"SELECT witness({os.getpid()}, 'r2')\")", down="r1", head="import os")
        with started(tree.folder, "migrate", env=env, name="second") as second:
            result = second.end(60)
    finally:
        over.touch()
    assert result.code == 75, result.stderr
    assert "alembic-entrypoint migrating" in result.message
    with started(tree.folder, "migrate", env={**env, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "60"}, name="third") as third:
        assert third.end(90).code == 0
    assert violations(watched) == []


def test_what_a_migration_started_ends_with_a_killed_parent(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 0)
    start = """
import subprocess
child = subprocess.Popen(["sleep", "60"], close_fds=False)
op.execute(f"SELECT witness({child.pid}, 'child')")
op.execute("SELECT pg_sleep(60)")
"""
    tree.add("r1", start)
    with started(tree.folder, "migrate", env={"DATABASE_URL": watched.url}) as run:
        wait_until(lambda: has_witness(watched, "child"), 60)
        child = lines_of(watched)[0][0]
        assert is_running(child)
        run.signal(signal.SIGKILL)
        wait_until(lambda: not is_running(child), 20)


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
            took[waiting] = seconds_to_build(tree, database, address(database, driver), waiting)
    measured("CONCURRENTLY", driver=driver, alone=took[0], ten_waiting=took[10])
    # Ten polls a second and a busy machine's moment; who waits inside PostgreSQL would stall it for ever.
    assert took[10] < 1.25 * took[0] + 0.5


def test_waiters_that_block_inside_postgresql_stall_a_concurrent_build(tmp_path: Path, watched: Database) -> None:
    tree = index_tree(tmp_path, "psycopg")
    env = {**address(watched, "psycopg"), **off(tmp_path, "polling")}
    with building(tree, watched, env, 2) as runs:
        wait_until(lambda: has_witness(watched, "concurrently"), 60)
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 4 * ROWS * 0.01 or has_failed(runs), 30)
        is_stalled = all(run.process.poll() is None for run in runs)
        measured("CONCURRENTLY, blocking", stalled=is_stalled, failed=has_failed(runs))
        assert is_stalled or has_failed(runs)


def has_failed(runs: list[Running]) -> bool:
    return any(run.has("migration.failed") for run in runs)


def test_a_concurrent_build_waits_for_an_open_writer_however_long_and_is_valid(
    tmp_path: Path, watched: Database
) -> None:
    """With a lock timeout it would give up and leave an INVALID index behind [E11, R12]."""
    tree = witnessed(tmp_path, 1, seconds=0)
    build = """
with op.get_context().autocommit_block():
    op.execute("CREATE INDEX CONCURRENTLY busy_id ON busy (id)")
"""
    tree.add("r2", build, down="r1")
    watched.execute("CREATE TABLE busy (id int)")
    env = {
        "DATABASE_URL": watched.url,
        "ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "0.2",
        "ALEMBIC_ENTRYPOINT_IGNORE": "public.busy",
    }
    with watched.connect() as writer, started(tree.folder, "migrate", env=env) as run:
        writer.execute("BEGIN; INSERT INTO busy VALUES (1)")
        wait_until(lambda: run.has("migration.blocked") or run.process.poll() is not None, 60)
        assert run.has("migration.blocked"), run.log.read_text()
        blocked = time.monotonic()
        wait_until(lambda: time.monotonic() - blocked > 1.0)
        writer.execute("COMMIT")
        result = run.end(60)
    assert result.code == 0, result.stderr
    assert watched.query("SELECT indisvalid FROM pg_index WHERE indexrelid = 'busy_id'::regclass") == [(True,)]
