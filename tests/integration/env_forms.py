"""Forms of `env.py` that real services have, with what every test of the matrix says about them."""

from __future__ import annotations

from pathlib import Path

from commands import Result, entrypoint
from projects import Project, project
from servers import Database

#: A host that no name server knows: whoever connects there fails at once.
DEAD = "postgresql://somebody:secret@db.invalid:5432/elsewhere"


def env_py(
    engine: str = "create_engine(config.get_main_option('sqlalchemy.url'))",
    *,
    above: str = "",
    before: str = "pass",
    configure: str = "",
    after: str = "pass",
) -> str:
    """Write an `env.py` that makes this engine; `before` runs on its connection before `configure()`."""
    return f"""
import os
from alembic import context
from sqlalchemy import create_engine, event, pool, text

config = context.config
{above}
engine = {engine}
with engine.connect() as connection:
    {before}
    context.configure(connection=connection, {configure})
    with context.begin_transaction():
        context.run_migrations()
{after}
"""


def async_env_py(engine: str, *, above: str = "", before: str = "pass", configure: str = "") -> str:
    """Write an `env.py` that makes this asynchronous engine; `before` and `configure` are as for `env_py`."""
    return f"""
import asyncio
import os
from alembic import context
from sqlalchemy import pool, text
from sqlalchemy.ext.asyncio import create_async_engine

config = context.config
{above}

def migrations(connection):
    {before}
    context.configure(connection=connection, {configure})
    with context.begin_transaction():
        context.run_migrations()


async def main():
    engine = {engine}
    async with engine.connect() as connection:
        await connection.run_sync(migrations)
    await engine.dispose()

asyncio.run(main())
"""


def env_on(driver: str, url: str = "config.get_main_option('sqlalchemy.url')", **more: str) -> str:
    """Write the plainest `env.py` for a driver; `url` is an expression, and `more` is as for `env_py`."""
    if driver == "asyncpg":
        return async_env_py(f"create_async_engine({url}, poolclass=pool.NullPool)", **more)
    return env_py(f"create_engine({url}, poolclass=pool.NullPool)", **more)


def ini_with(url: str, *lines: str) -> str:
    """Write an `alembic.ini` with this URL and more lines."""
    return "\n".join(
        [
            "[alembic]",
            "script_location = %(here)s/migrations",
            f"sqlalchemy.url = {url.replace('%', '%%')}",
            *lines,
            "",
        ]
    )


def tree_in(folder: Path, env: str, *, ini: str = ini_with("driver://user:pass@localhost/dbname")) -> Project:
    """Make a project of two migrations with this `env.py`."""
    made = project(folder, env=env, ini=ini)
    made.add_line(2)
    return made


def migrate(tree: Project, database: Database | None = None, *arguments: str, **env: str) -> Result:
    """Run `migrate` in the project; with a database that DATABASE_URL names it."""
    given = {"DATABASE_URL": database.url} if database else {}
    return entrypoint("migrate", *arguments, cwd=tree.folder, env={**given, **env})


def recorded(database: Database, table: str = "alembic_version") -> list[str]:
    """Read what the version table holds."""
    return sorted(row[0] for row in database.query(f"SELECT version_num FROM {table}"))


def tables(database: Database) -> list[str]:
    """Name every table that somebody made, the ledger apart, as `schema.name`."""
    rows = database.query(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' "
        "AND n.nspname NOT IN ('information_schema', 'alembic_entrypoint')"
    )
    return sorted(row[0] for row in rows)


def schemas(database: Database) -> list[str]:
    """Name every schema that somebody made."""
    return sorted(
        name
        for (name,) in database.query("SELECT nspname FROM pg_namespace")
        if not name.startswith("pg_") and name not in ("public", "information_schema", "alembic_entrypoint")
    )


MIGRATED = ["public.alembic_version", "public.t1", "public.t2"]


def assert_migrated(result: Result, database: Database) -> None:
    """See that the two migrations of `tree_in` were applied and recorded, and nothing else was made."""
    assert result.code == 0, result.message or result.stderr
    assert result.stdout == ""
    assert recorded(database) == ["r2"]
    assert tables(database) == MIGRATED
