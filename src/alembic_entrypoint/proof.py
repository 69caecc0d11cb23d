"""Prove whose schema the live one is: replay the image's migrations in scratch, and compare.

The target is only read here, and before any replay begins.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from alembic_entrypoint.address import Address
from alembic_entrypoint.candidates import Route, route
from alembic_entrypoint.comparison import Answer, Live, Outcome, Replayed, State, Table, Visited, judge, judge_one
from alembic_entrypoint.errors import Denied, TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.logs import log
from alembic_entrypoint.naming import doubt_of_base
from alembic_entrypoint.postgres.scratch import ELSEWHERE, ScratchServer, scratch_server
from alembic_entrypoint.replay import NotReplayed, replay
from alembic_entrypoint.schema import reading, snapshot
from alembic_entrypoint.schema.difference import difference, unlike
from alembic_entrypoint.schema.facts import Kind, Pattern
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target, keep_secret
from alembic_entrypoint.worker.messages import Replay

#: Seconds to wait in all behind locks on the target.
LOCK_TIMEOUT = 2.0
#: Lines of a difference, and names in a list, that a person reads.
MOST_LINES = 20


@dataclass(frozen=True)
class Proof:
    """How a proof ended, and all that a person or the ledger wants to know of it."""

    outcome: Outcome
    #: the sets of revisions whose schema it is: one, or several, newest first
    candidates: tuple[tuple[str, ...], ...] = ()
    #: where there is none: the set that is nearest, and how what is live differs from it, a line each
    nearest: tuple[str, ...] | None = None
    difference: tuple[str, ...] = ()
    #: live objects, in schemas that the replay touches, that no revision makes, as `schema.name`
    strangers: tuple[str, ...] = ()
    #: sets of revisions that could have been recorded and were not visited
    unvisited: tuple[tuple[str, ...], ...] = ()
    #: the one set that was asked about; None where all were compared
    only: tuple[str, ...] | None = None
    #: why the migrations could not be replayed
    failure: str = ""
    #: the digest of all that counts in the live schema, when it was read
    digest: str = ""
    #: what the replays showed, for the ledger: a later proof for the same tree is given it as `known`
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def message(self) -> str:
        """Say in a few sentences what the proof has shown, without what to do about it."""
        sentence = (
            _SENTENCES[self.outcome] if self.only is None else _OF_ONE.get(self.outcome, _SENTENCES[self.outcome])
        )
        if self.outcome is Outcome.NONE and self.nearest == () and not self.difference:
            sentence = "Nothing that any revision makes is there, and yet something is recorded."
        lines = [sentence.format(**self._words)]
        lines += [f"  - {line}" for line in self.difference[:MOST_LINES]]
        if len(self.difference) > MOST_LINES:
            lines.append(f"  - and {len(self.difference) - MOST_LINES} more")
        if self.strangers and self.outcome is Outcome.NONE:
            named = ", ".join(self.strangers[:MOST_LINES]) + (" …" if len(self.strangers) > MOST_LINES else "")
            lines.append(f"No revision makes {named}. If another app's: name it in ALEMBIC_ENTRYPOINT_IGNORE.")
        if self.unvisited and self.outcome in (Outcome.NONE, Outcome.SEVERAL):
            lines.append(f"These sets of revisions were not compared: {self._words['unvisited']}.")
        return "\n".join(lines)

    @property
    def _words(self) -> Mapping[str, str]:
        return {
            "candidates": "; ".join(map(written, self.candidates)),
            "nearest": written(self.nearest or ()),
            "unvisited": "; ".join(map(written, self.unvisited[:MOST_LINES])) or "too many branches to count them",
            "failure": self.failure,
        }


_SENTENCES: Mapping[Outcome, str] = {
    Outcome.ONE: "The live schema is that of {candidates}, and of no other revision.",
    Outcome.BASE: "Nothing that any revision makes is there.",
    Outcome.NONE: "The live schema is that of no revision in this image. The nearest is {nearest}; what differs:",
    Outcome.SEVERAL: (
        "The live schema is that of {candidates}: between them only data changes, so it cannot tell which ran."
    ),
    Outcome.UNVISITED: (
        "The live schema is that of {candidates}, but not all sets of revisions that Alembic could have recorded "
        "were compared: {unvisited}."
    ),
    Outcome.FAILED: "Nothing can be proved: {failure}",
}


#: The same where one set was asked about.
_OF_ONE: Mapping[Outcome, str] = {
    Outcome.ONE: "The live schema is that of {candidates}.",
    Outcome.NONE: "The live schema is not that of {nearest}; what differs:",
}


def written(recorded: Sequence[str]) -> str:
    """Write a set of revisions as a person reads it."""
    return " with ".join(recorded) or "base"


def prove(
    connection: psycopg.Connection[Any],
    settings: Settings,
    target: Target,
    facts: Facts,
    *,
    only: tuple[str, ...] | None = None,
    known: Mapping[str, Any] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Proof:
    """Compare the live schema with every set of revisions that could be recorded, or with `only` this one.

    `connection` leads to the target, in autocommit mode. `known` is the document of an earlier proof of the same
    migrations: where it answers, nothing is replayed. `tick` is called twice a second during a replay. Nothing is
    written to the target. Raises Denied, Misconfigured, Refused, TryAgain where there can be no scratch database.
    """
    started = time.monotonic()
    if isinstance(settings.scratch, Address):
        keep_secret(settings.scratch)
    ignore = ignored(settings, facts)
    live = read_live(connection, ignore)
    way = Route(((),)) if only is not None else route(facts.graph)
    with ExitStack() as stack:
        proving = _Proving(connection, settings, target, facts, live, ignore, tick, stack)
        try:
            proof = proving.proved(only, known, way)
        except NotReplayed as error:
            if error.may_pass:
                raise TryAgain(f"Nothing can be proved now: {error}\nNothing was changed.\n{ELSEWHERE}") from None
            proof = Proof(Outcome.FAILED, failure=str(error), document=_failed(error, only))
    proof = dataclasses.replace(proof, digest=live.snapshot.digest, only=only)
    log(
        "schema.proved",
        outcome=proof.outcome.name.lower(),
        candidates=[list(each) for each in proof.candidates],
        nearest=list(proof.nearest) if proof.nearest is not None else None,
        differences=len(proof.difference),
        replays=proving.replays,
        elapsed=round(time.monotonic() - started, 3),
    )
    return proof


def ignored(settings: Settings, facts: Facts) -> tuple[Pattern, ...]:
    """Name what does not count: the ledger, the version table, and what the setting says is another app's."""
    table = facts.version_table
    theirs = (each.partition(".") for each in settings.ignore)
    patterns = tuple((schema, name or "*") for schema, _, name in theirs)
    return (snapshot.LEDGER, (table.resolved_schema, table.name), *patterns)


def read_live(connection: psycopg.Connection[Any], ignore: Collection[Pattern]) -> Live:
    """Read the live schema. Raises TryAgain where DDL is under way in it."""
    try:
        taken = snapshot.take(connection, ignore=ignore, lock_timeout=LOCK_TIMEOUT)
        row = connection.execute(reading.NAMES).fetchone()
    except (psycopg.errors.LockNotAvailable, psycopg.errors.InternalError_) as error:
        raise TryAgain(
            f"The schema could not be read, because somebody is changing it: {error}. Nothing was changed."
        ) from None
    assert row is not None
    # A sequence that belongs to what is ignored is ignored with it, which names alone do not tell.
    others = {Name("sequence", each.schema, each.name) for each in taken.facts if each.kind is Kind.SEQUENCE}
    names = reading.names_of(row[0], ignore)
    return Live(taken, frozenset(each for each in names if each.kind != "sequence" or each in others))


@dataclass
class _Proving:
    """One proof under way; scratch is there from the first replay on."""

    connection: psycopg.Connection[Any]
    settings: Settings
    target: Target
    facts: Facts
    live: Live
    ignore: tuple[Pattern, ...]
    tick: Callable[[], None]
    stack: ExitStack
    replays: int = 0
    _server: ScratchServer | None = None

    def proved(self, only: tuple[str, ...] | None, known: Mapping[str, Any] | None, way: Route) -> Proof:
        """Replay what is not known yet, compare, and explain what does not agree. Raises NotReplayed."""
        replayed = self._known(known, only)
        if replayed is None:
            revisions = self.facts.graph.heads if only is None else only
            shown = () if only is None else (only,)
            replays = tuple(self._replay(revisions, order, shown) for order in way.orders)
            replayed = Replayed(self.facts.graph, replays)
        equal = replayed.equal(self.live)
        empty = self._empty(table for each in equal for table in each.visited.rows or ())
        if only is not None:
            answer = judge_one(replayed, equal, empty, only)
        else:
            base = not self.facts.recorded
            answer = judge(replayed, self.live, equal, empty, may_be_base=base, is_whole=way.is_complete)
        if answer.outcome is Outcome.BASE and (doubt := doubt_of_base(replayed, self.live, self.facts)):
            return Proof(Outcome.FAILED, failure=f"{doubt}.", document=_document(replayed, None, only))
        proof = Proof(
            answer.outcome,
            answer.candidates,
            unvisited=way.unvisited,
            strangers=tuple(f"{each.schema}.{each.name}" for each in replayed.strangers(self.live)),
        )
        if answer.outcome is Outcome.NONE:
            proof, replayed = self._explained(proof, answer, replayed, only)
        return dataclasses.replace(proof, document=_document(replayed, proof.nearest, only))

    def _known(self, known: Mapping[str, Any] | None, only: tuple[str, ...] | None) -> Replayed | None:
        """Take what an earlier proof has seen, where that is enough. Raises NotReplayed, as it did."""
        if not known:
            return None
        of = None if known["only"] is None else tuple(known["only"])
        if known["failure"] is not None and of == only:
            raise NotReplayed(known["failure"])
        if known["failure"] is not None or (only is None and of is not None):
            return None
        replays = tuple(tuple(map(Visited.of, each)) for each in known["replays"])
        replayed = Replayed(self.facts.graph, replays)
        applied = replayed.bits(self.facts.graph.ancestors(self.facts.graph.heads if only is None else only))
        if replayed.is_unread(self.live) or all(each.applied != applied for each in replayed.states):
            return None
        return replayed

    def _replay(
        self, revisions: tuple[str, ...], order: tuple[str, ...], shown: Iterable[tuple[str, ...]]
    ) -> tuple[Visited, ...]:
        if self._server is None:
            server = scratch_server(self.settings, self.target.address, self.connection)
            self._server = self.stack.enter_context(server)
        self.replays += 1
        log("schema.proving", replay=self.replays, revisions=len(self.facts.graph.ancestors(revisions)))
        here = json.dumps(reading.encoded(self.live.snapshot))
        wanted = Replay(revisions, order, tuple(self.live.names), here, self.ignore, tuple(shown))
        return replay(self.settings, self.target, self._server, wanted, self.facts, self.connection, self.tick)

    def _explained(
        self, proof: Proof, answer: Answer, replayed: Replayed, only: tuple[str, ...] | None
    ) -> tuple[Proof, Replayed]:
        """Find the set with the fewest unlike facts, and say how what is live differs from it."""
        if answer.empty:
            nearest, tables = next(iter(answer.empty.items()))
            lines = tuple(f"{'.'.join(table)}: no rows here, rows in {written(nearest)}" for table in tables)
            return dataclasses.replace(proof, nearest=nearest, difference=lines), replayed
        near = replayed.nearest(self.live)
        if only is not None:
            applied = replayed.bits(self.facts.graph.ancestors(only))
            near = tuple(each for each in replayed.states if each.applied == applied)
        if not any(each.visited.snapshot for each in near):
            replayed = self._shown(replayed, near)
        states = {each.applied: each for each in replayed.states}
        here = replayed.comparable(self.live)
        shown = [(each, there) for state in near if (there := (each := states[state.applied]).visited.snapshot)]
        state, there = min(shown, key=lambda pair: unlike(here, pair[1]))
        lines = tuple(each.line("here", f"in {written(state.recorded)}") for each in difference(here, there))
        return dataclasses.replace(proof, nearest=state.recorded, difference=lines), replayed

    def _shown(self, replayed: Replayed, near: tuple[State, ...]) -> Replayed:
        """Replay once more, only as far as is needed, and look closely at those that are near."""
        first = near[0].visited
        at = next(n for n, each in enumerate(replayed.replays) if first in each)
        path = replayed.replays[at]
        here = [each for each in near if each.visited in path]
        order = tuple(each.revision for each in path if each.revision is not None)
        last = max(here, key=lambda each: each.size)
        visits = self._replay(last.recorded, order, [each.recorded for each in here])
        seen = {each.recorded: each for each in visits}
        again = tuple(seen.get(each.recorded, each) for each in path)
        return Replayed(replayed.graph, (again, *(each for n, each in enumerate(replayed.replays) if n != at)))

    def _empty(self, tables: Iterable[Table]) -> list[Table]:
        """Name those of these tables that hold no row here. Raises Denied, TryAgain."""
        found = []
        try:
            with self.connection.transaction():
                self.connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'")
                for table in sorted(set(tables)):
                    question = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {})").format(sql.Identifier(*table))
                    row = self.connection.execute(question).fetchone()
                    if row is not None and not row[0]:
                        found.append(table)
        except psycopg.errors.InsufficientPrivilege as error:
            raise Denied(
                f"Whether tables hold rows could not be seen: {error.diag.message_primary}. Nothing was changed.\n"
                "Grant SELECT on them, or use the role that owns them."
            ) from None
        except psycopg.errors.LockNotAvailable as error:
            raise TryAgain(f"A table could not be read: {error.diag.message_primary}. Nothing was changed.") from None
        return found


def _document(replayed: Replayed, nearest: tuple[str, ...] | None, only: tuple[str, ...] | None) -> Mapping[str, Any]:
    """Write what was seen, with the whole schema of the nearest set alone."""
    replays = [
        [(each if each.recorded == nearest else dataclasses.replace(each, snapshot=None)).document() for each in replay]
        for replay in replayed.replays
    ]
    return {"only": only, "replays": replays, "failure": None}


def _failed(error: NotReplayed, only: tuple[str, ...] | None) -> Mapping[str, Any]:
    """Write a failure that will be the same the next time; nothing where it may pass."""
    if not error.is_lasting:
        return {}
    kept = {name: error.failure.get(name) for name in ("kind", "error", "sqlstate", "migration")}
    return {"only": only, "replays": [], "failure": kept}
