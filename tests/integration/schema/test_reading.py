"""What any driver reads in the middle of a transaction is what a snapshot reads."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest

from alembic_entrypoint.schema import reading
from alembic_entrypoint.schema.difference import difference
from alembic_entrypoint.schema.facts import Snapshot
from conftest import IGNORED, Rich


def read(connection: Any, major: int) -> Snapshot:
    cursor = connection.cursor()
    cursor.execute(reading.setting_statement())
    cursor.execute(reading.snapshot_statement())
    return reading.snapshot_of(cursor.fetchone()[0], major).without(IGNORED)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_schema_read_as_json_is_the_same(rich: Rich, driver: str) -> None:
    url = rich.database.url
    connection = rich.database.connect(autocommit=False) if driver == "psycopg" else psycopg2.connect(url)
    try:
        found = read(connection, rich.server.major)
    finally:
        connection.close()
    assert [each.line() for each in difference(rich.snapshot, found)] == []
    assert found.digest == rich.snapshot.digest


def test_a_snapshot_written_and_read_back_is_the_same(rich: Rich) -> None:
    again = reading.decoded(reading.encoded(rich.snapshot))
    assert again == rich.snapshot
    assert again.digest == rich.snapshot.digest


def test_names_are_those_of_the_snapshot(rich: Rich) -> None:
    (answer,) = rich.database.query(reading.NAMES)[0]
    expected = {(thing.kind.value, thing.schema, thing.name) for thing in rich.snapshot.facts if not thing.part}
    found = {tuple(each) for each in reading.names_of(answer, IGNORED)}

    def of(names: set[tuple[str, ...]], *kinds: str) -> set[tuple[str, ...]]:
        return {each for each in names if each[0] in kinds}

    kinds = ("schema", "extension", "relation", "sequence", "type")
    assert of(found, *kinds) == of(expected, *kinds)
    signatures = {(kind, schema, name.partition("(")[0].strip('"')) for kind, schema, name in of(expected, "function")}
    # A range type brings functions of its name, which are no facts of their own.
    of_ranges = {("function", schema, name) for _, schema, name in of(expected, "type")}
    assert signatures <= of(found, "function")
    assert {name.removesuffix("_multirange") for _, _, name in of(found, "function") - signatures} <= {
        name for _, _, name in of_ranges
    }


def test_tables_with_rows_are_named(rich: Rich) -> None:
    with rich.copy() as copy, copy.connect() as connection:
        connection.execute('CREATE SCHEMA "Od\'d"; CREATE TABLE "Od\'d"."T 1" (id int); CREATE TABLE emptied (id int)')
        connection.execute('INSERT INTO "Od\'d"."T 1" VALUES (1); INSERT INTO emptied VALUES (1); DELETE FROM emptied')

        def ask(statement: str) -> Any:
            return connection.execute(statement).fetchone()[0]  # type: ignore[call-overload, index]

        found = reading.with_rows(ask, [])
        assert ("Od'd", "T 1") in found
        assert ("public", "emptied") not in found
        assert reading.with_rows(ask, [("Od*", "*")]) == [each for each in found if each[0] != "Od'd"]
