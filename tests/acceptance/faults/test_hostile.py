"""Migrations that undo what their session was given, or do what it was not told of."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from witness import has_witness, lines_of, off, violations, witnessed

from alembic_entrypoint.postgres.session import SESSION
from alembic_entrypoint.worker.messages import LOCK_B, LOCK_CLASS
from commands import started
from projects import ASYNC_ENV, ENV, PER_MIGRATION, Project
from servers import Database, is_running, processes_of, wait_until

pytestmark = pytest.mark.faults

IN_A_BLOCK = "with op.get_context().autocommit_block():\n    op.execute({!r})"
OWN_ENGINE = """
engine = sa.create_engine(op.get_bind().engine.url, poolclass=sa.pool.NullPool)
with engine.begin() as connection:
    connection.exec_driver_sql("SELECT note('its own engine')")
"""
RAW = """
import psycopg
url = op.get_bind().engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
with psycopg.connect(url, autocommit=True) as raw:
    raw.execute("SELECT note('its raw connection')")
"""
#: What pg_dump begins with. With that search path Alembic does not find its version table.
PREAMBLE = """
op.execute("SET statement_timeout = 0")
op.execute("SET lock_timeout = 0")
op.execute("SET idle_in_transaction_session_timeout = '1h'")
op.execute("SELECT pg_catalog.set_config('search_path', '', false)")
"""
#: What a migration does. By the last ones the drivers have prepared what we ask, and are to forget it.
HOSTILE = {
    "nothing": "pass",
    "unlock_all": "op.execute('SELECT pg_advisory_unlock_all()')",
    "unlock_all in a block": IN_A_BLOCK.format("SELECT pg_advisory_unlock_all()"),
    "advisory locks of its own": "op.execute('SELECT pg_advisory_lock(1, 2), pg_advisory_xact_lock(42)')",
    "a bare except": "try:\n    op.execute('SELECT 1')\nexcept:\n    pass",
    "RESET ALL": "op.execute('RESET ALL')",
    "a pg_dump preamble": PREAMBLE + "op.execute('SET search_path = public')",
    "an engine of its own": OWN_ENGINE,
    "a raw connection": RAW,
    "SET ROLE": "op.execute('SET ROLE weak')",
    "DISCARD ALL": IN_A_BLOCK.format("DISCARD ALL"),
    "DEALLOCATE ALL": "op.execute('DEALLOCATE ALL')",
}
FORGETTING = ("DISCARD ALL", "DEALLOCATE ALL")
NOTES = f"""
CREATE TABLE seen (name text, is_fenced bool, settings text[]);
CREATE FUNCTION note(text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.seen SELECT $1,
    EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND mode = 'ShareLock'
               AND granted AND classid = {LOCK_CLASS} AND objid = {LOCK_B}),
    ARRAY(SELECT name || ' = ' || setting FROM pg_settings
           WHERE name IN ('application_name', {str(list(SESSION))[1:-1]}) ORDER BY name) $$;
DO $$ BEGIN CREATE ROLE weak; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$;
GRANT ALL ON SCHEMA public TO weak; GRANT ALL ON seen TO weak;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO weak;
"""
#: What the next migration finds; and what another one's damage must not hide.
LOOK = "op.execute(\"SELECT note('{0}')\")\n"
LOOK_OUTSIDE = "with op.get_context().autocommit_block():\n    op.execute(\"SELECT note('{0}, outside')\")\n"
MEND = f"SELECT pg_advisory_lock_shared({LOCK_CLASS}, {LOCK_B}), set_config('lock_timeout', '5s', false) -- {{0}}"

#: whether a session was fenced, and its settings
Found = tuple[bool, list[str]]


def seen_after_each(folder: Path, database: Database, driver: str, env: str, **extra: str) -> dict[str, Found]:
    """Run all that is hostile, and a look after each, in its transaction and outside of it; give what was found."""
    database.execute(NOTES)
    tree = witnessed(folder, 0, env=env)
    for n, (name, body) in enumerate(HOSTILE.items()):
        # SQLAlchemy itself begins no block on asyncpg once its statement for that is forgotten.
        outside = "" if driver == "asyncpg" and name in FORGETTING else LOOK_OUTSIDE
        tree.add(f"h{n}", body, down=f"look{n - 1}" if n else None)
        tree.add(f"look{n}", f'{LOOK}{outside}op.execute("{MEND}")'.format(name), down=f"h{n}")
    ours = {"DATABASE_URL": database.url_on(driver), "ALEMBIC_ENTRYPOINT_IGNORE": "public.seen"}
    with started(tree.folder, "migrate", env={**ours, **extra}) as run:
        result = run.end(90)
    assert result.code == 0, result.stderr
    return {name: (fenced, settings) for name, fenced, settings in database.query("SELECT * FROM seen")}


@pytest.mark.parametrize(
    ("driver", "env"),
    [("psycopg", ENV), ("psycopg2", ENV), ("asyncpg", ASYNC_ENV), ("psycopg", ASYNC_ENV)],
    ids=["psycopg", "psycopg2", "asyncpg", "async psycopg"],
)
def test_a_hostile_migration_takes_neither_fence_nor_timeouts_from_the_next(
    tmp_path: Path, watched: Database, driver: str, env: str
) -> None:
    seen = seen_after_each(tmp_path, watched, driver, env)
    as_first = seen["nothing"]
    assert as_first[0]
    assert "lock_timeout = 5000" in as_first[1]
    assert {name: found for name, found in seen.items() if found != as_first} == {}
    assert seen.keys() >= {*HOSTILE, "unlock_all, outside", "its own engine", "its raw connection"}


def test_without_the_renewal_a_hostile_migration_takes_them(tmp_path: Path, watched: Database) -> None:
    seen = seen_after_each(tmp_path, watched, "psycopg", ENV, **off(tmp_path, "renewal"))
    unfenced = {name for name, (is_fenced, _) in seen.items() if not is_fenced}
    assert {name.removesuffix(", outside") for name in unfenced} == {
        "unlock_all",
        "unlock_all in a block",
        "DISCARD ALL",
    }
    impatient = {name for name, (_, settings) in seen.items() if "lock_timeout = 5000" not in settings}
    assert {name.removesuffix(", outside") for name in impatient} == {"RESET ALL", "a pg_dump preamble", "DISCARD ALL"}


def test_without_the_share_no_connection_is_fenced(tmp_path: Path, watched: Database) -> None:
    seen = seen_after_each(tmp_path, watched, "psycopg", ENV, **off(tmp_path, "share"))
    assert not any(seen[name][0] for name in ("nothing", "its own engine", "its raw connection"))


def test_a_pg_dump_preamble_that_hides_the_version_table_fails_and_is_rolled_back(
    tmp_path: Path, watched: Database
) -> None:
    """As with Alembic alone: it does not find what it has to write to."""
    tree = witnessed(tmp_path, 1, seconds=0)
    tree.add("r2", PREAMBLE, down="r1")
    with started(tree.folder, "migrate", env={"DATABASE_URL": watched.url}) as run:
        result = run.end(60)
    assert result.code == 1, result.stderr
    assert 'relation "alembic_version" does not exist' in result.message
    assert "The database is as before: nothing was committed." in result.message
    assert watched.query("SELECT to_regclass('t1'), to_regclass('alembic_version')") == [(None, None)]


#: Which sessions of other workers are there in a migration.
BESIDE = """
CREATE TABLE beside AS SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
       AND application_name LIKE 'alembic-entrypoint migrating%'
"""


@contextmanager
def outlived_by_a_child(folder: Path, database: Database) -> Iterator[tuple[Project, dict[str, str]]]:
    """Kill a migrator in its second migration; what that forked keeps the socket until the end of the block."""
    tree, over = witnessed(folder, 1, seconds=0, env=PER_MIGRATION), folder / "over"
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
    env = {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "2"}
    try:
        with started(tree.folder, "migrate", env=env) as run:
            wait_until(lambda: has_witness(database, "r2"), 60)
            for pid in processes_of(run.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.end()
        tree.add(
            "r2",
            f"op.execute(f\"SELECT witness({{os.getpid()}}, 'r2')\")\nop.execute({BESIDE!r})",
            down="r1",
            head="import os",
        )
        yield tree, env
    finally:
        over.touch()


def test_a_forked_child_that_keeps_the_socket_keeps_the_fence(tmp_path: Path, watched: Database) -> None:
    with (
        outlived_by_a_child(tmp_path, watched) as (tree, env),
        started(tree.folder, "migrate", env=env, name="second") as second,
    ):
        result = second.end(60)
    assert result.code == 75, result.stderr
    assert "alembic-entrypoint migrating" in result.message
    with started(tree.folder, "migrate", env={**env, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "60"}, name="third") as third:
        assert third.end(90).code == 0
    assert violations(watched) == []
    assert watched.query("SELECT count(*) FROM beside") == [(0,)]


def test_who_does_not_wait_for_the_fence_migrates_beside_a_forked_child(tmp_path: Path, watched: Database) -> None:
    with (
        outlived_by_a_child(tmp_path, watched) as (tree, env),
        started(tree.folder, "migrate", env={**env, **off(tmp_path, "clearing")}, name="second") as second,
    ):
        assert second.end(60).code == 0
    assert watched.query("SELECT count(*) FROM beside") == [(1,)], "the session that the child keeps"


@contextmanager
def killed_beside_its_child(folder: Path, database: Database, **extra: str) -> Iterator[int]:
    """Kill the parent of a migration that has started a process, and name that process."""
    tree = witnessed(folder, 0)
    start = """
import subprocess
child = subprocess.Popen(["sleep", "60"], close_fds=False)
op.execute(f"SELECT witness({child.pid}, 'child')")
op.execute("SELECT pg_sleep(60)")
"""
    tree.add("r1", start)
    with started(tree.folder, "migrate", env={"DATABASE_URL": database.url, **extra}) as run:
        wait_until(lambda: has_witness(database, "child"), 60)
        child = lines_of(database)[0][0]
        try:
            assert is_running(child)
            run.signal(signal.SIGKILL)
            yield child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(os.getpgid(child), signal.SIGKILL)


def test_what_a_migration_started_ends_with_a_killed_parent(tmp_path: Path, watched: Database) -> None:
    with killed_beside_its_child(tmp_path, watched) as child:
        wait_until(lambda: not is_running(child), 20)


def test_a_deaf_worker_leaves_what_a_migration_started(tmp_path: Path, watched: Database) -> None:
    with killed_beside_its_child(tmp_path, watched, **off(tmp_path, "hearing")) as child:
        killed = time.monotonic()
        wait_until(lambda: time.monotonic() - killed > 3.0)
        assert is_running(child)
