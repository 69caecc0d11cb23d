"""What replays visited and what is live in, one answer out: stories of small schemas."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from alembic_entrypoint.comparison import NEAREST, Answer, Live, Outcome, Replayed, Visited, judge, judge_one
from alembic_entrypoint.facts import Graph, Migration
from alembic_entrypoint.schema.facts import Kind, Snapshot, Thing
from alembic_entrypoint.schema.reading import Name

PUBLIC = Name("schema", "public", "")
PLPGSQL = Name("extension", "", "plpgsql")
LINE = Graph((Migration("a"), Migration("b", ("a",)), Migration("c", ("b",)), Migration("d", ("c",))))


def name(text: str) -> Name:
    """Read `table`, `app.table`, `schema app` or `extension x`."""
    kind, _, rest = text.rpartition(" ")
    if kind == "extension":
        return Name(kind, "", rest)
    if kind == "schema":
        return Name(kind, rest, "")
    schema, _, table = rest.rpartition(".")
    return Name("relation", schema or "public", table)


def thing(each: Name) -> Thing:
    return Thing(Kind(each.kind), each.schema, each.name, "")


def snapshot(*names: Name) -> Snapshot:
    return Snapshot(18, {thing(each): {"kind": "table"} for each in names})


def live(*texts: str) -> Live:
    names = frozenset({PUBLIC, PLPGSQL, *map(name, texts)})
    return Live(snapshot(*names), names)


def replayed(*steps: str, graph: Graph = LINE, base: tuple[Name, ...] = (PUBLIC, PLPGSQL)) -> Replayed:
    """Play one replay: a step is `revision:+table, -table, =table with rows, !`; the last is one without statement.

    Digests are read everywhere, as the worker does where the names agree.
    """
    here: set[Name] = set()
    visits = [Visited((), None, True, added=base, digest=snapshot().digest, rows=())]
    rows: set[tuple[str, str]] = set()
    for step in steps:
        revision, _, rest = step.partition(":")
        words = rest.split(",") if rest else []
        marks = [word.strip() for word in words]
        added = {name(word[1:]) for word in marks if word[0] in "+="}
        removed = {name(word[1:]) for word in marks if word[0] == "-"}
        rows |= {(each.schema, each.name) for word in marks if word[0] == "=" for each in [name(word[1:])]}
        here = (here | added) - removed
        visits.append(
            Visited(
                (revision,),
                revision,
                "!" not in marks,
                tuple(sorted(added)),
                tuple(sorted(removed)),
                snapshot(*here).digest,
                tuple(sorted(rows)),
            )
        )
    return Replayed(graph, (tuple(visits),))


def judged(seen: Replayed, here: Live, *empty: str, base: bool = False, whole: bool = True) -> Answer:
    tables = [(each.schema, each.name) for each in map(name, empty)]
    return judge(seen, here, seen.equal(here), tables, may_be_base=base, is_whole=whole)


FOUR = replayed("a:+users", "b:+notes", "c:!", "d:+tags")


@pytest.mark.parametrize(
    ("tables", "outcome", "candidates"),
    [
        (["users"], Outcome.ONE, [("a",)]),
        (["users", "notes"], Outcome.ONE, [("c",)]),
        (["users", "notes", "tags"], Outcome.ONE, [("d",)]),
        (["users", "tags"], Outcome.NONE, []),
        (["users", "stranger"], Outcome.NONE, []),
        (["users", "other.stranger", "extension postgis", "schema other"], Outcome.ONE, [("a",)]),
    ],
)
def test_a_schema_is_found_or_it_is_nobodys(
    tables: list[str], outcome: Outcome, candidates: list[tuple[str, ...]]
) -> None:
    assert judged(FOUR, live(*tables)) == Answer(outcome, tuple(candidates))


def test_revisions_between_which_only_data_changes_are_several() -> None:
    """[R2] Each of them executed something."""
    seen = replayed("a:+users", "b:", "c:!", "d:+tags")
    assert judged(seen, live("users")) == Answer(Outcome.SEVERAL, (("c",), ("a",)))


def test_tables_that_a_candidate_fills_tell_it_from_the_other() -> None:
    seen = replayed("a:+users", "b:=users")
    assert judged(seen, live("users")).outcome is Outcome.SEVERAL
    assert judged(seen, live("users"), "users") == Answer(Outcome.ONE, (("a",),))
    seen = replayed("a:=users")
    assert judged(seen, live("users"), "users") == Answer(Outcome.NONE, empty={("a",): (("public", "users"),)})


def test_a_proof_that_saw_not_every_set_says_so() -> None:
    assert judged(FOUR, live("users"), whole=False) == Answer(Outcome.UNVISITED, (("a",),))


def test_base_is_where_nothing_that_any_revision_makes_is_there() -> None:
    seen = replayed("a:+schema app, +app.users", "b:+extension citext, -app.users")
    for there in ([], ["strangers"], ["schema app", "extension citext"]):
        assert judged(seen, live(*there), base=True).outcome is Outcome.BASE
        assert judged(seen, live(*there)).outcome is not Outcome.BASE
    # By name, and even where it was removed again.
    assert judged(seen, live("schema app", "app.users", "strangers"), base=True).outcome is Outcome.ONE
    assert judged(replayed("a:+users", "b:-users"), live("users", "x"), base=True).outcome is Outcome.NONE


def test_base_alone_is_no_answer_where_something_was_recorded() -> None:
    assert judged(FOUR, live()) == Answer(Outcome.NONE)
    assert judged(replayed("a:", "b:+users"), live()) == Answer(Outcome.SEVERAL, (("a",), ()))


def test_schemas_and_extensions_count_where_a_revision_makes_them() -> None:
    seen = replayed("a:+users", "b:+schema app, +extension citext", "c:+app.things")
    assert judged(seen, live("users")).candidates == (("a",),)
    assert judged(seen, live("users", "schema app")).outcome is Outcome.NONE
    assert judged(seen, live("users", "schema app", "extension citext")).candidates == (("b",),)
    # What an administrator made was there before the first, and says nothing.
    around = (PUBLIC, PLPGSQL, name("schema app"), name("extension citext"))
    seen = replayed("a:+users", base=around)
    assert judged(seen, live("users", "schema app", "extension citext")).candidates == (("a",),)


def test_only_one_set_is_asked_about_and_others_do_no_harm() -> None:
    seen = replayed("a:+users", "b:", "c:=notes")
    here = live("users")
    assert judge_one(seen, seen.equal(here), [], ["a"]) == Answer(Outcome.ONE, (("a",),))
    assert judge_one(seen, seen.equal(here), [], ["b"]) == Answer(Outcome.ONE, (("b",),))
    assert judge_one(seen, seen.equal(here), [], ["c"]) == Answer(Outcome.NONE)
    full = live("users", "notes")
    lacking = {("c",): (("public", "notes"),)}
    assert judge_one(seen, seen.equal(full), [("public", "notes")], ["c"]) == Answer(Outcome.NONE, empty=lacking)


def test_branches_count_by_what_is_applied() -> None:
    tree = Graph((Migration("a"), Migration("l", ("a",)), Migration("r", ("a",)), Migration("m", ("l", "r"))))
    left = replayed("a:+users", "l:+left", graph=tree).replays[0]
    right = replayed("a:+users", "r:+right", graph=tree).replays[0]
    both = Visited(("l", "r"), "r", True, (name("right"),), (), snapshot(*map(name, ("users", "left", "right"))).digest)
    merged = Visited(("m",), "m", False, digest=both.digest)
    unread = tuple(replace(each, digest=None) for each in right)
    seen = Replayed(tree, ((*left, both, merged), unread, right))
    assert len(seen.states) == 6
    assert judged(seen, live("users", "right")).candidates == (("r",),)
    assert judged(seen, live("users", "left", "right")).candidates == (("m",),)
    assert [each.recorded for each in seen.states if each.is_beneath(seen.states[-1])] == [(), ("a",)]


def test_strangers_are_named_in_schemas_that_the_replay_touches() -> None:
    here = live("users", "stranger", "other.thing", "schema other", "extension postgis")
    assert FOUR.strangers(here) == (name("stranger"),)


def test_the_nearest_have_the_most_names_in_common_and_newer_ones_come_first() -> None:
    nearest = FOUR.nearest(live("users", "notes", "x"))
    assert [each.recorded for each in nearest] == [("c",), ("b",), ("d",), ("a",), ()]
    (visits,) = FOUR.replays
    unlike = {("b",): 1, ("c",): 2}
    nearer = tuple(replace(each, unlike=unlike.get(each.recorded)) for each in visits)
    assert [each.recorded for each in Replayed(LINE, (nearer,)).nearest(live("users", "notes"))][:2] == [("b",), ("c",)]
    many = Graph(tuple(Migration(f"r{n}", (f"r{n - 1}",) if n else ()) for n in range(20)))
    seen = replayed(*(f"r{n}:+t{n}" for n in range(20)), graph=many)
    assert len(seen.nearest(live())) == NEAREST


def test_what_was_not_looked_at_closely_is_told_where_it_could_be_the_live_schema() -> None:
    (visits,) = FOUR.replays
    partly = Replayed(
        LINE, (tuple(each if each.recorded == ("a",) else replace(each, digest=None) for each in visits),)
    )
    assert not partly.is_unread(live("users"))
    assert partly.is_unread(live("users", "notes"))
    assert not partly.is_unread(live("users", "stranger"))


def test_what_was_visited_is_the_same_after_json() -> None:
    shown = replace(FOUR.replays[0][1], snapshot=snapshot(name("users")))
    for each in (*FOUR.replays[0], shown, replace(shown, rows=None)):
        again = Visited.of(json.loads(json.dumps(each.document())))
        assert (again, again.snapshot) == (each, each.snapshot)
