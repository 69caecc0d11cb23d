"""One session for all questions, none of which may hang: a server that falls silent is left after a while."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from alembic_entrypoint.address import Address
from alembic_entrypoint.errors import Denied, Ended, Misconfigured, Unavailable
from alembic_entrypoint.postgres.answers import Outcome
from alembic_entrypoint.postgres.login import STANDBY, NotReady, log_in

T = TypeVar("T")
#: Seconds in which a question must be answered.
LIMIT = 10.0
_ENDINGS: dict[Outcome, type[Ended]] = {
    Outcome.WAIT: Unavailable,
    Outcome.DENIED: Denied,
    Outcome.WRONG: Misconfigured,
    Outcome.UNUSABLE: Misconfigured,
}


class Session:
    """A session that reads. Raises Unavailable, Denied or Misconfigured where there is none."""

    def __init__(self, address: Address, application_name: str) -> None:
        self._name = application_name
        self.is_standby = False
        try:
            self._connection, self.address = self._open(address, needs_primary=True)
        except NotReady as error:
            if STANDBY not in error.answer.reason:
                raise _ENDINGS[error.answer.outcome](error.answer.reason) from None
            # Only now: of several hosts it is the primary that counts.
            self._connection, self.address = self._open(address, needs_primary=False)
            self.is_standby = True
        self._connection.prepare_threshold = None  # behind a pooler the next statement may reach another session
        self.is_silent = False

    def _open(self, address: Address, *, needs_primary: bool) -> tuple[psycopg.Connection[Any], Address]:
        deadline = time.monotonic() + LIMIT
        return log_in(address, deadline, needs_primary=needs_primary, application_name=self._name)

    def another(self) -> psycopg.Connection[Any]:
        """Open a second session on the same server. Raises Unavailable."""
        try:
            return self._open(self.address, needs_primary=False)[0]
        except NotReady as error:
            raise Unavailable(error.answer.reason) from None

    def ask(self, question: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Ask something, in a thread: psycopg has no limit for a statement. Raises Unavailable, psycopg.Error."""
        if self.is_silent:
            raise Unavailable("the server fell silent before")
        answers: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

        def asking() -> None:
            try:
                answers.put(question(self._connection))
            except BaseException as error:
                answers.put(error)

        threading.Thread(target=asking, daemon=True).start()
        try:
            answer = answers.get(timeout=LIMIT)
        except queue.Empty:
            self.is_silent = True
            raise Unavailable(f"the server did not answer within {LIMIT:g} s") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer
