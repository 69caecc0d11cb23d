"""Replay the image's migrations in a scratch database, and hear what is there after each of them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from alembic_entrypoint.address import Address
from alembic_entrypoint.comparison import Visited
from alembic_entrypoint.errors import TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.lock import hold
from alembic_entrypoint.logs import log
from alembic_entrypoint.naming import misled, searched
from alembic_entrypoint.observe import request
from alembic_entrypoint.postgres.scratch import ScratchServer
from alembic_entrypoint.postgres.session import ALIVE
from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.facts import Snapshot
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.schema.snapshot import LEDGER
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target, place_from_here
from alembic_entrypoint.wait import connected
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import Message, Replay, Request, ended_with

#: Seconds between two lines that say how far a replay is.
TOLD_AGAIN = 5.0
#: Kinds of failure that say something of the migrations, and SQLSTATEs that do not.
_LASTING = ("confined", "error", "exit", "import", "unusable")
_PASSING = ("08", "53", "57", "58000", "58030")
#: What the server has not, such as an extension (58P01 before 15), and may be given.
_LACKING = ("0A000", "58P01")
#: A name means something else in scratch than on the target: no migration's failure.
_MISLED = "misled"
_UNDEFINED = ("3F000", "42704", "42883", "42P01")
_DUPLICATE = ("42P06", "42710")


class NotReplayed(Exception):
    """The migrations do not run on an empty database, or not confined; the message names migration and error."""

    def __init__(self, failure: Message) -> None:
        self.failure = failure
        migration = failure.get("migration")
        #: the revision that failed; None where `env.py` did
        self.revision: str | None = migration["revision"] if migration else None
        who = f"Migration {self.revision} ({migration['path']})" if migration else "env.py, or what it imports,"
        self.is_confined = failure["kind"] == "confined"
        if self.is_confined:
            super().__init__(f"{who} cannot be replayed: it {failure['error']}. It was ended before it did so.")
        elif failure["kind"] == _MISLED:
            super().__init__(f"{failure['error']}.")
        else:
            unmade = failure.get("unmade") or []
            super().__init__(
                f"{who} failed in a replay, on an empty database: {failure['error']}"
                + "".join(f"\nThe target has the {each}." for each in unmade)
                + ("\nInstall that there, or set ALEMBIC_ENTRYPOINT_SCRATCH to where it is." if unmade else "")
            )

    @property
    def may_pass(self) -> bool:
        """Tell whether it says something of the moment, such as a full disk, and nothing of the migrations."""
        return str(self.failure.get("sqlstate") or "").startswith(_PASSING)

    @property
    def is_lasting(self) -> bool:
        """Tell whether the next replay would end in the same way."""
        may_be_given = self.failure.get("sqlstate") in _LACKING or self.failure.get("unmade")
        return self.failure["kind"] in _LASTING and not self.may_pass and not may_be_given


@dataclass(frozen=True)
class Nearest:
    """The whole schema of one set that was visited."""

    recorded: tuple[str, ...]
    snapshot: Snapshot

    def shown(self, visited: Visited) -> Visited:
        """Add the schema to the visit that it belongs to."""
        is_it = visited.recorded == self.recorded
        return dataclasses.replace(visited, snapshot=self.snapshot) if is_it else visited


def replay(
    settings: Settings,
    target: Target,
    server: ScratchServer,
    wanted: Replay,
    facts: Facts,
    connection: psycopg.Connection[Any],
    tick: Callable[[], None] = lambda: None,
) -> tuple[Visited, ...]:
    """Replay once, in a scratch database of its own; `connection` leads to the target, and reads only.

    Schemas on the search path are made in scratch first: without them no migration would fail, and its tables would be
    elsewhere. Other schemas, and extensions, which an administrator has made on the target are made when a migration
    lacks them, and the replay starts again, as it does without those that a migration makes itself: each time with
    something that was not tried, so that it comes to an end. `tick` is called twice a second. Raises NotReplayed, and
    what `server` raises.
    """
    made = set(searched(facts))
    tried: set[Name] = set()
    while True:
        names: set[Name] = set()
        visits: list[Visited] = []
        with Worker(settings.python) as worker, server.database() as address:  # the one boots while the other is made
            unmade = _administer(address, settings, connection, made)
            try:
                for each in _visits(worker, settings, target, address, wanted, tick):
                    if isinstance(each, Nearest):
                        visits = [each.shown(visit) for visit in visits]
                    else:
                        names.update(each.added)
                        names.difference_update(each.removed)
                        visits.append(each)
                if reason := misled(visits, facts):
                    raise NotReplayed({"kind": _MISLED, "error": reason})
                return tuple(visits)
            except NotReplayed as error:
                change = _lacking(error, _on_target(connection), names, made, tried, facts)
                if not change:
                    raise NotReplayed({**error.failure, "unmade": unmade}) from None
                made ^= change
                tried |= change
                log("schema.proving", note="it starts again", made=sorted(each.name or each.schema for each in made))


def _lacking(
    error: NotReplayed, there: frozenset[Name], names: set[Name], made: set[Name], tried: set[Name], facts: Facts
) -> set[Name]:
    """Find what to make before the next try, or to make no more, as the migrations make it themselves."""
    if error.failure["kind"] == _MISLED:
        on_path = {Name("schema", each, "") for each in facts.search_path}
        return (on_path & there) - names - made - tried
    sqlstate, text = error.failure.get("sqlstate"), str(error.failure["error"])
    if sqlstate in _DUPLICATE:
        return {each for each in made if f'"{each.name or each.schema}"' in text}
    if sqlstate not in _UNDEFINED:
        return set()
    lacking = {each for each in there - names - made - tried if each.schema != "public"}
    return {each for each in lacking if f'"{each.name or each.schema}"' in text} or {
        each for each in lacking if each.kind == "extension"
    }


def _on_target(connection: psycopg.Connection[Any]) -> frozenset[Name]:
    """Name schemas and extensions of the target."""
    row = connection.execute(reading.NAMES).fetchone()
    assert row is not None
    names = reading.names_of(row[0], [LEDGER])
    return frozenset(each for each in names if each.kind in ("schema", "extension"))


def _administer(
    address: Address, settings: Settings, connection: psycopg.Connection[Any], made: set[Name]
) -> list[str]:
    """Make what an administrator has made on the target; say what cannot be made, for the migrations to fail of."""
    unmade: list[str] = []
    if not made:
        return unmade
    homes = dict(
        connection.execute(
            "SELECT e.extname, n.nspname FROM pg_catalog.pg_extension AS e "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace"
        ).fetchall()
    )
    with connected(address, settings.wait_timeout) as scratch:
        for each in sorted(made, key=lambda name: (name.kind != "schema", name)):
            schema = homes.get(each.name, "public") if each.kind == "extension" else each.schema
            statements = [sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))]
            if each.kind == "extension":
                create = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {} CASCADE")
                statements.append(create.format(sql.Identifier(each.name), sql.Identifier(schema)))
            try:
                for statement in statements:
                    scratch.execute(statement)
            except psycopg.Error as error:
                reason = error.diag.message_primary or str(error)
                unmade.append(f"{each.kind} {each.name or each.schema}, which cannot be made in scratch: {reason}")
    return unmade


def _visits(
    worker: Worker, settings: Settings, target: Target, scratch: Address, wanted: Replay, tick: Callable[[], None]
) -> Iterator[Visited | Nearest]:
    """Hold scratch's token, and have a worker replay. Raises NotReplayed."""
    # The worker ends before its database is dropped.
    with connected(scratch, settings.wait_timeout, application_name="alembic-entrypoint proving") as connection, worker:
        lock = hold(connection)
        if lock is None:
            raise TryAgain("The scratch database is locked by somebody else. Nothing was changed.")
        worker.order(_order(settings, target, scratch, wanted, lock.token, _variables(connection, scratch)))
        progress = _Progress(tick)
        is_done = False
        for message in worker.messages(progress.tick):
            if message["said"] == "visited":
                progress.message = message
                yield Visited.of(message)
            elif message["said"] == "nearest":
                yield Nearest(tuple(message["recorded"]), reading.decoded(message["snapshot"]))
            elif message["said"] == "failed":
                raise NotReplayed(message)
            elif message["said"] == "done":
                is_done = True
        if not is_done:
            raise NotReplayed(_died(worker, progress))


def _variables(connection: psycopg.Connection[Any], scratch: Address) -> dict[str, str | None]:
    """Say with libpq's own variables how our session in scratch is logged in; what none is needed for is unset."""
    others = ("application_name", "client_encoding", "connect_timeout", "servicefile")
    found: dict[str, str | None] = {}
    for each in connection.pgconn.info:
        name, keyword = (each.envvar or b"").decode(), each.keyword.decode()
        if not name or keyword in others:
            continue
        # A service would have the last word, and an address that we have looked up is not for other hosts.
        is_looked_up = keyword == "hostaddr" and not {keyword, name} & {*scratch.parameters, *os.environ}
        is_left_out = keyword == "service" or is_looked_up
        found[name] = None if is_left_out or not each.val or each.val == each.compiled else os.fsdecode(each.val)
    return found


def _order(
    settings: Settings,
    target: Target,
    scratch: Address,
    wanted: Replay,
    token: int,
    variables: dict[str, str | None],
) -> Request:
    session = {**ALIVE, "application_name": "alembic-entrypoint replaying"}
    order = request("replay", settings, target, token=token, session=session, replay=wanted, variables=variables)
    places = tuple(dict.fromkeys([*target.places, place_from_here(scratch)]))
    return dataclasses.replace(order, places=places, parameters=dict(scratch.login), lent=tuple(scratch.lent))


def _died(worker: Worker, progress: _Progress) -> Message:
    after = progress.message["revision"] if progress.message else None
    status = worker.exit_status or 0
    error = f"the worker ended without a word, with status {status}, after {after or 'nothing'}"
    return {"kind": "died", "error": ended_with(status, error), "migration": None}


class _Progress:
    """How far a replay is: one line every few seconds."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._told = time.monotonic()
        self.message: Message | None = None

    def tick(self) -> None:
        self._tick()
        if self.message and time.monotonic() - self._told > TOLD_AGAIN:
            self._told = time.monotonic()
            log("schema.proving", **{name: self.message[name] for name in ("revision", "n", "of")})
