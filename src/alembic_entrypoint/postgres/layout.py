"""The ledger's tables: made, brought up to date, and used without ever being in the way of a start.

What cannot be read or written is said once, and passed by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.pq import ConnStatus

from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.versions import LAYOUT_VERSION

T = TypeVar("T")
Connection = psycopg.Connection[Any]

#: What it is worth to wait for another's lock on the ledger: it is in nobody's way, and nobody's is in ours.
#: Nor is the disk waited for: a migration's own commit, which comes later, flushes what was written here before it.
PATIENCE = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'; SET LOCAL synchronous_commit = off"

#: How the ledger came to be what it is: each step is run once, in its order; a layout's version is their number.
LAYOUT: tuple[str, ...] = (
    """
    CREATE TABLE alembic_entrypoint.settling (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        database text NOT NULL,
        version_table text NOT NULL,
        began timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        elapsed double precision,
        state text NOT NULL,
        action text NOT NULL,
        outcome text NOT NULL,
        before text[] NOT NULL,
        after text[],
        host text NOT NULL,
        image text NOT NULL,
        program text NOT NULL,
        message text,
        owes_proof boolean NOT NULL DEFAULT false,
        times bigint NOT NULL DEFAULT 1
    );
    CREATE TABLE alembic_entrypoint.revision (
        database text NOT NULL,
        version_table text NOT NULL,
        revision text NOT NULL,
        beneath text[] NOT NULL,
        replaces text[] NOT NULL,
        oldest_compatible text,
        seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        applied timestamptz,
        image text NOT NULL,
        content text,
        meaning text,
        PRIMARY KEY (database, version_table, revision)
    );
    CREATE TABLE alembic_entrypoint.recorded (
        database text NOT NULL,
        version_table text NOT NULL,
        revision text NOT NULL,
        row_xmin text NOT NULL,
        ancestors text[] NOT NULL,
        PRIMARY KEY (database, version_table, revision)
    );
    CREATE TABLE alembic_entrypoint.set_aside (
        version_table text NOT NULL,
        revision text NOT NULL,
        settling bigint NOT NULL,
        PRIMARY KEY (version_table, revision)
    );
    CREATE TABLE alembic_entrypoint.start (
        database text NOT NULL,
        fingerprint text NOT NULL,
        role text NOT NULL,
        search_path text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        recorded text[] NOT NULL,
        heads text[] NOT NULL,
        variables text[] NOT NULL,
        environment text NOT NULL,
        is_fixed boolean NOT NULL,
        seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        PRIMARY KEY (database, fingerprint, role)
    );
    """,
    """
    CREATE TABLE alembic_entrypoint.replay (
        fingerprint text NOT NULL,
        major integer NOT NULL,
        seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        given jsonb NOT NULL,
        PRIMARY KEY (fingerprint, major)
    );
    """,
)
assert len(LAYOUT) == LAYOUT_VERSION


class Unwritable(Exception):
    """The ledger is of no use here; the message says why."""


def passing_by(connection: Connection, work: Callable[[], T], otherwise: T) -> T:
    """Do something with the ledger in one transaction; where that fails, say so and go on without it.

    Raises psycopg.OperationalError where the connection is lost: that is not the ledger's fault.
    """
    try:
        with connection.transaction():
            connection.execute(PATIENCE)
            return work()
    except Unwritable as reason:
        _say(str(reason), "info")
    except psycopg.Error as error:
        if connection.pgconn.status != ConnStatus.OK:
            raise
        _say(reason_of(error), "warning")
    return otherwise


_said: set[str] = set()


def _say(reason: str, level: str) -> None:
    if reason not in _said:
        _said.add(reason)
        log("ledger.passed", level=level, reason=reason, note="the ledger is left alone, and the start goes on")


def reason_of(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return (
            f"the role may not use or make the schema alembic_entrypoint: {error}. Grant CREATE on the database once, "
            "or set ALEMBIC_ENTRYPOINT_LEDGER=off"
        )
    return f"{type(error).__name__}: {error}".strip()


def is_there(connection: Connection) -> bool:
    """Tell whether there is a ledger that this version understands."""
    found = connection.execute("SELECT pg_catalog.to_regclass('alembic_entrypoint.layout') IS NOT NULL").fetchone()
    if not found or not found[0]:
        return False
    row = connection.execute("SELECT version FROM alembic_entrypoint.layout").fetchone()
    if row is not None and row[0] > LAYOUT_VERSION:
        raise Unwritable(
            f"a newer version of this program keeps a ledger of layout {row[0]} here; this one knows {LAYOUT_VERSION}"
        )
    return row is not None and row[0] == LAYOUT_VERSION


def make(connection: Connection) -> None:
    """Make the ledger, or bring an older layout to this one. Raises psycopg.Error, Unwritable."""
    if is_there(connection):
        return
    found = connection.execute("SELECT pg_catalog.to_regclass('alembic_entrypoint.layout') IS NOT NULL").fetchone()
    version = 0
    if found and found[0]:
        row = connection.execute("SELECT version FROM alembic_entrypoint.layout").fetchone()
        version = row[0] if row else 0
    else:
        connection.execute("CREATE SCHEMA IF NOT EXISTS alembic_entrypoint")
        connection.execute("CREATE TABLE alembic_entrypoint.layout (version integer NOT NULL)")
    for step in LAYOUT[version:]:
        connection.execute(step)
    connection.execute("DELETE FROM alembic_entrypoint.layout")
    connection.execute("INSERT INTO alembic_entrypoint.layout VALUES (%s)", [LAYOUT_VERSION])
