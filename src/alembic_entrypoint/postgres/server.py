"""What server answers, and why it may be no good for migrating."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from alembic_entrypoint.errors import Misconfigured

OLDEST = 130000
SHARED = (
    "The URL leads through a pooler that shares server sessions (transaction or statement pooling): a lock taken there "
    "protects nothing, and two replicas would migrate at once.\n"
    "Set ALEMBIC_ENTRYPOINT_DATABASE_URL to the database itself or to a session-pooling port; the app's own "
    "DATABASE_URL can stay as it is."
)


@dataclass(frozen=True)
class Server:
    """The server as one session sees it."""

    version: str
    number: int
    is_pooled: bool

    @property
    def major(self) -> int:
        """PostgreSQL's major version."""
        return self.number // 10000


def examine(connection: psycopg.Connection[Any]) -> Server:
    """Look at the server before anything is locked. Raises Misconfigured, naming what it is and the way out."""
    status = connection.info.parameter_status
    version = status("server_version") or ""
    if status("crdb_version"):
        raise Misconfigured(
            "The server is CockroachDB, whose advisory locks do nothing: replicas would migrate at the same time.\n"
            "alembic-entrypoint is for PostgreSQL only."
        )
    if "-YB-" in version:
        raise Misconfigured(
            f"The server is YugabyteDB ({version}), whose advisory locks are missing or switched off: replicas would "
            "migrate at the same time.\nalembic-entrypoint is for PostgreSQL only."
        )
    number = connection.info.server_version
    if number < OLDEST:
        raise Misconfigured(
            f"The server is PostgreSQL {version}; alembic-entrypoint is made for and tested on 13 to 18.\n"
            "Upgrade the server."
        )
    plain = re.match(r"[\d.]+", version)
    return Server(plain[0] if plain else version, number, is_pooled(connection))


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether something stands between us and the server: a pooler makes up the PID that it tells."""
    return _backend(connection) != connection.info.backend_pid


def is_shared(connection: psycopg.Connection[Any], connect: Callable[[], psycopg.Connection[Any]]) -> bool:
    """Tell whether a pooler gives one server session to several clients [E15].

    True is certain. False is not: under load the two of us may have been kept apart by chance [R8].
    """
    before, other = _backend(connection), connect()
    try:
        # While this transaction lasts its backend is taken, so that the first client must be given another one.
        other.execute("BEGIN")
        return _backend(other) == before or _backend(connection) != before
    except (psycopg.errors.ConnectionException, psycopg.errors.ProtocolViolation):
        return True  # statement pooling knows no transactions
    finally:
        other.pgconn.finish()


def _backend(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
