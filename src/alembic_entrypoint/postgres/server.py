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

_ANOTHER_ROLE = "or set ALEMBIC_ENTRYPOINT_DATABASE_URL to a role that may write."
_DISK = "Some services set it while a disk is full: make room first."
#: What ends it, by where `default_transaction_read_only` comes from, in the words of pg_settings.
_WRITABLE = {
    "user": f"ALTER ROLE {{role}} RESET default_transaction_read_only; {_ANOTHER_ROLE}",
    "database user": (
        f"ALTER ROLE {{role}} IN DATABASE {{database}} RESET default_transaction_read_only; {_ANOTHER_ROLE}"
    ),
    "database": f"ALTER DATABASE {{database}} RESET default_transaction_read_only; {_DISK}",
    "global": f"ALTER ROLE ALL RESET default_transaction_read_only; {_DISK}",
    "client": "take it out of the URL's options, or out of PGOPTIONS.",
}
_WRITABLE_SERVER = f"ALTER SYSTEM SET default_transaction_read_only = off; SELECT pg_reload_conf(); {_DISK}"


@dataclass(frozen=True)
class Server:
    """The server as one session sees it."""

    version: str
    number: int
    is_pooled: bool
    is_read_only: bool

    @property
    def major(self) -> int:
        """PostgreSQL's major version."""
        return self.number // 10000

    @property
    def may_lock(self) -> bool:
        """Tell whether to lock before it is known that there is something to do: not in vain, or for nothing."""
        return not (self.is_pooled or self.is_read_only)


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
    row = connection.execute(
        "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('transaction_read_only') = 'on'"
    ).fetchone()
    assert row is not None
    return Server(plain[0] if plain else version, number, row[0] != connection.info.backend_pid, row[1])


def why_read_only(connection: psycopg.Connection[Any]) -> str | None:
    """Say why a session on a primary may only read, and the way out; None where it may write. Page: pg_settings."""
    row = connection.execute(
        "SELECT source, pg_catalog.quote_ident(session_user), pg_catalog.quote_ident(pg_catalog.current_database()) "
        "FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only' AND setting = 'on'"
    ).fetchone()
    if row is None:
        return None
    source, role, database = row
    return (
        f"The server lets this session only read: default_transaction_read_only is on, set by {source}. A migration "
        "would fail, and nothing could be recorded. Nothing was changed.\n"
        f"What ends it: {_WRITABLE.get(source, _WRITABLE_SERVER).format(role=role, database=database)}"
    )


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
