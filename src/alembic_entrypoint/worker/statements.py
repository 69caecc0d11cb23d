"""Every statement that the user's code sends in a replay, whatever sends it, before it is sent.

SQLAlchemy and raw drivers meet in the drivers' cursors, so those are watched: psycopg's and asyncpg's methods, and
for psycopg2, which is written in C, classes derived from what it would have made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

Seen = Callable[[str], None]

#: Whether asyncpg, which opens sockets in Python, is connecting through us.
_connecting: ContextVar[bool] = ContextVar("connecting", default=False)

# --- what cannot be replayed -------------------------------------------------------------------------------------

#: What may hold any text: escaped and plain literals, quoted names, comments, and dollar-quoted literals.
_QUOTED = re.compile(
    r"""(?P<literal>\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*")"""
    r"""|(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<tag>\$\w*\$)(?P<body>.*?)(?P=tag)""",
    re.DOTALL,
)
#: Here a literal may be a body, or what a body executes.
_HAS_BODY = re.compile(r"(^|;)\s*DO\b|\bCREATE\b[^;]*?\b(FUNCTION|PROCEDURE)\b", re.IGNORECASE)
#: `DROP role` in it drops a column.
_ALTERS_RELATION = re.compile(r"\s*ALTER\s+(FOREIGN\s+)?(TABLE|TYPE|VIEW|MATERIALIZED)\b", re.IGNORECASE)
_START = r"(?:^|[;'(]|\$\w*\$|\b(?:BEGIN|THEN|ELSE|LOOP|EXECUTE)\b)\s*"
_SHARED = r"(?:ROLE|USER(?!\s+MAPPING)|GROUP|DATABASE|TABLESPACE|SYSTEM|SUBSCRIPTION)\b"
_FUNCTIONS = re.compile(
    r"\b(dblink\w*|lo_(import|export)"
    r"|pg_(terminate|cancel)_backend|pg_(reload_conf|promote|rotate_logfile|switch_wal|create_restore_point)"
    r"|pg_(read_file|read_binary_file|ls_dir|file_\w+)|pg_(create|drop|copy)_\w*replication_slot"
    r"|pg_replication_origin_\w+)\s*\(",
    re.IGNORECASE,
)
_COPY = re.compile(_START + r"COPY\b[^;]*?\b(?:FROM|TO)\s+(?:PROGRAM\b|'|%[Ls]|\|\|)", re.IGNORECASE | re.DOTALL)
_OBJECTS = re.compile(
    rf"\b(?:CREATE|ALTER|DROP)\s+{_SHARED}|\b(?:COMMENT|SECURITY\s+LABEL)\b[^;]*?\bON\s+{_SHARED}"
    r"|\b(?:GRANT|REVOKE)\b[^;]*?\bON\s+(?:DATABASE|TABLESPACE|PARAMETER)\b"
    rf"|{_START}(?:GRANT|REVOKE)\s+(?![^;]*\bON\b)[^;]*?\b(?:TO|FROM)\b"
    r"|\b(?:REASSIGN|DROP)\s+OWNED\b|\bCREATE\s+SERVER\b|\bIMPORT\s+FOREIGN\s+SCHEMA\b",
    re.IGNORECASE | re.DOTALL,
)


@functools.lru_cache(maxsize=64)  # our own, asked after each migration, are long
def beyond(statement: str) -> str | None:
    """Name what in a statement reaches beyond one database, in the words that it uses; None where nothing does.

    Data is not looked at; what a DO block or a function would execute is, even where it is put together from text.
    A text that cannot be told from such a statement counts as one.
    """
    for part in _text(statement, keeps=bool(_HAS_BODY.search(statement))).split(";"):
        for pattern in (_FUNCTIONS, _COPY) if _ALTERS_RELATION.match(part) else (_OBJECTS, _FUNCTIONS, _COPY):
            if found := pattern.search(part):
                return " ".join(found[0].strip("'$;( ").split()).upper()
    return None


def _text(statement: str, keeps: bool) -> str:
    """Take out comments and quoted names, and what is in literals unless that is kept because it may be executed."""

    def replaced(match: re.Match[str]) -> str:
        if match["comment"]:
            return " "
        if match["name"]:
            return '""'
        if match["tag"]:
            return f"{match['tag']}{_text(match['body'], keeps)}{match['tag']}" if keeps else "''"
        return match["literal"].replace("''", "'") if keeps else "''"

    return _QUOTED.sub(replaced, statement)


# --- the drivers -------------------------------------------------------------------------------------------------


def watch(name: str, module: ModuleType, seen: Seen) -> None:
    """Have one driver's statements seen."""
    {"psycopg": _watch_psycopg, "psycopg2": _watch_psycopg2, "asyncpg": _watch_asyncpg}[name](module, seen)


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


def _watch_methods(cls: type, names: tuple[str, ...], seen: Seen, text: Callable[[Any, Any], str]) -> None:
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


def _watch_psycopg(psycopg: Any, seen: Seen) -> None:
    for cls in (psycopg.Cursor, psycopg.AsyncCursor, psycopg.ServerCursor, psycopg.AsyncServerCursor):
        _watch_methods(cls, ("execute", "executemany", "stream", "copy"), seen, _sent)


def _watch_asyncpg(asyncpg: Any, seen: Seen) -> None:
    names = ("execute", "executemany", "prepare", "fetch", "fetchval", "fetchrow", "fetchmany", "cursor")
    cls = asyncpg.connection.Connection
    _watch_methods(cls, (*names, "copy_from_query"), seen, lambda _, query: str(query))
    # The name of a table, and no statement: rows come and go through a stream.
    _watch_methods(cls, ("copy_to_table", "copy_records_to_table", "copy_from_table"), seen, lambda *_: "COPY")
    connect = asyncpg.connection.connect

    @functools.wraps(connect)
    async def connecting(*arguments: Any, **keys: Any) -> Any:
        with _as_connecting():
            return await connect(*arguments, **keys)

    asyncpg.connect = asyncpg.connection.connect = connecting


def _watch_psycopg2(psycopg2: Any, seen: Seen) -> None:
    connect = psycopg2._connect
    extensions = psycopg2.extensions

    @functools.cache
    def watched_cursor(cls: type) -> Any:
        def method(name: str) -> Callable[..., Any]:
            def watched(self: Any, query: Any, *values: Any, **keys: Any) -> Any:
                seen(_sent(self, query))
                return getattr(super(derived, self), name)(query, *values, **keys)

            return watched

        def streamed(name: str) -> Callable[..., Any]:
            def watched(self: Any, *values: Any, **keys: Any) -> Any:
                seen(f"SELECT {values[0]}()" if name == "callproc" else "COPY")
                return getattr(super(derived, self), name)(*values, **keys)

            return watched

        methods = {name: method(name) for name in ("execute", "executemany", "copy_expert")}
        others = {name: streamed(name) for name in ("callproc", "copy_from", "copy_to")}
        derived: Any = type(cls.__name__, (cls,), {**methods, **others})
        return derived

    @functools.cache
    def watched_connection(cls: Any) -> Any:
        def cursor(self: Any, *values: Any, **keys: Any) -> Any:
            factory = keys.pop("cursor_factory", None) or self.cursor_factory or extensions.cursor
            if not isinstance(factory, type):
                raise TypeError("a cursor_factory that is no class cannot be watched in a replay")
            return super(derived, self).cursor(*values, cursor_factory=watched_cursor(factory), **keys)

        derived: Any = type(cls.__name__, (cls,), {"cursor": cursor})
        return derived

    def watched(dsn: str, connection_factory: Any = None, **keys: Any) -> Any:
        return connect(dsn, connection_factory=watched_connection(connection_factory or extensions.connection), **keys)

    psycopg2._connect = watched
