"""Who is in the way is named, and what is in the way is waited for no longer than it was said."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import psycopg
import pytest
from witness import SETTINGS, has_witness, in_rounds, prepare, witnessed

from commands import started
from servers import Database, Server, fresh_database, own_server, wait_until

pytestmark = pytest.mark.faults

BLOCKED = "op.execute('ALTER TABLE busy ADD COLUMN more int')"


TIMEOUT = 1.5


@pytest.mark.parametrize("timeout", [TIMEOUT, 0])
def test_a_blocked_migration_stalls_the_tables_users_no_longer_than_the_timeout(
    tmp_path: Path, watched: Database, timeout: float
) -> None:
    """And is tried again, naming who blocks it. Switched off, it stalls them for as long as that takes."""
    tree = witnessed(tmp_path, 1, seconds=0)
    tree.add("r2", BLOCKED, down="r1")
    watched.execute("CREATE SCHEMA app; CREATE TABLE app.busy (id int)")
    watched.execute(f"ALTER DATABASE {watched.name} SET search_path = app, public")
    env = {
        "DATABASE_URL": watched.url,
        "ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": str(timeout),
        "ALEMBIC_ENTRYPOINT_IGNORE": "app.busy",
    }
    with watched.connect(application_name="a long report") as report, started(tree.folder, "migrate", env=env) as run:
        report.execute("BEGIN; SELECT * FROM app.busy")
        queues = "SELECT count(*) FROM pg_locks WHERE relation = 'app.busy'::regclass AND NOT granted"
        wait_until(lambda: watched.query(queues) == [(1,)], 60)
        elapsed = seconds_to_insert(watched, limit=2 * TIMEOUT)
        assert (elapsed is None) is (timeout == 0), elapsed
        assert elapsed is None or elapsed < timeout + 1.0
        wait_until(lambda: run.has("migration.retried" if timeout else "migration.blocked"), 30)
        report.execute("COMMIT")
        result = run.end(60)
    assert result.code == 0, result.stderr
    assert "'a long report'" in result.named("migration.blocked")[0]["blocker"]
    assert bool(result.named("migration.retried")) is bool(timeout)


def seconds_to_insert(database: Database, limit: float) -> float | None:
    """Write a row, as the table's users do; None where that takes longer than the limit, in seconds."""
    with database.connect() as user:
        user.execute(f"SET statement_timeout = '{limit}s'")
        began = time.monotonic()
        try:
            user.execute("INSERT INTO app.busy VALUES (1)")
        except psycopg.errors.QueryCanceled:
            return None
        return time.monotonic() - began


def test_when_the_retries_are_used_up_it_ends_with_75_and_each_has_named_the_blocker(
    tmp_path: Path, watched: Database
) -> None:
    """However short the timeout is."""
    tree = witnessed(tmp_path, 1, seconds=0)
    tree.add("r2", BLOCKED, down="r1")
    watched.execute("CREATE TABLE busy (id int)")
    env = {
        "DATABASE_URL": watched.url,
        "ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "0.3",
        "ALEMBIC_ENTRYPOINT_DDL_RETRIES": "2",
        "ALEMBIC_ENTRYPOINT_IGNORE": "public.busy",
    }
    with watched.connect(application_name="a long report") as report, started(tree.folder, "migrate", env=env) as run:
        report.execute("BEGIN; SELECT * FROM busy")
        result = run.end(60)
    assert result.code == 75, result.stderr
    assert "It was blocked by pid" in result.message
    assert "'a long report'" in result.message
    retried = result.named("migration.retried")
    assert ["'a long report'" in str(each["blocker"]) for each in retried] == [True, True], retried
    assert watched.query("SELECT to_regclass('alembic_version')") == [(None,)]


# Longer than two heartbeats, and than the wait for the lock.
BUILD = """
op.execute(f"SELECT witness({os.getpid()}, 'r1')")
op.execute("CREATE TABLE many AS SELECT id, repeat('x', 1000) FROM generate_series(1, 6000) AS id")
op.execute(f"CREATE INDEX many_id ON many (slow(id, {os.getpid()}))")
"""


def test_a_replica_that_gives_up_names_the_holder_and_how_to_end_it(tmp_path: Path, watched: Database) -> None:
    tree = witnessed(tmp_path, 0)
    tree.add("r1", BUILD, head="import os")
    env = {"DATABASE_URL": watched.url, "ALEMBIC_ENTRYPOINT_IMAGE": "v7"}
    with started(tree.folder, "migrate", env=env, name="first") as first:
        wait_until(lambda: has_witness(watched, "r1"), 60)
        with started(
            tree.folder, "migrate", env={**env, "ALEMBIC_ENTRYPOINT_LOCK_WAIT": "13"}, name="second"
        ) as second:
            result = second.end(60)
        beat = next(each for each in first.events if each["event"] == "migration.running")
    assert result.code == 75
    pid = re.search(r"SELECT pg_terminate_backend\((\d+)\);", result.message)
    assert pid, result.message
    name = f"alembic-entrypoint locking {socket.gethostname()} v7"[:63]
    waits = result.named("lock.waiting")
    assert len(waits) == 2, "once for the holder, and again after ten seconds"
    for each in waits:
        who = rf"pid {pid[1]} '{re.escape(name)}' from 127\.0\.0\.1, (idle|active), connected for \d+ s"
        assert re.fullmatch(who, each["holder"])
        assert re.fullmatch(r"(runs|ran last), since \d+ s: \w.+", each["doing"])
        assert re.search(who, result.message)
    assert (beat["revision"], beat["n"], beat["of"]) == ("r1", 1, 1)
    assert beat["elapsed"] >= 5.0, "the worker has looked before, and the first beat comes ten seconds after it began"
    assert 0.0 < beat["statement_age"] <= beat["elapsed"]
    assert re.fullmatch(r"building index: scanning table, \d+ %", beat["progress"])


def test_a_replica_with_nothing_to_do_starts_while_another_migrates(tmp_path: Path, watched: Database) -> None:
    old = witnessed(tmp_path / "old", 1, seconds=0)
    new = witnessed(tmp_path / "new", 2, seconds=0)
    new.add("r3", "op.execute(f\"SELECT witness({__import__('os').getpid()}, 'r3', 30)\")", down="r2")
    env = {"DATABASE_URL": watched.url}
    with started(old.folder, "migrate", env=env) as run:
        assert run.end(60).code == 0
    with started(new.folder, "migrate", env=env):
        wait_until(lambda: has_witness(watched, "r3"), 60)
        with started(old.folder, "run", "echo", "the app", env=env, name="again") as run:
            result = run.end(20)
    assert (result.code, result.stdout) == (0, "the app\n")


def test_two_replicas_do_not_take_the_lock_in_turn(tmp_path: Path, watched_server: Server) -> None:
    tree = witnessed(tmp_path, 2, seconds=0.3)

    def round_of(database: Database, n: int) -> int:
        env = {"DATABASE_URL": database.url}
        with (
            started(tree.folder, "migrate", env=env, name=f"{database.name}-0") as first,
            started(tree.folder, "migrate", env=env, name=f"{database.name}-1") as second,
        ):
            results = [first.end(60), second.end(60)]
        assert [each.code for each in results] == [0, 0]
        return sum(bool(each.named("lock.acquired")) for each in results)

    assert in_rounds(3, round_of, watched_server) == [1, 1, 1]


def test_an_interrupted_build_is_named_by_the_failure(tmp_path: Path) -> None:
    tree = witnessed(tmp_path, 1, seconds=0)
    build = """
op.execute("CREATE TABLE twice AS SELECT 1 AS id UNION ALL SELECT 1")
with op.get_context().autocommit_block():
    op.execute("CREATE UNIQUE INDEX CONCURRENTLY twice_id ON twice (id)")
"""
    tree.add("r2", build, down="r1")
    with own_server(18, SETTINGS) as server, fresh_database(server) as database:
        prepare(database)
        for name in ("first", "again"):
            with started(tree.folder, "migrate", env={"DATABASE_URL": database.url}, name=name) as run:
                result = run.end(60)
            assert result.code == 1
            assert "DROP INDEX CONCURRENTLY public.twice_id;" in result.message
