"""Alembic projects on disk, as services have them: made by the tests, run by the real Alembic."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, pool

config = context.config


def run_offline():
    context.configure(url=config.get_main_option("sqlalchemy.url"), literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_online():
    engine = create_engine(config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
"""

ASYNC_ENV = """
import asyncio
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine


def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def run_online():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)


asyncio.run(run_online())
"""
#: SQLAlchemy's names of the drivers that we know.
DRIVERS = ("psycopg", "psycopg2", "asyncpg")


def committing_each(env: str) -> str:
    """Make an `env.py` of another, which commits after each migration."""
    return env.replace("connection=connection)", "connection=connection, transaction_per_migration=True)")


PER_MIGRATION = committing_each(ENV)

INI = """
[alembic]
script_location = %(here)s/migrations
sqlalchemy.url = driver://user:pass@localhost/dbname
"""


@dataclass(frozen=True)
class Project:
    """A folder with an `alembic.ini`, an `env.py` and migrations."""

    folder: Path

    @property
    def versions(self) -> Path:
        return self.folder / "migrations" / "versions"

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project, dedented."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip("\n"))
        return file

    def add(
        self,
        revision: str,
        upgrade: str = "pass",
        *,
        down: str | tuple[str, ...] | None = None,
        downgrade: str = "pass",
        head: str = "",
        folder: str = "migrations/versions",
        **attributes: object,
    ) -> Path:
        """Add a migration: the bodies of its two functions, what stands above them, and its other attributes."""
        lines = [f"revision = {revision!r}", f"down_revision = {down!r}"]
        lines += [f"{name} = {value!r}" for name, value in attributes.items()]
        bodies = [
            f"def {name}():\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"
            for name, body in (("upgrade", upgrade), ("downgrade", downgrade))
        ]
        text = "\n".join(
            [
                f'"""Migration {revision}."""',
                "import sqlalchemy as sa",
                "from alembic import op",
                *lines,
                textwrap.dedent(head),
                "",
                *bodies,
            ]
        )
        return self.write(f"{folder}/{revision}.py", text)

    def add_line(self, count: int, first: int = 1) -> list[str]:
        """Add migrations r1 … rN, one on the other, each of which makes a table t1 … tN."""
        names = [f"r{n}" for n in range(first, first + count)]
        for n, name in enumerate(names, first):
            sql = f"op.execute('CREATE TABLE t{n} (id int PRIMARY KEY)')"
            self.add(name, sql, down=f"r{n - 1}" if n > 1 else None, downgrade=f"op.execute('DROP TABLE t{n}')")
        return names


def project(folder: Path, *, env: str = ENV, ini: str = INI) -> Project:
    """Make a project without migrations."""
    made = Project(folder)
    made.write("alembic.ini", ini)
    made.write("migrations/env.py", env)
    made.versions.mkdir(parents=True, exist_ok=True)
    return made
