"""What every connection in the worker is told, whoever opens it: where it goes, and what it proves first."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from alembic_entrypoint.address import Place, place_of
from alembic_entrypoint.worker.messages import HOLDER_CHECK, LOCK_B, LOCK_CLASS

#: Statements to run and the rows they gave: written once, driven by each driver in its own way.
Steps = Generator[str, Any, None]
#: What makes every text that asyncpg is asked another one.
_ASKED = itertools.count()


class FenceError(BaseException):
    """The lock under which this worker runs is not there; not an Exception, so that no migration swallows it."""


@dataclass(frozen=True)
class Made:
    """One connection: what was asked for, and whether that is the target."""

    place: Place
    parameters: Mapping[str, str] = field(repr=False)
    driver: str
    is_target: bool


@dataclass
class Policy:
    """What happens to connections in this worker; changed as the worker learns."""

    #: what replaces host, database, credentials and the like of a connection to the target; None: they stay
    target: Mapping[str, str] | None = None
    #: what counts as the target; None: every place
    places: set[Place] | None = None
    #: what of `target` env.py gave, and the places to which it connects with a password of the moment
    lent: frozenset[str] = frozenset()
    own: frozenset[Place] = frozenset()
    #: what a connection runs before it is handed out, by whether it is one to the target
    steps: Callable[[bool], Steps | None] = lambda _: None
    connect_timeout: float = 60.0
    #: called with all that is asked for, before connecting
    asked: Callable[[Made], None] = lambda _: None
    #: called with a place that is left alone
    left_alone: Callable[[Place], None] = lambda _: None
    #: called with each driver, by name, once it is wrapped
    wrapped: Callable[[str, ModuleType], None] = lambda *_: None
    made: weakref.WeakKeyDictionary[Any, Made] = field(default_factory=weakref.WeakKeyDictionary)

    def route(self, parameters: Mapping[str, str], driver: str) -> tuple[Made, Mapping[str, str] | None]:
        """Tell whether what is asked for is the target, and what replaces its parameters, if anything does."""
        place = place_of(parameters, os.environ)
        is_target = self.places is None or place in self.places
        made = Made(place, parameters, driver, is_target)
        self.asked(made)
        if not is_target:
            self.left_alone(place)
            return made, None
        if self.target is None or place not in self.own or parameters.get("user") != self.target.get("user"):
            return made, self.target
        # It is the target already: what the target's URL does not name stays as it is.
        return made, {**self.target, **{name: parameters[name] for name in self.lent & parameters.keys()}}


def fence_steps(token: int, session: Mapping[str, str]) -> Steps:
    """Hold the fence, *then* see that the lock is held, then set what a migrating session needs.

    The order is the protocol: between the two the successor either waits for our share of B, or has
    taken A, and then the check fails [R7].
    """
    row = yield f"SELECT pg_catalog.pg_try_advisory_lock_shared({LOCK_CLASS}, {LOCK_B})"
    if not row[0]:
        raise FenceError("another migrator is at work: the fence could not be taken")
    yield from check_steps(token)
    yield setting_statement(session)


def check_steps(token: int) -> Steps:
    """See that one backend of this database holds the lock and the token."""
    row = yield HOLDER_CHECK.replace("%(token)s", str(token))
    if not row or not row[0]:
        raise FenceError("the lock is not held in the database that this connection reached")


def setting_statement(session: Mapping[str, str]) -> str:
    """Set what this server has and lets us set; what `env.py` has set itself stays. Catalog page: pg_settings."""
    rows = ", ".join(f"('{name}', '{quoted}')" for name, quoted in _quoted(session))
    return (
        "SELECT pg_catalog.count(pg_catalog.set_config(s.name, v.value, false)) FROM pg_catalog.pg_settings AS s "
        f"JOIN (VALUES {rows}) AS v (name, value) USING (name) "
        "WHERE s.context = 'user' AND (s.source <> 'session' OR s.name = 'application_name')"
    )


def _quoted(session: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value.replace("'", "''")) for name, value in session.items()]


def read_only_steps() -> Steps:
    """Make a session that only looks read-only, but not through a pooler, where that would leak to the app."""
    row = yield "SELECT pg_catalog.pg_backend_pid()"
    if row[0] == (yield ""):
        yield "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"


def ask(connection: Any, statement: str) -> Any:
    """Run a statement on the driver's cursor, in the transaction that is under way; give its first row.

    `connection` is SQLAlchemy's, whose own execute would begin a transaction.
    """
    if connection.dialect.driver == "asyncpg":
        # It would keep the statement prepared, and so would SQLAlchemy, and neither hears of a `DISCARD ALL`.
        statement = f"{statement} -- {next(_ASKED)}"
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()
