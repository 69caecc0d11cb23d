"""What a worker says of its migrations, and what is looked at while they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from alembic_entrypoint.decide import Decision
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.lock import Lock
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres import activity
from alembic_entrypoint.postgres.backup import Backup
from alembic_entrypoint.postgres.book import Book
from alembic_entrypoint.schema.facts import Snapshot
from alembic_entrypoint.schema.reading import decoded
from alembic_entrypoint.worker.messages import Message

HEARTBEAT = 10.0
#: Seconds between two looks.
INTERVAL, SHORTEST = 0.5, 0.05


@dataclass
class Progress:
    """What a worker has said so far."""

    facts: Facts | None = None
    decision: Decision | None = None
    migration: Message | None = None
    finished: list[str] = field(default_factory=list)
    #: what the last COMMIT that was begun would have kept; None: none was begun
    committing: Message | None = None
    #: every transaction in which a migration was at work, by its number, with the migration
    transactions: list[tuple[str, str]] = field(default_factory=list)
    #: migrations that did something which no transaction shows, and what that was
    unseen: list[tuple[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    blocker: activity.Session | None = None
    failure: Message | None = None
    #: the schema before the first migration ran, where it could be read
    before: Snapshot | None = None
    #: the schema before the migration that is under way, where the worker has told it
    before_this: Snapshot | None = None
    #: the ledger, where what is going on was noted
    book: Book | None = None
    #: the copy of the database from before, where one is wanted
    backup: Backup | None = None
    #: backends of the worker that outlived it, and that could not be ended
    still_there: Sequence[int] = ()

    def end(self, outcome: str, recorded: Sequence[str] | None = None, message: str | None = None) -> None:
        """Note in the ledger how it ended."""
        if self.book is not None:
            self.book.end(outcome, recorded, message)


def note(message: Message, progress: Progress) -> None:
    """Keep what a worker says of its migrations."""
    said = message["said"]
    if said == "started":
        progress.migration, progress.started = message, time.monotonic()
        progress.before_this = None
        _note_transaction(message, progress)
        log("migration.started", **_named(message))
    elif said == "finished":
        progress.finished.append(message["revision"])
        elapsed = round(time.monotonic() - progress.started, 3)
        log("migration.finished", revision=message["revision"], elapsed=elapsed)
    elif said == "left_alone":
        log("worker.connected", level="debug", database=message["place"], note="another database, left alone")
    elif said == "schema":
        progress.before_this = decoded(message["snapshot"])
    elif said == "began":
        _note_transaction(message, progress)
    elif said == "unseen":
        progress.unseen.append((message["revision"], message["what"]))
    elif said == "committing":
        progress.committing = message
    elif said == "failed":
        progress.failure = message


def _note_transaction(message: Message, progress: Progress) -> None:
    if message["transaction"] is not None:
        progress.transactions.append((message["transaction"], message["revision"]))


def _named(migration: Message) -> dict[str, Any]:
    return {name: migration[name] for name in ("revision", "direction", "n", "of", "path", "doc")}


def often(lock_timeout: float) -> float:
    """Give the seconds between two looks: who blocks a statement is to be seen before it gives up its place."""
    return max(SHORTEST, min(INTERVAL, lock_timeout / 3 or INTERVAL))


class Watch:
    """What is looked at, twice a second or more often, while a worker runs."""

    def __init__(self, lock: Lock, progress: Progress, patience: Callable[[], None]) -> None:
        self._lock = lock
        self.progress = progress
        #: ends the wait for an env.py that never comes to its migrations
        self._patience = patience
        self._beat = time.monotonic()

    def tick(self) -> None:
        """See that the lock is held, who is in the way, and that something goes on. Raises LockLost, Misconfigured."""
        self._lock.check_alive()
        if self.progress.facts is None:
            self._patience()
        if self.progress.migration is None:
            return
        try:
            self._look()
        except psycopg.Error:
            self._lock.check_alive()

    def _look(self) -> None:
        connection, progress = self._lock.connection, self.progress
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
        migration = self.progress.migration or {}
        return {name: migration[name] for name in ("revision", "n", "of") if name in migration}
