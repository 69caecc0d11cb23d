"""Upgrade under the lock: one worker looks once more, is told what to do, and is watched until it is done."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from alembic_entrypoint.decide import Action, Decision
from alembic_entrypoint.errors import Ended, Failed, Interrupted, Misconfigured, Refused, TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.lock import Lock, LockLost
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import (
    Target,
    WorkerFailed,
    facts_of,
    logged,
    look,
    misconfigured,
    recorded_now,
    request,
)
from alembic_entrypoint.postgres import activity
from alembic_entrypoint.postgres.leftovers import invalid_indexes
from alembic_entrypoint.postgres.session import ALIVE
from alembic_entrypoint.schema import snapshot
from alembic_entrypoint.schema.difference import difference
from alembic_entrypoint.schema.facts import Snapshot
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.wait import connected
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import Message, Request

#: lock_not_available and deadlock_detected: the server took our side's statement back so that others can go on.
MAY_PASS = ("55P03", "40P01")
HEARTBEAT = 10.0
#: Seconds that a cancelled worker has to roll back before it is killed.
GRACE = 0.7
#: Seconds in which the server must have ended what a worker left there; a session that it cannot end is said.
ENDING = 5.0

Decide = Callable[[Facts], Decision]


@dataclass
class Progress:
    """What a worker has said so far."""

    facts: Facts | None = None
    decision: Decision | None = None
    migration: Message | None = None
    finished: list[str] = field(default_factory=list)
    #: what the last COMMIT that was begun would have kept; None: none was begun
    committing: Message | None = None
    started: float = field(default_factory=time.monotonic)
    blocker: activity.Session | None = None
    failure: Message | None = None
    #: the schema before the first migration ran, where it could be read
    before: Snapshot | None = None

    @property
    def is_partly_committed(self) -> bool:
        """Tell whether a transaction was committed in the middle of the last migration."""
        return bool(self.committing and self.committing["is_partly_committed"])


def look_locked(lock: Lock, settings: Settings, target: Target) -> None:
    """See, where `env.py` may write, that it migrates this database and only once: before anything is migrated.

    Raises Misconfigured, Denied, TryAgain.
    """
    try:
        look(dataclasses.replace(_order(lock, settings, target), order="look"), settings, target)
    except WorkerFailed as error:
        raise misconfigured(error) from None


def settle_locked(
    lock: Lock, settings: Settings, target: Target, decide: Decide, idle: Worker | None = None
) -> Decision:
    """Look again, decide, and upgrade where that is the decision; then see that the target is reached.

    The worker that has looked already goes on, where it waits for that.

    Raises Refused, Failed, TryAgain, Misconfigured.
    """
    _name_invalid_indexes(lock)
    for tries_left in range(settings.ddl_retries, -1, -1):
        progress = Progress()
        try:
            _run_worker(_worker(lock, settings, target, idle), lock, settings, decide, progress)
            idle = None
            if progress.failure is None:
                return _verified(lock, progress, decide)
            lock.end_backends(ENDING)
            if tries_left == 0 or not _may_pass(lock, progress):
                raise _failed(lock, progress)
        except LockLost as lost:
            raise _after_loss(lost, target, progress) from None
        except psycopg.OperationalError as error:
            raise _after_loss(LockLost(str(error)), target, progress) from None
        _pause(settings, progress, tries_left)
    raise AssertionError("the last try returns or raises")


def _name_invalid_indexes(lock: Lock) -> None:
    """Say what an interrupted CONCURRENTLY left behind: IF NOT EXISTS would take it for the real one [E11, H14]."""
    if found := invalid_indexes(lock.connection):
        log("schema.observed", level="warning", note="left behind by an interrupted CONCURRENTLY", invalid=found)


def _pause(settings: Settings, progress: Progress, tries_left: int) -> None:
    """Let those go first who were in the way."""
    assert progress.failure is not None
    pause = random.uniform(0.2, 1.0) * min(10.0, 2.0 ** (settings.ddl_retries - tries_left))  # noqa: S311
    log(
        "migration.retried",
        level="warning",
        reason=progress.failure["error"],
        blocker=str(progress.blocker) if progress.blocker else None,
        tries_left=tries_left,
        pause=round(pause, 2),
    )
    time.sleep(pause)


@contextmanager
def _worker(lock: Lock, settings: Settings, target: Target, idle: Worker | None) -> Iterator[Worker]:
    """Give the order to the worker that waits, or to a new one."""
    order = _order(lock, settings, target)
    if idle is None or not idle.is_idle:
        with Worker(order, settings.python) as worker:
            yield worker
    else:
        try:
            idle.order(order)
            yield idle
        finally:
            idle.end()


def _run_worker(
    given: AbstractContextManager[Worker], lock: Lock, settings: Settings, decide: Decide, progress: Progress
) -> None:
    """Run one worker to its end, passing on what it says. The worker is cancelled when anything goes wrong here."""
    watch = _Watch(lock, progress)
    with given as worker:
        try:
            for message in worker.messages(watch.tick):
                _hear(message, worker, lock, settings, decide, progress)
        except LockLost:
            worker.tell({"order": "cancel"})
            _hear_out(worker, progress)
            raise
        except (Interrupted, Ended):
            _cancel(lock, worker)
            raise
        if progress.failure is None and progress.decision is None:
            error = {
                "kind": "died",
                "error": "the worker ended without a word",
                "traceback": "\n".join(worker.last_output),
            }
            raise misconfigured(WorkerFailed(error))
        if progress.failure is None and worker.exit_status:
            progress.failure = {
                "kind": "died",
                "error": f"the worker was ended with status {worker.exit_status}",
                "sqlstate": None,
                "migration": progress.migration,
            }


def _hear_out(worker: Worker, progress: Progress) -> None:
    """Hear what a cancelled worker said last, for no longer than it has to roll back."""
    deadline = time.monotonic() + GRACE

    def tick() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    with suppress(TimeoutError):
        for message in worker.messages(tick, every=0.1):
            _note(message, progress)
    worker.end()


def _order(lock: Lock, settings: Settings, target: Target) -> Request:
    milliseconds = {
        "lock_timeout": settings.ddl_lock_timeout,
        "statement_timeout": settings.statement_timeout,
    }
    session = {
        **ALIVE,
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
        "application_name": application_name(settings, "migrating"),
    }
    session = {name: value for name, value in session.items() if name not in lock.forbidden}
    return request("migrate", settings, target, places=target.places, token=lock.token, session=session)


def application_name(settings: Settings, step: str) -> str:
    """Say host, image and step in a session's name, in the 63 bytes that PostgreSQL keeps."""
    import socket

    image = f" {settings.image}" if settings.image else ""
    return f"alembic-entrypoint {step} {socket.gethostname()}{image}"[:63]


def _hear(
    message: Message, worker: Worker, lock: Lock, settings: Settings, decide: Decide, progress: Progress
) -> None:
    """React to one thing that the worker says."""
    said = message["said"]
    if said == "observed":
        progress.facts = facts_of(message, settings)
        progress.decision = decide(progress.facts)
        if progress.decision.action is Action.UPGRADE:
            progress.before = _schema(lock, progress.facts)
            worker.tell({"order": "upgrade", "revisions": progress.facts.target_revisions})
        else:
            worker.tell({"order": "stop"})
    elif said == "left_alone":
        log("worker.connected", level="debug", database=message["place"], note="another database, left alone")
    else:
        _note(message, progress)


def _note(message: Message, progress: Progress) -> None:
    """Keep what a worker says of its migrations."""
    said = message["said"]
    if said == "started":
        progress.migration, progress.started = message, time.monotonic()
        log("migration.started", **_named(message))
    elif said == "finished":
        progress.finished.append(message["revision"])
        elapsed = round(time.monotonic() - progress.started, 3)
        log("migration.finished", revision=message["revision"], elapsed=elapsed)
    elif said == "committing":
        progress.committing = message
    elif said == "failed":
        progress.failure = message


def _named(migration: Message) -> dict[str, Any]:
    return {name: migration[name] for name in ("revision", "n", "of", "path", "doc")}


class _Watch:
    """What is looked at, twice a second, while a worker runs."""

    def __init__(self, lock: Lock, progress: Progress) -> None:
        self._lock = lock
        self._progress = progress
        self._beat = time.monotonic()

    def tick(self) -> None:
        """See that the lock is held, who is in the way, and that something goes on. Raises LockLost."""
        self._lock.check_alive()
        if self._progress.migration is None:
            return
        try:
            self._look()
        except psycopg.Error:
            self._lock.check_alive()

    def _look(self) -> None:
        connection, progress = self._lock.connection, self._progress
        pids = self._lock.worker_backends()
        blocker = activity.blocker(connection, pids)
        if blocker is not None and (progress.blocker is None or blocker.pid != progress.blocker.pid):
            log(
                "migration.blocked",
                level="warning",
                blocker=str(blocker),
                query=blocker.query,
                **self._step(),
            )
        progress.blocker = blocker or progress.blocker
        if time.monotonic() - self._beat >= HEARTBEAT:
            self._beat = time.monotonic()
            running = activity.statement(connection, pids)
            log(
                "migration.running",
                elapsed=round(time.monotonic() - progress.started, 1),
                statement_age=round(running.statement_age, 1) if running else None,
                progress=activity.index_progress(connection, pids),
                blocker=str(blocker) if blocker else None,
                **self._step(),
            )

    def _step(self) -> dict[str, Any]:
        migration = self._progress.migration or {}
        return {name: migration[name] for name in ("revision", "n", "of") if name in migration}


def _cancel(lock: Lock, worker: Worker) -> None:
    """End what the worker runs on the server, then the worker, then what is left of its sessions."""
    worker.tell({"order": "cancel"})
    try:
        lock.cancel(lock.worker_backends())
        worker.end(GRACE)
        lock.end_backends(ENDING)
    except psycopg.Error:
        worker.end()


def _verified(lock: Lock, progress: Progress, decide: Decide) -> Decision:
    """See that what the decision wanted is now so, over our own session: what counts is what was committed."""
    assert progress.facts is not None
    assert progress.decision is not None
    decision, facts = progress.decision, progress.facts
    if decision.action is not Action.UPGRADE:
        return decision
    recorded = recorded_now(lock.connection, facts.version_table)
    after = decide(dataclasses.replace(facts, recorded=recorded))
    if after.action is not Action.START:
        raise Failed(
            f"The migrations ran, but {facts.version_table} now records {', '.join(recorded) or 'nothing'}: "
            "env.py did not commit them, and the database is as before.\n"
            "A connection on which something was executed before context.configure() is in a transaction that nobody commits: commit it first, or pass a fresh one.",
            event="migration.failed",
        )
    _name_invalid_indexes(lock)
    log(
        "schema.upgraded",
        before=list(facts.recorded),
        after=list(recorded),
        migrations=len(progress.finished),
    )
    return after


def _may_pass(lock: Lock, progress: Progress) -> bool:
    """Tell whether the same upgrade may be tried again: only where nothing was committed."""
    failure, facts = progress.failure, progress.facts
    return (
        failure is not None
        and facts is not None
        and failure["sqlstate"] in MAY_PASS
        and not progress.is_partly_committed
        and recorded_now(lock.connection, facts.version_table) == facts.recorded
    )


def _failed(lock: Lock, progress: Progress) -> Ended:
    """Say which migration failed, why, and what it left behind."""
    failure = progress.failure
    assert failure is not None
    migration = failure["migration"]
    if migration is None:
        return misconfigured(WorkerFailed(failure))
    applied, left_behind = _left_behind(lock, progress)
    lines = [
        f"Migration {migration['revision']} ({migration['n']} of {migration['of']}, {migration['path']}) failed: "
        f"{failure['error']}"
    ]
    if failure.get("statement"):
        lines.append(f"Statement: {' '.join(failure['statement'].split())[:500]}")
    if applied:
        lines.append(f"Applied before it and kept: {', '.join(applied)}.")
    if left_behind:
        lines += [
            "It was partly committed, so starting again may fail in another way. Left behind:",
            *left_behind,
        ]
    elif applied:
        lines.append(f"The failed migration itself was rolled back; the database is as {applied[-1]} made it.")
    else:
        lines.append("The database is as before: nothing was committed.")
    lines.append("The app was not started. Mend the migration, build the image again, and start it.")
    passes = (failure["sqlstate"] in MAY_PASS or _is_lost(failure)) and not applied and not left_behind
    kind: type[Ended] = TryAgain if passes else Failed
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


def _is_lost(failure: Message) -> bool:
    """Tell whether the connection ended, or the fence, and not the migration by its own fault."""
    return failure["kind"] == "fence" or bool(failure.get("is_disconnected"))


def _left_behind(lock: Lock, progress: Progress) -> tuple[list[str], list[str]]:
    """Find what was applied and kept, and what of the failed migration was committed."""
    facts = progress.facts
    assert facts is not None
    recorded = recorded_now(lock.connection, facts.version_table)
    order = {revision: n for n, revision in enumerate(progress.finished)}
    applied = sorted(facts.graph.ancestors(recorded) - facts.applied, key=lambda each: order.get(each, len(order)))
    left = [f"  - {each}" for each in invalid_indexes(lock.connection)]
    after = _schema(lock, facts)
    if after is not None and progress.before is not None and not applied:
        left += [f"  - {each.line('now', 'before')}" for each in difference(after, progress.before)]
    if progress.is_partly_committed and progress.migration is not None:
        migration = progress.migration
        left.append(f"  - what {migration['revision']} did before its last commit; see {migration['path']}")
    return applied, left


def _schema(lock: Lock, facts: Facts) -> Snapshot | None:
    """Read the schema, but for the version table, which Alembic makes first; None where that is not to be had."""
    table = facts.version_table
    try:
        return snapshot.take(lock.connection, ignore=(snapshot.LEDGER, (table.resolved_schema, table.name)))
    except psycopg.Error as error:
        log("schema.observed", level="warning", note="the schema could not be read for comparison", reason=str(error))
        return None


def _after_loss(lost: LockLost, target: Target, progress: Progress) -> Ended:
    """75 when the database is as before, else 1. The worker says so before each COMMIT that it sends."""
    if progress.committing is None or (not progress.is_partly_committed and _is_as_before(target, progress)):
        return lost
    done = ", ".join(progress.committing["revisions"]) or "none"
    half = f", and a part of {progress.migration['revision']}" if progress.is_partly_committed else ""  # type: ignore[index]
    return Failed(
        f"{lost.message}\nThese migrations may be committed: {done}{half}. "
        "Start again: the database is looked at anew.",
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
