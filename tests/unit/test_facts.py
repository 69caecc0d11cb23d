"""What follows from what was observed: graph, ledger, what is pending, and what is wrong with the migrations."""

from __future__ import annotations

import pytest

from alembic_entrypoint.facts import Facts, Graph, Ledger, Migration, VersionTable

DIAMOND = Graph(
    (
        Migration("a"),
        Migration("b", parents=("a",)),
        Migration("c", parents=("a",)),
        Migration("d", parents=("b", "c")),
    )
)
DEPENDING = Graph((Migration("a"), Migration("x"), Migration("b", parents=("a",), depends_on=("x",))))


def test_a_graph_finds_migrations_by_their_exact_revision() -> None:
    graph = Graph((Migration("ab", path="versions/ab.py"),))
    assert graph.by_revision["ab"].path == "versions/ab.py"
    assert graph.known == {"ab"}
    assert "a" not in graph.by_revision


@pytest.mark.parametrize(
    ("graph", "heads"),
    [(Graph(), ()), (DIAMOND, ("d",)), (DEPENDING, ("b",)), (Graph(DIAMOND.migrations[:3]), ("b", "c"))],
)
def test_heads_are_what_nothing_follows_or_depends_on(graph: Graph, heads: tuple[str, ...]) -> None:
    assert graph.heads == heads


@pytest.mark.parametrize(
    ("graph", "of", "ancestors"),
    [
        (DIAMOND, ["a"], "a"),
        (DIAMOND, ["d"], "abcd"),
        (DIAMOND, ["b", "c"], "abc"),
        (DIAMOND, ["unknown"], ""),
        (DEPENDING, ["b"], "abx"),
        (Graph((Migration("b", parents=("gone",)),)), ["b"], "b"),
        (Graph((Migration("a", parents=("b",)), Migration("b", parents=("a",)))), ["a"], "ab"),
    ],
)
def test_ancestors_are_everything_beneath_and_the_revisions_themselves(
    graph: Graph, of: list[str], ancestors: str
) -> None:
    assert graph.ancestors(of) == set(ancestors)


def test_a_replaced_revision_leads_to_its_replacement() -> None:
    squash = Migration("s", replaces=("a", "b"))
    assert Graph((squash, Migration("t", parents=("s",)))).replaced_by == {"a": squash, "b": squash}


def test_the_ledger_knows_what_lies_beneath_what_the_image_does_not_ship() -> None:
    ledger = Ledger(beneath={"c": frozenset("b"), "b": frozenset("a"), "a": frozenset("c")})
    assert ledger.closure(["b"]) == {"a", "b", "c"}
    assert ledger.closure(["unheard of"]) == {"unheard of"}
    assert ledger.closure([]) == frozenset()


def test_the_version_table_is_named_with_the_schema_in_which_it_is() -> None:
    assert str(VersionTable()) == "public.alembic_version"
    assert str(VersionTable(name="v", schema=None, resolved_schema="app")) == "app.v"


def test_what_is_recorded_makes_known_applied_pending_and_overlapping() -> None:
    facts = Facts(graph=DIAMOND, target_revisions=("d",), recorded=("b", "z"))
    assert facts.unknown == ("z",)
    assert facts.applied == {"a", "b"}
    assert facts.pending == ("c", "d")
    assert facts.overlapping == ()
    overlapping = Facts(graph=DIAMOND, recorded=("a", "b", "d")).overlapping
    assert overlapping == (("a", "b"), ("a", "d"), ("b", "d"))


def test_nothing_is_pending_for_a_target_beneath_what_is_recorded() -> None:
    assert Facts(graph=DIAMOND, target_revisions=("b",), recorded=("d",)).pending == ()


def faults(*migrations: Migration, width: int | None = 32) -> list[str]:
    return list(Facts(graph=Graph(migrations), version_table=VersionTable(width=width)).faults)


@pytest.mark.parametrize("graph", [DIAMOND, DEPENDING])
def test_migrations_that_are_right_have_no_faults(graph: Graph) -> None:
    assert faults(*graph.migrations) == []


@pytest.mark.parametrize(
    ("migrations", "said"),
    [
        ([], ["there are no migrations in the version locations"]),
        (
            [Migration("a", path="2.py"), Migration("a", path="1.py")],
            ["revision a is in 2 files, of which Alembic runs one: 1.py, 2.py"],
        ),
        (
            [Migration("heads", path="1.py"), Migration("head", path="2.py")],
            [
                "revision 'heads' (1.py) is a word that Alembic has a meaning for",
                "revision 'head' (2.py) is a word that Alembic has a meaning for",
            ],
        ),
        (
            [Migration("x" * 33, path="1.py"), Migration("y" * 32, path="2.py")],
            [
                f"revision {'x' * 33} (1.py) has 33 letters, and the version table holds 32: it would fail after it "
                "has run"
            ],
        ),
        (
            [Migration("b", parents=("a",), depends_on=("c",), path="1.py")],
            ["b (1.py) follows a, which no file has", "b (1.py) follows c, which no file has"],
        ),
        (
            [
                Migration("a", parents=("b",)),
                Migration("b", parents=("a",)),
                Migration("above", parents=("b",)),
                Migration("beneath"),
            ],
            ["these follow each other in a cycle: a, b"],
        ),
        ([Migration("a", depends_on=("a",))], ["these follow each other in a cycle: a"]),
        (
            [
                Migration("a", parents=("b",)),
                Migration("b", parents=("a",)),
                Migration("c", parents=("b", "d")),
                Migration("d", parents=("c",)),
            ],
            ["these follow each other in a cycle: a, b", "these follow each other in a cycle: c, d"],
        ),
        ([Migration("a"), Migration("s", replaces=("a", "z"))], ["s replaces a, which still exists"]),
        (
            [Migration("t", replaces=("a",)), Migration("s", replaces=("a",))],
            ["a is replaced by more than one: s, t"],
        ),
    ],
)
def test_every_fault_of_the_migrations_is_a_sentence(migrations: list[Migration], said: list[str]) -> None:
    assert faults(*migrations) == said


def test_a_version_column_without_a_limit_holds_every_id() -> None:
    assert faults(Migration("x" * 100), width=None) == []


def test_what_does_not_load_is_told_first_and_with_the_rest() -> None:
    facts = Facts(unloadable=("x.py does not load",))
    assert facts.faults == ("x.py does not load", "there are no migrations in the version locations")
