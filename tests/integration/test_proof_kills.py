"""A run that is killed during a replay leaves nothing that the next one does not clear away."""

from __future__ import annotations

import random
import subprocess
import sys
import time
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
    print("proving", flush=True)
    print(prove(connection, settings, seen.target, seen.facts).outcome.name, flush=True)
"""
SCRATCH = "SELECT datname FROM pg_database WHERE datname ~ 'scratch'"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'alembic-entrypoint%'"


@pytest.mark.extra
def test_what_killed_replays_left_is_gone_after_the_next_proof(
    tmp_path: Path, database: Database, server: Server
) -> None:
    made = project(tmp_path)
    made.add_line(20)
    database.execute("CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 (id int PRIMARY KEY)")
    command = [sys.executable, "-c", PROVING, database.url]
    left = 0
    with fresh_database(server, "alembic_entrypoint_scratch_1_0000002a") as other:
        began = time.monotonic()
        subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE)
        longest = time.monotonic() - began
        for _ in range(ROUNDS):
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert process.stdout is not None
            assert process.stdout.readline() == b"proving\n"
            time.sleep(random.uniform(0, longest / 2))
            process.kill()
            process.wait()
            process.stdout.close()
            left += len(server.query(SCRATCH)) - 1
        # What a killed client began, such as CREATE DATABASE, the server ends first.
        wait_until(lambda: server.query(SESSIONS) == [(0,)], 60, what="no session of ours")
        assert left > 0, "no kill came in time"
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        assert done.stdout.split() == ["proving", "ONE"]
        assert server.query(SCRATCH) == [(other.name,)]
    assert database.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(2,)]
