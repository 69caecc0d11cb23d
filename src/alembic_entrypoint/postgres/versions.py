"""The version table's rows and the database that they are in, so that a change of either is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[Any]

#: Which database this is: a rename, a dump restored elsewhere and a copy by TEMPLATE each give another.
IDENTITY = (
    "(SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()) || '/' || d.oid || '/' || d.datname "
    "FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())"
)
#: The layout of the ledger that this version writes and reads: the number of steps in `ledger.LAYOUT`.
LAYOUT_VERSION = 2


def version_rows(connection: Connection, schema: str, name: str) -> dict[str, str]:
    """Read what is recorded: revision -> the transaction that wrote the row, by which a later write is seen."""
    table = sql.Identifier(schema, name)
    return dict(connection.execute(sql.SQL("SELECT version_num, xmin::text FROM {}").format(table)).fetchall())


def stamped(rows: Mapping[str, str]) -> list[str]:
    """Give the rows as words that can be compared."""
    return [f"{revision} {xmin}" for revision, xmin in sorted(rows.items())]
