"""What cannot be settled is refused (78) with the reason, before anything is changed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from env_forms import env_py, ini_with, migrate, schemas, tables, tree_in

from projects import Project
from servers import Database, Server, fresh_database

pytestmark = pytest.mark.wide

ALEMBIC = str(Path(sys.executable).with_name("alembic"))


@pytest.fixture
def other(server: Server) -> Iterator[Database]:
    with fresh_database(server) as made:
        yield made


def test_mysql_without_a_url_of_ours(tmp_path: Path) -> None:
    tree = tree_in(tmp_path, env_py(), ini=ini_with("mysql+pymysql://app:secret@db.invalid/app"))
    result = migrate(tree)
    assert result.code == 78
    assert "its sqlalchemy.url: it is a URL of mysql+pymysql, not of PostgreSQL" in result.message
    assert "secret" not in result.stderr


#: As much of a MySQL driver as SQLAlchemy asks for when it connects; it writes down what it is sent.
PYMYSQL = """
import pathlib

apilevel, threadsafety, paramstyle, VERSION = "2.0", 1, "pyformat", (1, 0, 0, None)
Error = OperationalError = ProgrammingError = InternalError = InterfaceError = IntegrityError = Exception
NotSupportedError = DatabaseError = DataError = Exception

def note(word):
    with pathlib.Path("sent").open("a") as sent:
        print(word, file=sent)

class Cursor:
    description, rowcount, lastrowid = [("word", *[None] * 6), ("value", *[None] * 6)], 1, None
    def execute(self, statement, parameters=None):
        note(statement)
        self.answer = "0" if "lower_case" in statement else "8.0.36"
    def fetchone(self):
        return (self.answer, self.answer)
    def fetchall(self):
        return []
    def close(self): pass

class Connection:
    def cursor(self, *_): return Cursor()
    def get_server_info(self): return "8.0.36"
    def character_set_name(self): return "utf8mb4"
    def commit(self): note("COMMIT")
    def rollback(self): pass
    def close(self): pass
    def autocommit(self, value): pass
    def ping(self, *_): pass

def connect(**_):
    note("connected")
    return Connection()

Connect = connect
"""


def test_mysql_that_env_py_makes_up_itself(tmp_path: Path, database: Database) -> None:
    env = env_py("create_engine('mysql+pymysql://app:secret@db.invalid/app')")
    tree = tree_in(tmp_path, env, ini=ini_with("driver://", "prepend_sys_path = ."))
    tree.write("pymysql/__init__.py", PYMYSQL)
    for result in (migrate(tree), migrate(tree, database)):
        assert result.code == 78
        assert "env.py migrates a mysql database, not PostgreSQL" in result.message
        assert "secret" not in result.stderr
    assert tables(database) == []
    sent = (tmp_path / "sent").read_text()
    assert "connected" in sent
    assert not re.search(r"COMMIT|CREATE|INSERT|UPDATE|ALTER", sent)


def test_sqlite_without_a_url_of_ours(tmp_path: Path) -> None:
    tree = tree_in(tmp_path, env_py(), ini=ini_with("sqlite:///app.db"))
    result = migrate(tree)
    assert result.code == 78
    assert "sqlite" in result.message
    assert "not PostgreSQL" in result.message
    assert is_empty(tmp_path / "app.db")


def test_sqlite_that_env_py_opens_itself(tmp_path: Path, database: Database) -> None:
    tree = tree_in(tmp_path, env_py("create_engine('sqlite:///app.db')"))
    for result in (migrate(tree), migrate(tree, database)):
        assert result.code == 78
        assert "env.py migrates a sqlite database, not PostgreSQL" in result.message
    assert tables(database) == []
    assert is_empty(tmp_path / "app.db")


def is_empty(file: Path) -> bool:
    """Tell whether SQLite, which makes a file as soon as it is connected to, has written nothing there."""
    return not file.exists() or file.stat().st_size == 0


def test_a_placeholder_url_that_nobody_replaced(tmp_path: Path) -> None:
    result = migrate(tree_in(tmp_path, env_py()))
    assert result.code == 78
    assert "DATABASE_URL" in result.message
    assert "its sqlalchemy.url: it is a URL of driver, not of PostgreSQL" in result.message


def test_a_missing_url(tmp_path: Path) -> None:
    result = migrate(tree_in(tmp_path, env_py(), ini="[alembic]\nscript_location = %(here)s/migrations\n"))
    assert result.code == 78
    assert "Set DATABASE_URL" in result.message
    assert "its sqlalchemy.url: there is none" in result.message


def test_an_env_py_that_only_works_offline(tmp_path: Path, database: Database) -> None:
    env = """
from alembic import context
context.configure(url="postgresql://", literal_binds=True)
with context.begin_transaction():
    context.run_migrations()
"""
    tree = tree_in(tmp_path, env)
    for result in (migrate(tree), migrate(tree, database)):
        assert result.code == 78
        assert tables(database) == []


def test_an_env_py_that_writes_to_another_database_first_must_be_told_the_url(
    tmp_path: Path, database: Database, other: Database
) -> None:
    # Without a URL the first place that it connects to is taken for the target, until another reaches configure().
    other.execute("CREATE TABLE audit (line text)")
    second = f"""
with create_engine({other.url_on("psycopg")!r}).begin() as second:
    second.execute(text("INSERT INTO audit VALUES ('here')"))
"""
    tree = tree_in(tmp_path, env_py(f"create_engine({database.url_on('psycopg')!r})", above=second))
    result = migrate(tree)
    assert result.code == 78
    assert f"env.py migrates {database.name} at" in result.message
    assert "set ALEMBIC_ENTRYPOINT_DATABASE_URL" in result.message
    assert tables(database) == []
    assert other.query("SELECT line FROM audit") == []
    assert migrate(tree, database).code == 0
    assert other.query("SELECT line FROM audit") == [("here",)]


@pytest.mark.parametrize("is_given", [True, False])
def test_the_multidb_template(tmp_path: Path, database: Database, other: Database, is_given: bool) -> None:
    subprocess.run([ALEMBIC, "init", "-t", "multidb", "migrations"], cwd=tmp_path, check=True, capture_output=True)
    ini = tmp_path / "alembic.ini"
    text = ini.read_text()
    for n, each in enumerate((database, other), 1):
        name = "" if n == 1 else str(n)
        placeholder = f"driver://user:pass@localhost/dbname{name}\n"
        assert placeholder in text
        text = text.replace(placeholder, each.url_on("psycopg") + "\n")
    ini.write_text(text)
    tree = Project(tmp_path)
    tree.write(
        "migrations/versions/r1.py",
        "from alembic import op\nrevision, down_revision = 'r1', None\n"
        "def upgrade(engine_name):\n    op.execute('CREATE TABLE t1 ()')\n",
    )
    result = migrate(tree, database if is_given else None)
    assert result.code == 78
    assert "more than once in one run" in result.message
    assert tables(database) == tables(other) == []


TENANTS = """
import os
from alembic import context
from sqlalchemy import create_engine, text

engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    for tenant in ("red", "blue"):
        {before}
        connection.execute(text(f'SET search_path TO "{{tenant}}"'))
        connection.commit()
        context.configure(connection=connection, {configure})
        with context.begin_transaction():
            context.run_migrations()
"""


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("configure", ["", "version_table_schema=tenant"])
def test_a_loop_over_tenants_schemas(tmp_path: Path, database: Database, configure: str, is_given: bool) -> None:
    database.execute("CREATE SCHEMA red; CREATE SCHEMA blue")
    tree = tree_in(
        tmp_path, TENANTS.format(before="pass", configure=configure), ini=ini_with(database.url_on("psycopg"))
    )
    result = migrate(tree, database if is_given else None)
    assert result.code == 78
    assert "loops over tenants" in result.message
    assert tables(database) == []


def test_a_loop_over_tenants_that_creates_their_schemas_migrates_none(tmp_path: Path, database: Database) -> None:
    create = "connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS {tenant}')); connection.commit()"
    tree = tree_in(tmp_path, TENANTS.format(before=create, configure=""))
    result = migrate(tree, database)
    assert result.code == 78
    assert "loops over tenants" in result.message
    assert tables(database) == []
    assert schemas(database) == []


def test_a_driver_that_cannot_be_watched(tmp_path: Path, database: Database) -> None:
    # A subclass of the driver's connection that is made directly, and not by the driver's connect.
    above = "import psycopg2.extensions\n"
    engine = (
        "create_engine('postgresql+psycopg2://', "
        f"creator=lambda: psycopg2.extensions.connection({database.url.replace('postgresql', 'postgresql')!r}))"
    )
    result = migrate(tree_in(tmp_path, env_py(engine, above=above)), database)
    assert result.code == 78
    assert "cannot be watched" in result.message
    assert tables(database) == []
