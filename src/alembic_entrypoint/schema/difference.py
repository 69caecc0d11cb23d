"""Say how two snapshots differ. No I/O here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alembic_entrypoint.schema.facts import Kind, Snapshot, Thing, Value
from alembic_entrypoint.schema.wording import label, phrase, shortened, side_by_side, summary

_ORDER = {kind: place for place, kind in enumerate(Kind)}


@dataclass(frozen=True)
class Difference:
    """Hold one thing that is not the same on both sides.

    ``attribute`` is empty where the thing itself is missing on one side: then that side is None, and the other is
    what the thing is, in a few words.
    """

    thing: Thing
    attribute: str
    here: Value
    there: Value

    def line(self, here: str = "here", there: str = "there") -> str:
        """Return the difference as a person reads it: ``users.email: varchar(255) here, text in b891cb8863b5``.

        ``here`` and ``there`` name the two sides.
        """
        if self.attribute:
            mine, theirs = side_by_side(phrase(self.attribute, self.here), phrase(self.attribute, self.there))
        else:
            mine, theirs = (shortened(str(each or "missing")) for each in (self.here, self.there))
        return f"{label(self.thing)}: {mine} {here}, {theirs} {there}"

    def document(self) -> dict[str, Any]:
        """Return the difference as JSON can hold it, with nothing shortened."""
        return {
            **self.thing._asdict(),
            "kind": self.thing.kind.value,
            "attribute": self.attribute,
            "here": self.here,
            "there": self.there,
        }


def difference(here: Snapshot, there: Snapshot) -> tuple[Difference, ...]:
    """Compare two snapshots of one major: nothing is returned when, and only when, they are equal.

    Grouped by object, the most telling first; a relation that is missing on one side is told once, without its parts.
    Raises ValueError for different majors, whose servers print the same schema in different words [R15].
    """
    if here.major != there.major:
        raise ValueError(f"snapshots of PostgreSQL {here.major} and {there.major} cannot be compared")
    found = [
        each
        for thing in here.facts.keys() | there.facts.keys()
        if not _goes_without_saying(thing, here, there) and not _goes_without_saying(thing, there, here)
        for each in _differences(thing, here, there)
    ]
    best: dict[tuple[str, ...], int] = {}
    for each in found:
        best[_group(each)] = min(_rank(each), best.get(_group(each), _rank(each)))
    found.sort(key=lambda each: (best[_group(each)], _group(each), _rank(each), each.thing.part, each.attribute))
    return tuple(found)


def unlike(here: Snapshot, there: Snapshot) -> int:
    """Count the things that are not the same on both sides; those of a missing relation count, too."""
    return sum(here.facts.get(thing) != there.facts.get(thing) for thing in here.facts.keys() | there.facts.keys())


def _goes_without_saying(thing: Thing, here: Snapshot, there: Snapshot) -> bool:
    """Tell whether the thing is missing there only because the relation that it belongs to is."""
    owner = here.facts.get(thing, {}).get("owned by")
    if isinstance(owner, tuple):
        relation = Thing(Kind.RELATION, str(owner[0]), str(owner[1]), "")
    elif thing.part:
        relation = Thing(Kind.RELATION, thing.schema, thing.name, "")
    else:
        return False
    return thing not in there.facts and relation in here.facts and relation not in there.facts


def _differences(thing: Thing, here: Snapshot, there: Snapshot) -> Iterator[Difference]:
    mine, theirs = here.facts.get(thing), there.facts.get(thing)
    if mine is None:
        yield Difference(thing, "", None, summary(thing, there.facts[thing]))
    elif theirs is None:
        yield Difference(thing, "", summary(thing, mine), None)
    elif mine.get("kind") != theirs.get("kind"):
        yield Difference(thing, "kind", mine["kind"], theirs["kind"])
    else:
        for attribute, value in mine.items():
            if value != theirs[attribute]:
                yield Difference(thing, attribute, value, theirs[attribute])


def _group(each: Difference) -> tuple[str, ...]:
    return each.thing[1:3]


def _rank(each: Difference) -> int:
    """Order by how much a difference tells: what is missing before what is too much, before what is unlike."""
    missing = 0 if each.here is None else 1 if each.there is None else 2
    return _ORDER[each.thing.kind] * 3 + (2 if each.attribute else missing)
