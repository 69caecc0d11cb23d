"""Upgrade under the lock: one worker looks once more, is told what to do, and is watched until it is done."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeVar

import psycopg

from alembic_entrypoint.decide import Action, Decision
from alembic_entrypoint.errors import Ended, Interrupted
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.heard import facts_of
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock, LockLost
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import (
    NEEDY,
    WorkerFailed,
    died,
    look,
    misconfigured,
    patience,
    request,
)
from alembic_entrypoint.outcome import (
    ENDING,
    after_loss,
    failed,
    may_pass,
    name_invalid_indexes,
    read_schema,
    verified,
)
from alembic_entrypoint.postgres.backup import back_up
from alembic_entrypoint.postgres.session import ALIVE, application_name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target
from alembic_entrypoint.watch import Progress, Watch, note, often
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import Message, Request, ended_with

T = TypeVar("T")
#: What is done about one thing that a worker says.
Hear = Callable[[Message, Worker, Progress], None]

#: Seconds that a cancelled worker has to roll back before it is killed.
GRACE = 0.7


def look_locked(lock: Lock, settings: Settings, target: Target) -> None:
    """See, where `env.py` may write, that it migrates this database and only once: before anything is migrated.

    What it commits is rolled back, so that nothing is left where it is refused, and nothing is done twice where it is
    not; but for an `env.py` that goes on only with what it has committed. Raises Misconfigured, Denied, TryAgain.
    """
    order = dataclasses.replace(_order(lock, settings, target), order="look")
    try:
        look(order, settings, target, lock.check_alive)
    except WorkerFailed as first:
        if first.kind not in NEEDY:
            raise misconfigured(first) from None
        try:
            look(dataclasses.replace(order, keeps=True), settings, target, lock.check_alive)
        except WorkerFailed as error:
            raise misconfigured(error, "Nothing was migrated; what env.py itself commits stays") from None


def settle_locked(
    lock: Lock, settings: Settings, target: Target, keeper: Keeper, idle: Worker | None = None
) -> Decision:
    """Look again, decide, and upgrade where that is the decision; then see that the target is reached.

    The worker that has looked already goes on, where it waits for that.

    Raises Refused, Failed, TryAgain, Misconfigured.
    """
    name_invalid_indexes(lock)
    hear = functools.partial(_hear, lock=lock, settings=settings, keeper=keeper)
    return carry_out(lock, settings, target, hear, lambda progress: verified(lock, progress, keeper), idle)


def carry_out(
    lock: Lock,
    settings: Settings,
    target: Target,
    hear: Hear,
    verify: Callable[[Progress], T],
    idle: Worker | None = None,
    **order: Any,
) -> T:
    """Have a worker do what `hear` tells it, again while that may pass and nothing is committed, and verify the end.

    `order` completes what is asked of the worker. Raises Refused, Failed, TryAgain, Misconfigured.
    """
    progress = Progress()
    for tries_left in range(settings.ddl_retries, -1, -1):
        # Only what committed nothing is tried again: what was there before the first try is still that.
        progress = Progress(before=progress.before, backup=progress.backup)
        watch = Watch(lock, progress, patience(settings))
        try:
            given = _worker(_order(lock, settings, target, **order), settings, idle)
            _run_worker(given, lock, hear, watch, often(settings.ddl_lock_timeout))
            idle = None
            # Also after a success: what env.py left behind would keep the fence, and the next migrator waiting.
            progress.still_there = lock.end_backends(ENDING)
            if progress.failure is None:
                _name_sessions(progress)
                return verify(progress)
            if tries_left == 0 or not may_pass(lock, progress):
                raise failed(lock, progress)
            progress.end("tried again")
        except LockLost as lost:
            raise after_loss(lost, target, progress) from None
        except psycopg.OperationalError as error:
            raise after_loss(LockLost(str(error)), target, progress) from None
        _pause(settings, progress, tries_left)
    raise AssertionError("the last try returns or raises")


def _name_sessions(progress: Progress) -> None:
    if progress.still_there:
        log(
            "migration.running",
            level="warning",
            sessions=list(progress.still_there),
            note="these sessions of the migrations could not be ended, and the next migrator will wait for them",
        )


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
def _worker(order: Request, settings: Settings, idle: Worker | None) -> Iterator[Worker]:
    """Give the order to the worker that waits, or to a new one."""
    if idle is None or not idle.is_idle:
        with Worker(settings.python) as worker:
            worker.order(order)
            yield worker
    else:
        try:
            idle.order(dataclasses.replace(order, is_known=idle.graph is not None))
            yield idle
        finally:
            idle.end()


def _run_worker(given: AbstractContextManager[Worker], lock: Lock, hear: Hear, watch: Watch, every: float) -> None:
    """Run one worker to its end, passing on what it says. The worker is cancelled when anything goes wrong here."""
    progress = watch.progress
    with given as worker:
        try:
            for message in worker.messages(watch.tick, every):
                hear(message, worker, progress)
        except LockLost:
            worker.tell({"order": "cancel"})
            _hear_out(worker, progress)
            raise
        except (Interrupted, Ended):
            _cancel(lock, worker)
            raise
        if progress.failure is None and progress.decision is None:
            raise misconfigured(WorkerFailed(died(worker)))
        if progress.failure is None and worker.exit_status:
            progress.failure = {
                "kind": "died",
                "error": ended_with(worker.exit_status, f"the worker was ended with status {worker.exit_status}"),
                "status": worker.exit_status,
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
            note(message, progress)
    worker.end()


def _order(lock: Lock, settings: Settings, target: Target, **keys: Any) -> Request:
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
    return request("migrate", settings, target, places=target.places, token=lock.token, session=session, **keys)


def _hear(message: Message, worker: Worker, progress: Progress, lock: Lock, settings: Settings, keeper: Keeper) -> None:
    """React to one thing that the worker says."""
    said = message["said"]
    if said == "observed":
        progress.facts, progress.decision = keeper.decide(facts_of(message, settings, worker.graph))
        if progress.decision.action is Action.UPGRADE:
            keep_before(lock, settings, progress.facts, progress)
            progress.book = keeper.begin(progress.facts, progress.decision)
            worker.tell({"order": "upgrade", "revisions": progress.facts.target_revisions})
        else:
            worker.tell({"order": "stop"})
    else:
        note(message, progress)
        if said == "finished" and progress.book is not None and progress.facts is not None:
            progress.book.learn(progress.facts.graph.by_revision[message["revision"]].path)


def keep_before(lock: Lock, settings: Settings, facts: Facts, progress: Progress) -> None:
    """Before anything changes, read the schema and write the backup that a setting wants. Raises NoBackup, LockLost."""
    progress.before = progress.before or read_schema(lock, facts)
    if settings.backup is not None and progress.backup is None:
        progress.backup = back_up(
            lock.connection,
            settings.backup,
            keep=settings.backup_keep,
            recorded=facts.recorded,
            application_name=application_name(settings, "backing up"),
            check=lock.check_alive,
        )


def _cancel(lock: Lock, worker: Worker) -> None:
    """End what the worker runs on the server, then the worker, then what is left of its sessions."""
    worker.tell({"order": "cancel"})
    try:
        lock.cancel(lock.worker_backends())
        worker.end(GRACE)
        lock.end_backends(ENDING)
    except psycopg.Error:
        worker.end()
