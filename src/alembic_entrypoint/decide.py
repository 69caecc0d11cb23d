"""Facts and policy in, one row out. Everything that decides is in this file; nothing in it does I/O.

The first row whose question is answered with yes wins. A state is a row: what was seen, what is done, and the
sentences that an operator reads in the log, in the refusal and in the documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from alembic_entrypoint.facts import Facts


class State(str, Enum):
    """What the facts are called."""

    BROKEN = "BROKEN"
    FORKED = "FORKED"
    OVERLAPPED = "OVERLAPPED"
    REPLACED = "REPLACED"
    SUPERSEDED = "SUPERSEDED"
    AHEAD = "AHEAD"
    LOST = "LOST"
    REWRITTEN = "REWRITTEN"
    UNPROVED = "UNPROVED"
    SET_ASIDE = "SET ASIDE"
    CURRENT = "CURRENT"
    BEHIND = "BEHIND"
    UNTRACKED = "UNTRACKED"
    FRESH = "FRESH"


class Action(str, Enum):
    """What is done about it."""

    START = "START"
    UPGRADE = "UPGRADE"
    PROVE = "PROVE"
    REFUSE = "REFUSE"


@dataclass(frozen=True)
class Policy:
    """What the operator allows, and what a proof has shown."""

    start_ahead: bool = False
    #: it was proved that nothing which any revision makes is there
    is_base: bool = False


@dataclass(frozen=True)
class Row:
    """One state: the question that finds it, the action, and its sentences."""

    state: State
    action: Action
    holds: Callable[[Facts], bool]
    #: what was seen, as the documentation has it
    seen: str
    #: the same about this database; `{…}` is filled from the facts
    because: str
    danger: str = ""
    remedy: str = ""
    #: the image is at fault, so no database is needed to say so and the exit code is 78
    image: bool = False


@dataclass(frozen=True)
class Decision:
    """The row that won, its sentences filled in."""

    state: State
    action: Action
    because: str
    danger: str
    remedy: str
    image: bool

    @property
    def message(self) -> str:
        """Say what is wrong, why it is dangerous, and what to do, for a tired person."""
        parts = [f"{self.state.value}: {self.because}", self.danger, self.remedy]
        return "\n".join(part for part in parts if part)


def decide(facts: Facts, policy: Policy = Policy()) -> Decision:
    """Find the first row that holds."""
    row = next(row for row in ROWS if row.holds(facts))
    action = row.action
    if row.state is State.AHEAD and (policy.start_ahead or _declared_compatible(facts)):
        action = Action.START
    if row.state is State.UNTRACKED and policy.is_base:
        action = Action.UPGRADE
    if row.state is State.LOST and _descends(facts):
        # A newer image was here: what it did on top of this image's migrations cannot be proved away [R3].
        action = Action.REFUSE
    words = _words(facts)
    return Decision(
        row.state,
        action,
        row.because.format(**words),
        row.danger.format(**words),
        row.remedy.format(**words),
        row.image,
    )


def _is_replaced(facts: Facts) -> bool:
    by = facts.graph.replaced_by
    return bool(facts.unknown) and all(old in by and by[old].replaces[-1] == old for old in facts.unknown)


def _is_superseded(facts: Facts) -> bool:
    by = facts.graph.replaced_by
    return any(old in by and by[old].replaces[-1] != old for old in facts.unknown)


def _is_ahead(facts: Facts) -> bool:
    """The ledger has every unknown recorded revision, and this image's heads lie beneath what is recorded."""
    beneath = facts.ledger.closure(facts.recorded)
    return (
        bool(facts.unknown)
        and all(each in facts.ledger.beneath for each in facts.unknown)
        and all(head in beneath for head in facts.graph.heads)
    )


def _descends(facts: Facts) -> tuple[str, ...]:
    """Heads of this image on top of which, as the ledger shows, an unknown recorded revision was applied."""
    beneath = facts.ledger.closure(facts.unknown)
    return tuple(head for head in facts.graph.heads if head in beneath)


def _declared_compatible(facts: Facts) -> bool:
    """Every revision between this image's heads and what is recorded lets this image start."""
    between = facts.ledger.closure(facts.recorded) - facts.ledger.closure(facts.graph.heads) - facts.graph.known
    mine = facts.graph.ancestors(facts.graph.heads)
    return bool(between) and all(facts.ledger.oldest_compatible.get(each) in mine for each in between)


def _is_rewritten(facts: Facts) -> bool:
    return bool(_never_applied(facts))


def _never_applied(facts: Facts) -> tuple[str, ...]:
    """Revisions beneath a recorded one, in this image, that were not beneath it when it was applied here."""
    missing: set[str] = set()
    for revision in facts.recorded:
        applied = facts.ledger.ancestors.get(revision)
        if applied is not None:
            # A squash was applied where everything that it replaces was [R13].
            mine = facts.graph.ancestors([revision]) - applied
            missing |= {each for each in mine if not _was_applied(facts.graph.by_revision[each].replaces, applied)}
    return tuple(sorted(missing))


def _moves(facts: Facts) -> Iterator[str]:
    """Say what the files must say, for what was never applied here to come after all that was."""
    never = _never_applied(facts)
    for each in facts.graph.moved_on_top(never) if never and not facts.faults else ():
        now = facts.graph.by_revision[each.revision]
        if each.parents != now.parents:
            yield f"  - {each.path}: down_revision = {_as_written(each.parents)}"
        if each.depends_on != now.depends_on:
            yield f"  - {each.path}: depends_on = {_as_written(each.depends_on)}"


def _as_written(revisions: tuple[str, ...]) -> str:
    return repr(revisions if len(revisions) > 1 else revisions[0] if revisions else None)


def _was_applied(replaces: tuple[str, ...], applied: frozenset[str]) -> bool:
    return bool(replaces) and applied.issuperset(replaces)


def _would_run_set_aside(facts: Facts) -> bool:
    return bool(facts.recorded) and bool(facts.ledger.set_aside & set(facts.pending))


ROWS: tuple[Row, ...] = (
    Row(
        State.BROKEN,
        Action.REFUSE,
        lambda facts: bool(facts.faults),
        "the migrations do not load: no versions, a duplicate id, a missing parent, a cycle, an id too long for the "
        "version column or reserved (`base`, `head`, `heads`)",
        "the migrations in this image cannot be used:\n{faults}",
        "Alembic may report success and have run only a part of them.",
        "Mend the files and build the image again; `alembic-entrypoint plan` checks them before it is deployed.",
        image=True,
    ),
    Row(
        State.FORKED,
        Action.REFUSE,
        lambda facts: facts.target == "head" and len(facts.graph.heads) > 1,
        "the target is `head` and there are several heads",
        "the migrations have {n_heads} heads: {heads}.",
        "Which of them the app needs cannot be told, and upgrading to one would leave out the others.",
        "Merge them with `alembic merge -m 'merge heads' {heads_spaced}` and build the image again; "
        "or, if they are meant to live side by side, set ALEMBIC_ENTRYPOINT_TARGET=heads.",
        image=True,
    ),
    Row(
        State.OVERLAPPED,
        Action.REFUSE,
        lambda facts: bool(facts.overlapping),
        "a recorded revision is an ancestor of another recorded one",
        "{version_table} records {recorded}, but {overlapping}.",
        "One of the rows was written by hand or by two migrators at once; Alembic cannot upgrade from here, and "
        "which row is true cannot be told.",
        "Find out which of them the schema is at. If the newer one is right, remove the older row: "
        "`DELETE FROM {version_table} WHERE version_num = '{lower}'`.",
    ),
    Row(
        State.REPLACED,
        Action.PROVE,
        _is_replaced,
        "every unknown recorded revision is the *last* in the `replaces` of a known one",
        "{version_table} records {unknown}, which {replacement} replaces.",
        "Recording {replacement} without a proof would hide any difference between the old migrations and the squash.",
        "Deploy the last release that ships {unknown}. If you know that the schema will do all the same: "
        "`alembic-entrypoint record {replacement_spaced} --unproven`.",
    ),
    Row(
        State.SUPERSEDED,
        Action.REFUSE,
        _is_superseded,
        "a recorded revision is unknown and is another member of a `replaces`",
        "{version_table} records {unknown}, which is in the middle of what {replacement} replaces.",
        "The steps between {unknown} and {last_replaced} were never applied here, and this image no longer has them.",
        "Deploy the release whose newest migration is {last_replaced} first, then this one.",
    ),
    Row(
        State.AHEAD,
        Action.REFUSE,
        _is_ahead,
        "recorded revisions are unknown, and the ledger shows that this image's heads lie beneath what is recorded",
        "this image is older than the database: it knows {heads}, and {version_table} records {recorded}{since}.",
        "The app may fail on, or spoil, a schema that it does not know.",
        "Deploy an image that ships {unknown}; or, if this one is known to work with it, set "
        "ALEMBIC_ENTRYPOINT_AHEAD=run.",
    ),
    Row(
        State.LOST,
        Action.PROVE,
        lambda facts: bool(facts.unknown),
        "a recorded revision is unknown in any other way (squash, rebase, deleted file, another app)",
        "{version_table} records {unknown}, and no migration in this image has that id{descends}.",
        "The database may be newer than this image, belong to another app, or come from migrations that were squashed, "
        "rebased or deleted. `alembic stamp head` would record {heads} whatever the schema is: steps would be left out "
        "for good, and nobody would notice.",
        "Deploy the image that ships {unknown}. If its file was deleted or squashed by mistake, bring it back and "
        "build again. Nothing was changed; `alembic-entrypoint plan --prove` shows how the schema differs.",
    ),
    Row(
        State.REWRITTEN,
        Action.REFUSE,
        _is_rewritten,
        "every recorded revision is known, but the ledger knows that one beneath it was never applied here",
        "{never_applied} now lies beneath {recorded}, and was never applied to this database.",
        "Alembic would call this database up to date, and the step would be left out for good.",
        "Move {never_applied} on top, and build the image again:\n{moves}",
    ),
    Row(
        State.UNPROVED,
        Action.PROVE,
        lambda facts: bool(facts.recorded) and facts.ledger.owes_proof,
        "something is recorded, and the last settling here ended without the proof that it owed",
        "{version_table} records {recorded}, and the run that recorded it ended before it had proved it.",
        "The schema may differ from what is recorded.",
        "`alembic-entrypoint diagnose --prove` shows how it differs. Mend the schema and start again; if it is right "
        "as it is: `alembic-entrypoint record {recorded_spaced} --unproven`.",
    ),
    Row(
        State.SET_ASIDE,
        Action.REFUSE,
        _would_run_set_aside,
        "something is recorded, and an upgrade would run a revision that was set aside as LOST here",
        "an upgrade would run {set_aside}, which was recorded here once and then set aside as lost.",
        "Its changes may already be in the data, and running it again would make them twice.",
        "Find out whether {set_aside} was applied here. If it was: `alembic-entrypoint record {set_aside_spaced} "
        "--unproven`.",
    ),
    Row(
        State.CURRENT,
        Action.START,
        lambda facts: bool(facts.recorded) and not facts.pending,
        "the target is recorded, or lies beneath what is recorded",
        "{version_table} records {recorded}, and nothing is pending.",
    ),
    Row(
        State.BEHIND,
        Action.UPGRADE,
        lambda facts: bool(facts.recorded),
        "every recorded revision is known and the target is not reached",
        "{version_table} records {recorded}, and {n_pending} pending up to {target_revisions}.",
    ),
    Row(
        State.UNTRACKED,
        Action.PROVE,
        lambda facts: bool(facts.tables),
        "nothing is recorded, but there are tables",
        "{version_table} records nothing, but there are tables: {tables}.",
        "They may come from `create_all()`, a restore, a half-applied migration or another app. Running the migrations "
        "would fail half-way or double what is there; `alembic stamp head` would record steps that were never applied.",
        "If the tables belong to another app, name them: ALEMBIC_ENTRYPOINT_IGNORE='{tables_spaced}'. If they are this "
        "app's, restore the version table with them, or see which revision they are nearest to: "
        "`alembic-entrypoint plan --prove`. Nothing was changed.",
    ),
    Row(
        State.FRESH,
        Action.UPGRADE,
        lambda facts: True,
        "nothing is recorded and there are no tables",
        "the database is empty, and {n_pending} pending up to {target_revisions}.",
    ),
)


def _words(facts: Facts) -> dict[str, str]:
    """Fill the blanks of the sentences."""
    graph = facts.graph
    by = sorted({graph.replaced_by[old] for old in facts.unknown if old in graph.replaced_by}, key=lambda m: m.revision)
    replacements = [each.revision for each in by]
    last = [each.replaces[-1] for each in by]
    pending = len(facts.pending)
    newer = [each for each in facts.unknown if each in facts.ledger.since]
    on_top_of = _descends(facts)
    return {
        "faults": "\n".join(f"  - {fault}" for fault in facts.faults),
        "n_heads": str(len(graph.heads)),
        "heads": _listed(graph.heads),
        "heads_spaced": " ".join(graph.heads),
        "version_table": str(facts.version_table),
        "recorded": _listed(facts.recorded),
        "unknown": _listed(facts.unknown),
        "since": f" ({facts.ledger.since[newer[0]]})" if newer else "",
        "descends": f"; the ledger shows that it was applied on top of {_listed(on_top_of)}" if on_top_of else "",
        "overlapping": "; ".join(f"{lower} is an ancestor of {upper}" for lower, upper in facts.overlapping),
        "lower": facts.overlapping[0][0] if facts.overlapping else "",
        "replacement": _listed(replacements),
        "replacement_spaced": " ".join(replacements),
        "recorded_spaced": " ".join(facts.recorded),
        "set_aside_spaced": " ".join(sorted(facts.ledger.set_aside & set(facts.pending))),
        "last_replaced": _listed(last),
        "never_applied": _listed(_never_applied(facts)),
        "moves": "\n".join(_moves(facts)),
        "set_aside": _listed(sorted(facts.ledger.set_aside & set(facts.pending))),
        "n_pending": f"{pending} migration{' is' if pending == 1 else 's are'}",
        "target_revisions": _listed(facts.target_revisions),
        "tables": _listed(facts.tables, most=8),
        "tables_spaced": " ".join(sorted({table.partition(".")[0] + ".*" for table in facts.tables}))
        if len(facts.tables) > 8
        else " ".join(facts.tables),
    }


def _listed(words: tuple[str, ...] | list[str], most: int = 20) -> str:
    shown = ", ".join(words[:most])
    return shown + (f" and {len(words) - most} more" if len(words) > most else "")
