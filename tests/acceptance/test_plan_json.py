"""The document of `plan --json` is what its schema says, in every state that can be reached."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from alembic_entrypoint.decide import Action, State
from commands import entrypoint
from projects import project
from servers import Database

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "schema" / "plan.json").read_text())
RECORDED = "CREATE TABLE alembic_version (version_num varchar(32)); INSERT INTO alembic_version VALUES ('{}')"


@pytest.mark.parametrize(
    ("state", "prepare"),
    [
        ("FRESH", ""),
        ("UNTRACKED", "CREATE TABLE other ()"),
        ("BEHIND", RECORDED.format("r1")),
        (
            "CURRENT",
            RECORDED.format("r2"),
        ),
        ("LOST", RECORDED.format("x")),
    ],
)
def test_the_document_fits_its_schema(tmp_path: Path, database: Database, state: str, prepare: str) -> None:
    tree = project(tmp_path)
    tree.add_line(2)
    if prepare:
        database.execute(prepare)
    result = entrypoint("plan", "--json", cwd=tmp_path, env={"DATABASE_URL": database.url})
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["state"] == state
    assert document["exit_code"] == result.code


def test_the_schema_knows_every_state_and_action() -> None:
    assert SCHEMA["properties"]["state"]["enum"] == [state.value for state in State]
    assert SCHEMA["properties"]["action"]["enum"] == [action.value for action in Action]
