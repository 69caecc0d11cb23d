"""How the commands of a person begin: look at image and database, judge them, and lock only what was shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from alembic_entrypoint.decide import Decision
from alembic_entrypoint.errors import Refused, TryAgain
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.judge import judged, remembered
from alembic_entrypoint.lock import Lock, locked
from alembic_entrypoint.observe import NeedsWriting, Seen, find_target, observe, recorded_now
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.postgres.session import application_name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import await_database, connected

#: What a command says that changes something, where it cannot show first what that is.
CANNOT_SHOW = "so it cannot be looked at without writing. Nothing was changed.\nLet env.py write only where it must."


@dataclass(frozen=True)
class Looked:
    """What was seen without the lock, and what it is called."""

    settings: Settings
    target: Target
    facts: Facts
    decision: Decision

    def refuse_image(self) -> None:
        """Go no further with migrations that cannot be used, whatever the database is. Raises Misconfigured."""
        if self.decision.image:
            raise refusal(self.decision, self.settings.help_url, self.facts)

    @property
    def words(self) -> str:
        """Say which database it is, and how it is."""
        return f"{self.target.address} is {self.decision.state.value}: {self.decision.because}"


def see(settings: Settings, otherwise: str, *, cleans: bool) -> Seen:
    """Wait for the database, and look through `env.py`.

    `otherwise` ends the sentence for an `env.py` that writes before it migrates. Raises Refused, and whatever
    `observe` raises.
    """
    target = find_target(settings)
    target = target.at(await_database(target.address, settings.wait_timeout).address)
    try:
        return observe(settings, target, is_cleaning=cleans and settings.clean == ("migrations",))
    except NeedsWriting:
        raise Refused(
            f"env.py writes to the database before it migrates (a CREATE SCHEMA, perhaps), {otherwise}"
        ) from None


@contextmanager
def looked(
    settings: Settings, otherwise: str = CANNOT_SHOW, *, cleans: bool = True
) -> Iterator[tuple[Looked, psycopg.Connection[Any]]]:
    """See, and judge with what the ledger knows; the session is for what else there is to look at."""
    seen = see(settings, otherwise, cleans=cleans)
    with connected(seen.target.address, settings.wait_timeout) as connection:
        facts = remembered(connection, seen.facts, settings)
        yield Looked(settings, seen.target, facts, judged(facts, settings)), connection


@contextmanager
def locked_as_shown(look: Looked) -> Iterator[Lock]:
    """Hold the lock, once it is seen that what was shown is still recorded. Raises TryAgain."""
    settings, facts, name = look.settings, look.facts, application_name(look.settings, "locking")
    with locked(look.target.address, settings.lock_wait, settings.wait_timeout, name, lambda _: False) as lock:
        assert lock is not None  # nothing is ever done before we are
        if recorded_now(lock.connection, facts.version_table) != facts.recorded:
            raise TryAgain("Somebody changed what is recorded meanwhile. Nothing was changed by this run; look again.")
        yield lock
