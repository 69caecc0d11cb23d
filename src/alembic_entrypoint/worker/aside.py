"""Read the schema in the middle of somebody's transaction, and leave nothing of that behind."""

from __future__ import annotations

from typing import Any

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.facts import Snapshot
from alembic_entrypoint.worker.connections import ask


def read_schema(connection: Any, lock_timeout: float | None = None) -> Snapshot:
    """Read the schema as this transaction sees it, over SQLAlchemy's `connection`, whatever its driver.

    `lock_timeout` is how many seconds it may wait for somebody's lock; None leaves that as it is. Raises the driver's
    error; the transaction goes on all the same.
    """
    with _Aside(connection):
        ask(connection, reading.setting_statement())
        if lock_timeout is not None:
            ask(connection, f"SET LOCAL lock_timeout = {lock_timeout * 1000:.0f}")
        answer = ask(connection, reading.snapshot_statement())
        version = ask(connection, "SHOW server_version_num")
    return reading.snapshot_of(answer[0], int(reading.text_of(version[0])) // 10000)


class _Aside:
    """A savepoint that is rolled back; outside of a transaction, a transaction that is."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        autocommit = getattr(connection.connection.dbapi_connection, "autocommit", False)
        name = "alembic_entrypoint"
        self._first = "BEGIN" if autocommit else f"SAVEPOINT {name}"
        self._last = ["ROLLBACK"] if autocommit else [f"ROLLBACK TO SAVEPOINT {name}", f"RELEASE SAVEPOINT {name}"]

    def __enter__(self) -> None:
        ask(self._connection, self._first)

    def __exit__(self, *_: object) -> None:
        for statement in self._last:
            ask(self._connection, statement)
