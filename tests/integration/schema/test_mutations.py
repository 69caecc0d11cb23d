"""Proof: every change that counts is a difference that names its object, and nothing else is one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from cases import Case, cases, on_each_server

from alembic_entrypoint.schema.difference import difference
from alembic_entrypoint.schema.facts import Kind, Thing, Value
from alembic_entrypoint.schema.snapshot import take, take_within
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


#: What cannot be changed alone: it follows from something else that is read.
FOLLOWS = {("aggregate", "returns"): "its functions and state types"}


def read_of(thing: Thing, told: Mapping[str, Value], attribute: str) -> tuple[str, str]:
    """Name an attribute as one file of the catalog reads it."""
    kind = str(told.get("kind")) if thing.kind in (Kind.TYPE, Kind.FUNCTION) else thing.kind.value
    return "function" if kind == "procedure" else kind, attribute


@pytest.mark.wide
@pytest.mark.parametrize("server", [18], indirect=True)
def test_every_attribute_that_is_read_is_the_only_change_of_some_mutation(rich: Rich) -> None:
    """Else a catalog file could lose it, and nothing would be noticed."""
    facts = rich.snapshot.facts
    read = {read_of(thing, told, attribute) for thing, told in facts.items() for attribute in told}
    alone: set[tuple[str, str]] = set()
    with rich.copy() as database, database.connect() as connection:
        for mutation in MUTATIONS:
            with connection.transaction(force_rollback=True):
                connection.execute(mutation.statements.replace("{extension}", rich.extension).encode())
                after = take_within(connection, ignore=IGNORED)
            found = {(each.thing, each.attribute) for each in difference(rich.snapshot, after)}
            changed = {read_of(thing, facts.get(thing, {}), attribute) for thing, attribute in found}
            alone |= changed if len(changed) == 1 else set()
    assert read - alone == FOLLOWS.keys()


def test_every_kind_of_thing_is_in_the_schema_and_is_changed(rich: Rich) -> None:
    assert {thing.kind for thing in rich.snapshot.facts} == set(Kind)
