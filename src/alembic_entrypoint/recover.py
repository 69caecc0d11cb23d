"""Recover what can be proved: compare the live schema with the image's revisions, and record the one that it is.

Under the lock. Drops nothing, runs no DDL but the creation of a missing version table, and touches its rows only by
compare-and-swap on what was recorded.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg
from psycopg.pq import ConnStatus

from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.decide import Action, Decision, State
from alembic_entrypoint.errors import Denied, Ended, Refused, TryAgain
from alembic_entrypoint.facts import Facts, Graph
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock, LockLost
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import logged, recorded_now
from alembic_entrypoint.postgres.book import Book
from alembic_entrypoint.postgres.layout import Unwritable
from alembic_entrypoint.postgres.versions import Changed, swap, undo_of
from alembic_entrypoint.proof import Proof, ignored, prove, read_live
from alembic_entrypoint.schema.snapshot import take_within
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target


def recover(lock: Lock, settings: Settings, target: Target, keeper: Keeper, facts: Facts, decision: Decision) -> None:
    """Prove, and record what was proved; return where the database can be settled again.

    Raises Refused where nothing, or too much, was proved, and whatever `prove` raises.
    """
    needs_ledger = decision.state is State.LOST
    if needs_ledger and settings.ledger == "off":
        raise _refused(
            facts,
            decision,
            settings,
            "A revision that is given up as lost must be remembered, so that no later image runs it again, and "
            "ALEMBIC_ENTRYPOINT_LEDGER is off.",
        )
    log("schema.observed", state=decision.state.value, **logged(facts))
    only = asked_about(facts, decision)
    known = keeper.known_replays(facts)
    try:
        proof = prove(lock.connection, settings, target, facts, only=only, known=known, tick=lock.check_alive)
    except LockLost as lost:
        lost.message += " Nothing was changed."
        raise
    keeper.keep_replays(facts, proof.document)
    if proof.outcome is Outcome.BASE:
        keeper.is_base = True
    elif proof.outcome is not Outcome.ONE:
        raise _refused(facts, decision, settings, proof.message, keeper)
    elif decision.state is State.UNPROVED:
        _check_unchanged(lock, settings, facts, proof)
        keeper.clear_debt(facts, decision)
    else:
        record(lock, settings, keeper, facts, decision, proof.candidates[0], proof)


def asked_about(facts: Facts, decision: Decision) -> tuple[str, ...] | None:
    """Give the one set of revisions that is asked about; None where all are compared."""
    if decision.state is State.UNPROVED:
        return facts.recorded
    if decision.state is State.REPLACED:
        return replacement(facts.graph, facts.recorded)
    return None


def replacement(graph: Graph, recorded: tuple[str, ...]) -> tuple[str, ...]:
    """Put each squash in the place of what it replaces."""
    by = graph.replaced_by
    return tuple(sorted({each if each in graph.known else by[each].revision for each in recorded}))


def record(
    lock: Lock,
    settings: Settings,
    keeper: Keeper,
    facts: Facts,
    decision: Decision,
    revisions: tuple[str, ...],
    proof: Proof | None,
    action: str = "STAMP",
) -> None:
    """Record revisions in the place of what is recorded, if both that and the proved schema are still as they were.

    What is unknown to this image is set aside in the same transaction. Raises Refused, Denied.
    """
    table = facts.version_table
    book = keeper.begin(facts, decision, action)
    lost = facts.unknown if decision.state is not State.REPLACED else ()
    try:
        _swap(lock, settings, facts, revisions, proof, book, lost)
    except Ended as error:
        if book is not None:
            book.end("refused", None, error.message.splitlines()[0])
        raise
    keeper.recorded(book, facts, revisions)
    log(
        "schema.stamped",
        before=list(facts.recorded),
        after=list(revisions),
        version_table=str(table),
        undo=undo_of(table, facts.recorded, revisions),
    )


def _swap(
    lock: Lock,
    settings: Settings,
    facts: Facts,
    revisions: tuple[str, ...],
    proof: Proof | None,
    book: Book | None,
    lost: tuple[str, ...],
) -> None:
    """Swap what is recorded in one transaction with what is set aside. Raises Refused, Denied, TryAgain."""
    table, connection = facts.version_table, lock.connection
    try:
        with connection.transaction():
            swap(connection, table, facts.recorded, revisions)
            # Now, and not before: whoever held the version table may have changed the schema while it was waited for.
            if proof is not None and take_within(connection, ignore=ignored(settings, facts)).digest != proof.digest:
                raise _changed(facts, "the schema")
            if book is not None:
                book.set_aside(lost)
    except Changed as error:
        raise _changed(facts, f"{table}, which now records {error},") from None
    except Unwritable as error:
        raise Refused(
            f"{', '.join(lost)} would be given up as lost, which must be remembered, so that no later image runs it "
            f"again; and the ledger could not be written: {error}.\nNothing was recorded. Mend that, and start again.",
            event="schema.refused",
            **logged(facts),
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise Denied(
            f"It could not be recorded: {error.diag.message_primary}. Nothing was changed.\n"
            f"Grant INSERT and DELETE on {table} (and CREATE on its schema, where it is missing)."
        ) from None
    except psycopg.Error as error:
        if connection.pgconn.status != ConnStatus.OK:
            raise
        raise TryAgain(
            f"It could not be recorded: {error.diag.message_primary or error}. Nothing was changed.\n"
            f"Somebody may hold {table}, or the disk be full: `alembic-entrypoint diagnose` shows who is at work. "
            "Then start again."
        ) from None


def _check_unchanged(lock: Lock, settings: Settings, facts: Facts, proof: Proof) -> None:
    """See that what was proved is what is there now: a replay may take minutes. Raises Refused, TryAgain."""
    if recorded_now(lock.connection, facts.version_table) != facts.recorded:
        raise _changed(facts, str(facts.version_table))
    if read_live(lock.connection, ignored(settings, facts)).snapshot.digest != proof.digest:
        raise _changed(facts, "the schema")


def _changed(facts: Facts, what: str) -> Refused:
    return Refused(
        f"Somebody changed {what} while it was being proved, so nothing was recorded by this run.\n"
        "Find out who else changes this database, and start again: alembic-entrypoint plan --prove",
        event="schema.refused",
        **logged(facts),
    )


def _refused(facts: Facts, decision: Decision, settings: Settings, why: str, keeper: Keeper | None = None) -> Refused:
    """Refuse with the state's explanation and what the proof has shown."""
    if keeper is not None:
        keeper.seen(facts, dataclasses.replace(decision, action=Action.REFUSE))
    more = f"\nMore: {settings.help_url}" if settings.help_url else ""
    keys: dict[str, Any] = dict(logged(facts))
    return Refused(
        f"{decision.state.value}: {decision.because}\n{why}\n{decision.danger}\n{decision.remedy}{more}",
        event="schema.refused",
        state=decision.state.value,
        **keys,
    )
