"""The names in a schema as they come and go while migrations run; read so that a thousand looks cost little."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.facts import Pattern
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.worker.connections import ask


class Names:
    """What was there at the last look."""

    def __init__(self, ignore: Collection[Pattern]) -> None:
        self._ignore = ignore
        #: of everything, and of schemas, without which the others cannot be read
        self._lines: set[str] = set()
        self._schemas: frozenset[str] = frozenset()
        self._named_schemas: frozenset[Name] = frozenset()

    def changes(self, connection: Any, *, is_alone: bool) -> tuple[frozenset[Name], frozenset[Name]]:
        """Look again over SQLAlchemy's `connection`; give the names that have come, and those that have gone.

        `is_alone` says that no other session can have changed anything since the last look.
        """
        new, is_all, _ = map(reading.text_of, ask(connection, reading.NEW_NAMES))
        if is_alone and is_all == "true":
            come = reading.lines_of(new) - self._lines
            self._lines |= come
            return self._named([*come, *self._schemas]) - self._named_schemas, frozenset()
        before = self._named(self._lines)
        self._lines = {*reading.lines_of(ask(connection, reading.NAMES)[0])}
        self._schemas = frozenset(filter(reading.is_schema_line, self._lines))
        self._named_schemas = self._named(self._schemas)
        now = self._named(self._lines)
        return now - before, before - now

    def _named(self, lines: Collection[str]) -> frozenset[Name]:
        return reading.names_in(lines, self._ignore)
