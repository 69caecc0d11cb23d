"""Whatever happens to a run between its first look and its last write, it records what is proved or nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from commands import Running, entrypoint, started
from dumps import normalised
from projects import Project, project
from servers import Database, Server, wait_until

Person = psycopg.Connection[Any]
SCRATCH = "SELECT datname FROM pg_database WHERE datname ~ '^alembic_entrypoint_scratch'"
OURS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'alembic-entrypoint%'"
WAITS = f"{OURS} AND datname = current_database() AND wait_event_type = 'Lock'"
RECORDS = f"{WAITS} AND query LIKE 'LOCK TABLE%%'"


@pytest.fixture
def tree(tmp_path: Path, database: Database) -> Project:
    """Make three migrations, of which the second goes on only when there is no file `hold`; and a database at it."""
    made = project(tmp_path)
    made.add("r1", "op.execute('CREATE TABLE t1 (id int); CREATE INDEX t1_index ON t1 (id)')")
    slow = """
    while os.path.exists("hold"):
        op.execute("SELECT pg_sleep(0.2)")
    op.execute("CREATE TABLE t2 (id int PRIMARY KEY)")
    """
    made.add("r2", slow, down="r1", head="import os")
    made.add("r3", "op.execute('CREATE TABLE t3 (id int PRIMARY KEY)')", down="r2")
    env = {"DATABASE_URL": database.url}
    assert entrypoint("migrate", "--target", "r2", cwd=made.folder, env=env).code == 0
    database.execute("UPDATE alembic_version SET version_num = 'lost'")
    return made


def recorded(database: Database) -> list[str]:
    return [row[0] for row in database.query("SELECT version_num FROM alembic_version ORDER BY 1")]


def migrating(tree: Project, database: Database, name: str = "run") -> AbstractContextManager[Running]:
    return started(tree.folder, "migrate", env={"DATABASE_URL": database.url}, name=name)


@contextmanager
def in_its_replay(tree: Project, database: Database) -> Iterator[Callable[[Running], bool]]:
    hold = tree.write("hold", "")
    asleep = f"{OURS} AND wait_event = 'PgSleep' AND datname IN ({SCRATCH})"
    try:
        yield lambda _: bool(database.query(asleep))
    finally:
        hold.unlink()


@contextmanager
def in_its_look_at_the_schema(tree: Project, database: Database) -> Iterator[Callable[[Running], bool]]:
    # What an index is cannot be read while it may be dropped.
    with database.connect(autocommit=False) as person:
        person.execute("DROP INDEX t1_index")
        yield lambda running: running.has("schema.observed", state="LOST") and bool(database.query(WAITS))
        person.rollback()


@contextmanager
def before_it_records(tree: Project, database: Database) -> Iterator[Callable[[Running], bool]]:
    with waiting_to_record(database):
        yield lambda running: running.has("schema.proved") and bool(database.query(RECORDS))


@contextmanager
def waiting_to_record(database: Database) -> Iterator[Person]:
    """Hold the version table as who writes there does: it can still be read."""
    with database.connect(autocommit=False) as person:
        person.execute("LOCK TABLE alembic_version IN ROW EXCLUSIVE MODE")
        yield person


MOMENTS = {"replay": in_its_replay, "look": in_its_look_at_the_schema, "record": before_it_records}


@pytest.mark.parametrize(
    "moment", ["replay", *(pytest.param(each, marks=pytest.mark.wide) for each in ("look", "record"))]
)
def test_a_run_that_is_killed_changes_nothing_and_the_next_one_ends_right(
    tree: Project, database: Database, server: Server, moment: str
) -> None:
    schema = normalised(database)
    with MOMENTS[moment](tree, database) as is_there, migrating(tree, database) as running:
        wait_until(lambda: is_there(running), 30, what=f"it is at its {moment}")
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait()
        assert not running.has("schema.stamped")
    assert recorded(database) == ["lost"]
    assert normalised(database) == schema
    with migrating(tree, database, "next") as following:
        result = following.end()
    assert result.code == 0, result.stderr
    assert result.named("schema.stamped")[0]["after"] == ["r2"]
    assert recorded(database) == ["r3"]
    assert server.query(SCRATCH) == []


@pytest.mark.wide
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_loses_its_sessions_changes_nothing_and_may_be_started_again(
    tree: Project, database: Database, server: Server, moment: str
) -> None:
    schema = normalised(database)
    with MOMENTS[moment](tree, database) as is_there, migrating(tree, database) as running:
        wait_until(lambda: is_there(running), 30, what=f"it is at its {moment}")
        database.execute(f"SELECT pg_terminate_backend(pid) FROM ({OURS}) AS ours")
        result = running.end()
    assert result.code == 75, result.message
    assert recorded(database) == ["lost"]
    assert normalised(database) == schema
    with migrating(tree, database, "next") as following:
        assert following.end().code == 0
    assert recorded(database) == ["r3"]
    assert server.query(SCRATCH) == []


@pytest.mark.wide
def test_a_run_that_is_killed_after_it_recorded_is_gone_on_with(tree: Project, database: Database) -> None:
    with database.connect(autocommit=False) as person, migrating(tree, database) as running:
        with waiting_to_record(database):
            wait_until(lambda: database.query(RECORDS), 30, what="it is about to record")
            person.execute("LOCK TABLE alembic_entrypoint.settling IN SHARE MODE")
        # How it ended can be written only when the lock is gone.
        wait_until(lambda: recorded(database) == ["r2"] and database.query(WAITS), 30, what="it has recorded")
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait()
    with migrating(tree, database, "next") as following:
        result = following.end()
    assert (result.code, recorded(database)) == (0, ["r3"]), result.stderr
    assert [each["revision"] for each in result.named("migration.finished")] == ["r3"]
    # What was given up stays so: no later image runs it again.
    assert database.query("SELECT revision FROM alembic_entrypoint.set_aside") == [("lost",)]
    outcomes = "SELECT action, outcome FROM alembic_entrypoint.settling ORDER BY id DESC LIMIT 2"
    assert database.query(outcomes) == [("UPGRADE", "ok"), ("STAMP", "cut short")]


def refused_at_the_record(tree: Project, database: Database, meanwhile: str) -> str:
    """Have somebody change something between the proof and the record, and give the refusal."""
    with migrating(tree, database) as running:
        with waiting_to_record(database) as person:
            wait_until(lambda: database.query(RECORDS), 30, what="it is about to record")
            person.execute(meanwhile.encode())
        result = running.end()
    assert (result.code, result.named("schema.stamped"), result.named("migration.started")) == (65, [], [])
    assert database.query("SELECT count(*) FROM alembic_entrypoint.set_aside") == [(0,)]
    return result.message


def test_a_schema_that_changes_before_the_proved_revision_is_recorded_is_refused(
    tree: Project, database: Database
) -> None:
    message = refused_at_the_record(tree, database, "ALTER TABLE t2 ADD COLUMN meanwhile int")
    assert "Somebody changed the schema while it was being proved, so nothing was recorded" in message
    assert recorded(database) == ["lost"]


@pytest.mark.wide
def test_who_migrates_by_hand_meanwhile_goes_first(tree: Project, database: Database) -> None:
    """Each would wait for the other, and PostgreSQL would end one of them: it is the run that gives way."""
    with database.connect(autocommit=False) as person, migrating(tree, database) as running:
        with waiting_to_record(database):
            wait_until(lambda: database.query(RECORDS), 30, what="it is about to record")
            person.execute("DROP INDEX t1_index")
        wait_until(lambda: database.query(f"{WAITS} AND query NOT LIKE 'LOCK TABLE%%'"), 30, 0.005, what="it reads")
        person.execute("UPDATE alembic_version SET version_num = 'r1'")
        person.commit()
        result = running.end()
    assert (result.code, recorded(database)) == (75, ["r1"]), result.stderr
    assert "Nothing was changed" in result.message


@pytest.mark.parametrize("other", [*(pytest.param(each, marks=pytest.mark.wide) for each in ("r1", "r2")), "other"])
def test_what_somebody_else_records_before_the_proved_revision_is_left_and_refused(
    tree: Project, database: Database, other: str
) -> None:
    message = refused_at_the_record(tree, database, f"UPDATE alembic_version SET version_num = '{other}'")
    assert f"Somebody changed public.alembic_version, which now records {other}, while" in message
    assert recorded(database) == [other]


@pytest.mark.wide
def test_a_version_table_that_somebody_else_makes_meanwhile_is_left(tree: Project, database: Database) -> None:
    database.execute("DROP TABLE alembic_version")
    with migrating(tree, database) as running:
        with database.connect(autocommit=False) as person:
            person.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
            person.execute("INSERT INTO alembic_version VALUES ('r1')")
            wait_until(lambda: running.has("schema.proved") and database.query(WAITS), 30, what="it is about to record")
        result = running.end()
    assert (result.code, result.named("schema.stamped"), result.named("migration.started")) == (75, [], [])
    assert "It could not be recorded" in result.message
    assert "Nothing was changed" in result.message
    assert recorded(database) == ["r1"]


@pytest.mark.wide
@pytest.mark.parametrize(
    "meanwhile", ["ALTER TABLE t1 ADD COLUMN meanwhile int", "UPDATE alembic_version SET version_num = 'r1'"]
)
def test_a_proof_that_is_owed_stays_so_where_something_changes_while_it_is_given(
    tree: Project, database: Database, meanwhile: str
) -> None:
    owing = "UPDATE alembic_entrypoint.settling SET owes_proof = true"
    database.execute(f"UPDATE alembic_version SET version_num = 'r2'; {owing}")
    with migrating(tree, database) as running:
        with in_its_replay(tree, database) as is_there:
            wait_until(lambda: is_there(running), 30, what="it is at its replay")
            database.execute(meanwhile)
        result = running.end()
    assert (result.code, result.named("migration.started")) == (65, []), result.stderr
    assert "while it was being proved, so nothing was recorded" in result.message
    assert database.query("SELECT bool_or(owes_proof) FROM alembic_entrypoint.settling") == [(True,)]
