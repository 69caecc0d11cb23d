"""How an upgrade ended: seen over our own session, and said so that a tired person can act on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import psycopg

from alembic_entrypoint.decide import Action, Decision
from alembic_entrypoint.errors import Denied, Ended, Failed, Misconfigured, Refused, TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock, LockLost
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import WorkerFailed, logged, misconfigured, recorded_now
from alembic_entrypoint.postgres.leftovers import invalid_indexes
from alembic_entrypoint.schema import snapshot
from alembic_entrypoint.schema.difference import difference
from alembic_entrypoint.schema.facts import Snapshot
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import connected
from alembic_entrypoint.watch import Progress
from alembic_entrypoint.worker.messages import Message

#: lock_not_available and deadlock_detected: the server took our side's statement back so that others can go on.
MAY_PASS = ("55P03", "40P01")
#: insufficient_privilege
DENIED = "42501"
GRANT = (
    "The app was not started. Grant the right that is missing, or migrate with the role that owns the tables; "
    "`alembic-entrypoint diagnose` says which rights are there."
)
#: Seconds in which the server must have ended what a worker left there; a session that it cannot end is said.
ENDING = 5.0


def verified(lock: Lock, progress: Progress, keeper: Keeper) -> Decision:
    """See that what the decision wanted is now so, over our own session: what counts is what was committed."""
    assert progress.facts is not None
    assert progress.decision is not None
    decision, facts = progress.decision, progress.facts
    if decision.action is not Action.UPGRADE:
        keeper.seen(facts, decision)
        return decision
    recorded = recorded_now(lock.connection, facts.version_table)
    _, after = keeper.decide(dataclasses.replace(facts, recorded=recorded))
    if after.action is not Action.START:
        progress.end("failed", recorded, "not committed by env.py")
        raise uncommitted("migrations", facts, recorded, progress)
    progress.end("ok", recorded)
    if progress.book is not None:
        keeper.applied(progress.book, facts, recorded)
    name_invalid_indexes(lock)
    log(
        "schema.upgraded",
        before=list(facts.recorded),
        after=list(recorded),
        migrations=len(progress.finished),
    )
    return after


def uncommitted(what: str, facts: Facts, recorded: tuple[str, ...], progress: Progress) -> Failed:
    """Say that `env.py` did not commit what ran; what a migration committed by itself is there."""
    is_as_before = recorded == facts.recorded and not progress.is_partly_committed
    which, left = (
        ("them", "the database is as before")
        if is_as_before
        else ("all of them", "what a migration committed by itself is there: look at it before you start again")
    )
    lines = [
        f"The {what} ran, but {facts.version_table} now records {', '.join(recorded) or 'nothing'}: "
        f"env.py did not commit {which}, and {left}.",
        "A connection on which something was executed before context.configure() is in a transaction that nobody "
        "commits: commit it first, or pass a fresh one.",
    ]
    if progress.backup and not is_as_before:
        lines.append(progress.backup.words)
    return Failed("\n".join(lines), event="migration.failed")


def may_pass(lock: Lock, progress: Progress) -> bool:
    """Tell whether the same upgrade may be tried again: only where nothing was committed."""
    failure, facts = progress.failure, progress.facts
    return (
        failure is not None
        and facts is not None
        and failure["sqlstate"] in MAY_PASS
        and not progress.is_partly_committed
        and recorded_now(lock.connection, facts.version_table) == facts.recorded
    )


@dataclass(frozen=True)
class _Words:
    what: str
    done: str
    rolled_back: str
    mend: str


_UP = _Words(
    "Migration",
    "Applied",
    "The failed migration itself was rolled back; the database is as {last} made it.",
    "The app was not started. Mend the migration, build the image again, and start it.",
)
_DOWN = _Words(
    "The downgrade of",
    "Undone",
    "The failed one itself was rolled back; the database is as it was when {last} had been undone.",
    "Mend its downgrade(), or what stands in its way, and try again.",
)


def failed(lock: Lock, progress: Progress) -> Ended:
    """Say which migration failed, why, and what it left behind."""
    failure = progress.failure
    assert failure is not None
    migration = failure["migration"]
    if migration is None:
        return misconfigured(WorkerFailed(failure))
    words = _DOWN if migration["direction"] == "down" else _UP
    applied, left_behind = _left_behind(lock, progress)
    where = f"{migration['revision']} ({migration['n']} of {migration['of']}, {migration['path']})"
    lines = [f"{words.what} {where} failed: {failure['error']}"]
    if failure.get("statement"):
        lines.append(f"Statement: {' '.join(failure['statement'].split())[:500]}")
    if applied:
        lines.append(f"{words.done} before it and kept: {', '.join(applied)}.")
    if left_behind:
        lines += [
            "It was partly committed, so starting again may fail in another way. Left behind:",
            *left_behind,
        ]
    elif applied:
        lines.append(words.rolled_back.format(last=applied[-1]))
    else:
        lines.append("The database is as before: nothing was committed.")
    is_denied = failure["sqlstate"] == DENIED and not applied and not left_behind
    passes = (failure["sqlstate"] in MAY_PASS or _is_lost(failure)) and not applied and not left_behind
    lines.append(GRANT if is_denied else _mend_blocked(progress) if passes else words.mend)
    if progress.backup:
        lines.append(progress.backup.words)
    assert progress.facts is not None  # else no migration had begun
    progress.end("failed", recorded_now(lock.connection, progress.facts.version_table), lines[0])
    kind: type[Ended] = TryAgain if passes else Denied if is_denied else Failed
    if passes and progress.blocker:
        lines.insert(1, f"It was blocked by {progress.blocker}.")
    return kind(
        "\n".join(lines),
        event="migration.failed",
        revision=migration["revision"],
        path=migration["path"],
        sqlstate=failure["sqlstate"],
        left_behind=left_behind,
    )


def _mend_blocked(progress: Progress) -> str:
    """Say what to do about what the migration itself is not to blame for."""
    if progress.blocker is None:
        return "The migration is not at fault: start again. `alembic-entrypoint diagnose` shows who is at work."
    return (
        "The migration is not at fault: start again when that session is through. If it is dead or stuck, end it: "
        f"SELECT pg_terminate_backend({progress.blocker.pid})"
    )


def _is_lost(failure: Message) -> bool:
    """Tell whether the connection ended, or the fence, and not the migration by its own fault."""
    return failure["kind"] == "fence" or bool(failure.get("is_disconnected"))


def _left_behind(lock: Lock, progress: Progress) -> tuple[list[str], list[str]]:
    """Find what was applied and kept, and what of the failed migration was committed."""
    facts = progress.facts
    assert facts is not None
    recorded = recorded_now(lock.connection, facts.version_table)
    order = {revision: n for n, revision in enumerate(progress.finished)}
    applied = sorted(facts.graph.ancestors(recorded) ^ facts.applied, key=lambda each: order.get(each, len(order)))
    left = [f"  - {each}" for each in invalid_indexes(lock.connection)]
    after = read_schema(lock, facts)
    if after is not None and progress.before is not None and not applied:
        left += [f"  - {each.line('now', 'before')}" for each in difference(after, progress.before)]
    if progress.is_partly_committed and progress.migration is not None:
        migration = progress.migration
        left.append(f"  - what {migration['revision']} did before its last commit; see {migration['path']}")
    return applied, left


def after_loss(lost: LockLost, target: Target, progress: Progress) -> Ended:
    """75 when the database is as before, else 1. The worker says so before each COMMIT that it sends."""
    if progress.committing is None or (not progress.is_partly_committed and _is_as_before(target, progress)):
        return lost
    done = ", ".join(progress.committing["revisions"]) or "none"
    half = f", and a part of {progress.migration['revision']}" if progress.is_partly_committed else ""  # type: ignore[index]
    return Failed(
        f"{lost.message}\nThese migrations may be committed: {done}{half}. "
        "Start again: the database is looked at anew." + (f"\n{progress.backup.words}" if progress.backup else ""),
        event="lock.lost",
        **lost.keys,
    )


def _is_as_before(target: Target, progress: Progress) -> bool:
    """Look with a new session whether a COMMIT that was sent came too late; a server that is gone cannot tell."""
    assert progress.facts is not None
    try:
        with connected(target.address, ENDING) as connection:
            return recorded_now(connection, progress.facts.version_table) == progress.facts.recorded
    except (Ended, psycopg.Error):
        return False


def refusal(decision: Decision, help_url: str, facts: Facts | None) -> Ended:
    """Make the error that ends a run whose decision was not to go on."""
    message = decision.message + (f"\nMore: {help_url}" if help_url else "")
    keys: dict[str, Any] = dict(logged(facts)) if facts else {}
    kind: type[Ended] = Misconfigured if decision.image else Refused
    return kind(message, event="schema.refused", state=decision.state.value, **keys)


def read_schema(lock: Lock, facts: Facts) -> Snapshot | None:
    """Read the schema, but for the version table, which Alembic makes first; None where that is not to be had."""
    table = facts.version_table
    try:
        return snapshot.take(lock.connection, ignore=(snapshot.LEDGER, (table.resolved_schema, table.name)))
    except psycopg.Error as error:
        log("schema.observed", level="warning", note="the schema could not be read for comparison", reason=str(error))
        return None


def name_invalid_indexes(lock: Lock) -> None:
    """Say what an interrupted CONCURRENTLY left behind: IF NOT EXISTS would take it for the real one [E11, H14]."""
    if found := invalid_indexes(lock.connection):
        log("schema.observed", level="warning", note="left behind by an interrupted CONCURRENTLY", invalid=found)
