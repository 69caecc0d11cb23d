"""`rebuild`: for development. Drop everything that the migrations made, and migrate again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg

from alembic_entrypoint.act import application_name, keep_before, settle_locked
from alembic_entrypoint.commands.record import confirm
from alembic_entrypoint.decide import Action, Decision
from alembic_entrypoint.errors import Denied, Refused, TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.judge import judged, remembered
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock, locked
from alembic_entrypoint.observe import NeedsWriting, find_target, observe, recorded_now
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.postgres.demolition import Entangled, drop
from alembic_entrypoint.postgres.scratch import scratch_server
from alembic_entrypoint.postgres.versions import swap
from alembic_entrypoint.proof import ignored
from alembic_entrypoint.replay import NotReplayed, replay
from alembic_entrypoint.schema.facts import Kind
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import await_database, connected
from alembic_entrypoint.watch import Progress
from alembic_entrypoint.worker.messages import Replay

Write = Callable[[str], Any]
Made = tuple[frozenset[Name], frozenset[tuple[str, str]]]


def rebuild(settings: Settings, *, yes: str | None, write: Write) -> int:
    """Show what would be dropped, ask for the database's name, drop it, and migrate. Raises Usage, Refused, Denied."""
    target = find_target(settings)
    target = target.at(await_database(target.address, settings.wait_timeout).address)
    try:
        seen = observe(settings, target, is_cleaning=settings.clean == ("migrations",))
    except NeedsWriting:
        raise Refused(
            "env.py writes to the database before it migrates (a CREATE SCHEMA, perhaps), so it cannot be looked at "
            "without writing. Nothing was changed.\nLet env.py write only where it must."
        ) from None
    target = seen.target
    with connected(target.address, settings.wait_timeout) as connection:
        facts = remembered(connection, seen.facts, settings)
        decision = judged(facts, settings)
        if decision.image:
            raise refusal(decision, settings.help_url, facts)
        made = _made(connection, settings, target, facts)
        _show(connection, target, facts, decision, made, settings, write)
    confirm(target, by_name=True, yes=yes, verb="drop this and migrate again")
    name = application_name(settings, "locking")
    with locked(target.address, settings.lock_wait, settings.wait_timeout, name, lambda _: False) as lock:
        assert lock is not None
        after = _rebuild(lock, settings, target, facts, decision, made)
    if after.action is not Action.START:
        raise refusal(after, settings.help_url, facts)
    write(f"Rebuilt: {after.because}")
    return 0


def _made(connection: psycopg.Connection[Any], settings: Settings, target: Target, facts: Facts) -> Made:
    """Replay the migrations in scratch, and see what they make, or have made and removed again. Raises Refused."""
    ignore = ignored(settings, facts)
    wanted = Replay(facts.graph.heads, ignore=ignore, shown=(facts.graph.heads,))
    with ExitStack() as stack:
        server = stack.enter_context(scratch_server(settings, target.address, connection))
        try:
            visits = replay(settings, target, server, wanted, connection)
        except NotReplayed as error:
            raise Refused(
                f"What the migrations make cannot be told: {error}. Nothing was changed.\n"
                "Mend the migration; or make a new database by hand, and start again."
            ) from None
    names = frozenset(name for each in visits[1:] for name in each.added)
    last = visits[-1].snapshot
    sequences = frozenset((t.schema, t.name) for t in last.facts if t.kind is Kind.SEQUENCE) if last else frozenset()
    return names, sequences


def _show(
    connection: psycopg.Connection[Any],
    target: Target,
    facts: Facts,
    decision: Decision,
    made: Made,
    settings: Settings,
    write: Write,
) -> None:
    from alembic_entrypoint.proof import read_live

    there = sorted(read_live(connection, ignored(settings, facts)).names & made[0])
    write(f"{target.address} is {decision.state.value}: {decision.because}")
    write(f"These {len(there)} would be dropped, with every row in them, and made again empty:")
    for each in there:
        write(f"  {each.kind} {each.schema}.{each.name}" if each.name else f"  {each.kind} {each.schema}")
    if settings.backup is None:
        write("No backup is made: ALEMBIC_ENTRYPOINT_BACKUP is not set. What is dropped does not come back.")


def _rebuild(lock: Lock, settings: Settings, target: Target, facts: Facts, decision: Decision, made: Made) -> Decision:
    """Drop under the lock what was confirmed, in one transaction, and migrate."""
    if recorded_now(lock.connection, facts.version_table) != facts.recorded:
        raise TryAgain("Somebody changed what is recorded meanwhile. Nothing was changed by this run; look again.")
    keep_before(lock, settings, facts, Progress())
    keeper = Keeper(lock, settings, None)
    book = keeper.begin(facts, decision, "REBUILD")
    try:
        with lock.connection.transaction():
            lock.connection.execute("SET LOCAL lock_timeout = '10s'")
            if facts.version_table.exists:
                swap(lock.connection, facts.version_table, facts.recorded, ())
            drop(lock.connection, *made)
    except Entangled as error:
        raise Refused(
            f"Others' objects depend on what the migrations made, and would be dropped with it: {error}. "
            "Nothing was changed.\nDrop or change them first, or make a new database."
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise Denied(
            f"Not everything may be dropped by this role: {error.diag.message_primary}. Nothing was changed.\n"
            "Use the role that owns the tables."
        ) from None
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DependentObjectsStillExist) as error:
        raise TryAgain(
            f"Something is in the way: {error.diag.message_primary}. Nothing was changed.\nStop the app, and try again."
        ) from None
    if book is not None:
        book.end("ok", ())
        book.forget_debts()
    # Whatever tables are left, none of them is ours.
    keeper.is_base = True
    return settle_locked(lock, settings, target, keeper)
