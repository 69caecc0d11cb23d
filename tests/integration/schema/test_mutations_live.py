"""A database whose schema was changed is refused as it is; one that was changed in what does not count is recovered."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cases import HERE, Case, cases

from commands import Result, entrypoint
from conftest import snapshot_of
from projects import Project, project
from servers import Database, Server, fresh_database

RICH = """
from pathlib import Path
text = (Path(__file__).parents[2] / "rich.sql").read_text()
op.get_bind().execution_options(no_parameters=True).exec_driver_sql(text)
"""
#: A foreign server reaches beyond the database, so migrations that make one are not replayed; and the version table
#: and the ledger are here anyway.
NOT_HERE = re.compile(
    r"CREATE FOREIGN DATA WRAPPER|\bFOREIGN TABLE|\bremote\b|\belsewhere\b|\bLANGUAGE (c|internal)\b|\balembic_\w",
    re.IGNORECASE,
)
#: Schemas and extensions that no migration makes are others' business.
OTHERS = re.compile("schema extra|extension")
MUTATIONS, CHANGES = (
    [c for c in cases(f"{of}.sql") if not NOT_HERE.search(c.statements)] for of in ("mutations", "harmless")
)
ALL = float(os.environ.get("FAULT_ROUNDS", "0")) >= 1


def some(of: list[Case], every: int) -> list[Any]:
    """Take every so manyth, or all of them with all rounds; one is what `make test` has time for."""
    return [
        pytest.param(case, id=case.title, marks=[pytest.mark.wide] if n else [])
        for n, case in enumerate(of)
        if ALL or n % every == 0
    ]


@dataclass(frozen=True)
class Lost:
    """A database with the schema of rich.sql, and an id in its version table that no migration has."""

    tree: Project
    database: Database
    kept: Database
    extension: str

    def bring_back(self) -> None:
        """Make the database as it was: of the same name, so that what replays have shown is known there."""
        self.database.server.execute(f"DROP DATABASE IF EXISTS {self.database.name} WITH (FORCE)")
        like = f"TEMPLATE {self.kept.name} STRATEGY file_copy"
        self.database.server.execute(f"CREATE DATABASE {self.database.name} {like}")

    def migrate(self) -> Result:
        # All variables count for what is known of replays, and pytest has one that names the test.
        env = {"DATABASE_URL": self.database.url, "PYTEST_CURRENT_TEST": ""}
        return entrypoint("migrate", cwd=self.tree.folder, env=env)


@pytest.fixture(scope="module")
def lost(pg18: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    tree = project(tmp_path_factory.mktemp("rich"))
    text = (HERE / "rich.sql").read_text()
    tree.write("rich.sql", NOT_HERE.split(text)[0])
    tree.add("rich", RICH)
    tree.add("next", "op.execute('CREATE TABLE next (id int)')", down="rich")
    with fresh_database(pg18) as database, fresh_database(pg18) as kept:
        (extension,) = database.query(
            "SELECT min(name) FROM pg_available_extensions WHERE name IN ('citext', 'vector')"
        )[0]
        made = Lost(tree, database, kept, extension)
        env = {"DATABASE_URL": database.url}
        assert entrypoint("migrate", "--target", "rich", cwd=tree.folder, env=env).code == 0
        database.execute("UPDATE alembic_version SET version_num = 'lost'; ALTER TABLE users ADD another int")
        assert "users.another: integer here, missing in rich" in made.migrate().message
        database.execute("ALTER TABLE users DROP another")
        pg18.execute(f"DROP DATABASE {kept.name}")
        pg18.execute(f"CREATE DATABASE {kept.name} TEMPLATE {database.name}")
        yield made


@pytest.mark.parametrize("mutation", some([each for each in MUTATIONS if not OTHERS.match(each.title)], 9))
def test_a_database_with_a_change_that_counts_is_refused_and_left_as_it_is(lost: Lost, mutation: Case) -> None:
    lost.bring_back()
    lost.database.execute(mutation.statements.replace("{extension}", lost.extension))
    before = snapshot_of(lost.database).digest
    result = lost.migrate()
    assert (result.code, result.state) == (65, "LOST"), result.stderr
    assert mutation.title.format(extension=lost.extension) in result.message
    assert [each["replays"] for each in result.named("schema.proved")] == [0]
    assert snapshot_of(lost.database).digest == before
    assert lost.database.query("SELECT version_num FROM alembic_version") == [("lost",)]


@pytest.mark.parametrize("change", some([*CHANGES, *(each for each in MUTATIONS if OTHERS.match(each.title))], 6))
def test_a_database_with_a_change_that_does_not_count_is_recovered(lost: Lost, change: Case) -> None:
    lost.bring_back()
    lost.database.execute(change.statements.replace("{extension}", lost.extension))
    result = lost.migrate()
    assert result.code == 0, result.stderr
    assert [each["after"] for each in result.named("schema.stamped")] == [["rich"]]
    assert lost.database.query("SELECT version_num FROM alembic_version") == [("next",)]
