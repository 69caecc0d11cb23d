"""The whole decision as a table of examples: what was seen, and what it is called."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alembic_entrypoint.decide import ROWS, Action, Policy, State, decide
from alembic_entrypoint.facts import Facts, Graph, Ledger, Migration


def line(*revisions: str) -> tuple[Migration, ...]:
    """Make migrations that follow each other."""
    beneath = ("", *revisions)
    return tuple(
        Migration(revision, parents=(parent,) if parent else (), path=f"versions/{revision}.py")
        for revision, parent in zip(revisions, beneath, strict=False)
    )


def seen(*migrations: Migration, recorded: tuple[str, ...] = (), target: str = "head", **more: object) -> Facts:
    """Say what was observed: migrations, what is recorded, and more."""
    graph = Graph(migrations)
    revisions = graph.heads if target in ("head", "heads") else (target,)
    facts = Facts(graph=graph, target=target, target_revisions=revisions, recorded=recorded)
    return dataclasses.replace(facts, **more)  # type: ignore[arg-type]


def ledger(*lines: tuple[str, ...], **more: object) -> Ledger:
    """Make a ledger that has seen these lines of revisions, each on the one before."""
    beneath: dict[str, frozenset[str]] = {}
    for revisions in lines:
        for revision, parent in zip(revisions, ("", *revisions), strict=False):
            beneath[revision] = beneath.get(revision, frozenset()) | ({parent} - {""})
    return Ledger(beneath=beneath, **more)  # type: ignore[arg-type]


def applied(recorded: str, *ancestors: str) -> Ledger:
    """Make a ledger that knows what lay beneath a revision when it was recorded."""
    return Ledger(ancestors={recorded: frozenset({recorded, *ancestors})})


ABC = line("a", "b", "c")
FORK = (*line("a", "b"), Migration("c", parents=("a",)))
SQUASH = (Migration("s", replaces=("a", "b", "c"), path="versions/s.py"),)
PAST_SQUASH = (*SQUASH, Migration("d", parents=("s",)))

EXAMPLES = [
    ("no migrations at all", seen(), State.BROKEN),
    ("a file that does not load", seen(*ABC, unloadable=("x.py does not load",)), State.BROKEN),
    ("broken, though several heads and a lost revision", seen(*FORK, unloadable=("x",), recorded=("z",)), State.BROKEN),
    ("two heads", seen(*FORK), State.FORKED),
    ("two heads, though nothing is to do", seen(*FORK, recorded=("b", "c")), State.FORKED),
    ("two heads that are wanted", seen(*FORK, target="heads"), State.FRESH),
    ("two heads, and a revision is wanted", seen(*FORK, target="b", recorded=("a",)), State.BEHIND),
    ("a head that another depends on is none", seen(Migration("a"), Migration("b", depends_on=("a",))), State.FRESH),
    ("a revision and its ancestor", seen(*ABC, recorded=("a", "c")), State.OVERLAPPED),
    (
        "a revision and what it depends on",
        seen(Migration("a"), Migration("b", depends_on=("a",)), recorded=("a", "b")),
        State.OVERLAPPED,
    ),
    ("overlapping before lost", seen(*ABC, recorded=("a", "c", "z")), State.OVERLAPPED),
    ("the last that a squash replaces", seen(*SQUASH, recorded=("c",)), State.REPLACED),
    (
        "the last, though the ledger knows it as newer",
        seen(*SQUASH, recorded=("c",), ledger=ledger(("s", "c"))),
        State.REPLACED,
    ),
    (
        "the last of two squashes",
        seen(*SQUASH, Migration("t", replaces=("x", "y")), target="heads", recorded=("c", "y")),
        State.REPLACED,
    ),
    (
        "the last of a squash, beside a known one",
        seen(*SQUASH, Migration("t"), target="heads", recorded=("c", "t")),
        State.REPLACED,
    ),
    ("in the middle of a squash", seen(*SQUASH, recorded=("b",)), State.SUPERSEDED),
    ("in the middle, beside a lost one", seen(*SQUASH, recorded=("b", "z")), State.SUPERSEDED),
    (
        "in the middle, though the ledger knows it as newer",
        seen(*SQUASH, recorded=("b",), ledger=ledger(("s", "b"))),
        State.SUPERSEDED,
    ),
    ("the last of a squash, beside a lost one", seen(*SQUASH, recorded=("c", "z")), State.LOST),
    ("newer than this image", seen(*ABC, recorded=("e",), ledger=ledger(("a", "b", "c", "d", "e"))), State.AHEAD),
    (
        "newer on one branch, at the head on the other",
        seen(*FORK, target="heads", recorded=("b", "d"), ledger=ledger(("a", "b"), ("a", "c", "d"))),
        State.AHEAD,
    ),
    (
        "newer on one branch, behind on the other",
        seen(*FORK, target="heads", recorded=("d",), ledger=ledger(("a", "b"), ("a", "c", "d"))),
        State.LOST,
    ),
    (
        "newer, beside one that nobody knows",
        seen(*ABC, recorded=("d", "z"), ledger=ledger(("a", "b", "c", "d"))),
        State.LOST,
    ),
    ("known to the ledger, but on another line", seen(*ABC, recorded=("z",), ledger=ledger(("a", "z"))), State.LOST),
    ("a revision that nobody knows", seen(*ABC, recorded=("z",)), State.LOST),
    ("an id of which only the beginning is known", seen(*line("ab"), recorded=("a",)), State.LOST),
    ("lost before it owes a proof", seen(*ABC, recorded=("z",), ledger=Ledger(owes_proof=True)), State.LOST),
    (
        "a step pushed in beneath",
        seen(*line("a", "x", "c"), recorded=("c",), ledger=applied("c", "a")),
        State.REWRITTEN,
    ),
    (
        "a step pushed in beneath one of two",
        seen(*FORK, target="heads", recorded=("b", "c"), ledger=applied("c")),
        State.REWRITTEN,
    ),
    (
        "a squash of which one step was never applied",
        seen(*PAST_SQUASH, recorded=("d",), ledger=applied("d", "a", "c")),
        State.REWRITTEN,
    ),
    (
        "rewritten before it owes a proof",
        seen(*ABC, recorded=("c",), ledger=Ledger(ancestors={"c": frozenset("c")}, owes_proof=True)),
        State.REWRITTEN,
    ),
    (
        "a database past a squash is not accused",
        seen(*PAST_SQUASH, recorded=("d",), ledger=applied("d", "a", "b", "c")),
        State.CURRENT,
    ),
    (
        "a step taken out beneath is no step left out",
        seen(*line("a", "c"), recorded=("c",), ledger=applied("c", "a", "b")),
        State.CURRENT,
    ),
    ("a row that the ledger never saw is not judged", seen(*ABC, recorded=("c",), ledger=applied("b")), State.CURRENT),
    ("a proof is owed", seen(*ABC, recorded=("c",), ledger=Ledger(owes_proof=True)), State.UNPROVED),
    (
        "a proof is owed, and a step set aside",
        seen(*ABC, recorded=("b",), ledger=Ledger(owes_proof=True, set_aside=frozenset("c"))),
        State.UNPROVED,
    ),
    ("nothing is recorded of which a proof is owed", seen(*ABC, ledger=Ledger(owes_proof=True)), State.FRESH),
    (
        "a step that was set aside would run",
        seen(*ABC, recorded=("a",), ledger=Ledger(set_aside=frozenset("c"))),
        State.SET_ASIDE,
    ),
    (
        "a step that was set aside would not run",
        seen(*ABC, recorded=("c",), ledger=Ledger(set_aside=frozenset("c"))),
        State.CURRENT,
    ),
    ("set aside before everything was dropped", seen(*ABC, ledger=Ledger(set_aside=frozenset("c"))), State.FRESH),
    ("at head", seen(*ABC, recorded=("c",)), State.CURRENT),
    ("at head, and there are tables", seen(*ABC, recorded=("c",), tables=("public.t",)), State.CURRENT),
    ("at both heads", seen(*FORK, target="heads", recorded=("b", "c")), State.CURRENT),
    ("past the target", seen(*ABC, target="a", recorded=("c",)), State.CURRENT),
    ("behind", seen(*ABC, recorded=("a",)), State.BEHIND),
    ("at one of two heads", seen(*FORK, target="heads", recorded=("b",)), State.BEHIND),
    ("tables without a revision", seen(*ABC, tables=("public.t",)), State.UNTRACKED),
    ("nothing at all", seen(*ABC), State.FRESH),
]


#: The contract: the states in their order, and what is done.
CONTRACT = {
    State.BROKEN: Action.REFUSE,
    State.FORKED: Action.REFUSE,
    State.OVERLAPPED: Action.REFUSE,
    State.REPLACED: Action.PROVE,
    State.SUPERSEDED: Action.REFUSE,
    State.AHEAD: Action.REFUSE,
    State.LOST: Action.PROVE,
    State.REWRITTEN: Action.REFUSE,
    State.UNPROVED: Action.PROVE,
    State.SET_ASIDE: Action.REFUSE,
    State.CURRENT: Action.START,
    State.BEHIND: Action.UPGRADE,
    State.UNTRACKED: Action.PROVE,
    State.FRESH: Action.UPGRADE,
}


@pytest.mark.parametrize(("facts", "state"), [each[1:] for each in EXAMPLES], ids=[each[0] for each in EXAMPLES])
def test_what_was_seen_is_called_and_treated_as_the_contract_says(facts: Facts, state: State) -> None:
    decision = decide(facts)
    is_newer_here = state is State.LOST and any("newer" in each[0] for each in EXAMPLES if each[1] is facts)
    assert (decision.state, decision.action) == (state, Action.REFUSE if is_newer_here else CONTRACT[state])


def test_tables_of_which_none_is_ours_are_no_hindrance_once_that_is_proved() -> None:
    facts = seen(*ABC, tables=("public.theirs",))
    assert decide(facts).action is Action.PROVE
    assert decide(facts, Policy(is_base=True)).action is Action.UPGRADE
    # The proof was about a database that recorded nothing.
    assert decide(seen(*ABC, recorded=("z",)), Policy(is_base=True)).action is Action.PROVE


def test_every_row_has_an_example() -> None:
    assert {row.state for row in ROWS} == {state for _, _, state in EXAMPLES}


def test_the_rows_are_those_of_the_contract_in_its_order() -> None:
    assert [(row.state, row.action) for row in ROWS] == list(CONTRACT.items())


def test_only_the_image_is_at_fault_when_it_is_broken_or_forked() -> None:
    assert {row.state for row in ROWS if row.image} == {State.BROKEN, State.FORKED}


def test_every_row_that_does_not_go_on_says_the_danger_and_the_remedy() -> None:
    for row in ROWS:
        goes_on = row.action in (Action.START, Action.UPGRADE)
        assert (bool(row.danger), bool(row.remedy)) == (not goes_on, not goes_on), row.state


# --- ahead ---------------------------------------------------------------------------------------------------------

AHEAD = seen(*ABC, recorded=("e",), ledger=ledger(("a", "b", "c", "d", "e")))


def declaring(**oldest: str) -> Facts:
    return dataclasses.replace(AHEAD, ledger=dataclasses.replace(AHEAD.ledger, oldest_compatible=oldest))


def test_an_older_image_starts_where_the_operator_allows_it() -> None:
    assert decide(AHEAD, Policy(start_ahead=True)).action is Action.START


@pytest.mark.parametrize("facts", [seen(*ABC, recorded=("z",)), seen(*SQUASH, recorded=("c",)), seen(*FORK)])
def test_the_operator_allows_nothing_but_ahead(facts: Facts) -> None:
    assert decide(facts, Policy(start_ahead=True)).action is not Action.START


@pytest.mark.parametrize(
    ("oldest", "action"),
    [
        ({"d": "c", "e": "a"}, Action.START),
        ({"d": "c"}, Action.REFUSE),
        ({"e": "c"}, Action.REFUSE),
        ({"d": "c", "e": "d"}, Action.REFUSE),
        ({"d": "c", "e": "unheard of"}, Action.REFUSE),
    ],
)
def test_an_older_image_starts_where_every_revision_between_declares_it(oldest: dict[str, str], action: Action) -> None:
    decision = decide(declaring(**oldest))
    assert (decision.state, decision.action) == (State.AHEAD, action)


# --- what a person reads -------------------------------------------------------------------------------------------


def test_the_message_of_lost() -> None:
    assert decide(seen(*ABC, recorded=("a2242b61af45",))).message == (
        "LOST: public.alembic_version records a2242b61af45, and no migration in this image has that id.\n"
        "The database may be newer than this image, belong to another app, or come from migrations that were squashed, "
        "rebased or deleted. `alembic stamp head` would record c whatever the schema is: steps would be left out for "
        "good, and nobody would notice.\n"
        "Deploy the image that ships a2242b61af45. If its file was deleted or squashed by mistake, bring it back and "
        "build again. Nothing was changed; `alembic-entrypoint plan --prove` shows how the schema differs."
    )


def test_the_message_of_untracked() -> None:
    assert decide(seen(*ABC, tables=("public.users", "audit.log"))).message == (
        "UNTRACKED: public.alembic_version records nothing, but there are tables: public.users, "
        "audit.log.\n"
        "They may come from `create_all()`, a restore, a half-applied migration or another app. Running the migrations "
        "would fail half-way or double what is there; `alembic stamp head` would record steps that were never "
        "applied.\n"
        "If the tables belong to another app, name them: ALEMBIC_ENTRYPOINT_IGNORE='public.users audit.log'. If they "
        "are this app's, restore the version table with them, or see which revision they are nearest to: "
        "`alembic-entrypoint plan --prove`. Nothing was changed."
    )


def test_many_tables_are_counted_and_named_by_their_schemas() -> None:
    names = [f"public.t{n}" for n in range(9)]
    message = decide(seen(*ABC, tables=(*names, "audit.log"))).message
    assert f"there are tables: {', '.join(names[:8])} and 2 more." in message
    assert "ALEMBIC_ENTRYPOINT_IGNORE='audit.* public.*'" in message


def test_the_message_of_forked() -> None:
    assert decide(seen(*FORK)).message == (
        "FORKED: the migrations have 2 heads: b, c.\n"
        "Which of them the app needs cannot be told, and upgrading to one would leave out the others.\n"
        "Merge them with `alembic merge -m 'merge heads' b c` and build the image again; "
        "or, if they are meant to live side by side, set ALEMBIC_ENTRYPOINT_TARGET=heads."
    )


def test_the_message_of_broken_names_every_fault() -> None:
    migrations = (
        Migration("base", path="versions/1.py"),
        Migration("b", parents=("gone",), path="versions/2.py"),
        Migration("x" * 33, path="versions/3.py"),
    )
    unloadable = ("versions/4.py does not load: SyntaxError: invalid syntax",)
    assert decide(seen(*migrations, unloadable=unloadable)).message == (
        "BROKEN: the migrations in this image cannot be used:\n"
        "  - versions/4.py does not load: SyntaxError: invalid syntax\n"
        "  - revision 'base' (versions/1.py) is a word that Alembic has a meaning for\n"
        "  - b (versions/2.py) follows gone, which no file has\n"
        f"  - revision {'x' * 33} (versions/3.py) has 33 letters, and the version table holds 32: it would fail after "
        "it has run\n"
        "Alembic may report success and have run only a part of them.\n"
        "Mend the files and build the image again; `alembic-entrypoint plan` checks them before it is deployed."
    )


def test_the_message_of_overlapped() -> None:
    assert decide(seen(*ABC, recorded=("a", "c"))).message == (
        "OVERLAPPED: public.alembic_version records a, c, but a is an ancestor of c.\n"
        "One of the rows was written by hand or by two migrators at once; Alembic cannot upgrade from here, and "
        "which row is true cannot be told.\n"
        "Find out which of them the schema is at. If the newer one is right, remove the older row: "
        "`DELETE FROM public.alembic_version WHERE version_num = 'a'`."
    )


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        (seen(*SQUASH, recorded=("c",)), ["records c, which s replaces.", "the last release that ships c"]),
        (
            seen(*SQUASH, recorded=("b",)),
            ["records b, which is in the middle of what s replaces.", "newest migration is c first"],
        ),
        (AHEAD, ["it knows c, and public.alembic_version records e.", "Deploy an image that ships e"]),
        (
            seen(
                *ABC, recorded=("e",), ledger=dataclasses.replace(AHEAD.ledger, since={"e": "since May from image v2"})
            ),
            ["public.alembic_version records e (since May from image v2)."],
        ),
        (
            seen(*ABC, recorded=("d", "z"), ledger=ledger(("a", "b", "c", "d"))),
            ["has that id; the ledger shows that it was applied on top of c."],
        ),
        (
            seen(*line("a", "x", "c"), recorded=("c",), ledger=applied("c", "a")),
            [
                "x now lies beneath c, and was never applied to this database.",
                "Move x on top, and build the image again:\n"
                "  - versions/c.py: down_revision = 'a'\n  - versions/x.py: down_revision = 'c'",
            ],
        ),
        (
            seen(*ABC, recorded=("a",), ledger=Ledger(set_aside=frozenset("bc"))),
            ["would run b, c, which was recorded here once"],
        ),
        (seen(*ABC, recorded=("c",)), ["CURRENT: public.alembic_version records c, and nothing is pending."]),
        (seen(*ABC, recorded=("b",)), ["records b, and 1 migration is pending up to c."]),
        (seen(*ABC), ["FRESH: the database is empty, and 3 migrations are pending up to c."]),
    ],
)
def test_what_else_is_said_names_what_it_is_about(facts: Facts, parts: list[str]) -> None:
    message = decide(facts).message
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("migrations", "edits"),
    [
        # Two that came beneath, one on the other, with one above that is not applied yet.
        (
            line("a", "x", "y", "c", "d"),
            ["c.py: down_revision = 'a'", "x.py: down_revision = 'd'"],
        ),
        # A merge of what is applied and what is not.
        (
            (
                *line("a", "b"),
                Migration("x", ("a",), path="versions/x.py"),
                Migration("c", ("b", "x"), path="versions/c.py"),
            ),
            ["c.py: down_revision = 'b'", "x.py: down_revision = 'c'"],
        ),
        # A second root; what it came beneath depends on it.
        (
            (*line("a", "b"), *line("x"), Migration("c", ("b",), ("x",), path="versions/c.py")),
            ["c.py: depends_on = None", "x.py: down_revision = 'c'"],
        ),
        # What came beneath depends on what is beside it, and stood between two branches and their merge.
        (
            (
                *line("a", "b"),
                Migration("e", ("a",), path="versions/e.py"),
                Migration("x", ("b", "e"), path="versions/x.py"),
                Migration("c", ("x",), path="versions/c.py"),
            ),
            ["c.py: down_revision = ('b', 'e')", "x.py: down_revision = 'c'"],
        ),
    ],
)
def test_what_came_beneath_is_moved_on_top_by_exactly_these_edits(
    migrations: tuple[Migration, ...], edits: list[str]
) -> None:
    facts = seen(*migrations, recorded=("c",), ledger=applied("c", "a", "b", "e"))
    assert decide(facts).state is State.REWRITTEN
    assert decide(facts).message.splitlines()[3:] == [f"  - versions/{each}" for each in edits]


NAMES = st.sampled_from(["a", "b", "c", "d", "base", "x" * 40])
SETS = st.lists(NAMES, max_size=3, unique=True).map(tuple)
MIGRATIONS = st.builds(Migration, NAMES, parents=SETS, depends_on=SETS, replaces=SETS)
LEDGERS = st.builds(
    Ledger,
    beneath=st.dictionaries(NAMES, SETS.map(frozenset), max_size=4),
    ancestors=st.dictionaries(NAMES, SETS.map(frozenset), max_size=4),
    set_aside=SETS.map(frozenset),
    owes_proof=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(MIGRATIONS, max_size=4), SETS, LEDGERS, SETS)
def test_whatever_was_seen_has_a_state_and_only_settled_databases_start(
    migrations: list[Migration], recorded: tuple[str, ...], known: Ledger, tables: tuple[str, ...]
) -> None:
    facts = seen(*migrations, recorded=recorded, ledger=known, tables=tables)
    decision = decide(facts)
    assert decision.message.startswith(decision.state.value)
    if decision.action is Action.START:
        assert recorded
        assert not facts.unknown
        assert not facts.pending
