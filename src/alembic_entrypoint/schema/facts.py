"""What a schema is: facts about things. No I/O here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from typing import NamedTuple

#: What a fact can say. A tuple keeps an order that counts, or is sorted where none does.
Value = str | int | float | bool | None | tuple["Value", ...]

#: What to leave out: (schema, name), where ``*`` stands for any characters.
Pattern = tuple[str, str]


class Kind(str, Enum):
    """Name the kinds of things that count, the most telling first."""

    RELATION = "relation"
    COLUMN = "column"
    CONSTRAINT = "constraint"
    INDEX = "index"
    SCHEMA = "schema"
    EXTENSION = "extension"
    TYPE = "type"
    SEQUENCE = "sequence"
    FUNCTION = "function"
    TRIGGER = "trigger"
    POLICY = "policy"
    RULE = "rule"


class Thing(NamedTuple):
    """Identify one object of a schema.

    ``schema`` is empty for an extension, ``name`` for a schema; ``part`` is the column, constraint, index, trigger,
    rule or policy of the relation ``name``, else empty. Names are as in the catalog, without quotes; a function's
    is its signature, ``doubled(integer)``, with quotes where they are needed.
    """

    kind: Kind
    schema: str
    name: str
    part: str


@dataclass(frozen=True)
class Snapshot:
    """Hold a schema as facts: what each thing is, attribute by attribute.

    Two schemas of one major are equal when their snapshots are; then, and only then, the digests are too.
    """

    major: int
    facts: Mapping[Thing, Mapping[str, Value]] = field(repr=False, hash=False)

    @cached_property
    def digest(self) -> str:
        """Return a hash of everything in the snapshot that is the same in every process: 64 hexadecimal digits."""
        everything = [
            self.major,
            sorted((*thing, sorted(said.items())) for thing, said in self.facts.items()),
        ]
        return hashlib.sha256(json.dumps(everything, ensure_ascii=True).encode()).hexdigest()

    def without(self, ignore: Collection[Pattern]) -> Snapshot:
        """Leave out what ``ignore`` names: a relation goes with its parts and the sequences that it owns."""
        is_ignored = ignoring(ignore)

        def is_owned_by_ignored(told: Mapping[str, Value]) -> bool:
            owner = told.get("owned by")
            return isinstance(owner, tuple) and is_ignored(*owner[:2])

        kept = {
            thing: told
            for thing, told in self.facts.items()
            if not is_ignored(thing.schema, thing.name) and not is_owned_by_ignored(told)
        }
        return Snapshot(self.major, kept)


def ignoring(ignore: Collection[Pattern]) -> Callable[[Value, Value], bool]:
    """Return a question: is what has this schema and this name ignored?"""
    globs = [(_glob(schema), _glob(name)) for schema, name in ignore]

    def is_ignored(schema: Value, name: Value) -> bool:
        return any(one.fullmatch(str(schema)) and other.fullmatch(str(name)) for one, other in globs)

    return is_ignored


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
