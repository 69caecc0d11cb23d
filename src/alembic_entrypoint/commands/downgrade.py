"""`downgrade`: Alembic's downgrade under our lock, of exactly what was shown and confirmed."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from typing import Any

import psycopg

from alembic_entrypoint.act import carry_out, keep_before
from alembic_entrypoint.commands.asking import ask
from alembic_entrypoint.commands.looking import see
from alembic_entrypoint.commands.plan import sql_of
from alembic_entrypoint.decide import decide
from alembic_entrypoint.errors import Ended, Refused, Usage
from alembic_entrypoint.facts import Facts, Graph
from alembic_entrypoint.heard import facts_of
from alembic_entrypoint.keeper import Keeper
from alembic_entrypoint.lock import Lock, locked
from alembic_entrypoint.logs import log
from alembic_entrypoint.observe import recorded_now
from alembic_entrypoint.outcome import read_schema, refusal, uncommitted
from alembic_entrypoint.postgres.session import application_name
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.target import Target
from alembic_entrypoint.watch import Progress, note
from alembic_entrypoint.worker.client import Worker
from alembic_entrypoint.worker.messages import Message

Write = Callable[[str], Any]
BASE = "base"
#: What takes rows away, or may; rather too much than too little.
_LOSES = re.compile(
    r"\b(DROP (?!INDEX|CONSTRAINT|DEFAULT|NOT NULL|TRIGGER|VIEW|POLICY)|DELETE\b|TRUNCATE\b|UPDATE\b|TYPE\b)",
    re.IGNORECASE,
)
_MOST = 20
_CANNOT_SHOW = (
    "so what a downgrade would undo cannot be shown without writing. Nothing was changed.\n"
    "Let env.py write only where it must: see first whether the schema is there."
)


@dataclasses.dataclass(frozen=True)
class Way:
    """How far down, and what is undone on the way."""

    destination: str
    undone: frozenset[str]


def find_way(graph: Graph, recorded: tuple[str, ...], rev: str) -> Way:
    """Tell what a downgrade to an exact revision, `base` or `-N` undoes. Raises Usage where that means nothing."""
    destination = _steps_down(graph, recorded, rev) if re.fullmatch(r"-\d+", rev) else rev
    if destination != BASE and destination not in graph.known:
        raise Usage(
            f"No migration in this image has the revision {rev!r}. Nothing was changed.\n"
            "REV is one exact revision, base, or -1 for the last migration."
        )
    if destination != BASE and destination not in graph.ancestors(recorded):
        raise Usage(
            f"{destination} is not applied here: recorded is {', '.join(recorded) or 'nothing'}, and it does not lie "
            "beneath that. Nothing was changed."
        )
    return Way(destination, _undone(graph, recorded, destination))


def _undone(graph: Graph, recorded: tuple[str, ...], destination: str) -> frozenset[str]:
    applied = graph.ancestors(recorded)
    return applied if destination == BASE else applied & _above(graph, destination)


def _steps_down(graph: Graph, recorded: tuple[str, ...], rev: str) -> str:
    """Go N steps down from the one recorded revision. Raises Usage where there are several ways, or too few steps."""
    here = recorded
    for _ in range(-int(rev)):
        if here == ():
            raise Usage(f"There are fewer than {rev[1:]} migrations beneath what is recorded. Nothing was changed.")
        if len(here) > 1:
            raise Usage(
                f"{rev} has more than one meaning where {', '.join(here)} stand side by side. Nothing was changed.\n"
                "Name the revision to go down to."
            )
        here = graph.by_revision[here[0]].parents
    if len(here) > 1:
        raise Usage(
            f"{rev} leads to several: {', '.join(here)}. Nothing was changed.\nName the revision to go down to."
        )
    return here[0] if here else BASE


def _above(graph: Graph, revision: str) -> frozenset[str]:
    """Collect everything that stands on a revision."""
    found = {revision}
    waiting = [revision]
    while waiting:
        beneath = waiting.pop()
        upon = [each.revision for each in graph.migrations if beneath in each.beneath and each.revision not in found]
        found.update(upon)
        waiting += upon
    return frozenset(found - {revision})


def downgrade(settings: Settings, rev: str, *, is_confirmed: bool, write: Write) -> int:
    """Show what would be undone, ask, and undo it. Raises Usage, Refused, Failed, NoBackup, TryAgain."""
    seen = see(settings, _CANNOT_SHOW, cleans=True)
    facts, target = seen.facts, seen.target
    if ended := _hindrance(facts, settings):
        raise ended
    way = find_way(facts.graph, facts.recorded, rev)
    if not way.undone:
        write(f"{facts.version_table} records {_listed(facts.recorded)}: there is nothing to undo.")
        return 0
    _show(settings, target, facts, way, write)
    if not is_confirmed:
        ask(
            "Stop the app first: it may fail on the older schema. Type yes to undo them: ",
            "yes",
            what="A downgrade",
            instead=f"alembic-entrypoint downgrade {shlex.quote(rev)} --yes",
        )

    def is_done(connection: psycopg.Connection[Any]) -> bool:
        recorded = recorded_now(connection, facts.version_table)
        # What stands on an unknown revision cannot be told.
        return facts.graph.known.issuperset(recorded) and not facts.graph.ancestors(recorded) & way.undone

    name = application_name(settings, "locking")
    with locked(target.address, settings.lock_wait, settings.wait_timeout, name, is_done) as lock:
        if lock is None:
            write("Somebody else undid them meanwhile; this run changed nothing.")
            return 0
        progress = _undo(lock, settings, target, way)
    _tell(facts, way, progress, write)
    return 0


def _hindrance(facts: Facts, settings: Settings) -> Ended | None:
    """Say why there is no way down: files that do not load, rows that contradict each other, unknown revisions."""
    if facts.faults or facts.overlapping:
        return refusal(decide(facts), settings.help_url, facts)
    if facts.unknown:
        return Refused(
            f"{facts.version_table} records {_listed(facts.unknown)}, and no migration in this image has that id: the "
            "downgrade() that would undo it is in the image that ships it. Nothing was changed.\n"
            "Run `alembic-entrypoint downgrade` in that image.",
            event="schema.refused",
        )
    return None


def _show(settings: Settings, target: Target, facts: Facts, way: Way, write: Write) -> None:
    write(f"{target.address}: {facts.version_table} records {_listed(facts.recorded)}.")
    write(f"A downgrade to {way.destination} undoes {len(way.undone)}, the last one first:")
    for revision in _last_first(facts.graph, way.undone):
        each = facts.graph.by_revision[revision]
        write(f"  {each.revision}  {each.doc or '(no message)'}  {each.path}")
    _show_losses(settings, target, facts, way, write)
    if settings.backup is None:
        write("No backup is made: ALEMBIC_ENTRYPOINT_BACKUP is not set.")


def _show_losses(settings: Settings, target: Target, facts: Facts, way: Way, write: Write) -> None:
    """Show the statements that may take rows away, as far as they can be had without running them."""
    try:
        text = sql_of(settings, target, facts.recorded, downgrade=way.destination)
    except Ended:
        write("What may be lost cannot be told, as it needs a database to run: read each downgrade().")
        return
    text = re.sub(r"^--.*$", "", text, flags=re.MULTILINE)
    statements = [" ".join(each.split()) for each in text.split(";\n")]
    losing = [each for each in statements if _LOSES.search(each) and facts.version_table.name not in each]
    write("Lost may be what these take away:" if losing else "It drops, deletes and updates nothing.")
    for each in losing[:_MOST]:
        write(f"  {each[:200]}")
    if len(losing) > _MOST:
        write(f"  and {len(losing) - _MOST} more")


def _undo(lock: Lock, settings: Settings, target: Target, way: Way) -> Progress:
    """Undo what was confirmed, and see that it is so."""

    def hear(message: Message, worker: Worker, progress: Progress) -> None:
        if message["said"] != "observed":
            note(message, progress)
            return
        facts = progress.facts = facts_of(message, settings)
        progress.decision = decide(facts)
        if way.undone != _undone(facts.graph, facts.recorded, way.destination):
            worker.tell({"order": "stop"})
            raise Refused(
                f"Somebody changed what is recorded meanwhile: it is now {_listed(facts.recorded)}, and something else "
                "would be undone than what was shown. Nothing was changed by this run.\n"
                "Look again: alembic-entrypoint plan"
            )
        keep_before(lock, settings, facts, progress)
        progress.book = Keeper(lock, settings, None).begin(facts, progress.decision, "DOWNGRADE")
        worker.tell({"order": "downgrade", "undone": sorted(way.undone)})

    def verify(progress: Progress) -> Progress:
        facts = progress.facts
        assert facts is not None
        recorded = recorded_now(lock.connection, facts.version_table)
        if facts.graph.ancestors(recorded) != facts.applied - way.undone:
            raise uncommitted(lock, "downgrades", progress)
        progress.end("ok", recorded)
        is_same = progress.before is not None and read_schema(lock, facts) == progress.before
        log(
            "schema.downgraded",
            level="warning" if is_same else "info",
            before=list(facts.recorded),
            after=list(recorded),
            migrations=len(progress.finished),
            note="the schema is as before: what these migrations made is still there" if is_same else None,
        )
        return progress

    return carry_out(lock, settings, target, hear, verify, downgrade=way.destination)


def _tell(facts: Facts, way: Way, progress: Progress, write: Write) -> None:
    write(f"Undone: {', '.join(progress.finished)}.")
    write(f"The next start of this image applies them again. To do so now: {_up_again(facts)}")
    write("Rows that were in what was dropped do not come back with that.")
    if progress.backup:
        write(progress.backup.words)


def _up_again(facts: Facts) -> str:
    command = ["alembic-entrypoint", "migrate", "--target"]
    return " && ".join(shlex.join([*command, each]) for each in facts.recorded)


def _last_first(graph: Graph, revisions: frozenset[str]) -> list[str]:
    from graphlib import TopologicalSorter

    beneath = {each: [b for b in graph.by_revision[each].beneath if b in revisions] for each in sorted(revisions)}
    return list(TopologicalSorter(beneath).static_order())[::-1]


def _listed(revisions: tuple[str, ...]) -> str:
    return ", ".join(revisions) or "nothing"
