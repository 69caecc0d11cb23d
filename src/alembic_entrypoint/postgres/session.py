"""The settings of our own sessions: what keeps a lock, and how the server notices that its client is gone.

An administrator's timeouts on role or database would end a session that only holds a lock [E7, H11], and a server
that is not told to look notices a dead client's socket after two hours [H8] and its running statement never [E5].
"""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.pq import ConnStatus

from alembic_entrypoint.settings import Settings

#: For every session of ours on the target. Milliseconds, but for the keepalives, which are seconds.
ALIVE: Mapping[str, str] = {
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "client_connection_check_interval": "1000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
#: For the session that holds the lock.
SESSION: Mapping[str, str] = {**ALIVE, "statement_timeout": "0", "lock_timeout": "0"}

_SET = (
    "SELECT pg_catalog.count(pg_catalog.set_config(s.name, v.value, false)) FROM pg_catalog.pg_settings AS s "
    "JOIN unnest(%s::text[], %s::text[]) AS v (name, value) USING (name) WHERE s.context = 'user'"
)


def application_name(settings: Settings, step: str) -> str:
    """Say host, image and step in a session's name, in the 63 bytes that PostgreSQL keeps."""
    image = f" {settings.image}" if settings.image else ""
    return f"alembic-entrypoint {step} {socket.gethostname()}{image}"[:63]


def apply(connection: psycopg.Connection[Any], settings: Mapping[str, str]) -> frozenset[str]:
    """Set what this server has; give the names that it forbids, as managed services do. Catalog page: pg_settings."""
    try:
        connection.execute(_SET, [list(settings), list(settings.values())])
        return frozenset()
    except psycopg.Error:
        # Not by its class: a setting that cannot be changed now (55P02) is an OperationalError, too.
        if connection.pgconn.status != ConnStatus.OK:
            raise
        if len(settings) == 1:
            return frozenset(settings)
    return frozenset().union(*(apply(connection, {name: value}) for name, value in settings.items()))


def finish_statement(connection: psycopg.Connection[Any]) -> None:
    """Read the rest of a statement of ours that a signal has interrupted.

    libpq is never left to wait: it would keep Python's own lock, and with it the timer that ends us in time [R11].
    """
    pgconn = connection.pgconn
    while pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
        while pgconn.is_busy():
            select.select([pgconn.socket], [], [])
            pgconn.consume_input()
        pgconn.get_result()
