"""The grants of `docs/least-rights.sql` are enough for both roles, and no more than that."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from commands import Result, entrypoint
from servers import Server, binaries_of, fresh_database

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "least-rights.sql"
EXAMPLE = ROOT / "entrypoint" / "example"
HEAD = "c46b1d9e20f8"


@dataclass(frozen=True)
class Roles:
    """A database, its owner, and the two roles that the script makes."""

    server: Server
    database: str

    def url(self, role: str) -> str:
        return f"postgresql://{self.database}_{role}@127.0.0.1:{self.server.port}/{self.database}"

    def grant(self) -> None:
        """Run the script, as its first lines say, as an owner who is no superuser."""
        names = [f"--set={role}={self.database}_{role}" for role in ("migrator", "app")]
        psql = [binaries_of(18) / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *names]
        done = subprocess.run(
            [*psql, f"--file={SCRIPT}", self.url("owner")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def execute(self, role: str, statement: str) -> None:
        with psycopg.connect(self.url(role), autocommit=True) as connection:
            connection.execute(statement.encode())

    def start(self, role: str, *arguments: str) -> Result:
        return entrypoint(*arguments, cwd=EXAMPLE, env={"DATABASE_URL": self.url(role), "PYTHONDONTWRITEBYTECODE": "1"})


@pytest.fixture
def roles(server: Server) -> Iterator[Roles]:
    name = f"rights_{os.urandom(4).hex()}"
    server.execute(f"CREATE ROLE {name}_owner LOGIN CREATEROLE")
    with fresh_database(server, name, like=f"OWNER {name}_owner"):
        made = Roles(server, name)
        made.grant()
        yield made
    for role in ("migrator", "app", "owner"):
        server.execute(f"DROP ROLE {name}_{role}")


def test_the_migrator_migrates_and_the_app_works_and_changes_no_schema(roles: Roles) -> None:
    migrated = roles.start("migrator", "migrate")
    assert migrated.code == 0, migrated.message
    assert migrated.named("schema.upgraded")[0]["after"] == [HEAD]

    started = roles.start("app", "run", "--", "echo", "the app")
    assert (started.code, started.stdout) == (0, "the app\n"), started.message
    roles.execute("app", "INSERT INTO notes (title, slug) VALUES ('one', 'one-1')")
    roles.execute("app", "DELETE FROM notes")
    for statement in (
        "CREATE TABLE mine ()",
        "ALTER TABLE notes ADD COLUMN mine int",
        "DROP TABLE notes",
        "TRUNCATE notes",
        "CREATE SCHEMA mine",
        f"UPDATE alembic_version SET version_num = '{HEAD}'",
        "DELETE FROM alembic_version",
        "CREATE TABLE alembic_entrypoint.mine ()",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            roles.execute("app", statement)


@pytest.mark.extra
def test_the_app_waits_for_head_and_reads_the_history_with_its_own_role(roles: Roles) -> None:
    assert roles.start("app", "await", "--await-timeout", "1", "head").code == 75
    assert roles.start("migrator", "migrate").code == 0
    assert roles.start("app", "await", "head").code == 0
    assert HEAD in roles.start("app", "history", "--json").stdout


@pytest.mark.extra
def test_the_app_that_would_have_to_migrate_is_refused_and_nothing_is_changed(roles: Roles) -> None:
    refused = roles.start("app", "run", "--", "echo", "the app")
    assert refused.code == 77, refused.message
    assert "permission denied for schema public" in refused.message
    assert "The database is as before" in refused.message
    assert refused.stdout == ""
    assert roles.server.connect(dbname=roles.database).execute(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    ).fetchall() == [("alembic_version",)]


@pytest.mark.extra
def test_the_script_can_be_run_again_after_migrations(roles: Roles) -> None:
    assert roles.start("migrator", "migrate").code == 0
    roles.grant()
    assert roles.start("app", "plan").code == 0


@pytest.mark.extra
def test_nobody_else_gets_in_and_the_owner_keeps_no_way_to_act_for_the_migrator(roles: Roles) -> None:
    roles.server.execute(f"CREATE ROLE {roles.database}_other LOGIN")
    try:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            roles.execute("other", "SELECT 1")
    finally:
        roles.server.execute(f"DROP ROLE {roles.database}_other")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.execute("owner", f"SET ROLE {roles.database}_migrator")


@pytest.mark.extra
@pytest.mark.parametrize(("version", "owner"), [(13, "SUPERUSER"), (15, "CREATEROLE"), (16, "CREATEROLE")])
def test_it_holds_on_other_majors(version: int, owner: str, request: pytest.FixtureRequest) -> None:
    """Below 15 the schema `public` is not the owner's to grant."""
    server = request.getfixturevalue(f"pg{version}")
    name = f"rights_{os.urandom(4).hex()}"
    server.execute(f"CREATE ROLE {name}_owner LOGIN {owner}")
    with fresh_database(server, name, like=f"OWNER {name}_owner"):
        made = Roles(server, name)
        made.grant()
        assert made.start("migrator", "migrate").code == 0
        assert made.start("app", "run", "true").code == 0
    for role in ("migrator", "app", "owner"):
        server.execute(f"DROP ROLE {name}_{role}")
