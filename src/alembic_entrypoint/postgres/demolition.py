"""Drop exactly what the migrations made, in one transaction that takes nothing else with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import psycopg
from psycopg import sql

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.reading import Name

Connection = psycopg.Connection[Any]
_WORDS = {"r": "TABLE", "p": "TABLE", "f": "FOREIGN TABLE", "v": "VIEW", "m": "MATERIALIZED VIEW", "S": "SEQUENCE"}


class Entangled(Exception):
    """Dropping these would take others' objects with them; the message names those."""


def drop(connection: Connection, made: Collection[Name], sequences: Collection[tuple[str, str]]) -> list[str]:
    """Drop these names and sequences with all that belongs to them; give the statements that ran.

    In the caller's transaction. Raises Entangled, psycopg.Error.
    """
    before = _names(connection)
    ran: list[str] = []
    for statement in _statements(connection, made, sequences):
        text = statement.as_string(connection)
        connection.execute(statement)
        ran.append(text)
    others = before - _names(connection) - frozenset(made)
    if others:
        raise Entangled(", ".join(sorted(f"{each.schema}.{each.name}" for each in others)))
    return ran


def _names(connection: Connection) -> frozenset[Name]:
    row = connection.execute(reading.NAMES).fetchone()
    assert row is not None
    return reading.names_of(row[0], ())


def _statements(
    connection: Connection, made: Collection[Name], sequences: Collection[tuple[str, str]]
) -> Iterator[sql.Composed]:
    """Give a statement for each thing that is still there when its turn comes: CASCADE may have taken it."""
    wanted = sorted({(each.schema, each.name) for each in made if each.kind == "relation"} | set(sequences))
    for schema, name in wanted:
        row = connection.execute(
            "SELECT c.relkind FROM pg_catalog.pg_class AS c "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
            [schema, name],
        ).fetchone()
        kind = row[0].decode() if row and isinstance(row[0], bytes) else row and row[0]
        if kind in _WORDS:
            yield sql.SQL("DROP {} {} CASCADE").format(sql.SQL(_WORDS[kind]), sql.Identifier(schema, name))
    for each in sorted(made):
        if each.kind == "function":
            for (signature,) in connection.execute(
                "SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n "
                "ON n.oid = p.pronamespace WHERE n.nspname = %s AND p.proname = %s",
                [each.schema, each.name],
            ).fetchall():
                yield sql.SQL("DROP ROUTINE IF EXISTS {} CASCADE").format(sql.SQL(signature))
        elif each.kind == "type":
            yield sql.SQL("DROP TYPE IF EXISTS {} CASCADE").format(sql.Identifier(each.schema, each.name))
        elif each.kind == "extension":
            yield sql.SQL("DROP EXTENSION IF EXISTS {} CASCADE").format(sql.Identifier(each.name))
    for each in sorted(made):
        if each.kind == "schema":
            # Without CASCADE: what is left in it is others'.
            yield sql.SQL("DROP SCHEMA IF EXISTS {}").format(sql.Identifier(each.schema))
