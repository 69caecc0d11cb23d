"""What replays visited and what is live in, one answer out: whose schema is it. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from alembic_entrypoint.facts import Graph
from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.facts import Kind, Snapshot, Thing
from alembic_entrypoint.schema.reading import Name

#: Kinds of names that are there before the first migration and say nothing of it.
_SURROUNDINGS = ("schema", "extension")
#: Of so many states that have the most names in common with what is live, the nearest is looked for.
NEAREST = 8

Table = tuple[str, str]


class Outcome(Enum):
    """How a proof can end."""

    ONE = "the schema is that of one set of revisions, and of no other"
    BASE = "nothing that any revision makes is there"
    NONE = "the schema is that of no revision"
    SEVERAL = "the schema is that of several, between which only data changes"
    UNVISITED = "not every set of revisions could be compared"
    FAILED = "the migrations could not be replayed"


@dataclass(frozen=True)
class Visited:
    """What a replay saw after one migration, or before the first."""

    recorded: tuple[str, ...]
    #: the migration that ran; None before the first
    revision: str | None
    #: whether it executed any statement
    executed: bool
    #: names that have come and gone since the last visit
    added: tuple[Name, ...] = ()
    removed: tuple[Name, ...] = ()
    #: of the schema, without the schemas and extensions that were there before the first migration; read only where
    #: the names are those of the live schema
    digest: str | None = None
    #: tables that hold a row
    rows: tuple[Table, ...] | None = None
    #: how many facts are unlike the live ones, where the names are the same
    unlike: int | None = None
    snapshot: Snapshot | None = field(default=None, compare=False)
    #: before the first migration: in which schemas a name without one is looked up, and which has the version table
    search_path: tuple[str, ...] = ()
    version_schema: str | None = None

    def document(self) -> dict[str, Any]:
        """Write it as JSON can hold it."""
        return {
            "recorded": self.recorded,
            "revision": self.revision,
            "executed": self.executed,
            "added": self.added,
            "removed": self.removed,
            "digest": self.digest,
            "rows": self.rows,
            "unlike": self.unlike,
            "snapshot": None if self.snapshot is None else reading.encoded(self.snapshot),
            "search_path": self.search_path,
            "version_schema": self.version_schema,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Visited:
        """Read it back, or what a worker says."""
        rows, snapshot = document["rows"], document["snapshot"]
        return cls(
            recorded=tuple(document["recorded"]),
            revision=document["revision"],
            executed=document["executed"],
            added=tuple(Name(*each) for each in document["added"]),
            removed=tuple(Name(*each) for each in document["removed"]),
            digest=document["digest"],
            rows=None if rows is None else tuple((each[0], each[1]) for each in rows),
            unlike=document["unlike"],
            snapshot=None if snapshot is None else reading.decoded(snapshot),
            search_path=tuple(document["search_path"]),
            version_schema=document["version_schema"],
        )


@dataclass(frozen=True)
class State:
    """One set of revisions, and what a replay saw there."""

    visited: Visited
    #: one bit for each migration that is applied
    applied: int

    @property
    def recorded(self) -> tuple[str, ...]:
        """Give the set as the version table has it."""
        return self.visited.recorded

    @property
    def size(self) -> int:
        """Count the migrations that are applied."""
        return self.applied.bit_count()

    def is_beneath(self, other: State) -> bool:
        """Tell whether the other has all that is applied here, and more."""
        return self.applied != other.applied and self.applied & other.applied == self.applied


@dataclass(frozen=True)
class Live:
    """The live schema, without the ledger, the version table, and what is ignored."""

    snapshot: Snapshot = field(repr=False)
    names: frozenset[Name] = field(repr=False)

    def is_owned(self, name: Name) -> bool:
        """Tell whether it is a sequence that belongs to a column."""
        told = self.snapshot.facts.get(Thing(Kind.SEQUENCE, name.schema, name.name, ""), {})
        return name.kind == Kind.SEQUENCE.value and told.get("owned by") is not None


@dataclass(frozen=True)
class Replayed:
    """Everything that the replays of one image have shown."""

    graph: Graph = field(repr=False)
    replays: tuple[tuple[Visited, ...], ...] = field(repr=False)

    @cached_property
    def states(self) -> tuple[State, ...]:
        """Give each set once, as that replay saw it which looked closely."""
        found: dict[int, State] = {}
        for replay in self.replays:
            applied = 0
            for each in replay:
                applied |= self.bits((each.revision,) if each.revision is not None else ())
                known = found.get(applied)
                if known is None or known.visited.digest is None:
                    found[applied] = State(each, applied)
        return tuple(found.values())

    def bits(self, revisions: Iterable[str]) -> int:
        """Write revisions as bits."""
        return sum(1 << self._places[each] for each in revisions)

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {each.revision: n for n, each in enumerate(self.graph.migrations)}

    @cached_property
    def silent(self) -> int:
        """Revisions that executed no statement in any replay: merges, and those that are not for PostgreSQL."""
        ran = [each for replay in self.replays for each in replay if each.revision is not None]
        spoke = {each.revision for each in ran if each.executed}
        return self.bits({each.revision for each in ran if each.revision is not None} - spoke)

    @cached_property
    def surroundings(self) -> frozenset[Name]:
        """Schemas and extensions that were there before the first migration."""
        first = (each for replay in self.replays for each in replay[0].added)
        return frozenset(each for each in first if each.kind in _SURROUNDINGS)

    @cached_property
    def made(self) -> frozenset[Name]:
        """Every name that any revision makes, or has made and removed again."""
        every = frozenset(name for replay in self.replays for each in replay for name in each.added)
        return every - self.surroundings

    @cached_property
    def touched(self) -> frozenset[str]:
        """Schemas in which any revision makes anything."""
        return frozenset(each.schema for each in self.made if each.kind != "extension")

    def comparable(self, live: Live) -> Snapshot:
        """Leave out of the live schema what no revision has to do with: other schemas, and other extensions."""
        extensions = {each.name for each in self.made if each.kind == "extension"}
        own = {each.schema for each in self.made if each.kind == "schema"}

        def counts(kind: Kind, schema: str, name: str) -> bool:
            if kind is Kind.EXTENSION:
                return name in extensions
            return schema in (own if kind is Kind.SCHEMA else self.touched)

        facts = {thing: told for thing, told in live.snapshot.facts.items() if counts(*thing[:3])}
        return Snapshot(live.snapshot.major, facts)

    def strangers(self, live: Live) -> tuple[Name, ...]:
        """Name what is live, in a schema that the replay touches, and made by no revision."""
        others = (each for each in live.names - self.made if each.kind not in _SURROUNDINGS and not live.is_owned(each))
        return tuple(sorted(each for each in others if each.schema in self.touched))

    def equal(self, live: Live) -> tuple[State, ...]:
        """Find the states whose schema the live one is."""
        digest = self.comparable(live).digest
        return tuple(each for each in self.states if each.visited.digest == digest)

    def is_unread(self, live: Live) -> bool:
        """Tell whether a state could be the live one and was not looked at closely, as for another live schema."""
        distances = self._distances(live)
        return any(each.visited.digest is None and distances[each.applied] == 0 for each in self.states)

    def nearest(self, live: Live) -> tuple[State, ...]:
        """Choose the states that have the most names in common with what is live, then the most facts, the newest."""
        distances = self._distances(live)
        ranked = sorted(self.states, key=lambda each: (distances[each.applied], each.visited.unlike or 0, -each.size))
        return tuple(ranked[:NEAREST])

    def _distances(self, live: Live) -> Mapping[int, int]:
        """Count, for each set, the names that are there or live, and not both; in one pass, so that memory is flat."""
        names = (each for each in live.names if each.kind != "sequence")
        there = (each for each in names if each in self.made or each.kind not in _SURROUNDINGS)
        here = frozenset(each for each in there if each.kind == "extension" or each.schema in self.touched)
        found: dict[int, int] = {}
        for replay in self.replays:
            applied, unlike = 0, set(here)
            for each in replay:
                applied |= self.bits((each.revision,) if each.revision is not None else ())
                unlike ^= {name for name in (*each.added, *each.removed) if name.kind != "sequence"} - self.surroundings
                found[applied] = len(unlike)
        return found


@dataclass(frozen=True)
class Answer:
    """What a comparison says."""

    outcome: Outcome
    #: the sets of revisions whose schema it is, newest first
    candidates: tuple[tuple[str, ...], ...] = ()
    #: sets whose schema it is, with the tables that they fill and that are empty here
    empty: Mapping[tuple[str, ...], tuple[Table, ...]] = field(default_factory=dict)


def judge(
    replayed: Replayed, live: Live, equal: Sequence[State], empty: Iterable[Table], *, may_be_base: bool, is_whole: bool
) -> Answer:
    """Say whose schema it is, among all that were visited.

    `equal` are the states with the same schema, `empty` the tables without rows here, of those that they fill;
    `may_be_base` where nothing is recorded; `is_whole` where every set that could have been recorded was visited.
    """
    if may_be_base and not any(each.kind not in _SURROUNDINGS for each in live.names & replayed.made):
        return Answer(Outcome.BASE)
    lacking = _lacking(equal, empty)
    states = [each for each in equal if each.recorded not in lacking]
    candidates = tuple(_newest_of_each(states, replayed.silent))
    if len(candidates) > 1:
        return Answer(Outcome.SEVERAL, candidates)
    if candidates and candidates[0]:
        return Answer(Outcome.ONE if is_whole else Outcome.UNVISITED, candidates)
    return Answer(Outcome.NONE, empty=lacking)


def judge_one(replayed: Replayed, equal: Sequence[State], empty: Iterable[Table], recorded: Sequence[str]) -> Answer:
    """Say whether it is the schema of this one set; that others have the same does no harm."""
    applied = replayed.bits(replayed.graph.ancestors(recorded))
    same = [each for each in equal if each.applied == applied]
    lacking = _lacking(same, empty)
    if same and not lacking:
        return Answer(Outcome.ONE, (same[0].recorded,))
    return Answer(Outcome.NONE, empty=lacking)


def _lacking(states: Iterable[State], empty: Iterable[Table]) -> Mapping[tuple[str, ...], tuple[Table, ...]]:
    """Find the states that fill tables which are empty here, with these tables."""
    without = frozenset(empty)
    found = {each.recorded: tuple(table for table in each.visited.rows or () if table in without) for each in states}
    return {recorded: tables for recorded, tables in found.items() if tables}


def _newest_of_each(states: Sequence[State], silent: int) -> Iterator[tuple[str, ...]]:
    """Count states as one that differ only by revisions which executed nothing, and take the newest of each."""
    for each in sorted(states, key=lambda state: -state.size):
        same = (other for other in states if other.applied & ~silent == each.applied & ~silent)
        if not any(each.is_beneath(other) for other in same):
            yield each.recorded
