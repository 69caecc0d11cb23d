"""Names without a schema mean in a replay what they mean on the target, or nothing is proved.

Else the replay makes its tables in one schema, those of the target are in another, and "nothing of ours is there" would
be true of every database: it would be migrated again from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Result, entrypoint
from projects import ENV, Project, project
from servers import Database, Server, fresh_database

#: Run twice, it multiplies twice: `IF NOT EXISTS` and a data step, and a table by which the last revision is known.
MIGRATIONS = (
    "CREATE TABLE IF NOT EXISTS account (id int, balance int)",
    "UPDATE account SET balance = balance * 100",
    "CREATE TABLE IF NOT EXISTS entry (id int)",
)
#: How a schema that an administrator made is where names without one are looked up: what is run, and the settings.
WAYS = {
    "the database's setting": ("CREATE SCHEMA app; ALTER DATABASE {database} SET search_path = app, public", {}),
    "a schema of the role's name": ("CREATE SCHEMA {role}", {}),
    "env.py": ("CREATE SCHEMA app", {}),
    "the role's setting": ("CREATE SCHEMA app; ALTER ROLE {role} SET search_path = app, public", {}),
    "the role's setting, embedded": (
        "CREATE SCHEMA app; ALTER ROLE {role} SET search_path = app, public",
        {"ALEMBIC_ENTRYPOINT_SCRATCH": "embedded"},
    ),
    "a schema of the role's name, embedded": ("CREATE SCHEMA {role}", {"ALEMBIC_ENTRYPOINT_SCRATCH": "embedded"}),
    "a schema of the role's name, another role elsewhere": (
        "CREATE SCHEMA {role}",
        {"ALEMBIC_ENTRYPOINT_SCRATCH": "{server}"},
    ),
    "the role's setting in the database, over its own": (
        "CREATE SCHEMA app; ALTER ROLE {role} SET search_path = public; "
        "ALTER ROLE {role} IN DATABASE {database} SET search_path = app, public",
        {},
    ),
    "the URL's options": ("CREATE SCHEMA app", {"ALEMBIC_ENTRYPOINT_SCRATCH": "embedded"}),
}
QUICK = ("the database's setting",)
OPTIONS = "?options=-csearch_path%3Dapp,public"


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """Give the name of a role that may make databases, and schemas in this one."""
    name = f"role_{database.name}"
    database.execute(
        f"CREATE ROLE {name} LOGIN CREATEDB; GRANT ALL ON SCHEMA public TO {name};"
        f"GRANT CREATE ON DATABASE {database.name} TO {name}"
    )
    yield name
    database.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path)
    for n, statement in enumerate(MIGRATIONS, 1):
        made.add(f"r{n}", f"op.execute({statement!r})", down=f"r{n - 1}" if n > 1 else None)
    return made


def migrate(tree: Project, database: Database, role: str, env: dict[str, str] | None = None, more: str = "") -> Result:
    url = database.url.replace("postgres@", f"{role}@") + more
    return entrypoint("migrate", cwd=tree.folder, env={"DATABASE_URL": url, **(env or {})})


def env_with(tree: Project, path: str) -> None:
    """Have `env.py` set the search path."""
    sets = f"connection.exec_driver_sql('SET search_path TO {path}'); connection.commit(); context.configure("
    tree.write("migrations/env.py", ENV.replace("context.configure(connection", f"{sets}connection"))


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way in QUICK else pytest.mark.wide) for way in WAYS])
def test_tables_in_an_administrators_schema_are_proved_where_they_are(
    way: str, tree: Project, database: Database, server: Server, role: str
) -> None:
    statements, settings = WAYS[way]
    for each in statements.format(database=database.name, role=role).split(";"):
        database.execute(each)
    schema = role if "role's name" in way else "app"
    database.execute(f"GRANT ALL ON SCHEMA {schema} TO {role}")
    if way == "env.py":
        env_with(tree, "app, public")
    env = {name: value.format(server=server.url) for name, value in settings.items()}
    more = OPTIONS if "options" in way else ""

    assert migrate(tree, database, role, more=more).code == 0
    database.execute(f"INSERT INTO {schema}.account VALUES (1, 5)")
    for forget in (f"DROP TABLE {schema}.alembic_version", f"UPDATE {schema}.alembic_version SET version_num = 'lost'"):
        database.execute(forget)
        result = migrate(tree, database, role, env, more)
        assert result.code == 0, result.message
        assert [each["after"] for each in result.named("schema.stamped")] == [["r3"]]
        assert not result.named("migration.finished")
        assert database.query(f"SELECT balance FROM {schema}.account") == [(5,)]
        assert database.query(f"SELECT version_num FROM {schema}.alembic_version") == [("r3",)]


@pytest.mark.wide
def test_what_a_migration_makes_comes_onto_the_path_with_it(tree: Project, database: Database, role: str) -> None:
    """Before it the version table is made in `public`, after it every table in `app`."""
    database.execute(f"ALTER DATABASE {database.name} SET search_path = app, public")
    for schema in ("CREATE SCHEMA app", "CREATE SCHEMA IF NOT EXISTS app"):
        tree.add("r1", f"op.execute('{schema}'); op.execute({MIGRATIONS[0]!r})")
        assert migrate(tree, database, role).code == 0
        database.execute(
            "INSERT INTO app.account VALUES (1, 5); UPDATE public.alembic_version SET version_num = 'lost'"
        )
        result = migrate(tree, database, role)
        assert result.code == 0, result.message
        assert [each["after"] for each in result.named("schema.stamped")] == [["r3"]]
        assert database.query("SELECT balance FROM app.account") == [(5,)]
        database.execute("DROP SCHEMA app CASCADE; DROP TABLE public.alembic_version")


ASIDE = {
    "public is not there, and everything says its schema": "DROP SCHEMA public CASCADE",
    "public is not for the role": "REVOKE ALL ON SCHEMA public FROM PUBLIC, {role}",
    "a schema of an extension": (
        "CREATE SCHEMA extra; ALTER EXTENSION plpgsql ADD SCHEMA extra; GRANT USAGE ON SCHEMA extra TO {role}; "
        "ALTER DATABASE {database} SET search_path = app, extra"
    ),
}


@pytest.mark.wide
@pytest.mark.parametrize("what", ASIDE)
def test_what_no_name_depends_on_is_not_in_the_way(what: str, tmp_path: Path, database: Database, role: str) -> None:
    tree = project(
        tmp_path, env=ENV.replace("connection=connection)", "connection=connection, version_table_schema='app')")
    )
    tree.add("r1", "op.execute('CREATE TABLE app.account (id int)')")
    tree.add("r2", "op.execute('CREATE TABLE app.entry (id int)')", down="r1")
    for each in ("CREATE SCHEMA app AUTHORIZATION {role}", *ASIDE[what].split(";")):
        database.execute(each.format(database=database.name, role=role))
    assert migrate(tree, database, role).code == 0
    database.execute("UPDATE app.alembic_version SET version_num = 'lost'")
    result = migrate(tree, database, role)
    assert result.code == 0, result.message
    assert [each["after"] for each in result.named("schema.stamped")] == [["r2"]]


UNLIKE = {
    "the version table is elsewhere": (
        "CREATE SCHEMA app; ALTER DATABASE {database} SET search_path = app, public",
        "DELETE FROM alembic_version",
        "the version table public.alembic_version of the target would be made in app now",
    ),
    "the tables are elsewhere": (
        "CREATE SCHEMA app; ALTER DATABASE {database} SET search_path = app, public",
        "DROP TABLE alembic_version",
        "named like public.account, public.entry in another schema of the search path app, public",
    ),
    "a schema is there that the migrations make": (
        "CREATE SCHEMA app; ALTER TABLE account SET SCHEMA app; ALTER TABLE entry SET SCHEMA app; "
        "ALTER DATABASE {database} SET search_path = app, public",
        "DROP TABLE alembic_version",
        "looked up in app, public on the target, and in public in scratch",
    ),
}


@pytest.mark.parametrize(
    "what", [pytest.param(each, marks=pytest.mark.wide if n else ()) for n, each in enumerate(UNLIKE)]
)
def test_where_a_name_means_something_else_nothing_is_proved(
    what: str, tree: Project, database: Database, role: str
) -> None:
    assert migrate(tree, database, role).code == 0
    change, forget, words = UNLIKE[what]
    database.execute("INSERT INTO account VALUES (1, 5)")
    for each in (forget, *change.format(database=database.name).split(";"), f"GRANT ALL ON SCHEMA app TO {role}"):
        database.execute(each)
    if "migrations make" in what:
        tree.add("r4", "op.execute('CREATE SCHEMA app')", down="r3")
    result = migrate(tree, database, role)
    assert (result.code, result.state) == (65, "UNTRACKED"), result.message
    assert words in result.message
    [(schema,)] = database.query("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'account'")
    assert database.query(f"SELECT balance FROM {schema}.account") == [(5,)]


@pytest.mark.wide
def test_a_path_that_scratch_does_not_have_proves_nothing(
    tree: Project, database: Database, server: Server, role: str
) -> None:
    """Nor does it prove that stale copies in `public` are the app's tables."""
    env_with(tree, '"$user", public')
    assert migrate(tree, database, role).code == 0
    database.execute(f"CREATE SCHEMA {role} AUTHORIZATION {role}; INSERT INTO account VALUES (1, 5)")
    for table in ("account", "entry", "alembic_version"):
        database.execute(f"CREATE TABLE {role}.{table} AS SELECT * FROM {table}")
    database.execute(
        f"UPDATE {role}.alembic_version SET version_num = 'lost'; GRANT ALL ON ALL TABLES IN SCHEMA {role} TO {role}"
    )
    with fresh_database(server) as other:
        result = migrate(tree, database, role, {"ALEMBIC_ENTRYPOINT_SCRATCH": other.url})
    assert (result.code, result.state) == (65, "LOST"), result.message
    assert f"looked up in {role}, public on the target, and in public in scratch" in result.message
