"""Read a schema as facts, in one round of catalog queries."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from alembic_entrypoint.postgres.encoding import read_text
from alembic_entrypoint.schema.catalog import FILES, questions
from alembic_entrypoint.schema.facts import Kind, Pattern, Snapshot, Thing, Value
from alembic_entrypoint.schema.reading import SETTINGS
from alembic_entrypoint.schema.texts import normal

LEDGER: Pattern = ("alembic_entrypoint", "*")

#: Deparsing reads newer catalog rows than the query around it, so DDL beside it ends it: it is worth another try.
_PASSING = (psycopg.errors.InternalError_, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


def take(
    connection: psycopg.Connection[Any], *, ignore: Collection[Pattern] = (LEDGER,), lock_timeout: float = 2.0
) -> Snapshot:
    """Read the schema of the database that ``connection`` is connected to.

    ``connection`` is in autocommit mode and in no transaction, else ValueError; its settings stay as they are.
    ``ignore`` names what to leave out, with all that belongs to it: the ledger, version tables, another app's tables.
    ``lock_timeout`` is how many seconds it may wait in all behind locks or beside running DDL; then it raises
    ``psycopg.errors.LockNotAvailable``, or ``psycopg.errors.InternalError_`` (XX000).
    """
    if not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("a snapshot needs a connection in autocommit mode and in no transaction")
    deadline = time.monotonic() + lock_timeout
    for attempt in Retrying(
        retry=retry_if_exception_type(_PASSING),
        stop=stop_after_delay(lock_timeout),
        wait=wait_random(0.02, 0.1),
        reraise=True,
    ):
        with attempt:
            # Short waits, with no lock held between them, let DDL that queues behind us pass.
            patience = max(0.001, min(lock_timeout / 3, deadline - time.monotonic()))
            try:
                facts = dict(_read(connection, _script(patience, *_ALONE)))
            finally:
                if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                    connection.rollback()
    return Snapshot(connection.info.server_version // 10000, facts).without(ignore)


def take_within(
    connection: psycopg.Connection[Any], *, ignore: Collection[Pattern] = (LEDGER,), lock_timeout: float = 0.5
) -> Snapshot:
    """Read the schema in the transaction that is under way, once; its settings stay as they are.

    The transaction may hold locks: it waits for others less than a second, after which PostgreSQL looks for a
    deadlock and may end the others. Raises what `take` raises, and the transaction is of no more use then.
    """
    facts = dict(_read(connection, _script(lock_timeout, *_WITHIN)))
    return Snapshot(connection.info.server_version // 10000, facts).without(ignore)


#: How what is read begins and ends: either leaves no setting behind.
_ALONE = ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "COMMIT")
_WITHIN = ("SAVEPOINT alembic_entrypoint", "ROLLBACK TO SAVEPOINT alembic_entrypoint")


def _script(lock_timeout: float, first: str, last: str) -> str:
    """Return all that is asked as one text, so that it costs one round trip."""
    settings = {**SETTINGS, "lock_timeout": f"{lock_timeout * 1000:.0f}ms"}
    setting = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
    return ";\n".join([first, f"SELECT {setting}", *questions(), last])


def _read(connection: psycopg.Connection[Any], script: str) -> Iterator[tuple[Thing, Mapping[str, Value]]]:
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        if connection.info.encoding == "ascii":
            read_text(cursor)
        cursor.execute(script.encode(), prepare=False)
        cursor.nextset()  # from the beginning to the settings
        for kind, _ in FILES:
            cursor.nextset()
            yield from _facts(kind, cursor)


def _facts(kind: Kind, answer: psycopg.Cursor[tuple[Any, ...]]) -> Iterator[tuple[Thing, Mapping[str, Value]]]:
    """Yield what one file of ``catalog`` answered: three columns of identity, and the attributes."""
    attributes = [column.name for column in answer.description or ()][3:]
    for schema, name, part, *values in answer:
        told: dict[str, Value] = dict(zip(attributes, values, strict=True))
        for attribute, value in told.items():
            if isinstance(value, list):
                told[attribute] = tuple(value)
        yield Thing(kind, schema, name, part), normal(kind, told)
