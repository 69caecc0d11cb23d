"""Write the ledger, under the lock only, over the lock's own session."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from alembic_entrypoint import __version__
from alembic_entrypoint.facts import Facts, Graph, VersionTable
from alembic_entrypoint.postgres.layout import Connection, Unwritable, is_there, make, passing_by, reason_of
from alembic_entrypoint.postgres.ledger import known_ancestors
from alembic_entrypoint.postgres.versions import IDENTITY, SEARCH_PATH, stamped, version_rows

#: As many images as can be told at once to have nothing to do, and settlings as many as anybody reads.
_STARTS, _SETTLINGS, _REPLAYS = 20, 1000, 5


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
        from alembic_entrypoint.content import learned

        if path not in self._contents:
            self._contents[path] = learned(path)

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
            make(self._connection)
            self._connection.execute(
                "INSERT INTO alembic_entrypoint.set_aside SELECT %s, unnest(%s::text[]), %s ON CONFLICT DO NOTHING",
                [str(self._table), list(revisions), self._settling or 0],
            )
        except psycopg.Error as error:
            raise Unwritable(reason_of(error)) from None

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
            if not is_there(self._connection):
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
            make(self._connection)
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
        names = ("revision", "beneath", "replaces", "oldest_compatible")
        new = [dict(zip(names, row, strict=True)) for row in rows if known.get(row[0]) != row]
        self._connection.execute(
            "INSERT INTO alembic_entrypoint.revision (database, version_table, revision, beneath, replaces, "
            f"oldest_compatible, image) SELECT {IDENTITY}, %s, new.*, %s FROM pg_catalog.jsonb_to_recordset(%s) "
            "AS new (revision text, beneath text[], replaces text[], oldest_compatible text) "
            "ON CONFLICT (database, version_table, revision) DO UPDATE SET beneath = excluded.beneath, "
            "replaces = excluded.replaces, oldest_compatible = excluded.oldest_compatible",
            [str(self._table), self._image, Jsonb(new)],
        )

    def _applied(self, facts: Facts, recorded: Sequence[str], starting: Starting | None) -> None:
        _note_copy(self._connection, self._table)
        self._write_graph(facts.graph)
        rows = version_rows(self._connection, self._table.resolved_schema, self._table.name)
        known = known_ancestors(self._connection, self._table, rows)
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
        files = []
        for revision in sorted(new):
            path = facts.graph.by_revision[revision].path
            self.learn(path)
            content, meaning = self._contents[path]
            files.append({"revision": revision, "content": content, "meaning": meaning})
        self._connection.execute(
            "UPDATE alembic_entrypoint.revision AS r SET applied = pg_catalog.clock_timestamp(), image = %s, "
            "content = f.content, meaning = f.meaning FROM pg_catalog.jsonb_to_recordset(%s) "
            "AS f (revision text, content text, meaning text) "
            f"WHERE r.database = {IDENTITY} AND r.version_table = %s AND r.revision = f.revision",
            [self._image, Jsonb(files), str(self._table)],
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
            f"{SEARCH_PATH}, %s, %s, %s, %s, %s, %s, %s AND "
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
