"""`rebuild`: for development. Drop everything that the migrations made, and migrate again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from alembic_entrypoint.act import keep_before, settle_locked
from alembic_entrypoint.commands.asking import confirm
from alembic_entrypoint.commands.looking import Looked, locked_as_shown, looked
from alembic_entrypoint.comparison import Replayed, Visited
from alembic_entrypoint.decide import Action, Decision
from alembic_entrypoint.errors import Denied, Ended, Refused, TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.postgres import demolition, versions
from alembic_entrypoint.postgres.demolition import Entangled, Standing, standing
from alembic_entrypoint.postgres.scratch import ScratchServer, scratch_server
from alembic_entrypoint.proof import ignored, read_live
from alembic_entrypoint.replay import NotReplayed, replay
from alembic_entrypoint.schema.facts import Kind, Snapshot
from alembic_entrypoint.schema.reading import Name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.watch import Progress
from alembic_entrypoint.worker.messages import Replay

Write = Callable[[str], Any]
Connection = psycopg.Connection[Any]


def rebuild(settings: Settings, *, yes: str | None, write: Write) -> int:
    """Show what would be dropped, ask for the database's name, drop it, and migrate. Raises Usage, Refused, Denied."""
    with looked(settings) as (look, connection):
        look.refuse_image()
        made = _made(look, connection)
        shown = standing(connection, made)
    _show(look, shown, write)
    confirm(look.target, by_name=True, yes=yes, verb="drop this and migrate again")
    with locked_as_shown(look) as lock:
        after = _rebuild(lock, look, shown, made, write)
    if after.action is not Action.START:
        raise refusal(after, settings.help_url, look.facts)
    write(f"Rebuilt: {after.because}")
    return 0


def _made(look: Looked, connection: Connection) -> frozenset[Name]:
    """Replay the migrations in scratch, and see what they make, or have made and removed again. Raises Refused.

    Which functions they are only a whole schema tells, as several may have one name. That of the heads is enough where
    it has all that are there; else they may be an earlier revision's, or others', and every schema on the way is read.
    """
    settings, graph = look.settings, look.facts.graph
    live = read_live(connection, ignored(settings, look.facts)).snapshot
    with scratch_server(settings, look.target.address, connection) as server:
        replayed = _replayed(look, connection, server, {(), graph.heads})
        touched = Replayed(graph, (replayed,)).touched
        if any(each.schema in touched for each in _functions(live) - _made_functions(replayed)):
            replayed = _replayed(look, connection, server, {each.recorded for each in replayed})
    names = {name for each in replayed[1:] for name in each.added if name.kind != "function"}
    return frozenset(names) | _made_functions(replayed)


def _replayed(
    look: Looked, connection: Connection, server: ScratchServer, shown: Iterable[tuple[str, ...]]
) -> tuple[Visited, ...]:
    wanted = Replay(look.facts.graph.heads, ignore=ignored(look.settings, look.facts), shown=tuple(shown))
    try:
        return replay(look.settings, look.target, server, wanted, look.facts, connection)
    except NotReplayed as error:
        raise Refused(
            f"What the migrations make cannot be told: {error}. Nothing was changed.\n"
            "Mend the migration; or make a new database by hand, and start again."
        ) from None


def _made_functions(replayed: tuple[Visited, ...]) -> frozenset[Name]:
    """Name the functions of the schemas that were shown, but for those that were there at first."""
    first, *others = (_functions(each.snapshot) if each.snapshot else frozenset[Name]() for each in replayed)
    return frozenset[Name]().union(*others) - first


def _functions(snapshot: Snapshot) -> frozenset[Name]:
    """Name functions with their arguments."""
    return frozenset(
        Name(each.kind.value, each.schema, each.name) for each in snapshot.facts if each.kind is Kind.FUNCTION
    )


def _show(look: Looked, shown: tuple[Standing, ...], write: Write) -> None:
    write(look.words)
    write(f"These {len(shown)} would be dropped, with every row and every grant on them, and made again empty:")
    for each in shown:
        write(f"  {each}")
    if look.settings.backup is None:
        write("No backup is made: ALEMBIC_ENTRYPOINT_BACKUP is not set. What is dropped does not come back.")


def _rebuild(lock: Lock, look: Looked, shown: tuple[Standing, ...], made: frozenset[Name], write: Write) -> Decision:
    """Keep a backup, drop under the lock what was confirmed, and migrate."""
    progress = Progress()
    keep_before(lock, look.settings, look.facts, progress)
    if progress.backup is not None:
        write(progress.backup.words)
    keeper = Keeper(lock, look.settings, None)
    book = keeper.begin(look.facts, look.decision, "REBUILD")
    try:
        _drop(lock, look.facts, shown, made)
    except Ended as error:
        if book is not None:
            book.end("refused", None, error.message.splitlines()[0])
        raise
    if book is not None:
        book.end("ok", ())
        book.forget_debts()
    # Whatever tables are left, none of them is ours.
    keeper.is_base = True
    try:
        # Without a second backup: of a database that is emptied, it could push out the one from before.
        return settle_locked(lock, dataclasses.replace(look.settings, backup=None), look.target, keeper)
    except Ended as error:
        error.message += "\nWhat was shown had been dropped before, and stays dropped."
        if progress.backup is not None:
            error.message += f"\n{progress.backup.words}"
        raise


def _drop(lock: Lock, facts: Facts, shown: tuple[Standing, ...], made: frozenset[Name]) -> None:
    """Drop it in one transaction, with what is recorded. Raises Refused, Denied, TryAgain."""
    try:
        with lock.connection.transaction():
            if facts.version_table.exists:
                versions.swap(lock.connection, facts.version_table, facts.recorded, ())
            lock.connection.execute("SET LOCAL lock_timeout = '10s'")
            demolition.drop(lock.connection, shown, made)
    except versions.Changed as error:
        raise TryAgain(f"Somebody changed what is recorded meanwhile, to {error}. Nothing was changed.") from None
    except demolition.Changed as error:
        raise Refused(
            f"What would be dropped is not what was shown any more: {error}. Nothing was changed.\n"
            "Look again: alembic-entrypoint rebuild"
        ) from None
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
    except psycopg.errors.LockNotAvailable as error:
        raise TryAgain(
            f"Something is in the way: {error.diag.message_primary}. Nothing was changed.\nStop the app, and try again."
        ) from None
