"""Stories of how a schema went silently wrong: what people's scripts made of it, and what becomes of it here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Result, entrypoint
from projects import Project, project
from servers import Database, Server, fresh_database

TABLES = {
    "users": "CREATE TABLE users (id int PRIMARY KEY, email varchar(255) NOT NULL)",
    "documents": "CREATE TABLE documents (id int PRIMARY KEY, owner int REFERENCES users (id))",
    "uris": "ALTER TABLE documents ADD uri text",
}


def line(folder: Path, *revisions: str) -> Project:
    """Make the old line of migrations, as far as it goes."""
    made = project(folder)
    down = None
    for revision, sql in zip(revisions, TABLES.values(), strict=False):
        made.add(revision, f"op.execute({sql!r})", down=down)
        down = revision
    return made


@pytest.fixture
def copy(server: Server) -> Iterator[Database]:
    """Give a database for the script of the story."""
    with fresh_database(server) as made:
        yield made


def run(tree: Project, database: Database, *arguments: str) -> Result:
    return entrypoint(*(arguments or ("migrate",)), cwd=tree.folder, env={"DATABASE_URL": database.url})


def shell(tree: Project, database: Database, *commands: list[str]) -> None:
    """Run Alembic as the story's script does."""
    url = database.url.replace("postgresql:", "postgresql+psycopg:")
    ini = (tree.folder / "alembic.ini").read_text()
    (tree.folder / "plain.ini").write_text(ini.replace("driver://user:pass@localhost/dbname", url))
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", "alembic", "-c", "plain.ini", *command],
            cwd=tree.folder,
            check=True,
            capture_output=True,
        )


def recorded(database: Database) -> list[str]:
    return sorted(row[0] for row in database.query("SELECT version_num FROM alembic_version"))


def columns(database: Database, table: str) -> list[str]:
    rows = database.query(
        f"SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped"
    )
    return sorted(row[0] for row in rows)


def squash(folder: Path) -> Project:
    made = project(folder)
    made.add("b891cb8863b5", "\n".join(f"op.execute({sql!r})" for sql in TABLES.values()))
    return made


def test_a_squash_whose_old_files_were_deleted_and_the_schema_is_equal(tmp_path: Path, database: Database) -> None:
    run(line(tmp_path / "old", "1c9e", "55d0", "a2242b61af45"), database)
    result = run(squash(tmp_path / "new"), database)
    assert result.code == 0, result.message
    assert (recorded(database), columns(database, "documents")) == (["b891cb8863b5"], ["id", "owner", "uri"])


def test_the_same_with_a_schema_that_is_one_column_short(tmp_path: Path, database: Database, copy: Database) -> None:
    old, new = line(tmp_path / "old", "1c9e", "a2242b61af45"), squash(tmp_path / "new")
    for each in (database, copy):
        assert run(old, each).code == 0

    # The story's start script: drop the version table, stamp the squash, upgrade.
    copy.execute("DROP TABLE alembic_version")
    shell(new, copy, ["stamp", "b891cb8863b5"], ["upgrade", "head"])
    assert (recorded(copy), columns(copy, "documents")) == (["b891cb8863b5"], ["id", "owner"])

    result = run(new, database)
    assert (result.code, result.state) == (65, "LOST")
    assert "documents.uri" in result.message
    assert "The nearest is b891cb8863b5" in result.message
    assert recorded(database) == ["a2242b61af45"]


def test_tables_that_are_older_than_head(tmp_path: Path, database: Database, copy: Database) -> None:
    tree = line(tmp_path / "tree", "d3d111e9579d", "d6d7f6c7b282", "e8f921b5c3d1")
    for each in (database, copy):
        run(tree, each, "migrate", "--target", "d6d7f6c7b282")
        each.execute("DROP TABLE alembic_version; INSERT INTO users VALUES (1, 'a@b.c')")

    # The story's init script: there are tables and nothing is recorded, so stamp head.
    shell(tree, copy, ["stamp", "head"], ["upgrade", "head"])
    assert (recorded(copy), columns(copy, "documents")) == (["e8f921b5c3d1"], ["id", "owner"])

    result = run(tree, database)
    assert result.code == 0, result.message
    assert result.named("schema.stamped")[0]["after"] == ["d6d7f6c7b282"]
    assert (recorded(database), columns(database, "documents")) == (["e8f921b5c3d1"], ["id", "owner", "uri"])
    assert database.query("SELECT email FROM users") == [("a@b.c",)]


def test_tables_that_create_all_made_from_newer_models(tmp_path: Path, database: Database, copy: Database) -> None:
    tree = line(tmp_path / "tree", "r1", "r2", "r3")
    for each in (database, copy):
        for sql in TABLES.values():
            each.execute(sql)
        # The models are ahead of the migrations.
        each.execute("ALTER TABLE users ADD nickname text")

    shell(tree, copy, ["stamp", "head"])
    assert recorded(copy) == ["r3"]

    result = run(tree, database)
    assert (result.code, result.state) == (65, "UNTRACKED")
    assert "users.nickname" in result.message
    assert database.query("SELECT to_regclass('alembic_version')") == [(None,)]


@pytest.mark.wide
def test_a_migration_that_was_half_applied(tmp_path: Path, database: Database, copy: Database) -> None:
    """Without a transaction around it: the table is there, its column is not, and nothing is recorded of it."""
    tree = line(tmp_path / "tree", "r1")
    tree.add("r2", "\n".join(f"op.execute({TABLES[name]!r})" for name in ("documents", "uris")), down="r1")
    for each in (database, copy):
        assert run(tree, each, "migrate", "--target", "r1").code == 0
        each.execute(TABLES["documents"])

    # The story's way: it "keeps hitting existing objects", so everything is stamped as applied.
    shell(tree, copy, ["stamp", "head"])
    assert (recorded(copy), columns(copy, "documents")) == (["r2"], ["id", "owner"])

    result = run(tree, database)
    assert result.code == 1
    assert 'relation "documents" already exists' in result.message
    assert "The database is as before" in result.message
    assert recorded(database) == ["r1"]
    assert "documents" in run(tree, database, "diagnose", "--prove").stdout


@pytest.mark.wide
def test_a_database_that_was_made_before_and_was_never_recorded_half_way(tmp_path: Path, database: Database) -> None:
    """The same, found without a version table: no revision has this schema, and the nearest is named."""
    tree = line(tmp_path / "tree", "r1")
    tree.add("r2", "\n".join(f"op.execute({TABLES[name]!r})" for name in ("documents", "uris")), down="r1")
    for name in ("users", "documents"):
        database.execute(TABLES[name])
    result = run(tree, database)
    assert (result.code, result.state) == (65, "UNTRACKED")
    assert "documents.uri" in result.message
