"""The long way: take the lock, then look, decide, upgrade or refuse; or look first, and lock where there is work.

Replicas of one image start together. Those that the ledger may answer lock before they look, so that one of a hundred
looks and the others only ask the ledger; the others look first, so that none with nothing to do waits for a lock.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import psycopg

from alembic_entrypoint.fast import UNFIT, Answer, Known, ask
from alembic_entrypoint.fingerprint import Fingerprint
from alembic_entrypoint.lock import locked
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres.session import application_name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.start import Steps
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import await_database


class _LookFirst(Exception):
    """The ledger cannot answer for this image, or who holds the lock is of another."""


def settle_at_length(
    settings: Settings, target: Target | None, image: Fingerprint | None, known: Known, steps: Steps
) -> str:
    """Bring the database to the target, and name the state in which it is; or raise the reason why not."""
    if target is None:
        from alembic_entrypoint.observe import find_target

        target = find_target(settings)
        ready = await_database(target.address, settings.wait_timeout)
        log("server.examined", version=ready.server.version, pooled=ready.server.is_pooled)
        target, known = target.at(ready.address), known if ready.server.may_lock else UNFIT
        steps.end("wait")
    is_unfit = known.answer is Answer.UNFIT
    if image is not None and not is_unfit:
        with suppress(_LookFirst):
            return _lock_first(settings, target, image, steps)
    from alembic_entrypoint.settling import Settling

    with ExitStack() as stack:
        return Settling(settings, target, image, steps, stack).look_first(is_unfit)


def _lock_first(settings: Settings, target: Target, image: Fingerprint, steps: Steps) -> str:
    """Look under the lock; who waits for it asks the ledger whether a replica of the same image has done it all."""
    answers: list[Known] = []

    def is_done(connection: psycopg.Connection[Any]) -> bool:
        answers.append(ask(connection, image))
        if answers[-1].answer is Answer.UNFIT:
            raise _LookFirst
        return answers[-1].answer is Answer.SETTLED

    def at_wait(is_same_image: bool | None) -> None:
        if is_same_image is False:
            raise _LookFirst

    waits = settings.lock_wait, settings.wait_timeout
    name = application_name(settings, "locking")
    with locked(target.whole, *waits, name, is_done, at_wait, image.key) as lock, ExitStack() as stack:
        steps.end("lock")
        if lock is None:
            return answers[-1].said()
        # Only now, so that those who wait for the lock pay for nothing else; and the worker boots meanwhile.
        from alembic_entrypoint.worker.client import Worker

        booting = stack.enter_context(Worker(settings.python))
        from alembic_entrypoint.settling import Settling

        return Settling(settings, target.at(lock.address), image, steps, stack).look_under(lock, booting)
