"""What happens at each BEGIN and COMMIT of SQLAlchemy's connections in the worker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.engine.default import DefaultDialect

from alembic_entrypoint.worker.connections import FenceError, Policy, ask, setting_statement
from alembic_entrypoint.worker.messages import HOLDER_CHECK, LOCK_B, LOCK_CLASS, TOKEN_CLASS
from alembic_entrypoint.worker.parent import Work

#: Where a connection keeps the number of the transaction that is under way on it.
TRANSACTION = "alembic_entrypoint.transaction"
_TIMEOUT = "alembic_entrypoint.lock_timeout"
#: Whether a migration is over on it, and nobody has asked yet whether all is as before.
_UNCHECKED = "alembic_entrypoint.unchecked"
#: The number of the transaction that is under way, by which `pg_xact_status` knows it afterwards.
_NUMBER = "pg_catalog.pg_current_xact_id()::text"
#: What gives up half-way. `REFRESH … CONCURRENTLY` is one transaction, and goes without leaving anything.
_CONCURRENTLY = re.compile(r"\b(INDEX|REINDEX|DETACH)\b.*\bCONCURRENTLY\b", re.IGNORECASE | re.DOTALL)
#: Between the words of one answer: no name or number has it in it.
_SEPARATOR = "\x1f"
#: Alembic's way to record that one revision comes after another.
_RECORDING = re.compile(r"UPDATE \S+ SET version_num='[^']*' WHERE \S+\.version_num = '[^']*'\Z")
#: Where the session keeps what the last check found, and how a statement is made to depend on that; another listener
#: may add a comment to it.
_ANSWER = "alembic_entrypoint.answer"
_CHECKED = f"\n AND pg_catalog.current_setting('{_ANSWER}', true) = "
#: What makes the server forget what was prepared.
_FORGETTING = re.compile(r"\b(DISCARD|DEALLOCATE)\b.*\bALL\b", re.IGNORECASE | re.DOTALL)


def keep_read_only() -> None:
    """Make every transaction read-only: some `env.py` create a schema, and looking must not."""

    @event.listens_for(Engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            ask(connection, "SET TRANSACTION READ ONLY")


def keep_nothing() -> None:
    """Roll back what SQLAlchemy would commit, in any database: a look under the lock is followed by the same again.

    What is sent in autocommit, or committed on a driver's own connection, stays.
    """

    def roll_back(dialect: Any, connection: Any) -> None:
        dialect.do_rollback(connection)

    DefaultDialect.do_commit = roll_back  # type: ignore[method-assign]


class Fence:
    """The fence as SQLAlchemy's connections hold it, and the timeouts that go with it."""

    def __init__(self, policy: Policy, token: int, session: Mapping[str, str], work: Work) -> None:
        self._policy = policy
        self._work = work
        self._token = token
        self._check = HOLDER_CHECK.replace("%(token)s", str(token))
        self._session = session
        self._asked = _question(token, session)
        #: what a migrating session had set when the first migration began, env.py's own wishes included; empty is what
        #: this server does not have
        self._settings: dict[str, str] = {}

    def keep(self) -> None:
        """Hold it in every transaction from now on, and tell of each COMMIT before it is sent."""

        @event.listens_for(Engine, "begin")
        def begin(connection: Connection) -> None:
            if self._is_target(connection):
                self.hold(connection)

        @event.listens_for(Engine, "before_cursor_execute", retval=True)
        def before(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
            if not self._is_target(connection):
                return statement, parameters
            if connection.info.pop(_UNCHECKED, False):
                if _RECORDING.match(statement):
                    return f"{statement}{_CHECKED}{self._asked}", parameters
                self.check(connection)
            if is_autocommit(connection):
                # No transaction holds a share, and what ran before may have dropped the session's.
                self.hold(connection)
                self._work.went_unseen("ran statements outside of a transaction, which keeps each at once")
            if _FORGETTING.search(statement):
                _prepare_no_more(connection)
            if _CONCURRENTLY.search(statement):
                # With a lock timeout it leaves an INVALID index where it would have been built; without, the others
                # wait a millisecond [R12].
                connection.info[_TIMEOUT] = ask(connection, "SHOW lock_timeout")[0]
                ask(connection, "SET lock_timeout = 0")
            return statement, parameters

        def restore(connection: Connection) -> None:
            if timeout := connection.info.pop(_TIMEOUT, None):
                ask(connection, f"SET lock_timeout = '{timeout}'")

        @event.listens_for(Engine, "after_cursor_execute")
        def after(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            restore(connection)
            recording, *checked = statement.split(_CHECKED)
            if checked and cursor.rowcount == 0:
                self.check(connection)
                cursor.execute(recording, parameters)

        @event.listens_for(Engine, "handle_error")
        def failed(context: ExceptionContext) -> None:
            with suppress(Exception):  # in a transaction the rollback does it, and a lost connection needs none
                if context.connection is not None:
                    restore(context.connection)

        @event.listens_for(Engine, "commit")
        def commit(connection: Connection) -> None:
            if self._is_target(connection):
                if connection.info.pop(_UNCHECKED, False):
                    self.check(connection)
                self._work.commit()

    def hold(self, connection: Connection) -> None:
        """Take a share for session and transaction, *then* see that the lock is held. Raises FenceError.

        `DISCARD ALL` and `pg_advisory_unlock_all()` drop the session's share, a rollback or commit the transaction's.
        """
        lock = f"({LOCK_CLASS}, {LOCK_B})"
        shares = f"pg_catalog.pg_try_advisory_lock_shared{lock}, pg_catalog.pg_try_advisory_xact_lock_shared{lock}"
        *held, transaction = ask(connection, f"SELECT {shares}, {'NULL' if is_autocommit(connection) else _NUMBER}")
        if not all(held):
            raise FenceError("another migrator is at work: the fence could not be taken")
        self._goes_on_in(connection, transaction)
        row = ask(connection, self._check)
        if not row or not row[0]:
            raise FenceError("the lock is not held any more")
        if row[1] != self._session["application_name"]:
            # RESET ALL and DISCARD ALL take the timeouts with the name.
            ask(connection, setting_statement(self._session))

    def check_migration(self, connection: Connection) -> None:
        """Have the fence held after a migration, and what it has set undone, before anything else is done.

        A question of its own takes a fifth of the time that a small migration takes. So Alembic's next statement, which
        records the revision, does so only if all is as it was; only if it does not, more is asked.
        """
        if not self._is_target(connection) or not connection.in_transaction():
            return  # the next BEGIN does the same
        if is_autocommit(connection):
            self.check(connection)  # and `hold` comes before the next statement
        else:
            connection.info[_UNCHECKED] = True

    def check(self, connection: Connection) -> None:
        """Hold the fence in the transaction that is under way, and undo what migrations have set. Raises FenceError.

        Cheap, since it runs after each of a thousand: pg_locks may have ten thousand rows by then. This transaction
        has held its share since BEGIN, and a token that nobody else holds would be ours for the asking. All is asked
        for in one text, since most migrations leave it as it was.
        """
        if not self._is_target(connection) or not connection.in_transaction():
            return
        (answer,) = ask(connection, f"SELECT pg_catalog.set_config('{_ANSWER}', {self._asked}, false)")
        is_held, transaction, *settings = answer.split(_SEPARATOR)
        if is_held != "true":
            raise FenceError("the lock is not held any more")
        # Not the one in which it began, where a migration has sent COMMIT or ROLLBACK by itself.
        self._goes_on_in(connection, transaction)
        found = dict(zip(self._session, settings, strict=True))
        self._settings = self._settings or found
        for name, value in self._settings.items():
            if value and found[name] != value:
                ask(connection, f"SELECT pg_catalog.set_config('{name}', '{_quoted(value)}', false)")

    def _goes_on_in(self, connection: Connection, transaction: str | None) -> None:
        if connection.info.get(TRANSACTION) != transaction:
            connection.info[TRANSACTION] = transaction
            if transaction is not None:
                self._work.began(transaction)

    def _is_target(self, connection: Connection) -> bool:
        try:
            made = self._policy.made.get(connection.connection.driver_connection)
        except TypeError:
            return False
        return made is not None and made.is_target


def _question(token: int, session: Mapping[str, str]) -> str:
    """Ask in one text whether the fence and the lock are held, for the transaction's number, and for what is set."""
    lock, holder = f"({LOCK_CLASS}, {LOCK_B})", f"({TOKEN_CLASS}, {token})"
    held = (
        f"pg_catalog.pg_try_advisory_lock_shared{lock} AND pg_catalog.pg_try_advisory_xact_lock_shared{lock} "
        f"AND NOT pg_catalog.pg_try_advisory_xact_lock_shared{holder}"
    )
    settings = [f"coalesce(pg_catalog.current_setting('{name}', true), '')" for name in session]
    return f"pg_catalog.concat_ws('{_SEPARATOR}', {', '.join([f'({held})::text', _NUMBER, *settings])})"


def is_autocommit(connection: Connection) -> bool:
    """Tell whether each statement is a transaction of its own, as in Alembic's `autocommit_block()`."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


def _prepare_no_more(connection: Connection) -> None:
    """Have psycopg name nothing that it had prepared: most of its versions go on with that after a `DISCARD ALL`."""
    driver_connection: Any = connection.connection.driver_connection
    if hasattr(driver_connection, "prepare_threshold"):
        driver_connection.prepare_threshold = None


def _quoted(text: str) -> str:
    return text.replace("'", "''")
