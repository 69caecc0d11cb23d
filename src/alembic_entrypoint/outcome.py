"""How an upgrade ended: seen over our own session, and said so that a tired person can act on it."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from typing import Any

import psycopg

from alembic_entrypoint.decide import Action, Decision
from alembic_entrypoint.errors import Denied, Ended, Failed, Misconfigured, Refused, TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.kept import Kept, what_is_kept
from alembic_entrypoint.lock import Lock, LockLost
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import WorkerFailed, logged, misconfigured, recorded_now
from alembic_entrypoint.postgres.leftovers import invalid_indexes
from alembic_entrypoint.schema import snapshot
from alembic_entrypoint.schema.difference import Difference, difference
from alembic_entrypoint.schema.facts import Kind, Pattern, Snapshot, Thing
from alembic_entrypoint.schema.wording import removal
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
        raise uncommitted(lock, "migrations", progress)
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


def uncommitted(lock: Lock, what: str, progress: Progress) -> Failed:
    """Say that `env.py` did not commit what ran; what a migration committed by itself is there."""
    assert progress.facts is not None
    kept = what_is_kept(lock.connection, progress, ENDING, ends=False)
    progress.end("failed", kept.recorded, "not committed by env.py")
    which, left = (
        ("them", "the database is as before")
        if kept.is_nothing
        else ("all of them", "what a migration committed by itself is there: look at it before you start again")
    )
    lines = [
        f"The {what} ran, but {progress.facts.version_table} now records {', '.join(kept.recorded) or 'nothing'}: "
        f"env.py did not commit {which}, and {left}.",
        "A connection on which something was executed before context.configure() is in a transaction that nobody "
        "commits: commit it first, or pass a fresh one.",
    ]
    if progress.backup and not kept.is_nothing:
        lines.append(progress.backup.words)
    return Failed("\n".join(lines), event="migration.failed")


def may_pass(lock: Lock, progress: Progress) -> bool:
    """Tell whether the same upgrade may be tried again: only where nothing of it is kept, nor still at work."""
    failure = progress.failure
    if failure is None or failure["sqlstate"] not in MAY_PASS or progress.facts is None or progress.still_there:
        return False
    return what_is_kept(lock.connection, progress, 0.0, ends=False).is_nothing


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
    kept = what_is_kept(lock.connection, progress, 0.0, ends=False)
    left = left_behind(lock, progress, kept)
    is_as_before = not kept.whole and not left
    where = f"{migration['revision']} ({migration['n']} of {migration['of']}, {migration['path']})"
    lines = [f"{words.what} {where} failed: {failure['error']}"]
    if failure.get("statement"):
        lines.append(f"Statement: {' '.join(failure['statement'].split())[:500]}")
    if kept.whole:
        lines.append(f"{words.done} before it and kept: {', '.join(kept.whole)}.")
    if left:
        certain = "was" if kept.partly or not kept.unseen else "may have been"
        lines += [
            f"It {certain} partly committed, so starting again may fail in another way. Left behind:",
            *(f"  - {each}" for each in left),
        ]
    elif kept.whole:
        lines.append(words.rolled_back.format(last=kept.whole[-1]))
    else:
        lines.append("The database is as before: nothing was committed.")
    is_denied = failure["sqlstate"] == DENIED and is_as_before
    passes = (failure["sqlstate"] in MAY_PASS or _is_lost(failure)) and is_as_before
    lines.append(GRANT if is_denied else _mend_blocked(progress) if passes else _mend(failure, words))
    if progress.backup:
        lines.append(progress.backup.words)
    progress.end("failed", kept.recorded, lines[0])
    kind: type[Ended] = TryAgain if passes else Denied if is_denied else Failed
    if passes and progress.blocker:
        lines.insert(1, f"It was blocked by {progress.blocker}.")
    return kind(
        "\n".join(lines),
        event="migration.failed",
        revision=migration["revision"],
        path=migration["path"],
        sqlstate=failure["sqlstate"],
        left_behind=left,
    )


def _mend(failure: Message, words: _Words) -> str:
    if failure["kind"] == "died" and failure["status"] == -signal.SIGKILL:
        return (
            "The app was not started. Nothing says that the migration is at fault: its process was killed, as the "
            "kernel does it where memory is short. Look at the limits of the container, and start again."
        )
    return words.mend


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


def left_behind(lock: Lock, progress: Progress, kept: Kept) -> list[str]:
    """List what is there of a migration that is not kept as a whole, with the statement that removes it.

    The schema is compared with what it was before that migration, where this could be read.
    """
    facts = progress.facts
    assert facts is not None
    left = invalid_indexes(lock.connection)
    before = progress.before_this or (None if kept.whole else progress.before)
    after = read_schema(lock, facts) if before is not None else None
    if before is not None and after is not None:
        left += [_told(each, after) for each in difference(after, before.without(uncounted(facts)))]
    path_of = {each.revision: each.path for each in facts.graph.migrations}
    left += [f"what {each} did before its last commit; see {path_of[each]}" for each in kept.partly]
    left += [f"what {each} did when it {what}; see {path_of[each]}" for each, what in kept.unseen]
    left += [
        f"session {each} could not be ended, and may go on; as a role that may: SELECT pg_terminate_backend({each});"
        for each in progress.still_there
    ]
    if (kept.partly or kept.unseen) and after is None:
        left.append("the schema could not be compared; `alembic-entrypoint diagnose --prove` does that")
    return left


def _told(each: Difference, now: Snapshot) -> str:
    """Write one difference to before, with the statement that removes it where it is something new."""
    line = each.line("now", "before")
    if each.attribute or each.here is None:
        return line
    relation = Thing(Kind.RELATION, each.thing.schema, each.thing.name, "")
    statement = removal(each.thing, str(now.facts.get(relation, {}).get("kind")))
    return f"{line}: {statement}" if statement else line


def after_loss(lost: LockLost, target: Target, progress: Progress) -> Ended:
    """75 when the database is as before, else 1."""
    if progress.migration is None:
        return lost
    kept = _kept_as_seen_anew(target, progress)
    if kept is None:
        # The server is gone. The worker says so before each COMMIT that it sends, and before what nobody sees.
        if progress.committing is None and not progress.unseen:
            return lost
        under_way = (progress.committing or {}).get("under_way")
        whole, partly, verb = (progress.committing or {}).get("revisions", ()), [under_way], "may be"
    elif kept.is_nothing:
        return lost
    else:
        whole, partly, verb = kept.whole, [*kept.partly, *(each for each, _ in kept.unseen)], "are"
    half = "".join(f", and a part of {each}" for each in partly if each)
    return Failed(
        f"{lost.message}\nThese migrations {verb} committed: {', '.join(whole) or 'none'}{half}. "
        "Start again: the database is looked at anew." + (f"\n{progress.backup.words}" if progress.backup else ""),
        event="lock.lost",
        **lost.keys,
    )


def _kept_as_seen_anew(target: Target, progress: Progress) -> Kept | None:
    """Look with a new session, and end what is still under way; None where the server cannot tell."""
    try:
        with connected(target.whole, ENDING) as connection:
            return what_is_kept(connection, progress, ENDING, ends=True)
    except (Ended, psycopg.Error):
        return None


def refusal(decision: Decision, help_url: str, facts: Facts | None) -> Ended:
    """Make the error that ends a run whose decision was not to go on."""
    message = decision.message + (f"\nMore: {help_url}" if help_url else "")
    keys: dict[str, Any] = dict(logged(facts)) if facts else {}
    kind: type[Ended] = Misconfigured if decision.image else Refused
    return kind(message, event="schema.refused", state=decision.state.value, **keys)


def uncounted(facts: Facts) -> tuple[Pattern, ...]:
    """Name what is left out of a comparison: the ledger, and the version table, which Alembic makes first."""
    return snapshot.LEDGER, (facts.version_table.resolved_schema, facts.version_table.name)


def read_schema(lock: Lock, facts: Facts) -> Snapshot | None:
    """Read the schema, but for what is not counted; None where that is not to be had."""
    try:
        return snapshot.take(lock.connection, ignore=uncounted(facts))
    except psycopg.Error as error:
        log("schema.observed", level="warning", note="the schema could not be read for comparison", reason=str(error))
        return None


def name_invalid_indexes(lock: Lock) -> None:
    """Say what an interrupted CONCURRENTLY left behind: IF NOT EXISTS would take it for the real one [E11, H14]."""
    if found := invalid_indexes(lock.connection):
        log("schema.observed", level="warning", note="left behind by an interrupted CONCURRENTLY", invalid=found)
