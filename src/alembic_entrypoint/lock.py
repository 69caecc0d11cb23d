"""One migrator: the lock that all replicas of one database share, and the fence behind it.

Three session advisory locks: A, who may migrate; B, the fence, of which every connection of a migrating worker holds
a share; T, a random token of this holder, by which a connection of the worker recognises the session that holds A.
`docs/how-it-locks.md` tells why it takes three, and in this order [R7, R8].
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from alembic_entrypoint.address import Address
from alembic_entrypoint.errors import Misconfigured, TryAgain
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres import activity
from alembic_entrypoint.postgres.server import SHARED, is_pooled, is_shared, why_read_only
from alembic_entrypoint.postgres.session import SESSION, apply, finish_statement
from alembic_entrypoint.wait import connect, find
from alembic_entrypoint.worker.messages import HOLDER_CHECK, IMAGE_CLASS, LOCK_A, LOCK_B, LOCK_CLASS, TOKEN_CLASS

#: Seconds between two tries, with jitter; the first is short, since most waits are.
SHORTEST, LONGEST = 0.1, 2.0
#: Seconds after which a waiter says again for whom it waits.
TOLD_AGAIN = 10.0

#: Seconds in which what a pooler has spread over its backends must be found again.
FREEING = 1.0

# One statement each, which a pooler gives to one backend: what is taken in vain is not left behind there.
_TAKE = (
    "SELECT CASE WHEN NOT pg_catalog.pg_try_advisory_lock(%s, %s) THEN false "
    "WHEN pg_catalog.pg_try_advisory_lock(%s, %s) THEN true ELSE NOT pg_catalog.pg_advisory_unlock(%s, %s) END"
)
_TAKE_AND_FREE = (
    "SELECT CASE WHEN pg_catalog.pg_try_advisory_lock(%s, %s) THEN pg_catalog.pg_advisory_unlock(%s, %s) END"
)
_UNLOCK = (
    "SELECT pg_catalog.pg_advisory_unlock(%s, %s) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' "
    "AND objsubid = 2 AND granted AND pid = pg_catalog.pg_backend_pid() AND classid = %s AND objid = %s LIMIT 1"
)

IsDone = Callable[[psycopg.Connection[Any]], bool]
#: Called with whether the holder is a replica of the same image; None where that cannot be told.
AtWait = Callable[[bool | None], None]


class LockLost(TryAgain):
    """The session that held the lock is gone."""

    def __init__(self, reason: str) -> None:
        reason = " ".join(reason.split()).rstrip(".") or "the server closed it"
        super().__init__(
            f"The session that held the lock is gone: {reason}. "
            "What it protected was cancelled, so that no two can migrate at once.",
            event="lock.lost",
            reason=reason,
        )


class Lock:
    """The lock, held. Whoever writes to the target besides the worker writes over this session."""

    #: where it is held: of several hosts, the one
    address: Address

    def __init__(self, connection: psycopg.Connection[Any], token: int, is_pooled: bool) -> None:
        self.connection = connection
        self.token = token
        self.is_pooled = is_pooled
        #: settings that this server does not let us set
        self.forbidden: frozenset[str] = frozenset()
        #: what is to be freed
        self.held = [(TOKEN_CLASS, token), (LOCK_CLASS, LOCK_A)]

    def check_alive(self) -> None:
        """See, without asking the server, that the session is still there. Raises LockLost."""
        pgconn = self.connection.pgconn
        try:
            pgconn.consume_input()
        except psycopg.Error as error:
            raise LockLost(str(error)) from None
        if pgconn.status != psycopg.pq.ConnStatus.OK:
            raise LockLost(pgconn.error_message.decode(errors="replace"))

    def worker_backends(self) -> list[int]:
        """Name the backends that hold a share of the fence, which are those of our worker."""
        finish_statement(self.connection)
        return _fence_holders(self.connection)

    def cancel(self, pids: list[int]) -> None:
        """Cancel what these backends are doing, as far as our role may."""
        with suppress(psycopg.errors.InsufficientPrivilege):
            self.connection.execute("SELECT pg_catalog.pg_cancel_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])

    def end_backends(self, limit: float) -> list[int]:
        """End what the worker left on the server, and wait, so many seconds, until it has rolled back.

        Gives those that are still there: another role's may not be ended by ours [R11].
        """
        deadline = time.monotonic() + limit
        while (pids := self.worker_backends()) and time.monotonic() < deadline:
            with suppress(psycopg.errors.InsufficientPrivilege):
                self.connection.execute("SELECT pg_catalog.pg_terminate_backend(p) FROM unnest(%s::int[]) AS p", [pids])
            time.sleep(0.02)
        return pids

    def release(self) -> None:
        """Free what was held, and see that it was [H6]. Raises LockLost where this very session did not hold it."""
        try:
            self._free()
        except psycopg.Error as error:
            # The work is over, and its end was seen over this session: gone since, it is no reason not to start.
            log("lock.lost", level="warning", reason=" ".join(str(error).split()), note="the work was done before")
            return
        if self.held:
            raise LockLost("it was not held any more when it was to be freed")

    def close(self) -> None:
        """End the session, and with it what it still holds; a pooler would keep that [E14]."""
        if self.is_pooled:
            with suppress(psycopg.Error):
                self._free()
        self.connection.pgconn.finish()

    def _free(self) -> None:
        """Free what is held, on whichever backend that is where sessions may be shared."""
        deadline = time.monotonic() + (FREEING if self.is_pooled else 0.0)
        while self.held:
            self.held = [each for each in self.held if not _one(self.connection, _UNLOCK, *each, *each)]
            if time.monotonic() >= deadline:
                return


@contextmanager
def locked(
    address: Address,
    wait: float,
    connect_timeout: float,
    application_name: str,
    is_done: IsDone,
    at_wait: AtWait = lambda _: None,
    image: int | None = None,
) -> Iterator[Lock | None]:
    """Hold the lock of this database; None when there was nothing left to do.

    `is_done` is asked at each try, so that those with nothing to do never stand in a queue; `at_wait` is called, with
    whether the holder is a replica of the same `image`, when it was in vain. Raises TryAgain when the lock is not free
    within `wait` seconds, LockLost when its session ends, Misconfigured when the session is shared or may only read.
    """
    lock = _acquire(address, _Waiting(address, wait), connect_timeout, application_name, is_done, at_wait, image)
    try:
        yield lock
        if lock is not None:
            lock.release()
    except psycopg.Error as error:
        if lock is None or lock.connection.pgconn.status == psycopg.pq.ConnStatus.OK:
            raise
        raise LockLost(str(error)) from None
    finally:
        if lock is not None:
            lock.close()


@dataclass
class _Waiting:
    """How long we have waited, and for whom; said once for each holder, and again every ten seconds."""

    address: Address
    limit: float
    started: float = field(default_factory=time.monotonic)
    holder: activity.Session | None = None
    pause: float = SHORTEST
    _told: object = None
    _told_at: float = float("-inf")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def tell(self, about: object, **keys: Any) -> None:
        """Log that we wait, unless the same was said a moment ago."""
        if about == self._told and time.monotonic() - self._told_at < TOLD_AGAIN:
            return
        self._told, self._told_at = about, time.monotonic()
        log("lock.waiting", database=str(self.address), elapsed=round(self.elapsed, 1), **keys)

    def look(self, connection: psycopg.Connection[Any]) -> None:
        """See who holds the lock, or else the fence of an earlier holder, and say so."""
        self.holder = activity.holder(connection, LOCK_CLASS)
        if self.holder is not None:
            self.tell(self.holder.pid, holder=str(self.holder), doing=self.holder.doing)

    def sleep(self) -> None:
        """Wait until the next try. Raises TryAgain when the time is over."""
        if self.elapsed >= self.limit:
            raise _given_up(self)
        time.sleep(min(self.pause * random.uniform(0.5, 1.0), max(0.0, self.limit - self.elapsed)))  # noqa: S311
        self.pause = min(self.pause * 1.5, LONGEST)


def _acquire(
    address: Address,
    waiting: _Waiting,
    connect_timeout: float,
    application_name: str,
    is_done: IsDone,
    at_wait: AtWait,
    image: int | None,
) -> Lock | None:
    """Try until the lock is held. A waiter keeps no session: five hundred replicas would use up max_connections."""
    examined, pooled = None, False
    while True:
        # All hosts of the address are asked each time: the primary may have become another one.
        connection, found = find(address, connect_timeout, application_name=application_name)
        connection.prepare_threshold = None  # behind a pooler the next statement may reach a session that lacks it
        lock, is_kept = None, False
        try:
            if found != examined:
                if pooled := is_pooled(connection):
                    _refuse_shared(connection, found, connect_timeout, application_name)
                    image = None  # it would stay with the pooler
                if reason := why_read_only(connection):
                    raise Misconfigured(reason)
            examined = found
            lock = hold(connection, image, pooled)
            if is_done(connection):
                return None
            if lock is not None:
                lock.address = found
                _await_fence(lock, waiting)
                # What an earlier migrator's last statement did, it may have done since.
                if is_done(connection):
                    return None
                log("lock.acquired", database=str(found), token=lock.token, elapsed=round(waiting.elapsed, 3))
                is_kept = True
                return lock
            waiting.look(connection)
            at_wait(_is_same_image(connection, image))
        except psycopg.Error as error:
            waiting.tell(str(error), level="warning", reason=str(error).strip())
        finally:
            if lock is None:
                connection.pgconn.finish()
            elif not is_kept:
                lock.close()
        waiting.sleep()


def hold(connection: psycopg.Connection[Any], image: int | None = None, is_pooled: bool = False) -> Lock | None:
    """Take T and A, and check; without waiting inside PostgreSQL [E1, E2]. Raises Misconfigured."""
    if image is not None:
        # Before A, so that whoever sees A held sees by whom. It protects nothing, and ends with the session.
        _one(connection, "SELECT pg_catalog.pg_try_advisory_lock_shared(%s, %s)", IMAGE_CLASS, image)
    token = random.SystemRandom().randrange(1, 2**31)
    if not _one(connection, _TAKE, TOKEN_CLASS, token, LOCK_CLASS, LOCK_A, TOKEN_CLASS, token):
        return None
    lock = Lock(connection, token, is_pooled)
    check = HOLDER_CHECK.replace("%(token)s", str(token)) + " AND l.pid = pg_catalog.pg_backend_pid()"
    # A pooler may give a statement to the backend that holds the lock by chance, but not again and again.
    if not all(_one(connection, check) for _ in range(3 if is_pooled else 1)):
        lock.is_pooled = True  # whatever it looked like
        lock.close()
        raise Misconfigured(SHARED)
    # Only now: before the check has passed, a SET could leak through a pooler into the app's sessions [H5].
    lock.forbidden = apply(connection, SESSION)
    return lock


def _await_fence(lock: Lock, waiting: _Waiting) -> None:
    """See that no statement of an earlier migrator is left: take B alone, and free it at once. Raises TryAgain."""
    while not _one(lock.connection, _TAKE_AND_FREE, LOCK_CLASS, LOCK_B, LOCK_CLASS, LOCK_B):
        waiting.look(lock.connection)
        waiting.sleep()


def _is_same_image(connection: psycopg.Connection[Any], image: int | None) -> bool | None:
    """Tell whether the holder is a replica of the same image; None where nobody holds the lock. Page: pg_locks."""
    if image is None:
        return None
    answer: bool | None = _one(
        connection,
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS i WHERE i.locktype = 'advisory' AND i.objsubid = 2 "
        "AND i.granted AND i.pid = l.pid AND i.database = l.database AND i.classid = %s AND i.objid = %s) "
        "FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted "
        "AND l.classid = %s AND l.objid = %s AND l.mode = 'ExclusiveLock' AND l.database = "
        "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        IMAGE_CLASS,
        image,
        LOCK_CLASS,
        LOCK_A,
    )
    return answer


def _refuse_shared(
    connection: psycopg.Connection[Any], address: Address, connect_timeout: float, application_name: str
) -> None:
    """Refuse a pooler that is seen to share sessions before anything is locked. The check sees the others."""
    if is_shared(connection, lambda: connect(address, connect_timeout, application_name=application_name)):
        raise Misconfigured(SHARED)


def _fence_holders(connection: psycopg.Connection[Any]) -> list[int]:
    rows = connection.execute(
        "SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
        "AND classid = %s AND objid = %s AND pid <> pg_catalog.pg_backend_pid() AND database = "
        "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        [LOCK_CLASS, LOCK_B],
    )
    return [row[0] for row in rows]


def _given_up(waiting: _Waiting) -> TryAgain:
    holder = waiting.holder
    who = f"It is held by {holder}, which {holder.doing}." if holder else "Who holds it could not be seen."
    end = f"\nTo end that session: SELECT pg_terminate_backend({holder.pid});" if holder else ""
    return TryAgain(
        f"The migration lock of {waiting.address} was not free within the {waiting.limit:g} s that we wait. {who}\n"
        f"Look at what it is doing before you end it; a longer wait: ALEMBIC_ENTRYPOINT_LOCK_WAIT.{end}"
    )


def _one(connection: psycopg.Connection[Any], statement: str, *values: object) -> Any:
    row = connection.execute(statement, values or None).fetchone()
    return row[0] if row else None
