"""The ledger: what this program remembers in the database, in a schema of its own.

Rows are bound to the database's identity, so that a copy is not taken for the original; `set_aside` alone is not,
since what it warns of came with the copied data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alembic_entrypoint.facts import Facts, Ledger, VersionTable
from alembic_entrypoint.postgres.layout import PATIENCE, Connection, is_there, passing_by
from alembic_entrypoint.postgres.versions import IDENTITY, version_rows


@dataclass(frozen=True)
class Settling:
    """One line of the history."""

    database: str
    version_table: str
    began: Any
    #: seconds; None while it is under way, or when it was killed
    elapsed: float | None
    state: str
    action: str
    outcome: str
    before: tuple[str, ...]
    after: tuple[str, ...] | None
    host: str
    image: str
    program: str
    message: str | None
    times: int


def read(connection: Connection, facts: Facts) -> Ledger:
    """Read what the ledger knows of this database and version table; empty where there is none."""
    return passing_by(connection, lambda: _read(connection, facts), Ledger())


def history(connection: Connection) -> list[Settling]:
    """Read every settling that was noted here, and in what this database was copied from; the oldest first."""
    with connection.transaction():
        connection.execute(PATIENCE)
        if not is_there(connection):
            return []
        rows = connection.execute(
            "SELECT pg_catalog.regexp_replace(database, '^.*?/.*?/', ''), version_table, began, elapsed, state, "
            "action, outcome, before, after, host, image, program, message, times "
            "FROM alembic_entrypoint.settling ORDER BY id"
        )
        return [_settling(*row) for row in rows]


def _settling(*row: Any) -> Settling:
    values: Any = [tuple(each) if isinstance(each, list) else each for each in row]
    return Settling(*values)


def _read(connection: Connection, facts: Facts) -> Ledger:
    if not is_there(connection):
        return Ledger()
    table = facts.version_table
    here = f"WHERE database = {IDENTITY} AND version_table = %s"
    revisions = connection.execute(
        "SELECT revision, beneath, oldest_compatible, applied IS NOT NULL, "
        "to_char(coalesce(applied, seen) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"'), "
        f"image, content, meaning FROM alembic_entrypoint.revision {here}",
        [str(table)],
    ).fetchall()
    set_aside = connection.execute(
        "SELECT revision FROM alembic_entrypoint.set_aside WHERE version_table = %s", [str(table)]
    )
    owing = connection.execute(
        f"SELECT EXISTS (SELECT FROM alembic_entrypoint.settling {here} AND owes_proof)", [str(table)]
    ).fetchone()
    rows = version_rows(connection, table.resolved_schema, table.name) if facts.recorded else {}
    return Ledger(
        beneath={row[0]: frozenset(row[1]) for row in revisions},
        ancestors=known_ancestors(connection, table, rows),
        oldest_compatible={row[0]: row[2] for row in revisions if row[2]},
        since={row[0]: f"since {row[4]}" + (f" from image {row[5]}" if row[5] else "") for row in revisions if row[3]},
        contents={row[0]: (row[6], row[7]) for row in revisions if row[6]},
        set_aside=frozenset(row[0] for row in set_aside),
        owes_proof=bool(owing and owing[0]),
    )


def known_ancestors(connection: Connection, table: VersionTable, rows: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Read the ancestors of the recorded revisions whose rows are still as they were written."""
    known = connection.execute(
        "SELECT revision, row_xmin, ancestors FROM alembic_entrypoint.recorded "
        f"WHERE database = {IDENTITY} AND version_table = %s",
        [str(table)],
    )
    return {revision: frozenset(ancestors) for revision, xmin, ancestors in known if rows.get(revision) == xmin}
