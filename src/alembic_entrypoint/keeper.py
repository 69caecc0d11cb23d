"""Keep the ledger around one settling: before anything changes, and when it is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from alembic_entrypoint.decide import Action, Decision, State
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.fingerprint import ALL, Fingerprint, environment
from alembic_entrypoint.judge import decided, remembered
from alembic_entrypoint.lock import Lock
from alembic_entrypoint.postgres.book import Book, Starting
from alembic_entrypoint.postgres.versions import search_path
from alembic_entrypoint.settings import Settings


class Keeper:
    """Decides with what the ledger knows, and writes there what came of it. Writes over the lock's own session."""

    def __init__(self, lock: Lock, settings: Settings, image: Fingerprint | None) -> None:
        self._lock = lock
        self._settings = settings
        self._image = image
        #: what was decided last, and of which facts
        self.last: tuple[Facts, Decision] | None = None
        #: it was proved that nothing which any revision makes is there
        self.is_base = False

    def decide(self, facts: Facts) -> tuple[Facts, Decision]:
        """Add what the ledger knows, and decide."""
        facts = remembered(self._lock.connection, facts, self._settings)
        self.last = facts, decided(facts, self._settings, is_base=self.is_base)
        return self.last

    def begin(self, facts: Facts, decision: Decision, action: str | None = None) -> Book | None:
        """Write what is about to begin, and the graph, so that a restarting replica can tell newer from lost.

        `action` is what is done where that is not what was decided.
        """
        book = self._book(facts)
        if book is not None:
            if decision.action is Action.UPGRADE and not facts.recorded:
                book.forget_debts()
            book.begin(facts, decision.state.value, action or decision.action.value)
        return book

    def seen(self, facts: Facts, decision: Decision) -> None:
        """Keep what a look under the lock found, where nothing had to be done, or a person has to."""
        book = self._book(facts)
        if book is None or decision.image:
            return
        if decision.state is State.CURRENT:
            self.applied(book, facts, facts.recorded)
        elif decision.action is Action.REFUSE or self._settings.recover == "off":
            book.refused(facts, decision.state.value, decision.because)

    def recorded(self, book: Book | None, facts: Facts, revisions: Sequence[str]) -> None:
        """Keep what was recorded without a migration."""
        if book is not None:
            book.end("ok", revisions)
            self.applied(book, facts, revisions)

    def clear_debt(self, facts: Facts, decision: Decision) -> None:
        """Keep that what is recorded has been proved."""
        book = self.begin(facts, decision)
        if book is not None:
            book.clear_debt()
            book.end("ok", facts.recorded)

    def settle_debts(self, facts: Facts, revisions: Sequence[str]) -> None:
        """Forget what was owed and set aside, since a person has said what is recorded."""
        book = self._book(facts)
        if book is not None:
            book.clear_debt()
            book.unset_aside(sorted(facts.graph.ancestors(revisions)))

    def known_replays(self, facts: Facts) -> Mapping[str, Any] | None:
        """Give what replays of these very migrations have shown here before."""
        book, word = self._book(facts), self._replayed(facts)
        if book is None or word is None:
            return None
        known: Mapping[str, Any] | None = book.replays(word, self._major)
        return known

    def keep_replays(self, facts: Facts, given: Mapping[str, Any]) -> None:
        """Keep what replays have shown, so that replicas which are started again and again do not replay again."""
        book, word = self._book(facts), self._replayed(facts)
        if book is not None and word is not None and given:
            book.keep_replays(word, self._major, given)

    def _replayed(self, facts: Facts) -> str | None:
        """Name all that a replay depends on; None where that cannot be seen.

        Which variables a migration reads shows only when it runs, so all of them count.
        """
        image = self._image
        if image is None or not all(map(image.covers, facts.inputs.folders)):
            return None
        path = f"{search_path(self._lock.connection)} {facts.search_path}"
        return f"{image.word} {environment([ALL])} {facts.version_table} {path}"

    @property
    def _major(self) -> int:
        return self._lock.connection.info.server_version // 10000

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
