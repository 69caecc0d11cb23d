"""What PID 1 owes: a signal ends it in time at every step before the app starts, and the app inherits nobody."""

import time

import pytest
from containers import HEAD, NOWHERE, SLEEP, frozen

from servers import wait_until

pytestmark = pytest.mark.container

#: Two seconds are promised; the rest is for the engine, which is asked twice.
LIMIT = 3.0
signals = pytest.mark.parametrize(("signal", "code"), [("TERM", 143), ("INT", 130)])

LEFT_BEHIND = f"""
import subprocess
from alembic import op

revision, down_revision = "0e9f2ab4c5d6", "{HEAD}"


def upgrade():
    # PID 1 inherits them: the first has ended by the time that the app starts, the others never end by themselves, and
    # the last is in a session of its own.
    subprocess.run(["sh", "-c", "true & sleep 600 & setsid sleep 600 &"], check=True)
"""
SHOW_PROCESSES = """
import os
print(*(f"/proc/{pid}" for pid in os.listdir("/proc") if pid.isdigit()))
"""


def timed(end, *arguments):
    """Return the exit code, and how many seconds the end took."""
    started = time.monotonic()
    return end(*arguments), time.monotonic() - started


def start_slowly(start, slow_image, database):
    """Start a container, and wait until it is in the middle of a migration that takes a minute."""
    container = start("echo", "started", options=database.access, image=slow_image)
    wait_until(lambda: database.is_running(SLEEP), timeout=30)
    return container


@signals
def test_a_signal_ends_a_container_that_waits_for_the_database(start, signal, code):
    container = start("echo", "started", options=("--network=none", f"--env=DATABASE_URL={NOWHERE}"))
    wait_until(lambda: container.named("database.waiting"), timeout=30)
    ended, took = timed(container.kill, signal)
    assert ended == code
    assert took < LIMIT
    assert container.stdout() == ""


@signals
def test_a_signal_ends_a_container_that_waits_for_the_lock_and_not_its_holder(
    start, slow_image, notes_database, signal, code
):
    holder = start_slowly(start, slow_image, notes_database)
    container = start("echo", "started", options=notes_database.access, image=slow_image)
    wait_until(lambda: container.named("lock.waiting"), timeout=30)
    ended, took = timed(container.kill, signal)
    assert ended == code
    assert took < LIMIT
    assert container.stdout() == ""
    assert notes_database.is_running(SLEEP)
    assert holder.kill("TERM") == 143


@signals
def test_a_signal_ends_a_container_that_migrates_and_what_it_does_on_the_server(
    start, slow_image, notes_database, signal, code
):
    container = start_slowly(start, slow_image, notes_database)
    ended, took = timed(container.kill, signal)
    assert ended == code
    assert took < LIMIT
    assert container.stdout() == ""
    assert not notes_database.has_table("slow")
    assert notes_database.recorded() == HEAD
    wait_until(lambda: not notes_database.has_sessions(), what="no session is left")


@signals
def test_a_signal_ends_a_container_that_migrates_on_a_server_that_answers_no_more(
    start, slow_image, notes_database, signal, code
):
    container = start_slowly(start, slow_image, notes_database)
    with frozen(notes_database.server):
        ended, took = timed(container.kill, signal)
    assert ended == code
    assert took < LIMIT
    wait_until(lambda: not notes_database.has_sessions(), timeout=30, what="no session is left")
    assert not notes_database.has_table("slow")
    assert notes_database.recorded() == HEAD


def test_stopping_a_container_that_migrates_takes_less_than_three_seconds_and_leaves_the_database_as_before(
    start, slow_image, notes_database
):
    assert start("true", options=notes_database.access).exit_code() == 0
    notes_database.query("INSERT INTO notes (title, slug) VALUES ('Before', 'before-1')")
    before = notes_database.dump()
    assert "before-1" in before

    container = start_slowly(start, slow_image, notes_database)
    code, took = timed(container.stop)

    assert code == 143
    assert took < 3
    assert container.stdout() == ""
    wait_until(lambda: not notes_database.has_sessions(), what="no session is left")
    assert notes_database.dump() == before


def test_the_app_is_alone_whatever_a_migration_left_behind(start, build, image, notes_database):
    leaving = build(
        f"FROM {image}\nCOPY left_behind.py /app/migrations/versions/\n",
        {"left_behind.py": LEFT_BEHIND},
    )
    script = ("-c", 'alembic upgrade head && exec python -c "$0"', SHOW_PROCESSES)
    inheriting = start(*script, options=(*notes_database.access, "--entrypoint=sh"), image=leaving)
    assert inheriting.exit_code() == 0, inheriting.stderr()
    assert len(inheriting.stdout().split()) > 1, "behind a script the app inherits them"
    notes_database.query(f"UPDATE alembic_version SET version_num = '{HEAD}'")

    container = start("python", "-c", SHOW_PROCESSES, options=notes_database.access, image=leaving)
    assert container.exit_code() == 0, container.stderr()
    assert container.stdout() == "/proc/1\n"
