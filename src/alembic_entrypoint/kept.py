"""What the database keeps of a worker's work that did not end well: asked of the server, not believed.

A migration may commit in ways that nobody here sees: `op.execute("COMMIT")`, the driver's own commit, a connection of
its own. What was seen is the number of each transaction that it began; what became of it, the server knows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from alembic_entrypoint.observe import recorded_now
from alembic_entrypoint.watch import Progress


@dataclass(frozen=True)
class Kept:
    """What is kept of an upgrade or a downgrade, by revision."""

    recorded: tuple[str, ...]
    #: what is kept as a whole, in the order in which it was done
    whole: tuple[str, ...]
    #: of what a part is kept, or still at work
    partly: tuple[str, ...]
    #: what else did something that no transaction shows, and what that was
    unseen: tuple[tuple[str, str], ...]

    @property
    def is_nothing(self) -> bool:
        """Tell whether the database is as before, as far as the server can know."""
        return not (self.whole or self.partly or self.unseen)


#: A number that this server has not given out yet is from another one, of which it is the successor: what was not
#: copied before the other went is not here. Pages: "System Information Functions", pg_stat_activity.
_UNDER_WAY = """
SELECT number, CASE WHEN number::xid8 < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
                    THEN pg_catalog.pg_xact_status(number::xid8) ELSE 'aborted' END,
       (SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
         WHERE backend_xid = number::xid8::xid AND datname = pg_catalog.current_database() AND %s)
  FROM unnest(%s::text[]) AS number
"""


def what_is_kept(connection: psycopg.Connection[Any], progress: Progress, patience: float, *, ends: bool) -> Kept:
    """Ask what became of every transaction of the worker, which has ended; wait so many seconds for those under way.

    With `ends`, what is still under way is ended. What the server no longer knows counts as kept.
    """
    facts = progress.facts
    assert facts is not None  # else no migration had begun
    deadline = time.monotonic() + patience
    while True:
        states = _states(connection, sorted({number for number, _ in progress.transactions}), ends)
        if "in progress" not in states.values() or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    recorded = recorded_now(connection, facts.version_table)
    order = {revision: n for n, revision in enumerate(progress.finished)}
    whole = sorted(facts.graph.ancestors(recorded) ^ facts.applied, key=lambda each: order.get(each, len(order)))
    begun = [revision for number, revision in progress.transactions if states[number] != "aborted"]
    partly = tuple(dict.fromkeys(each for each in begun if each not in whole))
    unseen = tuple(each for each in progress.unseen if each[0] not in (*whole, *partly))
    return Kept(recorded, tuple(whole), partly, unseen)


def _states(connection: psycopg.Connection[Any], numbers: Sequence[str], ends: bool) -> dict[str, str | None]:
    rows = connection.execute(_UNDER_WAY, [ends, numbers]).fetchall()
    return {number: state for number, state, _ in rows}
