"""`rebuild`: drops what the migrations made, nothing else, and only after the database's name was given."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from alembic_entrypoint.address import parse
from alembic_entrypoint.postgres.demolition import standing
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.wait import connected
from alembic_entrypoint.worker.messages import LOCK_A, LOCK_CLASS
from commands import Result, entrypoint, environment, started
from projects import Project, project
from servers import Database, Server, fresh_database, wait_until

MADE = """
op.execute("CREATE SCHEMA shop")
op.execute("CREATE TYPE shop.colour AS ENUM ('red')")
op.execute("CREATE SEQUENCE counter")
op.execute("CREATE TABLE users (id serial PRIMARY KEY, colour shop.colour)")
op.execute("CREATE TABLE shop.orders (id int, owner int REFERENCES users (id))")
op.execute("CREATE VIEW reds AS SELECT * FROM users WHERE colour = 'red'")
op.execute("CREATE FUNCTION doubled(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * $1'")
op.execute("CREATE EXTENSION vector")
op.execute("CREATE TABLE parts (id int) PARTITION BY LIST (id)")
op.execute("INSERT INTO users (colour) VALUES ('red')")
"""

#: Every object that was not there when the database was made, by what it depends on.
EVERYTHING = (
    "SELECT classid, objid, objsubid, refclassid, refobjid FROM pg_depend WHERE objid >= 16384 ORDER BY 1, 2, 3, 4, 5"
)
#: What others may build upon it: DROP … CASCADE would take each of these along.
THEIRS = {
    "CREATE VIEW theirs AS SELECT id FROM users": "view public.theirs",
    "CREATE TABLE a (colour shop.colour)": "column colour of table public.a",
    "CREATE TABLE b (place vector)": "column place of table public.b",
    "CREATE TABLE c (id int REFERENCES users (id))": "constraint c_id_fkey on table public.c",
    "CREATE TABLE d (id int DEFAULT nextval('counter'))": "default value for column id of table public.d",
    "CREATE TABLE e (id int CHECK (doubled(id) > 0))": "constraint e_id_check on table public.e",
    "CREATE TABLE f (id int); CREATE INDEX f_doubled ON f (doubled(id))": "index public.f_doubled",
    "CREATE TABLE g PARTITION OF parts FOR VALUES IN (1)": "table public.g",
    "CREATE TABLE h () INHERITS (users)": "table public.h",
    "CREATE CAST (text AS shop.colour) WITH INOUT": "cast from text to shop.colour",
    "CREATE PUBLICATION i FOR TABLE users": "publication of table public.users in publication i",
}


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    made.add("r1", MADE)
    made.add("r2", "op.execute('CREATE TABLE gone ()')", down="r1")
    made.add("r3", "op.execute('DROP TABLE gone')", down="r2")
    return made


def run(tree: Project, database: Database, *arguments: str) -> Result:
    return entrypoint(*arguments, cwd=tree.folder, env={"DATABASE_URL": database.url})


def test_everything_that_was_made_is_made_again_and_nothing_else_is_touched(tree: Project, database: Database) -> None:
    assert run(tree, database, "migrate").code == 0
    database.execute("CREATE TABLE theirs (id int); INSERT INTO theirs VALUES (1); INSERT INTO users VALUES (7, 'red')")
    result = run(tree, database, "rebuild", f"--yes={database.name}")
    assert result.code == 0, result.message
    assert "table public.users" in result.stdout
    assert "theirs" not in result.stdout.split("These")[1].split("No backup")[0]
    assert database.query("SELECT id FROM users") == [(1,)]
    assert database.query("SELECT id FROM theirs") == [(1,)]
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]
    assert run(tree, database, "diagnose", "--prove").code == 0


@pytest.mark.wide
def test_a_database_that_no_migration_can_mend_is_made_anew(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    database.execute("ALTER TABLE users ADD more int; UPDATE alembic_version SET version_num = 'lost'")
    assert run(tree, database, "migrate").code == 65
    assert run(tree, database, "rebuild", f"--yes={database.name}").code == 0
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]
    assert run(tree, database, "migrate").state == "CURRENT"


@pytest.mark.parametrize("wrong", [[], ["--yes=other"]])
def test_without_the_name_of_the_database_nothing_is_dropped(
    tree: Project, database: Database, wrong: list[str]
) -> None:
    run(tree, database, "migrate")
    database.execute("INSERT INTO users VALUES (7, 'red')")
    assert run(tree, database, "rebuild", *wrong).code == 2
    assert database.query("SELECT count(*) FROM users") == [(2,)]


def test_what_others_built_upon_it_is_not_taken_along(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    for statement in THEIRS:
        database.execute(statement)
    before = database.query(EVERYTHING)
    result = run(tree, database, "rebuild", f"--yes={database.name}")
    assert database.query(EVERYTHING) == before
    assert result.code == 65, result.message
    assert f"dropped with it: {', '.join(sorted(THEIRS.values()))}. Nothing was changed." in result.message
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]
    [*_, last] = json.loads(run(tree, database, "history", "--json").stdout)
    assert (last["action"], last["outcome"], last["after"]) == ("REBUILD", "refused", None)


@pytest.mark.wide
def test_what_others_keep_in_a_schema_of_the_migrations_stays(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    database.execute("CREATE TABLE shop.theirs (id int)")
    result = run(tree, database, "rebuild", f"--yes={database.name}")
    assert result.code == 65
    assert "table shop.theirs depends on schema shop. Nothing was changed." in result.message
    assert database.query("SELECT count(*) FROM users, shop.theirs") == [(0,)]


@pytest.mark.wide
def test_a_function_of_the_same_name_with_other_arguments_stays(tree: Project, database: Database) -> None:
    run(tree, database, "migrate")
    database.execute("CREATE FUNCTION doubled(text) RETURNS text LANGUAGE sql AS 'SELECT $1 || $1'")
    result = run(tree, database, "rebuild", f"--yes={database.name}")
    assert result.code == 0, result.message
    assert database.query("SELECT doubled('ab'), doubled(2)") == [("abab", 4)]
    assert "function public.doubled(integer)" in result.stdout
    assert "doubled(text)" not in result.stdout


@pytest.mark.wide
def test_what_an_earlier_migration_made_and_a_later_one_replaced_goes_too(tree: Project, database: Database) -> None:
    """Of functions and sequences the head alone does not tell whose they are."""
    tree.add("r4", "op.execute('DROP FUNCTION doubled(int)'); op.execute('DROP SEQUENCE counter')", down="r3")
    run(tree, database, "migrate", "--target", "r3")
    database.execute("UPDATE alembic_version SET version_num = 'lost'")
    result = run(tree, database, "rebuild", f"--yes={database.name}")
    assert result.code == 0, result.message
    assert database.query("SELECT to_regproc('doubled'), to_regclass('counter')") == [(None, None)]


def test_what_was_not_shown_is_not_dropped(tree: Project, database: Database) -> None:
    """What is there is compared with what was shown and confirmed, once nobody else can migrate."""
    run(tree, database, "migrate")
    with database.connect(autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_CLASS, LOCK_A])
        with started(
            tree.folder, "rebuild", f"--yes={database.name}", env={"DATABASE_URL": database.url}
        ) as rebuilding:
            wait_until(lambda: rebuilding.has("lock.waiting"))
            database.execute("CREATE TABLE gone (id int); INSERT INTO gone VALUES (1)")
            holder.execute("SELECT pg_advisory_unlock_all()")
            result = rebuilding.end()
    assert result.code == 65
    assert "table public.gone" in result.message
    assert "Nothing was changed" in result.message
    assert database.query("SELECT id FROM gone") == [(1,)]
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]


@pytest.mark.wide
def test_the_backup_from_before_is_kept_and_how_to_restore_it_is_said(
    tree: Project, database: Database, tmp_path: Path
) -> None:
    run(tree, database, "migrate")
    database.execute("INSERT INTO users VALUES (7, 'red')")
    folder = tmp_path / "backups"
    folder.mkdir()
    assert isinstance(database.server, Server)
    tools = {"PATH": f"{database.server.binaries}:{os.environ['PATH']}"}
    env = {**tools, "DATABASE_URL": database.url, "ALEMBIC_ENTRYPOINT_BACKUP": str(folder)}
    result = entrypoint("rebuild", f"--yes={database.name}", "--backup-keep=1", cwd=tree.folder, env=env)
    assert result.code == 0, result.message
    assert database.query("SELECT count(*) FROM users") == [(1,)]
    restore = result.stdout.split("To restore it into a new database beside: ")[1].splitlines()[0]
    subprocess.run(restore, shell=True, check=True, env=environment(tools))
    restored = Database(database.server, f"{database.name}_restored")
    try:
        assert restored.query("SELECT count(*) FROM users") == [(2,)]
    finally:
        database.execute(f"DROP DATABASE {restored.name}")


@pytest.mark.wide
def test_a_migration_that_fails_afterwards_says_that_all_is_dropped(tree: Project, database: Database) -> None:
    tree.add(
        "r4",
        """op.execute("DO 'BEGIN IF to_regclass(''theirs'') IS NOT NULL THEN RAISE ''no''; END IF; END'")""",
        down="r3",
    )
    run(tree, database, "migrate")
    database.execute("CREATE TABLE theirs ()")
    result = run(tree, database, "rebuild", f"--yes={database.name}")
    assert result.code == 1
    assert "What was shown had been dropped before, and stays dropped." in result.message
    assert database.query("SELECT to_regclass('users')") == [(None,)]


def test_what_stands_in_a_database_without_encoding_keeps_its_name(server: Server) -> None:
    with (
        fresh_database(server, like="ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0") as database,
        connected(parse(database.url), 5) as connection,
    ):
        connection.execute(b'CREATE TABLE "caf\xe9" (id int)')
        connection.execute('CREATE TABLE "Grün" (id int)'.encode())
        made = [Name("relation", "public", each) for each in ("caf\udce9", "Grün")]
        assert sorted(each.name for each in standing(connection, made)) == ["Grün", "caf\udce9"]
