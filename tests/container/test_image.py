"""What the image promises: it migrates, then it is the command; and what it refuses, it does not start."""

import pytest

from servers import wait_until

pytestmark = pytest.mark.container

HEAD = "c46b1d9e20f8"
LOST = "a2242b61af45"
NOWHERE = "postgresql://notes:correct-horse@nowhere.invalid/notes"
SLOW_MIGRATION = f"""
from alembic import op

revision, down_revision = "d15ea5e0ff1c", "{HEAD}"


def upgrade():
    op.execute("CREATE TABLE slow ()")
    op.execute("SELECT pg_sleep(600)")
"""


def on(database):
    """The options of `docker run` for a container that has this database."""
    return (f"--network={database.network}", f"--env=DATABASE_URL={database.url}")


def test_a_command_ends_with_its_own_code_after_migrating(start, notes_database):
    container = start("sh", "-c", "echo started; exit 7", options=on(notes_database))
    assert container.exit_code() == 7
    assert container.stdout() == "started\n"
    assert container.event_names()[-1] == "app.launching"
    assert notes_database.query("SELECT version_num FROM alembic_version") == HEAD


def test_true_ends_with_zero_twice(start, notes_database):
    assert start("true", options=on(notes_database)).exit_code() == 0
    again = start("true", options=on(notes_database))
    assert again.exit_code() == 0
    assert "schema.upgraded" not in again.event_names()


def test_a_lost_revision_on_a_schema_of_no_revision_is_refused_with_its_name(start, notes_database):
    assert start("true", options=on(notes_database)).exit_code() == 0
    notes_database.query(f"UPDATE alembic_version SET version_num = '{LOST}'")
    notes_database.query("ALTER TABLE notes ADD COLUMN colour text")

    refused = start("echo", "started", options=on(notes_database))

    assert refused.exit_code() == 65
    assert refused.stdout() == ""
    assert "app.launching" not in refused.event_names()
    [refusal] = [event for event in refused.events() if event["event"] == "schema.refused"]
    assert LOST in str(refusal)
    assert "correct-horse" not in refused.stderr()
    assert notes_database.query("SELECT version_num FROM alembic_version") == LOST


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


def test_stopping_a_container_that_waits_ends_it_with_143(start):
    container = start("echo", "started", options=("--network=none", f"--env=DATABASE_URL={NOWHERE}"))
    wait_until(lambda: "database.waiting" in container.event_names())
    assert container.stop() == 143
    assert container.stdout() == ""


def test_stopping_a_container_that_migrates_ends_it_with_143_and_leaves_nothing(start, notes_database, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_MIGRATION)
    mount = f"--volume={slow}:/app/migrations/versions/slow.py:ro"
    container = start("echo", "started", options=(*on(notes_database), mount))
    is_asleep = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"
    wait_until(lambda: notes_database.query(is_asleep) == "1", timeout=30)
    assert container.stop() == 143
    assert container.stdout() == ""
    # Rolled back, and all its sessions are gone: nobody waits for a lock of the dead.
    assert notes_database.query("SELECT to_regclass('slow') IS NULL") == "t"
    assert notes_database.query("SELECT version_num FROM alembic_version") == HEAD
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    wait_until(lambda: notes_database.query(others) == "0")
