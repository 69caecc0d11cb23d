"""`rebuild`: drops what the migrations made, nothing else, and only after the database's name was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Result, entrypoint
from projects import Project, project
from servers import Database

MADE = """
op.execute("CREATE SCHEMA shop")
op.execute("CREATE TYPE shop.colour AS ENUM ('red')")
op.execute("CREATE SEQUENCE counter")
op.execute("CREATE TABLE users (id serial PRIMARY KEY, colour shop.colour)")
op.execute("CREATE TABLE shop.orders (id int, owner int REFERENCES users (id))")
op.execute("CREATE VIEW reds AS SELECT * FROM users WHERE colour = 'red'")
op.execute("CREATE FUNCTION doubled(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1'")
op.execute("INSERT INTO users (colour) VALUES ('red')")
"""


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
    assert "relation public.users" in result.stdout
    assert "theirs" not in result.stdout.split("These")[1].split("No backup")[0]
    assert database.query("SELECT id FROM users") == [(1,)]
    assert database.query("SELECT id FROM theirs") == [(1,)]
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]
    assert run(tree, database, "diagnose", "--prove").code == 0


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
    database.execute("CREATE VIEW theirs AS SELECT id FROM users")
    result = run(tree, database, "rebuild", f"--yes={database.name}")
    assert result.code == 65
    assert "public.theirs" in result.message
    assert database.query("SELECT id FROM theirs") == [(1,)]
    assert database.query("SELECT version_num FROM alembic_version") == [("r3",)]
