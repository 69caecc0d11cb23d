"""The drivers in a replay: every statement is seen before it is sent, whatever sends it, and every COMMIT.

SQLAlchemy and raw drivers meet in the drivers' cursors, so those are watched: psycopg's and asyncpg's methods, and
for psycopg2, which is written in C, classes derived from its own, which take their place.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from alembic_entrypoint.worker import statements

#: Who changes a shared catalog holds this lock until the end of the transaction, whatever put the statement together.
#: Catalog page: pg_locks.
SHARED = """
SELECT c.relname FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
 WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND c.relname IN
       ('pg_authid', 'pg_auth_members', 'pg_database', 'pg_db_role_setting', 'pg_tablespace', 'pg_subscription',
        'pg_parameter_acl', 'pg_replication_origin', 'pg_shdescription', 'pg_shseclabel')
 LIMIT 1
"""

#: Whether a connection is being opened that we have routed; asyncpg opens its sockets in Python.
_connecting: ContextVar[bool] = ContextVar("connecting", default=False)


@dataclass(frozen=True)
class Watch:
    """What is told of a driver's connections."""

    #: told of each statement, before it is sent
    seen: Callable[[str], None]
    #: told, before a COMMIT, what `SHARED` gave, if anything
    keeps: Callable[[str | None], None]
    #: told why a replay cannot go on; it does not come back
    end: Callable[[str], NoReturn]


def watch(name: str, module: ModuleType, told: Watch) -> None:
    """Have one driver watched."""
    {"psycopg": _watch_psycopg, "psycopg2": _watch_psycopg2, "asyncpg": _watch_asyncpg}[name](module, told)


def is_connecting() -> bool:
    """Tell whether a socket is opened by a driver, for a connection that we have routed."""
    return _connecting.get()


@contextmanager
def _as_connecting() -> Iterator[None]:
    token = _connecting.set(True)
    try:
        yield
    finally:
        _connecting.reset(token)


def _watch_methods(
    cls: type, names: tuple[str, ...], seen: Callable[[str], None], text: Callable[[Any, Any], str]
) -> None:
    for name in names:
        if (original := cls.__dict__.get(name)) is None:
            continue

        def watched(self: Any, query: Any, *values: Any, _original: Any = original, **keys: Any) -> Any:
            seen(text(self, query))
            return _original(self, query, *values, **keys)

        setattr(cls, name, functools.wraps(original)(watched))


def _sent(cursor: Any, query: Any) -> str:
    """Write a query of psycopg or psycopg2, which both know composed ones and bytes, as it will be sent."""
    if hasattr(query, "as_string"):
        return str(query.as_string(cursor))
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query)


def _connecting_through(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Have a driver's connect say that it connects."""
    if inspect.iscoroutinefunction(connect):

        @functools.wraps(connect)
        async def connecting_async(*values: Any, **keys: Any) -> Any:
            with _as_connecting():
                return await connect(*values, **keys)

        return connecting_async

    @functools.wraps(connect)
    def connecting(*values: Any, **keys: Any) -> Any:
        with _as_connecting():
            return connect(*values, **keys)

    return connecting


# --- psycopg -----------------------------------------------------------------------------------------------------


def _watch_psycopg(psycopg: Any, told: Watch) -> None:
    for cls in (psycopg.Cursor, psycopg.AsyncCursor, psycopg.ServerCursor, psycopg.AsyncServerCursor):
        _watch_methods(cls, ("execute", "executemany", "stream", "copy"), told.seen, _sent)
    _watch_commits(psycopg, told)
    _watch_libpq(psycopg, told)


def _watch_commits(psycopg: Any, told: Watch) -> None:
    """Ask before each COMMIT, be it of the connection, of a transaction's block, or a statement."""
    connections, cursors = (
        next(each for each in cls.__mro__ if name in each.__dict__)
        for cls, name in ((psycopg.Connection, "_exec_command"), (psycopg.Cursor, "_execute_gen"))
    )
    command, statement = connections._exec_command, cursors._execute_gen

    def asked(connection: Any) -> Generator[Any, Any, None]:
        if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            if connection._pipeline:
                told.end("commits in a pipeline, where what it changes cannot be seen")
            result = yield from command(connection, SHARED)
            told.keeps(result.get_value(0, 0).decode() if result.ntuples else None)

    def watched_command(self: Any, query: Any, *values: Any, **keys: Any) -> Generator[Any, Any, Any]:
        text = _sent(self, query)
        if "PREPARE" in text:
            told.seen(text)
        elif "COMMIT" in text:
            yield from asked(self)
        return (yield from command(self, query, *values, **keys))

    def watched_statement(self: Any, query: Any, *values: Any, **keys: Any) -> Generator[Any, Any, Any]:
        if statements.commits(_sent(self, query)):
            yield from asked(self._conn)
        return (yield from statement(self, query, *values, **keys))

    connections._exec_command, cursors._execute_gen = watched_command, watched_statement


def _watch_libpq(psycopg: Any, told: Watch) -> None:
    """End what connects past the driver, through libpq itself, which would lead anywhere."""
    original: Any = psycopg.pq.PGconn

    def made(connect: Callable[[bytes], Any], conninfo: bytes) -> Any:
        if not is_connecting():
            told.end("connects through libpq itself")
        return connect(conninfo)

    class Meta(type(original)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, original)

    class PGconn(original, metaclass=Meta):  # type: ignore[misc]
        @classmethod
        def connect(cls, conninfo: bytes) -> Any:
            return made(original.connect, conninfo)

        @classmethod
        def connect_start(cls, conninfo: bytes) -> Any:
            return made(original.connect_start, conninfo)

    for module in [each for name, each in sys.modules.items() if name.partition(".")[0].startswith("psycopg")]:
        if module.__dict__.get("PGconn") is original:
            module.PGconn = PGconn  # type: ignore[attr-defined]
    for cls in (psycopg.Connection, psycopg.AsyncConnection):
        cls.connect = classmethod(_connecting_through(cls.connect.__func__))
    psycopg.connect = psycopg.Connection.connect


# --- asyncpg -----------------------------------------------------------------------------------------------------


def _watch_asyncpg(asyncpg: Any, told: Watch) -> None:
    names = ("execute", "executemany", "prepare", "fetch", "fetchval", "fetchrow", "fetchmany", "cursor")
    cls = asyncpg.connection.Connection
    row, execute = cls.fetchrow, cls.execute

    async def committed(self: Any, query: str, *values: Any, **keys: Any) -> Any:
        if statements.commits(query) and self.is_in_transaction():
            with suppress(asyncpg.InFailedSQLTransactionError):
                found = await row(self, SHARED)
                told.keeps(found and found[0])
        return await execute(self, query, *values, **keys)

    cls.execute = functools.wraps(execute)(committed)
    _watch_methods(cls, (*names, "copy_from_query"), told.seen, lambda _, query: str(query))
    # The name of a table, and no statement: rows come and go through a stream.
    _watch_methods(cls, ("copy_to_table", "copy_records_to_table", "copy_from_table"), told.seen, lambda *_: "COPY")
    asyncpg.connect = asyncpg.connection.connect = _connecting_through(asyncpg.connection.connect)


# --- psycopg2 ----------------------------------------------------------------------------------------------------


def _watch_psycopg2(psycopg2: Any, told: Watch) -> None:
    """Put classes of ours in the place of psycopg2's own, so that whatever is derived from those is watched, too."""
    extensions = psycopg2.extensions
    cursor = _watched_cursor(extensions.cursor, told)
    connection = _watched_connection(psycopg2, cursor, told)
    for module in (extensions, psycopg2._psycopg):
        module.cursor, module.connection = cursor, connection
    connect = _connecting_through(psycopg2._connect)

    def watched(dsn: str, connection_factory: Any = None, **keys: Any) -> Any:
        made = connect(dsn, connection_factory=connection_factory or connection, **keys)
        if not isinstance(made, connection):
            made.close()
            told.end(f"makes a {type(made).__name__} of psycopg2, which cannot be watched")
        return made

    psycopg2._connect = watched


def _watched_cursor(original: Any, told: Watch) -> Any:
    class cursor(original):  # type: ignore[misc] # noqa: N801 - the name of what it stands for
        def execute(self, query: Any, *values: Any, **keys: Any) -> Any:
            text = _sent(self, query)
            told.seen(text)
            if statements.commits(text):
                self.connection.ask_before_commit()
            return super().execute(query, *values, **keys)

        def executemany(self, query: Any, *values: Any, **keys: Any) -> Any:
            told.seen(_sent(self, query))
            return super().executemany(query, *values, **keys)

        def copy_expert(self, query: Any, *values: Any, **keys: Any) -> Any:
            told.seen(_sent(self, query))
            return super().copy_expert(query, *values, **keys)

        def callproc(self, name: str, *values: Any, **keys: Any) -> Any:
            told.seen(f"SELECT {name}()")
            return super().callproc(name, *values, **keys)

        def copy_from(self, *values: Any, **keys: Any) -> Any:
            told.seen("COPY")
            return super().copy_from(*values, **keys)

        def copy_to(self, *values: Any, **keys: Any) -> Any:
            told.seen("COPY")
            return super().copy_to(*values, **keys)

    return cursor


def _watched_connection(psycopg2: Any, cursor: Any, told: Watch) -> Any:
    original: Any = psycopg2.extensions.connection
    status = psycopg2.extensions.TRANSACTION_STATUS_INTRANS
    plain = cursor.__base__

    class Meta(type(original)):  # type: ignore[misc]
        def __call__(cls, dsn: str, *values: Any, **keys: Any) -> Any:
            if is_connecting():
                return super().__call__(dsn, *values, **keys)
            return psycopg2.connect(dsn, connection_factory=cls, **keys)

    class connection(original, metaclass=Meta):  # type: ignore[misc] # noqa: N801 - the name of what it stands for
        def cursor(self, *values: Any, **keys: Any) -> Any:
            factory = keys.pop("cursor_factory", None) or self.cursor_factory or cursor
            made = super().cursor(*values, cursor_factory=factory, **keys)
            if not isinstance(made, cursor) and not is_connecting():
                told.end(f"makes a {type(made).__name__} of psycopg2, which cannot be watched")
            return made

        def commit(self) -> None:
            self.ask_before_commit()
            super().commit()

        def tpc_prepare(self) -> None:
            told.seen("PREPARE TRANSACTION")
            super().tpc_prepare()

        def ask_before_commit(self) -> None:
            if self.get_transaction_status() == status and not self.async_:
                with super().cursor(cursor_factory=plain) as asked:
                    asked.execute(SHARED)
                    row = asked.fetchone()
                told.keeps(row and row[0])

    return connection
