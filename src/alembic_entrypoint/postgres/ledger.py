"""The ledger: what this program remembers in the database, in a schema of its own.

Never in the way of a start: what cannot be read or written is said once, and passed by. Written under the lock only.
Rows are bound to the database's identity, so that a copy is not taken for the original; `set_aside` alone is not,
since what it warns of came with the copied data.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import ConnStatus
from psycopg.types.json import Jsonb

from alembic_entrypoint import __version__
from alembic_entrypoint.facts import Facts, Graph, Ledger, VersionTable
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.versions import IDENTITY, LAYOUT_VERSION, stamped, version_rows

T = TypeVar("T")
Connection = psycopg.Connection[Any]

#: What it is worth to wait for another's lock on the ledger: it is in nobody's way, and nobody's is in ours.
#: Nor is the disk waited for: a migration's own commit, which comes later, flushes what was written here before it.
_PATIENCE = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'; SET LOCAL synchronous_commit = off"
#: As many images as can be told at once to have nothing to do, and settlings as many as anybody reads.
_STARTS, _SETTLINGS, _REPLAYS = 20, 1000, 5

#: How the ledger came to be what it is: each step is run once, in its order; a layout's version is their number.
LAYOUT: tuple[str, ...] = (
    """
    CREATE TABLE alembic_entrypoint.settling (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        database text NOT NULL,
        version_table text NOT NULL,
        began timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        elapsed double precision,
        state text NOT NULL,
        action text NOT NULL,
        outcome text NOT NULL,
        before text[] NOT NULL,
        after text[],
        host text NOT NULL,
        image text NOT NULL,
        program text NOT NULL,
        message text,
        owes_proof boolean NOT NULL DEFAULT false,
        times bigint NOT NULL DEFAULT 1
    );
    CREATE TABLE alembic_entrypoint.revision (
        database text NOT NULL,
        version_table text NOT NULL,
        revision text NOT NULL,
        beneath text[] NOT NULL,
        replaces text[] NOT NULL,
        oldest_compatible text,
        seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        applied timestamptz,
        image text NOT NULL,
        content text,
        meaning text,
        PRIMARY KEY (database, version_table, revision)
    );
    CREATE TABLE alembic_entrypoint.recorded (
        database text NOT NULL,
        version_table text NOT NULL,
        revision text NOT NULL,
        row_xmin text NOT NULL,
        ancestors text[] NOT NULL,
        PRIMARY KEY (database, version_table, revision)
    );
    CREATE TABLE alembic_entrypoint.set_aside (
        version_table text NOT NULL,
        revision text NOT NULL,
        settling bigint NOT NULL,
        PRIMARY KEY (version_table, revision)
    );
    CREATE TABLE alembic_entrypoint.start (
        database text NOT NULL,
        fingerprint text NOT NULL,
        role text NOT NULL,
        search_path text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        recorded text[] NOT NULL,
        heads text[] NOT NULL,
        variables text[] NOT NULL,
        environment text NOT NULL,
        is_fixed boolean NOT NULL,
        seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        PRIMARY KEY (database, fingerprint, role)
    );
    """,
    """
    CREATE TABLE alembic_entrypoint.replay (
        fingerprint text NOT NULL,
        major integer NOT NULL,
        seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        given jsonb NOT NULL,
        PRIMARY KEY (fingerprint, major)
    );
    """,
)
assert len(LAYOUT) == LAYOUT_VERSION


class Unwritable(Exception):
    """The ledger is of no use here; the message says why."""


@dataclass(frozen=True)
class Settling:
    """One line of the history."""

    database: str
    version_table: str
    began: Any
    #: seconds; None while it is under way, or when it was killed
    elapsed: float | None
    state: str
    action: str
    outcome: str
    before: tuple[str, ...]
    after: tuple[str, ...] | None
    host: str
    image: str
    program: str
    message: str | None
    times: int


def read(connection: Connection, facts: Facts) -> Ledger:
    """Read what the ledger knows of this database and version table; empty where there is none."""
    return passing_by(connection, lambda: _read(connection, facts), Ledger())


def history(connection: Connection) -> list[Settling]:
    """Read every settling that was noted here, and in what this database was copied from; the oldest first."""
    with connection.transaction():
        connection.execute(_PATIENCE)
        if not _is_ours(connection):
            return []
        rows = connection.execute(
            "SELECT pg_catalog.regexp_replace(database, '^.*?/.*?/', ''), version_table, began, elapsed, state, "
            "action, outcome, before, after, host, image, program, message, times "
            "FROM alembic_entrypoint.settling ORDER BY id"
        )
        return [_settling(*row) for row in rows]


def _settling(*row: Any) -> Settling:
    values: Any = [tuple(each) if isinstance(each, list) else each for each in row]
    return Settling(*values)


class Book:
    """The ledger, open for writing under the lock, for one version table."""

    def __init__(self, connection: Connection, image: str, version_table: VersionTable) -> None:
        self._connection = connection
        self._image = image
        self._table = version_table
        self._settling: int | None = None
        self._contents: dict[str, tuple[str | None, str | None]] = {}

    def learn(self, path: str) -> None:
        """Read what a migration's file says, while the worker is at the next one."""
        from alembic_entrypoint.content import content, meaning

        if path not in self._contents:
            self._contents[path] = content(path), meaning(path)

    def begin(self, facts: Facts, state: str, action: str) -> None:
        """Write the graph and that something begins, before anything does.

        A replica of an older image that restarts in the middle can then tell newer from lost.
        """

        def write() -> None:
            _note_copy(self._connection, self._table)
            # Nobody else is at work under our lock, so whoever began and did not end was killed.
            self._connection.execute(
                "UPDATE alembic_entrypoint.settling SET outcome = 'cut short' WHERE outcome = 'under way' "
                f"AND database = {IDENTITY} AND version_table = %s",
                [str(self._table)],
            )
            self._write_graph(facts.graph)
            self._settling = self._insert(facts, state, action, "under way")

        self._write(write)

    def end(self, outcome: str, after: Sequence[str] | None, message: str | None = None) -> None:
        """Say how it ended."""

        def write() -> None:
            self._connection.execute(
                "UPDATE alembic_entrypoint.settling SET outcome = %s, after = %s, message = %s, elapsed = "
                "extract(epoch FROM pg_catalog.clock_timestamp() - began) WHERE id = %s",
                [outcome, list(after) if after is not None else None, message, self._settling],
            )

        if self._settling is not None:
            self._write(write)

    def refused(self, facts: Facts, state: str, message: str) -> None:
        """Note a refusal; a replica that is restarted again and again adds to the same line."""

        def write() -> None:
            _note_copy(self._connection, self._table)
            row = self._connection.execute(
                "UPDATE alembic_entrypoint.settling SET times = times + 1, elapsed = "
                "extract(epoch FROM pg_catalog.clock_timestamp() - began) WHERE outcome = 'refused' AND state = %s "
                "AND before = %s AND image = %s AND id = (SELECT max(id) FROM alembic_entrypoint.settling "
                f"WHERE database = {IDENTITY} AND version_table = %s) RETURNING id",
                [state, list(facts.recorded), self._image, str(self._table)],
            ).fetchone()
            if row is None:
                self._settling = self._insert(facts, state, "REFUSE", "refused", message)

        self._write(write)

    def applied(self, facts: Facts, recorded: Sequence[str], starting: Starting | None) -> None:
        """Keep what is recorded now with its ancestors, and what the next start may compare itself with."""
        self._write(lambda: self._applied(facts, recorded, starting))

    def set_aside(self, revisions: Sequence[str]) -> None:
        """Remember revisions that were recorded and are given up as lost, in the caller's transaction.

        Raises Unwritable.
        """
        if not revisions:
            return
        try:
            _open(self._connection)
            self._connection.execute(
                "INSERT INTO alembic_entrypoint.set_aside SELECT %s, unnest(%s::text[]), %s ON CONFLICT DO NOTHING",
                [str(self._table), list(revisions), self._settling or 0],
            )
        except psycopg.Error as error:
            raise Unwritable(_reason(error)) from None

    def unset_aside(self, revisions: Sequence[str]) -> None:
        """Forget that these were given up, since a person says that they are recorded."""
        self._write(
            lambda: self._connection.execute(
                "DELETE FROM alembic_entrypoint.set_aside WHERE version_table = %s AND revision = ANY(%s)",
                [str(self._table), list(revisions)],
            )
        )

    def replays(self, word: str, major: int) -> Any:
        """Give what replays of these migrations have shown here; None where none is kept."""

        def read() -> Any:
            if not _is_ours(self._connection):
                return None
            row = self._connection.execute(
                "SELECT given FROM alembic_entrypoint.replay WHERE fingerprint = %s AND major = %s", [word, major]
            ).fetchone()
            return row[0] if row else None

        return passing_by(self._connection, read, None)

    def keep_replays(self, word: str, major: int, given: Mapping[str, Any]) -> None:
        """Keep what replays have shown, for the replicas that come after; only the last few images'."""

        def write() -> None:
            self._connection.execute(
                "INSERT INTO alembic_entrypoint.replay (fingerprint, major, given) VALUES (%s, %s, %s) "
                "ON CONFLICT (fingerprint, major) DO UPDATE SET given = excluded.given, "
                "seen = pg_catalog.clock_timestamp()",
                [word, major, Jsonb(given)],
            )
            self._connection.execute(
                "DELETE FROM alembic_entrypoint.replay WHERE ctid = ANY(ARRAY(SELECT ctid FROM "
                "alembic_entrypoint.replay ORDER BY seen DESC OFFSET %s))",
                [_REPLAYS],
            )

        self._write(write)

    def clear_debt(self) -> None:
        """Note that the proof which was owed has been given."""
        self._write(
            lambda: self._connection.execute(
                "UPDATE alembic_entrypoint.settling SET owes_proof = false "
                f"WHERE database = {IDENTITY} AND version_table = %s AND owes_proof",
                [str(self._table)],
            )
        )

    def forget_debts(self) -> None:
        """Forget what was set aside and owed: an upgrade from nothing makes everything anew."""
        self._write(
            lambda: self._connection.execute(
                "DELETE FROM alembic_entrypoint.set_aside WHERE version_table = %s", [str(self._table)]
            )
        )
        self.clear_debt()

    def _write(self, write: Callable[[], object]) -> None:
        def writing() -> None:
            _open(self._connection)
            write()

        passing_by(self._connection, writing, None)

    def _insert(self, facts: Facts, state: str, action: str, outcome: str, message: str | None = None) -> int:
        row = self._connection.execute(
            "INSERT INTO alembic_entrypoint.settling (database, version_table, state, action, outcome, before, host, "
            f"image, program, message) VALUES ({IDENTITY}, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id",
            [
                *(str(self._table), state, action, outcome, list(facts.recorded)),
                *(socket.gethostname(), self._image, __version__, message),
            ],
        ).fetchone()
        assert row is not None
        self._connection.execute("DELETE FROM alembic_entrypoint.settling WHERE id <= %s", [row[0] - _SETTLINGS])
        return int(row[0])

    def _write_graph(self, graph: Graph) -> None:
        """Add what this image knows; what another image knew of the same revisions is replaced by it."""
        rows = [
            (each.revision, sorted({*each.beneath, *each.replaces}), list(each.replaces), each.oldest_compatible)
            for each in graph.migrations
        ]
        known = {
            row[0]: row
            for row in self._connection.execute(
                "SELECT revision, beneath, replaces, oldest_compatible FROM alembic_entrypoint.revision "
                f"WHERE database = {IDENTITY} AND version_table = %s",
                [str(self._table)],
            )
        }
        with self._connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO alembic_entrypoint.revision (database, version_table, revision, beneath, replaces, "
                f"oldest_compatible, image) VALUES ({IDENTITY}, %s, %s, %s, %s, %s, %s) "
                "ON CONFLICT (database, version_table, revision) DO UPDATE SET beneath = excluded.beneath, "
                "replaces = excluded.replaces, oldest_compatible = excluded.oldest_compatible",
                [(str(self._table), *row, self._image) for row in rows if known.get(row[0]) != row],
            )

    def _applied(self, facts: Facts, recorded: Sequence[str], starting: Starting | None) -> None:
        _note_copy(self._connection, self._table)
        self._write_graph(facts.graph)
        rows = version_rows(self._connection, self._table.resolved_schema, self._table.name)
        known = _ancestors(self._connection, self._table, rows)
        before = frozenset[str]().union(*known.values(), *facts.ledger.ancestors.values())
        self._connection.execute(
            f"DELETE FROM alembic_entrypoint.recorded WHERE database = {IDENTITY} AND version_table = %s",
            [str(self._table)],
        )
        for revision in recorded:
            if revision in facts.graph.known:
                # What lay beneath before stays applied: a squash does not undo what it replaces.
                ancestors = sorted(facts.graph.ancestors([revision]) | before)
                self._connection.execute(
                    f"INSERT INTO alembic_entrypoint.recorded VALUES ({IDENTITY}, %s, %s, %s, %s)",
                    [str(self._table), revision, rows[revision], ancestors],
                )
        self._note_contents(facts, recorded)
        if starting is not None:
            starting.write(self._connection, self._table, rows)

    def _note_contents(self, facts: Facts, recorded: Sequence[str]) -> None:
        """Keep what the files of the newly applied revisions said, so that a later edit is seen."""
        new = facts.graph.ancestors(recorded) - facts.applied
        paths = {revision: facts.graph.by_revision[revision].path for revision in sorted(new)}
        for path in paths.values():
            self.learn(path)
        with self._connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE alembic_entrypoint.revision SET applied = pg_catalog.clock_timestamp(), image = %s, "
                f"content = %s, meaning = %s WHERE database = {IDENTITY} AND version_table = %s AND revision = %s",
                [(self._image, *self._contents[path], str(self._table), revision) for revision, path in paths.items()],
            )


@dataclass(frozen=True)
class Starting:
    """What the next start compares itself with, to see that it has nothing to do."""

    fingerprint: str
    heads: tuple[str, ...]
    variables: tuple[str, ...]
    environment: str
    is_fixed: bool

    def write(self, connection: Connection, table: VersionTable, rows: Mapping[str, str]) -> None:
        """Write it; the version table must be the one that this session would find, too."""
        connection.execute(
            f"INSERT INTO alembic_entrypoint.start VALUES ({IDENTITY}, %s, session_user, "
            "pg_catalog.current_setting('search_path'), %s, %s, %s, %s, %s, %s, %s AND "
            "pg_catalog.to_regclass(pg_catalog.quote_ident(%s)) = pg_catalog.to_regclass(%s)) "
            "ON CONFLICT (database, fingerprint, role) DO UPDATE SET search_path = excluded.search_path, "
            "schema = excluded.schema, name = excluded.name, recorded = excluded.recorded, heads = excluded.heads, "
            "variables = excluded.variables, environment = excluded.environment, is_fixed = excluded.is_fixed, "
            "seen = pg_catalog.clock_timestamp()",
            [
                *(self.fingerprint, table.resolved_schema, table.name, stamped(rows), list(self.heads)),
                *(list(self.variables), self.environment, self.is_fixed, table.name),
                sql.Identifier(table.resolved_schema, table.name).as_string(connection),
            ],
        )
        connection.execute(
            f"DELETE FROM alembic_entrypoint.start WHERE database <> {IDENTITY} OR ctid = ANY(ARRAY(SELECT ctid "
            "FROM alembic_entrypoint.start ORDER BY seen DESC OFFSET %s))",
            [_STARTS],
        )


def passing_by(connection: Connection, work: Callable[[], T], otherwise: T) -> T:
    """Do something with the ledger in one transaction; where that fails, say so and go on without it.

    Raises psycopg.OperationalError where the connection is lost: that is not the ledger's fault.
    """
    try:
        with connection.transaction():
            connection.execute(_PATIENCE)
            return work()
    except Unwritable as reason:
        _say(str(reason), "info")
    except psycopg.Error as error:
        if connection.pgconn.status != ConnStatus.OK:
            raise
        _say(_reason(error), "warning")
    return otherwise


_said: set[str] = set()


def _say(reason: str, level: str) -> None:
    if reason not in _said:
        _said.add(reason)
        log("ledger.passed", level=level, reason=reason, note="the ledger is left alone, and the start goes on")


def _reason(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return (
            f"the role may not use or make the schema alembic_entrypoint: {error}. Grant CREATE on the database once, "
            "or set ALEMBIC_ENTRYPOINT_LEDGER=off"
        )
    return f"{type(error).__name__}: {error}".strip()


def _is_ours(connection: Connection) -> bool:
    """Tell whether there is a ledger that this version understands."""
    found = connection.execute("SELECT pg_catalog.to_regclass('alembic_entrypoint.layout') IS NOT NULL").fetchone()
    if not found or not found[0]:
        return False
    row = connection.execute("SELECT version FROM alembic_entrypoint.layout").fetchone()
    if row is not None and row[0] > LAYOUT_VERSION:
        raise Unwritable(
            f"a newer version of this program keeps a ledger of layout {row[0]} here; this one knows {LAYOUT_VERSION}"
        )
    return row is not None and row[0] == LAYOUT_VERSION


def _open(connection: Connection) -> None:
    """Make the ledger, or bring an older layout to this one. Raises psycopg.Error, Unwritable."""
    if _is_ours(connection):
        return
    found = connection.execute("SELECT pg_catalog.to_regclass('alembic_entrypoint.layout') IS NOT NULL").fetchone()
    version = 0
    if found and found[0]:
        row = connection.execute("SELECT version FROM alembic_entrypoint.layout").fetchone()
        version = row[0] if row else 0
    else:
        connection.execute("CREATE SCHEMA IF NOT EXISTS alembic_entrypoint")
        connection.execute("CREATE TABLE alembic_entrypoint.layout (version integer NOT NULL)")
    for step in LAYOUT[version:]:
        connection.execute(step)
    connection.execute("DELETE FROM alembic_entrypoint.layout")
    connection.execute("INSERT INTO alembic_entrypoint.layout VALUES (%s)", [LAYOUT_VERSION])


def _note_copy(connection: Connection, table: VersionTable) -> None:
    """Say in the history where this database came from, when what is there was written in another."""
    row = connection.execute(
        "SELECT pg_catalog.regexp_replace(database, '^.*?/.*?/', '') FROM alembic_entrypoint.settling "
        f"WHERE NOT EXISTS (SELECT FROM alembic_entrypoint.settling WHERE database = {IDENTITY}) "
        "ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if row is not None:
        connection.execute(
            "INSERT INTO alembic_entrypoint.settling (database, version_table, state, action, outcome, before, host, "
            f"image, program, message) VALUES ({IDENTITY}, %s, '', '', 'copied', '{{}}', %s, '', %s, %s)",
            [str(table), socket.gethostname(), __version__, f"this database is a copy of {row[0]!r}, or was renamed"],
        )


def _read(connection: Connection, facts: Facts) -> Ledger:
    if not _is_ours(connection):
        return Ledger()
    table = facts.version_table
    here = f"WHERE database = {IDENTITY} AND version_table = %s"
    revisions = connection.execute(
        "SELECT revision, beneath, oldest_compatible, applied IS NOT NULL, "
        "to_char(coalesce(applied, seen) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"'), "
        f"image, content, meaning FROM alembic_entrypoint.revision {here}",
        [str(table)],
    ).fetchall()
    set_aside = connection.execute(
        "SELECT revision FROM alembic_entrypoint.set_aside WHERE version_table = %s", [str(table)]
    )
    owing = connection.execute(
        f"SELECT EXISTS (SELECT FROM alembic_entrypoint.settling {here} AND owes_proof)", [str(table)]
    ).fetchone()
    rows = version_rows(connection, table.resolved_schema, table.name) if facts.recorded else {}
    return Ledger(
        beneath={row[0]: frozenset(row[1]) for row in revisions},
        ancestors=_ancestors(connection, table, rows),
        oldest_compatible={row[0]: row[2] for row in revisions if row[2]},
        since={row[0]: f"since {row[4]}" + (f" from image {row[5]}" if row[5] else "") for row in revisions if row[3]},
        contents={row[0]: (row[6], row[7]) for row in revisions if row[6]},
        set_aside=frozenset(row[0] for row in set_aside),
        owes_proof=bool(owing and owing[0]),
    )


def _ancestors(connection: Connection, table: VersionTable, rows: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Read the ancestors of the recorded revisions whose rows are still as they were written."""
    known = connection.execute(
        "SELECT revision, row_xmin, ancestors FROM alembic_entrypoint.recorded "
        f"WHERE database = {IDENTITY} AND version_table = %s",
        [str(table)],
    )
    return {revision: frozenset(ancestors) for revision, xmin, ancestors in known if rows.get(revision) == xmin}
