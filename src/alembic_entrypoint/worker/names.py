"""The names in a schema as they come and go while migrations run; read so that a thousand looks cost little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.facts import Pattern
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.worker.connections import ask


class Names:
    """What was there at the last look."""

    def __init__(self, ignore: Collection[Pattern]) -> None:
        self._ignore = ignore
        #: which object -> its line; several functions may have the same
        self._lines: dict[str, str] = {}
        self._times: Counter[str] = Counter()
        #: schemas and extensions: their lines, and their names
        self._places: frozenset[str] = frozenset()
        self._named_places: frozenset[Name] = frozenset()

    def changes(self, connection: Any) -> tuple[frozenset[Name], frozenset[Name]]:
        """Look again over SQLAlchemy's `connection`; give the names that have come, and those that have gone."""
        new, places, count = _new(connection)
        if places == self._places and len(self._lines) + len(new.keys() - self._lines.keys()) == count:
            come, gone = self._take(new)
            return self._named(come) - self._named_places, self._named(gone) - self._named_places
        # Something was dropped, or a schema has come or changed.
        before = self._named(self._times)
        ask(connection, reading.FORGET_NAMES)
        self._lines, self._times = {}, Counter()
        new, self._places, _ = _new(connection)
        self._named_places = self._named(())
        self._take(new)
        now = self._named(self._times)
        return now - before, before - now

    def _take(self, new: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Note what is new; give the lines that nothing had before, and those that nothing has any more."""
        old = [self._lines[each] for each in new if each in self._lines]
        come = [line for line in new.values() if line not in self._times]
        self._lines.update(new)
        self._times.subtract(old)
        self._times.update(new.values())
        self._times = +self._times if old else self._times
        return come, [line for line in old if line not in self._times]

    def _named(self, lines: Collection[str]) -> frozenset[Name]:
        """Take lines apart, and those of the places."""
        return reading.names_in([*lines, *self._places], self._ignore)


def _new(connection: Any) -> tuple[dict[str, str], frozenset[str], int]:
    """Ask for what is new, the places, and the number of objects in all."""
    new, places, count, *_ = map(reading.text_of, ask(connection, reading.NEW_NAMES))
    lines = (line.partition("\x1d") for line in reading.lines_of(new) if line)
    return {which: line for which, _, line in lines}, reading.lines_of(places), int(count)
