"""Wait until the database answers, and tell what can only be mended by a person from what may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from alembic_entrypoint.address import Address
from alembic_entrypoint.errors import Denied, Ended, Misconfigured, Unavailable
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.answers import Answer, Outcome
from alembic_entrypoint.postgres.login import NotReady, log_in
from alembic_entrypoint.postgres.server import Server, examine

if TYPE_CHECKING:
    from tenacity import RetryCallState

#: A wrong password may be one that is being changed, a missing database one that is being created.
GRACE = {Outcome.DENIED: 5.0, Outcome.WRONG: 5.0, Outcome.UNUSABLE: 0.0}


@dataclass(frozen=True)
class Ready:
    """The server that answered, and the address that leads to it alone: of several hosts, the one that will do."""

    server: Server
    address: Address


def await_database(address: Address, timeout: float, *, needs_primary: bool = True) -> Ready:
    """Wait until the database answers as it must, and say what it is. Raises Unavailable, Denied, Misconfigured."""
    with reached(address, timeout, needs_primary=needs_primary) as (_, ready):
        return ready


@contextmanager
def reached(
    address: Address, timeout: float, *, needs_primary: bool = True
) -> Iterator[tuple[psycopg.Connection[Any], Ready]]:
    """Do the same, and hand out the session with which it was seen."""
    started = time.monotonic()
    connection, found = find(address, timeout, needs_primary=needs_primary)
    try:
        server = examine(connection)
        elapsed = round(time.monotonic() - started, 3)
        log("database.ready", database=str(found), version=server.version, elapsed=elapsed)
        yield connection, Ready(server, found)
    finally:
        # Not close(), which would wait for a statement that a silent server is still at.
        connection.pgconn.finish()


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
        connection.pgconn.finish()


def connect(
    address: Address,
    timeout: float,
    *,
    needs_primary: bool = True,
    application_name: str = "alembic-entrypoint",
) -> psycopg.Connection[Any]:
    """Open an autocommit session, trying again for so many seconds. Raises Unavailable, Denied, Misconfigured."""
    return find(address, timeout, needs_primary=needs_primary, application_name=application_name)[0]


def find(
    address: Address, timeout: float, *, needs_primary: bool = True, application_name: str = "alembic-entrypoint"
) -> tuple[psycopg.Connection[Any], Address]:
    """Do the same, and give the address of the host that it was, of several."""
    started = time.monotonic()

    failed: list[NotReady] = []

    def attempt() -> tuple[psycopg.Connection[Any], Address]:
        if failed:
            raise failed.pop()
        deadline = started + timeout
        return log_in(address, deadline, needs_primary=needs_primary, application_name=application_name)

    # Most databases answer at once; who waits has the time to import what waits.
    try:
        return attempt()
    except NotReady as error:
        failed.append(error)
    from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

    backoff = wait_random_exponential(multiplier=0.1, max=1.0, min=0.05)
    patience = _Patience(address, started + timeout, backoff)
    retrying = Retrying(
        retry=retry_if_exception_type(NotReady), wait=patience.pause, stop=patience.is_over, reraise=True
    )
    try:
        return retrying(attempt)
    except NotReady as error:
        raise _given_up(address, error.answer, time.monotonic() - started) from None


class _Patience:
    """How long to go on, and what was said of it: one line for each reason, not one for each try."""

    def __init__(self, address: Address, deadline: float, backoff: Callable[[RetryCallState], float]) -> None:
        self.deadline = deadline
        self._backoff = backoff
        self._address = address
        self._reason: str | None = None
        #: since when the answers have been such that a person has to mend something
        self._hopeless_since: float | None = None

    def is_over(self, state: RetryCallState) -> bool:
        """Tell whether this try was the last."""
        return self._left(state) <= 0

    def pause(self, state: RetryCallState) -> float:
        """Give the seconds to the next try; the last one is when the time is over."""
        return min(self._backoff(state), max(0.0, self._left(state)))

    def _left(self, state: RetryCallState) -> float:
        """Note why this try failed, and give the seconds that are left. Versions of tenacity ask in their own order."""
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, NotReady)
        self._say(error.answer.reason)
        now = time.monotonic()
        return min(self.deadline, self._end_of_grace(error.answer.outcome, now)) - now

    def _say(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            log("database.waiting", level="warning", database=str(self._address), reason=reason)

    def _end_of_grace(self, outcome: Outcome, now: float) -> float:
        """Count from the first such answer: a server that starts late has the same grace for roles and databases."""
        if outcome is Outcome.WAIT:
            self._hopeless_since = None
            return self.deadline
        self._hopeless_since = self._hopeless_since or now
        return self._hopeless_since + GRACE[outcome]


def _given_up(address: Address, answer: Answer, elapsed: float) -> Ended:
    what = f"{address}: {answer.reason}"
    if answer.outcome is Outcome.DENIED:
        refusal = address.credentials.refusal if address.credentials else ""
        what += f"\nNo setting names a password, so env.py was asked for one: {refusal}" if refusal else ""
        return Denied(
            f"The database will not let us in. {what}\n"
            "Check user, password and sslmode in the URL, and the server's pg_hba.conf; nothing was changed."
        )
    if answer.outcome is Outcome.WRONG:
        return Misconfigured(
            f"There is no such database. {what}\nCreate it, or mend the URL; this program never creates a database."
        )
    if answer.outcome is Outcome.UNUSABLE:
        return Misconfigured(f"The URL of the database cannot be used. {what}\nMend the URL.")
    return Unavailable(
        f"The database was not ready within {elapsed:.0f} s. {what}\n"
        "Start it or mend the host in the URL; a database that needs longer: ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT."
    )
