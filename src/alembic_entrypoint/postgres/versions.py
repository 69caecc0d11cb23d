"""The version table's rows and the database that they are in, so that a change of either is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from alembic_entrypoint.facts import VersionTable

Connection = psycopg.Connection[Any]

#: Which database this is: a rename, a dump restored elsewhere and a copy by TEMPLATE each give another.
IDENTITY = (
    "(SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()) || '/' || d.oid || '/' || d.datname "
    "FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())"
)
#: Where a session looks up names that say no schema: what is set, and which of that is there.
SEARCH_PATH = (
    "pg_catalog.concat(pg_catalog.current_setting('search_path'), ' ', pg_catalog.current_schemas(false)::text)"
)
#: The layout of the ledger that this version writes and reads: the number of steps in `layout.LAYOUT`.
LAYOUT_VERSION = 2


def version_rows(connection: Connection, schema: str, name: str) -> dict[str, str]:
    """Read what is recorded: revision -> the transaction that wrote the row, by which a later write is seen."""
    table = sql.Identifier(schema, name)
    return dict(connection.execute(sql.SQL("SELECT version_num, xmin::text FROM {}").format(table)).fetchall())


def stamped(rows: Mapping[str, str]) -> list[str]:
    """Give the rows as words that can be compared."""
    return [f"{revision} {xmin}" for revision, xmin in sorted(rows.items())]


def search_path(connection: Connection) -> str:
    """Tell where names are looked up that say no schema."""
    row = connection.execute(f"SELECT {SEARCH_PATH}").fetchone()
    return str(row[0]) if row else ""


class Changed(Exception):
    """Something else is recorded than was expected; the message says what."""


def swap(connection: Connection, table: VersionTable, expected: Sequence[str], revisions: Sequence[str]) -> None:
    """Record revisions in the place of exactly those that are expected there; make the table where it is missing.

    In the caller's transaction. Raises Changed, psycopg.Error.
    """
    name = sql.Identifier(table.resolved_schema, table.name)
    connection.execute("SET LOCAL lock_timeout = '5s'")
    if not table.exists:
        # As Alembic makes it: `MigrationContext._version_table_impl`.
        width = sql.SQL("varchar({})").format(table.width) if table.width else sql.SQL("text")
        key = sql.Identifier(f"{table.name}_pkc")
        create = "CREATE TABLE IF NOT EXISTS {} (version_num {} NOT NULL, CONSTRAINT {} PRIMARY KEY (version_num))"
        connection.execute(sql.SQL(create).format(name, width, key))
    connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(name))
    rows = connection.execute(sql.SQL("SELECT version_num FROM {}").format(name)).fetchall()
    if sorted(row[0] for row in rows) != sorted(expected):
        raise Changed(", ".join(sorted(row[0] for row in rows)) or "nothing")
    connection.execute(sql.SQL("DELETE FROM {}").format(name))
    for revision in revisions:
        connection.execute(sql.SQL("INSERT INTO {} (version_num) VALUES (%s)").format(name), [revision])


def undo_of(table: VersionTable, before: Sequence[str], after: Sequence[str]) -> str:
    """Write the SQL that brings back what was recorded before."""
    # By hand: versions of psycopg before 3.2 write an identifier only with a connection.
    name = ".".join('"' + each.replace('"', '""') + '"' for each in (table.resolved_schema, table.name))
    statements = [f"DELETE FROM {name} WHERE version_num = '{_quoted(each)}'" for each in after]
    statements += [f"INSERT INTO {name} VALUES ('{_quoted(each)}')" for each in before]
    return f"BEGIN; {'; '.join(statements)}; COMMIT;"


def _quoted(text: str) -> str:
    return text.replace("'", "''")
