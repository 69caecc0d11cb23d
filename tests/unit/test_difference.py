"""Say how two schemas differ: nothing where they do not, one line where one is enough, and never a riddle."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from alembic_entrypoint.schema.difference import Difference, difference, unlike
from alembic_entrypoint.schema.facts import Kind, Snapshot, Thing, Value

Facts = Mapping[Thing, Mapping[str, Value]]

TABLE: Mapping[str, Value] = {
    "kind": "table",
    "persistence": "logged",
    "row security": False,
    "inherits": None,
}
COLUMN: Mapping[str, Value] = {
    "type": "character varying(255)",
    "null": "not null",
    "default": None,
    "identity": None,
    "generated": None,
}
SEQUENCE: Mapping[str, Value] = {"type": "integer", "cycle": False, "owned by": ("public", "users", "id")}


def relation(name: str, schema: str = "public") -> Thing:
    return Thing(Kind.RELATION, schema, name, "")


def part(kind: Kind, table: str, name: str, schema: str = "public") -> Thing:
    return Thing(kind, schema, table, name)


EMAIL = part(Kind.COLUMN, "users", "email")
USERS: Facts = {
    relation("users"): TABLE,
    EMAIL: COLUMN,
    part(Kind.CONSTRAINT, "users", "users_pkey"): {"definition": "PRIMARY KEY (id)", "valid": True},
    part(Kind.INDEX, "users", "users_email_idx"): {"definition": "CREATE INDEX …", "valid": True},
    Thing(Kind.SEQUENCE, "public", "users_id_seq", ""): SEQUENCE,
    Thing(Kind.TYPE, "app", "mood", ""): {"kind": "enum", "labels": ("sad", "ok")},
    Thing(Kind.SCHEMA, "app", "", ""): {},
    Thing(Kind.EXTENSION, "", "vector", ""): {},
}


def lines(here: Facts, there: Facts) -> list[str]:
    found = difference(Snapshot(18, here), Snapshot(18, there))
    return [each.line("here", "in b891cb8863b5") for each in found]


def changed(thing: Thing, **attributes: Value) -> Facts:
    return {**USERS, thing: {**USERS[thing], **attributes}}


def test_equal_schemas_do_not_differ() -> None:
    assert difference(Snapshot(18, USERS), Snapshot(18, dict(list(USERS.items())[::-1]))) == ()


def test_snapshots_of_different_majors_are_not_compared() -> None:
    with pytest.raises(ValueError, match="snapshots of PostgreSQL 15 and 16 cannot be compared"):
        difference(Snapshot(15, {}), Snapshot(16, {}))


@pytest.mark.parametrize(
    ("thing", "attributes", "line"),
    [
        (EMAIL, {"type": "text"}, "users.email: varchar(255) here, text in b891cb8863b5"),
        (EMAIL, {"null": "nullable"}, "users.email: not null here, nullable in b891cb8863b5"),
        (EMAIL, {"default": "'x'"}, "users.email: no default here, default 'x' in b891cb8863b5"),
        (
            relation("users"),
            {"row security": True},
            "users: no row security here, row security in b891cb8863b5",
        ),
        (relation("users"), {"kind": "view"}, "users: table here, view in b891cb8863b5"),
        (relation("users"), {"kind": "view", "persistence": "x"}, "users: table here, view in b891cb8863b5"),
        (
            relation("users"),
            {"inherits": ("a", "b")},
            "users: no inherits here, inherits a, b in b891cb8863b5",
        ),
        (
            part(Kind.INDEX, "users", "users_email_idx"),
            {"valid": False},
            "index users_email_idx of users: valid here, not valid in b891cb8863b5",
        ),
        (
            Thing(Kind.TYPE, "app", "mood", ""),
            {"labels": ("sad", None)},
            "type app.mood: labels sad, ok here, labels sad, - in b891cb8863b5",
        ),
        (
            part(Kind.CONSTRAINT, "users", "users_pkey"),
            {"definition": "PRIMARY KEY (email)"},
            "constraint users_pkey of users: PRIMARY KEY (id) here, PRIMARY KEY (email) in b891cb8863b5",
        ),
    ],
)
def test_what_has_changed_is_told_by_its_name(thing: Thing, attributes: dict[str, Value], line: str) -> None:
    assert lines(USERS, changed(thing, **attributes)) == [line]


def test_a_missing_table_is_told_once_with_nothing_that_belongs_to_it() -> None:
    rest = {thing: told for thing, told in USERS.items() if thing.schema != "public"}
    assert lines(rest, USERS) == ["users: missing here, table in b891cb8863b5"]
    assert lines(USERS, rest) == ["users: table here, missing in b891cb8863b5"]


@pytest.mark.parametrize(
    ("thing", "line"),
    [
        (EMAIL, "users.email: missing here, varchar(255) not null in b891cb8863b5"),
        (
            part(Kind.CONSTRAINT, "users", "users_pkey"),
            "constraint users_pkey of users: missing here, PRIMARY KEY (id) in b891cb8863b5",
        ),
        (Thing(Kind.SCHEMA, "app", "", ""), "schema app: missing here, present in b891cb8863b5"),
        (Thing(Kind.EXTENSION, "", "vector", ""), "extension vector: missing here, present in b891cb8863b5"),
        (Thing(Kind.TYPE, "app", "mood", ""), "type app.mood: missing here, enum in b891cb8863b5"),
        (
            Thing(Kind.SEQUENCE, "public", "users_id_seq", ""),
            "sequence users_id_seq: missing here, present in b891cb8863b5",
        ),
    ],
)
def test_what_is_missing_is_told_with_what_it_is(thing: Thing, line: str) -> None:
    assert lines({other: told for other, told in USERS.items() if other != thing}, USERS) == [line]


def test_a_missing_column_is_told_with_its_default() -> None:
    number = {**COLUMN, "type": "timestamp with time zone", "null": "nullable", "default": "now()"}
    at = part(Kind.COLUMN, "users", "at")
    assert lines({**USERS, at: number}, USERS) == ["users.at: timestamptz default now() here, missing in b891cb8863b5"]


def test_what_is_unlike_is_counted_with_all_that_belongs_to_it() -> None:
    without = {thing: told for thing, told in USERS.items() if thing.name != "users"}
    assert unlike(Snapshot(18, USERS), Snapshot(18, USERS)) == 0
    assert unlike(Snapshot(18, without), Snapshot(18, USERS)) == 4
    assert unlike(Snapshot(18, changed(EMAIL, type="text", null="nullable")), Snapshot(18, USERS)) == 1


def test_the_most_telling_comes_first_and_an_object_is_told_at_once() -> None:
    here: Facts = {
        relation("a"): TABLE,
        part(Kind.INDEX, "a", "i"): {"definition": "x", "valid": True},
        relation("b"): TABLE,
        part(Kind.COLUMN, "b", "c"): COLUMN,
        part(Kind.INDEX, "b", "i"): {"definition": "x", "valid": True},
        relation("extra"): TABLE,
    }
    there: Facts = {
        relation("a"): TABLE,
        relation("b"): TABLE,
        part(Kind.COLUMN, "b", "a"): COLUMN,
        part(Kind.COLUMN, "b", "d"): COLUMN,
        relation("missing"): TABLE,
        Thing(Kind.FUNCTION, "app", "f(integer)", ""): {"kind": "function"},
    }
    assert [line.split(":")[0] for line in lines(here, there)] == [
        "missing",
        "extra",
        "b.a",
        "b.d",
        "b.c",
        "index i of b",
        "index i of a",
        "function app.f(integer)",
    ]


def test_names_are_quoted_where_they_need_it() -> None:
    odd: Facts = {
        Thing(Kind.RELATION, 'Odd "Schema"', "a.b", ""): TABLE,
        Thing(Kind.COLUMN, 'Odd "Schema"', "a.b", "Ünï"): COLUMN,
    }
    extra = Thing(Kind.COLUMN, 'Odd "Schema"', "a.b", "x y")
    assert lines({**odd, extra: COLUMN}, odd) == [
        '"Odd ""Schema"""."a.b"."x y": varchar(255) not null here, missing in b891cb8863b5'
    ]


def test_long_texts_are_shortened_to_where_they_begin_to_differ() -> None:
    view = relation("v")
    here, there = ("SELECT 1\n" + "  + 1\n" * 50 + end + " long" * 30 for end in ("here", "there"))
    (line,) = lines({view: {"kind": "view", "definition": here}}, {view: {"kind": "view", "definition": there}})
    assert line.startswith("v: …+ 1 + 1 + 1 + 1 + 1 here long")
    assert "… here, …+ 1 + 1 + 1 + 1 + 1 there long" in line
    assert len(line) < 260


def test_a_text_that_goes_on_where_the_other_ends_is_shown_there() -> None:
    view = relation("v")
    here = "x" * 150
    (line,) = lines({view: {"kind": "view", "definition": here}}, {view: {"kind": "view", "definition": here + " end"}})
    assert line == f"v: …{'x' * 30} here, …{'x' * 30} end in b891cb8863b5"


def test_a_long_missing_thing_is_shortened() -> None:
    check = part(Kind.CONSTRAINT, "users", "c")
    (line,) = lines({**USERS, check: {"definition": "CHECK (" + "x" * 200, "valid": True}}, USERS)
    assert line == f"constraint c of users: CHECK ({'x' * 93}… here, missing in b891cb8863b5"


def test_a_difference_is_json_with_nothing_shortened() -> None:
    long = Difference(EMAIL, "default", None, "x" * 500)
    assert json.loads(json.dumps(long.document())) == {
        "kind": "column",
        "schema": "public",
        "name": "users",
        "part": "email",
        "attribute": "default",
        "here": None,
        "there": "x" * 500,
    }
