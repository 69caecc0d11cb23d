"""One migrator: the lock that all replicas of one database share, and the fence behind it.

Three session advisory locks: A, who may migrate; B, the fence, of which every connection of a migrating worker holds
a share; T, a random token of this holder, by which a connection of the worker recognises the session that holds A.
`docs/how-it-locks.md` tells why it takes three, and in this order [R7, R8].
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from alembic_entrypoint.address import Address
from alembic_entrypoint.errors import Misconfigured, TryAgain
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres import activity
from alembic_entrypoint.wait import connect
from alembic_entrypoint.worker.messages import HOLDER_CHECK, LOCK_A, LOCK_B, LOCK_CLASS, TOKEN_CLASS

#: Seconds between two tries, with jitter; the first wait is short, since most waits are.
SHORTEST, LONGEST = 0.1, 1.0

SESSION = {
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "client_connection_check_interval": "1000",
}


class LockLost(TryAgain):
    """The session that held the lock is gone."""


class Lock:
    """The lock, held. Whoever writes to the target besides the worker writes over this session."""

    def __init__(self, connection: psycopg.Connection[Any], token: int) -> None:
        self.connection = connection
        self.token = token

    def check_alive(self) -> None:
        """See, without asking the server, that the session is still there. Raises LockLost."""
        pgconn = self.connection.pgconn
        try:
            pgconn.consume_input()
        except psycopg.Error as error:
            raise self._lost(str(error)) from None
        if pgconn.status != psycopg.pq.ConnStatus.OK:
            raise self._lost(pgconn.get_error_message() if hasattr(pgconn, "get_error_message") else "closed")

    def _lost(self, reason: str) -> LockLost:
        return LockLost(
            f"The session that held the lock is gone: {reason.strip() or 'the server closed it'}. "
            "The migration was cancelled, so that no two can run at once.",
            event="lock.lost",
            reason=reason.strip(),
        )

    def worker_backends(self) -> list[int]:
        """Name the backends that hold a share of the fence, which are those of our worker."""
        return _fence_holders(self.connection)

    def cancel(self, pids: list[int]) -> None:
        """Cancel what these backends are doing."""
        self.connection.execute("SELECT pg_catalog.pg_cancel_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])

    def terminate(self, pids: list[int]) -> None:
        """End these backends."""
        self.connection.execute("SELECT pg_catalog.pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])

    def is_fence_free(self) -> bool:
        """Tell whether no connection of a worker is left."""
        return _try_fence(self.connection)


@contextmanager
def locked(
    address: Address,
    wait: float,
    connect_timeout: float,
    application_name: str,
    is_done: Callable[[psycopg.Connection[Any]], bool],
) -> Iterator[Lock | None]:
    """Hold the lock of this database; None when, while waiting, there was nothing left to do.

    Raises TryAgain when it is not free within `wait` seconds, Misconfigured when the session is shared.
    """
    lock = _acquire(address, wait, connect_timeout, application_name, is_done)
    try:
        yield lock
        if lock is not None:
            _release(lock)
    finally:
        if lock is not None:
            lock.connection.pgconn.finish()


def _acquire(
    address: Address,
    wait: float,
    connect_timeout: float,
    application_name: str,
    is_done: Callable[[psycopg.Connection[Any]], bool],
) -> Lock | None:
    started = time.monotonic()
    pause, told = SHORTEST, None
    while True:
        connection = connect(address, connect_timeout, application_name=application_name)
        try:
            lock = _try(connection)
            if lock is not None:
                waited = round(time.monotonic() - started, 3)
                log("lock.acquired", database=str(address), token=lock.token, elapsed=waited)
                return lock
            if is_done(connection):
                connection.pgconn.finish()
                return None
            holder = activity.holder(connection, LOCK_CLASS)
        except psycopg.Error as error:
            connection.pgconn.finish()
            holder = None
            log("lock.waiting", level="warning", reason=str(error).strip())
        except BaseException:
            connection.pgconn.finish()
            raise
        # A waiter keeps no session: five hundred replicas would use up max_connections.
        connection.pgconn.finish()
        if holder is not None and (holder.pid != told or time.monotonic() - started > 10):
            told = holder.pid
            log("lock.waiting", holder=str(holder), database=str(address))
        if time.monotonic() - started > wait:
            raise _given_up(address, wait, holder)
        time.sleep(min(pause, max(0.0, wait)) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        pause = min(pause * 1.5, LONGEST)


def _try(connection: psycopg.Connection[Any]) -> Lock | None:
    """Take T and A, check, and see that the fence is free; without waiting inside PostgreSQL [E1, E2]."""
    token = random.SystemRandom().randrange(1, 2**31)
    took_token = _one(connection, "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", TOKEN_CLASS, token)
    if not took_token or not _one(connection, "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", LOCK_CLASS, LOCK_A):
        return None
    holds = connection.execute(HOLDER_CHECK.replace("%(token)s", str(token))).fetchone()
    if not holds or not holds[0]:
        raise Misconfigured(_POOLED)
    # Only now: before the check has passed, a SET could leak through a pooler into the app's sessions [H5].
    for name, value in SESSION.items():
        connection.execute(
            "SELECT pg_catalog.set_config(name, %s, false) FROM pg_catalog.pg_settings WHERE name = %s AND context = 'user'",
            [value, name],
        )
    return Lock(connection, token) if _try_fence(connection) else None


_POOLED = (
    "The URL leads through a pooler that shares server sessions (transaction or statement pooling): a lock taken there "
    "protects nothing, and two replicas would migrate at once.\n"
    "Set ALEMBIC_ENTRYPOINT_DATABASE_URL to the database itself or to a session-pooling port; the app's own DATABASE_URL "
    "can stay as it is."
)


def _try_fence(connection: psycopg.Connection[Any]) -> bool:
    """See that no statement of an earlier migrator is left: take B alone, and free it at once."""
    if not _one(connection, "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", LOCK_CLASS, LOCK_B):
        return False
    _one(connection, "SELECT pg_catalog.pg_advisory_unlock(%s, %s)", LOCK_CLASS, LOCK_B)
    return True


def _fence_holders(connection: psycopg.Connection[Any]) -> list[int]:
    rows = connection.execute(
        "SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
        "AND classid = %s AND objid = %s AND pid <> pg_catalog.pg_backend_pid() AND database = "
        "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        [LOCK_CLASS, LOCK_B],
    )
    return [row[0] for row in rows]


def _release(lock: Lock) -> None:
    """Free what was held, and see that it was [H6]."""
    freed = [
        _one(lock.connection, "SELECT pg_catalog.pg_advisory_unlock(%s, %s)", LOCK_CLASS, LOCK_A),
        _one(lock.connection, "SELECT pg_catalog.pg_advisory_unlock(%s, %s)", TOKEN_CLASS, lock.token),
    ]
    if not all(freed):
        raise TryAgain(
            "The lock was no longer held when it was to be freed. Start again: the database is looked at anew."
        )


def _given_up(address: Address, wait: float, holder: activity.Session | None) -> TryAgain:
    who = f"It is held by {holder}." if holder else "Who holds it could not be seen."
    end = f"\nTo end that session: SELECT pg_terminate_backend({holder.pid});" if holder else ""
    return TryAgain(
        f"Another replica has held the migration lock of {address} for the {wait:g} s that we wait. {who}\n"
        f"Look at what it is doing before you end it; a longer wait: ALEMBIC_ENTRYPOINT_LOCK_WAIT.{end}"
    )


def _one(connection: psycopg.Connection[Any], statement: str, *values: object) -> Any:
    row = connection.execute(statement, values).fetchone()
    return row[0] if row else None
