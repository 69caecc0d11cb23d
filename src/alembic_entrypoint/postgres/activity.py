"""Who is at work in the database: the lock's holder, and who blocks whom. Catalog pages: pg_stat_activity, pg_locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg


@dataclass(frozen=True)
class Session:
    """One backend, as an operator looks for it."""

    pid: int
    application_name: str
    client: str
    state: str
    #: seconds since the session began, and since its present statement did
    age: float
    statement_age: float
    query: str

    def __str__(self) -> str:
        name = f" {self.application_name!r}" if self.application_name else ""
        return f"pid {self.pid}{name} from {self.client}, {self.state}, connected for {self.age:.0f} s"

    @property
    def doing(self) -> str:
        """Say what it is at, and since when."""
        verb = "runs" if self.state == "active" else "ran last"
        query = " ".join(self.query.split()) or "nothing that can be seen"
        return f"{verb}, since {self.statement_age:.0f} s: {query}"


_SESSION = """
SELECT a.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'local socket'),
       coalesce(a.state, 'unknown'), extract(epoch FROM clock_timestamp() - a.backend_start)::float8,
       coalesce(extract(epoch FROM clock_timestamp() - a.query_start), 0)::float8, coalesce(left(a.query, 200), '')
  FROM pg_catalog.pg_stat_activity AS a
"""


def holder(connection: psycopg.Connection[Any], lock_class: int) -> Session | None:
    """Find the session that holds the lock, or the fence of an earlier one that is still being cleared away."""
    row = connection.execute(
        _SESSION
        + """JOIN pg_catalog.pg_locks AS l ON l.pid = a.pid
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = %s
          AND a.pid <> pg_catalog.pg_backend_pid() AND l.database =
              (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
        ORDER BY l.objid LIMIT 1""",
        [lock_class],
    ).fetchone()
    return _session(row)


def sharers(connection: psycopg.Connection[Any], lock_class: int, lock: int) -> list[Session]:
    """Find every session that holds this advisory lock of this database, the oldest first."""
    rows = connection.execute(
        _SESSION
        + """WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.pid IN (
            SELECT l.pid FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
               AND l.classid = %s AND l.objid = %s AND l.database =
                   (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
        ORDER BY a.backend_start""",
        [lock_class, lock],
    )
    return [Session(*row) for row in rows]


def blocker(connection: psycopg.Connection[Any], pids: list[int]) -> Session | None:
    """Find the first session that one of these backends waits for."""
    row = connection.execute(
        _SESSION
        + "WHERE a.pid IN (SELECT unnest(pg_catalog.pg_blocking_pids(pid)) FROM unnest(%s::int[]) AS pid) LIMIT 1",
        [pids],
    ).fetchone()
    return _session(row)


def idlers(connection: psycopg.Connection[Any], longer: float) -> list[tuple[Session, list[str]]]:
    """Find every session that has been idle in a transaction for longer, in seconds, with its locks on tables."""
    rows = connection.execute(
        _SESSION.replace("  FROM pg_catalog", ", locked.tables\n  FROM pg_catalog")
        + """JOIN (SELECT l.pid, pg_catalog.array_agg(DISTINCT c.oid::regclass::text) AS tables
                FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
                JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
               WHERE l.granted AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND l.database =
                     (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
               GROUP BY l.pid) AS locked ON locked.pid = a.pid
        WHERE a.state LIKE 'idle in transaction%%' AND a.state_change < clock_timestamp() - make_interval(secs => %s)
        ORDER BY a.xact_start""",
        [longer],
    )
    return [(Session(*row[:-1]), row[-1]) for row in rows]


def statement(connection: psycopg.Connection[Any], pids: list[int]) -> Session | None:
    """Find the oldest statement that one of these backends runs."""
    row = connection.execute(
        _SESSION + "WHERE a.pid = ANY(%s) AND a.state = 'active' ORDER BY a.query_start LIMIT 1", [pids]
    ).fetchone()
    return _session(row)


def index_progress(connection: psycopg.Connection[Any], pids: list[int]) -> str | None:
    """Tell how far a CREATE INDEX is, in words: phase and percent. Catalog page: pg_stat_progress_create_index."""
    row = connection.execute(
        "SELECT phase, CASE WHEN blocks_total > 0 THEN 100 * blocks_done / blocks_total "
        "WHEN tuples_total > 0 THEN 100 * tuples_done / tuples_total END "
        "FROM pg_catalog.pg_stat_progress_create_index WHERE pid = ANY(%s) LIMIT 1",
        [pids],
    ).fetchone()
    return None if row is None else row[0] if row[1] is None else f"{row[0]}, {row[1]} %"


def _session(row: tuple[Any, ...] | None) -> Session | None:
    return Session(*row) if row is not None else None
