"""`record`: the manual way out. Record revisions after a proof, or against it when a person insists by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from alembic_entrypoint.commands.asking import confirm
from alembic_entrypoint.commands.looking import Looked, locked_as_shown, looked
from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.errors import Refused, Usage
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock
from alembic_entrypoint.postgres.versions import undo_of
from alembic_entrypoint.proof import Proof, prove, written
from alembic_entrypoint.recover import record as record_revisions
from alembic_entrypoint.settings import Settings

Write = Callable[[str], Any]


def record(settings: Settings, revisions: Sequence[str], *, unproven: bool, yes: str | None, write: Write) -> int:
    """Show the state and what would be recorded, ask, and do it. Raises Usage, Refused, Denied, TryAgain."""
    with looked(settings) as (look, connection):
        look.refuse_image()
        wanted = _wanted(look.facts, revisions)
        _show(look, wanted, write)
        if not unproven:
            _prove(connection, look, wanted)
            write(f"Proved: the live schema is that of {written(wanted)}.")
    if unproven:
        write("Nothing is proved: steps that were never applied would be left out for good, and nobody would notice.")
    confirm(look.target, by_name=unproven, yes=yes, verb="record it")
    with locked_as_shown(look) as lock:
        _record(lock, look, wanted, unproven)
    facts = look.facts
    write(f"Recorded: {written(wanted)}. To undo it: {undo_of(facts.version_table, facts.recorded, wanted)}")
    return 0


def _wanted(facts: Facts, revisions: Sequence[str]) -> tuple[str, ...]:
    """See that these are revisions of this image of which none lies beneath another. Raises Usage."""
    unknown = [each for each in revisions if each not in facts.graph.known]
    if unknown:
        raise Usage(
            f"No migration in this image has the revision {', '.join(unknown)}. Nothing was changed.\n"
            f"REV is one exact revision, or several where branches stand side by side; heads: "
            f"{', '.join(facts.graph.heads)}."
        )
    wanted = tuple(sorted(set(revisions)))
    for upper in wanted:
        for lower in wanted:
            if lower != upper and lower in facts.graph.ancestors([upper]):
                raise Usage(f"{lower} lies beneath {upper}: only the upper one is recorded. Nothing was changed.")
    return wanted


def _show(look: Looked, wanted: tuple[str, ...], write: Write) -> None:
    facts = look.facts
    write(look.words)
    before = ", ".join(facts.recorded) or "nothing"
    write(f"To be recorded in {facts.version_table} instead of {before}: {written(wanted)}")
    pending = facts.graph.ancestors(facts.target_revisions) - facts.graph.ancestors(wanted)
    write(f"The next start would then run {len(pending)} migrations." if pending else "Nothing would be pending then.")


def _prove(connection: psycopg.Connection[Any], look: Looked, wanted: tuple[str, ...]) -> Proof:
    """Prove that the live schema is that of these revisions. Raises Refused."""
    proof = prove(connection, look.settings, look.target, look.facts, only=wanted)
    if proof.outcome is not Outcome.ONE:
        raise Refused(
            f"The live schema is not that of {written(wanted)}. Nothing was changed.\n{proof.message}\n"
            f"If you know better: alembic-entrypoint record {' '.join(wanted)} --unproven",
            event="schema.refused",
        )
    return proof


def _record(lock: Lock, look: Looked, wanted: tuple[str, ...], unproven: bool) -> None:
    """Record under the lock what was confirmed. Raises Refused, TryAgain."""
    # Again, since whoever held the lock before may have changed the schema.
    proof = None if unproven else _prove(lock.connection, look, wanted)
    keeper, action = Keeper(lock, look.settings, None), "RECORD UNPROVEN" if unproven else "RECORD"
    record_revisions(lock, look.settings, keeper, look.facts, look.decision, wanted, proof, action)
    keeper.settle_debts(look.facts, wanted)
