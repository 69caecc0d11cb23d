"""Look: what the image ships, and what the database records. Changes nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from alembic_entrypoint.address import TLS_PARAMETERS, Address, Place
from alembic_entrypoint.errors import Denied, Ended, Misconfigured, TryAgain
from alembic_entrypoint.facts import Facts, VersionTable
from alembic_entrypoint.heard import facts_of
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.server import SHARED
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target, given, keep_secret, named
from alembic_entrypoint.wait import await_database
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import Message, Request, ended_with

#: Times WAIT_TIMEOUT, and seconds at the least, in which env.py must come to its migrations.
PATIENCE, SHORTEST_PATIENCE = 5, 10.0


#: Kinds of failure of an `env.py` that may need what was kept from it.
NEEDY = ("error", "exit")


class NeedsWriting(Exception):
    """`env.py` writes before it migrates, so that it can be run only under the lock."""

    def __init__(self, target: Target) -> None:
        super().__init__(str(target.address))
        self.target = target


@dataclass(frozen=True)
class Seen:
    """What a look gave, and the worker that looked, where it waits to migrate."""

    facts: Facts
    target: Target
    worker: Worker | None = None


class WorkerFailed(Exception):
    """The worker said that something failed, or died without a word."""

    def __init__(self, message: Message, observed: Message | None = None) -> None:
        super().__init__(message.get("error"))
        self.message = message
        self.observed = observed

    @property
    def kind(self) -> str:
        """What the error means, as `worker/failures.py` tells it."""
        return str(self.message.get("kind"))

    @property
    def places(self) -> frozenset[Place]:
        """Where `env.py` connected to before it failed."""
        return frozenset(map(_place, self.message.get("places", ())))


def find_target(settings: Settings) -> Target:
    """Take the database that a setting names, else ask `env.py` where it would connect. Raises Misconfigured."""
    return given(settings) or named(_ask(request("ask", settings, None), settings), settings, is_given=False)


def ask_credentials(settings: Settings, target: Target) -> Mapping[str, str]:
    """Ask `env.py` with what it logs in to the target, beyond what the address names. Raises Ended."""
    order = request("ask", settings, target if target.is_given else None, places=target.places)
    asked, ours = _ask(order, settings).parameters, target.address.parameters
    if "user" in ours and ours["user"] != asked.get("user"):
        raise Misconfigured(f"it connects as {asked.get('user')}")
    names = (TLS_PARAMETERS | {"user", "password", "passfile"}) - ours.keys()
    if not names & asked.keys():
        raise Misconfigured("it connects without one")
    return {name: asked[name] for name in names & asked.keys()}


def request(order: str, settings: Settings, target: Target | None, **keys: Any) -> Request:
    """Make a request of what every order needs."""
    return Request(
        order,
        settings.target,
        config=settings.config,
        section=settings.section,
        x=settings.x,
        parameters=dict(target.address.login) if target else None,
        lent=tuple(target.address.lent) if target else (),
        driver=target.address.driver if target else None,
        is_given=bool(target and target.is_given),
        connect_timeout=settings.wait_timeout,
        **keys,
    )


def _ask(order: Request, settings: Settings) -> Address:
    configured = ""
    with Worker(settings.python) as worker:
        worker.order(order)
        for message in worker.messages(patience(settings)):
            if message["said"] == "configured":
                configured = message["url"]
            elif message["said"] == "asked":
                address = Address(message["parameters"], message["driver"])
                keep_secret(address)
                log("settings.asked", database=str(address))
                return address
            elif message["said"] == "failed":
                raise _nothing_named(misconfigured(WorkerFailed(message)), configured)
    raise _nothing_named(misconfigured(WorkerFailed(died(worker))), configured)


def _nothing_named(error: Ended, configured: str) -> Ended:
    """Add what a person can do who has given no URL, which is what may be wrong."""
    found = f" (its sqlalchemy.url: {configured})" if configured else ""
    return type(error)(
        f"{error.message}\nNo setting names the database, so env.py was asked{found}. "
        "Set DATABASE_URL to it, or mend what env.py reads."
    )


def observe(
    settings: Settings,
    target: Target,
    *,
    is_cleaning: bool = False,
    stays: bool = False,
    check: Callable[[], None] = lambda: None,
    booting: Worker | None = None,
) -> Seen:
    """Look at image and database through `env.py`. Raises NeedsWriting, Misconfigured, Denied, TryAgain.

    Where a setting names the target, every connection is sent there, to learn which place reaches `configure()`; an
    `env.py` that cannot bear that is run without, and then with only that place redirected. Where `env.py` was asked,
    what reaches `configure()` is the target. With `is_cleaning` stale bytecode in the migrations' folders, which only
    Alembic's configuration names, is removed first. With `stays` the worker is left to wait for what comes next.
    `check` is called twice a second, and ends the look with what it raises. `booting` is a worker that was started
    ahead, and has no order yet.
    """
    order = request(
        "observe",
        settings,
        target,
        places=target.places,
        is_redirecting=target.is_given,
        is_cleaning=is_cleaning,
        stays=stays,
    )
    try:
        return look(order, settings, target, check, booting)
    except WorkerFailed as first:
        if first.kind == "read_only":
            raise _needs_writing(first, order, settings, target) from None
        if not target.is_given or first.kind not in NEEDY:
            raise misconfigured(first) from None
        return _observe_unredirected(first, order, settings, target)


def _observe_unredirected(first: WorkerFailed, order: Request, settings: Settings, target: Target) -> Seen:
    """Learn the target's place from an `env.py` that works only where every connection goes where it says."""
    try:
        seen = look(dataclasses.replace(order, is_redirecting=False), settings, target)
        if seen.target.places == target.places:
            return seen
        if seen.worker is not None:
            seen.worker.end()
        return look(dataclasses.replace(order, is_learned=True, places=seen.target.places), settings, target)
    except WorkerFailed as second:
        if second.kind == "read_only":
            raise NeedsWriting(_reached(target, second.observed, settings)) from None
        raise misconfigured(first) from None


def _needs_writing(first: WorkerFailed, order: Request, settings: Settings, target: Target) -> NeedsWriting:
    """Learn the target's place, where that can be: it is the only one that is asked for, and nothing answers there.

    Where something answers it may be another database, which is to be left alone.
    """
    unknown = first.places - {*target.places}
    if first.observed is not None or not target.is_given or len(unknown) != 1:
        return NeedsWriting(_reached(target, first.observed, settings))
    try:
        look(dataclasses.replace(order, is_redirecting=False, stays=False), settings, target)
    except WorkerFailed as second:
        if not unknown & second.places:
            return NeedsWriting(dataclasses.replace(target, places=(*target.places, *unknown)))
    return NeedsWriting(target)


def look(
    order: Request,
    settings: Settings,
    target: Target,
    check: Callable[[], None] = lambda: None,
    booting: Worker | None = None,
) -> Seen:
    """Run one worker that looks, for as long as our patience lasts. Raises WorkerFailed, Misconfigured."""
    observed: list[Message] = []
    with ExitStack() as stack:
        worker = stack.enter_context(booting or Worker(settings.python))
        worker.order(order)
        for message in worker.messages(patience(settings, check, observed)):
            if message["said"] == "cleaned":
                log_cleaned(message)
            elif message["said"] == "observed":
                observed.append(message)
            elif message["said"] == "loaded":
                observed[-1:] = [_completed(each, message) for each in observed[-1:]]
            elif message["said"] == "failed":
                raise WorkerFailed(message, *observed[-1:])
        if not observed or observed[-1]["migrations"] is None:  # a fork has looked, and what loads them ended
            raise WorkerFailed(died(worker))
        facts, reached = facts_of(observed[-1], settings), _reached(target, observed[-1], settings)
        if not worker.is_idle:
            return Seen(facts, reached)
        stack.pop_all()
        worker.graph = None if observed[-1]["moved"] else facts.graph
        return Seen(facts, reached, worker)


def _completed(observed: Message, loaded: Message) -> Message:
    """Add to what a fork observed what was loaded beside it."""
    inputs = observed["inputs"]
    variables = sorted({*inputs["variables"], *loaded["variables"]})
    told = {} if observed["moved"] else {name: loaded[name] for name in ("migrations", "unloadable")}
    return {**observed, **told, "inputs": {**inputs, "variables": variables}}


def log_cleaned(cleaned: Mapping[str, Any]) -> None:
    """Say which stale bytecode was removed, and which was not: the worker runs none of it all the same."""
    if any(cleaned[name] for name in ("removed", "kept", "left_alone")):
        level = "warning" if cleaned["kept"] else "info"
        others = {name: cleaned[name] or None for name in ("kept", "left_alone")}
        log("bytecode.removed", level=level, count=len(cleaned["removed"]), removed=cleaned["removed"], **others)


def patience(
    settings: Settings, check: Callable[[], None] = lambda: None, observed: Sequence[Message] = ()
) -> Callable[[], None]:
    """Make a tick that says once that `env.py` takes long, and ends the wait for it. Raises Misconfigured.

    `observed` is empty for as long as it has not come to its migrations.
    """
    limit = max(SHORTEST_PATIENCE, PATIENCE * settings.wait_timeout)
    started = time.monotonic()
    told: list[float] = []

    def tick() -> None:
        check()
        elapsed = time.monotonic() - started
        if elapsed > limit:
            what = "env.py did not come to its migrations"
            if observed:
                what = "env.py came to its migrations, and it or the import of one of them did not end"
            raise Misconfigured(
                f"{what} within {limit:g} s, so it was ended. Nothing was changed.\n"
                "It may wait for something that never comes. If it only needs longer: ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT, "
                f"of which this is {PATIENCE} times as much, and {SHORTEST_PATIENCE:g} s at the least."
            )
        if elapsed > SHORTEST_PATIENCE / 2 and not told:
            told.append(elapsed)
            log("schema.observing", elapsed=round(elapsed, 1), limit=limit, note="env.py is still under way")

    return tick


def _reached(target: Target, observed: Message | None, settings: Settings) -> Target:
    """Add what the configuration and `env.py` call the target; where `env.py` was asked, what it reached is it."""
    if observed is None:
        return target
    found = [_place(each) for each in (observed["configured_place"], observed["place"]) if each is not None]
    if target.is_given:
        return dataclasses.replace(target, places=tuple(dict.fromkeys([*target.places, *found])))
    if found[-1] in target.places:
        return target
    elsewhere = named(Address(observed["parameters"], observed["driver"]), settings, is_given=False)
    log("settings.asked", database=str(elsewhere.address), note="env.py connects elsewhere first")
    return elsewhere.at(await_database(elsewhere.address, settings.wait_timeout).address)


def _place(message: Message) -> Place:
    return Place(tuple(message["hosts"]), tuple(message["ports"]), message["dbname"])


def died(worker: Worker) -> Message:
    """Describe the end of a worker that said nothing."""
    status = worker.exit_status or 0
    return {
        "kind": "died",
        "error": ended_with(status, f"the worker ended without a word, with status {status}"),
        "traceback": "\n".join(worker.last_output),
    }


def misconfigured(error: WorkerFailed, changed: str = "Nothing was changed") -> Ended:
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
        return TryAgain(f"The lock was lost while the migrations were being prepared: {text}. {changed}.")
    if sqlstate.startswith("42501"):
        return Denied(f"The role lacks a right: {text}\nGrant it, or use a role that has it.")
    if "statement pooling" in text:  # PgBouncer's words, at the first BEGIN
        return Misconfigured(SHARED)
    if sqlstate[:2] in ("08", "57", "53"):
        return TryAgain(f"The connection was lost while looking: {text}. {changed}.")
    trace = str(message.get("traceback") or "").rstrip()
    return Misconfigured(f"env.py failed before any migration ran: {text}. {changed}.\n{trace}")


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
