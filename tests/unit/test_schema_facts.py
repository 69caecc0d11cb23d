"""A snapshot's digest is a matter of what it says, and of nothing else."""

from __future__ import annotations

from alembic_entrypoint.schema.facts import Kind, Snapshot, Thing

TABLE, COLUMN = Thing(Kind.RELATION, "public", "t", ""), Thing(Kind.COLUMN, "public", "t", "c")


def test_the_order_of_facts_does_not_matter_to_the_digest() -> None:
    one = Snapshot(18, {TABLE: {"kind": "table", "of": None}, COLUMN: {"type": "text"}})
    other = Snapshot(18, {COLUMN: {"type": "text"}, TABLE: {"of": None, "kind": "table"}})
    assert one == other
    assert one.digest == other.digest


def test_the_digest_is_the_same_in_every_process_and_release() -> None:
    assert Snapshot(18, {TABLE: {"kind": "table"}}).digest == (
        "f52fdb410ab5b23de4c312cb4007a32100d76c43edbe2dd727e74024b7397987"
    )


def test_whatever_a_snapshot_says_changes_its_digest() -> None:
    said = [
        Snapshot(18, {TABLE: {"kind": "table"}}),
        Snapshot(17, {TABLE: {"kind": "table"}}),
        Snapshot(18, {TABLE: {"kind": "view"}}),
        Snapshot(18, {TABLE: {"kind": None}}),
        Snapshot(18, {TABLE: {"kind": "None"}}),
        Snapshot(18, {TABLE: {"kind": ("table",)}}),
        Snapshot(18, {COLUMN: {"kind": "table"}}),
        Snapshot(18, {}),
    ]
    assert len({snapshot.digest for snapshot in said}) == len(said)


def test_a_star_stands_for_any_characters_and_nothing_else_does() -> None:
    things = [Thing(Kind.RELATION, schema, name, "") for schema in ("a", "a.b", "[a]") for name in ("t", "t2", "")]
    snapshot = Snapshot(18, {thing: {} for thing in things})

    def left(schema: str, name: str) -> set[tuple[str, str]]:
        return {(thing.schema, thing.name) for thing in things} - {
            (thing.schema, thing.name) for thing in snapshot.without([(schema, name)]).facts
        }

    assert left("a", "t") == {("a", "t")}
    assert left("a*", "t*") == {("a", "t"), ("a", "t2"), ("a.b", "t"), ("a.b", "t2")}
    assert left("[a]", "*") == {("[a]", "t"), ("[a]", "t2"), ("[a]", "")}
    assert left("a?b", "*") == set()
    assert left("nowhere", "*") == set()
