"""`record`: the manual way out. Record revisions after a proof, or against it when a person insists by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from alembic_entrypoint.act import application_name
from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.decide import Decision
from alembic_entrypoint.errors import Refused, TryAgain, Usage
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.judge import judged, remembered
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock, locked
from alembic_entrypoint.observe import NeedsWriting, find_target, observe, recorded_now
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.postgres.versions import undo_of
from alembic_entrypoint.proof import Proof, prove, written
from alembic_entrypoint.recover import record as record_revisions
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target
from alembic_entrypoint.wait import await_database, connected

Write = Callable[[str], Any]


def record(settings: Settings, revisions: Sequence[str], *, unproven: bool, yes: str | None, write: Write) -> int:
    """Show the state and what would be recorded, ask, and do it. Raises Usage, Refused, Denied, TryAgain."""
    target = find_target(settings)
    target = target.at(await_database(target.address, settings.wait_timeout).address)
    try:
        seen = observe(settings, target, is_cleaning=settings.clean == ("migrations",))
    except NeedsWriting:
        raise Refused(
            "env.py writes to the database before it migrates (a CREATE SCHEMA, perhaps), so it cannot be looked at "
            "without writing. Nothing was changed.\nLet env.py write only where it must."
        ) from None
    target = seen.target
    with connected(target.address, settings.wait_timeout) as connection:
        facts = remembered(connection, seen.facts, settings)
        decision = judged(facts, settings)
        if decision.image:
            raise refusal(decision, settings.help_url, facts)
        wanted = _wanted(facts, revisions)
        _show(target, facts, decision, wanted, write)
        if not unproven:
            _prove(connection, settings, target, facts, wanted, write)
    if unproven:
        write("Nothing is proved: steps that were never applied would be left out for good, and nobody would notice.")
    confirm(target, by_name=unproven, yes=yes, verb="record it")
    name = application_name(settings, "locking")
    with locked(target.address, settings.lock_wait, settings.wait_timeout, name, lambda _: False) as lock:
        assert lock is not None
        _record(lock, settings, target, facts, decision, wanted, unproven)
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


def _show(target: Target, facts: Facts, decision: Decision, wanted: tuple[str, ...], write: Write) -> None:
    write(f"{target.address} is {decision.state.value}: {decision.because}")
    before = ", ".join(facts.recorded) or "nothing"
    write(f"To be recorded in {facts.version_table} instead of {before}: {written(wanted)}")
    pending = facts.graph.ancestors(facts.target_revisions) - facts.graph.ancestors(wanted)
    write(f"The next start would then run {len(pending)} migrations." if pending else "Nothing would be pending then.")


def _prove(
    connection: psycopg.Connection[Any],
    settings: Settings,
    target: Target,
    facts: Facts,
    wanted: tuple[str, ...],
    write: Write,
) -> Proof:
    """Prove that the live schema is that of these revisions. Raises Refused."""
    proof = prove(connection, settings, target, facts, only=wanted)
    if proof.outcome is not Outcome.ONE:
        raise Refused(
            f"The live schema is not that of {written(wanted)}. Nothing was changed.\n{proof.message}\n"
            f"If you know better: alembic-entrypoint record {' '.join(wanted)} --unproven",
            event="schema.refused",
        )
    write(f"Proved: the live schema is that of {written(wanted)}.")
    return proof


def confirm(target: Target, *, by_name: bool, yes: str | None, verb: str) -> None:
    """Ask on a terminal, for the database's name where more is at stake. Raises Usage where it is not confirmed."""
    name = target.address.place.dbname
    wanted = name if by_name else "yes"
    if yes is not None:
        if by_name and yes != name:
            raise Usage(f"--yes={yes!r} is not the name of the database, {name!r}. Nothing was changed.")
        return
    if not sys.stdin.isatty():
        option = f"--yes={name}" if by_name else "--yes"
        raise Usage(f"It is confirmed first, and there is no terminal to ask on. Nothing was changed.\nAdd {option}")
    sys.stderr.write(f"Type {wanted} to {verb}: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != wanted:
        raise Usage("It was not confirmed. Nothing was changed.")


def _record(
    lock: Lock,
    settings: Settings,
    target: Target,
    facts: Facts,
    decision: Decision,
    wanted: tuple[str, ...],
    unproven: bool,
) -> None:
    """Record under the lock what was confirmed, if what was shown is still so. Raises Refused, TryAgain."""
    if recorded_now(lock.connection, facts.version_table) != facts.recorded:
        raise TryAgain("Somebody changed what is recorded meanwhile. Nothing was changed by this run; look again.")
    # Again, since whoever held the lock before may have changed the schema.
    proof = None if unproven else _prove(lock.connection, settings, target, facts, wanted, lambda _: None)
    keeper = Keeper(lock, settings, None)
    record_revisions(
        lock, settings, keeper, facts, decision, wanted, proof, "RECORD UNPROVEN" if unproven else "RECORD"
    )
    keeper.settle_debts(facts, wanted)
