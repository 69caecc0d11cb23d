"""What a migration has committed, however it did it, is neither done again nor called "as before"."""

from __future__ import annotations

from pathlib import Path

import pytest
from env_forms import env_on, recorded, tables

from commands import Result, Running, started
from projects import DRIVERS, PER_MIGRATION, Project, project
from servers import Database, fresh_database, wait_until

HEAD = "import os, subprocess, sys\nimport psycopg\nimport sqlalchemy as sa"
INSERT = "INSERT INTO audit VALUES (1)"
OWN = """
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as own:
    own.execute("INSERT INTO audit VALUES (1)")
"""
PROGRAM = f"import os, psycopg; psycopg.connect(os.environ['DATABASE_URL'], autocommit=True).execute('{INSERT}')"
#: Ways in which a migration keeps a row, whatever becomes of it.
WAYS = {
    "COMMIT as text": f"op.execute('{INSERT}')\nop.execute('COMMIT')",
    "COMMIT as text, and work after it": f"op.execute('{INSERT}')\nop.execute('COMMIT')\nop.execute('SELECT 1')",
    "the driver's own commit": f"op.execute('{INSERT}')\nop.get_bind().connection.dbapi_connection.commit()",
    "a block in autocommit": f"with op.get_context().autocommit_block():\n    op.execute('{INSERT}')",
    "a block in autocommit after it": f"op.execute('{INSERT}')\nwith op.get_context().autocommit_block():\n    pass",
    "a connection of its own": OWN,
    "an engine in autocommit": f"""
engine = sa.create_engine(os.environ["DATABASE_URL"].replace("ql:", "ql+psycopg:"), isolation_level="AUTOCOMMIT")
with engine.connect() as own:
    own.exec_driver_sql("{INSERT}")
""",
    "a program": f"subprocess.run([sys.executable, '-c', {PROGRAM!r}], check=True)",
}
EVERY_DRIVER = ("COMMIT as text", "the driver's own commit", "a block in autocommit")
FORMS = [
    pytest.param(way, driver, marks=() if driver == "psycopg" else pytest.mark.wide)
    for way in WAYS
    for driver in DRIVERS
    if driver == "psycopg" or way in EVERY_DRIVER
]


def tree_that(tmp_path: Path, driver: str, way: str, then: str) -> Project:
    made = project(tmp_path, env=env_on(driver))
    made.add("r1", f"{way}\n{then}", head=HEAD)
    return made


def env_of(database: Database) -> dict[str, str]:
    database.execute("CREATE TABLE audit (id int); CREATE TABLE busy (id int)")
    return {"DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_IGNORE": "public.audit public.busy"}


def run_beside_a_reader(tree: Project, database: Database) -> Result:
    """Migrate while somebody reads `busy`, so that what alters it has to be taken back."""
    waits = {"ALEMBIC_ENTRYPOINT_DDL_LOCK_TIMEOUT": "0.3", "ALEMBIC_ENTRYPOINT_DDL_RETRIES": "2"}
    env = {**env_of(database), **waits}
    with database.connect() as reader, started(tree.folder, "migrate", env=env) as run:
        reader.execute("BEGIN; SELECT * FROM busy")
        return run.end(60)


def rows(database: Database) -> int:
    return int(database.query("SELECT count(*) FROM audit")[0][0])


@pytest.mark.parametrize(("way", "driver"), FORMS)
def test_what_was_committed_is_not_done_again(tmp_path: Path, database: Database, way: str, driver: str) -> None:
    tree = tree_that(tmp_path, driver, WAYS[way], "op.execute('ALTER TABLE busy ADD COLUMN more int')")
    result = run_beside_a_reader(tree, database)
    assert (result.code, rows(database)) == (1, 1), result.stderr
    assert not result.named("migration.retried")
    assert "as before" not in result.message
    assert "partly committed" in result.message
    assert "migrations/versions/r1.py" in result.message.partition("Left behind:")[2]


@pytest.mark.wide
def test_what_was_rolled_back_is_done_again(tmp_path: Path, database: Database) -> None:
    tree = tree_that(tmp_path, "psycopg", f"op.execute('{INSERT}')", "op.execute('ALTER TABLE busy ADD more int')")
    result = run_beside_a_reader(tree, database)
    assert (result.code, rows(database)) == (75, 0), result.stderr
    assert len(result.named("migration.retried")) == 2
    assert "The database is as before: nothing was committed." in result.message


def test_a_migration_that_ended_and_committed_by_itself_is_not_done_again_for_the_next(
    tmp_path: Path, database: Database
) -> None:
    tree = tree_that(tmp_path, "psycopg", WAYS["COMMIT as text"], "pass")
    tree.add("r2", "op.execute('ALTER TABLE busy ADD COLUMN more int')", down="r1")
    result = run_beside_a_reader(tree, database)
    assert (result.code, rows(database)) == (1, 1), result.stderr
    assert not result.named("migration.retried")
    assert "what r1 did before its last commit; see migrations/versions/r1.py" in result.message


@pytest.mark.parametrize("way", ["COMMIT as text", "a connection of its own", "nothing"])
def test_a_lost_lock_says_what_was_committed(tmp_path: Path, database: Database, way: str) -> None:
    tree = tree_that(tmp_path, "psycopg", WAYS.get(way, f"op.execute('{INSERT}')"), "op.execute('SELECT pg_sleep(60)')")
    with started(tree.folder, "migrate", env=env_of(database)) as run:
        wait_for_sleep(run, database)
        lose_the_lock(database)
        result = run.end(30)
    kept = way != "nothing"
    assert (result.code, rows(database)) == ((1, 1) if kept else (75, 0)), result.stderr
    assert ("and a part of r1" in result.message) == kept


SLOW_COMMIT = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2.5); RETURN NEW; END';
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON audit DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION slow();
"""
#: On 13 a server does not look whether its client is gone, and asyncpg sends no request to cancel.
COMMITS = [("psycopg", "pg18"), pytest.param("asyncpg", "pg13", marks=pytest.mark.extra)]


@pytest.mark.parametrize(("driver", "server"), COMMITS)
def test_a_lock_lost_during_a_slow_commit_says_what_became_of_it(
    tmp_path: Path, request: pytest.FixtureRequest, driver: str, server: str
) -> None:
    tree = tree_that(tmp_path, driver, f"op.execute('{INSERT}')", "pass")
    with fresh_database(request.getfixturevalue(server)) as database:
        env = env_of(database)
        database.execute(SLOW_COMMIT)
        with started(tree.folder, "migrate", env=env) as run:
            wait_for_sleep(run, database)
            lose_the_lock(database)
            result = run.end(30)
        ours = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'alembic-entry%%'"
        wait_until(lambda: not database.server.query(ours, database.name), what="no session of ours is left")
        assert result.code == (1 if rows(database) else 75), result.stderr


def lose_the_lock(database: Database) -> None:
    database.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name LIKE 'alembic-entrypoint locking%%'"
    )


def wait_for_sleep(run: Running, database: Database) -> None:
    sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    wait_until(lambda: database.query(sleeping) or run.process.poll() is not None, 60, what="the migration sleeps")
    assert run.process.poll() is None, run.log.read_text()


def test_what_a_migration_left_behind_is_told_from_what_those_before_it_made(
    tmp_path: Path, database: Database
) -> None:
    """With the statement that removes each thing; and these statements do."""
    tree = project(tmp_path, env=PER_MIGRATION)
    tree.add("r1", "op.execute('CREATE TABLE t1 (id int)')")
    tree.add("r2", "op.execute('CREATE TABLE t2 (id int)')", down="r1")
    half = """
    op.execute("CREATE TABLE half (id int)")
    op.execute("ALTER TABLE t1 ADD COLUMN more int, ADD CONSTRAINT positive CHECK (id > 0)")
    op.execute("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    op.execute("CREATE TYPE mood AS ENUM ('good')")
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY t1_id ON t1 (id)")
    op.execute("INSERT INTO nowhere VALUES (1)")
    """
    tree.add("r3", half, down="r2")
    env = {"DATABASE_URL": database.url}
    with started(tree.folder, "migrate", "--target", "r1", env=env, name="first") as first:
        assert first.end(60).code == 0
    with started(tree.folder, "migrate", env=env) as run:
        result = run.end(60)
    assert result.code == 1, result.stderr
    assert "Applied before it and kept: r2." in result.message
    assert recorded(database) == ["r2"]
    left = result.named("migration.failed")[0]["left_behind"]
    statements = [line.partition("before: ")[2] for line in left if "before: " in line]
    assert sorted(statements) == [
        "ALTER TABLE public.t1 DROP COLUMN more;",
        "ALTER TABLE public.t1 DROP CONSTRAINT positive;",
        "DROP INDEX CONCURRENTLY public.t1_id;",
        "DROP ROUTINE public.one();",
        "DROP TABLE public.half;",
        "DROP TYPE public.mood;",
    ]
    for statement in statements:
        database.execute(statement)
    assert tables(database) == ["public.alembic_version", "public.t1", "public.t2"]
    tree.add("r3", down="r2")
    with started(tree.folder, "migrate", env=env, name="again") as run:
        assert run.end(60).code == 0
