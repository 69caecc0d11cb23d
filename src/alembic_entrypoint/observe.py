"""Look: what the image ships, and what the database records. Changes nothing."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from alembic_entrypoint.address import Address, Place
from alembic_entrypoint.errors import Denied, Misconfigured, TryAgain
from alembic_entrypoint.facts import Facts, Graph, Migration, VersionTable
from alembic_entrypoint.logs import hide, log
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import Message, Request


class NeedsWriting(Exception):
    """`env.py` writes before it migrates, so that it can be run only under the lock."""


@dataclass(frozen=True)
class Target:
    """The database that is migrated, and whether a setting named it."""

    address: Address
    is_given: bool
    #: what `env.py` calls the same database, learned while observing
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a look gave."""

    facts: Facts
    target: Target


class WorkerFailed(Exception):
    """The worker said that something failed, or died without a word."""

    def __init__(self, message: Message, graph: Graph | None, unloadable: tuple[str, ...]) -> None:
        super().__init__(message.get("error"))
        self.message = message
        self.graph = graph
        self.unloadable = unloadable


def find_target(settings: Settings) -> Target:
    """Take the database that a setting names, else ask `env.py` where it would connect. Raises Misconfigured."""
    address = settings.database_url
    if address is None:
        return Target(_ask(settings), is_given=False)
    keep_secret(address)
    return Target(address, is_given=True, places=(place_from_here(address),))


def keep_secret(address: Address) -> None:
    """Keep a password out of everything that is logged from now on."""
    hide(
        address.spellings_of_password(),
        names=(address.user or "", address.place.dbname, *address.place.hosts),
    )


def place_from_here(address: Address) -> Place:
    """Name the place as libpq does here, where `PG…` variables fill what the URL leaves out."""
    from alembic_entrypoint.address import place_of

    return place_of(address.parameters, os.environ)


def request(order: str, settings: Settings, target: Target | None, **keys: Any) -> Request:
    """Make a request of what every order needs."""
    return Request(
        order,
        settings.target,
        config=settings.config,
        section=settings.section,
        x=settings.x,
        parameters=dict(target.address.parameters) if target else None,
        driver=target.address.driver if target else None,
        is_given=bool(target and target.is_given),
        connect_timeout=settings.wait_timeout,
        **keys,
    )


def _ask(settings: Settings) -> Address:
    with Worker(request("ask", settings, None), settings.python) as worker:
        for message in worker.messages():
            if message["said"] == "asked":
                address = Address(message["parameters"], message["driver"])
                keep_secret(address)
                log("settings.asked", database=str(address))
                return address
            if message["said"] == "failed":
                raise misconfigured(WorkerFailed(message, None, ()))
    raise misconfigured(WorkerFailed(_died(worker), None, ()))


def observe(settings: Settings, target: Target, *, is_cleaning: bool = False) -> Seen:
    """Look at image and database through `env.py`. Raises NeedsWriting, Misconfigured, Denied, TryAgain.

    Every connection is sent to the target, to learn which place reaches `configure()`; an `env.py` that cannot bear
    that is run without, and then with only that place redirected. With `is_cleaning` stale bytecode in the migrations'
    folders, which only Alembic's configuration names, is removed first.
    """
    try:
        return _look(settings, target, (), is_cleaning=is_cleaning)
    except WorkerFailed as first:
        if first.message.get("kind") not in ("error", "exit"):
            raise _translated(first) from None
        try:
            seen = _look(settings, target, (), is_redirecting=False)
            if seen.target.places[-1:] == (place_from_here(target.address),):
                return seen
            return _look(settings, target, seen.target.places)
        except WorkerFailed:
            raise _translated(first) from None


def _look(settings: Settings, target: Target, places: tuple[Place, ...], **how: bool) -> Seen:
    order = request("observe", settings, target, places=places, **how)
    loaded: Message = {"migrations": [], "unloadable": []}
    observed: Message | None = None
    with Worker(order, settings.python) as worker:
        for message in worker.messages():
            if message["said"] == "cleaned":
                log("bytecode.removed", count=len(message["removed"]), removed=message["removed"])
            elif message["said"] == "loaded":
                loaded = message
            elif message["said"] == "observed":
                observed = message
            elif message["said"] == "failed":
                raise WorkerFailed(message, graph_of(loaded), tuple(loaded["unloadable"]))
    if observed is None:
        raise WorkerFailed(_died(worker), graph_of(loaded), tuple(loaded["unloadable"]))
    return Seen(facts_of(observed, settings), _with_places(target, observed))


def _with_places(target: Target, observed: Message) -> Target:
    """Add what the configuration and `env.py` call the target."""
    found = [*target.places]
    for each in (observed["configured_place"], observed["place"]):
        if each is not None:
            found.append(Place(tuple(each["hosts"]), tuple(each["ports"]), each["dbname"]))
    return dataclasses.replace(target, places=tuple(dict.fromkeys(found)))


def _died(worker: Worker) -> Message:
    return {
        "kind": "died",
        "error": f"the worker ended without a word, with status {worker.exit_status}",
        "traceback": "\n".join(worker.last_output),
    }


def _translated(error: WorkerFailed) -> Exception:
    """Turn a failure while looking into the error that ends the run."""
    if error.message.get("kind") == "read_only":
        return NeedsWriting()
    return misconfigured(error)


def misconfigured(error: WorkerFailed) -> Exception:
    """Say why `env.py` could not be run: 78, or 77 and 75 where the database is what stood in the way."""
    message = error.message
    text, kind, sqlstate = str(message.get("error")), message.get("kind"), str(message.get("sqlstate") or "")
    if kind == "unusable":
        return Misconfigured(f"This image cannot be migrated as it is: {text}.")
    if kind == "import":
        return Misconfigured(
            f"env.py or a migration imports what is not installed: {text}, in {message.get('interpreter')}.\n"
            "Install it in the image; if the app's packages are elsewhere, set ALEMBIC_ENTRYPOINT_PYTHON to the "
            "interpreter that has them."
        )
    if kind == "fence":
        return TryAgain(f"The lock was lost while the migrations were being prepared: {text}. Nothing was changed.")
    if sqlstate.startswith("42501"):
        return Denied(f"The role lacks a right: {text}\nGrant it, or use a role that has it.")
    if sqlstate[:2] in ("08", "57", "53"):
        return TryAgain(f"The connection was lost while looking: {text}. Nothing was changed.")
    trace = str(message.get("traceback") or "").rstrip()
    return Misconfigured(f"env.py failed before any migration ran: {text}. Nothing was changed.\n{trace}")


def graph_of(message: Message) -> Graph:
    """Build the graph from what the worker said."""
    return Graph(
        tuple(
            Migration(
                each["revision"],
                tuple(each["parents"]),
                tuple(each["depends_on"]),
                tuple(each["replaces"]),
                each["oldest_compatible"],
                each["path"],
                each["doc"],
            )
            for each in message["migrations"]
        )
    )


def facts_of(observed: Message, settings: Settings) -> Facts:
    """Build the facts from what the worker said. Raises Misconfigured where the target means nothing."""
    graph = graph_of(observed)
    return Facts(
        graph=graph,
        unloadable=tuple(observed["unloadable"]),
        target=settings.target,
        target_revisions=_target_revisions(settings.target, graph, observed),
        recorded=tuple(sorted(observed["recorded"])),
        version_table=VersionTable(**observed["version_table"]),
        tables=tuple(each for each in observed["tables"] if not is_ignored(each, settings.ignore)),
    )


def _target_revisions(target: str, graph: Graph, observed: Message) -> tuple[str, ...]:
    if target in ("head", "heads"):
        return graph.heads
    if observed["target_revisions"] is not None:
        return tuple(observed["target_revisions"])
    if graph.migrations and target not in graph.known:
        raise Misconfigured(
            f"ALEMBIC_ENTRYPOINT_TARGET is {target!r}, which no migration in this image has. "
            "It must be head, heads, <branch>@head or one exact revision."
        )
    return (target,)


def is_ignored(table: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a table, as `schema.name`, belongs to others."""
    return any(fnmatch.fnmatchcase(table, pattern) for pattern in patterns)


def recorded_now(connection: psycopg.Connection[Any], table: VersionTable) -> tuple[str, ...]:
    """Read what is recorded and committed, without `env.py`."""
    try:
        rows = connection.execute(
            sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(table.resolved_schema, table.name))
        )
    except psycopg.errors.UndefinedTable:
        return ()
    return tuple(sorted(row[0] for row in rows))


def logged(facts: Facts) -> Mapping[str, Any]:
    """What a log line says of the facts."""
    return {
        "recorded": list(facts.recorded),
        "heads": list(facts.graph.heads),
        "pending": len(facts.pending),
        "version_table": str(facts.version_table),
    }
