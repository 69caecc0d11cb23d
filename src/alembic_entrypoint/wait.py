"""Wait until the database answers, and tell what can only be mended by a person from what may pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from alembic_entrypoint.address import Address
from alembic_entrypoint.errors import Denied, Misconfigured, Unavailable
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.answers import Answer, Outcome, understand
from alembic_entrypoint.postgres.server import Server, examine

#: A wrong password may be one that is being changed, a missing database one that is being created.
GRACE = 5.0
#: A server that accepts the connection and says nothing is asked again after so many seconds.
CONNECT_TIMEOUT = 5.0
#: What keeps a silent network from holding a session for hours [H8]: seconds, but for the last, milliseconds.
KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}


class NotReady(Exception):
    """There is no usable connection yet."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


def await_database(address: Address, timeout: float, *, needs_primary: bool = True) -> Server:
    """Wait until the database answers as it must, and say what it is. Raises Unavailable, Denied, Misconfigured."""
    started = time.monotonic()
    with connected(address, timeout, needs_primary=needs_primary) as connection:
        server = examine(connection)
    log(
        "database.ready",
        database=str(address),
        version=server.version,
        elapsed=round(time.monotonic() - started, 3),
    )
    return server


@contextmanager
def connected(
    address: Address,
    timeout: float,
    *,
    needs_primary: bool = True,
    application_name: str = "alembic-entrypoint",
) -> Iterator[psycopg.Connection[Any]]:
    """Open an autocommit session, trying again for so many seconds."""
    connection = connect(address, timeout, needs_primary=needs_primary, application_name=application_name)
    try:
        yield connection
    finally:
        # Not close(), which would wait for a statement that a silent server is still at.
        connection.pgconn.finish()


def connect(
    address: Address,
    timeout: float,
    *,
    needs_primary: bool = True,
    application_name: str = "alembic-entrypoint",
) -> psycopg.Connection[Any]:
    """Open an autocommit session, trying again for so many seconds. Raises Unavailable, Denied, Misconfigured."""
    started = time.monotonic()
    reasons: list[str] = []

    def stop(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, NotReady)
        if error.answer.reason not in reasons[-1:]:
            reasons.append(error.answer.reason)
            log("database.waiting", level="warning", database=str(address), reason=error.answer.reason)
        limit = timeout if error.answer.outcome is Outcome.WAIT else min(GRACE, timeout)
        state.upcoming_sleep = min(state.upcoming_sleep, max(0.0, started + limit - time.monotonic()))
        return time.monotonic() - started >= limit

    retrying = Retrying(
        retry=retry_if_exception_type(NotReady),
        wait=wait_random_exponential(multiplier=0.1, max=2.0, min=0.05),
        stop=stop,
        reraise=True,
    )
    try:
        return retrying(lambda: _try(address, started + timeout, needs_primary, application_name))
    except NotReady as error:
        raise _given_up(address, error.answer, time.monotonic() - started) from None


def _try(address: Address, deadline: float, needs_primary: bool, application_name: str) -> psycopg.Connection[Any]:
    remaining = max(1.0, deadline - time.monotonic())
    parameters: dict[str, Any] = {
        **KEEPALIVES,
        **address.parameters,
        "application_name": application_name,
        "connect_timeout": max(1, round(min(CONNECT_TIMEOUT, remaining))),
    }
    if needs_primary and len(address.place.hosts) > 1:
        parameters.setdefault("target_session_attrs", "read-write")
    try:
        connection = psycopg.connect(autocommit=True, **parameters)
    except psycopg.Error as error:
        raise NotReady(understand(str(error), error.sqlstate)) from None
    try:
        # Whether the server answers is known only after it has answered; a pooler accepts any login [H26].
        row = connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone()
    except psycopg.Error as error:
        connection.pgconn.finish()
        raise NotReady(understand(str(error), error.sqlstate)) from None
    if needs_primary and row and row[0]:
        connection.pgconn.finish()
        raise NotReady(Answer(Outcome.WAIT, "it is a standby, which cannot be migrated"))
    return connection


def _given_up(address: Address, answer: Answer, elapsed: float) -> Exception:
    what = f"{address}: {answer.reason}"
    if answer.outcome is Outcome.DENIED:
        return Denied(
            f"The database will not let us in. {what}\n"
            "Check user, password and sslmode in the URL, and the server's pg_hba.conf; nothing was changed."
        )
    if answer.outcome is Outcome.WRONG:
        return Misconfigured(
            f"There is no such database. {what}\nCreate it, or mend the URL; this program never creates a database."
        )
    return Unavailable(
        f"The database was not ready within {elapsed:.0f} s. {what}\n"
        "Start it or mend the host in the URL; a database that needs longer: ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT."
    )
