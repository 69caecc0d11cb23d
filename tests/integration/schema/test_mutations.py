"""Proof: every change that counts is a difference that names its object, and nothing else is one."""

from __future__ import annotations

import pytest
from cases import Case, cases, on_each_server

from alembic_entrypoint.schema.difference import difference
from alembic_entrypoint.schema.facts import Kind
from alembic_entrypoint.schema.snapshot import take
from alembic_entrypoint.schema.wording import label
from conftest import IGNORED, Rich, snapshot_of
from dumps import normalised

MUTATIONS = cases("mutations.sql")
HARMLESS = cases("harmless.sql")


@pytest.mark.parametrize(("server", "mutation"), on_each_server(MUTATIONS), indirect=["server"])
def test_a_change_that_counts_is_a_difference_that_names_its_object(rich: Rich, mutation: Case) -> None:
    expected = mutation.title.format(extension=rich.extension)
    with rich.copy() as database:
        database.execute(mutation.statements.replace("{extension}", rich.extension))
        after = snapshot_of(database)
        assert expected in {label(each.thing) for each in difference(rich.snapshot, after)}
        assert after.digest != rich.snapshot.digest
        assert (normalised(database) != rich.dump) is not mutation.is_exception


@pytest.mark.parametrize(("server", "change"), on_each_server(HARMLESS), indirect=["server"])
def test_a_change_that_does_not_count_is_no_difference(rich: Rich, change: Case) -> None:
    with rich.copy() as database, database.connect() as connection:
        connection.execute(change.statements.encode())
        after = take(connection, ignore=IGNORED)
        assert [each.line() for each in difference(rich.snapshot, after)] == []
        assert after.digest == rich.snapshot.digest
        assert (normalised(database) == rich.dump) is not change.is_exception


def test_every_kind_of_thing_is_in_the_schema_and_is_changed(rich: Rich) -> None:
    assert {thing.kind for thing in rich.snapshot.facts} == set(Kind)
