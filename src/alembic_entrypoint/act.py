"""Upgrade under the lock: one worker looks once more, is told what to do, and is watched until it is done."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
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
    graph_of,
    logged,
    misconfigured,
    recorded_now,
    request,
)
from alembic_entrypoint.postgres import activity
from alembic_entrypoint.postgres.leftovers import invalid_indexes
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import Message, Request

#: lock_not_available and deadlock_detected: the server took our side's statement back so that others can go on.
MAY_PASS = ("55P03", "40P01")
HEARTBEAT = 10.0
#: Seconds that a cancelled worker has to roll back before it is killed.
GRACE = 0.7

Decide = Callable[[Facts], Decision]


@dataclass
class Progress:
    """What a worker has said so far."""

    facts: Facts | None = None
    decision: Decision | None = None
    migration: Message | None = None
    finished: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    blocker: activity.Session | None = None
    failure: Message | None = None


def settle_locked(lock: Lock, settings: Settings, target: Target, decide: Decide) -> Decision:
    """Look again, decide, and upgrade where that is the decision; then see that the target is reached.

    Raises Refused, Failed, TryAgain, Misconfigured.
    """
    for tries_left in range(settings.ddl_retries, -1, -1):
        progress = _run_worker(lock, settings, target, decide)
        if progress.failure is None:
            return _verified(lock, progress, decide)
        if tries_left == 0 or not _may_pass(lock, progress):
            break
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
    raise _failed(lock, progress)


def _run_worker(lock: Lock, settings: Settings, target: Target, decide: Decide) -> Progress:
    """Run one worker to its end, passing on what it says. The worker is cancelled when anything goes wrong here."""
    progress = Progress()
    watch = _Watch(lock, progress)
    with Worker(_order(lock, settings, target), settings.python) as worker:
        try:
            for message in worker.messages(watch.tick):
                _hear(message, worker, settings, decide, progress)
        except LockLost as lost:
            worker.tell({"order": "cancel"})
            worker.end(GRACE)
            raise _after_loss(lost, progress) from None
        except (Interrupted, Ended):
            _cancel(lock, worker)
            raise
        if progress.failure is None and progress.decision is None:
            error = {
                "kind": "died",
                "error": "the worker ended without a word",
                "traceback": "\n".join(worker.last_output),
            }
            raise misconfigured(WorkerFailed(error, None, ()))
        if progress.failure is None and worker.exit_status:
            progress.failure = {
                "kind": "died",
                "error": f"the worker was ended with status {worker.exit_status}",
                "sqlstate": None,
                "migration": progress.migration,
                "committed": [],
                "is_partly_committed": None,
            }
    return progress


def _order(lock: Lock, settings: Settings, target: Target) -> Request:
    milliseconds = {
        "lock_timeout": settings.ddl_lock_timeout,
        "statement_timeout": settings.statement_timeout,
    }
    session = {
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
        "transaction_timeout": "0",
        "client_connection_check_interval": "1000",
        "application_name": application_name(settings, "migrating"),
    }
    return request("migrate", settings, target, places=target.places, token=lock.token, session=session)


def application_name(settings: Settings, step: str) -> str:
    """Say host, image and step in a session's name, in the 63 bytes that PostgreSQL keeps."""
    import socket

    image = f" {settings.image}" if settings.image else ""
    return f"alembic-entrypoint {step} {socket.gethostname()}{image}"[:63]


def _hear(message: Message, worker: Worker, settings: Settings, decide: Decide, progress: Progress) -> None:
    """React to one thing that the worker says."""
    said = message["said"]
    if said == "loaded":
        progress.facts = Facts(graph_of(message), tuple(message["unloadable"]), settings.target)
    elif said == "observed":
        progress.facts = facts_of(message, settings)
        progress.decision = decide(progress.facts)
        if progress.decision.action is Action.UPGRADE:
            worker.tell({"order": "upgrade", "revisions": progress.facts.target_revisions})
        else:
            worker.tell({"order": "stop"})
    elif said == "left_alone":
        log("worker.connected", level="debug", database=message["place"], note="another database, left alone")
    elif said == "started":
        progress.migration, progress.started = message, time.monotonic()
        log("migration.started", **_named(message))
    elif said == "finished":
        progress.finished.append(message["revision"])
        elapsed = round(time.monotonic() - progress.started, 3)
        log("migration.finished", revision=message["revision"], elapsed=elapsed)
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
        lock.terminate(lock.worker_backends())
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
            f"The migrations ran, but {facts.version_table} now records {', '.join(recorded) or 'nothing'}: env.py did not "
            "commit them, and the database is as before.\nA connection on which something was executed before "
            "context.configure() is in a transaction that nobody commits: commit it first, or pass a fresh one.",
            event="migration.failed",
        )
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
        and not failure["committed"]
        and failure["is_partly_committed"] is False
        and recorded_now(lock.connection, facts.version_table) == facts.recorded
    )


def _failed(lock: Lock, progress: Progress) -> Ended:
    """Say which migration failed, why, and what it left behind."""
    failure = progress.failure
    assert failure is not None
    migration = failure["migration"]
    if migration is None:
        error = misconfigured(WorkerFailed(failure, None, ()))
        assert isinstance(error, Ended)
        return error
    applied, left_behind = _left_behind(lock, progress, failure)
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
    timed_out = failure["sqlstate"] in MAY_PASS and not applied and not left_behind
    kind: type[Ended] = TryAgain if timed_out else Failed
    if timed_out and progress.blocker:
        lines.insert(1, f"It was blocked by {progress.blocker}.")
    return kind(
        "\n".join(lines),
        event="migration.failed",
        revision=migration["revision"],
        path=migration["path"],
        sqlstate=failure["sqlstate"],
        left_behind=left_behind,
    )


def _left_behind(lock: Lock, progress: Progress, failure: Message) -> tuple[list[str], list[str]]:
    """Find what was applied and kept, and what of the failed migration was committed."""
    facts = progress.facts
    assert facts is not None
    recorded = recorded_now(lock.connection, facts.version_table)
    applied = sorted(facts.graph.ancestors(recorded) - facts.applied, key=progress.finished.index)
    left = [f"  - {each}" for each in invalid_indexes(lock.connection)]
    if failure["is_partly_committed"] or failure["is_partly_committed"] is None:
        migration = failure["migration"]
        left.append(f"  - what {migration['revision']} did before its last commit; see {migration['path']}")
    return applied, left


def _after_loss(lost: LockLost, progress: Progress) -> Ended:
    """75 when the database is as before, as far as the worker said; else 1."""
    failure = progress.failure or {}
    if progress.finished or failure.get("is_partly_committed") or failure.get("committed"):
        return Failed(
            f"{lost.message}\nThese may be committed: {', '.join(progress.finished)}. "
            "Start again: the database is looked at anew.",
            event="lock.lost",
        )
    return lost


def refusal(decision: Decision, help_url: str, facts: Facts | None) -> Ended:
    """Make the error that ends a run whose decision was not to go on."""
    message = decision.message + (f"\nMore: {help_url}" if help_url else "")
    keys: dict[str, Any] = dict(logged(facts)) if facts else {}
    kind: type[Ended] = Misconfigured if decision.image else Refused
    return kind(message, event="schema.refused", state=decision.state.value, **keys)
