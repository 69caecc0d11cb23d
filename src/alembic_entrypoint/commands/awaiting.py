"""`await connection` and `await head`: wait until another has done it. Never writes, and needs no right but reading."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from alembic_entrypoint.decide import Action, Decision, State
from alembic_entrypoint.errors import Ended, Refused, TryAgain, Unavailable
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.fast import Answer, ask, find_fingerprint
from alembic_entrypoint.fingerprint import Fingerprint
from alembic_entrypoint.judge import decided, judged, remembered
from alembic_entrypoint.launch import launch
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import NeedsWriting, find_target, observe, recorded_now
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import await_database, connected

#: Seconds between two looks, with jitter, and seconds after which it is said again what is missing.
PAUSE, TOLD_AGAIN = 1.0, 10.0
#: States that waiting cannot mend; the others somebody may be about to.
_HOPELESS = (State.BROKEN, State.FORKED, State.AHEAD)


def await_connection(settings: Settings) -> None:
    """Wait until the database answers; a standby will do. Raises Unavailable, Denied, Misconfigured."""
    await_database(find_target(settings).address, settings.wait_timeout, needs_primary=False)


def await_head(settings: Settings) -> str:
    """Wait until the database is at this image's target, and name its state. Raises TryAgain when the time is over."""
    image, target = find_fingerprint(settings), find_target(settings)
    ready = await_database(target.address, settings.wait_timeout, needs_primary=False)
    return _Awaiting(settings, target.at(ready.address), image).state()


@dataclasses.dataclass
class _Awaiting:
    """One wait. No connection is kept between two looks, and `env.py` is run only once."""

    settings: Settings
    target: Target
    image: Fingerprint | None
    facts: Facts | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)
    told: float = float("-inf")
    missing: str = ""

    def state(self) -> str:
        while True:
            try:
                if state := self._look():
                    return state
            except (Unavailable, TryAgain, psycopg.OperationalError) as error:
                self.missing = error.message.splitlines()[0] if isinstance(error, Ended) else str(error).strip()
            self._sleep()

    def _look(self) -> str | None:
        """Look once; the state where the app may start."""
        with connected(self.target.whole, self.settings.wait_timeout, needs_primary=False) as connection:
            if self.image is not None:
                known = ask(connection, self.image)
                if known.answer is Answer.SETTLED:
                    return known.said()
            if self.facts is not None:
                return self._judge(connection, self.facts)
        if self.facts is None:
            self.facts = self._observe()
        with connected(self.target.whole, self.settings.wait_timeout, needs_primary=False) as connection:
            return self._judge(connection, self.facts)

    def _observe(self) -> Facts:
        try:
            seen = observe(self.settings, self.target)
        except NeedsWriting:
            raise Refused(
                "env.py writes to the database before it migrates (a CREATE SCHEMA, perhaps), and this command never "
                "writes, so it cannot look.\nMake env.py write only where context.is_offline_mode() is false and the "
                "object is missing, or wait for the replica that migrates in another way."
            ) from None
        self.target = seen.target
        return seen.facts

    def _judge(self, connection: psycopg.Connection[Any], facts: Facts) -> str | None:
        now = dataclasses.replace(facts, recorded=recorded_now(connection, facts.version_table))
        now = remembered(connection, now, self.settings)
        decision = judged(now, self.settings)
        if decision.action is Action.START:
            return decided(now, self.settings).state.value
        if decision.state in _HOPELESS:
            raise refusal(decision, self.settings.help_url, now)
        self.missing = _missing(decision, now)
        return None

    def _sleep(self) -> None:
        left = self.settings.await_timeout - (time.monotonic() - self.started)
        if left <= 0:
            raise TryAgain(
                f"The database was not at the revision that this image needs within {self.settings.await_timeout:g} s: "
                f"{self.missing}\nSee what the replica that migrates says; a longer wait: "
                "ALEMBIC_ENTRYPOINT_AWAIT_TIMEOUT. Nothing was changed."
            )
        if time.monotonic() - self.told > TOLD_AGAIN:
            self.told = time.monotonic()
            log("head.awaited", missing=self.missing, elapsed=round(self.told - self.started, 1))
        time.sleep(min(left, PAUSE * random.uniform(0.5, 1.0)))  # noqa: S311


def _missing(decision: Decision, facts: Facts) -> str:
    if decision.state in (State.BEHIND, State.FRESH):
        return f"{len(facts.pending)} pending up to {', '.join(facts.target_revisions)}"
    return f"{decision.state.value}: {decision.because}"


def await_and_become(settings: Settings, what: str, command: Sequence[str]) -> int:
    """Wait for what the command line names, then become the command, if there is one."""
    state = "connected"
    if what == "head":
        state = await_head(settings)
    else:
        await_connection(settings)
    if command:
        log("app.launching", state=state, command=command[0])
        launch(command)
    return 0
