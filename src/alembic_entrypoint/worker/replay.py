"""Replay migrations in scratch, and tell the parent what is there after each of them."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.difference import unlike
from alembic_entrypoint.schema.facts import Snapshot
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.worker.aside import read_schema
from alembic_entrypoint.worker.confined import End, confine
from alembic_entrypoint.worker.connections import FenceError, Policy, Steps, ask, check_steps, setting_statement
from alembic_entrypoint.worker.messages import Message, Replay, Request
from alembic_entrypoint.worker.names import Names
from alembic_entrypoint.worker.parent import end_at_once
from alembic_entrypoint.worker.variables import lead_to_scratch


class Replaying:
    """One replay: what was executed, and what the last look saw."""

    def __init__(self, request: Request, parent: Any, policy: Policy, work: Any) -> None:
        assert request.replay is not None
        self.asked: Replay = request.replay
        self._parent = parent
        self._policy = policy
        #: connections since the last look
        self._opened = 0
        self._work = work
        self._live = frozenset(Name(*each) for each in self.asked.live)
        self._live_objects = Counter(each.schema for each in self._live if _is_object(each))
        self._here = reading.decoded(json.loads(self.asked.here)) if self.asked.here else None
        #: the set with the fewest facts that are unlike the live ones, with their number and its schema
        self._nearest: tuple[int, tuple[str, ...], Snapshot] | None = None
        self._shown = {tuple(sorted(each)) for each in self.asked.shown}
        self._ignore = self.asked.ignore
        self._statements = 0
        self._there = Names(self._ignore)
        #: those that must be live, too; a sequence goes with its column, most often
        self._names: set[Name] = set()
        #: schemas and extensions that are there before the first migration
        self._surroundings: frozenset[Name] = frozenset()
        self._objects: Counter[str] = Counter()

    def connected(self) -> None:
        """Note that somebody connects to scratch."""
        self._opened += 1

    def executed(self) -> None:
        """Count a statement; those of Alembic and of ours are sent between migrations."""
        self._statements += 1

    def end(self, what: str) -> NoReturn:
        """End the process where it stands, having said why."""
        migration = self._work.migration
        self._parent.tell("failed", kind="confined", error=what, sqlstate=None, migration=migration, places=[])
        end_at_once()

    def leave_out(self, schema: str, version_table: str) -> None:
        """Leave the version table out of what is told."""
        self._ignore = (*self._ignore, (schema, version_table))
        self._there = Names(self._ignore)

    def watched(self, step: Any, n: int, of: int) -> Any:
        """Tell when a migration begins, and count what it executes."""
        from alembic_entrypoint.worker.environment import shown

        run, revision = step.migration_fn, step.revision

        @functools.wraps(run)
        def watched(**keys: Any) -> None:
            self._work.migration = {"revision": revision.revision, "path": shown(revision.path), "n": n, "of": of}
            self._statements = 0
            run(**keys)
            self._work.migration["executed"] = self._statements > 0

        step.migration_fn = watched
        return step

    def visit(self, context: Any, recorded: Iterable[str], seen: Message | None = None) -> None:
        """Tell what is recorded and what is there now: after a migration, or before the first with what was `seen`."""
        connection, migration = context.connection, self._work.migration or {}
        recorded = tuple(sorted(recorded))
        executed = migration.get("executed", True)
        added, removed = self._changes(connection) if executed else ([], [])
        if not migration:
            self._surroundings = frozenset(each for each in self._names if not _is_object(each))
        told: Message = {"digest": None, "rows": None, "snapshot": None, "unlike": None}
        is_shown = recorded in self._shown
        if is_shown or self._is_like_live():
            snapshot = self._snapshot(connection)
            told = {
                "digest": snapshot.digest,
                "rows": self._rows(connection),
                "snapshot": reading.encoded(snapshot) if is_shown else None,
                "unlike": self._unlike(recorded, snapshot),
            }
        self._parent.tell(
            "visited",
            recorded=recorded,
            revision=migration.get("revision"),
            executed=executed,
            n=migration.get("n", 0),
            of=migration.get("of", 0),
            added=added,
            removed=removed,
            search_path=seen["search_path"] if seen else (),
            version_schema=seen["version_table"]["resolved_schema"] if seen else None,
            **told,
        )

    def tell_nearest(self) -> None:
        """Tell the whole schema of the set that is nearest to what is live, of those with the same names."""
        if self._nearest is not None:
            _, recorded, snapshot = self._nearest
            self._parent.tell("nearest", recorded=recorded, snapshot=reading.encoded(snapshot))

    def _unlike(self, recorded: tuple[str, ...], there: Snapshot) -> int | None:
        """Count the facts that are unlike the live ones, in the schemas that were touched so far."""
        if self._here is None:
            return None
        made = self._names - self._surroundings
        here = {
            thing: told
            for thing, told in self._here.facts.items()
            if (Name(thing.kind.value, thing.schema, thing.name) in made or thing.schema in self._objects)
            and Name(thing.kind.value, thing.schema, thing.name) not in self._surroundings
        }
        count = unlike(Snapshot(there.major, here), there)
        if count and (self._nearest is None or count <= self._nearest[0]):
            self._nearest = count, recorded, there
        return count

    def _changes(self, connection: Any) -> tuple[list[Name], list[Name]]:
        """Give the names that have come and gone since the last visit."""
        is_alone = not self._opened and len(self._policy.made) <= 1
        self._opened = 0
        added, removed = self._there.changes(connection, is_alone=is_alone)
        self._names -= removed
        self._names.update(filter(_counts, added))
        self._objects.update(each.schema for each in added if _is_object(each))
        self._objects.subtract(each.schema for each in removed if _is_object(each))
        return sorted(added), sorted(removed)

    def _is_like_live(self) -> bool:
        """Tell whether the live schema has the same names, in the schemas that were touched so far."""
        counts = all(self._live_objects[schema] == count for schema, count in self._objects.items())
        return counts and self._names - self._surroundings <= self._live

    def _snapshot(self, connection: Any) -> Snapshot:
        snapshot = read_schema(connection).without(self._ignore)
        there = {(each.kind, each.schema, each.name) for each in self._surroundings}
        facts = {
            thing: told
            for thing, told in snapshot.facts.items()
            if (thing.kind.value, thing.schema, thing.name) not in there
        }
        return Snapshot(snapshot.major, facts)

    def _rows(self, connection: Any) -> list[tuple[str, str]]:
        """Name the tables that hold a row."""
        return reading.with_rows(lambda statement: ask(connection, statement)[0], self._ignore)


def _counts(name: Name) -> bool:
    """Tell whether a name must be live, too."""
    return name.kind != "sequence"


def _is_object(name: Name) -> bool:
    return name.kind not in ("schema", "extension", "sequence")


def _steps(token: int, session: Mapping[str, str], end: End) -> Steps:
    """See, before a connection's first statement, that it leads to scratch."""
    try:
        yield from check_steps(token)
    except FenceError:
        end("reaches a database that is not its scratch database")
    yield setting_statement(session)


def run(request: Request, parent: Any, policy: Policy, work: Any, environment: Any) -> None:
    """Run `env.py`, and in it the migrations; `confined` has been called before anything of the user's was imported."""
    from alembic_entrypoint.worker.environment import look
    from alembic_entrypoint.worker.failures import Unusable

    replaying: Replaying = work.replaying
    if environment.configured_place and request.is_given and policy.places is not None:
        policy.places.add(environment.configured_place)

    def at_migrations(recorded: tuple[str, ...], context: Any) -> list[Any]:
        if recorded:
            raise Unusable(f"env.py records {', '.join(recorded)} in an empty database before it migrates")
        context._ensure_version_table()
        seen = look(context, ())
        table = seen["version_table"]
        replaying.leave_out(table["resolved_schema"], table["name"])
        asked = replaying.asked
        steps: list[Any] = environment.script._upgrade_revs(asked.revisions, ()) if asked.revisions else []
        if asked.order:
            steps.sort(key=lambda step: asked.order.index(step.revision.revision))
        replaying.visit(context, (), seen)

        def applied(*, ctx: Any, heads: Any, **_: Any) -> None:
            replaying.visit(ctx, heads)

        context.on_version_apply_callbacks = (*context.on_version_apply_callbacks, applied)
        return [replaying.watched(step, n, len(steps)) for n, step in enumerate(steps, 1)]

    environment.run(at_migrations, dont_mutate=True)
    replaying.tell_nearest()


def prepare(request: Request, parent: Any, policy: Policy, work: Any) -> None:
    """Confine this process, and send every connection to scratch."""
    assert request.token is not None
    work.replaying = Replaying(request, parent, policy, work)
    policy.target = request.parameters
    policy.places = lead_to_scratch(request)
    end, token = work.replaying.end, request.token

    def steps(_: bool) -> Steps:
        work.replaying.connected()
        return _steps(token, request.session, end)

    policy.steps = steps
    confine(policy, end, work.replaying.executed)
