"""What is measured: a project whose migrations make a table each, and databases that are equal each time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from alembic_entrypoint.postgres.embedded import Embedded, embedded_server

BIN = Path(sys.executable).parent
ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, pool

url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
engine = create_engine(url, poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
MIGRATION = """
import sqlalchemy as sa
from alembic import op
revision = "m{n:04}"
down_revision = {down!r}
def upgrade():
    op.create_table("t{n}", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(50)))
def downgrade():
    op.drop_table("t{n}")
"""


def tree(folder: Path, count: int) -> Path:
    """Make a project with so many migrations, each of which makes a table."""
    versions = folder / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (folder / "migrations" / "env.py").write_text(ENV)
    for n in range(1, count + 1):
        (versions / f"m{n:04}.py").write_text(MIGRATION.format(n=n, down=f"m{n - 1:04}" if n > 1 else None))
    return folder


@contextmanager
def quiet_server() -> Iterator[Embedded]:
    """Start a server that does nothing by itself while others are measured."""
    with embedded_server(settings={"autovacuum": "off"}) as server:
        yield server


def execute(url: str, *statements: str) -> None:
    """Execute statements, each for itself."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def settle(server: Embedded) -> None:
    """Leave nothing to pay for those who come next: no dead rows in the shared catalogs, nothing to write out."""
    execute(server.url, "VACUUM", "CHECKPOINT")
    os.sync()  # fsync is off: what a checkpoint wrote is on its way still


@contextmanager
def database(server: Embedded, template: str = "template1") -> Iterator[str]:
    """Make a database for one measurement; give its URL."""
    execute(server.url, f"CREATE DATABASE measured TEMPLATE {template}")
    try:
        settle(server)
        yield server.url_for("measured")
    finally:
        execute(server.url, "DROP DATABASE measured WITH (FORCE)")
