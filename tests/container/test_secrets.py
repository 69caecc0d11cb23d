"""A URL that comes as a file stays there: no log, no argument and no environment shows its password."""

import pytest
from containers import HEAD, PASSWORD, SLEEP, call

from servers import wait_until

pytestmark = pytest.mark.container

#: Where Docker and Kubernetes put them.
SECRET = "/run/secrets/database_url"
LOUD = "--env=ALEMBIC_ENTRYPOINT_LOG_LEVEL=debug"
OURS = f"--env=ALEMBIC_ENTRYPOINT_DATABASE_URL_FILE={SECRET}"
THEIRS = f"--env=DATABASE_URL_FILE={SECRET}"
#: What the app itself uses: another way to the same database, on which nothing can be migrated.
ELSEWHERE = "--env=DATABASE_URL=postgresql://app@pooler.invalid/notes"

#: The example as it would be with a secret that is a file.
READS_FILE = '''
"""Where the notes are kept."""

import os
from pathlib import Path

from sqlalchemy import make_url


def database_url():
    url = Path(os.environ["DATABASE_URL_FILE"]).read_text().strip()
    return make_url(url).set(drivername="postgresql+psycopg")
'''
SHOW_EVERYTHING = """
import os, pathlib
print(os.environb, *(path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")))
"""


def mounted(file, place, text):
    """Write a file, and return the option that mounts it read-only."""
    file.write_text(text)
    file.chmod(0o444)
    return f"--volume={file}:{place}:ro"


@pytest.fixture
def secret(notes_database, tmp_path):
    """Return the options for a container that has the database's URL as a file, and nowhere else."""
    return (f"--network={notes_database.server.network}", mounted(tmp_path / "url", SECRET, f"{notes_database.url}\n"))


@pytest.fixture(scope="module")
def image_that_reads_the_file(build, image):
    return build(f"FROM {image}\nCOPY database.py /app/notes/\n", {"database.py": READS_FILE})


def everything_seen(container):
    """Return what those see who may look at a container from outside."""
    return container.stdout() + container.stderr() + call("docker", "inspect", container.name).stdout


def test_a_url_for_the_migrations_alone_comes_from_a_file(start, notes_database, secret):
    container = start("python", "-c", SHOW_EVERYTHING, options=(*secret, OURS, ELSEWHERE, LOUD))
    assert container.exit_code() == 0, container.stderr()
    assert notes_database.recorded() == HEAD
    assert "app@pooler.invalid" in container.stdout()
    assert PASSWORD not in everything_seen(container)


def test_the_url_that_the_app_reads_from_a_file_is_read_there(start, image_that_reads_the_file, notes_database, secret):
    options = (*secret, THEIRS, LOUD, "--publish=127.0.0.1::8000")
    container = start(options=options, image=image_that_reads_the_file)
    assert wait_until(container.health, timeout=30) == {"revision": HEAD, "notes": 0}
    assert PASSWORD not in everything_seen(container)


def test_no_process_shows_the_password_while_migrating_and_no_line_when_it_fails(
    start, slow_image, notes_database, secret
):
    container = start("echo", "started", options=(*secret, OURS, ELSEWHERE, LOUD), image=slow_image)
    wait_until(lambda: notes_database.is_running(SLEEP), timeout=30)
    processes = call("docker", "top", container.name, "-eo", "pid,args").stdout
    commands = container.run("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ")
    notes_database.query(f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query = '{SLEEP}'")

    assert container.exit_code() == 1
    assert container.stdout() == ""
    assert container.named("migration.failed")
    # The program and its worker.
    assert processes.count("alembic_entrypoint") + processes.count("alembic-entrypoint") == 2
    assert "pooler.invalid" in commands
    assert PASSWORD not in processes + commands + everything_seen(container)


def test_a_password_that_is_wrong_is_not_shown_either(start, notes_database, tmp_path):
    wrong = "wrong-horse"
    url = mounted(tmp_path / "url", SECRET, notes_database.url.replace(PASSWORD, wrong))
    options = (f"--network={notes_database.server.network}", url, OURS, ELSEWHERE, LOUD)
    container = start("echo", "started", options=options)
    assert container.exit_code() == 77
    assert container.stdout() == ""
    assert "password authentication failed" in container.stderr()
    assert wrong not in everything_seen(container)
