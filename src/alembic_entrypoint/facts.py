"""What was observed, as plain values: the image's migrations, what the database records, what the ledger knows.

Standard library only, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

RESERVED = ("base", "head", "heads")


@dataclass(frozen=True)
class Migration:
    """One migration file of the image."""

    revision: str
    parents: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    oldest_compatible: str | None = None
    path: str = ""
    doc: str = ""

    @property
    def beneath(self) -> tuple[str, ...]:
        """Everything that must be applied directly before it."""
        return self.parents + self.depends_on


@dataclass(frozen=True)
class Graph:
    """The migrations of an image and how they follow each other."""

    migrations: tuple[Migration, ...] = ()

    @cached_property
    def by_revision(self) -> Mapping[str, Migration]:
        """Look a migration up by its exact revision; Alembic's prefix match is never used."""
        return {each.revision: each for each in self.migrations}

    @cached_property
    def known(self) -> frozenset[str]:
        """Every revision that the image ships."""
        return frozenset(self.by_revision)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """The newest revisions, depends_on counted, in the order of the files."""
        beneath = {parent for each in self.migrations for parent in each.beneath}
        return tuple(each.revision for each in self.migrations if each.revision not in beneath)

    @cached_property
    def replaced_by(self) -> Mapping[str, Migration]:
        """Map every revision that a squash replaced to the migration that replaces it."""
        return {old: each for each in self.migrations for old in each.replaces}

    @cached_property
    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong with the migrations, whatever the database, a sentence each."""
        return tuple(_faults(self))

    def ancestors(self, revisions: Iterable[str]) -> frozenset[str]:
        """Collect everything beneath these revisions, and themselves."""
        found: set[str] = set()
        waiting = [each for each in revisions if each in self.by_revision]
        while waiting:
            revision = waiting.pop()
            if revision not in found:
                found.add(revision)
                waiting += [each for each in self.by_revision[revision].beneath if each in self.by_revision]
        return frozenset(found)

    def moved_on_top(self, revisions: Iterable[str]) -> tuple[Migration, ...]:
        """Give the migrations that must change, as they must be, for these to come after all that lies above them."""
        from graphlib import TopologicalSorter

        moved = frozenset(revisions)

        def stays(names: Iterable[str]) -> tuple[str, ...]:
            # What moves away leaves behind what it stood on.
            found: dict[str, None] = {}
            for each in names:
                found |= dict.fromkeys(stays(self.by_revision[each].parents) if each in moved else (each,))
            return tuple(each for each in found if each not in self.ancestors({*found} - {each}))

        changed = [
            replace(each, parents=stays(each.parents), depends_on=tuple(d for d in each.depends_on if d not in moved))
            for each in self.migrations
            if each.revision not in moved
        ]
        top = tuple(head for head in Graph(tuple(changed)).heads if self.ancestors([head]) & moved)
        for each in TopologicalSorter({each: self.by_revision[each].beneath for each in moved}).static_order():
            if each in moved:
                depends_on = tuple(d for d in self.by_revision[each].depends_on if d not in moved)
                changed.append(replace(self.by_revision[each], parents=top, depends_on=depends_on))
                top = (each,)
        return tuple(each for each in changed if each != self.by_revision[each.revision])


@dataclass(frozen=True)
class Ledger:
    """What this program remembers of this database and version table; empty without a ledger."""

    #: every revision ever seen here -> what is directly beneath it, `replaces` counted
    beneath: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: recorded revision -> its ancestors as the image knew them that recorded it; only rows still as written
    ancestors: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: revision -> the oldest image that may start on it
    oldest_compatible: Mapping[str, str] = field(default_factory=dict)
    #: revision -> since when and from which image it is there, in words
    since: Mapping[str, str] = field(default_factory=dict)
    #: revision -> content and meaning of its file when it was applied here
    contents: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    set_aside: frozenset[str] = frozenset()
    owes_proof: bool = False

    def closure(self, revisions: Iterable[str]) -> frozenset[str]:
        """Collect everything that the ledger knows beneath these revisions, and themselves."""
        found: set[str] = set()
        waiting = list(revisions)
        while waiting:
            revision = waiting.pop()
            if revision not in found:
                found.add(revision)
                waiting += self.beneath.get(revision, frozenset())
        return frozenset(found)


@dataclass(frozen=True)
class VersionTable:
    """Where revisions are recorded, as `env.py` names it and as its connection resolves it."""

    name: str = "alembic_version"
    schema: str | None = None
    #: the schema in which the connection of `env.py` finds it or would make it
    resolved_schema: str = "public"
    exists: bool = False
    #: letters that fit into `version_num`; None is no limit
    width: int | None = 32

    def __str__(self) -> str:
        return f"{self.resolved_schema}.{self.name}"


@dataclass(frozen=True)
class Inputs:
    """What `env.py` took into account, as far as that can be seen: what must be the same for the same outcome."""

    #: real paths of the script and version locations
    folders: tuple[str, ...] = ()
    #: names of the environment's variables that were read; `*` is all of them
    variables: tuple[str, ...] = ()
    #: nothing that cannot be seen from outside chose what is migrated and where it is recorded [R18]
    is_fixed: bool = False


@dataclass(frozen=True)
class Facts:
    """Everything that the decision may look at."""

    graph: Graph = field(default_factory=Graph)
    #: what kept migration files from loading, a sentence each
    unloadable: tuple[str, ...] = ()
    #: the target as it was set, and the revisions that it means (`head` with several heads: all of them)
    target: str = "head"
    target_revisions: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    version_table: VersionTable = field(default_factory=VersionTable)
    #: the schemas, of those that are there, in which the connection of `env.py` looks up a name without one
    search_path: tuple[str, ...] = ()
    #: `schema.name` of every table that counts (design: not those of extensions, of the ledger, or ignored)
    tables: tuple[str, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    inputs: Inputs = field(default_factory=Inputs)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Recorded revisions that the image does not ship."""
        return tuple(each for each in self.recorded if each not in self.graph.known)

    @cached_property
    def applied(self) -> frozenset[str]:
        """Known revisions that are recorded or lie beneath what is recorded."""
        return self.graph.ancestors(self.recorded)

    @cached_property
    def pending(self) -> tuple[str, ...]:
        """Revisions that an upgrade to the target would run, in no particular order."""
        return tuple(sorted(self.graph.ancestors(self.target_revisions) - self.applied))

    @cached_property
    def overlapping(self) -> tuple[tuple[str, str], ...]:
        """Pairs of recorded revisions of which the first is an ancestor of the second."""
        return tuple(
            (lower, upper)
            for upper in self.recorded
            for lower in self.recorded
            if lower != upper and lower in self.graph.ancestors([upper])
        )

    @cached_property
    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong with the migrations themselves, a sentence each."""
        return self.unloadable + self.graph.faults + tuple(_too_long(self.graph, self.version_table.width))


def _faults(graph: Graph) -> Iterable[str]:
    if not graph.migrations:
        yield "there are no migrations in the version locations"
    yield from _faults_of_names(graph)
    known = graph.known
    for each in graph.migrations:
        for parent in each.beneath:
            if parent not in known:
                yield f"{each.revision} ({each.path}) follows {parent}, which no file has"
    for cycle in _cycles(graph):
        yield f"these follow each other in a cycle: {', '.join(cycle)}"
    yield from _faults_of_replaces(graph)


def _faults_of_names(graph: Graph) -> Iterable[str]:
    files: dict[str, list[str]] = {}
    for each in graph.migrations:
        files.setdefault(each.revision, []).append(each.path)
    for revision, paths in files.items():
        if len(paths) > 1:
            yield f"revision {revision} is in {len(paths)} files, of which Alembic runs one: {', '.join(sorted(paths))}"
        if revision in RESERVED:
            yield f"revision {revision!r} ({paths[0]}) is a word that Alembic has a meaning for"


def _too_long(graph: Graph, width: int | None) -> Iterable[str]:
    for each in graph.migrations:
        if width is not None and len(each.revision) > width:
            yield (
                f"revision {each.revision} ({each.path}) has {len(each.revision)} letters, "
                f"and the version table holds {width}: it would fail after it has run"
            )


def _faults_of_replaces(graph: Graph) -> Iterable[str]:
    claims: dict[str, list[str]] = {}
    for each in graph.migrations:
        for old in each.replaces:
            claims.setdefault(old, []).append(each.revision)
            if old in graph.known:
                yield f"{each.revision} replaces {old}, which still exists"
    for old, by in claims.items():
        if len(by) > 1:
            yield f"{old} is replaced by more than one: {', '.join(sorted(by))}"


def _cycles(graph: Graph) -> Iterable[list[str]]:
    """Find every set of revisions that follow each other in a circle."""
    from graphlib import CycleError, TopologicalSorter

    beneath = {each.revision: set(each.beneath) & graph.known for each in graph.migrations}
    while True:
        try:
            TopologicalSorter(beneath).prepare()
        except CycleError as error:
            circle = error.args[1]
            yield sorted(set(circle))
            for revision in circle:
                beneath[revision] -= set(circle)
        else:
            return
