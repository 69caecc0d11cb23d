"""A run that is killed during a replay leaves nothing that the next one does not clear away."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from projects import project
from servers import Database, Server, fresh_database, wait_until

ROUNDS = 30
PROVING = """
import sys
from alembic_entrypoint.address import parse
from alembic_entrypoint.observe import find_target, observe
from alembic_entrypoint.proof import prove
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.wait import connected
settings = Settings(database_url=parse(sys.argv[1]), wait_timeout=20)
seen = observe(settings, find_target(settings))
with connected(settings.database_url, 20) as connection:
    print(prove(connection, settings, seen.target, seen.facts).outcome.name, flush=True)
"""
#: One that is at work for longer than all the rounds.
OWNING = """
import sys
from alembic_entrypoint.address import parse
from alembic_entrypoint.postgres.scratch import scratch_server
from alembic_entrypoint.settings import Settings
from alembic_entrypoint.wait import connected
target = parse(sys.argv[1])
with connected(target, 20) as connection, scratch_server(Settings(), target, connection) as server:
    with server.database() as address:
        print(address.place.dbname, flush=True)
        sys.stdin.read()
"""
SCRATCH = "SELECT datname FROM pg_database WHERE datname ~ 'scratch'"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'alembic-entrypoint%%' AND datname <> %s"


@contextmanager
def owner(database: Database) -> Iterator[str]:
    """Have somebody hold a scratch database of the same target, and give its name."""
    command = [sys.executable, "-c", OWNING, database.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@pytest.mark.extra
def test_what_killed_replays_left_is_gone_after_the_next_proof(
    tmp_path: Path, database: Database, server: Server
) -> None:
    made = project(tmp_path)
    made.add_line(20)
    database.execute("CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 (id int PRIMARY KEY)")
    command = [sys.executable, "-c", PROVING, database.url]

    def scratches() -> set[str]:
        return {name for (name,) in server.query(SCRATCH)}

    with fresh_database(server, "alembic_entrypoint_scratch_1_0000002a") as other, owner(database) as owned:
        others = {other.name, owned}
        assert others == scratches()
        left = 0
        for _ in range(ROUNDS):
            before = scratches()
            with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                (its,) = wait_until(lambda seen=before: scratches() - seen, 60, what="it has a scratch database")
                time.sleep(random.uniform(0, 0.3))  # some are at its making still, others at the last migration
                process.kill()
            assert others <= scratches(), "it took what belongs to others"
            left += its in scratches()
        # What a killed client began, such as CREATE DATABASE, the server ends first.
        wait_until(lambda: server.query(SESSIONS, database.name) == [(0,)], 60, what="no session in scratch")
        assert left > 0, "no kill came in time"
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        assert done.stdout.split() == ["ONE"]
        assert scratches() == others
    assert database.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(2,)]
