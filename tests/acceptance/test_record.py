"""`record`, `plan --prove` and `diagnose --prove`: what a person may do who knows more, and how to see more first."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from commands import Result, entrypoint
from projects import Project, project
from servers import Database

SCHEMAS = Path(__file__).parents[2] / "docs/schema"


@pytest.fixture
def tree(tmp_path: Path) -> Project:
    made = project(tmp_path / "tree")
    made.add_line(3)
    return made


def run(tree: Project, database: Database, *arguments: str, **options: str) -> Result:
    return entrypoint(*arguments, cwd=tree.folder, env={"DATABASE_URL": database.url}, **options)


def recorded(database: Database) -> list[str]:
    return sorted(row[0] for row in database.query("SELECT version_num FROM alembic_version"))


@pytest.fixture
def lost(tree: Project, database: Database) -> Database:
    assert run(tree, database, "migrate").code == 0
    database.execute("UPDATE alembic_version SET version_num = 'lost'")
    return database


def test_a_revision_is_recorded_after_a_proof_and_the_undo_is_said(tree: Project, lost: Database) -> None:
    result = run(tree, lost, "record", "r3", "--yes")
    assert result.code == 0, result.message
    assert "LOST" in result.stdout
    assert "Proved: the live schema is that of r3." in result.stdout
    assert recorded(lost) == ["r3"]
    undo = result.stdout.split("To undo it: ")[1]
    lost.execute(undo)
    assert recorded(lost) == ["lost"]


def test_what_is_not_proved_is_not_recorded(tree: Project, lost: Database) -> None:
    result = run(tree, lost, "record", "r2", "--yes")
    assert result.code == 65
    assert "The live schema is not that of r2" in result.message
    assert "record r2 --unproven" in result.message
    assert recorded(lost) == ["lost"]


def test_against_the_proof_the_name_of_the_database_has_to_be_given(tree: Project, lost: Database) -> None:
    for wrong in (["--yes"], ["--yes=other"], []):
        result = run(tree, lost, "record", "r2", "--unproven", *wrong)
        assert (result.code, recorded(lost)) == (2, ["lost"])
    result = run(tree, lost, "record", "r2", "--unproven", f"--yes={lost.name}")
    assert (result.code, recorded(lost)) == (0, ["r2"])
    told = json.loads(run(tree, lost, "history", "--json").stdout)
    assert [(each["action"], each["before"], each["after"]) for each in told[1:]] == [
        ("RECORD UNPROVEN", ["lost"], ["r2"])
    ]


def test_without_a_terminal_and_without_yes_nothing_is_done(tree: Project, lost: Database) -> None:
    result = run(tree, lost, "record", "r3")
    assert result.code == 2
    assert "Add --yes" in result.message
    assert recorded(lost) == ["lost"]


@pytest.mark.parametrize("revs", [["nonsense"], ["head"], ["r1", "r2"]])
def test_what_cannot_be_recorded_is_a_wrong_command_line(tree: Project, lost: Database, revs: list[str]) -> None:
    assert run(tree, lost, "record", *revs, "--yes").code == 2
    assert recorded(lost) == ["lost"]


@pytest.mark.wide
def test_what_was_set_aside_and_is_recorded_by_hand_is_no_longer_set_aside(
    tree: Project, lost: Database, tmp_path: Path
) -> None:
    run(tree, lost, "migrate")
    later = project(tmp_path / "later")
    later.add_line(3)
    later.add("lost", down="r3")
    assert run(later, lost, "migrate").state == "SET ASIDE"
    assert run(later, lost, "record", "lost", "--unproven", f"--yes={lost.name}").code == 0
    assert (run(later, lost, "migrate").code, recorded(lost)) == (0, ["lost"])


def test_plan_proves_when_asked_and_writes_nothing(tree: Project, lost: Database) -> None:
    without = run(tree, lost, "plan", "--json")
    assert (without.code, json.loads(without.stdout)["proof"]) == (65, None)
    result = run(tree, lost, "plan", "--prove", "--json")
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "plan.json").read_text()))
    assert (result.code, document["exit_code"]) == (0, 0)
    assert (document["proof"]["outcome"], document["proof"]["candidates"]) == ("one", [["r3"]])
    lost.execute("ALTER TABLE t2 ADD more int")
    refused = run(tree, lost, "plan", "--prove")
    assert refused.code == 65
    assert "t2.more" in refused.stdout
    assert recorded(lost) == ["lost"]


@pytest.mark.wide
def test_diagnose_sees_drift_and_what_the_ledger_knows(tree: Project, database: Database) -> None:
    assert run(tree, database, "migrate", "--image", "v1").code == 0
    database.execute("ALTER TABLE t2 ADD more int")
    assert run(tree, database, "diagnose", "--json").code == 0
    result = run(tree, database, "diagnose", "--prove", "--json")
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "diagnose.json").read_text()))
    assert "t2.more" in document["state"]["drift"]
    assert [(each["action"], each["image"]) for each in document["ledger"]["settlings"]] == [("UPGRADE", "v1")]
    screen = run(tree, database, "diagnose", "--prove").stdout
    assert "t2.more" in screen
    assert "UPGRADE ok: nothing -> r3 from image v1" in screen
