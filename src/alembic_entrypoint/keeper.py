"""Keep the ledger around one settling: before anything changes, and when it is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from alembic_entrypoint.decide import Action, Decision, State
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.fingerprint import Fingerprint, environment
from alembic_entrypoint.judge import decided, remembered
from alembic_entrypoint.lock import Lock
from alembic_entrypoint.postgres.ledger import Book, Starting
from alembic_entrypoint.settings import Settings


class Keeper:
    """Decides with what the ledger knows, and writes there what came of it. Writes over the lock's own session."""

    def __init__(self, lock: Lock, settings: Settings, image: Fingerprint | None) -> None:
        self._lock = lock
        self._settings = settings
        self._image = image

    def decide(self, facts: Facts) -> tuple[Facts, Decision]:
        """Add what the ledger knows, and decide."""
        facts = remembered(self._lock.connection, facts, self._settings)
        return facts, decided(facts, self._settings)

    def begin(self, facts: Facts, decision: Decision, action: str | None = None) -> Book | None:
        """Write what is about to begin, and the graph, so that a restarting replica can tell newer from lost.

        `action` is what is done where that is not what was decided.
        """
        book = self._book(facts)
        if book is not None:
            if decision.state is State.FRESH:
                book.forget_debts()
            book.begin(facts, decision.state.value, action or decision.action.value)
        return book

    def seen(self, facts: Facts, decision: Decision) -> None:
        """Keep what a look under the lock found, where nothing had to be done, or a person has to."""
        book = self._book(facts)
        if book is None or decision.image:
            return
        if decision.action is Action.START:
            self.applied(book, facts, facts.recorded)
        else:
            book.refused(facts, decision.state.value, decision.because)

    def applied(self, book: Book, facts: Facts, recorded: Sequence[str]) -> None:
        """Keep what is recorded now, and what the next start of this image may compare itself with."""
        starting, pending = None, dataclasses.replace(facts, recorded=tuple(recorded)).pending
        if self._image is not None and not pending and facts.graph.known.issuperset(recorded):
            inputs = facts.inputs
            starting = Starting(
                self._image.word,
                facts.graph.heads,
                inputs.variables,
                environment(inputs.variables),
                inputs.is_fixed and all(map(self._image.covers, inputs.folders)),
            )
        book.applied(facts, recorded, starting)

    def _book(self, facts: Facts) -> Book | None:
        if self._settings.ledger == "off":
            return None
        return Book(self._lock.connection, self._settings.image, facts.version_table)
