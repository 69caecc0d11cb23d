"""`plan`: what `run` would do, and why. Writes nothing to the target, not even a version table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter
from typing import Any

import psycopg

from alembic_entrypoint.commands.looking import Looked, looked
from alembic_entrypoint.comparison import Outcome
from alembic_entrypoint.decide import Action, Decision
from alembic_entrypoint.errors import Ended
from alembic_entrypoint.facts import Facts
from alembic_entrypoint.observe import WorkerFailed, misconfigured, request
from alembic_entrypoint.outcome import refusal
from alembic_entrypoint.proof import Proof, prove
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target
from alembic_entrypoint.worker.client import Worker

_CANNOT_LOOK = "and plan never writes.\n`alembic-entrypoint migrate` looks under the lock, where that is allowed."


def plan(settings: Settings, *, as_json: bool, as_sql: bool, proves: bool = False, write: Callable[[str], Any]) -> int:
    """Print state, action and reason, or the SQL; give the exit code that `run` would end with."""
    with looked(settings, _CANNOT_LOOK, cleans=False) as (look, connection):
        proof = _proved(connection, look) if proves else None
    target, facts, decision = look.target, look.facts, look.decision
    ended = how_it_ends(decision, settings, facts)
    if proof is not None:
        # What was proved is recorded, and the database is settled from there.
        ended = None if proof.outcome in (Outcome.ONE, Outcome.BASE) else ended
        decision = dataclasses.replace(decision, because=f"{decision.because}\n{proof.message}")
    if as_sql:
        if ended is not None:
            raise ended
        write(sql_of(settings, target, facts.recorded))
    elif as_json:
        write(json.dumps(document(decision, facts, ended, proof), indent=2))
    else:
        _write_text(decision, facts, write)
    return ended.exit_code if ended else 0


def how_it_ends(decision: Decision, settings: Settings, facts: Facts) -> Ended | None:
    """Give what `run` would end with; None where it would start or upgrade."""
    if decision.action in (Action.START, Action.UPGRADE):
        return None
    return refusal(decision, settings.help_url, facts)


def _proved(connection: psycopg.Connection[Any], look: Looked) -> Proof | None:
    """Prove what `run` would prove; None where it would not."""
    if look.decision.action is not Action.PROVE or look.settings.recover == "off":
        return None
    from alembic_entrypoint.recover import asked_about

    only = asked_about(look.facts, look.decision)
    return prove(connection, look.settings, look.target, look.facts, only=only)


def document(decision: Decision, facts: Facts, ended: Ended | None, proof: Proof | None = None) -> dict[str, Any]:
    """Make the document whose schema is `docs/schema/plan.json`."""
    return {
        "state": decision.state.value,
        "action": decision.action.value,
        "because": decision.because,
        "message": decision.message,
        "exit_code": ended.exit_code if ended else 0,
        "target": facts.target,
        "recorded": list(facts.recorded),
        "heads": list(facts.graph.heads),
        "version_table": str(facts.version_table),
        "pending": [{"revision": each.revision, "path": each.path, "doc": each.doc} for each in in_order(facts)],
        "proof": _proof_document(proof) if proof else None,
    }


def _proof_document(proof: Proof) -> dict[str, Any]:
    return {
        "outcome": proof.outcome.name.lower(),
        "candidates": [list(each) for each in proof.candidates],
        "nearest": list(proof.nearest) if proof.nearest is not None else None,
        "difference": list(proof.difference),
        "strangers": list(proof.strangers),
    }


def in_order(facts: Facts) -> list[Any]:
    """Give the pending migrations, each after everything beneath it."""
    beneath = {revision: facts.graph.by_revision[revision].beneath for revision in facts.pending}
    ordered = TopologicalSorter(beneath).static_order()
    return [facts.graph.by_revision[revision] for revision in ordered if revision in beneath]


def _write_text(decision: Decision, facts: Facts, write: Callable[[str], Any]) -> None:
    write(f"{decision.action.value}  {decision.message}")
    if decision.action is Action.UPGRADE:
        for each in in_order(facts):
            write(f"  {each.revision}  {each.doc or '(no message)'}  {each.path}")


def sql_of(settings: Settings, target: Target, recorded: Sequence[str], *, downgrade: str | None = None) -> str:
    """Have Alembic write the SQL of an upgrade, or of a downgrade, that begins at what is recorded."""
    order = request("sql", settings, target, places=target.places, starting=tuple(recorded), downgrade=downgrade)
    text: list[str] = []
    with Worker(settings.python) as worker:
        worker.order(order)
        for message in worker.messages():
            if message["said"] == "sql":
                text.append(message["text"])
            elif message["said"] == "failed":
                raise misconfigured(WorkerFailed(message))
    return "".join(text).rstrip("\n")
