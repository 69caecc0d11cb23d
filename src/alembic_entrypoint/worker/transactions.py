"""What happens at each BEGIN and COMMIT of SQLAlchemy's connections in the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from alembic_entrypoint.worker.connections import FenceError, Policy, setting_statement
from alembic_entrypoint.worker.messages import HOLDER_CHECK, LOCK_B, LOCK_CLASS


def keep_read_only() -> None:
    """Make every transaction read-only: some `env.py` create a schema, and looking must not."""

    @event.listens_for(Engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            _execute(connection, "SET TRANSACTION READ ONLY")


def keep_fenced(policy: Policy, token: int, session: Mapping[str, str], committed: Callable[[], None]) -> None:
    """Hold the fence in every transaction, see at each BEGIN that the lock is held, and note each COMMIT.

    The transaction's own share of the fence is there because `DISCARD ALL` and `pg_advisory_unlock_all()` drop the
    session's. Raises FenceError.
    """

    @event.listens_for(Engine, "begin")
    def begin(connection: Connection) -> None:
        if _is_target(connection, policy):
            row = _execute(connection, f"SELECT pg_catalog.pg_try_advisory_xact_lock_shared({LOCK_CLASS}, {LOCK_B})")
            if not row or not row[0]:
                raise FenceError("another migrator is at work: the fence could not be taken")
            row = _execute(connection, HOLDER_CHECK.replace("%(token)s", str(token)))
            if not row or not row[0]:
                raise FenceError("the lock is not held any more")
            if row[1] != session["application_name"]:
                # RESET ALL and DISCARD ALL take the timeouts with the name.
                _execute(connection, setting_statement(session))

    @event.listens_for(Engine, "before_cursor_execute")
    def before(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        # With a lock timeout it leaves an INVALID index where it would have been built, at 1 ms for others [R12].
        if "CONCURRENTLY" in statement.upper() and _is_target(connection, policy):
            _execute(connection, "SET lock_timeout = 0")

    @event.listens_for(Engine, "after_cursor_execute")
    def after(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if "CONCURRENTLY" in statement.upper() and _is_target(connection, policy):
            _execute(connection, f"SET lock_timeout = {int(session['lock_timeout'])}")

    @event.listens_for(Engine, "commit")
    def commit(connection: Connection) -> None:
        if _is_target(connection, policy):
            committed()


def _is_target(connection: Connection, policy: Policy) -> bool:
    try:
        made = policy.made.get(connection.connection.driver_connection)
    except TypeError:
        return False
    return made is not None and made.is_fenced


def _execute(connection: Connection, statement: str) -> Any:
    """Run a statement on the driver's cursor: SQLAlchemy's own execute would begin a transaction in the event."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()
