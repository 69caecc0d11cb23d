"""Judge what was observed, with what the ledger remembers of it, by what the operator allows."""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg

from alembic_entrypoint.content import is_edited
from alembic_entrypoint.decide import Action, Decision, Policy, State, decide
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.logs import log
from alembic_entrypoint.postgres import ledger
from alembic_entrypoint.settings import Settings


def remembered(connection: psycopg.Connection[Any], facts: Facts, settings: Settings) -> Facts:
    """Add what the ledger knows of this database."""
    if settings.ledger == "off":
        return facts
    return dataclasses.replace(facts, ledger=ledger.read(connection, facts))


def judged(facts: Facts, settings: Settings, *, is_base: bool = False) -> Decision:
    """Decide as the settings allow, and a proof that nothing of ours is there."""
    return decide(facts, Policy(start_ahead=settings.ahead == "run", is_base=is_base))


def decided(facts: Facts, settings: Settings, *, is_base: bool = False) -> Decision:
    """Decide, and say what was decided, and what gives reason to worry all the same."""
    decision = judged(facts, settings, is_base=is_base)
    is_ahead = decision.state is State.AHEAD and decision.action is Action.START
    log(
        "schema.decided",
        level="warning" if is_ahead else "info",
        state=decision.state.value,
        action=decision.action.value,
        because=decision.because,
        recorded=list(facts.recorded),
        heads=list(facts.graph.heads),
    )
    edited = edited_files(facts)
    if edited:
        log(
            "migration.edited",
            level="warning",
            files=edited,
            note="these were edited after they had been applied here; what was changed in them was not applied",
        )
    return decision


def edited_files(facts: Facts) -> list[str]:
    """Name the files of applied migrations that no longer say what was applied; white space and comments apart."""
    known, graph = facts.ledger.contents, facts.graph.by_revision
    return [
        graph[each].path for each in sorted(facts.applied & known.keys()) if is_edited(graph[each].path, known[each])
    ]
