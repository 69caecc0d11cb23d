"""Migrations that undo what their session was given, or do what it was not told of."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from witness import (
    PER_MIGRATION,
    closed_gate,
    has_witness,
    lines_of,
    recorded,
    violations,
    witnessed,
)

from alembic_entrypoint.worker.messages import LOCK_B, LOCK_CLASS
from commands import started
from projects import ENV, Project
from servers import Database, is_running, processes_of, wait_until

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
