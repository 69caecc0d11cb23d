"""Proof: over random schemas, snapshots differ exactly when `pg_dump -s` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from alembic_entrypoint.schema.difference import difference
from conftest import snapshot_of
from dumps import normalised
from servers import Database, Server, fresh_database

TYPES = {
    "integer": ["1", "-1"],
    "bigint": ["0"],
    "varchar(5)": ["'a'", "'b'"],
    "varchar(9)": ["'a'"],
    "text": ["'a'", "upper('b')", "'it''s'"],
    "numeric(5,2)": ["0", "1.5"],
    "timestamptz": ["now()", "'2020-01-01 00:00:00+00'"],
    "boolean": ["true"],
    "integer[]": ["'{}'"],
    "mood": ["'ok'"],
}
NAMES = st.sampled_from(["a", "b", 'Odd "Name"', "select"])
PLACE = st.integers(0, 3)
COLUMN = st.tuples(
    st.sampled_from([(name, value) for name, values in TYPES.items() for value in (None, *values)]),
    st.booleans(),
)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "persistence": st.sampled_from(["", "UNLOGGED"]),
    "columns": st.dictionaries(NAMES, COLUMN, min_size=1),
    "key": st.none() | PLACE,
    "checks": st.sets(st.tuples(PLACE, st.sampled_from(["IS NOT NULL", "IN (NULL)"]), st.booleans()), max_size=2),
    "indexes": st.sets(st.tuples(PLACE, st.booleans(), st.booleans(), st.booleans()), max_size=3),
    "view": st.none() | st.tuples(PLACE, st.booleans()),
    "trigger": st.sampled_from([None, "ENABLE", "DISABLE", "ENABLE ALWAYS"]),
    "policy": st.sampled_from([None, "FOR SELECT", "FOR UPDATE TO pg_monitor", "USING (true)"]),
    "security": st.sampled_from(["NO FORCE", "FORCE", "ENABLE"]),
    "comment": st.sampled_from([None, "x"]),
    "fillfactor": st.sampled_from([None, 50]),
    "turned": st.booleans(),
    "unique": st.none() | st.tuples(PLACE, st.sampled_from(["UNIQUE ({})", "EXCLUDE ({} WITH =)"]), st.booleans()),
    "parent": st.sampled_from([None, "", "ON DELETE CASCADE", "DEFERRABLE", "NOT VALID"]),
    "identity": st.sampled_from([None, "ALWAYS", "BY DEFAULT"]),
    "generated": st.sampled_from([None, "number + 1", "number + 2"]),
    "inherits": st.booleans(),
    "rule": st.sampled_from([None, "NOTHING", "DELETE FROM base"]),
    "totals": st.none() | PLACE,
}
TABLE = st.fixed_dictionaries(PARTS)
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "labels": st.permutations(["ok", "x", "y"]),
    "step": st.integers(1, 2),
    "function": st.tuples(st.sampled_from("12"), st.sampled_from(["STABLE", "VOLATILE"])),
    "owner": st.sampled_from(["NONE", "base.id", "base.other"]),
    "bounds": st.sampled_from([None, "IN (1)", "IN (1, 2)", "DEFAULT"]),
    "domain": st.tuples(
        st.sampled_from(["text", "varchar(3)"]), st.sampled_from(["", "NOT NULL", "CHECK (VALUE <> '')"])
    ),
    "composite": st.permutations(["x integer", "y text"]),
    "range": st.sampled_from(["integer", "text", 'text, collation = "C"']),
}
SCHEMA = st.fixed_dictionaries({**SHARED, "tables": st.dictionaries(NAMES, TABLE, max_size=2)})


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a schema, and the same again with a part or two drawn anew."""
    one = draw(SCHEMA)
    other = {**one, "tables": {name: dict(table) for name, table in one["tables"].items()}}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*SHARED, *other["tables"]]))
        if name in SHARED:
            other[name] = draw(SHARED[name])
        else:
            part = draw(st.sampled_from(list(PARTS)))
            other["tables"][name][part] = draw(PARTS[part])
    return one, other


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def statements(schema: dict[str, Any]) -> Iterator[str]:
    yield "DROP SCHEMA IF EXISTS app CASCADE; CREATE SCHEMA app; SET search_path = app"
    labels = ", ".join(f"'{label}'" for label in schema["labels"])
    yield f"CREATE TYPE mood AS ENUM ({labels})"
    yield f"CREATE SEQUENCE ticket INCREMENT BY {schema['step']}"
    body, volatility = schema["function"]
    yield f"CREATE FUNCTION one() RETURNS integer LANGUAGE sql {volatility} AS 'SELECT {body}'"
    yield f"CREATE TABLE base (id integer PRIMARY KEY, other integer); ALTER SEQUENCE ticket OWNED BY {schema['owner']}"
    yield "CREATE TABLE parted (n integer) PARTITION BY LIST (n)"
    if schema["bounds"]:
        yield f"CREATE TABLE part PARTITION OF parted {'FOR VALUES ' * ('IN' in schema['bounds'])}{schema['bounds']}"
    yield f"CREATE DOMAIN code AS {' '.join(schema['domain'])}"
    yield f"CREATE TYPE pair AS ({', '.join(schema['composite'])})"
    yield f"CREATE TYPE span AS RANGE (subtype = {schema['range']})"
    for number, (name, table) in enumerate(sorted(schema["tables"].items())):
        yield from table_statements(f"n{number}", quoted(name), table)


def table_statements(short: str, name: str, table: dict[str, Any]) -> Iterator[str]:
    columns = [quoted(column) for column in sorted(table["columns"])]
    written = [
        f"{quoted(column)} {kind} {f'DEFAULT {default}' if default else ''} {'NOT NULL' if required else ''}"
        for column, ((kind, default), required) in sorted(table["columns"].items(), reverse=table["turned"])
    ]

    def column(place: int) -> str:
        return columns[place % len(columns)]

    if table["identity"]:
        written.append(f"number integer GENERATED {table['identity']} AS IDENTITY")
    if table["identity"] and table["generated"]:
        written.append(f"computed integer GENERATED ALWAYS AS ({table['generated']}) STORED")
    inherited = "INHERITS (base)" if table["inherits"] else ""
    yield f"CREATE {table['persistence']} TABLE {name} ({', '.join(written)}) {inherited}"
    if table["unique"]:
        place, form, deferrable = table["unique"]
        constraint = f"{form.format(column(place))} {'DEFERRABLE' if deferrable else ''}"
        yield f"ALTER TABLE {name} ADD CONSTRAINT {short}_only {constraint}"
    if table["parent"] is not None:
        yield f"ALTER TABLE {name} ADD up integer"
        yield f"ALTER TABLE {name} ADD CONSTRAINT {short}_up FOREIGN KEY (up) REFERENCES base {table['parent']}"
    if table["key"] is not None:
        yield f"ALTER TABLE {name} ADD PRIMARY KEY ({column(table['key'])})"
    for number, (place, test, validated) in enumerate(sorted(table["checks"])):
        validity = "" if validated else "NOT VALID"
        yield f"ALTER TABLE {name} ADD CONSTRAINT check{number} CHECK ({column(place)} {test}) {validity}"
    for number, (place, unique, descending, partial) in enumerate(sorted(table["indexes"])):
        yield (
            f"CREATE {'UNIQUE' if unique else ''} INDEX {short}_{number} ON {name} "
            f"({column(place)} {'DESC' if descending else ''}) "
            f"{f'WHERE {column(place)} IS NOT NULL' if partial else ''}"
        )
    if table["view"]:
        place, barrier = table["view"]
        options = "WITH (security_barrier)" if barrier else ""
        yield f"CREATE VIEW {short}_view {options} AS SELECT {column(place)} AS x FROM {name} WHERE random() < 1"
    if table["totals"] is not None:
        yield f"CREATE MATERIALIZED VIEW {short}_totals AS SELECT {column(table['totals'])} AS x FROM {name}"
    if table["rule"]:
        yield f"CREATE RULE changed AS ON UPDATE TO {name} DO ALSO {table['rule']}"
    if table["trigger"]:
        call = "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        yield f"CREATE TRIGGER same BEFORE UPDATE ON {name} FOR EACH ROW {call}"
        yield f"ALTER TABLE {name} {table['trigger']} TRIGGER same"
    if table["policy"]:
        yield f"CREATE POLICY those ON {name} {table['policy']}"
    yield f"ALTER TABLE {name} {table['security']} ROW LEVEL SECURITY"
    if table["comment"]:
        yield f"COMMENT ON TABLE {name} IS '{table['comment']}'"
    if table["fillfactor"]:
        yield f"ALTER TABLE {name} SET (fillfactor = {table['fillfactor']})"


@pytest.fixture(scope="module")
def two(server: Server) -> Iterator[tuple[Database, Database]]:
    with ExitStack() as stack:
        one, other = (stack.enter_context(fresh_database(server)) for _ in range(2))
        yield one, other


@pytest.mark.wide
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=set(Phase) - {Phase.explain},  # it would take minutes
)
@given(pair=pairs())
def test_snapshots_differ_exactly_when_dumps_do(
    two: tuple[Database, Database], pair: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for database, schema in zip(two, pair, strict=True):
        database.execute("; ".join(statements(schema)))
    here, there = (snapshot_of(database) for database in two)
    dumps_differ = normalised(two[0]) != normalised(two[1])
    event("different" if dumps_differ else "the same")
    assert bool(difference(here, there)) is dumps_differ
    assert (here.digest != there.digest) is dumps_differ
