"""Settle one database: look through a worker, decide, upgrade or recover or refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from alembic_entrypoint.act import look_locked, settle_locked
from alembic_entrypoint.decide import Action, Decision, State
from alembic_entrypoint.errors import Ended
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.fingerprint import Fingerprint
from alembic_entrypoint.judge import decided, judged, remembered
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock, locked
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import NeedsWriting, Seen, logged, observe, recorded_now
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.postgres.session import application_name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.start import Steps
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import connected
from alembic_entrypoint.worker.client import Worker


@dataclass
class Settling:
    """One settling, whichever comes first, the lock or a look."""

    settings: Settings
    target: Target
    image: Fingerprint | None
    steps: Steps
    #: what is ended with it: the worker
    stack: ExitStack
    idle: Worker | None = None

    def look_under(self, lock: Lock, booting: Worker) -> str:
        """Look under the lock with a worker that waits for its order, then settle."""
        facts = self._look(booting, lock.check_alive)
        self.steps.end("observe")
        return self._settle(lock, facts)

    def look_first(self, is_unfit: bool) -> str:
        """Look, then take the lock where there is something to do; an `is_unfit` ledger is not written."""
        facts = self._look()
        self.steps.end("observe")
        if facts is not None:
            with connected(self.target.address, self.settings.wait_timeout) as connection:
                facts = remembered(connection, facts, self.settings)
            decision = judged(facts, self.settings)
            if decision.action is Action.START:
                decided(facts, self.settings)
                if not is_unfit:
                    self._remember(facts, decision)
                return decision.state.value
            if decision.image or decision.state is State.AHEAD:
                # No lock and no wait would change it: who migrates now only gets further ahead.
                raise refusal(decided(facts, self.settings), self.settings.help_url, facts)
            log("schema.observed", state=decision.state.value, **logged(facts))

        def is_done(connection: psycopg.Connection[Any]) -> bool:
            return facts is not None and _is_settled(connection, facts, self.settings)

        # Who waits keeps no worker: a hundred replicas would use up the memory.
        def at_wait(_: bool | None) -> None:
            if self.idle is not None:
                self.idle.end()

        name = application_name(self.settings, "locking")
        waits = self.settings.lock_wait, self.settings.wait_timeout
        key = self.image.key if self.image else None
        with locked(self.target.whole, *waits, name, is_done, at_wait, key) as lock:
            self.steps.end("lock")
            if lock is None:
                assert facts is not None  # else there was nothing to compare with, and the lock was waited for
                with connected(self.target.whole, self.settings.wait_timeout) as connection:
                    now = _now(connection, facts, self.settings)
                return decided(now, self.settings).state.value
            self.target = self.target.at(lock.address)
            return self._settle(lock, facts)

    def _look(self, booting: Worker | None = None, check: Callable[[], None] = lambda: None) -> Facts | None:
        """Look through `env.py`; None where that is to be done under the lock, since it writes."""
        try:
            is_cleaning = self.settings.clean == ("migrations",)
            seen: Seen = observe(
                self.settings, self.target, is_cleaning=is_cleaning, stays=True, check=check, booting=booting
            )
        except NeedsWriting as writing:
            self.target = writing.target
            log("schema.observed", note="env.py writes before it migrates: it is looked at under the lock")
            return None
        self.target, self.idle = seen.target, seen.worker
        if self.idle is not None:
            self.stack.callback(self.idle.end)
        return seen.facts

    def _settle(self, lock: Lock, facts: Facts | None) -> str:
        keeper = Keeper(lock, self.settings, self.image)
        if facts is None:
            look_locked(lock, self.settings, self.target)
        else:
            facts = _now(lock.connection, facts, self.settings)
            decision = judged(facts, self.settings)
            if decision.action is Action.START or decision.image:
                keeper.seen(facts, decided(facts, self.settings))
                if decision.image:
                    raise refusal(decision, self.settings.help_url, facts)
                return decision.state.value
        decision = settle_locked(lock, self.settings, self.target, keeper, self.idle)
        if decision.action is Action.PROVE and self.settings.recover == "prove":
            decision = self._recover(lock, keeper)
        self.steps.end("upgrade")
        if decision.action is not Action.START:
            raise refusal(decision, self.settings.help_url, facts)
        return decision.state.value

    def _recover(self, lock: Lock, keeper: Keeper) -> Decision:
        """Prove and record; then settle again, so that a database proved at an old revision is upgraded."""
        from alembic_entrypoint.recover import recover

        assert keeper.last is not None
        facts, decision = keeper.last
        recover(lock, self.settings, self.target, keeper, facts, decision)
        self.steps.end("prove")
        after = settle_locked(lock, self.settings, self.target, keeper)
        if after.action is Action.PROVE:
            # Once was enough: what a proof left in such a state, no other will mend.
            return dataclasses.replace(after, action=Action.REFUSE)
        return after

    def _remember(self, facts: Facts, decision: Decision) -> None:
        """Keep what this start saw where the ledger does not have it yet, if the lock is free; if not, another does."""
        is_kept = facts.ledger.ancestors.keys() >= set(facts.recorded)
        if self.settings.ledger == "off" or is_kept:
            return
        name = application_name(self.settings, "locking")
        waits = 0.0, self.settings.wait_timeout
        with suppress(Ended, psycopg.Error), locked(self.target.address, *waits, name, lambda _: False) as lock:
            if lock is not None:
                Keeper(lock, self.settings, self.image).seen(facts, decision)


def _now(connection: psycopg.Connection[Any], facts: Facts, settings: Settings) -> Facts:
    recorded = recorded_now(connection, facts.version_table)
    return remembered(connection, dataclasses.replace(facts, recorded=recorded), settings)


def _is_settled(connection: psycopg.Connection[Any], facts: Facts, settings: Settings) -> bool:
    """See, while another replica migrates, whether what this image needs is there already."""
    return judged(_now(connection, facts, settings), settings).action is Action.START
