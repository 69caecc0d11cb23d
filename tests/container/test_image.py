"""What the image promises: it migrates, then it is the command; and what it refuses, it does not start."""

import pytest
from containers import HEAD, LOST, NOWHERE, PASSWORD

pytestmark = pytest.mark.container

SHOW_RECORDED = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    print(*connection.execute("SELECT version_num FROM alembic_version").fetchone())
"""


def test_a_command_ends_with_its_own_code_after_migrating(start, notes_database):
    container = start("sh", "-c", "echo started; exit 7", options=notes_database.access)
    assert container.exit_code() == 7
    assert container.stdout() == "started\n"
    assert container.event_names()[-1] == "app.launching"
    assert notes_database.recorded() == HEAD


def test_true_ends_with_zero_twice(start, notes_database):
    assert start("true", options=notes_database.access).exit_code() == 0
    again = start("true", options=notes_database.access)
    assert again.exit_code() == 0
    assert "schema.upgraded" not in again.event_names()


def test_a_lost_revision_on_a_schema_of_no_revision_is_refused_with_its_name(start, notes_database):
    assert start("true", options=notes_database.access).exit_code() == 0
    notes_database.query(f"UPDATE alembic_version SET version_num = '{LOST}'")
    notes_database.query("ALTER TABLE notes ADD COLUMN colour text")

    refused = start("echo", "started", options=notes_database.access)

    assert refused.exit_code() == 65
    assert refused.stdout() == ""
    assert "app.launching" not in refused.event_names()
    [refusal] = [event for event in refused.events() if event["event"] == "schema.refused"]
    assert LOST in str(refusal)
    assert PASSWORD not in refused.stderr()
    assert notes_database.recorded() == LOST


def test_with_mode_off_the_command_runs_without_a_database(start):
    options = ("--network=none", f"--env=DATABASE_URL={NOWHERE}", "--env=ALEMBIC_ENTRYPOINT_MODE=off")
    container = start("echo", "started", options=options)
    assert container.exit_code() == 0
    assert container.stdout() == "started\n"
    assert "database.waiting" not in container.event_names()


def test_a_database_that_never_answers_ends_the_container_with_69(start):
    options = ("--network=none", f"--env=DATABASE_URL={NOWHERE}", "--env=ALEMBIC_ENTRYPOINT_WAIT_TIMEOUT=1")
    container = start("echo", "started", options=options)
    assert container.exit_code() == 69
    assert container.stdout() == ""


def test_with_mode_off_a_container_that_refuses_can_be_entered(start, notes_database):
    assert start("true", options=notes_database.access).exit_code() == 0
    notes_database.query(f"UPDATE alembic_version SET version_num = '{LOST}'")
    notes_database.query("ALTER TABLE notes ADD COLUMN colour text")
    assert start("python", "-c", SHOW_RECORDED, options=notes_database.access).exit_code() == 65

    options = (*notes_database.access, "--env=ALEMBIC_ENTRYPOINT_MODE=off")
    entered = start("python", "-c", SHOW_RECORDED, options=options)

    assert entered.exit_code() == 0
    assert entered.stdout() == f"{LOST}\n"
    assert notes_database.recorded() == LOST
