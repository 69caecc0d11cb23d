"""One start, from top to bottom: wait, look, take the lock, look again, decide, upgrade or refuse, become the app."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import psycopg

from alembic_entrypoint.act import application_name, look_locked, settle_locked
from alembic_entrypoint.decide import Action, Decision, decide
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.launch import launch
from alembic_entrypoint.lock import locked
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import NeedsWriting, find_target, log_cleaned, logged, observe, recorded_now
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.wait import await_database, connected
from alembic_entrypoint.worker.client import Worker


def run(settings: Settings, command: Sequence[str]) -> NoReturn:
    """Settle the database, then become the app."""
    steps = Steps()
    decision = settle(settings, steps)
    log("app.launching", state=decision.state.value, elapsed=steps.elapsed, command=command[0])
    launch(command)


class Steps:
    """How long each step of a start took, in seconds, in the order of the steps."""

    def __init__(self) -> None:
        self.elapsed: dict[str, float] = {}
        self._began = time.monotonic()

    def end(self, step: str) -> None:
        """Note that a step is over and the next begins."""
        now = time.monotonic()
        self.elapsed[step] = round(now - self._began, 3)
        self._began = now


def settle(settings: Settings, steps: Steps) -> Decision:
    """Bring the database to the target, or raise the reason why not. The decision that is returned is to start."""
    with ExitStack() as stack:
        return _settled(settings, steps, stack)


def _settled(settings: Settings, steps: Steps, stack: ExitStack) -> Decision:
    target = find_target(settings)
    ready = await_database(target.address, settings.wait_timeout)
    steps.end("wait")
    target = dataclasses.replace(target, address=ready.address)
    log("server.examined", version=ready.server.version, pooled=ready.server.is_pooled)
    _clean(settings)
    facts: Facts | None = None
    idle: Worker | None = None
    try:
        seen = observe(settings, target, is_cleaning=settings.clean == ("migrations",), stays=True)
        steps.end("observe")
        facts, target, idle = seen.facts, seen.target, seen.worker
        if idle is not None:
            stack.callback(idle.end)
        decision = decide(facts)
        if decision.action is Action.START:
            return _decided(facts)
        if decision.image:
            raise refusal(_decided(facts), settings.help_url, facts)
        log("schema.observed", state=decision.state.value, **logged(facts))
    except NeedsWriting as writing:
        target = writing.target
        log("schema.observed", note="env.py writes before it migrates: it is looked at under the lock")

    def is_done(connection: psycopg.Connection[Any]) -> bool:
        return facts is not None and _is_settled(connection, facts)

    # Who waits keeps no worker: a hundred replicas would use up the memory.
    end_idle = idle.end if idle is not None else lambda: None
    name = application_name(settings, "locking")
    with locked(target.address, settings.lock_wait, settings.wait_timeout, name, is_done, end_idle) as lock:
        steps.end("lock")
        if lock is None:
            assert facts is not None  # else there was nothing to compare with, and the lock was waited for
            with connected(target.address, settings.wait_timeout) as connection:
                return _decided(dataclasses.replace(facts, recorded=recorded_now(connection, facts.version_table)))
        if facts is None:
            look_locked(lock, settings, target)
        decision = settle_locked(lock, settings, target, _decided, idle)
        steps.end("upgrade")
        if decision.action is not Action.START:
            raise refusal(decision, settings.help_url, facts)
        return decision


def _clean(settings: Settings) -> None:
    """Remove stale bytecode in the folders that the setting names; those of the migrations are the worker's to find."""
    if settings.clean not in (("migrations",), ("off",)):
        from alembic_entrypoint.bytecode import remove_stale

        log_cleaned(remove_stale(settings.clean).document())


def _decided(facts: Facts) -> Decision:
    decision = decide(facts)
    log(
        "schema.decided",
        state=decision.state.value,
        action=decision.action.value,
        because=decision.because,
        recorded=list(facts.recorded),
        heads=list(facts.graph.heads),
    )
    return decision


def _is_settled(connection: psycopg.Connection[Any], facts: Facts) -> bool:
    """See, while another replica migrates, whether what this image needs is there already."""
    recorded = recorded_now(connection, facts.version_table)
    return decide(dataclasses.replace(facts, recorded=recorded)).action is Action.START
